// Where a subgroup's sums go. Of a gated product, the upper half of w multiplies the lower: of four rows
// that a subgroup takes, two are of each.

// Row r of those from `first` on.
fn row_of(first: u32, r: u32) -> u32 {
    if (IS_GATED) {
        return first / 2u + r % 2u + select(0u, p.n / 2u, r >= 2u);
    }
    return first + r;
}

// Results of rows first + r and the next, for row first_x + b of x.
fn put(first: u32, r: u32, b: u32, sum: vec2<f32>) {
    let row = first + r;
    let m = p.first_x + b;
    if (m < p.m && row < p.n) {
        y_store(m * p.row_y + p.first_y + row, with_bias(sum, row), row + 1u < p.n);
    }
}

// silu(gate) * up of two rows each, both rounded as if they had been stored.
fn put_gated(first: u32, gate: vec2<f32>, up: vec2<f32>) {
    let row = first / 2u;
    if (first < p.n) {
        let g = x_unpack(x_pack(with_bias(gate, row)));
        let u = x_unpack(x_pack(with_bias(up, row + p.n / 2u)));
        y_store(row, silu(g) * u, true);
    }
}
