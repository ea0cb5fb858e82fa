// Of a product with all rows of w, and BATCH rows of x in each place.

fn outs() -> u32 {
    return p.n;
}

fn x_row(b: u32, place: u32) -> u32 {
    return min(p.first_x + place * BATCH + b, p.m - 1u);
}

fn part_row(row: u32, place: u32) -> u32 {
    return row;
}

fn has_y(row: u32, b: u32, place: u32) -> bool {
    return p.first_x + place * BATCH + b < p.m && row < p.n;
}

fn y_at(row: u32, b: u32, place: u32) -> u32 {
    return (p.first_x + place * BATCH + b) * p.row_y + p.first_y + row;
}
