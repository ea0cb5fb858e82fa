//! 16-bit activations on 4-bit weights, in 16-bit integers.
//!
//! The codebook is scaled to 32767, the activations of each 64 columns to 8190; eight products fit
//! an i32, so a step of 64 needs no wider sum. Relative error about 1e-4: less than the rounding
//! of the activations to bf16 or f16 themselves.

use super::dispatch::Isa;
use super::linear::Pool;
use super::simd::{PEAK16, STEP16, Simd, Task};
use super::view::{Aligned, Codes, View};

/// Steps of a tile: 512 columns.
const STEPS: usize = 8;
const COLS: usize = STEPS * STEP16;
/// Rows of activations for which sums are kept.
const BATCH: usize = 64;
/// Rows of activations that share a load of weights.
const MR: usize = 4;

/// Activations and weights, ready for these kernels.
pub(crate) struct Prepared<'a> {
    rows: Aligned<'a>,
    steps: usize,
    table: [i16; 16],
    low_first: bool,
    /// What the integers of a product stand for, but for the scales of blocks and activations.
    unit: f32,
    /// `[M, K]` in the order of a step.
    x: Vec<i16>,
    /// `[M, K / 64]`.
    x_scales: Vec<f32>,
}

/// Rounds the activations `x: [M, K]`; `None` if the weight or an activation does not fit: rows
/// must be whole steps of blocks of 32 or more, all numbers finite.
pub(crate) fn prepare<'a>(
    isa: Isa,
    view: &View<'a>,
    x: &[f32],
    m: usize,
    pool: &Pool,
) -> Option<Prepared<'a>> {
    let Codes::Nibbles { table, low_first } = view.codes else { return None };
    let rows = view.aligned(STEP16 / 2)?;
    if !view.k.is_multiple_of(STEP16) || table.iter().any(|v| !v.is_finite()) {
        return None;
    }
    let peak = table.iter().fold(0.0f32, |peak, v| peak.max(v.abs()));
    let factor = f32::from(i16::MAX) / peak;
    if !factor.is_finite() {
        return None;
    }
    let steps = view.k / STEP16;
    let mut rounded = vec![0i16; m * view.k];
    let mut x_scales = vec![0.0f32; m * steps];
    pool.each(&mut x_scales, steps, |i, scales| {
        isa.run(Magnitudes { x: &x[i * view.k..(i + 1) * view.k], scales });
    });
    if x_scales.iter().any(|s| !s.is_finite()) {
        return None;
    }
    pool.each(&mut rounded, view.k, |i, out| {
        let (x, scales) = (&x[i * view.k..(i + 1) * view.k], &x_scales[i * steps..(i + 1) * steps]);
        isa.run(Round { x, scales, out });
    });
    Some(Prepared {
        rows,
        steps,
        table: table.map(|v| (v * factor).round_ties_even() as i16),
        low_first,
        unit: view.blocks.map_or(1.0, |b| b.unit) / factor,
        x: rounded,
        x_scales,
    })
}

/// The scale of each 64 activations.
struct Magnitudes<'a> {
    x: &'a [f32],
    scales: &'a mut [f32],
}

impl Task for Magnitudes<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (x, scale) in self.x.chunks_exact(STEP16).zip(self.scales) {
            *scale = f32::from_bits(s.max_magnitude_bits(x)) / PEAK16;
        }
    }
}

/// Activations over their scales, in integers.
struct Round<'a> {
    x: &'a [f32],
    scales: &'a [f32],
    out: &'a mut [i16],
}

impl Task for Round<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let steps = self.x.chunks_exact(STEP16).zip(self.scales);
        for ((x, scale), out) in steps.zip(self.out.chunks_exact_mut(STEP16)) {
            // A step of zeros, or of numbers too small to divide by, counts as zeros.
            let factor = 1.0 / scale;
            s.encode_step(x, if factor.is_finite() { factor } else { 0.0 }, out);
        }
    }
}

impl Prepared<'_> {
    /// Codes and scales of the steps of a row, to `f(step, codes, scales)`.
    #[inline(always)]
    fn for_steps<S: Simd>(
        &self,
        s: S,
        row: usize,
        steps: std::ops::Range<usize>,
        buffer: &mut Vec<f32>,
        mut f: impl FnMut(usize, &[u8], S::Scales),
    ) {
        let codes = self.rows.row(row);
        let scales = self.rows.scales(row, buffer);
        let size = self.rows.block_size;
        for step in steps {
            let codes = &codes[step * STEP16 / 2..][..STEP16 / 2];
            let first = scales[step * STEP16 / size];
            let second = scales[(step * STEP16 + STEP16 / 2) / size];
            f(step, codes, s.scales(first, second));
        }
    }
}

/// Rows `first..first + y.len()` of `y = w x` for one row of activations.
pub(crate) struct Gemv16<'a> {
    pub p: &'a Prepared<'a>,
    pub first: usize,
    pub y: &'a mut [f32],
}

impl Task for Gemv16<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        if self.p.low_first { self.with::<S, true>(s) } else { self.with::<S, false>(s) }
    }
}

impl Gemv16<'_> {
    #[inline(always)]
    fn with<S: Simd, const LOW_FIRST: bool>(self, s: S) {
        let Gemv16 { p, first, y } = self;
        let table = s.nibbles16(&p.table);
        let mut buffer = Vec::new();
        for (i, y) in y.iter_mut().enumerate() {
            let mut sum = s.splat(0.0);
            p.for_steps(s, first + i, 0..p.steps, &mut buffer, |step, codes, scales| {
                let w = s.decode_step::<LOW_FIRST>(&table, codes);
                let scales = s.mul_scales(scales, p.x_scales[step]);
                sum = s.dot_step(sum, w, &p.x[step * STEP16..], scales);
            });
            *y = s.sum(sum) * p.unit;
        }
    }
}

/// Rows `first..` of `yᵀ = w xᵀ` for `m` rows of activations: `y: [rows, M]`.
pub(crate) struct Gemm16<'a> {
    pub p: &'a Prepared<'a>,
    pub m: usize,
    pub first: usize,
    pub y: &'a mut [f32],
}

impl Task for Gemm16<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        if self.p.low_first { self.with::<S, true>(s) } else { self.with::<S, false>(s) }
    }
}

impl Gemm16<'_> {
    #[inline(always)]
    fn with<S: Simd, const LOW_FIRST: bool>(self, s: S) {
        let Gemm16 { p, m, first, y } = self;
        let rows = y.len() / m;
        let table = s.nibbles16(&p.table);
        let mut buffer = Vec::new();
        let mut tile = vec![0i16; rows * COLS];
        let mut scales = vec![s.scales(0.0, 0.0); rows * STEPS];
        let mut sums = vec![s.splat(0.0); rows * BATCH];
        for batch in (0..m).step_by(BATCH) {
            let end = (batch + BATCH).min(m);
            sums.fill(s.splat(0.0));
            for from in (0..p.steps).step_by(STEPS) {
                let steps = STEPS.min(p.steps - from);
                for row in 0..rows {
                    let (tile, scales) = (&mut tile[row * COLS..], &mut scales[row * STEPS..]);
                    let range = from..from + steps;
                    p.for_steps(s, first + row, range, &mut buffer, |step, codes, scale| {
                        let w = s.decode_step::<LOW_FIRST>(&table, codes);
                        s.store_step(w, &mut tile[(step - from) * STEP16..]);
                        scales[step - from] = scale;
                    });
                }
                let tile = Tile { w: &tile, scales: &scales, steps };
                let x = |i: usize| Row {
                    x: &p.x[(i * p.steps + from) * STEP16..][..steps * STEP16],
                    scales: &p.x_scales[i * p.steps + from..][..steps],
                };
                let mut i = batch;
                while i + MR <= end {
                    let x: [Row<'_>; MR] = std::array::from_fn(|j| x(i + j));
                    tile.multiply(s, x, &mut sums, i - batch);
                    i += MR;
                }
                for i in i..end {
                    tile.multiply(s, [x(i)], &mut sums, i - batch);
                }
            }
            for (row, y) in y.chunks_exact_mut(m).enumerate() {
                for (i, y) in y[batch..end].iter_mut().enumerate() {
                    *y = s.sum(sums[row * BATCH + i]) * p.unit;
                }
            }
        }
    }
}

/// Decoded weights `[rows, COLS]` and their scales `[rows, STEPS]`.
struct Tile<'a, S: Simd> {
    w: &'a [i16],
    scales: &'a [S::Scales],
    steps: usize,
}

/// A row of activations under a tile.
#[derive(Clone, Copy)]
struct Row<'a> {
    x: &'a [i16],
    scales: &'a [f32],
}

impl<S: Simd> Tile<'_, S> {
    /// Adds the products of all rows of the tile with `R` rows of x to their sums.
    #[inline(always)]
    fn multiply<const R: usize>(&self, s: S, x: [Row<'_>; R], sums: &mut [S::F], at: usize) {
        let rows = self.w.chunks_exact(COLS).zip(self.scales.chunks_exact(STEPS));
        for ((w, scales), sums) in rows.zip(sums.chunks_exact_mut(BATCH)) {
            let mut acc: [S::F; R] = std::array::from_fn(|i| sums[at + i]);
            for step in 0..self.steps {
                let w = s.load_step(&w[step * STEP16..]);
                for i in 0..R {
                    let scales = s.mul_scales(scales[step], x[i].scales[step]);
                    acc[i] = s.dot_step(acc[i], w, &x[i].x[step * STEP16..], scales);
                }
            }
            sums[at..at + R].copy_from_slice(&acc);
        }
    }
}
