//! `y = x wᵀ`: which kernel, over which rows, on how many threads.

use rayon::prelude::*;

use super::byte_tables::{self, LookUp256, LooksUp};
use super::dispatch::Isa;
use super::gemm::Gemm;
use super::gemm_matrix::{self, GemmMatrix, HasMatrices};
use super::gemm_wide::{GemmWide, Width};
use super::gemm16::{self, Gemm16, Gemv16};
use super::gemv::Gemv;
use super::lookup::{self, Sums};
use super::planes::{self, LookUp};
use super::simd::{Simd, Task};
use super::tile;
use super::view::View;
use crate::DType;

/// Multiply-adds below which one thread is faster than several: waking one takes as long.
const PARALLEL_FROM: usize = 1 << 20;

/// Rows of `w` that a thread takes at once: a tile of f32 fits half the first-level cache.
const ROWS: usize = 8;
/// The same for tiles of 16-bit integers.
const ROWS16: usize = 16;
/// The same for one row of activations, which needs no tile.
const ROWS_OF_ONE: usize = 32;
/// The same where there are many rows of `x`; a multiple of a tile's.
const ROWS_WIDE: usize = 8 * tile::ROWS;
/// Rows of activations that are multiplied with all weights before the next are looked at: so many
/// stay in a core's second-level cache, and decoding the weights again for each costs a twentieth.
const BATCH: usize = 72;
/// The same where tiles are wide: a multiple of every width.
const BATCH_WIDE: usize = 96;
/// The same where a machine multiplies matrices; weights are then a small part of what there is to do.
const BATCH_MATRIX: usize = 512;
/// Rows of `w` that a thread then takes at once, if there are enough.
const ROWS_MATRIX: usize = 128;
/// Rows of activations from which on that is faster.
const MATRICES_FROM: usize = 4;
/// Rows of `y` that are transposed together: a cache line of f32.
const LINE: usize = 16;

/// `y = x wᵀ + bias`: `w: [N, K]`, `x: [M, K]`, `bias: [N]`, `y: [M, N]`; the lengths are right.
///
/// With `precision` of 16 bits the activations may be rounded to 16-bit integers, which keeps
/// about 13 bits of the largest of each 64.
pub(crate) fn linear(
    isa: Isa,
    view: &View<'_>,
    x: &[f32],
    bias: Option<&[f32]>,
    y: &mut [f32],
    precision: DType,
) {
    let (n, k) = (view.n, view.k);
    if y.is_empty() {
        return;
    }
    let m = y.len() / n;
    let pool = Pool::for_work(m * n * k);
    // As equal as whole groups of the rows that are multiplied at a time allow.
    let split = precision == DType::F32;
    let (batch, group) = match isa.run(Uses16 { m, split }) {
        true => (BATCH, 4),
        false => (BATCH_WIDE, isa.run(Width)),
    };
    let matrices = m >= MATRICES_FROM && isa.run(HasMatrices);
    let batch = if matrices { BATCH_MATRIX } else { batch };
    let rows = m.div_ceil(m.div_ceil(batch)).next_multiple_of(group);
    let batches = y.chunks_mut(rows * n).enumerate();
    pool.enter(|| {
        for (i, y) in batches {
            let x = &x[i * rows * k..][..y.len() / n * k];
            multiply(isa, view, x, bias, y, precision, matrices, &pool);
        }
    });
}

fn multiply(
    isa: Isa,
    view: &View<'_>,
    x: &[f32],
    bias: Option<&[f32]>,
    y: &mut [f32],
    precision: DType,
    matrices: bool,
    pool: &Pool,
) {
    let (n, k) = (view.n, view.k);
    let m = y.len() / n;
    let split = precision == DType::F32;
    if matrices && let Some(p) = gemm_matrix::prepare(isa, view, x, m, false, precision, pool) {
        let mut yt = vec![0.0; n * m];
        let rows = if n >= 8 * ROWS_MATRIX { ROWS_MATRIX } else { ROWS_MATRIX / 4 };
        pool.rows(&mut yt, m, rows, |first, y| isa.run(GemmMatrix { p: &p, first, y }));
        if !p.failed() {
            return finish(&yt, bias, y, n, pool);
        }
    }
    let sixteen = if isa.run(Uses16 { m, split }) {
        gemm16::prepare(isa, view, x, m, split, pool)
    } else {
        None
    };
    let planes = planes::prepare(isa, view, x, m, split, pool);
    let of_bytes = if planes.is_none() && isa.run(LooksUp) {
        byte_tables::prepare(isa, view, x, m, split, pool)
    } else {
        None
    };
    let looks_up = planes.is_some() || of_bytes.is_some();
    let tables = if looks_up { None } else { lookup::prepare(isa, view, x, m, pool) };
    // yᵀ: [N, M]: rows of w lie together, so that each thread owns its outputs.
    let products = |yt: &mut [f32]| match (&planes, &of_bytes, &sixteen, &tables) {
        (Some(p), ..) => {
            pool.rows(yt, m, planes::ROWS_OF_THREAD, |first, y| isa.run(LookUp { p, first, y }));
        }
        (_, Some(p), ..) => {
            let rows = byte_tables::ROWS_OF_THREAD;
            pool.rows(yt, m, rows, |first, y| isa.run(LookUp256 { p, first, y }));
        }
        (.., Some(p), _) if m == 1 => {
            pool.rows(yt, m, ROWS_OF_ONE, |first, y| isa.run(Gemv16 { p, first, y }));
        }
        (.., Some(p), _) => {
            pool.rows(yt, m, ROWS16, |first, y| isa.run(Gemm16 { p, m, first, y }));
        }
        (.., Some(tables)) => {
            pool.rows(yt, m, tables.rows(), |first, y| isa.run(Sums { tables, first, y }));
        }
        _ if m == 1 && Gemv::fits(isa, view) => {
            pool.rows(yt, m, ROWS, |first, y| isa.run(Gemv { view, x, first, y }));
        }
        _ if k > 0 && fills(m, isa.run(Width)) => {
            let x = &tile::panels(x, m, k, isa.run(Width), pool);
            pool.rows(yt, m, ROWS_WIDE, |first, y| {
                isa.run(GemmWide { view, x, m, first, y });
            });
        }
        _ => {
            let x = &Gemm::pad(x, m, k);
            pool.rows(yt, m, ROWS, |first, y| isa.run(Gemm { view, x, m, first, y }));
        }
    };
    if m == 1 {
        products(y);
        return add(bias, y);
    }
    let mut yt = vec![0.0; n * m];
    products(&mut yt);
    finish(&yt, bias, y, n, pool);
}

/// `y: [M, N]` from `yt: [N, M]`, and the bias added.
fn finish(yt: &[f32], bias: Option<&[f32]>, y: &mut [f32], n: usize, pool: &Pool) {
    let m = y.len() / n;
    pool.each(y, LINE * n, n * m, |i, y| {
        for (j, yt) in yt.chunks_exact(m).enumerate() {
            for (row, v) in y.chunks_exact_mut(n).zip(&yt[i * LINE..]) {
                row[j] = *v;
            }
        }
        add(bias, y);
    });
}

fn add(bias: Option<&[f32]>, y: &mut [f32]) {
    if let Some(bias) = bias {
        for row in y.chunks_exact_mut(bias.len()) {
            for (y, b) in row.iter_mut().zip(bias) {
                *y += b;
            }
        }
    }
}

/// Whether products are taken in 16-bit integers where they can be: the one place that weighs the
/// kernels against each other, by what `bench linear` showed on each instruction set.
struct Uses16 {
    m: usize,
    /// f32 activations, two integers each.
    split: bool,
}

impl Task for Uses16 {
    type Output = bool;
    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> bool {
        if self.split { S::SPLITS_F32 && self.m == 1 } else { self.m <= S::ROWS16 }
    }
}

/// Whether rows of `x` fill several panels of that width, and at least four fifths of the last of them
/// all: else what goes without saying elsewhere, decoding and missing rows, weighs too much.
fn fills(m: usize, width: usize) -> bool {
    m >= 2 * width && m.next_multiple_of(width) * 4 <= m * 5
}

/// This thread alone, or all of them.
pub(crate) struct Pool {
    serial: bool,
}

impl Pool {
    /// For so many multiply-adds.
    pub fn for_work(multiply_adds: usize) -> Self {
        Pool { serial: multiply_adds < PARALLEL_FROM }
    }

    /// Whether this thread works alone.
    pub fn is_serial(&self) -> bool {
        self.serial
    }

    /// Runs all steps of an operation: one way into the thread pool instead of one for each.
    pub fn enter(&self, steps: impl FnOnce() + Send) {
        if self.serial { steps() } else { rayon::scope(|_| steps()) }
    }

    /// `f(index, chunk)` for all chunks of that length, which read or write `work` numbers.
    pub fn each<T: Send>(
        &self,
        out: &mut [T],
        len: usize,
        work: usize,
        f: impl Fn(usize, &mut [T]) + Sync + Send,
    ) {
        if self.serial || work < PARALLEL_FROM / 16 {
            out.chunks_mut(len).enumerate().for_each(|(i, part)| f(i, part));
        } else {
            out.par_chunks_mut(len).enumerate().for_each(|(i, part)| f(i, part));
        }
    }

    /// `f(first row, y)` for blocks of `rows` rows of `yt: [N, M]`.
    fn rows(
        &self,
        yt: &mut [f32],
        m: usize,
        rows: usize,
        f: impl Fn(usize, &mut [f32]) + Sync + Send,
    ) {
        self.each(yt, rows * m, PARALLEL_FROM, |i, y| f(i * rows, y));
    }
}
