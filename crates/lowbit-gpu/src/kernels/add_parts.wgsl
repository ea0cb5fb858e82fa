// a + b, pair by pair: sums of the parts of a weight that was split.

@compute @workgroup_size(GROUP)
fn add(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let pair = (group.y * groups.x + group.x) * GROUP + thread;
    if (pair < p.pairs) {
        y[pair] = x_pack(x_unpack(a[pair]) + x_unpack(b[pair]));
    }
}
