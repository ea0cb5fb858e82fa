// Stores the scale of a block whose largest magnitude, or mean magnitude, has those bits; the factor of
// its numbers. A block with a number that is not finite has those bits too, and a scale that is none.
fn store_scale(block: u32, bits: u32) -> f32 {
    let value = bitcast<f32>(bits);
    let finite = bits < 0x7f800000u;
    if (E8M0) {
        let e = clamp(i32(bits >> 23u) - i32(bitcast<u32>(PEAK) >> 23u) + 127, 0, 254);
        scales[block] = bitcast<f32>(select(255u, u32(e), finite));
        // 2^-(e - 127), which is subnormal for 254.
        return select(bitcast<f32>(select(u32(254 - e) << 23u, 0x00400000u, e == 254)), 0.0, bits == 0u);
    }
    var scale = value;
    if (STEP) {
        scale = select(value, divide(value, PEAK), finite);
    }
    scales[block] = select(scale, 0.0, bits == 0u);
    return select(divide(PEAK, bitcast<f32>(max(bits, 1u))), 0.0, bits == 0u);
}
