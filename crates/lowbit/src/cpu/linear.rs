//! `y = x wᵀ`: which kernel, over which rows, on how many threads.

use std::borrow::Cow;

use rayon::prelude::*;

use super::dispatch::Isa;
use super::gemm::Gemm;
use super::gemm16::{self, Gemm16, Gemv16};
use super::gemv::Gemv;
use super::simd::{Simd, Task};
use super::view::View;
use crate::DType;

/// Multiply-adds below which one thread is faster than several: waking one takes as long.
const PARALLEL_FROM: usize = 1 << 20;

/// Rows of `w` that a thread takes at once.
pub(crate) const ROWS: usize = 32;

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
    pool.enter(|| multiply(isa, view, x, bias, y, precision, &pool));
}

fn multiply(
    isa: Isa,
    view: &View<'_>,
    x: &[f32],
    bias: Option<&[f32]>,
    y: &mut [f32],
    precision: DType,
    pool: &Pool,
) {
    let (n, k) = (view.n, view.k);
    let m = y.len() / n;
    let sixteen = match precision {
        DType::F32 if m == 1 && isa.run(SplitsF32) => gemm16::prepare(isa, view, x, m, true, pool),
        DType::F32 => None,
        DType::F16 | DType::BF16 => gemm16::prepare(isa, view, x, m, false, pool),
    };
    // yᵀ: [N, M]: rows of w lie together, so that each thread owns its outputs.
    let products = |yt: &mut [f32]| match &sixteen {
        Some(p) if m == 1 => pool.rows(yt, m, |first, y| isa.run(Gemv16 { p, first, y })),
        Some(p) => pool.rows(yt, m, |first, y| isa.run(Gemm16 { p, m, first, y })),
        None if m == 1 && Gemv::fits(isa, view) => {
            pool.rows(yt, m, |first, y| isa.run(Gemv { view, x, first, y }));
        }
        None => {
            let x: &[f32] = &Gemm::pad(x, m, k);
            pool.rows(yt, m, |first, y| isa.run(Gemm { view, x, m, first, y }));
        }
    };
    if m == 1 {
        products(y);
    } else {
        let mut yt = vec![0.0; n * m];
        products(&mut yt);
        pool.each(y, n, n * m, |i, row| {
            for (j, y) in row.iter_mut().enumerate() {
                *y = yt[j * m + i];
            }
        });
    }
    if let Some(bias) = bias {
        for row in y.chunks_exact_mut(n) {
            for (y, b) in row.iter_mut().zip(bias) {
                *y += b;
            }
        }
    }
}

struct SplitsF32;

impl Task for SplitsF32 {
    type Output = bool;
    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> bool {
        S::SPLITS_F32
    }
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

    /// `f(first row, y)` for blocks of rows of `yt: [N, M]`.
    fn rows(&self, yt: &mut [f32], m: usize, f: impl Fn(usize, &mut [f32]) + Sync + Send) {
        self.each(yt, ROWS * m, PARALLEL_FROM, |i, y| f(i * ROWS, y));
    }
}

/// `x: [M, K]` with rows padded by zeros to a multiple of `step`; itself if they are.
pub(crate) fn pad_rows(x: &[f32], m: usize, k: usize, step: usize) -> Cow<'_, [f32]> {
    let padded = k.next_multiple_of(step);
    if padded == k {
        return Cow::Borrowed(x);
    }
    let mut out = vec![0.0; m * padded];
    if k > 0 {
        for (out, x) in out.chunks_exact_mut(padded).zip(x.chunks_exact(k)) {
            out[..k].copy_from_slice(x);
        }
    }
    Cow::Owned(out)
}
