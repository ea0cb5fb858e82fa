// One part sees all positions: results go where they belong.

// Numbers d and d + 1 of a head.
fn give(head: u32, part: u32, parts: u32, d: u32, pair: vec2<f32>) {
    y[(head * D + d) / 2u] = x_pack(pair);
}

fn give_share(head: u32, part: u32, parts: u32, most: f32, total: f32) {
}
