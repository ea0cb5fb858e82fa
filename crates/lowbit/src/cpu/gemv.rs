//! One row of f32 activations: codes are looked up, multiplied and summed in registers.

use super::decode::{BF16, Bytes, Decode, F16, F32, Ints, Nibbles};
use super::dispatch::Isa;
use super::simd::{Simd, Task};
use super::view::{Aligned, Codes, View};
use crate::DType;

/// Bytes between the codes that are multiplied and those that are asked for: a processor's own prefetching
/// ends with each page.
pub(crate) const AHEAD: usize = 2048;

/// Rows `first..first + y.len()` of `y = w x`: `x: [K]`.
pub(crate) struct Gemv<'a> {
    pub view: &'a View<'a>,
    pub x: &'a [f32],
    pub first: usize,
    pub y: &'a mut [f32],
}

impl Gemv<'_> {
    /// Whether the rows are made of whole blocks of whole vectors.
    pub fn fits(isa: Isa, view: &View<'_>) -> bool {
        rows(view, isa.run(Step)).is_some()
    }
}

/// Rows whose blocks are whole steps, or halves of one.
#[inline(always)]
fn rows<'a>(view: &View<'a>, step: usize) -> Option<Aligned<'a>> {
    let halves =
        || view.aligned(step / 2).filter(|r| r.block_size == step / 2 && view.k % step == 0);
    view.aligned(step).or_else(halves)
}

/// Weights that a decoder yields at once.
struct Step;

impl Task for Step {
    type Output = usize;
    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> usize {
        4 * S::LANES
    }
}

impl Task for Gemv<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Some(rows) = rows(self.view, 4 * S::LANES) else { return };
        match &self.view.codes {
            Codes::Nibbles { table, low_first: false } => {
                self.with(s, Nibbles::<S, false>::new(s, table), rows);
            }
            Codes::Nibbles { table, low_first: true } => {
                self.with(s, Nibbles::<S, true>::new(s, table), rows);
            }
            Codes::Bytes(table) => self.with(s, Bytes(table), rows),
            Codes::Ints => self.with(s, Ints, rows),
            Codes::Dense(DType::F32) => self.with(s, F32, rows),
            Codes::Dense(DType::F16) => self.with(s, F16, rows),
            Codes::Dense(DType::BF16) => self.with(s, BF16, rows),
            Codes::Groups(_) | Codes::Apart { .. } | Codes::Other(_) => {}
        }
    }
}

impl Gemv<'_> {
    #[inline(always)]
    fn with<S: Simd, D: Decode<S>>(self, s: S, d: D, rows: Aligned<'_>) {
        // Where a block is a few steps, the loop over them is unrolled: the usual block of 64.
        match rows.block_size / (4 * S::LANES) {
            0 => self.halves(s, d, rows),
            1 => self.unrolled::<S, D, 1>(s, d, rows),
            2 => self.unrolled::<S, D, 2>(s, d, rows),
            4 => self.unrolled::<S, D, 4>(s, d, rows),
            _ => self.looped(s, d, rows),
        }
    }

    /// Blocks of `STEPS` steps.
    #[inline(always)]
    fn unrolled<S: Simd, D: Decode<S>, const STEPS: usize>(self, s: S, d: D, rows: Aligned<'_>) {
        let Gemv { view, x, first, y } = self;
        let unit = view.blocks.map_or(1.0, |b| b.unit);
        let (step, bytes) = (4 * S::LANES, 4 * S::LANES * D::BITS / 8);
        let mut buffer = Vec::new();
        for (i, y) in y.iter_mut().enumerate() {
            let codes = rows.row(first + i).chunks_exact(STEPS * bytes);
            let scales = rows.scales(first + i, &mut buffer);
            let mut total = s.splat(0.0);
            for ((codes, x), scale) in codes.zip(x.chunks_exact(STEPS * step)).zip(scales) {
                s.prefetch(codes, AHEAD);
                let mut sum = dot(s, d.four(s, codes), x);
                for j in 1..STEPS {
                    s.prefetch(codes, j * bytes + AHEAD);
                    sum = s.add(sum, dot(s, d.four(s, &codes[j * bytes..]), &x[j * step..]));
                }
                total = s.fma(sum, s.splat(*scale), total);
            }
            *y = s.sum(total) * unit;
        }
    }

    /// Two blocks a step.
    #[inline(always)]
    fn halves<S: Simd, D: Decode<S>>(self, s: S, d: D, rows: Aligned<'_>) {
        let Gemv { view, x, first, y } = self;
        let unit = view.blocks.map_or(1.0, |b| b.unit);
        let step = 4 * S::LANES;
        let mut buffer = Vec::new();
        for (i, y) in y.iter_mut().enumerate() {
            let codes = rows.row(first + i).chunks_exact(2 * rows.block_bytes);
            let scales = rows.scales(first + i, &mut buffer).chunks_exact(2);
            let mut totals = [s.splat(0.0); 2];
            for ((codes, x), scales) in codes.zip(x.chunks_exact(step)).zip(scales) {
                s.prefetch(codes, AHEAD);
                let w = d.four(s, codes);
                for (half, total) in totals.iter_mut().enumerate() {
                    let x = &x[2 * half * S::LANES..];
                    let sum = s.mul(w[2 * half], s.load(x));
                    let sum = s.fma(w[2 * half + 1], s.load(&x[S::LANES..]), sum);
                    *total = s.fma(sum, s.splat(scales[half]), *total);
                }
            }
            *y = s.sum(s.add(totals[0], totals[1])) * unit;
        }
    }

    /// Blocks of any number of steps.
    #[inline(always)]
    fn looped<S: Simd, D: Decode<S>>(self, s: S, d: D, rows: Aligned<'_>) {
        let Gemv { view, x, first, y } = self;
        let unit = view.blocks.map_or(1.0, |b| b.unit);
        let (step, bytes) = (4 * S::LANES, 4 * S::LANES * D::BITS / 8);
        let zero = s.splat(0.0);
        let mut buffer = Vec::new();
        for (i, y) in y.iter_mut().enumerate() {
            let codes = rows.row(first + i).chunks_exact(rows.block_bytes);
            let scales = rows.scales(first + i, &mut buffer);
            let mut total = zero;
            for ((codes, x), scale) in codes.zip(x.chunks_exact(rows.block_size)).zip(scales) {
                let mut sums = [zero; 4];
                for (codes, x) in codes.chunks_exact(bytes).zip(x.chunks_exact(step)) {
                    s.prefetch(codes, AHEAD);
                    let w = d.four(s, codes);
                    for v in 0..4 {
                        sums[v] = s.fma(w[v], s.load(&x[v * S::LANES..]), sums[v]);
                    }
                }
                let [a, b, c, d] = sums;
                let sum = s.add(s.add(a, b), s.add(c, d));
                total = s.fma(sum, s.splat(*scale), total);
            }
            *y = s.sum(total) * unit;
        }
    }
}

/// Four vectors times `x`, in one.
#[inline(always)]
fn dot<S: Simd>(s: S, w: [S::F; 4], x: &[f32]) -> S::F {
    let even = s.fma(w[1], s.load(&x[S::LANES..]), s.mul(w[0], s.load(x)));
    let x = &x[2 * S::LANES..];
    let odd = s.fma(w[3], s.load(&x[S::LANES..]), s.mul(w[2], s.load(x)));
    s.add(even, odd)
}
