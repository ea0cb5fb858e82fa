// Eight numbers at a time: the largest magnitude of them, and their codes. Needs `codes`.

const CODES_PER_WORD = 32u / BITS;

alias Eight = array<vec4<f32>, 2>;

fn load_eight(eight: u32) -> Eight {
    let stored = w[eight];
    return Eight(x_low(stored), x_high(stored));
}

// Bits of the largest magnitude; of what is not finite, if there is any, since those are the largest.
fn largest_of(v: Eight) -> u32 {
    let low = bitcast<vec4<u32>>(v[0]) & vec4<u32>(0x7fffffffu);
    let high = bitcast<vec4<u32>>(v[1]) & vec4<u32>(0x7fffffffu);
    let both = max(low, high);
    return max(max(both.x, both.y), max(both.z, both.w));
}

// Their codes, given factor and stored scale of their block.
fn put_codes(eight: u32, numbers: Eight, own: vec2<f32>) {
    var v = numbers;
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

// Where code `i` of a word begins.
fn code_place(i: u32) -> u32 {
    let place = i * BITS;
    return select(place, (place & 24u) + 8u - BITS - (place & 7u), HIGH_FIRST);
}
