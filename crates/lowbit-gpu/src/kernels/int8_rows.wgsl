// Quantizes rows of activations to 8-bit integers, a group of threads each. Where there may be outliers,
// which count for no row's scale, their columns are marked and the integers left to `int8_codes`.
// x: [M, K], codes: rows of words.

var<workgroup> largest: array<u32, GROUP>;
var<workgroup> scaling: Scaling;

@compute @workgroup_size(GROUP)
fn int8_rows(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let m = group.y * groups.x + group.x;
    var most = 0u;
    if (m < p.m) {
        for (var c = thread; c < p.k; c += GROUP) {
            most = max(most, size_unless_outlier(x_at(m * p.k + c), c));
        }
    }
    largest[thread] = most;
    for (var half = GROUP / 2u; half > 0u; half >>= 1u) {
        workgroupBarrier();
        if (thread < half) {
            largest[thread] = max(largest[thread], largest[thread + half]);
        }
    }
    if (thread == 0u && m < p.m) {
        let spoilt = largest[0] >= 0x7f800000u;
        let bits = select(largest[0], 0u, spoilt);
        scaling = scaling_of(bits);
        keep_scale(m, scaling, spoilt);
    }
    workgroupBarrier();
    if (m < p.m) {
        put_row(m, thread);
    }
}
