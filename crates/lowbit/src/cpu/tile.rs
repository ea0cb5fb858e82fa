//! The innermost loop of products of many rows: a tile of the result stays in registers while one
//! operand is read number by number and the other vector by vector.

use std::hint::black_box;

use super::buffer::Buffer;
use super::linear::Pool;
use super::simd::{Simd, Task};

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

/// `c += a b` for any number of rows: those of `a: [M, len]` lie `a_stride` apart, `b` is `[len, width]`, whole vectors
/// wide, those of `c: [M, width]` lie `stride` apart.
#[inline(always)]
pub(crate) fn rows<S: Simd>(
    s: S,
    a: &[f32],
    a_stride: usize,
    b: &[f32],
    width: usize,
    c: &mut [f32],
    stride: usize,
) {
    match width / S::LANES {
        1 => all_rows::<S, 1>(s, a, a_stride, b, c, stride),
        2 => all_rows::<S, 2>(s, a, a_stride, b, c, stride),
        _ => all_rows::<S, 4>(s, a, a_stride, b, c, stride),
    }
}

#[inline(always)]
fn all_rows<S: Simd, const V: usize>(
    s: S,
    a: &[f32],
    a_stride: usize,
    b: &[f32],
    c: &mut [f32],
    stride: usize,
) {
    let m = c.len().div_ceil(stride);
    let mut i = 0;
    while i < m {
        let (a, c) = (&a[i * a_stride..], &mut c[i * stride..]);
        i += match m - i {
            8.. if S::MANY_REGISTERS => some_rows::<S, 8, V>(s, a, a_stride, b, c, stride),
            ROWS.. => some_rows::<S, ROWS, V>(s, a, a_stride, b, c, stride),
            4.. => some_rows::<S, 4, V>(s, a, a_stride, b, c, stride),
            2.. => some_rows::<S, 2, V>(s, a, a_stride, b, c, stride),
            _ => some_rows::<S, 1, V>(s, a, a_stride, b, c, stride),
        };
    }
}

/// The first `R` rows; `R`.
#[inline(always)]
fn some_rows<S: Simd, const R: usize, const V: usize>(
    s: S,
    a: &[f32],
    a_stride: usize,
    b: &[f32],
    c: &mut [f32],
    stride: usize,
) -> usize {
    let mut rows: [&[f32]; R] = [&[]; R];
    for (i, row) in rows.iter_mut().enumerate() {
        *row = &a[i * a_stride..];
    }
    // A compiler that knows that they lie equally far apart adds up their addresses for each number.
    multiply_vectors::<S, R, V>(s, black_box(rows), b, c, stride);
    R
}

/// The least columns of a tile that hold so many, or those of the widest.
pub(crate) struct Narrowest {
    pub cols: usize,
}

impl Task for Narrowest {
    type Output = usize;
    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> usize {
        let most = width::<S>();
        let mut narrowest = S::LANES;
        while narrowest < self.cols.min(most) {
            narrowest *= 2;
        }
        narrowest
    }
}

/// The factor of a product that is read by vectors: `[terms, cols]` as `[cols / width, terms, width]`, with zeros for
/// columns that are missing.
pub(crate) struct Panels {
    pub numbers: Buffer<f32>,
    pub terms: usize,
    pub cols: usize,
    width: usize,
}

impl Panels {
    /// From `x: [cols, terms]`.
    pub fn transposed(x: &[f32], terms: usize, width: usize, pool: &Pool) -> Self {
        let cols = x.len() / terms;
        Panels { numbers: panels(x, cols, terms, width, pool), terms, cols, width }
    }

    /// From `x: [terms, cols]`.
    pub fn straight(x: &[f32], cols: usize, width: usize, pool: &Pool) -> Self {
        let terms = x.len() / cols;
        let mut numbers = Buffer::new(cols.div_ceil(width) * terms * width, 0.0);
        pool.each(&mut numbers, terms * width, x.len(), |i, panel| {
            for (row, out) in x.chunks_exact(cols).zip(panel.chunks_exact_mut(width)) {
                let row = &row[i * width..cols.min((i + 1) * width)];
                out[..row.len()].copy_from_slice(row);
            }
        });
        Panels { numbers, terms, cols, width }
    }

    /// Columns with those that are missing.
    pub fn padded(&self) -> usize {
        self.cols.next_multiple_of(self.width)
    }

    /// Adds the product of `a: [M, terms]` to `c: [M, padded]`.
    #[inline(always)]
    pub fn multiply<S: Simd>(&self, s: S, a: &[f32], c: &mut [f32]) {
        let panels = self.numbers.chunks_exact(self.terms * self.width);
        for (i, panel) in panels.enumerate() {
            let c = &mut c[i * self.width..];
            rows(s, a, self.terms, panel, self.width, c, self.padded());
        }
    }
}

/// `x: [M, K]` as `[M / width, K, width]`: the operand that is read by vectors. Rows that are
/// missing are zero.
pub(crate) fn panels(x: &[f32], m: usize, k: usize, width: usize, pool: &Pool) -> Buffer<f32> {
    const TURNED: usize = 16;
    let mut out = Buffer::new(m.div_ceil(width) * k * width, 0.0);
    pool.each(&mut out, k * width, m * k, |i, panel| {
        let x = &x[i * width * k..];
        // Some terms at a time, whose lines stay in the first-level cache until all lanes are in them.
        for (block, out) in panel.chunks_mut(TURNED * width).enumerate() {
            for (lane, row) in x.chunks_exact(k.max(1)).take(width).enumerate() {
                for (out, x) in out.chunks_exact_mut(width).zip(&row[block * TURNED..]) {
                    out[lane] = *x;
                }
            }
        }
    });
    out
}
