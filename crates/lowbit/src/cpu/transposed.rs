//! `dx = dy w`: the gradient of a linear layer's input, without a dense copy of `w`.

use super::buffer::Buffer;
use super::dispatch::Isa;
use super::gemm_matrix::{self, HasMatrices};
use super::linear::Pool;
use super::simd::{Simd, Task};
use super::tile::{self, ROWS, multiply};
use super::view::View;
use crate::DType;

/// Columns that a thread takes at once, a multiple of every tile's.
const COLS: usize = 128;
/// Rows of `w` that are decoded together.
const DEPTH: usize = 128;

/// Rows of activations from which on matrices are faster where a machine multiplies them.
const MATRICES_FROM: usize = 4;

/// `dy: [M, N]`, which are numbers of that type, `dx: [M, K]`; the lengths are right.
pub(crate) fn linear_transposed(
    isa: Isa,
    view: &View<'_>,
    dy: &[f32],
    dx: &mut [f32],
    precision: DType,
) {
    let (n, k) = (view.n, view.k);
    if dx.is_empty() {
        return;
    }
    let m = dx.len() / k;
    let pool = Pool::for_work(m * n * k);
    pool.enter(|| {
        if m >= MATRICES_FROM
            && isa.run(HasMatrices)
            && let Some(p) = gemm_matrix::prepare(isa, view, dy, m, true, precision, &pool)
            && gemm_matrix::linear_transposed(isa, &p, dx, &pool)
        {
            return;
        }
        // [K / COLS, M, COLS]: each thread owns its columns.
        let mut parts = vec![0.0f32; k.div_ceil(COLS) * m * COLS];
        pool.each(&mut parts, m * COLS, m * n * k, |i, dx| {
            isa.run(Columns { view, dy, col: i * COLS, dx });
        });
        pool.each(dx, k, m * k, |i, row| {
            for (part, out) in row.chunks_mut(COLS).enumerate() {
                out.copy_from_slice(&parts[(part * m + i) * COLS..][..out.len()]);
            }
        });
    });
}

/// Columns `col..col + COLS` of dx: `[M, COLS]`.
struct Columns<'a> {
    view: &'a View<'a>,
    dy: &'a [f32],
    col: usize,
    dx: &'a mut [f32],
}

impl Task for Columns<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Columns { view, dy, col, dx } = self;
        let (n, width) = (view.n, tile::width::<S>());
        let cols = COLS.min(view.k - col);
        let mut row = [0.0f32; COLS];
        // [COLS / width, DEPTH, width]: what a tile reads lies together.
        let mut panels = Buffer::new(DEPTH * COLS, 0.0f32);
        for first in (0..n).step_by(DEPTH) {
            let depth = DEPTH.min(n - first);
            for i in 0..depth {
                view.decode(s, first + i, col, &mut row[..cols]);
                let panels = panels.chunks_exact_mut(DEPTH * width);
                for (panel, row) in panels.zip(row.chunks_exact(width)) {
                    panel[i * width..][..width].copy_from_slice(row);
                }
            }
            for (i, panel) in panels.chunks_exact(DEPTH * width).enumerate() {
                if i * width >= cols {
                    break;
                }
                let panel = &panel[..depth * width];
                let dy = &dy[first..];
                let mut rest = rows::<S, ROWS>(s, dy, n, panel, &mut dx[i * width..], 0);
                rest = rows::<S, 2>(s, dy, n, panel, &mut dx[i * width..], rest);
                rows::<S, 1>(s, dy, n, panel, &mut dx[i * width..], rest);
            }
        }
    }
}

/// Adds `dy panel` to `dx`, `R` rows at a time from row `from` on, as long as there are as many;
/// answers with the first row that is left.
#[inline(always)]
fn rows<S: Simd, const R: usize>(
    s: S,
    dy: &[f32],
    n: usize,
    panel: &[f32],
    dx: &mut [f32],
    from: usize,
) -> usize {
    let m = dx.len().div_ceil(COLS);
    let mut i = from;
    while i + R <= m {
        let mut a: [&[f32]; R] = [&[]; R];
        for (j, a) in a.iter_mut().enumerate() {
            *a = &dy[(i + j) * n..];
        }
        multiply(s, a, panel, &mut dx[i * COLS..], COLS);
        i += R;
    }
    i
}
