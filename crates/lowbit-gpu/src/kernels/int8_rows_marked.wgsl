// What `int8_rows` does where there may be outliers.

fn size_unless_outlier(v: f32, column: u32) -> u32 {
    let size = size_of(v);
    if (size < p.threshold) {
        return size;
    }
    atomicStore(&marks[column], 1u);
    return 0u;
}

fn keep_scale(m: u32, own: Scaling, spoilt: bool) {
    row_scales[m] = own.absmax * UNIT;
    factors[m] = vec2<f32>(own.factor, own.absmax);
}

fn put_row(m: u32, thread: u32) {
}
