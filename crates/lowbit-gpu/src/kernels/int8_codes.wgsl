// 8-bit integers of rows of activations whose scales are known, zero in columns of outliers: a thread
// writes a word of four.

@compute @workgroup_size(GROUP)
fn int8_codes(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let at = (group.y * groups.x + group.x) * GROUP + thread;
    let m = at / p.words;
    let j = at % p.words;
    if (m >= p.m) {
        return;
    }
    let own = factors[m];
    var word = 0u;
    for (var i = 0u; i < min(p.k - 4u * j, 4u); i++) {
        let c = 4u * j + i;
        if (marks[c] == 0u) {
            word |= code_of(x_at(m * p.k + c), Scaling(own.x, own.y)) << (8u * i);
        }
    }
    codes[at] = word;
}
