// Eight weights of one row and block from a multiple of eight, as they are stored and decoded.

struct Octet {
    low: vec4<u32>,
    high: vec4<u32>,
    scale: f32,
    mean: f32,
}

// What there is to load of them, all at once and without looking at it.
fn octet(row: u32, col: u32) -> Octet {
    var o: Octet;
    if (STACKED > 1u) {
        // A byte a column; the bits in it say which of its rows.
        let rows = p.n / STACKED;
        let at = (row % rows) * (p.k / 4u) + col / 4u;
        o.low = vec4<u32>(codes[at], codes[at + 1u], row / rows * BITS, 0u);
    } else if (GROUPED) {
        o.low = vec4<u32>(groups_from(row * p.row_bytes, col / GROUP_WEIGHTS), col % GROUP_WEIGHTS, 0u, 0u);
    } else if (WORDS) {
        let bit = col * BITS;
        let at = row * p.row_words + (bit >> 5u);
        o.low.x = codes[at];
        if (BITS < 4u) {
            o.low.y = bit & 31u;
        }
        if (BITS >= 8u) {
            o.low.y = codes[at + 1u];
        }
        if (BITS >= 16u) {
            o.low.z = codes[at + 2u];
            o.low.w = codes[at + 3u];
        }
        if (BITS == 32u) {
            o.high = vec4<u32>(codes[at + 4u], codes[at + 5u], codes[at + 6u], codes[at + 7u]);
        }
    } else {
        o.low = vec4<u32>(row, col, 0u, 0u);
        return o;
    }
    if (!DENSE) {
        let block = block_of(row, col);
        o.scale = scale_of(block);
        if (HAS_MEAN) {
            o.mean = mean_of(block);
        }
    }
    return o;
}

// The groups of codes that eight weights of a row may need, from the first of them on: with where that
// begins in a byte no more than 32 bits. `byte` is where the row begins.
fn groups_from(byte: u32, group: u32) -> u32 {
    let bit = group * GROUP_BITS;
    let first = byte + (bit >> 3u);
    // What lies beyond the weight is not loaded.
    let last = byte + ((bit + (GROUP_WEIGHTS + 14u) / GROUP_WEIGHTS * GROUP_BITS - 1u) >> 3u);
    let low = codes[first >> 2u];
    let high = codes[min(last, p.n * p.row_bytes - 1u) >> 2u];
    let shift = (first & 3u) * 8u;
    let bits = select((low >> shift) | (high << ((32u - shift) & 31u)), low, shift == 0u);
    return bits >> (bit & 7u);
}

// The weights, rounded as the reference rounds.
fn octet_exact(o: Octet) -> array<vec4<f32>, 2> {
    let w = octet_stored(o);
    if (DENSE) {
        return w;
    }
    return array(finished4(w[0], o.scale, o.mean), finished4(w[1], o.scale, o.mean));
}

// The weights, times a factor.
fn octet_values(o: Octet, factor: f32) -> array<vec4<f32>, 2> {
    var w: array<vec4<f32>, 2>;
    if (!WORDS && !GROUPED && STACKED == 1u) {
        w[0] = weights4(o.low.x, o.low.y) * factor;
        w[1] = weights4(o.low.x, o.low.y + 4u) * factor;
        return w;
    }
    w = octet_stored(o);
    let scale = select(o.scale * (UNIT * factor), factor, DENSE);
    let mean = o.mean * factor;
    w[0] = w[0] * scale + mean;
    w[1] = w[1] * scale + mean;
    return w;
}

// What is stored in words: numbers, or values of codes.
fn octet_stored(o: Octet) -> array<vec4<f32>, 2> {
    var w: array<vec4<f32>, 2>;
    if (DENSE && BITS == 32u) {
        w[0] = bitcast<vec4<f32>>(o.low);
        w[1] = bitcast<vec4<f32>>(o.high);
        return w;
    }
    if (DENSE) {
        w[0] = four(o.low.xy);
        w[1] = four(o.low.zw);
        return w;
    }
    if (STACKED > 1u) {
        return array(stacked_values(o.low.x, o.low.z), stacked_values(o.low.y, o.low.z));
    }
    if (GROUPED) {
        return grouped_values(o.low.x, o.low.y);
    }
    let first = select(0u, o.low.y, BITS < 4u);
    let second = select(o.low.x, o.low.y, BITS == 8u);
    return array(four_values(o.low.x, first), four_values(second, first + 4u * BITS));
}

// Of a row that shares its bytes with others.
fn stacked_values(word: u32, shift: u32) -> vec4<f32> {
    return vec4<f32>(
        value_at((word >> shift) & MASK, 0u),
        value_at((word >> (shift + 8u)) & MASK, 0u),
        value_at((word >> (shift + 16u)) & MASK, 0u),
        value_at((word >> (shift + 24u)) & MASK, 0u),
    );
}

// Where in its group a weight is; the group, of which a radix leaves what is to come; those after it.
struct Cursor {
    place: u32,
    group: u32,
    rest: u32,
}

// Of groups of weights, from weight `place` of the first on.
fn grouped_values(groups: u32, place: u32) -> array<vec4<f32>, 2> {
    var at = Cursor(place, groups & GROUP_MASK, groups);
    if (IS_RADIX) {
        for (var i = 0u; i < place; i++) {
            at.group /= RADIX;
        }
    }
    let a = next_value(&at);
    let b = next_value(&at);
    let c = next_value(&at);
    let d = next_value(&at);
    let e = next_value(&at);
    let f = next_value(&at);
    let g = next_value(&at);
    let h = next_value(&at);
    return array(vec4<f32>(a, b, c, d), vec4<f32>(e, f, g, h));
}

fn next_value(at: ptr<function, Cursor>) -> f32 {
    var value: f32;
    if (IS_RADIX) {
        value = value_at((*at).group % RADIX, 0u);
        (*at).group /= RADIX;
    } else {
        value = value_at((*at).group, (*at).place);
    }
    (*at).place += 1u;
    if ((*at).place == GROUP_WEIGHTS) {
        (*at).place = 0u;
        (*at).rest >>= GROUP_BITS;
        (*at).group = (*at).rest & GROUP_MASK;
    }
    return value;
}
