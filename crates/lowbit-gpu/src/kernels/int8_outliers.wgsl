// Adds the columns of outliers, as they are. `outliers`: how many columns there are, then which, ascending.

fn with_outliers(sum: f32, m: u32, n: u32, column: f32) -> f32 {
    var v = sum;
    for (var i = 0u; i < outliers[0]; i++) {
        let c = outliers[1u + i];
        let at = n * p.k + c;
        let code = extractBits(bitcast<i32>(b[at >> 2u]), 8u * (at & 3u), 8u);
        v += x_at(m * p.k + c) * (f32(code) * column);
    }
    return v;
}
