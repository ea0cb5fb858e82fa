// y: rows `ids` of a table, a pair a thread. The table may be a part of a larger one, of which it has rows
// from p.first_x on: what the other parts have stays as it is.

@compute @workgroup_size(GROUP)
fn embed(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    load_table(thread);
    let i = (group.y * groups.x + group.x) * GROUP + thread;
    // p.m is the number of rows.
    if (2u * i < p.m * p.k) {
        var pair = x_unpack(y[i]);
        for (var j = 0u; j < 2u; j++) {
            let at = 2u * i + j;
            let row = u32(ids[min(at / p.k, p.m - 1u)]) - p.first_x;
            if (row < p.n) {
                pair[j] = weight(row, at % p.k);
            }
        }
        y[i] = x_pack(pair);
    }
}
