// What rows of activations become integers by.

struct Scaling {
    factor: f32,
    absmax: f32,
}

fn scaling_of(bits: u32) -> Scaling {
    let absmax = bitcast<f32>(bits);
    let factor = select(divide(PEAK, bitcast<f32>(max(bits, 1u))), 0.0, bits == 0u);
    return Scaling(factor, absmax);
}

fn code_of(v: f32, s: Scaling) -> u32 {
    if (size_of(v) >= 0x7f800000u) {
        return 0u;
    }
    var scaled = v * s.factor;
    if (bitcast<u32>(s.factor) == 0x7f800000u) {
        let size = divide(abs(v), s.absmax) * PEAK;
        scaled = select(size, -size, v < 0.0);
    }
    return bitcast<u32>(i32(clamp(round(scaled), -PEAK, PEAK))) & 0xffu;
}

fn size_of(v: f32) -> u32 {
    return bitcast<u32>(v) & 0x7fffffffu;
}
