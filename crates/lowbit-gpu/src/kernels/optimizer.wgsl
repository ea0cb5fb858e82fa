// What a step of an optimizer and its norms share. parameter, gradient: p.n numbers in fours, and so are
// moments.

fn number(bits: u32) -> f32 {
    return bitcast<f32>(bits);
}

// Bits of magnitudes. What is finite is told in integers: hosts may compile as if everything were.
fn sizes(v: vec4<f32>) -> vec4<u32> {
    return bitcast<vec4<u32>>(v) & vec4<u32>(0x7fffffffu);
}

// How many of four numbers are there.
fn count_of(i: u32) -> u32 {
    return min(p.n - min(4u * i, p.n), 4u);
}

// The gradient as a rule takes it.
fn whole_gradient(given: vec4<f32>, old: vec4<f32>) -> vec4<f32> {
    return given * number(p.grad_scale) + old * number(p.l2);
}
