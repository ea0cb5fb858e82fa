// All weights: four by four where a word holds them, else two by two.

@compute @workgroup_size(GROUP)
fn dequantize(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    load_table(thread);
    let i = ((group.y * groups.x + group.x) * GROUP + thread) * select(2u, 4u, WORDS);
    let count = p.n * p.k;
    if (i >= count) {
        return;
    }
    if (WORDS) {
        let w = exact4(i / p.k, i % p.k);
        y_store(p.first_y + i, w.xy, true);
        y_store(p.first_y + i + 2u, w.zw, true);
        return;
    }
    let first = weight(i / p.k, i % p.k);
    var second = 0.0;
    if (i + 1u < count) {
        second = weight((i + 1u) / p.k, (i + 1u) % p.k);
    }
    y_store(p.first_y + i, vec2<f32>(first, second), i + 1u < count);
}
