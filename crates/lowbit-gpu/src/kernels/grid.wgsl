// Codes of numbers, from the cells of an even grid in workgroup memory. In a cell is one threshold at most,
// which comes with the codes below it and from it on.

var<workgroup> cells: array<vec2<u32>, CELLS>;

fn load_ranks(thread: u32) {
    for (var i = thread; i < CELLS; i += GROUP) {
        cells[i] = vec2<u32>(bitcast<u32>(ups[i]), ranked[i]);
    }
}

fn encode(x: f32) -> u32 {
    let value = select(x, abs(x), SIGN_BIT != 0u);
    let place = clamp(value * GRID_SCALE + GRID_START, 0.0, f32(CELLS - 1u));
    // Next to 2^23, numbers end in their last whole bit.
    let cell = cells[bitcast<u32>(place + 8388608.0) % CELLS];
    let code = select(cell.y & 0xffffu, cell.y >> 16u, bitcast<f32>(cell.x) <= value);
    return code | select(0u, SIGN_BIT, x < 0.0);
}
