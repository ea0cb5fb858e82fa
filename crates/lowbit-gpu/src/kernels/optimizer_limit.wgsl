// The norm of an update before the learning rate, and the rate that keeps it within its limit, from the sums
// of `optimizer_norms`.

@compute @workgroup_size(GROUP)
fn optimizer_limit(@builtin(local_invocation_index) thread: u32) {
    var own = vec2<f32>();
    for (var i = thread; i < p.parts; i += GROUP) {
        own += parts[i];
    }
    let all = sum_of_group(own, thread);
    if (thread == 0u) {
        let norms = sqrt(all);
        let update = norms.x * bitcast<f32>(p.gain);
        let most = norms.y * bitcast<f32>(p.most);
        // Norms that are not finite limit nothing; in integers, since hosts may compile as if all were.
        let finite = max(bitcast<u32>(all.x), bitcast<u32>(all.y)) < 0x7f800000u;
        var rate = bitcast<f32>(p.rate);
        if (finite && norms.y > 0.0 && update > most) {
            rate *= most / update;
        }
        limited[0] = update;
        limited[1] = rate;
    }
}
