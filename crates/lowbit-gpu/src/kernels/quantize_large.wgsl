// Scales and codes of large blocks: a group of threads takes one and reads it twice, the second time from
// a cache. w: [N, K] in eights.

var<workgroup> largest: array<u32, GROUP>;
// Factor and stored scale of the block.
var<workgroup> of_block: vec2<f32>;

@compute @workgroup_size(GROUP)
fn quantize_large(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    load_ranks(thread);
    let block = group.y * groups.x + group.x;
    let first = block * p.each + thread;
    let end = min((block + 1u) * p.each, p.eights);
    var most = 0u;
    for (var eight = first; eight < end; eight += GROUP) {
        most = max(most, largest_of(load_eight(eight)));
    }
    largest[thread] = most;
    workgroupBarrier();
    for (var half = GROUP / 2u; half > 0u; half >>= 1u) {
        if (thread < half) {
            largest[thread] = max(largest[thread], largest[thread + half]);
        }
        workgroupBarrier();
    }
    if (thread == 0u && block < p.blocks) {
        let factor = store_scale(block, largest[0]);
        of_block = vec2<f32>(factor, scales[block]);
    }
    workgroupBarrier();
    for (var eight = first; eight < end; eight += GROUP) {
        put_codes(eight, load_eight(eight), of_block);
    }
}
