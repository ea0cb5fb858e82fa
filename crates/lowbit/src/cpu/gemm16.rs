//! 4-bit weights in 16-bit integers.
//!
//! The codebook and the activations of each 64 columns are scaled so that eight products fit an i32: a step of
//! 64 needs no wider sum. Relative error about 7e-5: less than the rounding of the activations to bf16 or f16
//! themselves.
//!
//! For f32 activations, what either rounding leaves over is rounded to a second integer, and
//! three products (high high, high low, low high) make one with an error of about 1e-8.

use super::buffer::{Buffer, row_stride};
use super::dispatch::Isa;
use super::gemv;
use super::linear::Pool;
use super::simd::{STEP16, Simd, Task};
use super::view::{Aligned, Codes, View};

/// Steps of a tile: 512 columns. Scales are kept in groups of so many.
const STEPS: usize = 8;
const COLS: usize = STEPS * STEP16;
/// Bytes of a step of codes.
const BYTES: usize = STEP16 / 2;
/// Largest magnitudes of an activation and of a weight: eight products of those fit an i32. An
/// activation has the finer unit, so that one beside another that is 40,000 times as large does not vanish.
const PEAK_X: f32 = 24570.0;
const PEAK_W: f32 = 10922.0;
const _: () = assert!(8.0 * PEAK_X as f64 * (PEAK_W as f64) < i32::MAX as f64);
/// Units of the second integer in one of the first, for activations and for weights.
const LOW_X: f32 = 2.0 * PEAK_X;
const LOW_W: f32 = 2.0 * PEAK_W;

/// Activations and weights, ready for these kernels.
pub(crate) struct Prepared<'a> {
    rows: Aligned<'a>,
    steps: usize,
    /// Blocks are `1 << shift` steps; `None`: half a step.
    block_shift: Option<u32>,
    table: [i16; 16],
    /// What is left over of the codebook, in units of `1 / LOW_W`.
    table_low: [i16; 16],
    low_first: bool,
    /// What the integers of a product stand for, but for the scales of blocks and activations.
    unit: f32,
    /// `[M, stride]` in the order of a step.
    x: Buffer<i16>,
    stride: usize,
    /// What is left over of them, in units of `1 / LOW_X`; empty where 16 bits are enough.
    x_low: Buffer<i16>,
    /// `[M, K / 64]`, rows padded with zeros to whole tiles.
    x_scales: Vec<f32>,
}

/// Rounds the activations `x: [M, K]`, with `split` to two integers each; `None` if the weight or
/// an activation does not fit: rows must be whole steps of blocks of 32 or a power of two from
/// 64, all numbers finite.
pub(crate) fn prepare<'a>(
    isa: Isa,
    view: &View<'a>,
    x: &[f32],
    m: usize,
    split: bool,
    pool: &Pool,
) -> Option<Prepared<'a>> {
    let Codes::Nibbles { table, low_first } = &view.codes else { return None };
    let (table, low_first) = (*table, *low_first);
    let rows = view.aligned(STEP16 / 2)?;
    let block_shift = match rows.block_size {
        size if size == STEP16 / 2 => None,
        size if size >= STEP16 && size.is_power_of_two() => Some((size / STEP16).ilog2()),
        _ => return None,
    };
    let peak = table.iter().fold(0.0f32, |peak, v| peak.max(v.abs()));
    let factor = PEAK_W / peak;
    let finite = factor.is_finite() && table.iter().all(|v| v.is_finite());
    if !finite || view.k % STEP16 != 0 {
        return None;
    }
    let steps = view.k / STEP16;
    let padded = steps.next_multiple_of(STEPS);
    let mut x_scales = vec![0.0f32; m * padded];
    let stride = row_stride(view.k, COLS);
    let mut high = Buffer::new(m * stride, 0i16);
    let mut low = Buffer::new(if split { m * stride } else { 0 }, 0i16);
    let mut lows = low.chunks_exact_mut(stride);
    let mut rows_of_x: Vec<Round<'_>> = x
        .chunks_exact(view.k)
        .zip(x_scales.chunks_exact_mut(padded))
        .zip(high.chunks_exact_mut(stride))
        .map(|((x, scales), high)| Round { x, scales, high, low: lows.next().unwrap_or_default() })
        .collect();
    pool.each(&mut rows_of_x, 1, m * view.k, |_, rows| {
        for row in rows {
            isa.run(row);
        }
    });
    if x_scales.iter().any(|s| !s.is_finite()) {
        return None;
    }
    let scaled = table.map(|v| v * factor);
    let rounded = scaled.map(|v| v.round_ties_even());
    let left = std::array::from_fn(|i| ((scaled[i] - rounded[i]) * LOW_W).round_ties_even() as i16);
    Some(Prepared {
        rows,
        steps,
        block_shift,
        table: rounded.map(|v| v as i16),
        table_low: left,
        low_first,
        unit: view.blocks.map_or(1.0, |b| b.unit) / factor,
        x: high,
        stride,
        x_low: low,
        x_scales,
    })
}

/// A row of activations, the scale of each 64, and what they are in those: integers, and what
/// these leave over where that is asked for.
struct Round<'a> {
    x: &'a [f32],
    scales: &'a mut [f32],
    high: &'a mut [i16],
    low: &'a mut [i16],
}

impl Task for &mut Round<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let steps = self.x.chunks_exact(STEP16).zip(self.scales.iter_mut());
        for ((x, scale), high) in steps.zip(self.high.chunks_exact_mut(STEP16)) {
            *scale = f32::from_bits(s.max_magnitude_bits(x)) / PEAK_X;
            s.encode_step(x, factor(*scale), high);
        }
        let steps = self.x.chunks_exact(STEP16).zip(self.scales.iter());
        for ((x, scale), low) in steps.zip(self.low.chunks_exact_mut(STEP16)) {
            let factor = factor(*scale);
            let mut left = [0.0; STEP16];
            for (left, x) in left.iter_mut().zip(x) {
                let scaled = x * factor;
                *left = scaled - s.round(scaled);
            }
            s.encode_step(&left, LOW_X, low);
        }
    }
}

/// What to multiply with: nothing is left of zeros, of numbers too small to divide by, and of
/// those that are not finite.
#[inline(always)]
fn factor(scale: f32) -> f32 {
    let factor = 1.0 / scale;
    if factor.is_finite() && scale.is_finite() { factor } else { 0.0 }
}

impl Prepared<'_> {
    /// Scales of a row's steps, or of half steps where blocks are those, times `x`'s.
    #[inline(always)]
    fn products(&self, row: usize, buffer: &mut Vec<f32>, out: &mut [f32]) {
        let scales = self.rows.scales(row, buffer);
        match self.block_shift {
            None => {
                let halves = out.chunks_exact_mut(2).zip(scales.chunks_exact(2));
                for ((out, scale), x) in halves.zip(&self.x_scales) {
                    out[0] = scale[0] * x;
                    out[1] = scale[1] * x;
                }
            }
            Some(0) => {
                for ((out, scale), x) in out.iter_mut().zip(scales).zip(&self.x_scales) {
                    *out = scale * x;
                }
            }
            Some(shift) => {
                let per = 1 << shift;
                let blocks = out.chunks_mut(per).zip(self.x_scales.chunks(per));
                for ((out, x), scale) in blocks.zip(scales) {
                    for (out, x) in out.iter_mut().zip(x) {
                        *out = scale * x;
                    }
                }
            }
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
        match (self.p.low_first, self.p.x_low.is_empty()) {
            (false, true) => self.with::<S, false>(s),
            (true, true) => self.with::<S, true>(s),
            (false, false) => self.split::<S, false>(s),
            (true, false) => self.split::<S, true>(s),
        }
    }
}

impl Gemv16<'_> {
    #[inline(always)]
    fn with<S: Simd, const LOW_FIRST: bool>(self, s: S) {
        let Gemv16 { p, first, y } = self;
        let table = s.nibbles16(&p.table);
        let (mut buffer, mut products) = (Vec::new(), vec![0.0f32; 2 * p.steps]);
        for (i, y) in y.iter_mut().enumerate() {
            p.products(first + i, &mut buffer, &mut products);
            let steps = p.rows.row(first + i).chunks_exact(BYTES).zip(p.x.chunks_exact(STEP16));
            let mut sum = s.splat(0.0);
            if p.block_shift.is_none() {
                for ((codes, x), scale) in steps.zip(products.chunks_exact(2)) {
                    s.prefetch(codes, gemv::AHEAD);
                    let w = s.decode_step::<LOW_FIRST>(&table, codes);
                    sum = s.dot_step(sum, w, x, s.scales(scale[0], scale[1]));
                }
            } else {
                for ((codes, x), scale) in steps.zip(&products) {
                    s.prefetch(codes, gemv::AHEAD);
                    let w = s.decode_step::<LOW_FIRST>(&table, codes);
                    sum = s.dot_step(sum, w, x, s.scale(*scale));
                }
            }
            *y = s.sum(sum) * p.unit;
        }
    }

    /// The same with two integers for each weight and activation.
    #[inline(always)]
    fn split<S: Simd, const LOW_FIRST: bool>(self, s: S) {
        let Gemv16 { p, first, y } = self;
        let (high, low) = (s.nibbles16(&p.table), s.nibbles16(&p.table_low));
        let (mut buffer, mut products) = (Vec::new(), vec![0.0f32; 2 * p.steps]);
        for (i, y) in y.iter_mut().enumerate() {
            p.products(first + i, &mut buffer, &mut products);
            let codes = p.rows.row(first + i).chunks_exact(BYTES);
            let x = p.x.chunks_exact(STEP16).zip(p.x_low.chunks_exact(STEP16));
            let mut sums = [s.splat(0.0); 3];
            let per_step = if p.block_shift.is_none() { 2 } else { 1 };
            let scales = products.chunks_exact(per_step);
            for ((codes, (x, x_low)), scale) in codes.zip(x).zip(scales) {
                s.prefetch(codes, gemv::AHEAD);
                let scale =
                    if per_step == 2 { s.scales(scale[0], scale[1]) } else { s.scale(scale[0]) };
                let w = s.decode_step::<LOW_FIRST>(&high, codes);
                sums[0] = s.dot_step(sums[0], w, x, scale);
                sums[1] = s.dot_step(sums[1], w, x_low, scale);
                let w = s.decode_step::<LOW_FIRST>(&low, codes);
                sums[2] = s.dot_step(sums[2], w, x, scale);
            }
            let [main, of_x, of_w] = sums;
            let sum = s.fma(of_x, s.splat(1.0 / LOW_X), main);
            *y = s.sum(s.fma(of_w, s.splat(1.0 / LOW_W), sum)) * p.unit;
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
        match self.p.block_shift {
            None => self.with::<S, true>(s),
            Some(_) => self.with::<S, false>(s),
        }
    }
}

impl Gemm16<'_> {
    /// `HALVES`: blocks are half a step.
    #[inline(always)]
    fn with<S: Simd, const HALVES: bool>(self, s: S) {
        let Gemm16 { p, m, first, y } = self;
        let rows = y.len() / m;
        let table = s.nibbles16(&p.table);
        let padded = p.steps.next_multiple_of(STEPS);
        let mut buffer = Vec::new();
        let mut tile = Buffer::new(rows * COLS, 0i16);
        let mut scales = vec![[[0.0f32; STEPS]; 2]; rows];
        let mut sums = vec![s.splat(0.0); rows * m];
        let (all_x, _) = p.x.as_chunks::<STEP16>();
        let stride = p.stride / STEP16;
        for from in (0..p.steps).step_by(STEPS) {
            let steps = STEPS.min(p.steps - from);
            for (row, (tile, scales)) in tile.chunks_exact_mut(COLS).zip(&mut scales).enumerate() {
                let codes = &p.rows.row(first + row)[from * BYTES..];
                match p.low_first {
                    false => decode::<S, false>(s, &table, codes, tile),
                    true => decode::<S, true>(s, &table, codes, tile),
                }
                let all = p.rows.scales(first + row, &mut buffer);
                for step in 0..steps {
                    match p.block_shift {
                        Some(shift) => scales[0][step] = all[(from + step) >> shift],
                        None => {
                            scales[0][step] = all[2 * (from + step)];
                            scales[1][step] = all[2 * (from + step) + 1];
                        }
                    }
                }
            }
            let tile = Tile { w: tile.as_chunks().0, scales: &scales, m };
            let x = |i: usize| Row {
                x: &all_x[i * stride + from..][..steps],
                scales: &p.x_scales[i * padded + from..][..steps],
            };
            let mut i = 0;
            while i < m {
                let sums = &mut sums[i..];
                i += match m - i {
                    4.. => {
                        tile.multiply::<S, 4, HALVES>(s, [x(i), x(i + 1), x(i + 2), x(i + 3)], sums)
                    }
                    2.. => tile.multiply::<S, 2, HALVES>(s, [x(i), x(i + 1)], sums),
                    _ => tile.multiply::<S, 1, HALVES>(s, [x(i)], sums),
                };
            }
        }
        for (y, sum) in y.iter_mut().zip(&sums) {
            *y = s.sum(*sum) * p.unit;
        }
    }
}

/// Decodes a row of a tile.
#[inline(always)]
fn decode<S: Simd, const LOW_FIRST: bool>(
    s: S,
    table: &S::Nibbles16,
    codes: &[u8],
    tile: &mut [i16],
) {
    for (codes, w) in codes.chunks_exact(BYTES).zip(tile.chunks_exact_mut(STEP16)) {
        // What the next tile needs of this row comes while this tile is multiplied.
        s.prefetch(codes, STEPS * BYTES);
        s.store_step(s.decode_step::<LOW_FIRST>(table, codes), w);
    }
}

/// Decoded weights `[rows, STEPS]` and the scales of the halves of their steps.
struct Tile<'a> {
    w: &'a [[i16; STEP16]],
    scales: &'a [[[f32; STEPS]; 2]],
    /// Rows of x, and so the distance of the sums of two rows of w.
    m: usize,
}

/// A row of activations under a tile: as many steps and scales as there are.
#[derive(Clone, Copy)]
struct Row<'a> {
    x: &'a [[i16; STEP16]],
    scales: &'a [f32],
}

impl Tile<'_> {
    /// Adds the products of all rows of the tile with `R` rows of x to their sums; `R`.
    #[inline(always)]
    fn multiply<S: Simd, const R: usize, const HALVES: bool>(
        &self,
        s: S,
        mut x: [Row<'_>; R],
        sums: &mut [S::F],
    ) -> usize {
        // All of one length that the compiler knows, so that the loop asks no more.
        let steps = x[0].x.len().min(STEPS);
        for x in &mut x {
            *x = Row { x: &x.x[..steps], scales: &x.scales[..steps] };
        }
        let rows = self.w.chunks_exact(STEPS).zip(self.scales).zip(sums.chunks_mut(self.m));
        for ((w, scales), sums) in rows {
            let w = &w[..steps];
            let mut acc = [s.splat(0.0); R];
            acc.copy_from_slice(&sums[..R]);
            for step in 0..steps {
                let w = s.load_step(&w[step]);
                for r in 0..R {
                    let of_x = x[r].scales[step];
                    let scale = if HALVES {
                        s.scales(scales[0][step] * of_x, scales[1][step] * of_x)
                    } else {
                        s.scale(scales[0][step] * of_x)
                    };
                    acc[r] = s.dot_step(acc[r], w, &x[r].x[step], scale);
                }
            }
            sums[..R].copy_from_slice(&acc);
        }
        R
    }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::PEAK_X;
    use crate::cpu::Isa;
    use crate::{Cpu, Element, QTensor, formats};

    /// Each activation comes back as itself, to half a unit of the largest of its 64, where it is multiplied by
    /// one and all others by zero.
    #[test]
    fn small_activations_stay_beside_large_ones() {
        const N: usize = 512;
        let eye: Vec<f32> = (0..N * N).map(|i| f32::from(u8::from(i % N == i / N))).collect();
        fn check<T: Element + Into<f32>>(cpu: &Cpu, w: &QTensor, of: fn(f32) -> T) {
            let magnitude =
                |i: usize| if i % 64 == 7 { 1.0 } else { 2f32.powi(-((i % 16) as i32)) };
            let x: Vec<T> = (0..N).map(|i| of(magnitude(i) * (1.0 - (i % 3) as f32))).collect();
            let mut y = vec![of(0.0); N];
            cpu.linear(w, &x, None, &mut y).unwrap();
            for (x, y) in x.iter().zip(y) {
                let (x, y): (f32, f32) = ((*x).into(), y.into());
                let bound = 0.5 / PEAK_X + x.abs() / 256.0;
                assert!((x - y).abs() <= bound, "{}: {x} became {y}", cpu.isa().name());
            }
        }
        for isa in Isa::available() {
            let cpu = Cpu::with(isa);
            for name in ["nf4", "fp4", "mxfp4"] {
                let format = formats::by_name(name).unwrap();
                let w = cpu.quantize(format, &eye, &[N, N], None).unwrap();
                check(&cpu, &w, f16::from_f32);
                check(&cpu, &w, bf16::from_f32);
            }
        }
    }
}
