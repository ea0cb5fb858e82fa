// y = numbers `p.start ..` of x, a pair a thread; `p.start` may be the second number of a pair.

@compute @workgroup_size(GROUP)
fn rows(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let i = (group.y * groups.x + group.x) * GROUP + thread;
    if (i < p.pairs) {
        let at = p.start + 2u * i;
        y[i] = x_pack(vec2<f32>(x_at(at), x_at(min(at + 1u, p.last))));
    }
}
