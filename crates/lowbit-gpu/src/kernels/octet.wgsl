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
    if (!WORDS) {
        o.low = vec4<u32>(row, col, 0u, 0u);
        return o;
    }
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
    if (!DENSE) {
        let block = block_of(row, col);
        o.scale = scale_of(block);
        if (HAS_MEAN) {
            o.mean = mean_of(block);
        }
    }
    return o;
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
    if (!WORDS) {
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
    let first = select(0u, o.low.y, BITS < 4u);
    let second = select(o.low.x, o.low.y, BITS == 8u);
    return array(four_values(o.low.x, first), four_values(second, first + 4u * BITS));
}
