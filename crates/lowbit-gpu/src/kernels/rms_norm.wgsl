// y = x / sqrt(mean(x²) + eps) * weight over runs of `p.length` numbers.
//
// A group of threads takes RUNS runs: one, or two of odd length, so that no pair belongs to two groups.

var<workgroup> squares: array<vec2<f32>, GROUP>;

@compute @workgroup_size(GROUP)
fn rms_norm(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let pairs = RUNS * p.length / 2u;
    let start = (group.y * groups.x + group.x) * pairs;
    let end = min(start + pairs, p.pairs);
    var own = vec2<f32>();
    for (var i = start + thread; i < end; i += GROUP) {
        let v = x_unpack(x[i]);
        let square = v * v;
        let at = 2u * (i - start);
        if (RUNS == 1u) {
            own.x += square.x + square.y;
        } else {
            own.x += select(square.x, 0.0, at >= p.length) + select(square.y, 0.0, at + 1u >= p.length);
            own.y += select(0.0, square.x, at >= p.length) + select(0.0, square.y, at + 1u >= p.length);
        }
    }
    squares[thread] = own;
    for (var step = GROUP / 2u; step > 0u; step /= 2u) {
        workgroupBarrier();
        if (thread < step) {
            squares[thread] += squares[thread + step];
        }
    }
    workgroupBarrier();
    let factor = 1.0 / sqrt(squares[0] / f32(p.length) + bitcast<f32>(p.eps));
    for (var i = start + thread; i < end; i += GROUP) {
        let at = 2u * (i - start);
        let v = x_unpack(x[i]);
        y[i] = x_pack(vec2<f32>(scaled(v.x, at, factor), scaled(v.y, at + 1u, factor)));
    }
}

// v times its factors, where it is number `at` of the group's runs.
fn scaled(v: f32, at: u32, factor: vec2<f32>) -> f32 {
    let second = RUNS == 2u && at >= p.length;
    return v * (select(factor.x, factor.y, second) * weight[select(at, at - p.length, second)]);
}
