// y = x wᵀ for BATCH rows of x in bf16, 4 or 8, and codes of four bits, multiplied as half floats, two
// columns at a time. A lane keeps COLUMNS columns of all rows of x in registers, 64 pairs, and multiplies
// them by the rows of w that its group takes, so that nothing of x is read twice. PIECES subgroups share a
// row, CHUNKS times, and teams of as many the rows.
//
// In a turn, a lane has sums of its columns for TURN_ROWS rows of w and all of x. Lanes exchange them until
// each is left with one sum, of another row of x or w than the others': of two lanes that add what they have,
// the one whose number has that bit set keeps the upper half. To spare them the choice, what each keeps comes
// first: a lane's rows are in the order of their number xor some bits of the lane's. Sums of 64 columns,
// or of 32 where a block has no more, are added in half floats, the others, scaled, in f32.
// w: [N, K] in units of COLUMNS codes.

const COLUMNS = 128u / BATCH;
const UNITS = K / COLUMNS;
// Lanes that have 64 columns; as many as there are pairs of rows of x.
const SHARE = BATCH / 2u;
const TURNS = GROUP_ROWS / TURN_ROWS;
const TEAM_TURNS = TURNS * PIECES / SUBGROUPS;

// Of each piece and turn, a sum of each lane: of row lane / BATCH of w.
var<workgroup> sums: array<f32, PIECES * TURNS * 32u>;

// At least 8, so that what follows has an inverse.
fn exponent_of(most: f32) -> u32 {
    return clamp(bitcast<u32>(most) >> 23u, 8u, 254u);
}

// Numbers with that exponent times this are below 256: 64 products with numbers below 2 stay in range. What
// is not finite stays so.
fn down_of(exponent: u32) -> f32 {
    return bitcast<f32>((261u - exponent) << 23u);
}

fn up_of(exponent: u32) -> f32 {
    return bitcast<f32>((exponent - 7u) << 23u);
}

// A row with a number that is none has no result, whether that is the most of it or not.
fn most_of(v: X8) -> f32 {
    let four = max(abs(x_low(v)), abs(x_high(v)));
    return max(max(four.x, four.y), max(four.z, four.w));
}

@compute @workgroup_size(GROUP)
fn gemv_registers(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
    @builtin(subgroup_invocation_id) lane: u32,
    @builtin(subgroup_id) subgroup: u32,
) {
    let replica = thread % REPLICAS;
    //@ for j in FILLS
    let byte_$j = min((thread + $ju * GROUP) / (REPLICAS / 4u), 255u);
    let upper_$j = book[byte_$j >> 4u];
    let lower_$j = book[byte_$j & 15u];
    //@ end
    let top = exponent_of_values(values_of(lane));
    let down = bitcast<f32>((254u - top) << 23u);
    //@ for j in FILLS
    if (thread + $ju * GROUP < 64u * REPLICAS) {
        keep_pairs(byte_$j, (thread + $ju * GROUP) * 4u % REPLICAS, upper_$j * down, lower_$j * down);
    }
    //@ end
    workgroupBarrier();
    let share = lane % SHARE;
    let odd = lane / SHARE % 2u;
    let first = group.x * GROUP_ROWS;
    let piece = subgroup % PIECES;
    let start = subgroup / PIECES * TEAM_TURNS;
    for (var chunk = 0u; chunk < CHUNKS; chunk++) {
        // Lanes beyond the last column have zeros, and no scale that they might meet.
        let unit = (chunk * PIECES + piece) * 32u + lane;
        let inside = UNITS % (32u * PIECES) == 0u || unit < UNITS;
        let at = select(0u, unit, inside);
        //@ for j in PAIRS_OF_ROWS
        let from_a_$j = (x_row(2u * ($ju ^ share) + odd, group.y) * UNITS + at) * OCTETS;
        let from_b_$j = (x_row(2u * ($ju ^ share) + 1u - odd, group.y) * UNITS + at) * OCTETS;
            //@ for o in OCTETS
        let a_$j_$o = select(X8(), x[from_a_$j + $ou], inside);
        let b_$j_$o = select(X8(), x[from_b_$j + $ou], inside);
            //@ end
        //@ end
        //@ for j in PAIRS_OF_ROWS
        var most_$j = vec2<f32>();
            //@ for o in OCTETS
        most_$j = max(most_$j, vec2<f32>(most_of(a_$j_$o), most_of(b_$j_$o)));
            //@ end
        //@ end
        //@ for e in EIGHT
        let all_0 = max(most_0, subgroupShuffleXor(most_2, 2u));
        let all_1 = max(most_1, subgroupShuffleXor(most_3, 2u));
        let all_2 = max(most_2, subgroupShuffleXor(most_0, 2u));
        let all_3 = max(most_3, subgroupShuffleXor(most_1, 2u));
        let most_of_0 = max(all_0, subgroupShuffleXor(all_1, 1u));
        let most_of_1 = max(all_1, subgroupShuffleXor(all_0, 1u));
        let most_of_2 = max(all_2, subgroupShuffleXor(all_3, 1u));
        let most_of_3 = max(all_3, subgroupShuffleXor(all_2, 1u));
        //@ end
        //@ for f in FOUR
        let most_of_0 = max(most_0, subgroupShuffleXor(most_1, 1u));
        let most_of_1 = max(most_1, subgroupShuffleXor(most_0, 1u));
        //@ end
        //@ for j in PAIRS_OF_ROWS
        let down_a_$j = down_of(exponent_of(most_of_$j.x));
        let down_b_$j = down_of(exponent_of(most_of_$j.y));
            //@ for o in OCTETS
        let a_low_$j_$o = vec4<f16>(x_low(a_$j_$o) * down_a_$j);
        let a_high_$j_$o = vec4<f16>(x_high(a_$j_$o) * down_a_$j);
        let b_low_$j_$o = vec4<f16>(x_low(b_$j_$o) * down_b_$j);
        let b_high_$j_$o = vec4<f16>(x_high(b_$j_$o) * down_b_$j);
            //@ end
        //@ end
        // What a lane is left with is of its first pair of rows, or before it is scaled of one more.
        let unit_of_all = UNIT * bitcast<f32>(top << 23u);
        let up = vec2<f32>(up_of(exponent_of(most_of_0.x)), up_of(exponent_of(most_of_0.y))) * unit_of_all;
        //@ for j in NARROW_EIGHT
        let up_of_other = vec2<f32>(up_of(exponent_of(most_of_2.x)), up_of(exponent_of(most_of_2.y))) * unit_of_all;
        //@ end
        //@ for j in NARROW_FOUR
        let up_of_other = vec2<f32>(up_of(exponent_of(most_of_1.x)), up_of(exponent_of(most_of_1.y))) * unit_of_all;
        //@ end
        //@ for r in TURN_ROWS
        let row_$r = first + ($ru ^ (lane / BATCH));
        let now_$r = min(row_$r + start * TURN_ROWS, p.n - 1u);
        var next_word_$r = codes[now_$r * UNITS + at];
        var next_block_$r = block_of(now_$r, at * COLUMNS);
        var next_raw_$r = raw_scale(next_block_$r);
        //@ end
        for (var turn = start; turn < start + TEAM_TURNS; turn++) {
            //@ for r in TURN_ROWS
            let word_$r = next_word_$r;
            let scale_$r = select(0.0, scale_from(next_raw_$r, next_block_$r), inside);
            let after_$r = min(row_$r + (turn + 1u) * TURN_ROWS, p.n - 1u);
            next_word_$r = codes[after_$r * UNITS + at];
            next_block_$r = block_of(after_$r, at * COLUMNS);
            next_raw_$r = raw_scale(next_block_$r);
            //@ end
            //@ for r in TURN_ROWS
                //@ for j in PAIRS_OF_ROWS
            var a_sum_$r_$j = vec2<f16>();
            var b_sum_$r_$j = vec2<f16>();
                //@ end
                //@ for o in OCTETS
            let w_$r_$o = decoded(word_$r[$ou], replica);
                    //@ for j in PAIRS_OF_ROWS
            a_sum_$r_$j = dot8(w_$r_$o, a_low_$j_$o, a_high_$j_$o, a_sum_$r_$j);
            b_sum_$r_$j = dot8(w_$r_$o, b_low_$j_$o, b_high_$j_$o, b_sum_$r_$j);
                    //@ end
                //@ end
                //@ for j in PAIRS_OF_ROWS
            let both_$r_$j = vec2<f16>(a_sum_$r_$j.x, b_sum_$r_$j.x) + vec2<f16>(a_sum_$r_$j.y, b_sum_$r_$j.y);
                //@ end
                //@ for e in EIGHT
            let two_$r_0 = both_$r_0 + subgroupShuffleXor(both_$r_1, 1u);
            let two_$r_2 = both_$r_2 + subgroupShuffleXor(both_$r_3, 1u);
                //@ end
                //@ for w in WIDE_EIGHT
            let sum_$r = vec2<f32>(two_$r_0 + subgroupShuffleXor(two_$r_2, 2u)) * (scale_$r * up);
                //@ end
                //@ for w in WIDE_FOUR
            let sum_$r = vec2<f32>(both_$r_0 + subgroupShuffleXor(both_$r_1, 1u)) * (scale_$r * up);
                //@ end
                //@ for n in NARROW_EIGHT
            let other_$r = vec2<f32>(two_$r_2) * (scale_$r * up_of_other);
            let sum_$r = fma(vec2<f32>(two_$r_0), scale_$r * up, subgroupShuffleXor(other_$r, 2u));
                //@ end
                //@ for n in NARROW_FOUR
            let other_$r = vec2<f32>(both_$r_1) * (scale_$r * up_of_other);
            let sum_$r = fma(vec2<f32>(both_$r_0), scale_$r * up, subgroupShuffleXor(other_$r, 1u));
                //@ end
            //@ end
            //@ for e in EIGHT
            let half_0 = sum_0 + subgroupShuffleXor(sum_2, 16u);
            let half_1 = sum_1 + subgroupShuffleXor(sum_3, 16u);
            let quarter = half_0 + subgroupShuffleXor(half_1, 8u);
            //@ end
            //@ for f in FOUR
            let half_0 = sum_0 + subgroupShuffleXor(sum_4, 16u);
            let half_1 = sum_1 + subgroupShuffleXor(sum_5, 16u);
            let half_2 = sum_2 + subgroupShuffleXor(sum_6, 16u);
            let half_3 = sum_3 + subgroupShuffleXor(sum_7, 16u);
            let quarter_0 = half_0 + subgroupShuffleXor(half_2, 8u);
            let quarter_1 = half_1 + subgroupShuffleXor(half_3, 8u);
            let quarter = quarter_0 + subgroupShuffleXor(quarter_1, 4u);
            //@ end
            let one = quarter.x + subgroupShuffleXor(quarter.y, SHARE);
            let to = (piece * TURNS + turn) * 32u + lane;
            if (chunk == 0u) {
                sums[to] = one;
            } else {
                sums[to] += one;
            }
        }
    }
    workgroupBarrier();
    for (var i = thread; i < BATCH * GROUP_ROWS / 2u; i += GROUP) {
        let r = i % (GROUP_ROWS / 2u) * 2u;
        let b = i / (GROUP_ROWS / 2u);
        let source = r / TURN_ROWS * 32u + r % TURN_ROWS * BATCH + b % 2u * SHARE + b / 2u;
        var sum = vec2<f32>();
        for (var s = 0u; s < PIECES; s++) {
            let of_piece = s * TURNS * 32u + source;
            sum += vec2<f32>(sums[of_piece], sums[of_piece + BATCH]);
        }
        put(first, r, b, group.y, sum);
    }
}
