// The experts of a row: those with the TOP largest of EXPERTS logits, of equals the first, and their
// shares: a softmax over all or, with NORMALIZE, over them. A group of threads takes a row.

var<workgroup> logits: array<f32, EXPERTS>;
var<workgroup> parts: array<f32, EXPERTS>;
var<workgroup> chosen: array<u32, TOP>;

@compute @workgroup_size(GROUP)
fn route(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let row = group.y * groups.x + group.x;
    for (var e = thread; e < EXPERTS; e += GROUP) {
        logits[e] = x_at(min(row, p.rows - 1u) * EXPERTS + e);
    }
    for (var i = thread; i < TOP; i += GROUP) {
        chosen[i] = i;
    }
    workgroupBarrier();
    for (var e = thread; e < EXPERTS; e += GROUP) {
        let own = logits[e];
        var most = own;
        var before = 0u;
        for (var i = 0u; i < EXPERTS; i++) {
            let other = logits[i];
            most = max(most, other);
            before += select(0u, 1u, other > own || (other == own && i < e));
        }
        parts[e] = exp(own - most);
        if (before < TOP) {
            chosen[before] = e;
        }
    }
    workgroupBarrier();
    var whole = 0.0;
    for (var i = 0u; i < select(EXPERTS, TOP, NORMALIZE); i++) {
        whole += parts[select(i, chosen[min(i, TOP - 1u)], NORMALIZE)];
    }
    if (row < p.rows) {
        for (var i = thread; i < TOP; i += GROUP) {
            ids[row * TOP + i] = f32(chosen[i]);
            shares[row * TOP + i] = parts[chosen[i]] / whole;
        }
    }
}
