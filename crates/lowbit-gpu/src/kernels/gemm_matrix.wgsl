// y = x wᵀ on matrix hardware: tiles of TILE_M x TILE_N results, 32 terms at a time. x comes as half
// floats, a row each with a power of two of its own; weights are decoded to half floats, all with one
// power of two, into one of two buffers while the other is multiplied.
//
// Lines that begin with //@ are replaced by as many as there are matrices of a subgroup.

const DEPTH = 32u;
// Rows of a tile of weights are padded, so that they begin in other banks.
const STRIDE = DEPTH + 8u;
const QUADS = TILE_N * DEPTH / 4u / GROUP;

var<workgroup> w_tile: array<f16, 2u * TILE_N * STRIDE>;
var<workgroup> results: array<f32, SUBGROUPS * SIDE * SIDE>;

@compute @workgroup_size(GROUP)
fn gemm_matrix(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
    @builtin(subgroup_invocation_id) lane: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_size) width: u32,
) {
    load_table(thread);
    let first_m = group.y * TILE_M + (subgroup / ACROSS) * SIDE * DOWN_MATRICES;
    let first_n = group.x * TILE_N;
    let own_n = (subgroup % ACROSS) * SIDE * ACROSS_MATRICES;
    let down = bitcast<f32>(p.down);
    let stride_x = p.k;
    let stride_w = STRIDE;
    //@ declare
    for (var q = 0u; q < QUADS; q++) {
        let i = q * GROUP + thread;
        let n = i / (DEPTH / 4u);
        let term = (i % (DEPTH / 4u)) * 4u;
        var w = vec4<f32>();
        if (first_n + n < p.n) {
            w = weights4(first_n + n, term) * down;
        }
        let at = n * STRIDE + term;
        w_tile[at] = f16(w.x);
        w_tile[at + 1u] = f16(w.y);
        w_tile[at + 2u] = f16(w.z);
        w_tile[at + 3u] = f16(w.w);
    }
    workgroupBarrier();
    var buffer = 0u;
    for (var start = 0u; start < p.k; start += DEPTH) {
        let next = start + DEPTH;
        var ahead: array<vec4<f32>, QUADS>;
        if (next < p.k) {
            for (var q = 0u; q < QUADS; q++) {
                let i = q * GROUP + thread;
                let n = i / (DEPTH / 4u);
                let term = (i % (DEPTH / 4u)) * 4u;
                if (first_n + n < p.n) {
                    ahead[q] = weights4(first_n + n, next + term) * down;
                }
            }
        }
        for (var term = 0u; term < DEPTH; term += SIDE) {
            let at_w = buffer + own_n * STRIDE + term;
            let at_x = first_m * p.k + start + term;
            //@ multiply
        }
        buffer = TILE_N * STRIDE - buffer;
        if (next < p.k) {
            for (var q = 0u; q < QUADS; q++) {
                let i = q * GROUP + thread;
                let at = buffer + i / (DEPTH / 4u) * STRIDE + (i % (DEPTH / 4u)) * 4u;
                w_tile[at] = f16(ahead[q].x);
                w_tile[at + 1u] = f16(ahead[q].y);
                w_tile[at + 2u] = f16(ahead[q].z);
                w_tile[at + 3u] = f16(ahead[q].w);
            }
        }
        workgroupBarrier();
    }
    let own = subgroup * SIDE * SIDE;
    let side = SIDE;
    //@ store
}

// A matrix of results at (m, n), from where its subgroup left it.
fn put(m: u32, n: u32, own: u32, lane: u32, width: u32) {
    let up = bitcast<f32>(p.up);
    for (var i = lane * 2u; i < SIDE * SIDE; i += width * 2u) {
        let row = m + i / SIDE;
        let col = n + i % SIDE;
        if (row < p.m && col < p.n) {
            let v = vec2<f32>(results[own + i], results[own + i + 1u]) * (ups[row] * up);
            y_store(row * p.row_y + p.first_y + col, with_bias(v, col), col + 1u < p.n);
        }
    }
}
