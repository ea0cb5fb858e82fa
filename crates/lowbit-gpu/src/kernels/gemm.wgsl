// Products of any size, in tiles of SIDE x SIDE results, DEPTH terms at a time. Every thread keeps
// 4 x 4 sums. Which row of x and of w is meant is said elsewhere.
//
// y = x wᵀ: x: [M, K], w: [N, K], y: [M, N]; or, with TRANSPOSED, dx = dy w: dy: [M, N], dx: [M, K].

const SIDE = 64u;
const DEPTH = 16u;

var<workgroup> x_tile: array<array<vec4<f32>, 16>, 16>;
var<workgroup> w_tile: array<array<vec4<f32>, 16>, 16>;

fn x_at(row: u32, col: u32, cols: u32) -> f32 {
    let i = row * cols + col;
    return x_unpack(x[i >> 1u])[i & 1u];
}

@compute @workgroup_size(GROUP)
fn gemm(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    load_table(thread);
    let expert = expert_of(group.y);
    if (expert == NONE) {
        return;
    }
    let terms = select(p.k, p.n, TRANSPOSED);
    // Columns of x: of all of w where it was split.
    let x_cols = select(p.k, p.row_x, TRANSPOSED);
    let first_m = group.y * SIDE;
    let first_out = group.x * SIDE;
    let at_m = thread / 16u;
    let at_out = thread % 16u;
    let source = place_of(first_m + thread / 4u);
    var sums: array<vec4<f32>, 4>;
    for (var start = 0u; start < terms; start += DEPTH) {
        // x_tile[term][m]: thread takes row thread / 4, four terms.
        let m = thread / 4u;
        let t = (thread % 4u) * 4u;
        for (var i = 0u; i < 4u; i++) {
            var v = 0.0;
            if (source != NONE && start + t + i < terms) {
                v = x_at(x_row(source), p.first_x + start + t + i, x_cols);
            }
            x_tile[t + i][m / 4u][m % 4u] = v;
        }
        if (TRANSPOSED) {
            // Row of w is the term, its columns are results.
            let row = start + thread / 16u;
            let col = first_out + (thread % 16u) * 4u;
            var w = vec4<f32>();
            if (row < p.n && col < p.k) {
                w = weights4(row, col);
            }
            w_tile[thread / 16u][thread % 16u] = w;
        } else {
            let row = first_out + m;
            let col = start + t;
            var w = vec4<f32>();
            if (has_out(row, expert) && col < p.k) {
                w = weights4(part_row(row, expert), col);
            }
            for (var i = 0u; i < 4u; i++) {
                w_tile[t + i][m / 4u][m % 4u] = w[i];
            }
        }
        workgroupBarrier();
        for (var i = 0u; i < DEPTH; i++) {
            let a = x_tile[i][at_m];
            let b = w_tile[i][at_out];
            for (var j = 0u; j < 4u; j++) {
                sums[j] += a[j] * b;
            }
        }
        workgroupBarrier();
    }
    let out = first_out + at_out * 4u;
    for (var j = 0u; j < 4u; j++) {
        let place = place_of(first_m + at_m * 4u + j);
        if (place != NONE) {
            for (var i = 0u; i < 4u; i += 2u) {
                let col = out + i;
                if (has_out(col, expert)) {
                    let sum = vec2<f32>(sums[j][i], sums[j][i + 1u]);
                    y_store(y_first(place) + col, with_bias(sum, col), has_out(col + 1u, expert));
                }
            }
        }
    }
}
