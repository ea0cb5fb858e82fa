// Reads a buffer once and does almost nothing with it: what the memory can do. data: vectors.

@compute @workgroup_size(GROUP)
fn read_all(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let step = groups.x * GROUP;
    var bits = vec4<u32>();
    for (var i = group.x * GROUP + thread; i < p.vectors; i += step) {
        bits ^= data[i];
    }
    // Never so, but no compiler knows.
    if (bits.x + bits.y + bits.z + bits.w == 0x9e3779b9u) {
        y[0] = 1u;
    }
}
