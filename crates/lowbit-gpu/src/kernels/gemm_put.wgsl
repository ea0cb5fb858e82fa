// Results (m, n) and (m, n + 1) of matrices, times the powers of two that were taken from their factors:
// `up` from row m of x.
fn put_result(m: u32, n: u32, v: vec2<f32>, up: f32) {
    if (m < p.m && n < p.n) {
        let y = v * (up * bitcast<f32>(p.up));
        y_store(m * p.row_y + p.first_y + n, with_bias(y, n), n + 1u < p.n);
    }
}
