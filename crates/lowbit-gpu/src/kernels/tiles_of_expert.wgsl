// Of a product with EACH rows of w for the expert of each place, as experts_order.wgsl has ordered them;
// READERS places read a row of x. A part of w has some of the rows, from p.first_y on.

const NONE = 0xffffffffu;

fn expert_of(tile: u32) -> u32 {
    return tiles[tile];
}

fn place_of(m: u32) -> u32 {
    return order[m];
}

fn x_row(place: u32) -> u32 {
    return place / READERS;
}

fn part_row(row: u32, expert: u32) -> u32 {
    return expert * EACH + row - p.first_y;
}

fn has_out(out: u32, expert: u32) -> bool {
    return out < EACH && part_row(out, expert) < p.n;
}

fn y_first(place: u32) -> u32 {
    return place * EACH;
}
