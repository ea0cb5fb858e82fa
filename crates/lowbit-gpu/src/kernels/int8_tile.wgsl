// Exact products of 8-bit integers, in tiles of SIDE x SIDE results, DEPTH words of four at a time. Every
// thread keeps 4 x 4 sums. a: [M, K], b: [N, K].

const SIDE = 64u;
const DEPTH = 16u;

var<workgroup> a_tile: array<array<vec4<u32>, 16>, DEPTH>;
var<workgroup> b_tile: array<array<vec4<u32>, 16>, DEPTH>;

@compute @workgroup_size(GROUP)
fn int8_tile(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let first_m = group.y * SIDE;
    let first_n = group.x * SIDE;
    let at_m = thread / 16u;
    let at_n = thread % 16u;
    // What this thread loads: of one row, four words.
    let row = thread / 4u;
    let word = (thread % 4u) * 4u;
    //@ for r in 4
    var sums_$r = vec4<i32>();
    //@ end
    for (var start = 0u; start < p.words; start += DEPTH) {
        for (var i = 0u; i < 4u; i++) {
            let j = start + word + i;
            var a_own = 0u;
            var b_own = 0u;
            if (j < p.words) {
                if (first_m + row < p.m) {
                    a_own = a_word(first_m + row, j);
                }
                if (first_n + row < p.n) {
                    b_own = b_word(first_n + row, j);
                }
            }
            a_tile[word + i][row / 4u][row % 4u] = a_own;
            b_tile[word + i][row / 4u][row % 4u] = b_own;
        }
        workgroupBarrier();
        for (var i = 0u; i < DEPTH; i++) {
            let a4 = a_tile[i][at_m];
            let b4 = b_tile[i][at_n];
            //@ for r in 4
            sums_$r += vec4<i32>(
                dot4(a4[$r], b4.x),
                dot4(a4[$r], b4.y),
                dot4(a4[$r], b4.z),
                dot4(a4[$r], b4.w),
            );
            //@ end
        }
        workgroupBarrier();
    }
    let n = first_n + at_n * 4u;
    //@ for r in 4
    let m_$r = first_m + at_m * 4u + $ru;
    if (m_$r < p.m && n < p.n) {
        put(m_$r, n, sums_$r.xy, n + 1u < p.n);
        if (n + 2u < p.n) {
            put(m_$r, n + 2u, sums_$r.zw, n + 3u < p.n);
        }
    }
    //@ end
}
