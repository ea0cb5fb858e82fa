// Turns moments to codes: the largest magnitude of each block is its absmax, and a number the code whose
// value, times it, is nearest.

// Blocks that a group of threads has at a time.
const OWN = GROUP / EACH;

var<workgroup> largest: array<array<u32, GROUP>, MOMENTS>;
// Factor and absmax of each block.
var<workgroup> of_block: array<array<vec2<f32>, OWN>, MOMENTS>;

// The rank of a number among the thresholds of a map: its code. Below the last level of the search, nodes
// count how many thresholds are at most the number.
fn encode(map: u32, x: f32) -> u32 {
    var node = 1u;
    for (var i = 0u; i < 8u; i++) {
        node = 2u * node + u32(tables[map + 256u + node] <= x);
    }
    return node - 256u;
}

// Numbers of a block that is all but zero, whose factor overflows: divided one by one.
fn small(v: vec4<f32>, absmax: f32) -> vec4<f32> {
    var x = v;
    for (var i = 0u; i < 4u; i++) {
        let size = divide(abs(x.x), absmax);
        x = vec4<f32>(x.yzw, select(size, -size, x.x < 0.0));
    }
    return x;
}

fn code_word(map: u32, numbers: vec4<f32>, own: vec2<f32>) -> u32 {
    var x = numbers * own.x;
    if (bitcast<u32>(own.x) == 0x7f800000u) {
        x = small(numbers, own.y);
    }
    return encode(map, x.x) | (encode(map, x.y) << 8u) | (encode(map, x.z) << 16u)
        | (encode(map, x.w) << 24u);
}

// All threads of a group call this, those beyond the end with a `count` of zero.
fn keep(thread: u32, i: u32, count: u32, m: Moments) {
    let there = vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(count);
    //@ for m in MOMENTS
    let bits_$m = select(vec4<u32>(), sizes(m[$m]), there);
    largest[$m][thread] = max(max(bits_$m.x, bits_$m.y), max(bits_$m.z, bits_$m.w));
    //@ end
    workgroupBarrier();
    for (var half = EACH / 2u; half > 0u; half >>= 1u) {
        if (thread % EACH < half) {
            //@ for m in MOMENTS
            largest[$m][thread] = max(largest[$m][thread], largest[$m][thread + half]);
            //@ end
        }
        workgroupBarrier();
    }
    // A thread for each, side by side: the text of a division is long.
    if (thread < OWN * MOMENTS) {
        let moment = thread / OWN;
        let own = thread % OWN;
        let block = (i - thread) / EACH + own;
        let most = largest[moment][own * EACH];
        let absmax = bitcast<f32>(most);
        let factor = select(divide(1.0, bitcast<f32>(max(most, 1u))), 0.0, most == 0u);
        of_block[moment][own] = vec2<f32>(factor, absmax);
        if (block * EACH < p.fours) {
            //@ for m in MOMENTS
            if (moment == $mu) {
                absmax_$m[block] = absmax;
            }
            //@ end
        }
    }
    workgroupBarrier();
    if (count > 0u) {
        // Bytes after the last may be another tensor's.
        let mask = 0xffffffffu >> (8u * (4u - count));
        //@ for m in MOMENTS
        let word_$m = code_word(MAP_$m, m[$m], of_block[$m][thread / EACH]);
        if (count == 4u) {
            codes_$m[i] = word_$m;
        } else {
            codes_$m[i] = (word_$m & mask) | (codes_$m[i] & ~mask);
        }
        //@ end
    }
}
