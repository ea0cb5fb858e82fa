// Rounding and reading numbers, in integers: the same everywhere, whatever a compiler does to floats.

fn is_nan(x: f32) -> bool {
    return (bitcast<u32>(x) & 0x7fffffffu) > 0x7f800000u;
}

// Nearest bfloat16, ties to even; NaN stays NaN.
fn bf16_bits(x: f32) -> u32 {
    let bits = bitcast<u32>(x);
    let rounded = (bits + 0x7fffu + ((bits >> 16u) & 1u)) >> 16u;
    return select(rounded, (bits >> 16u) | 0x40u, is_nan(x));
}

// Eight of them in pairs. Few are NaN: that is looked for once.
fn bf16_eight(a: vec4<f32>, b: vec4<f32>) -> vec4<u32> {
    let low = bitcast<vec4<u32>>(a);
    let high = bitcast<vec4<u32>>(b);
    let larger = max(low & vec4<u32>(0x7fffffffu), high & vec4<u32>(0x7fffffffu));
    if (max(max(larger.x, larger.y), max(larger.z, larger.w)) > 0x7f800000u) {
        return vec4<u32>(
            bf16_bits(a.x) | (bf16_bits(a.y) << 16u),
            bf16_bits(a.z) | (bf16_bits(a.w) << 16u),
            bf16_bits(b.x) | (bf16_bits(b.y) << 16u),
            bf16_bits(b.z) | (bf16_bits(b.w) << 16u),
        );
    }
    let l = low + vec4<u32>(0x7fffu) + ((low >> vec4<u32>(16u)) & vec4<u32>(1u));
    let h = high + vec4<u32>(0x7fffu) + ((high >> vec4<u32>(16u)) & vec4<u32>(1u));
    let evens = vec4<u32>(l.xz, h.xz) >> vec4<u32>(16u);
    return evens | (vec4<u32>(l.yw, h.yw) & vec4<u32>(0xffff0000u));
}

// Nearest half float, ties to even; too large becomes infinity, NaN stays NaN.
fn f16_bits(x: f32) -> u32 {
    let bits = bitcast<u32>(x);
    let sign = (bits >> 16u) & 0x8000u;
    let magnitude = bits & 0x7fffffffu;
    // Normal halves: move the exponent by 112, round 13 bits away. A carry makes infinity.
    let normal = min((magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13u) & 1u)) >> 13u, 0x7c00u);
    // Subnormal halves: the significand in steps of 2^-24.
    let drop = min(126u - (magnitude >> 23u), 31u);
    let significand = (magnitude & 0x7fffffu) | 0x800000u;
    let kept = significand >> drop;
    let rest = significand & ((1u << drop) - 1u);
    let half = 1u << (drop - 1u);
    let up = u32(rest > half || (rest == half && (kept & 1u) == 1u));
    let small = select(kept + up, 0u, drop > 24u);
    let finite = select(small, normal, magnitude >= 0x38800000u);
    return sign | select(finite, 0x7e00u, is_nan(x));
}

// Value of a half float; its subnormals are exact.
fn f16_value(bits: u32) -> f32 {
    let magnitude = bits & 0x7fffu;
    let normal = bitcast<f32>(select((magnitude << 13u) + 0x38000000u, (magnitude << 13u) + 0x70000000u,
        magnitude >= 0x7c00u));
    let value = select(normal, f32(magnitude) * 0x1p-24, magnitude < 0x400u);
    return bitcast<f32>(bitcast<u32>(value) | ((bits & 0x8000u) << 16u));
}

// x / (1 + exp(-x)). Hosts may compile as if nothing were infinite, and divide by way of a reciprocal.
fn silu(x: vec2<f32>) -> vec2<f32> {
    let large = vec2<f32>(88.0);
    let e = exp(-min(abs(x), large));
    return select(x * select(e, vec2<f32>(1.0), x >= vec2<f32>()) / (1.0 + e), x, x > large);
}
