// Exact products of 8-bit integers for FEW rows of a at a time: 32 threads share a row of b.

const LANES = 32u;
const OWN = GROUP / LANES;
const FEW = 4u;

var<workgroup> parts: array<vec4<i32>, GROUP>;

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
    var sums = vec4<i32>();
    if (n < p.n) {
        for (var j = lane; j < p.words; j += LANES) {
            let b_own = b_word(n, j);
            // Rows beyond the last count as the last: their sums are not kept.
            sums += vec4<i32>(
                dot4(a_word(first_m, j), b_own),
                dot4(a_word(min(first_m + 1u, p.m - 1u), j), b_own),
                dot4(a_word(min(first_m + 2u, p.m - 1u), j), b_own),
                dot4(a_word(min(first_m + 3u, p.m - 1u), j), b_own),
            );
        }
    }
    parts[thread] = sums;
    for (var half = LANES / 2u; half > 0u; half >>= 1u) {
        workgroupBarrier();
        if (lane < half) {
            parts[thread] += parts[thread + half];
        }
    }
    workgroupBarrier();
    // A thread for each pair of results of a row of a.
    let r = thread / (OWN / 2u);
    let at = (thread % (OWN / 2u)) * 2u;
    let m = first_m + r;
    if (r < FEW && m < p.m && first_n + at < p.n) {
        let both = vec2<i32>(parts[at * LANES][r], parts[(at + 1u) * LANES][r]);
        put(m, first_n + at, both, first_n + at + 1u < p.n);
    }
}
