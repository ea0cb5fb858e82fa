// Codes of four bits, a byte of which is looked up at once in a table of pairs of half floats. It lies in
// workgroup memory REPLICAS times, so that lanes read other banks. How is said elsewhere: `pair_at` reads
// a pair, and `keep_pair` writes one.

struct Halves {
    low: vec4<f16>,
    high: vec4<f16>,
}

// Eight weights, without scale.
fn decoded(word: u32, replica: u32) -> Halves {
    let w0 = pair_at(extractBits(word, 0u, 8u), replica);
    let w1 = pair_at(extractBits(word, 8u, 8u), replica);
    let w2 = pair_at(extractBits(word, 16u, 8u), replica);
    let w3 = pair_at(extractBits(word, 24u, 8u), replica);
    return Halves(vec4<f16>(w0, w1), vec4<f16>(w2, w3));
}

// Keeps the pair of a byte, whose upper and lower code have these values, four times from number `at` on.
fn keep_pairs(byte: u32, at: u32, upper: f32, lower: f32) {
    let pair = vec2<f16>(select(vec2<f32>(lower, upper), vec2<f32>(upper, lower), HIGH_FIRST));
    keep_pair(byte, at, pair);
    keep_pair(byte, at + 1u, pair);
    keep_pair(byte, at + 2u, pair);
    keep_pair(byte, at + 3u, pair);
}

fn largest_of(v: vec4<f32>) -> u32 {
    let bits = bitcast<vec4<u32>>(v) & vec4<u32>(0x7fffffffu);
    return max(max(bits.x, bits.y), max(bits.z, bits.w));
}

// Adds products of eight weights and numbers, those of even and of odd columns.
fn dot8(w: Halves, low: vec4<f16>, high: vec4<f16>, sum: vec2<f16>) -> vec2<f16> {
    let four = fma(w.low.zw, low.zw, fma(w.low.xy, low.xy, sum));
    return fma(w.high.zw, high.zw, fma(w.high.xy, high.xy, four));
}

// Two of the sixteen values, of which eight lanes that follow each other have all.
fn values_of(lane: u32) -> vec4<f32> {
    return vec4<f32>(book[lane & 15u], book[(lane + 8u) & 15u], 0.0, 0.0);
}

// Exponent of the largest value: times the inverse of that power of two, all are below 2.
fn exponent_of_values(values: vec4<f32>) -> u32 {
    return clamp(subgroupMax(largest_of(values)) >> 23u, 1u, 253u);
}
