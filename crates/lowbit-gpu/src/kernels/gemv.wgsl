// y = x wᵀ for a few rows of x: each subgroup takes ROWS rows of w, decodes them once and multiplies
// them with BATCH rows of x. w: [N, K] in vectors of 128 bits, each of which lies in one block.

// Four weights of a vector, without scale and mean.
fn quad(v: vec4<u32>, q: u32) -> vec4<f32> {
    if (DENSE) {
        return dense_quad(v, q);
    }
    let bit = q * 4u * BITS;
    let word = v[bit >> 5u];
    return vec4<f32>(
        value_at((word >> code_shift(bit)) & MASK, 0u),
        value_at((word >> code_shift(bit + BITS)) & MASK, 0u),
        value_at((word >> code_shift(bit + 2u * BITS)) & MASK, 0u),
        value_at((word >> code_shift(bit + 3u * BITS)) & MASK, 0u),
    );
}

// Of small codes a lane takes a part of a vector, as more weights would not fit its registers.
const CHUNK = CHUNK_BITS / BITS;
const QUADS = CHUNK / 4u;

fn chunk_of(v: vec4<u32>, c: u32) -> vec4<u32> {
    if (CHUNK_BITS == 32u) {
        return vec4<u32>(v[c % 4u]);
    }
    if (CHUNK_BITS == 64u) {
        return select(v, v.zwxy, c % 2u == 1u);
    }
    return v;
}

@compute @workgroup_size(GROUP)
fn gemv(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
    @builtin(subgroup_invocation_id) lane: u32,
    @builtin(subgroup_size) width: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) subgroups: u32,
) {
    load_table(thread);
    prepare(thread, lane, width, subgroup, subgroups);
    let chunks = p.k / CHUNK;
    let step = groups.x * subgroups * ROWS;
    for (var first = (group.x * subgroups + subgroup) * ROWS; first < outs(); first += step) {
        var sums: array<array<f32, BATCH>, ROWS>;
        for (var c = lane; c < chunks; c += width) {
            var w: array<array<vec4<f32>, QUADS>, ROWS>;
            var scales: array<f32, ROWS>;
            var means: array<f32, ROWS>;
            for (var r = 0u; r < ROWS; r++) {
                let row = min(row_of(first, r, group.y), p.n - 1u);
                let v = chunk_of(codes[row * p.row_vectors + c * CHUNK_BITS / 128u], c);
                for (var q = 0u; q < QUADS; q++) {
                    w[r][q] = quad(v, q);
                }
                if (!DENSE) {
                    let block = block_of(row, c * CHUNK);
                    scales[r] = scale_of(block) * UNIT;
                    if (HAS_MEAN) {
                        means[r] = mean_of(block);
                    }
                }
            }
            for (var b = 0u; b < BATCH; b++) {
                let x_from = (x_row(b, group.y) * p.k + c * CHUNK) / 4u;
                var dots: array<f32, ROWS>;
                var total = 0.0;
                for (var q = 0u; q < QUADS; q++) {
                    let x4 = x_unpack4(x_load(x_from + q));
                    for (var r = 0u; r < ROWS; r++) {
                        dots[r] += dot(w[r][q], x4);
                    }
                    if (HAS_MEAN) {
                        total += dot(x4, vec4<f32>(1.0));
                    }
                }
                for (var r = 0u; r < ROWS; r++) {
                    if (DENSE) {
                        sums[r][b] += dots[r];
                    } else {
                        sums[r][b] += dots[r] * scales[r];
                    }
                    if (HAS_MEAN) {
                        sums[r][b] += total * means[r];
                    }
                }
            }
        }
        for (var b = 0u; b < BATCH; b++) {
            for (var r = 0u; r < ROWS; r++) {
                sums[r][b] = subgroupAdd(sums[r][b]);
            }
        }
        if (lane == 0u) {
            //@ for b in LOWER
            put(first, 0u, $bu, group.y, vec2<f32>(sums[0][$b], sums[1][$b]));
            //@ end
            //@ for b in UPPER
            put(first, 2u, $bu, group.y, vec2<f32>(sums[2][$b], sums[3][$b]));
            //@ end
            //@ for b in GATED
            put_gated(first, group.y, vec2<f32>(sums[0][$b], sums[1][$b]), vec2<f32>(sums[2][$b], sums[3][$b]));
            //@ end
        }
    }
}
