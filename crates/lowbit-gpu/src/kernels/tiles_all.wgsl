// Of a product with all rows of w: tile by tile of x.

const NONE = 0xffffffffu;

fn expert_of(tile: u32) -> u32 {
    return 0u;
}

fn place_of(m: u32) -> u32 {
    return select(NONE, m, m < p.m);
}

fn x_row(place: u32) -> u32 {
    return place;
}

fn part_row(row: u32, expert: u32) -> u32 {
    return row;
}

fn has_out(out: u32, expert: u32) -> bool {
    return out < select(p.n, p.k, TRANSPOSED);
}

fn y_first(place: u32) -> u32 {
    return place * p.row_y + p.first_y;
}
