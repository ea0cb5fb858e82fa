// Each 64 numbers of x that are kept as half floats have an exponent of their own.

var<workgroup> ups: array<f32, BATCH * K / 64u>;

fn exponent_of_all(most: u32, lane: u32, subgroup: u32, subgroups: u32) -> u32 {
    return 0u;
}

// Of the eight threads whose octets follow each other, as the lanes of a subgroup do.
fn exponent_of(most: u32, shared_exponent: u32) -> u32 {
    let two = max(most, subgroupShuffleXor(most, 1u));
    let four = max(two, subgroupShuffleXor(two, 2u));
    return clamp(max(four, subgroupShuffleXor(four, 4u)) >> 23u, 9u, 254u);
}

// Notes the exponent of octet i of all rows.
fn note(i: u32, exponent: u32) {
    if (i % 8u == 0u) {
        ups[i / 8u] = bitcast<f32>((exponent - 8u) << 23u);
    }
}

// What was divided by, of vector v of row b.
fn up_of(b: u32, v: u32, shared_exponent: u32) -> f32 {
    return ups[b * (K / 64u) + v / 2u];
}
