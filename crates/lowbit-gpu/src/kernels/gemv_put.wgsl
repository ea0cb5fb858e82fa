// Where a subgroup's sums go. Of a gated product, the upper half of w multiplies the lower: of four rows
// that a subgroup takes, two are of each. `place` is what a group is at work on, where experts differ.

// Row r of those from `first` on.
fn row_of(first: u32, r: u32, place: u32) -> u32 {
    if (IS_GATED) {
        return part_row(first / 2u + r % 2u + select(0u, outs() / 2u, r >= 2u), place);
    }
    return part_row(first + r, place);
}

// Results of rows first + r and the next, for row b of x.
fn put(first: u32, r: u32, b: u32, place: u32, sum: vec2<f32>) {
    let row = first + r;
    if (has_y(row, b, place)) {
        let second = row + 1u < outs();
        y_store(y_at(row, b, place), with_bias(sum, row), second && has_y(row + 1u, b, place));
    }
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
