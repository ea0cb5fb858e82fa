// Absmax or mean magnitude, stored scale and factor of every block: 32 threads a block, whose sums are
// added as `absmean` of the reference adds them. A number that is not finite
// leaves its index in `bad`, the smallest of them. w: [N, K] in pairs.

var<workgroup> largest: array<u32, GROUP>;

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
            if (bits >= 0x7f800000u) {
                atomicMin(&bad[0], i);
            }
            if (MEAN) {
                most = bitcast<u32>(bitcast<f32>(most) + bitcast<f32>(bits));
            } else {
                most = max(most, bits);
            }
        }
    }
    largest[thread] = most;
    workgroupBarrier();
    for (var half = 16u; half > 0u; half >>= 1u) {
        if (lane < half) {
            let other = largest[thread + half];
            if (MEAN) {
                largest[thread] = bitcast<u32>(bitcast<f32>(largest[thread]) + bitcast<f32>(other));
            } else {
                largest[thread] = max(largest[thread], other);
            }
        }
        workgroupBarrier();
    }
    if (lane == 0u && block < p.blocks) {
        var bits = min(largest[thread], 0x7f7fffffu);
        if (MEAN) {
            bits = bitcast<u32>(divide(bitcast<f32>(max(bits, 1u)), f32(end - first)))
                * u32(bits != 0u);
        }
        factors[block] = store_scale(block, bits);
    }
}
