// Stores the scale of a block whose largest magnitude, or mean magnitude, has those bits; the factor of
// its numbers.
fn store_scale(block: u32, bits: u32) -> f32 {
    let value = bitcast<f32>(bits);
    if (E8M0) {
        let e = clamp(i32(bits >> 23u) - i32(bitcast<u32>(PEAK) >> 23u) + 127, 0, 254);
        scales[block] = bitcast<f32>(u32(e));
        // 2^-(e - 127), which is subnormal for 254.
        return select(bitcast<f32>(select(u32(254 - e) << 23u, 0x00400000u, e == 254)), 0.0, bits == 0u);
    }
    var scale = value;
    if (STEP) {
        scale = divide(value, PEAK);
    }
    scales[block] = select(scale, 0.0, bits == 0u);
    return select(divide(PEAK, bitcast<f32>(max(bits, 1u))), 0.0, bits == 0u);
}
