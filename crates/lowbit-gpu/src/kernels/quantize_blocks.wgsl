// Scales and codes of all blocks at once: a thread takes eight numbers of a block, of which EACH threads
// have one each, and keeps them from the search for the largest to their codes. w: [N, K] in eights.

const OWN = GROUP / EACH;

var<workgroup> largest: array<u32, GROUP>;
// Factor and stored scale of each block of the group.
var<workgroup> of_block: array<vec2<f32>, OWN>;

@compute @workgroup_size(GROUP)
fn quantize_blocks(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    load_ranks(thread);
    let at = group.y * groups.x + group.x;
    let eight = at * GROUP + thread;
    let there = eight < p.eights;
    var v: Eight;
    if (there) {
        v = load_eight(eight);
    }
    largest[thread] = largest_of(v);
    workgroupBarrier();
    for (var half = EACH / 2u; half > 0u; half >>= 1u) {
        if (thread % EACH < half) {
            largest[thread] = max(largest[thread], largest[thread + half]);
        }
        workgroupBarrier();
    }
    let block = at * OWN + thread;
    if (thread < OWN && block < p.blocks) {
        let factor = store_scale(block, largest[thread * EACH]);
        of_block[thread] = vec2<f32>(factor, scales[block]);
    }
    workgroupBarrier();
    if (there) {
        put_codes(eight, v, of_block[thread / EACH]);
    }
}
