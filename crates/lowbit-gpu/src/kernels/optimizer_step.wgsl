// A step of an optimizer in one pass over parameter, gradient and moments, as `optim/reference.rs` of the
// crate lowbit takes it.

@compute @workgroup_size(GROUP)
fn optimizer_step(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    load_tables(thread);
    let stride = groups.x * groups.y * GROUP;
    for (var first = (group.y * groups.x + group.x) * GROUP; first < p.fours; first += stride) {
        let i = first + thread;
        let count = count_of(i);
        var m: Moments;
        if (count > 0u) {
            let old = x_unpack4(parameter[i]);
            let given = x_unpack4(gradient[i]);
            m = moments_at(i);
            let towards = direction(whole_gradient(given, old), &m);
            var moved = (old * number(p.before) + towards * rate()) * number(p.after);
            if (SHARED) {
                // A number that would spoil those beside it is left out.
                let largest = max(max(sizes(given), sizes(old)), sizes(sum_of(m)));
                let kept = largest < vec4<u32>(0x7f800000u);
                moved = select(old, moved, kept);
                for (var k = 0u; k < MOMENTS; k++) {
                    m[k] = select(vec4<f32>(), m[k], kept);
                }
            }
            put(i, moved, count);
        }
        keep(thread, i, count, m);
    }
}
