// Spans of whole bytes.

const SPAN_BYTES = SPAN / PER_BYTE;

// Values of the codes of span `s` of a row.
fn span_values(row: u32, s: u32) -> array<f32, SPAN> {
    var w: array<f32, SPAN>;
    for (var b = 0u; b < SPAN_BYTES; b++) {
        // The last span may have fewer bytes; x is 0 there.
        let at = min(s * SPAN_BYTES + b, p.row_bytes - 1u);
        var code = code_byte(row * p.row_bytes + at);
        for (var i = 0u; i < PER_BYTE; i++) {
            if (IS_RADIX) {
                w[b * PER_BYTE + i] = value_at(code % RADIX, 0u);
                code /= RADIX;
            } else {
                w[b * PER_BYTE + i] = value_at(code, i);
            }
        }
    }
    return w;
}
