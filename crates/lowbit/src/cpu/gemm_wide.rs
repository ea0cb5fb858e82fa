//! Many rows of f32 activations, any weight: rows of weights are decoded once and multiplied with
//! all of them, tile by tile.

use super::buffer::Buffer;
use super::simd::{Simd, Task};
use super::tile::{self, ROWS, multiply};
use super::view::View;

/// Columns of `w` that are decoded together: with the activations that they meet, what the
/// first-level cache holds.
const COLS: usize = 256;

/// Rows `first..` of `yᵀ = w xᵀ`: `x` in [`tile::panels`], `y: [rows, M]`.
pub(crate) struct GemmWide<'a> {
    pub view: &'a View<'a>,
    pub x: &'a [f32],
    pub m: usize,
    pub first: usize,
    pub y: &'a mut [f32],
}

/// Columns of a panel of activations.
pub(crate) struct Width;

impl Task for Width {
    type Output = usize;
    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> usize {
        tile::width::<S>()
    }
}

impl Task for GemmWide<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let GemmWide { view, x, m, first, y } = self;
        let (k, width) = (view.k, tile::width::<S>());
        let rows = y.len() / m;
        let padded = rows.next_multiple_of(ROWS);
        let stride = m.next_multiple_of(width);
        // What is beyond the rows that there are stays zero.
        let mut weights = Buffer::new(padded * COLS, 0.0f32);
        let mut sums = Buffer::new(padded * stride, 0.0f32);
        for col in (0..k).step_by(COLS) {
            let cols = COLS.min(k - col);
            for (i, weights) in weights.chunks_exact_mut(COLS).take(rows).enumerate() {
                view.decode(s, first + i, col, &mut weights[..cols]);
            }
            for (i, panel) in x.chunks_exact(k * width).enumerate() {
                let panel = &panel[col * width..][..cols * width];
                let groups = sums.chunks_exact_mut(ROWS * stride);
                for (weights, sums) in weights.chunks_exact(ROWS * COLS).zip(groups) {
                    let mut a: [&[f32]; ROWS] = [&[]; ROWS];
                    for (a, row) in a.iter_mut().zip(weights.chunks_exact(COLS)) {
                        *a = row;
                    }
                    multiply(s, a, panel, &mut sums[i * width..], stride);
                }
            }
        }
        for (y, sums) in y.chunks_exact_mut(m).zip(sums.chunks_exact(stride)) {
            y.copy_from_slice(&sums[..m]);
        }
    }
}
