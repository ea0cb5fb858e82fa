//! Any number of rows of f32 activations, any weight: a tile of weights is decoded once and
//! multiplied with every row.

use super::buffer::{Buffer, padded_rows};
use super::simd::{Simd, Task};
use super::view::View;

/// Columns of a tile, a multiple of every vector.
const COLS: usize = 256;
/// Most rows of activations for which sums are kept.
const BATCH: usize = 128;
/// Activations and weights that a kernel keeps in registers: `MR` rows of x, `NR` of w.
const MR: usize = 4;
const NR: usize = 2;
/// Rows of activations are padded to a multiple of this.
const PAD: usize = 16;

/// Rows `first..` of `yᵀ = w xᵀ`: `x: [M, K padded]`, `y: [rows, M]`.
pub(crate) struct Gemm<'a> {
    pub view: &'a View<'a>,
    pub x: &'a [f32],
    pub m: usize,
    pub first: usize,
    pub y: &'a mut [f32],
}

impl Gemm<'_> {
    /// `x: [M, K]` as this kernel takes it.
    pub fn pad(x: &[f32], m: usize, k: usize) -> Buffer<f32> {
        padded_rows(x, m, k, PAD)
    }
}

impl Task for Gemm<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Gemm { view, x, m, first, y } = self;
        let (k, stride) = (view.k, view.k.next_multiple_of(PAD));
        let rows = y.len() / m;
        let batch_size = m.min(BATCH);
        let mut tile = Buffer::new(rows.next_multiple_of(NR) * COLS, 0.0f32);
        let mut sums = vec![s.splat(0.0); rows.next_multiple_of(NR) * batch_size];
        for batch in (0..m).step_by(batch_size) {
            let end = (batch + batch_size).min(m);
            sums.fill(s.splat(0.0));
            for col in (0..k).step_by(COLS) {
                let cols = COLS.min(k - col);
                let padded = cols.next_multiple_of(PAD);
                for (i, tile) in tile.chunks_exact_mut(COLS).take(rows).enumerate() {
                    view.decode(s, first + i, col, &mut tile[..cols]);
                    tile[cols..padded].fill(0.0);
                }
                let x_row = |i: usize| &x[i * stride + col..][..padded];
                let mut i = batch;
                while i + MR <= end {
                    let x: [&[f32]; MR] = std::array::from_fn(|j| x_row(i + j));
                    multiply(s, &tile, padded, x, &mut sums, batch_size, i - batch);
                    i += MR;
                }
                for i in i..end {
                    multiply(s, &tile, padded, [x_row(i)], &mut sums, batch_size, i - batch);
                }
            }
            for (row, y) in y.chunks_exact_mut(m).enumerate() {
                for (i, y) in y[batch..end].iter_mut().enumerate() {
                    *y = s.sum(sums[row * batch_size + i]);
                }
            }
        }
    }
}

/// Adds the products of all rows of the tile with `R` rows of x to their sums.
#[inline(always)]
fn multiply<S: Simd, const R: usize>(
    s: S,
    tile: &[f32],
    cols: usize,
    x: [&[f32]; R],
    sums: &mut [S::F],
    batch_size: usize,
    at: usize,
) {
    let x = x.map(|x| &x[..cols]);
    for (pair, sums) in tile.chunks_exact(NR * COLS).zip(sums.chunks_exact_mut(NR * batch_size)) {
        let w: [&[f32]; NR] = std::array::from_fn(|n| &pair[n * COLS..][..cols]);
        let mut acc: [[S::F; R]; NR] =
            std::array::from_fn(|n| std::array::from_fn(|i| sums[n * batch_size + at + i]));
        let mut col = 0;
        while col < cols {
            let w: [S::F; NR] = std::array::from_fn(|n| s.load(&w[n][col..]));
            for i in 0..R {
                let x = s.load(&x[i][col..]);
                for n in 0..NR {
                    acc[n][i] = s.fma(w[n], x, acc[n][i]);
                }
            }
            col += S::LANES;
        }
        for n in 0..NR {
            sums[n * batch_size + at..][..R].copy_from_slice(&acc[n]);
        }
    }
}
