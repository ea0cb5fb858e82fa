// What kernels that write to the cache share.

fn k_element(row: u32, head: u32, d: u32) -> f32 {
    if (d >= D) {
        return 0.0;
    }
    return k_turned((row * KV_HEADS + head) * D + d, p.turn + row);
}

fn v_element(row: u32, head: u32, d: u32) -> f32 {
    if (d >= D) {
        return 0.0;
    }
    return v_at((row * KV_HEADS + head) * D + d);
}

// Four numbers, from number 4 c on, of the key of a row's head.
fn key_of(row: u32, head: u32, c: u32) -> X4 {
    let d = 4u * c;
    return X4(
        x_pack(vec2<f32>(k_element(row, head, d), k_element(row, head, d + 1u))),
        x_pack(vec2<f32>(k_element(row, head, d + 2u), k_element(row, head, d + 3u))),
    );
}

// The same of its value.
fn value_of(row: u32, head: u32, c: u32) -> X4 {
    let d = 4u * c;
    return X4(
        x_pack(vec2<f32>(v_element(row, head, d), v_element(row, head, d + 1u))),
        x_pack(vec2<f32>(v_element(row, head, d + 2u), v_element(row, head, d + 3u))),
    );
}

// Writes them to the cache.
fn append(row: u32, head: u32, c: u32, k: X4, v: X4) {
    let at = (head * p.capacity + p.past + row) * (STRIDE / 4u) + c;
    keys[at] = k;
    values[at] = v;
}
