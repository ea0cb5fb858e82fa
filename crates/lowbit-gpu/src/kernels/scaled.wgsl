// A number times its block's factor; by way of the stored scale where the factor, 1 / absmax, overflows.
fn scaled(value: f32, factor: f32, scale: f32) -> f32 {
    if (bitcast<u32>(factor) != 0x7f800000u) {
        return value * factor;
    }
    // Absmax is the scale, or peak times it.
    let size = divide(abs(value), scale * select(1.0, PEAK, STEP)) * PEAK;
    return select(size, -size, value < 0.0);
}
