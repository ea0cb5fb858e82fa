// Spans of eight weights, however they are stored.

// Values of the codes of span `s` of a row.
fn span_values(row: u32, s: u32) -> array<f32, SPAN> {
    let w = octet_stored(octet(row, s * SPAN));
    return array(w[0].x, w[0].y, w[0].z, w[0].w, w[1].x, w[1].y, w[1].z, w[1].w);
}
