// Rows of x as half floats for matrix hardware: each times a power of two that brings its largest
// magnitude to 1..2, which is taken back from the results. Rows from M on are zeros. x: [M, K] in pairs.

var<workgroup> largest: array<u32, GROUP>;

@compute @workgroup_size(GROUP)
fn halves(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let row = group.x;
    let pairs = p.k / 2u;
    var most = 0u;
    if (row < p.m) {
        for (var i = thread; i < pairs; i += GROUP) {
            let v = bitcast<vec2<u32>>(x_unpack(x[row * pairs + i])) & vec2<u32>(0x7fffffffu);
            most = max(most, max(v.x, v.y));
        }
    }
    largest[thread] = most;
    workgroupBarrier();
    for (var half = GROUP / 2u; half > 0u; half >>= 1u) {
        if (thread < half) {
            largest[thread] = max(largest[thread], largest[thread + half]);
        }
        workgroupBarrier();
    }
    // Exponents of numbers that are not finite, and of zeros and subnormals, stay as they are.
    let exponent = largest[0] >> 23u;
    let plain = exponent == 0u || exponent >= 254u;
    let down = select(bitcast<f32>((254u - exponent) << 23u), 1.0, plain);
    let up = select(bitcast<f32>(exponent << 23u), 1.0, plain);
    for (var i = thread; i < pairs; i += GROUP) {
        var v = vec2<f32>();
        if (row < p.m) {
            v = x_unpack(x[row * pairs + i]) * down;
        }
        halves_of_x[row * pairs + i] = f16_bits(v.x) | (f16_bits(v.y) << 16u);
    }
    if (thread == 0u) {
        ups[row] = up;
    }
}
