// Results of parts of the positions, in f32: [heads, parts, D + 2]; behind each, the largest score and the
// sum of weights relative to it.

// Numbers d and d + 1 of a head.
fn give(head: u32, part: u32, parts: u32, d: u32, pair: vec2<f32>) {
    let at = (head * parts + part) * (D + 2u) + d;
    y[at] = pair.x;
    if (d + 1u < D) {
        y[at + 1u] = pair.y;
    }
}

fn give_share(head: u32, part: u32, parts: u32, most: f32, total: f32) {
    let at = (head * parts + part) * (D + 2u) + D;
    y[at] = most;
    y[at + 1u] = total;
}
