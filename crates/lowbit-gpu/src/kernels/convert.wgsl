// f32 to pairs of activations.

@compute @workgroup_size(GROUP)
fn convert(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let pair = (group.y * groups.x + group.x) * GROUP + thread;
    if (pair < p.pairs) {
        y[pair] = x_pack(vec2<f32>(x[2u * pair], x[2u * pair + 1u]));
    }
}
