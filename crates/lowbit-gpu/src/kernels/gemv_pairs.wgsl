// y = x wᵀ for a few rows of x and codes of four bits: a byte of codes is looked up at once, in a table
// of pairs that lies in workgroup memory REPLICAS times, so that neighbouring lanes read other banks.
// Each subgroup takes ROWS rows of w, its lanes neighbouring words, so that the activations of eight
// weights lie beside those of the next lane; the next words are on their way while some are multiplied.
// w: [N, K] in words, each of which lies in one block.

var<workgroup> pairs: array<vec2<f32>, PAIRS>;

// Products of eight weights with eight numbers.
fn dot8(word: u32, low: vec4<f32>, high: vec4<f32>, replica: u32) -> f32 {
    let w0 = pairs[(word & 255u) * REPLICAS + replica];
    let w1 = pairs[((word >> 8u) & 255u) * REPLICAS + replica];
    let w2 = pairs[((word >> 16u) & 255u) * REPLICAS + replica];
    let w3 = pairs[(word >> 24u) * REPLICAS + replica];
    var sum = w0.x * low.x;
    sum = fma(w0.y, low.y, sum);
    sum = fma(w1.x, low.z, sum);
    sum = fma(w1.y, low.w, sum);
    sum = fma(w2.x, high.x, sum);
    sum = fma(w2.y, high.y, sum);
    sum = fma(w3.x, high.z, sum);
    return fma(w3.y, high.w, sum);
}

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
    let replica = thread % REPLICAS;
    let words = p.row_words;
    let step = groups.x * subgroups * ROWS;
    let start = (group.x * subgroups + subgroup) * ROWS;
    for (var i = thread; i < PAIRS; i += GROUP) {
        let byte = i / REPLICAS;
        let high = book[byte >> 4u];
        let low = book[byte & 15u];
        pairs[i] = select(vec2<f32>(low, high), vec2<f32>(high, low), HIGH_FIRST);
    }
    prepare(thread, lane, width, subgroup, subgroups);
    workgroupBarrier();
    for (var first = start; first < outs(); first += step) {
        //@ for r in ROWS
        let row_$r = min(row_of(first, $ru, group.y), p.n - 1u);
        let base_$r = row_$r * words;
            //@ for j in 4
        var word_$r_$j = codes[base_$r + min($ju * width + lane, words - 1u)];
            //@ end
            //@ for b in BATCH
        var sum_$r_$b = 0.0;
            //@ end
        //@ end
        //@ for b in BATCH
        let x_$b = x_row($bu, group.y) * words;
        //@ end
        for (var c = lane; c < words; c += 4u * width) {
            //@ for j in 4
            let at_$j = min(c + $ju * width, words - 1u);
            let ahead_$j = min(c + ($ju + 4u) * width, words - 1u);
                //@ for r in ROWS
            let next_$r_$j = codes[base_$r + ahead_$j];
            let scale_$r_$j = select(0.0, scale_of(block_of(row_$r, at_$j * 8u)), c + $ju * width < words);
                //@ end
            //@ end
            //@ for j in 4
                //@ for b in BATCH
            let x_$j_$b = x_load(x_$b + at_$j);
            let low_$j_$b = x_low(x_$j_$b);
            let high_$j_$b = x_high(x_$j_$b);
                    //@ for r in ROWS
            sum_$r_$b = fma(dot8(word_$r_$j, low_$j_$b, high_$j_$b, replica), scale_$r_$j, sum_$r_$b);
                    //@ end
                //@ end
                //@ for r in ROWS
            word_$r_$j = next_$r_$j;
                //@ end
            //@ end
        }
        //@ for b in BATCH
            //@ for r in ROWS
        let total_$r_$b = subgroupAdd(sum_$r_$b) * UNIT;
            //@ end
        //@ end
        if (lane == 0u) {
            //@ for b in LOWER
            put(first, 0u, $bu, group.y, vec2<f32>(total_0_$b, total_1_$b));
            //@ end
            //@ for b in UPPER
            put(first, 2u, $bu, group.y, vec2<f32>(total_2_$b, total_3_$b));
            //@ end
            //@ for b in GATED
            put_gated(first, group.y, vec2<f32>(total_0_$b, total_1_$b), vec2<f32>(total_2_$b, total_3_$b));
            //@ end
        }
    }
}
