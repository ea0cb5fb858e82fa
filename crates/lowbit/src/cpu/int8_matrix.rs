//! Products of 8-bit integers on machines that multiply matrices of them.

use super::buffer::Buffer;
use super::dispatch::Isa;
use super::linear::Pool;
use super::simd::matrix::{BLOCK, INT_FACTOR, INT_TERMS, Matrix};
use super::simd::{Simd, Task};

/// Steps of a tile.
const STEPS: usize = 16;
/// Rows of `b` that a thread takes at once.
const ROWS: usize = 128;
/// Rows of `a` from which on this is faster than vectors.
const ROWS_FROM: usize = 24;

/// Whether products of `m` rows are those of matrices.
pub(crate) struct Fits {
    pub m: usize,
}

impl Task for Fits {
    type Output = bool;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> bool {
        s.matrix().is_some() && self.m >= ROWS_FROM
    }
}

/// `out = b aᵀ: [N, M]`; `a: [M, k]`, `b: [N, k]`.
pub(crate) fn multiply_transposed(
    isa: Isa,
    a: &[i8],
    b: &[i8],
    k: usize,
    out: &mut [i32],
    pool: &Pool,
) {
    let (m, n) = (a.len() / k, b.len() / k);
    let block = k.div_ceil(INT_TERMS) * 2 * INT_FACTOR;
    let mut factors = Buffer::new(m.div_ceil(BLOCK) * block, 0i8);
    pool.each(&mut factors, block, m * k, |i, out| {
        let a = &a[i * BLOCK * k..];
        isa.run(Pack { rows: &a[..a.len().min(BLOCK * k)], k, transpose: true, out });
    });
    pool.each(out, ROWS * m, m * n * k, |i, out| {
        let b = &b[i * ROWS * k..][..out.len() / m * k];
        isa.run(Rows { factors: &factors, block, b, k, m, out });
    });
}

/// A block of rows of `k` integers as a factor: `[steps, 2, INT_FACTOR]`.
struct Pack<'a> {
    rows: &'a [i8],
    k: usize,
    /// Whether it is the second factor.
    transpose: bool,
    out: &'a mut [i8],
}

impl Task for Pack<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (i, row) in self.rows.chunks_exact(self.k).enumerate() {
            pack(row, i, self.out);
        }
        if let (true, Some(matrix)) = (self.transpose, s.matrix()) {
            matrix.transpose(bytemuck::cast_slice_mut(self.out));
        }
    }
}

/// Row `i` of a block, or a part of it that begins with a step.
#[inline(always)]
fn pack(row: &[i8], i: usize, out: &mut [i8]) {
    for (terms, out) in row.chunks(INT_TERMS).zip(out.chunks_exact_mut(2 * INT_FACTOR)) {
        let out = &mut out[i * INT_TERMS..][..INT_TERMS];
        out[..terms.len()].copy_from_slice(terms);
        out[terms.len()..].fill(0);
    }
}

/// The products of some rows of `b` with all of `a`: `out: [rows, M]`.
struct Rows<'a> {
    factors: &'a [i8],
    /// Numbers of a block of `a`.
    block: usize,
    b: &'a [i8],
    k: usize,
    m: usize,
    out: &'a mut [i32],
}

impl Task for Rows<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Rows { factors, block, b, k, m, out } = self;
        let Some(matrix) = s.matrix() else { return };
        let (cols, len) = (STEPS * INT_TERMS, STEPS * 2 * INT_FACTOR);
        let blocks = (b.len() / k).div_ceil(BLOCK);
        // Rows of sums a power of two apart would fall on the same lines of a cache.
        let stride = m.next_multiple_of(BLOCK) + BLOCK / 2;
        let mut w = Buffer::new(blocks * len, 0i8);
        let mut sums = Buffer::new(blocks * BLOCK * stride, 0i32);
        let mut product = Buffer::new(BLOCK * BLOCK, 0i32);
        for col in (0..k).step_by(cols) {
            let steps = (k - col).div_ceil(INT_TERMS).min(STEPS);
            for (i, row) in b.chunks_exact(k).enumerate() {
                pack(&row[col..k.min(col + cols)], i % BLOCK, &mut w[i / BLOCK * len..][..len]);
            }
            for (j, a) in factors.chunks_exact(block).enumerate() {
                let a = &a[col / INT_TERMS * 2 * INT_FACTOR..];
                let sums = sums.chunks_exact_mut(BLOCK * stride);
                for (w, sums) in w.chunks_exact(len).zip(sums) {
                    matrix.multiply_ints(w, a, steps, &mut product);
                    let rows = sums[j * BLOCK..].chunks_mut(stride);
                    for (sums, product) in rows.zip(product.chunks_exact(BLOCK)) {
                        for (sum, product) in sums.iter_mut().zip(product) {
                            *sum = sum.wrapping_add(*product);
                        }
                    }
                }
            }
        }
        for (out, sums) in out.chunks_exact_mut(m).zip(sums.chunks_exact(stride)) {
            out.copy_from_slice(&sums[..m]);
        }
    }
}
