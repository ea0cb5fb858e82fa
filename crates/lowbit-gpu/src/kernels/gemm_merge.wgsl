// Adds the pieces in which `gemm_matrix` left tiles, in the order of the groups that left them: a group
// a tile. Tiles that came whole are done.
@compute @workgroup_size(GROUP)
fn gemm_merge(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let steps = p.k / (DEPTH * SLICES);
    let tiles_down = (p.m + TILE_M - 1u) / TILE_M;
    let first_m = group.x % tiles_down * TILE_M;
    let first_n = group.x / tiles_down * TILE_N;
    let start = group.x * steps;
    let first_group = start / p.share;
    let last_group = (start + steps - 1u) / p.share;
    if (first_group == last_group) {
        return;
    }
    for (var i = thread * 2u; i < TILE_M * TILE_N; i += GROUP * 2u) {
        var sum = vec2<f32>();
        for (var g = first_group; g <= last_group; g++) {
            let slot = 2u * g + select(0u, 1u, g * p.share < start);
            let at = slot * TILE_M * TILE_N + i;
            sum += vec2<f32>(partials[at], partials[at + 1u]);
        }
        let m = first_m + i / TILE_N;
        put_result(m, first_n + i % TILE_N, sum, ups[m]);
    }
}
