// y = x wᵀ on matrix hardware: tiles of TILE_M x TILE_N results. x comes as half floats, a row each with a
// power of two of its own, in squares of SIDE x SIDE that matrices are loaded from as they are; weights
// are decoded to half floats, all with one power of two. A step takes DEPTH terms for each of the SLICES
// that a group's subgroups are dealt to: few rows of x keep as many of them at work as many rows do. What
// a slice multiplies lies in one of its two buffers in workgroup memory; what the next AHEAD steps need
// is on its way meanwhile. A driver would move those loads past the barriers to where weights are decoded,
// so that each step waited for memory: KEEP_LOADS is a use that never comes about.
//
// The steps of all tiles are one line, of which each group takes p.share. Where that leaves a tile in
// pieces, and CUT says that it may, sums go to `partials` instead, for `gemm_merge` to add in order.

struct Halves {
    low: vec4<f16>,
    high: vec4<f16>,
}

const OCTETS = DEPTH / 8u;
// Rows in workgroup memory are padded, so that they begin in other banks.
const LINE = OCTETS + 1u;
const BUFFER = TILE_N * LINE;
const SQUARE = SIDE * SIDE;
// Threads of a slice, and what they load of the weights at a time.
const TEAM = GROUP / SLICES;
const CHUNKS = TILE_N * OCTETS / CHUNK;

var<workgroup> ups_of_tile: array<f32, TILE_M>;

@compute @workgroup_size(GROUP)
fn gemm_matrix(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
    @builtin(subgroup_invocation_id) lane: u32,
    @builtin(subgroup_id) subgroup: u32,
) {
    let steps = p.k / (DEPTH * SLICES);
    let tiles_down = (p.m + TILE_M - 1u) / TILE_M;
    let tiles_across = (p.n + TILE_N - 1u) / TILE_N;
    let start = group.x * p.share;
    let end = min(start + p.share, steps * tiles_down * tiles_across);
    // Of this subgroup: its slice, its matrices in a tile, and where it leaves results.
    let slice = subgroup / (TEAM / 32u);
    let member = subgroup % (TEAM / 32u);
    let mate = thread % TEAM;
    let own_m = member / ACROSS * (SIDE * ROWS);
    let own_n = member % ACROSS * (SIDE * COLS);
    let own = subgroup % SLOTS * SQUARE;
    let line = LINE * TILE_UNIT;
    let side = SIDE / 8u * TILE_UNIT;
    let across = SIDE;
    let squares = p.k / SIDE;
    let unit = SQUARE / 8u * TILE_UNIT;
    let buffers = 2u * slice * BUFFER;
    var zero: MATRIX<f32, C>;
    var at = start;
    while (at < end) {
        let tile_index = at / steps;
        let first_m = tile_index % tiles_down * TILE_M;
        let first_n = tile_index / tiles_down * TILE_N;
        let first = at % steps;
        let count = min(steps - first, end - at);
        // Columns of this slice, in steps of all.
        let column = slice * DEPTH;
        //@ for r in ROWS
        //@ for c in COLS
        var c_$r_$c = zero;
        //@ end
        //@ end
        //@ for i in WS
        let row_$i = min(first_n + min((mate + $iu * TEAM) * CHUNK / OCTETS, TILE_N - 1u), p.n - 1u);
        let col_$i = column + (mate + $iu * TEAM) * CHUNK % OCTETS * 8u;
        let w_$i = chunk(row_$i, first * (DEPTH * SLICES) + col_$i);
        //@ for a in AHEAD
        var w_$i_$a = chunk(row_$i, min(first + $au + 1u, steps - 1u) * (DEPTH * SLICES) + col_$i);
        //@ end
        //@ end
        //@ for r in ROWS
        let line_$r = ((first_m + own_m) / SIDE + $ru) * squares + column / SIDE;
        //@ for t in TERMS
        var a_$t_$r = coopLoadT<MATRIX<f16, A>>(&x[(line_$r + first * (TERMS * SLICES) + $tu) * unit], side);
        //@ end
        //@ end
        for (var i = thread; i < TILE_M; i += GROUP) {
            ups_of_tile[i] = ups[first_m + i];
        }
        if (at == start) {
            load_chunks(thread);
        }
        //@ for i in WS
        put(buffers, mate + $iu * TEAM, w_$i, thread);
        //@ end
        workgroupBarrier();
        var buffer = 0u;
        for (var step = 1u; step <= count; step++) {
            let next = min(first + step, steps - 1u);
            let after = min(next + AHEAD, steps - 1u);
            //@ for i in WS
            let w_$i_LAST = chunk(row_$i, after * (DEPTH * SLICES) + col_$i);
            //@ end
            if (KEEP_LOADS && p.m == 0u) {
                var bits = 0u;
                //@ for i in WS
                bits ^= bits_of_chunk(w_$i_LAST);
                //@ end
                // In a loop, as a few stores would become instructions under a condition, which do wait.
                for (var i = 0u; i < p.k; i++) {
                    results[i % SQUARE] = bitcast<f32>(bits + i);
                }
            }
            let at_w = (buffers + buffer + own_n * LINE) * TILE_UNIT;
            //@ for t in TERMS
            //@ for c in COLS
            let b_$t_$c = coopLoad<MATRIX<f16, B>>(&tile[at_w + $tu * side + $cu * SIDE * line], line);
            //@ end
            //@ for r in ROWS
            //@ for c in COLS
            c_$r_$c = coopMultiplyAdd(a_$t_$r, b_$t_$c, c_$r_$c);
            //@ end
            a_$t_$r = coopLoadT<MATRIX<f16, A>>(&x[(line_$r + next * (TERMS * SLICES) + $tu) * unit], side);
            //@ end
            //@ end
            buffer = BUFFER - buffer;
            if (step < count) {
                //@ for i in WS
                put(buffers + buffer, mate + $iu * TEAM, w_$i_0, thread);
                //@ end
            }
            //@ for i in WS
            //@ for a in AHEAD
            w_$i_$a = w_$i_$a+;
            //@ end
            //@ end
            workgroupBarrier();
        }
        // A group leaves at most two tiles in pieces: its first and its last.
        let is_piece = CUT && count < steps;
        let piece = (2u * group.x + select(0u, 1u, at > start)) * (TILE_M * TILE_N);
        //@ for r in ROWS
        //@ for c in COLS
        //@ for t in TURNS
        if (subgroup / SLOTS == $tu) {
            coopStoreT(c_$r_$c, &results[own], across);
        }
        workgroupBarrier();
        if (subgroup / SLOTS == $tu && slice == 0u) {
            //@ for j in PAIRS
            let i_$r_$c_$j = lane * 2u + $ju * 64u;
            let m_$r_$c_$j = own_m + $ru * SIDE + i_$r_$c_$j / SIDE;
            let n_$r_$c_$j = own_n + $cu * SIDE + i_$r_$c_$j % SIDE;
            let v_$r_$c_$j = sum_of_slices(own + i_$r_$c_$j);
            if (is_piece) {
                leave(piece + m_$r_$c_$j * TILE_N + n_$r_$c_$j, v_$r_$c_$j);
            } else {
                put_result(first_m + m_$r_$c_$j, first_n + n_$r_$c_$j, v_$r_$c_$j, ups_of_tile[m_$r_$c_$j]);
            }
            //@ end
        }
        workgroupBarrier();
        //@ end
        //@ end
        //@ end
        at += count;
    }
}

// Two sums that subgroups of all slices left, from place `i` of the first slice's on.
fn sum_of_slices(i: u32) -> vec2<f32> {
    var sum = vec2<f32>(results[i], results[i + 1u]);
    for (var s = 1u; s < SLICES; s++) {
        let at = i + s * (TEAM / 32u * SQUARE);
        sum += vec2<f32>(results[at], results[at + 1u]);
    }
    return sum;
}

// Decodes chunk `i` of a step's weights into a buffer.
fn put(buffer: u32, i: u32, w: Chunk, thread: u32) {
    if (CHUNKS % TEAM == 0u || i < CHUNKS) {
        let first = i * CHUNK;
        put_chunk(buffer + first / OCTETS * LINE + first % OCTETS, w, thread);
    }
}
