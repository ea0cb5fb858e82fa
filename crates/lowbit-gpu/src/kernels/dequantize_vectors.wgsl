// All weights, as many at a time as fill 16 bytes: those lie in one row, block and run of codes. A thread
// takes two such vectors, so that one is on its way while the other is decoded.

@compute @workgroup_size(GROUP)
fn dequantize_vectors(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    load_table(thread);
    let first = (group.y * groups.x + group.x) * (2u * GROUP) + thread;
    for (var i = first; i < first + 2u * GROUP; i += GROUP) {
        if (i < p.n * (p.k / EACH)) {
            // Where rows follow each other without a gap, they are as good as one.
            let row = select(i / (p.k / EACH), 0u, ONE_ROW);
            y[p.first_y / EACH + i] = vector(row, i * EACH - row * p.k);
        }
    }
}
