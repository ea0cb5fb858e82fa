// The factor of a norm of x, of whose numbers each thread of a group gives the sum of some squares.

var<workgroup> squares: array<f32, GROUP / 4u>;

fn norm_factor(own: f32, lane: u32, subgroup: u32, subgroups: u32) -> f32 {
    let sum = subgroupAdd(own);
    if (lane == 0u) {
        squares[subgroup] = sum;
    }
    workgroupBarrier();
    var total = 0.0;
    for (var i = 0u; i < subgroups; i++) {
        total += squares[i];
    }
    return 1.0 / sqrt(total / f32(K) + EPS);
}
