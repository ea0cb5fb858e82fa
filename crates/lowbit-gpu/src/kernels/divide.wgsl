// a / b of finite positive numbers, rounded to nearest, ties to even, in integers: the division of a
// GPU may be off by a few units in the last place, and codes must be equal everywhere.
fn divide(a: f32, b: f32) -> f32 {
    let ab = bitcast<u32>(a);
    let bb = bitcast<u32>(b);
    // Significands with their highest bit at 23, subnormals included.
    let a_shift = countLeadingZeros(max(ab & 0x7fffffu, 1u)) - 8u;
    let b_shift = countLeadingZeros(max(bb & 0x7fffffu, 1u)) - 8u;
    let a_normal = (ab >> 23u) != 0u;
    let b_normal = (bb >> 23u) != 0u;
    var rest = select((ab & 0x7fffffu) << a_shift, (ab & 0x7fffffu) | 0x800000u, a_normal);
    let divisor = select((bb & 0x7fffffu) << b_shift, (bb & 0x7fffffu) | 0x800000u, b_normal);
    let a_exponent = select(1 - i32(a_shift), i32(ab >> 23u), a_normal);
    let b_exponent = select(1 - i32(b_shift), i32(bb >> 23u), b_normal);
    var exponent = a_exponent - b_exponent + 127;
    if (rest < divisor) {
        rest <<= 1u;
        exponent -= 1;
    }
    // 24 bits of the quotient, the first of them 1, and one more to round by.
    var quotient = 0u;
    for (var i = 0u; i < 25u; i++) {
        let fits = rest >= divisor;
        quotient = (quotient << 1u) | u32(fits);
        rest = select(rest, rest - divisor, fits) << 1u;
    }
    // A subnormal result keeps fewer bits.
    let drop = u32(clamp(1 - exponent, 0, 26)) + 1u;
    let kept = quotient >> drop;
    let left = quotient & ((1u << drop) - 1u);
    let half = 1u << (drop - 1u);
    let sticky = rest != 0u;
    let up = left > half || (left == half && (sticky || (kept & 1u) == 1u));
    let bits = select(kept + (u32(max(exponent, 1) - 1) << 23u), kept, exponent < 1) + u32(up);
    return bitcast<f32>(select(bits, 0x7f800000u, exponent > 254));
}
