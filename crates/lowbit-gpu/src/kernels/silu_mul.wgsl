// y = silu(gate) * up, a pair a thread.

@compute @workgroup_size(GROUP)
fn silu_mul(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let i = (group.y * groups.x + group.x) * GROUP + thread;
    if (i < p.pairs) {
        y[i] = x_pack(silu(x_unpack(gate[i])) * x_unpack(up[i]));
    }
}
