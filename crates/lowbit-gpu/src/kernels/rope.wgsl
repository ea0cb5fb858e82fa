// y: x with every head turned by the angles of its row, a pair a thread.

@compute @workgroup_size(GROUP)
fn rope(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let i = (group.y * groups.x + group.x) * GROUP + thread;
    if (i < p.pairs) {
        let row = p.first + 2u * i / p.cols;
        y[i] = x_pack(vec2<f32>(x_turned(2u * i, row), x_turned(2u * i + 1u, row)));
    }
}
