// The sums of two numbers of each thread of a group; only its first thread gets them.

var<workgroup> sums: array<vec2<f32>, GROUP>;

fn sum_of_group(own: vec2<f32>, thread: u32) -> vec2<f32> {
    sums[thread] = own;
    for (var half = GROUP / 2u; half > 0u; half >>= 1u) {
        workgroupBarrier();
        if (thread < half) {
            sums[thread] += sums[thread + half];
        }
    }
    return sums[0];
}
