// What kernels of attention share.

// Below every score, and finite: compilers may take infinities for impossible.
const LEAST = -3e38;

// 1 / x, or 0 where nothing was seen.
fn inverse(x: f32) -> f32 {
    return select(1.0 / x, 0.0, x == 0.0);
}
