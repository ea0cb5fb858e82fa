// y = x wᵀ on matrix hardware: tiles of TILE_M x TILE_N results, DEPTH terms a step. x comes as half
// floats, a row each with a power of two of its own; weights are decoded to half floats, all with one
// power of two. What a step multiplies lies in one of two buffers in workgroup memory; what the next
// needs is on its way meanwhile.
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
const BUFFER = (TILE_M + TILE_N) * LINE;

@compute @workgroup_size(GROUP)
fn gemm_matrix(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
    @builtin(subgroup_invocation_id) lane: u32,
    @builtin(subgroup_id) subgroup: u32,
) {
    load_table(thread);
    let steps = p.k / DEPTH;
    let tiles_down = (p.m + TILE_M - 1u) / TILE_M;
    let tiles_across = (p.n + TILE_N - 1u) / TILE_N;
    let start = group.x * p.share;
    let end = min(start + p.share, steps * tiles_down * tiles_across);
    // Of this subgroup: its matrices in a tile, and where it leaves results.
    let own_m = subgroup / ACROSS * (SIDE * ROWS);
    let own_n = subgroup % ACROSS * (SIDE * COLS);
    let own = subgroup % SLOTS * SIDE * SIDE;
    let line = LINE * TILE_UNIT;
    let side = SIDE;
    let tile_n = TILE_N;
    var zero: MATRIX<f32, C>;
    var at = start;
    while (at < end) {
        let tile_index = at / steps;
        let first_m = tile_index % tiles_down * TILE_M;
        let first_n = tile_index / tiles_down * TILE_N;
        let first = at % steps;
        let count = min(steps - first, end - at);
        //@ for r in ROWS
        //@ for c in COLS
        var c_$r_$c = zero;
        //@ end
        //@ end
        //@ for i in XS
        var x_$i = x_octet(first_m, first, thread + $iu * GROUP);
        //@ end
        //@ for i in WS
        var w_$i = w_octet(first_n, first, thread + $iu * GROUP);
        //@ end
        //@ for i in XS
        put_x(0u, thread + $iu * GROUP, x_$i);
        //@ end
        //@ for i in WS
        put_w(0u, thread + $iu * GROUP, w_$i);
        //@ end
        workgroupBarrier();
        var buffer = 0u;
        for (var step = 1u; step <= count; step++) {
            if (step < count) {
                //@ for i in XS
                x_$i = x_octet(first_m, first + step, thread + $iu * GROUP);
                //@ end
                //@ for i in WS
                w_$i = w_octet(first_n, first + step, thread + $iu * GROUP);
                //@ end
            }
            for (var term = 0u; term < OCTETS; term += SIDE / 8u) {
                let at_x = (buffer + own_m * LINE + term) * TILE_UNIT;
                let at_w = (buffer + (TILE_M + own_n) * LINE + term) * TILE_UNIT;
                //@ for r in ROWS
                let a_$r = coopLoadT<MATRIX<f16, A>>(&tile[at_x + $ru * SIDE * line], line);
                //@ end
                //@ for c in COLS
                let b_$c = coopLoad<MATRIX<f16, B>>(&tile[at_w + $cu * SIDE * line], line);
                //@ end
                //@ for r in ROWS
                //@ for c in COLS
                c_$r_$c = coopMultiplyAdd(a_$r, b_$c, c_$r_$c);
                //@ end
                //@ end
            }
            buffer = BUFFER - buffer;
            if (step < count) {
                //@ for i in XS
                put_x(buffer, thread + $iu * GROUP, x_$i);
                //@ end
                //@ for i in WS
                put_w(buffer, thread + $iu * GROUP, w_$i);
                //@ end
            }
            workgroupBarrier();
        }
        //@ for cut in CUTS
        if (count < steps) {
            // A group leaves at most two tiles in pieces: its first and its last.
            let slot = 2u * group.x + select(0u, 1u, at > start);
            let sums = (slot * TILE_M + own_m) * TILE_N + own_n;
            //@ for r in ROWS
            //@ for c in COLS
            let sum_$r_$c = sums + $ru * SIDE * TILE_N + $cu * SIDE;
            coopStoreT(c_$r_$c, &partials[sum_$r_$c], tile_n);
            //@ end
            //@ end
        }
        //@ end
        if (!CUT || count == steps) {
            //@ for r in ROWS
            //@ for c in COLS
            //@ for t in TURNS
            if (subgroup / SLOTS == $tu) {
                coopStoreT(c_$r_$c, &results[own], side);
            }
            workgroupBarrier();
            if (subgroup / SLOTS == $tu) {
                for (var i = lane * 2u; i < SIDE * SIDE; i += 64u) {
                    let m = first_m + own_m + $ru * SIDE + i / SIDE;
                    let n = first_n + own_n + $cu * SIDE + i % SIDE;
                    put(m, n, vec2<f32>(results[own + i], results[own + i + 1u]));
                }
            }
            workgroupBarrier();
            //@ end
            //@ end
            //@ end
        }
        at += count;
    }
}

// Eight half floats of x: of step `step`, the i-th eight of the tile.
fn x_octet(first_m: u32, step: u32, i: u32) -> Halves {
    let row = first_m + min(i / OCTETS, TILE_M - 1u);
    let at = 2u * (row * (p.k / 8u) + step * OCTETS + i % OCTETS);
    return Halves(x[at], x[at + 1u]);
}

// Eight weights, not yet decoded. Beyond the last row the last one comes again, for nobody.
fn w_octet(first_n: u32, step: u32, i: u32) -> Octet {
    let row = min(first_n + min(i / OCTETS, TILE_N - 1u), p.n - 1u);
    return octet(row, (step * OCTETS + i % OCTETS) * 8u);
}

fn put_x(buffer: u32, i: u32, v: Halves) {
    if (ALL_X || i < TILE_M * OCTETS) {
        put_octet(buffer + i / OCTETS * LINE + i % OCTETS, v);
    }
}

fn put_w(buffer: u32, i: u32, o: Octet) {
    if (ALL_W || i < TILE_N * OCTETS) {
        let w = octet_values(o, bitcast<f32>(p.down));
        let v = Halves(vec4<f16>(w[0]), vec4<f16>(w[1]));
        put_octet(buffer + (TILE_M + i / OCTETS) * LINE + i % OCTETS, v);
    }
}
