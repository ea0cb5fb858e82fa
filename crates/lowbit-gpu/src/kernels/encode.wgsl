// Codes of all weights: a thread writes a word of them, so that no two write the same. w: [N, K] in
// pairs.

// Code of weight (row, col), of zero where there is none.
fn code_of(row: u32, col: u32) -> u32 {
    if (row >= p.n || col >= p.k) {
        return encode(0.0);
    }
    let i = row * p.k + col;
    let value = x_unpack(w[i >> 1u])[i & 1u];
    var block = i / p.block_size;
    if (!FLAT) {
        block = row * p.blocks_per_row + col / p.block_size;
    }
    return encode(scaled(value, factors[block], scales[block]));
}

@compute @workgroup_size(GROUP)
fn encode_all(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    load_ranks(thread);
    workgroupBarrier();
    let word = (group.y * groups.x + group.x) * GROUP + thread;
    if (word < p.words) {
        var bits = 0u;
        for (var b = 0u; b < 4u; b++) {
            let byte = word * 4u + b;
            var row = 0u;
            var first = byte * PER_BYTE;
            if (FLAT) {
                // Weights of the flat run: `first` counts them all.
                row = first / p.k;
                first = first % p.k;
            } else {
                row = byte / p.row_bytes;
                first = (byte % p.row_bytes) * PER_BYTE;
            }
            var value = 0u;
            var place = 1u;
            for (var i = 0u; i < PER_BYTE; i++) {
                if (STACKED > 1u) {
                    row = byte / p.k + i * (p.n / STACKED);
                    first = byte % p.k;
                }
                let code = code_of(row, first);
                if (IS_RADIX) {
                    value += code * place;
                    place *= RADIX;
                } else {
                    let shift = select(i * BITS, 8u - (i + 1u) * BITS, HIGH_FIRST);
                    value |= code << shift;
                }
                first += 1u;
                if (FLAT && first == p.k) {
                    first = 0u;
                    row += 1u;
                }
            }
            bits |= value << (8u * b);
        }
        codes[word] = bits;
    }
}
