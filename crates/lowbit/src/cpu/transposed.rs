//! `dx = dy w`: the gradient of a linear layer's input, without a dense copy of `w`.

use super::buffer::Buffer;
use super::convert::narrow;
use super::dispatch::Isa;
use super::gemm_matrix::{self, HasMatrices};
use super::gemm_pairs;
use super::linear::{self, Pool, UsesPairs};
use super::scales;
use super::simd::matrix::BLOCK;
use super::simd::{Simd, Task};
use super::tile::{self, ROWS};
use super::to_f32;
use super::view::View;
use crate::{DType, Element};

/// Columns that a thread takes at once, a multiple of every tile's.
const COLS: usize = 128;
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
    let use_matrices = precision != DType::F32 && m >= MATRICES_FROM && isa.run(HasMatrices);
    // [K / COLS, M, COLS]: each thread owns its columns. Matrices fill whole blocks of rows.
    let mut len = if use_matrices { m.next_multiple_of(BLOCK) } else { m } * COLS;
    let mut parts = Buffer::new(k.div_ceil(COLS) * len, 0.0f32);
    let prepared = use_matrices
        .then(|| gemm_matrix::prepare(isa, view, dy, m, true, precision, pool))
        .flatten();
    let is_done = prepared.is_some_and(|p| {
        pool.each(&mut parts, len, m * n * k, |i, dx| {
            isa.run(gemm_matrix::Columns::<COLS> { p: &p, col: i * COLS, dx });
        });
        !p.failed()
    });
    if !is_done {
        let dy = &*to_f32(dy);
        len = m * COLS;
        let parts = &mut parts[..k.div_ceil(COLS) * len];
        if use_matrices {
            parts.fill(0.0);
        }
        pool.each(parts, len, m * n * k, |i, dx| {
            isa.run(Columns { view, dy, col: i * COLS, dx });
        });
    }
    pool.each(dx, k, m * k, |i, row| {
        isa.run(Row { parts: &parts, len, at: i * COLS, row });
    });
}

/// A row of dx from its parts, which lie `len` apart.
struct Row<'a, T> {
    parts: &'a [f32],
    len: usize,
    at: usize,
    row: &'a mut [T],
}

impl<T: Element> Task for Row<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (i, out) in self.row.chunks_mut(COLS).enumerate() {
            narrow(s, &self.parts[i * self.len + self.at..], out);
        }
    }
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
        tile::multiply(s, a, panel, &mut dx[i * COLS..], COLS);
        i += R;
    }
    i
}
