// Four bytes of row `row` of NAME from column 4 j on, those beyond the row zero. Rows begin
// with words, or follow each other byte by byte.
fn NAME_word(row: u32, j: u32) -> u32 {
    if (NAME_WHOLE) {
        return NAME[row * p.words + j];
    }
    let first = row * p.k + 4u * j;
    let left = min(p.k - 4u * j, 4u);
    let skipped = first & 3u;
    let at = first >> 2u;
    var bits = NAME[at] >> (8u * skipped);
    if (skipped + left > 4u) {
        bits |= NAME[at + 1u] << (32u - 8u * skipped);
    }
    return bits & (0xffffffffu >> (32u - 8u * left));
}
