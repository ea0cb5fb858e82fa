// The sums of squares of direction and parameter before a step, one of each for a group of threads.

@compute @workgroup_size(GROUP)
fn optimizer_norms(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    load_tables(thread);
    let at = group.y * groups.x + group.x;
    var own = vec2<f32>();
    for (var i = at * GROUP + thread; i < p.fours; i += groups.x * groups.y * GROUP) {
        let there = vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(count_of(i));
        let old = x_unpack4(parameter[i]);
        var m = moments_at(i);
        let towards = direction(whole_gradient(x_unpack4(gradient[i]), old), &m);
        let a = select(vec4<f32>(), towards, there);
        let b = select(vec4<f32>(), old, there);
        own += vec2<f32>(dot(a, a), dot(b, b));
    }
    let all = sum_of_group(own, thread);
    if (thread == 0u) {
        parts[at] = all;
    }
}
