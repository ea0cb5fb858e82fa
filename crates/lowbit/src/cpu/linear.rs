//! `y = x wᵀ`: which kernel, over which rows, on how many threads.

use super::byte_tables::{self, LookUp256, LooksUp};
use super::convert::narrow;
use super::dispatch::Isa;
use super::dots::{self, DotRows};
use super::gemm::Gemm;
use super::gemm_few::{self, GemmFew};
use super::gemm_matrix;
use super::gemm_pairs;
use super::gemm_wide::{GemmWide, Width};
use super::gemm16::{self, Gemm16, Gemv16};
use super::gemv::Gemv;
use super::lookup::{self, Sums};
use super::planes::{self, LookUp};
use super::scales;
use super::simd::matrix::FEW_ROWS;
use super::simd::{Simd, Task};
use super::stacked;
use super::tile;
use super::to_f32;
use super::view::View;
use crate::{DType, Element, threads};

/// Multiply-adds below which one thread is faster than several: waking one takes as long.
const PARALLEL_FROM: usize = 1 << 20;

/// Rows of `w` that a thread takes at once.
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
/// The same where a machine multiplies matrices or pairs, which read them once for many rows of weights.
const BATCH_LARGE: usize = 512;
/// Rows of `y` that are transposed together: a cache line of f32.
const LINE: usize = 16;

/// `y = x wᵀ + bias`: `w: [N, K]`, `x: [M, K]`, `bias: [N]`, `y: [M, N]`; the lengths are right.
///
/// With `precision` of 16 bits the activations may be rounded to 16-bit integers, which keeps
/// about 14 bits of the largest of each 64.
pub(crate) fn linear<T: Element>(
    isa: Isa,
    view: &View<'_>,
    x: &[T],
    bias: Option<&[f32]>,
    y: &mut [T],
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
    let large = isa.run(UsesMatrices { m, split }) || isa.run(UsesPairs { m, split });
    let batch = if large { BATCH_LARGE } else { batch };
    let rows = m.div_ceil(m.div_ceil(batch)).next_multiple_of(group);
    let batches = y.chunks_mut(rows * n).enumerate();
    pool.enter(|| {
        scales::restored(isa, view, &pool, |view| {
            for (i, y) in batches {
                let x = &x[i * rows * k..][..y.len() / n * k];
                multiply(isa, view, x, bias, y, precision, &pool);
            }
        });
    });
}

fn multiply<T: Element>(
    isa: Isa,
    view: &View<'_>,
    x: &[T],
    bias: Option<&[f32]>,
    y: &mut [T],
    precision: DType,
    pool: &Pool,
) {
    let (n, k) = (view.n, view.k);
    let m = y.len() / n;
    let split = precision == DType::F32;
    // yᵀ: [N, M]: rows of w lie together, so that each thread owns its outputs.
    let transposed = || vec![0.0; n * m];
    if isa.run(UsesMatricesForFew { m, split })
        && let Some(p) = gemm_few::prepare(isa, view, x, m, precision)
    {
        let mut yt = transposed();
        pool.rows(&mut yt, m, FEW_ROWS, |first, y| isa.run(GemmFew { p: &p, first, y }));
        return finish(isa, &yt, bias, y, n, pool);
    }
    if isa.run(UsesMatrices { m, split })
        && let Some(p) = gemm_matrix::prepare(isa, view, x, m, false, precision, pool)
        && p.multiply(isa, bias, y, pool)
    {
        return;
    }
    let mut yt = transposed();
    if isa.run(UsesPairs { m, split })
        && let Some(p) = gemm_pairs::prepare(isa, view, x, m, false, pool)
        && p.multiply(isa, &mut yt, pool)
    {
        return finish(isa, &yt, bias, y, n, pool);
    }
    let x = &*to_f32(x);
    if !split
        && isa.run(LooksUp)
        && let Some(p) = dots::prepare(isa, view, x)
    {
        pool.rows(&mut yt, m, dots::ROWS_OF_THREAD, |first, y| {
            isa.run(DotRows { p: &p, first, y })
        });
        return finish(isa, &yt, bias, y, n, pool);
    }
    if let Some(p) = stacked::prepare(isa, view, x, split) {
        stacked::multiply(isa, &p, &mut yt, pool);
        return finish(isa, &yt, bias, y, n, pool);
    }
    let sixteen = if isa.run(Uses16 { m, split }) {
        gemm16::prepare(isa, view, x, m, split, pool)
    } else {
        None
    };
    // Digits that fit the smaller tables are looked up in those: more of them at a time, if twice as many.
    let planes = planes::prepare(isa, view, x, m, split, pool);
    let of_bytes = if planes.is_none() && isa.run(LooksUp) {
        byte_tables::prepare(isa, view, x, m, split)
    } else {
        None
    };
    let looks_up = planes.is_some() || of_bytes.is_some();
    let tables = if looks_up { None } else { lookup::prepare(isa, view, x, m, pool) };
    let yt = &mut yt[..];
    match (&planes, &of_bytes, &sixteen, &tables) {
        (Some(p), ..) => {
            pool.rows(yt, m, planes::ROWS_OF_THREAD, |first, y| isa.run(LookUp { p, first, y }));
        }
        (_, Some(p), ..) => {
            pool.rows(yt, m, p.rows_of_thread(), |first, y| isa.run(LookUp256 { p, first, y }));
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
            let (x, rows) = (&Gemm::pad(x, m, k), Gemm::rows(m, k));
            pool.rows(yt, m, rows, |first, y| isa.run(Gemm { view, x, m, first, y }));
        }
    }
    finish(isa, yt, bias, y, n, pool);
}

/// `y: [M, N]` from `yt: [N, M]`, the bias added.
pub(crate) fn finish<T: Element>(
    isa: Isa,
    yt: &[f32],
    bias: Option<&[f32]>,
    y: &mut [T],
    n: usize,
    pool: &Pool,
) {
    let m = y.len() / n;
    // All threads have some of a few rows.
    let rows = LINE.min(m.div_ceil(threads::count()));
    pool.each(y, rows * n, n * m, |i, y| {
        isa.run(Finish { yt, m, first: i * rows, bias, n, y });
    });
}

/// Rows `first..` of `y: [rows, N]`, at most `LINE` of them.
struct Finish<'a, T> {
    yt: &'a [f32],
    m: usize,
    first: usize,
    bias: Option<&'a [f32]>,
    n: usize,
    y: &'a mut [T],
}

impl<T: Element> Task for Finish<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        /// Columns at a time. Those of all rows go by way of memory of their own, as rows of `y` may
        /// lie so that all fall on the same lines of a cache.
        const COLS: usize = 64;
        let Finish { yt, m, first, bias, n, y } = self;
        let rows = y.len() / n;
        let mut tile = [0.0; LINE * COLS];
        for col in (0..n).step_by(COLS) {
            let cols = COLS.min(n - col);
            for j in 0..cols {
                let yt = &yt[(col + j) * m + first..][..rows];
                // Lines lie M apart, further than a prefetcher follows.
                s.prefetch(bytemuck::cast_slice(yt), COLS * m * size_of::<f32>());
                for (i, v) in yt.iter().enumerate() {
                    tile[i * COLS + j] = *v;
                }
            }
            for (tile, y) in tile.chunks_exact_mut(COLS).zip(y.chunks_exact_mut(n)) {
                let tile = &mut tile[..cols];
                if let Some(bias) = bias {
                    for (v, b) in tile.iter_mut().zip(&bias[col..]) {
                        *v += b;
                    }
                }
                narrow(s, tile, &mut y[col..col + cols]);
            }
        }
    }
}

/// Whether products are those of matrices, where a machine multiplies them. This and the next are the one
/// place that weighs the kernels against each other, by what `bench linear` showed on each instruction set.
struct UsesMatrices {
    m: usize,
    /// f32 activations, which take six products of parts for one.
    split: bool,
}

impl Task for UsesMatrices {
    type Output = bool;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> bool {
        s.matrix().is_some() && !self.split && self.m >= 13
    }
}

/// Whether products are those of matrices and unscaled values, where a machine multiplies them and codes have
/// four bits.
struct UsesMatricesForFew {
    m: usize,
    /// f32 activations, and values, in three parts.
    split: bool,
}

impl Task for UsesMatricesForFew {
    type Output = bool;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> bool {
        let from = if self.split { 12 } else { 6 };
        s.matrix().is_some() && (from..=gemm_few::MOST).contains(&self.m)
    }
}

/// Whether products are those of pairs of 16-bit integers. The transposed product asks this, too.
pub(crate) struct UsesPairs {
    pub m: usize,
    /// f32 activations, which would take three products for one.
    pub split: bool,
}

impl Task for UsesPairs {
    type Output = bool;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> bool {
        s.matrix().is_none() && !self.split && self.m >= S::PAIRS_FROM
    }
}

/// Whether products are taken in 16-bit integers where they can be.
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

    /// Runs all steps of an operation: as `threads::enter` does.
    pub fn enter(&self, steps: impl FnOnce() + Send) {
        if self.serial { steps() } else { threads::enter(steps) }
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
            threads::for_each(out.chunks_mut(len).enumerate(), |(i, part)| f(i, part));
        }
    }

    /// `f(first row, y)` for blocks of `rows` rows of `yt: [N, M]`.
    pub fn rows(
        &self,
        yt: &mut [f32],
        m: usize,
        rows: usize,
        f: impl Fn(usize, &mut [f32]) + Sync + Send,
    ) {
        self.each(yt, rows * m, PARALLEL_FROM, |i, y| f(i * rows, y));
    }
}
