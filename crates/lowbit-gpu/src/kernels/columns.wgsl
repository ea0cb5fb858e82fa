// y: columns p.start .. p.start + p.cols of x, which has p.all; a pair a thread.

fn at(i: u32) -> f32 {
    return x_at(min(i / p.cols * p.all + p.start + i % p.cols, p.last));
}

@compute @workgroup_size(GROUP)
fn columns(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let i = (group.y * groups.x + group.x) * GROUP + thread;
    if (i < p.pairs) {
        y[i] = x_pack(vec2<f32>(at(2u * i), at(2u * i + 1u)));
    }
}
