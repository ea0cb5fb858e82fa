// Exact products of 8-bit integers for FEW rows of a at a time: 32 threads share a row of b.

const LANES = 32u;
const OWN = GROUP / LANES;

var<workgroup> parts: array<array<i32, GROUP>, FEW>;

@compute @workgroup_size(GROUP)
fn int8_few(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let first_n = (group.y * groups.x + group.x) * OWN;
    let first_m = group.z * FEW;
    let n = first_n + thread / LANES;
    let lane = thread % LANES;
    //@ for r in FEW
    var sum_$r = 0;
    //@ end
    if (n < p.n) {
        for (var j = lane; j < p.words; j += LANES) {
            let b_own = b_word(n, j);
            // Rows beyond the last count as the last: their sums are not kept.
            //@ for r in FEW
            sum_$r += dot4(a_word(min(first_m + $ru, p.m - 1u), j), b_own);
            //@ end
        }
    }
    //@ for r in FEW
    parts[$r][thread] = sum_$r;
    //@ end
    for (var half = LANES / 2u; half > 0u; half >>= 1u) {
        workgroupBarrier();
        if (lane < half) {
            //@ for r in FEW
            parts[$r][thread] += parts[$r][thread + half];
            //@ end
        }
    }
    workgroupBarrier();
    // A thread for each pair of results of a row of a.
    let r = thread / (OWN / 2u);
    let at = (thread % (OWN / 2u)) * 2u;
    let m = first_m + r;
    if (r < FEW && m < p.m && first_n + at < p.n) {
        let both = vec2<i32>(parts[r][at * LANES], parts[r][(at + 1u) * LANES]);
        put(m, first_n + at, both, first_n + at + 1u < p.n);
    }
}
