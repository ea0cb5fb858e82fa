// Writes k and v: [T, KV_HEADS, D] behind the positions in the cache, [KV_HEADS, capacity, STRIDE] each,
// zeros after every head; four numbers a thread.

@compute @workgroup_size(GROUP)
fn attention_append(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let i = (group.y * groups.x + group.x) * GROUP + thread;
    if (i < p.rows * KV_HEADS * (STRIDE / 4u)) {
        let head = i / (STRIDE / 4u) % KV_HEADS;
        let row = i / (STRIDE / 4u) / KV_HEADS;
        let c = i % (STRIDE / 4u);
        append(row, head, c, key_of(row, head, c), value_of(row, head, c));
    }
}
