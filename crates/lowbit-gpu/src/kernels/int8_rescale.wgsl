// What sums of integers stand for, by the absmax of their rows and columns: a thread writes a pair.
// sums: [M, N].

fn rescaled(at: u32) -> f32 {
    let n = at % p.n;
    return with_bias(f32(sums[at]) * (rows[at / p.n] * columns[n]) * UNIT, n);
}

@compute @workgroup_size(GROUP)
fn int8_rescale(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let pair = (group.y * groups.x + group.x) * GROUP + thread;
    if (2u * pair < p.len) {
        let second = min(2u * pair + 1u, p.len - 1u);
        y[pair] = x_pack(vec2<f32>(rescaled(2u * pair), rescaled(second)));
    }
}
