// Where the codes and the block of a weight are, and how its value becomes a weight. The constants say
// how, the parameters where.

// First bit of code `index` of a run in its word.
fn code_shift(bit: u32) -> u32 {
    if (HIGH_FIRST) {
        return (bit & 24u) + HIGH_SHIFT - (bit & 7u);
    }
    return bit & 31u;
}

fn block_of(row: u32, col: u32) -> u32 {
    if (FLAT) {
        let at = row * p.k + col;
        return select(at / p.block_size, at >> p.block_shift, POW2);
    }
    return row * p.blocks_per_row + select(col / p.block_size, col >> p.block_shift, POW2);
}

// Rounded products that no compiler fuses into sums: `p.zero` is 0, which it cannot know.
fn rounded(x: f32) -> f32 {
    return bitcast<f32>(bitcast<u32>(x) ^ p.zero);
}

fn rounded4(x: vec4<f32>) -> vec4<f32> {
    return bitcast<vec4<f32>>(bitcast<vec4<u32>>(x) ^ vec4<u32>(p.zero));
}

// values * scale * unit + mean, rounded as the reference rounds.
fn finished4(values: vec4<f32>, scale: f32, mean: f32) -> vec4<f32> {
    var w = rounded4(values * scale);
    if (HAS_UNIT) {
        w = rounded4(w * UNIT);
    }
    if (HAS_MEAN) {
        w += vec4<f32>(mean);
    }
    return w;
}

fn finish(value: f32, block: u32) -> f32 {
    return finished4(vec4<f32>(value), scale_of(block), mean_of(block)).x;
}
