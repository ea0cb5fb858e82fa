// y: what is bound as added_to, [T, cols], and the shares of TOP rows of x for each; a pair a thread.

fn at(i: u32) -> f32 {
    let row = i / p.cols;
    var sum = 0.0;
    for (var j = 0u; j < TOP; j++) {
        let place = min(row, p.rows - 1u) * TOP + j;
        sum += shares[place] * x_at(place * p.cols + i % p.cols);
    }
    return sum;
}

@compute @workgroup_size(GROUP)
fn experts_mix(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let i = (group.y * groups.x + group.x) * GROUP + thread;
    if (i < p.pairs) {
        y[i] = x_pack(x_unpack(added_to[i]) + vec2<f32>(at(2u * i), at(2u * i + 1u)));
    }
}
