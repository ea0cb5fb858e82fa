// What sums of integers stand for: `sum * row * column`, what outliers add, and a bias.

fn finish(m: u32, n: u32, sum: i32) -> f32 {
    let row = row_scales[m];
    let column = column_scales[n] * UNIT;
    let v = with_bias(with_outliers(f32(sum) * (row * column), m, n, column), p.first_y + n);
    // In integers, as a host may compile as if nothing were NaN.
    return bitcast<f32>(select(bitcast<u32>(v), 0x7fc00000u, is_nan(row)));
}
