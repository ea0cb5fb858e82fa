// Rows of x as half floats for matrix hardware: each times a power of two that brings its largest
// magnitude to 1..2, which is taken back from the results. Rows from M on are zeros. They lie in squares
// of SIDE x SIDE, one after the other along the rows. x: [M, K] in eights.

var<workgroup> largest: array<u32, GROUP>;

fn largest_of(v: vec4<f32>) -> u32 {
    let bits = bitcast<vec4<u32>>(v) & vec4<u32>(0x7fffffffu);
    return max(max(bits.x, bits.y), max(bits.z, bits.w));
}

@compute @workgroup_size(GROUP)
fn halves(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let row = group.x;
    let octets = p.k / 8u;
    var most = 0u;
    if (row < p.m) {
        for (var i = thread; i < octets; i += GROUP) {
            let v = x[row * octets + i];
            most = max(most, max(largest_of(x_low(v)), largest_of(x_high(v))));
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
    for (var i = thread; i < octets; i += GROUP) {
        var low = vec4<f32>();
        var high = vec4<f32>();
        if (row < p.m) {
            let v = x[row * octets + i];
            low = x_low(v) * down;
            high = x_high(v) * down;
        }
        let square = row / SIDE * (p.k / SIDE) + i * 8u / SIDE;
        let at = 2u * ((square * SIDE + row % SIDE) * (SIDE / 8u) + i % (SIDE / 8u));
        halves_of_x[at] = vec4<f16>(low);
        halves_of_x[at + 1u] = vec4<f16>(high);
    }
    if (thread == 0u) {
        ups[row] = up;
    }
}
