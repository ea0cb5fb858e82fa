//! Any weight and some rows of f32 activations, as many as a cache holds: a tile of weights is
//! decoded once and multiplied with every row.

use super::buffer::{Buffer, padded_rows, row_stride};
use super::simd::{Simd, Task};
use super::view::View;

/// Columns of a tile, a multiple of every vector.
const COLS: usize = 512;
/// Rows of a tile so wide: in f32 it fits half the first-level cache.
const ROWS: usize = 8;
/// Rows of activations that share a load of weights: with 2 or 4 rows of weights, as many sums as
/// 16 or 32 registers hold.
const MR: usize = 6;
/// The most rows of weights that share a load of activations.
const NR: usize = 4;
/// Rows of activations are padded to a multiple of this.
const PAD: usize = 16;

/// Rows `first..` of `yᵀ = w xᵀ`: `x: [M, stride]`, `y: [rows, M]`.
pub(crate) struct Gemm<'a> {
    pub view: &'a View<'a>,
    pub x: &'a [f32],
    pub m: usize,
    pub first: usize,
    pub y: &'a mut [f32],
}

impl Gemm<'_> {
    /// Rows of `w` that a thread takes at once: as many as share a tile, if their sums are no more than the tile.
    pub fn rows(m: usize, k: usize) -> usize {
        let narrower = COLS / width(k);
        ROWS * narrower.min(COLS / (PAD * m)).max(1)
    }

    /// `x: [M, K]` as this kernel takes it.
    pub fn pad(x: &[f32], m: usize, k: usize) -> Buffer<f32> {
        padded_rows(x, m, k, stride(k))
    }
}

/// Columns of a tile of rows of `k`.
fn width(k: usize) -> usize {
    k.next_multiple_of(PAD).clamp(PAD, COLS)
}

/// Distance of two rows of `x`.
fn stride(k: usize) -> usize {
    row_stride(k.next_multiple_of(PAD), COLS)
}

impl Task for Gemm<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Gemm { view, x, m, first, y } = self;
        let (k, stride) = (view.k, stride(view.k));
        let rows = y.len() / m;
        let width = width(k);
        let mut tile = Buffer::new(rows.next_multiple_of(NR) * width, 0.0f32);
        let mut sums = vec![s.splat(0.0); rows.next_multiple_of(NR) * m];
        for col in (0..k).step_by(COLS) {
            let cols = COLS.min(k - col);
            let padded = cols.next_multiple_of(PAD);
            for (i, tile) in tile.chunks_exact_mut(width).take(rows).enumerate() {
                view.decode(s, first + i, col, &mut tile[..cols]);
                tile[cols..padded].fill(0.0);
            }
            let part = Part { tile: &tile, width, cols: padded, stride, m };
            let mut i = 0;
            while i < m {
                let (x, sums) = (&x[i * stride + col..], &mut sums[i..]);
                i += match m - i {
                    MR.. => part.multiply::<S, MR>(s, x, sums),
                    4.. => part.multiply::<S, 4>(s, x, sums),
                    2.. => part.multiply::<S, 2>(s, x, sums),
                    _ => part.multiply::<S, 1>(s, x, sums),
                };
            }
        }
        for (y, sum) in y.iter_mut().zip(&sums) {
            *y = s.sum(*sum);
        }
    }
}

/// A tile of weights.
struct Part<'a> {
    /// `[rows, width]`, of which `cols` count.
    tile: &'a [f32],
    width: usize,
    cols: usize,
    /// Distance of two rows of x.
    stride: usize,
    /// Rows of x, and so the distance of the sums of two rows of w.
    m: usize,
}

impl Part<'_> {
    /// Adds the products of all rows of the tile with the first `R` rows of x to their sums; `R`.
    #[inline(always)]
    fn multiply<S: Simd, const R: usize>(&self, s: S, x: &[f32], sums: &mut [S::F]) -> usize {
        if S::MANY_REGISTERS {
            self.rows::<S, R, NR>(s, x, sums);
        } else {
            self.rows::<S, R, { NR / 2 }>(s, x, sums);
        }
        R
    }

    /// The same, `N` rows of the tile at a time.
    #[inline(always)]
    fn rows<S: Simd, const R: usize, const N: usize>(&self, s: S, x: &[f32], sums: &mut [S::F]) {
        let Part { tile, width, cols, stride, m } = *self;
        let x: [&[f32]; R] = std::array::from_fn(|i| &x[i * stride..][..cols]);
        for (group, sums) in tile.chunks_exact(N * width).zip(sums.chunks_mut(N * m)) {
            let w: [&[f32]; N] = std::array::from_fn(|n| &group[n * width..][..cols]);
            let mut acc = [[s.splat(0.0); R]; N];
            for n in 0..N {
                acc[n].copy_from_slice(&sums[n * m..][..R]);
            }
            let mut col = 0;
            while col < cols {
                let w: [S::F; N] = std::array::from_fn(|n| s.load(&w[n][col..]));
                for i in 0..R {
                    let x = s.load(&x[i][col..]);
                    for n in 0..N {
                        acc[n][i] = s.fma(w[n], x, acc[n][i]);
                    }
                }
                col += S::LANES;
            }
            for n in 0..N {
                sums[n * m..][..R].copy_from_slice(&acc[n]);
            }
        }
    }
}
