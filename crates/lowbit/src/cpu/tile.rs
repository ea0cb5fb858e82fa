//! The innermost loop of products of many rows: a tile of the result stays in registers while one
//! operand is read number by number and the other vector by vector.

use super::buffer::Buffer;
use super::linear::Pool;
use super::simd::Simd;

/// Rows of a tile. With two vectors a row, as many sums as multiply-adds are under way at once.
pub(crate) const ROWS: usize = 6;

/// Columns of a tile.
#[inline(always)]
pub(crate) const fn width<S: Simd>() -> usize {
    if S::LANES < 8 { 4 * S::LANES } else { 2 * S::LANES }
}

/// `c += a b`: `a: [R, len]`, `b: [len, width]`, `c: [R, width]`, whose rows lie `stride` apart.
#[inline(always)]
pub(crate) fn multiply<S: Simd, const R: usize>(
    s: S,
    a: [&[f32]; R],
    b: &[f32],
    c: &mut [f32],
    stride: usize,
) {
    if S::LANES < 8 {
        multiply_vectors::<S, R, 4>(s, a, b, c, stride);
    } else {
        multiply_vectors::<S, R, 2>(s, a, b, c, stride);
    }
}

#[inline(always)]
fn multiply_vectors<S: Simd, const R: usize, const V: usize>(
    s: S,
    a: [&[f32]; R],
    b: &[f32],
    c: &mut [f32],
    stride: usize,
) {
    let len = b.len() / (V * S::LANES);
    let mut rows: [&[f32]; R] = [&[]; R];
    for r in 0..R {
        // Of one length that the compiler knows, so that the loop asks no more.
        rows[r] = &a[r][..len];
    }
    let mut sums = [[s.splat(0.0); V]; R];
    for (i, b) in (0..len).zip(b.chunks_exact(V * S::LANES)) {
        let mut vectors = [s.splat(0.0); V];
        for v in 0..V {
            vectors[v] = s.load(&b[v * S::LANES..(v + 1) * S::LANES]);
        }
        for r in 0..R {
            let x = s.splat(rows[r][i]);
            for v in 0..V {
                sums[r][v] = s.fma(x, vectors[v], sums[r][v]);
            }
        }
    }
    for r in 0..R {
        for v in 0..V {
            let c = &mut c[r * stride + v * S::LANES..][..S::LANES];
            s.store(s.add(s.load(c), sums[r][v]), c);
        }
    }
}

/// `x: [M, K]` as `[M / width, K, width]`: the operand that is read by vectors. Rows that are
/// missing are zero.
pub(crate) fn panels(x: &[f32], m: usize, k: usize, width: usize, pool: &Pool) -> Buffer<f32> {
    let mut out = Buffer::new(m.div_ceil(width) * k * width, 0.0);
    pool.each(&mut out, k * width, m * k, |i, panel| {
        let rows = x[i * width * k..].chunks_exact(k.max(1)).take(width);
        for (lane, row) in rows.enumerate() {
            for (out, x) in panel[lane..].iter_mut().step_by(width).zip(row) {
                *out = *x;
            }
        }
    });
    out
}
