// sum = a + b, a pair a thread.

@compute @workgroup_size(GROUP)
fn add(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let i = (group.y * groups.x + group.x) * GROUP + thread;
    if (i < p.pairs) {
        sum[i] = x_pack(x_unpack(a[i]) + x_unpack(b[i]));
    }
}
