// Absmax or mean magnitude, stored scale and factor of every block: 32 threads a block, whose sums are
// added as `absmean` of the reference adds them. w: [N, K] in pairs.

var<workgroup> largest: array<u32, GROUP>;

// Bits of the larger of two magnitudes, or of their sum; what is not finite stays so. A sum that overflows
// becomes the largest number.
fn joined(a: u32, b: u32) -> u32 {
    let most = max(a, b);
    if (MEAN && most < 0x7f800000u) {
        return min(bitcast<u32>(bitcast<f32>(a) + bitcast<f32>(b)), 0x7f7fffffu);
    }
    return most;
}

@compute @workgroup_size(GROUP)
fn absmax(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let block = (group.y * groups.x + group.x) * (GROUP / 32u) + thread / 32u;
    let lane = thread % 32u;
    let row = select(block / p.blocks_per_row, 0u, FLAT);
    let first = select(row * p.k + (block % p.blocks_per_row) * p.block_size, block * p.block_size, FLAT);
    let end = min(first + p.block_size, select((row + 1u) * p.k, p.n * p.k, FLAT));
    var most = 0u;
    if (block < p.blocks) {
        for (var i = first + lane; i < end; i += 32u) {
            let bits = bitcast<u32>(x_unpack(w[i >> 1u])[i & 1u]) & 0x7fffffffu;
            most = joined(most, bits);
        }
    }
    largest[thread] = most;
    workgroupBarrier();
    for (var half = 16u; half > 0u; half >>= 1u) {
        if (lane < half) {
            largest[thread] = joined(largest[thread], largest[thread + half]);
        }
        workgroupBarrier();
    }
    if (lane == 0u && block < p.blocks) {
        var bits = largest[thread];
        if (MEAN && bits < 0x7f800000u) {
            bits = bitcast<u32>(divide(bitcast<f32>(max(bits, 1u)), f32(end - first)))
                * u32(bits != 0u);
        }
        factors[block] = store_scale(block, bits);
    }
}
