// The factor of a norm of x, of whose numbers each thread of a group has the sum of some squares; a barrier
// comes between the two functions.

var<workgroup> squares: array<f32, GROUP / 4u>;

fn note_squares(own: f32, lane: u32, subgroup: u32) {
    let sum = subgroupAdd(own);
    if (lane == 0u) {
        squares[subgroup] = sum;
    }
}

fn norm_factor(lane: u32, width: u32, subgroups: u32) -> f32 {
    var own = 0.0;
    for (var i = lane; i < subgroups; i += width) {
        own += squares[i];
    }
    return inverseSqrt(subgroupAdd(own) / f32(K) + EPS);
}
