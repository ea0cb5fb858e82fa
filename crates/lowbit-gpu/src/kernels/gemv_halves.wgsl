// y = x wᵀ for a few rows of x in bf16 and codes of four bits, multiplied as half floats, two at a
// time. Beside the table of pairs, workgroup memory has x, scaled to where half floats are exact.
// Each subgroup takes ROWS rows of w, a lane vectors of 32 weights, AHEAD of which are on their way. Of
// a vector, sums of 16 products each are taken in half floats, added to the others in f32.
// w: [N, K] in vectors of 128 bits, each of which lies in one block.

const VECTORS = K / 32u;
const OCTETS = K / 8u;
// Octets of x are dealt so that those of neighbouring vectors lie side by side, LINES of 32 vectors.
const LINES = (VECTORS + 31u) / 32u;

var<workgroup> halves: array<Halves, BATCH * LINES * 128u>;

// Where the first octet of vector v of row b is; the next are 32 further each.
fn place_of(b: u32, v: u32) -> u32 {
    return (b * LINES + v / 32u) * 128u + v % 32u;
}

// Keeps octet i of row b, of numbers with exponents up to that, so that they come below 512: 16 products
// with numbers below 2 then stay in range. What is not finite stays so.
fn keep(b: u32, i: u32, low: vec4<f32>, high: vec4<f32>, exponent: u32) {
    let down = bitcast<f32>((262u - exponent) << 23u);
    halves[place_of(b, i / 4u) + i % 4u * 32u] = Halves(vec4<f16>(low * down), vec4<f16>(high * down));
}

// Block of vector v, or of the last.
fn vector_block(row: u32, v: u32) -> u32 {
    return block_of(row, min(v, VECTORS - 1u) * 32u);
}

@compute @workgroup_size(GROUP)
fn gemv_halves(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
    @builtin(subgroup_invocation_id) lane: u32,
    @builtin(subgroup_size) width: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) subgroups: u32,
) {
    // All that is read is on its way before the first of it is waited for.
    let replica = thread % REPLICAS;
    let step = groups.x * subgroups * ROWS;
    var first = (group.x * subgroups + subgroup) * ROWS;
    //@ for j in OWN
    let at_$j = min(thread + $ju * GROUP, BATCH * OCTETS - 1u);
    let own_$j = x[x_row(at_$j / OCTETS, group.y) * OCTETS + at_$j % OCTETS];
    let factors_$j = factors_of(at_$j);
    //@ end
    //@ for j in FILLS
    let byte_$j = min((thread + $ju * GROUP) / (REPLICAS / 4u), 255u);
    let upper_$j = book[byte_$j >> 4u];
    let lower_$j = book[byte_$j & 15u];
    //@ end
    let values = values_of(lane);
    //@ for r in ROWS
    var row_$r = min(row_of(first, $ru, group.y), p.n - 1u);
        //@ for a in AHEAD
    var word_$r_$a = codes[row_$r * VECTORS + min($au * width + lane, VECTORS - 1u)];
    var raw_$r_$a = raw_scale(vector_block(row_$r, $au * width + lane));
        //@ end
    //@ end
    //@ for b in LOWER
    var added_0_$b = added(first, 0u, $bu, group.y);
    //@ end
    //@ for b in UPPER
    var added_2_$b = added(first, 2u, $bu, group.y);
    //@ end
    // Values are brought below 2.
    let top = exponent_of_values(values);
    let down = bitcast<f32>((254u - top) << 23u);
    //@ for j in FILLS
    if (thread + $ju * GROUP < 64u * REPLICAS) {
        keep_pairs(byte_$j, (thread + $ju * GROUP) * 4u % REPLICAS, upper_$j * down, lower_$j * down);
    }
    //@ end
    var squares_of_own = 0.0;
    //@ for j in OWN
    squares_of_own += select(0.0, square_of(own_$j), thread + $ju * GROUP < OCTETS);
    //@ end
    note_squares(squares_of_own, lane, subgroup);
    //@ for j in OWN
    let low_$j = x_low(own_$j) * factors_$j[0];
    let high_$j = x_high(own_$j) * factors_$j[1];
    let most_$j = max(largest_of(low_$j), largest_of(high_$j));
    //@ end
    var most = 0u;
    //@ for j in OWN
    most = max(most, most_$j);
    //@ end
    let shared_exponent = exponent_of_all(most, lane, subgroup, subgroups);
    //@ for j in OWN
    let exponent_$j = exponent_of(most_$j, shared_exponent);
    if (thread + $ju * GROUP < BATCH * OCTETS) {
        keep(at_$j / OCTETS, at_$j % OCTETS, low_$j, high_$j, exponent_$j);
        note(at_$j, exponent_$j);
    }
    //@ end
    workgroupBarrier();
    loop {
        //@ for r in ROWS
            //@ for b in BATCH
        var sum_$r_$b = 0.0;
            //@ end
        //@ end
        for (var c = lane; c < VECTORS; c += AHEAD * width) {
            //@ for a in AHEAD
            {
                let v = min(c + $au * width, VECTORS - 1u);
                // 0 where there is no such vector.
                //@ for r in ROWS
                let restored_$r = scale_from(raw_$r_$a, vector_block(row_$r, v));
                let scale_$r = select(0.0, restored_$r, c + $au * width < VECTORS);
                //@ end
                //@ for b in BATCH
                let from_$b = place_of($bu, v);
                //@ end
                //@ for j in 2
                    //@ for b in BATCH
                let x_$j_$b_0 = halves[from_$b + 64u * $ju];
                let x_$j_$b_1 = halves[from_$b + 64u * $ju + 32u];
                    //@ end
                    //@ for r in ROWS
                let w_$j_$r_0 = decoded(word_$r_$a[2u * $ju], replica);
                let w_$j_$r_1 = decoded(word_$r_$a[2u * $ju + 1u], replica);
                        //@ for b in BATCH
                let lower_$j_$r_$b = dot8(w_$j_$r_0, x_$j_$b_0.low, x_$j_$b_0.high, vec2<f16>());
                let h_$j_$r_$b = dot8(w_$j_$r_1, x_$j_$b_1.low, x_$j_$b_1.high, lower_$j_$r_$b);
                        //@ end
                    //@ end
                //@ end
                //@ for b in BATCH
                let up_$b = up_of($bu, v, shared_exponent);
                    //@ for r in ROWS
                let h_$r_$b = h_0_$r_$b + h_1_$r_$b;
                sum_$r_$b = fma(f32(h_$r_$b.x) + f32(h_$r_$b.y), scale_$r * up_$b, sum_$r_$b);
                    //@ end
                //@ end
                // Unless all were on their way from the start; past the end it is the last one again, as a
                // load that only some lanes make would be waited for at once.
                if (AHEAD * width < VECTORS) {
                    let next = c + ($au + AHEAD) * width;
                    //@ for r in ROWS
                    word_$r_$a = codes[row_$r * VECTORS + min(next, VECTORS - 1u)];
                    raw_$r_$a = raw_scale(vector_block(row_$r, next));
                    //@ end
                }
            }
            //@ end
        }
        // A norm's factor is for all of x, so that it may as well come last.
        let unit = UNIT * bitcast<f32>(top << 23u) * norm_factor(lane, width, subgroups);
        //@ for b in BATCH
            //@ for r in ROWS
        let total_$r_$b = subgroupAdd(sum_$r_$b) * unit;
            //@ end
        //@ end
        if (lane == 0u) {
            //@ for b in LOWER
            put_added(first, 0u, $bu, group.y, vec2<f32>(total_0_$b, total_1_$b), added_0_$b);
            //@ end
            //@ for b in UPPER
            put_added(first, 2u, $bu, group.y, vec2<f32>(total_2_$b, total_3_$b), added_2_$b);
            //@ end
            //@ for b in GATED
            put_gated(first, group.y, vec2<f32>(total_0_$b, total_1_$b), vec2<f32>(total_2_$b, total_3_$b));
            //@ end
        }
        first += step;
        if (first >= outs()) {
            break;
        }
        //@ for b in LOWER
        added_0_$b = added(first, 0u, $bu, group.y);
        //@ end
        //@ for b in UPPER
        added_2_$b = added(first, 2u, $bu, group.y);
        //@ end
        //@ for r in ROWS
        row_$r = min(row_of(first, $ru, group.y), p.n - 1u);
            //@ for a in AHEAD
        word_$r_$a = codes[row_$r * VECTORS + min($au * width + lane, VECTORS - 1u)];
        raw_$r_$a = raw_scale(vector_block(row_$r, $au * width + lane));
            //@ end
        //@ end
    }
}
