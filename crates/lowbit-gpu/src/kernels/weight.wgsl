// Reading weights of any format one by one, or four at a time.

fn code_byte(byte: u32) -> u32 {
    return (codes[byte >> 2u] >> ((byte & 3u) * 8u)) & 255u;
}

// Code `index` of the run that begins at `byte`.
fn code_at(byte: u32, index: u32) -> u32 {
    if (IS_RADIX) {
        var digits = code_byte(byte + index / RADIX_DIGITS);
        for (var i = index % RADIX_DIGITS; i > 0u; i--) {
            digits /= RADIX;
        }
        return digits % RADIX;
    }
    let bit = index * BITS;
    let first = byte + (bit >> 3u);
    if (BITS == 16u) {
        return code_byte(first) | (code_byte(first + 1u) << 8u);
    }
    if (HIGH_FIRST || (8u % BITS) == 0u) {
        let within = select(bit & 7u, HIGH_SHIFT - (bit & 7u), HIGH_FIRST);
        return (code_byte(first) >> within) & MASK;
    }
    let last = byte + ((bit + BITS - 1u) >> 3u);
    var window = 0u;
    for (var i = first; i <= last; i++) {
        window |= code_byte(i) << ((i - first) * 8u);
    }
    return (window >> (bit & 7u)) & MASK;
}

// Values of four codes of a word, from the one that begins at `bit` of its row on.
fn four_values(word: u32, bit: u32) -> vec4<f32> {
    return vec4<f32>(
        value_at((word >> code_shift(bit)) & MASK, 0u),
        value_at((word >> code_shift(bit + BITS)) & MASK, 0u),
        value_at((word >> code_shift(bit + 2u * BITS)) & MASK, 0u),
        value_at((word >> code_shift(bit + 3u * BITS)) & MASK, 0u),
    );
}

// Weight (row, col) in f32.
fn weight(row: u32, col: u32) -> f32 {
    if (DENSE) {
        return dense_at(row * p.k + col);
    }
    var first = select(0u, row * p.row_bytes, !FLAT);
    var index = col + select(0u, row * p.k, FLAT);
    if (STACKED > 1u) {
        let rows = p.n / STACKED;
        first = (row % rows) * p.k;
        index = col * STACKED + row / rows;
    }
    let code = code_at(first, index / PER_CODE);
    return finish(value_at(code, index % PER_CODE), block_of(row, col));
}

// Four weights of one row and block from column `col`, a multiple of 4.
fn weights4(row: u32, col: u32) -> vec4<f32> {
    if (DENSE && WORDS) {
        return dense4(row * p.k + col);
    }
    if (!WORDS) {
        var w: vec4<f32>;
        for (var i = 0u; i < 4u; i++) {
            if (col + i < p.k) {
                w[i] = weight(row, col + i);
            }
        }
        return w;
    }
    let bit = col * BITS;
    let block = block_of(row, col);
    var w = four_values(codes[row * p.row_words + (bit >> 5u)], bit);
    w *= scale_of(block) * UNIT;
    if (HAS_MEAN) {
        w += mean_of(block);
    }
    return w;
}

// The same, rounded as the reference rounds.
fn exact4(row: u32, col: u32) -> vec4<f32> {
    if (DENSE) {
        return dense4(row * p.k + col);
    }
    let bit = col * BITS;
    let block = block_of(row, col);
    let values = four_values(codes[row * p.row_words + (bit >> 5u)], bit);
    return finished4(values, scale_of(block), mean_of(block));
}
