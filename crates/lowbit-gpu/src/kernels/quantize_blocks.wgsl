// Scales and codes of all blocks at once: a thread takes eight numbers of a block, of which EACH threads
// have one each, and keeps them from the search for the largest to their codes. A number that is not
// finite leaves its index in `bad`, the smallest of them. w: [N, K] in eights.

const OWN = GROUP / EACH;
const CODES_PER_WORD = 32u / BITS;
const INFINITE = vec4<u32>(0x7f800000u);

var<workgroup> largest: array<u32, GROUP>;
// Factor and stored scale of each block of the group.
var<workgroup> of_block: array<vec2<f32>, OWN>;

@compute @workgroup_size(GROUP)
fn quantize_blocks(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    load_ranks(thread);
    let at = group.y * groups.x + group.x;
    let eight = at * GROUP + thread;
    let there = eight < p.eights;
    var v = array<vec4<f32>, 2>();
    if (there) {
        let stored = w[eight];
        v[0] = x_low(stored);
        v[1] = x_high(stored);
    }
    let low = bitcast<vec4<u32>>(v[0]) & vec4<u32>(0x7fffffffu);
    let high = bitcast<vec4<u32>>(v[1]) & vec4<u32>(0x7fffffffu);
    let both = max(low, high);
    let most = max(max(both.x, both.y), max(both.z, both.w));
    if (most >= 0x7f800000u) {
        atomicMin(&bad[0], eight * 8u + select(4u + first_bad(high), first_bad(low), any(low >= INFINITE)));
    }
    largest[thread] = most;
    workgroupBarrier();
    for (var half = EACH / 2u; half > 0u; half >>= 1u) {
        if (thread % EACH < half) {
            largest[thread] = max(largest[thread], largest[thread + half]);
        }
        workgroupBarrier();
    }
    let block = at * OWN + thread;
    if (thread < OWN && block < p.blocks) {
        let factor = store_scale(block, min(largest[thread * EACH], 0x7f7fffffu));
        of_block[thread] = vec2<f32>(factor, scales[block]);
    }
    workgroupBarrier();
    if (!there) {
        return;
    }
    let own = of_block[thread / EACH];
    // Apart from the others, and once for two of them: the text of a division is long.
    if (bitcast<u32>(own.x) == 0x7f800000u) {
        for (var i = 0u; i < 4u; i++) {
            v[0] = vec4<f32>(v[0].yzw, scaled(v[0].x, own.x, own.y));
            v[1] = vec4<f32>(v[1].yzw, scaled(v[1].x, own.x, own.y));
        }
    } else {
        v[0] *= own.x;
        v[1] *= own.x;
    }
    //@ for w in WORDS
    var word_$w = 0u;
    //@ for i in EACH_WORD
    word_$w |= encode(v[($wu * CODES_PER_WORD + $iu) / 4u][($wu * CODES_PER_WORD + $iu) % 4u]) << code_place($iu);
    //@ end
    codes[eight * (8u / CODES_PER_WORD) + $wu] = word_$w;
    //@ end
}

// The first of four magnitudes that is not finite.
fn first_bad(v: vec4<u32>) -> u32 {
    let is_bad = v >= INFINITE;
    return select(select(select(3u, 2u, is_bad.z), 1u, is_bad.y), 0u, is_bad.x);
}

// Where code `i` of a word begins.
fn code_place(i: u32) -> u32 {
    let place = i * BITS;
    return select(place, (place & 24u) + 8u - BITS - (place & 7u), HIGH_FIRST);
}
