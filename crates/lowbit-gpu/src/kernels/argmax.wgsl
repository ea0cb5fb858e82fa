// Column of the largest number of each row, the first where several are. NaN is larger than nothing, but
// in the first column nothing is larger than it. A row has
// p.cols candidates, whose keys and columns `candidate` gives; a group of threads takes p.span of them, one
// of p.parts parts.

var<workgroup> best: array<vec2<u32>, GROUP>;

// Larger keys for larger numbers, in integers: the same everywhere, whatever a compiler does to floats.
fn key(x: f32, col: u32) -> u32 {
    let bits = bitcast<u32>(x);
    let magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) {
        return select(0u, 0xffffffffu, col == 0u);
    }
    return select(0x80000000u + magnitude, 0x80000000u - magnitude, bits >= 0x80000000u);
}

fn better(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    return select(b, a, a.x > b.x || (a.x == b.x && a.y < b.y));
}

@compute @workgroup_size(GROUP)
fn argmax(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let part = group.y * groups.x + group.x;
    let row = part / p.parts;
    let first = (part % p.parts) * p.span;
    var own = vec2<u32>(0u, 0xffffffffu);
    if (row < p.rows) {
        for (var i = first + thread; i < min(first + p.span, p.cols); i += GROUP) {
            own = better(own, candidate(row, i));
        }
    }
    best[thread] = own;
    for (var step = GROUP / 2u; step > 0u; step /= 2u) {
        workgroupBarrier();
        if (thread < step) {
            best[thread] = better(best[thread], best[thread + step]);
        }
    }
    if (thread == 0u && row < p.rows) {
        give(part, best[0]);
    }
}
