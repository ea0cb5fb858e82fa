// All numbers of x that are kept as half floats have one exponent, for which no memory is needed but what
// they will lie in.

fn exponent_of_all(most: u32, lane: u32, subgroup: u32, subgroups: u32) -> u32 {
    let of_subgroup = subgroupMax(most >> 23u);
    if (lane == 0u) {
        halves[subgroup].low.x = f16(of_subgroup);
    }
    workgroupBarrier();
    var all = 9.0h;
    for (var i = 0u; i < subgroups; i++) {
        all = max(all, halves[i].low.x);
    }
    workgroupBarrier();
    return min(u32(all), 254u);
}

fn exponent_of(most: u32, shared_exponent: u32) -> u32 {
    return shared_exponent;
}

fn note(i: u32, exponent: u32) {}

fn up_of(b: u32, v: u32, shared_exponent: u32) -> f32 {
    return bitcast<f32>((shared_exponent - 8u) << 23u);
}
