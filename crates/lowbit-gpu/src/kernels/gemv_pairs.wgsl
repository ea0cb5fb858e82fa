// y = x wᵀ for a few rows of x and codes of four bits: a byte of codes is looked up at once, in a table
// of pairs that lies in workgroup memory REPLICAS times, so that neighbouring lanes read other banks.
// Each subgroup takes ROWS rows of w. w: [N, K] in vectors of 128 bits, each of which lies in one block.

var<workgroup> pairs: array<vec2<f32>, PAIRS>;

const CHUNK = 32u;

@compute @workgroup_size(GROUP)
fn gemv_pairs(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
    @builtin(subgroup_invocation_id) lane: u32,
    @builtin(subgroup_size) width: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) subgroups: u32,
) {
    for (var i = thread; i < PAIRS; i += GROUP) {
        let byte = i / REPLICAS;
        let high = book[byte >> 4u];
        let low = book[byte & 15u];
        pairs[i] = select(vec2<f32>(low, high), vec2<f32>(high, low), HIGH_FIRST);
    }
    workgroupBarrier();
    let replica = thread % REPLICAS;
    let chunks = p.k / CHUNK;
    let step = groups.x * subgroups * ROWS;
    for (var first = (group.x * subgroups + subgroup) * ROWS; first < p.n; first += step) {
        var sums: array<array<f32, BATCH>, ROWS>;
        for (var c = lane; c < chunks; c += width) {
            var v: array<vec4<u32>, ROWS>;
            var scales: array<f32, ROWS>;
            for (var r = 0u; r < ROWS; r++) {
                let row = min(first + r, p.n - 1u);
                v[r] = codes[row * p.row_vectors + c];
                scales[r] = scale_of(block_of(row, c * CHUNK)) * UNIT;
            }
            var dots: array<array<f32, BATCH>, ROWS>;
            for (var j = 0u; j < 4u; j++) {
                var x_low: array<vec4<f32>, BATCH>;
                var x_high: array<vec4<f32>, BATCH>;
                for (var b = 0u; b < BATCH; b++) {
                    let at = (min(b, p.m - 1u) * p.k + c * CHUNK) / 4u + j * 2u;
                    x_low[b] = x_unpack4(x[at]);
                    x_high[b] = x_unpack4(x[at + 1u]);
                }
                for (var r = 0u; r < ROWS; r++) {
                    let word = v[r][j];
                    let w0 = pairs[(word & 255u) * REPLICAS + replica];
                    let w1 = pairs[((word >> 8u) & 255u) * REPLICAS + replica];
                    let w2 = pairs[((word >> 16u) & 255u) * REPLICAS + replica];
                    let w3 = pairs[(word >> 24u) * REPLICAS + replica];
                    for (var b = 0u; b < BATCH; b++) {
                        var sum = dots[r][b];
                        sum = fma(w0.x, x_low[b].x, sum);
                        sum = fma(w0.y, x_low[b].y, sum);
                        sum = fma(w1.x, x_low[b].z, sum);
                        sum = fma(w1.y, x_low[b].w, sum);
                        sum = fma(w2.x, x_high[b].x, sum);
                        sum = fma(w2.y, x_high[b].y, sum);
                        sum = fma(w3.x, x_high[b].z, sum);
                        sum = fma(w3.y, x_high[b].w, sum);
                        dots[r][b] = sum;
                    }
                }
            }
            for (var r = 0u; r < ROWS; r++) {
                for (var b = 0u; b < BATCH; b++) {
                    sums[r][b] = fma(dots[r][b], scales[r], sums[r][b]);
                }
            }
        }
        for (var b = 0u; b < BATCH; b++) {
            for (var r = 0u; r < ROWS; r += 2u) {
                let sum = vec2<f32>(subgroupAdd(sums[r][b]), subgroupAdd(sums[r + 1u][b]));
                let row = first + r;
                if (lane == 0u && b < p.m && row < p.n) {
                    y_store(b * p.row_y + p.first_y + row, with_bias(sum, row), row + 1u < p.n);
                }
            }
        }
    }
}
