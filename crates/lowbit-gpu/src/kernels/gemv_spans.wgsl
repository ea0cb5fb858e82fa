// y = x wᵀ for a few rows of x, and codes that do not fill vectors, or of which a byte stands for several
// weights: each subgroup takes ROWS rows of w, decodes them once and multiplies them with BATCH rows of x.
// A lane takes spans of weights that are whole vectors of x and lie in one block. w: [N, K].

const QUADS = SPAN / 4u;

@compute @workgroup_size(GROUP)
fn gemv_spans(
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
    let spans = (p.k + SPAN - 1u) / SPAN;
    let step = groups.x * subgroups * ROWS;
    for (var first = (group.x * subgroups + subgroup) * ROWS; first < outs(); first += step) {
        var sums: array<array<f32, BATCH>, ROWS>;
        for (var s = lane; s < spans; s += width) {
            var w: array<array<f32, SPAN>, ROWS>;
            var scales: array<f32, ROWS>;
            var means: array<f32, ROWS>;
            for (var r = 0u; r < ROWS; r++) {
                let row = min(row_of(first, r, group.y), p.n - 1u);
                w[r] = span_values(row, s);
                let block = block_of(row, s * SPAN);
                scales[r] = scale_of(block) * UNIT;
                if (HAS_MEAN) {
                    means[r] = mean_of(block);
                }
            }
            for (var b = 0u; b < BATCH; b++) {
                let x_from = x_row(b, group.y) * (p.k / 4u);
                var dots: array<f32, ROWS>;
                var total = 0.0;
                for (var q = 0u; q < QUADS; q++) {
                    let at = s * QUADS + q;
                    if (at < p.k / 4u) {
                        let x4 = x_unpack4(x_load(x_from + at));
                        for (var r = 0u; r < ROWS; r++) {
                            let w4 = vec4<f32>(w[r][4u * q], w[r][4u * q + 1u], w[r][4u * q + 2u], w[r][4u * q + 3u]);
                            dots[r] += dot(w4, x4);
                        }
                        if (HAS_MEAN) {
                            total += dot(x4, vec4<f32>(1.0));
                        }
                    }
                }
                for (var r = 0u; r < ROWS; r++) {
                    sums[r][b] += dots[r] * scales[r];
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
