// Where a subgroup's sums go. Of a gated product, the upper half of w multiplies the lower: of four rows
// that a subgroup takes, two are of each. `place` is what a group is at work on, where experts differ.

// Row r of those from `first` on.
fn row_of(first: u32, r: u32, place: u32) -> u32 {
    if (IS_GATED) {
        return part_row(first / 2u + r % 2u + select(0u, outs() / 2u, r >= 2u), place);
    }
    return part_row(first + r, place);
}

// What is added to results of rows first + r and the next, for row b of x.
fn added(first: u32, r: u32, b: u32, place: u32) -> vec2<f32> {
    let row = first + r;
    return y_added(select(0u, y_at(row, b, place), has_y(row, b, place)), has_second(row, b, place));
}

fn has_second(row: u32, b: u32, place: u32) -> bool {
    return row + 1u < outs() && has_y(row + 1u, b, place);
}

// Results of these rows, to which something is added.
fn put_added(first: u32, r: u32, b: u32, place: u32, sum: vec2<f32>, more: vec2<f32>) {
    let row = first + r;
    if (has_y(row, b, place)) {
        y_put(y_at(row, b, place), with_bias(sum, row), more, has_second(row, b, place));
    }
}

fn put(first: u32, r: u32, b: u32, place: u32, sum: vec2<f32>) {
    put_added(first, r, b, place, sum, added(first, r, b, place));
}

// silu(gate) * up of two rows each, both rounded as if they had been stored.
fn put_gated(first: u32, place: u32, gate: vec2<f32>, up: vec2<f32>) {
    let row = first / 2u;
    if (first < outs()) {
        let g = x_unpack(x_pack(with_bias(gate, row)));
        let u = x_unpack(x_pack(with_bias(up, row + outs() / 2u)));
        y_store(place * (outs() / 2u) + row, silu(g) * u, true);
    }
}
