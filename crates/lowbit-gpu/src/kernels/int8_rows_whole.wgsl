// What `int8_rows` does where there are no outliers.

fn size_unless_outlier(v: f32, column: u32) -> u32 {
    return size_of(v);
}

fn keep_scale(m: u32, own: Scaling, spoilt: bool) {
    row_scales[m] = bitcast<f32>(select(bitcast<u32>(own.absmax * UNIT), 0x7fc00000u, spoilt));
}

fn put_row(m: u32, thread: u32) {
    for (var j = thread; j < p.words; j += GROUP) {
        var word = 0u;
        for (var i = 0u; i < min(p.k - 4u * j, 4u); i++) {
            word |= code_of(x_at(m * p.k + 4u * j + i), scaling) << (8u * i);
        }
        codes[m * p.words + j] = word;
    }
}
