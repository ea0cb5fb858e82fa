// Of a product with EACH rows of w for the expert of each place; READERS places read a row of x. A part
// of w has some of the rows, from p.first_y on; others lie behind its end, or wrap around to there.

fn outs() -> u32 {
    return EACH;
}

fn x_row(b: u32, place: u32) -> u32 {
    return place / READERS;
}

fn part_row(row: u32, place: u32) -> u32 {
    return u32(ids[place]) * EACH + row - p.first_y;
}

fn has_y(row: u32, b: u32, place: u32) -> bool {
    return row < EACH && part_row(row, place) < p.n;
}

fn y_at(row: u32, b: u32, place: u32) -> u32 {
    return place * EACH + row;
}
