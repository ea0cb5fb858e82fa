//! `dx = dy w`: the gradient of a linear layer's input, without a dense copy of `w`.

use super::buffer::Buffer;
use super::columns;
use super::dispatch::Isa;
use super::gemm_matrix::{self, HasMatrices};
use super::gemm_pairs;
use super::linear::{self, Pool, UsesPairs};
use super::scales;
use super::simd::{Simd, Task};
use super::tile;
use super::to_f32;
use super::view::View;
use crate::{DType, Element};

/// Columns that a thread takes at once, a multiple of every tile's.
const COLS: usize = columns::MOST;
/// Rows of `w` that are decoded together.
const DEPTH: usize = 128;

/// Rows of activations of 16 bits from which on matrices are faster where a machine multiplies them.
const MATRICES_FROM: usize = 24;

/// `dy: [M, N]`, `dx: [M, K]`; the lengths are right. `precision` is what `dy` and `dx` stand for.
pub(crate) fn linear_transposed<T: Element>(
    isa: Isa,
    view: &View<'_>,
    dy: &[T],
    dx: &mut [T],
    precision: DType,
) {
    if dx.is_empty() {
        return;
    }
    let pool = Pool::for_work(dx.len() * view.n);
    pool.enter(|| {
        scales::restored(isa, view, &pool, |view| {
            multiply(isa, view, dy, dx, precision, &pool);
        });
    });
}

fn multiply<T: Element>(
    isa: Isa,
    view: &View<'_>,
    dy: &[T],
    dx: &mut [T],
    precision: DType,
    pool: &Pool,
) {
    let (n, k) = (view.n, view.k);
    let m = dx.len() / k;
    if isa.run(UsesPairs { m, split: precision == DType::F32 })
        && let Some(p) = gemm_pairs::prepare(isa, view, dy, m, true, pool)
    {
        let mut dxt = vec![0.0; k * m];
        if p.multiply(isa, &mut dxt, pool) {
            return linear::finish(isa, &dxt, None, dx, k, pool);
        }
    }
    if precision != DType::F32
        && m >= MATRICES_FROM
        && isa.run(HasMatrices)
        && let Some(p) = gemm_matrix::prepare(isa, view, dy, m, true, precision, pool)
        && p.multiply(isa, None, dx, pool)
    {
        return;
    }
    let dy = &*to_f32(dy);
    pool.each(&mut columns::cut(dx, k, COLS), m, m * n * k, |i, dx| {
        isa.run(Part { view, dy, col: i * COLS, dx });
    });
}

/// Columns `col..` of dx, at most `COLS`, by its rows.
struct Part<'a, 'y, T> {
    view: &'a View<'a>,
    dy: &'a [f32],
    col: usize,
    dx: &'a mut [&'y mut [T]],
}

impl<T: Element> Task for Part<'_, '_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Part { view, dy, col, dx } = self;
        let (n, width) = (view.n, tile::width::<S>());
        let cols = COLS.min(view.k - col);
        let mut row = [0.0f32; COLS];
        // [COLS / width, DEPTH, width]: what a tile reads lies together.
        let mut panels = Buffer::new(DEPTH * COLS, 0.0f32);
        let mut sums = Buffer::new(dx.len() * COLS, 0.0f32);
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
                tile::rows(s, &dy[first..], n, panel, width, &mut sums[i * width..], COLS);
            }
        }
        columns::write(s, &sums, COLS, None, dx);
    }
}
