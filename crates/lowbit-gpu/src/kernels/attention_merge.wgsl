// Heads of attention from their parts, see attention_part.wgsl; a pair a thread.

// Number i of the result.
fn merged(i: u32) -> f32 {
    var most = LEAST;
    var total = 0.0;
    var sum = 0.0;
    if (i / D < p.heads) {
        for (var part = 0u; part < p.parts; part++) {
            let at = (i / D * p.parts + part) * (D + 2u);
            let now = max(most, x[at + D]);
            let weight = x[at + D + 1u] * exp(x[at + D] - now);
            let kept = exp(most - now);
            most = now;
            total = total * kept + weight;
            sum = sum * kept + weight * x[at + i % D];
        }
    }
    return sum * inverse(total);
}

@compute @workgroup_size(GROUP)
fn attention_merge(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let i = (group.y * groups.x + group.x) * GROUP + thread;
    if (i < p.pairs) {
        y[i] = x_pack(vec2<f32>(merged(2u * i), merged(2u * i + 1u)));
    }
}
