// Results (m, n) and (m, n + 1) of matrices, times the powers of two that were taken from their factors.
fn put(m: u32, n: u32, v: vec2<f32>) {
    if (m < p.m && n < p.n) {
        let up = ups[m] * bitcast<f32>(p.up);
        y_store(m * p.row_y + p.first_y + n, with_bias(v * up, n), n + 1u < p.n);
    }
}
