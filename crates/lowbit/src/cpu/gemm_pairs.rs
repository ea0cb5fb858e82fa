//! Many rows of 16-bit activations, any weight, where a machine adds pairs of 16-bit products faster than it
//! multiplies and adds f32: both factors are rounded to integers, each 64 terms with a scale of their own.
//!
//! Weights keep 12 bits and a sign of the largest of 64, activations 13: 64 products of those fit an i32. Of 4096
//! terms the error was at most 1e-5 of the product of both norms.

use std::sync::atomic::{AtomicBool, Ordering};

use super::buffer::Buffer;
use super::convert::widen;
use super::dispatch::Isa;
use super::linear::Pool;
use super::simd::{STEP16, Simd, Task};
use super::view::{Aligned, Codes, View};
use crate::{Element, threads};

/// Terms that share a scale, and their pairs.
const CHUNK: usize = STEP16;
const PAIRS: usize = CHUNK / 2;
/// Largest magnitudes of a weight and of an activation: 64 products of those are below 2^31.
const PEAK_W: f32 = 4095.0;
const PEAK_X: f32 = 8190.0;
/// Chunks of rows of a weight that are decoded together.
const CHUNKS: usize = 4;
/// Rows of a weight, or columns, that a thread takes at once: its first-level cache holds their chunks.
const ROWS: usize = 64;
/// Rows of activations from which on this is faster than f32 where weights have to be rounded: that takes as
/// long as to multiply them with so many.
const ROUNDED_FROM: usize = 32;
/// Rows of the largest tile.
const TILE: usize = 8;

/// Activations as integers.
pub(crate) struct Prepared<'a> {
    view: &'a View<'a>,
    /// Terms are rows of the weight, and what is a row here is a column of it.
    transposed: bool,
    m: usize,
    /// `[chunks, M / LANES, PAIRS + 1, LANES]`: after the pairs of some rows the bits of their scales.
    x: Buffer<i32>,
    /// Numbers of a chunk.
    chunk: usize,
    codebook: Option<Codebook<'a>>,
    /// A weight was not finite.
    failed: AtomicBool,
}

/// A weight of four bits whose blocks are whole chunks: its values are rounded once for all.
struct Codebook<'a> {
    rows: Aligned<'a>,
    ints: [i16; 16],
    /// What one of them stands for, times the scale of a block.
    unit: f32,
    low_first: bool,
    /// Chunks of a block.
    per_block: usize,
}

impl<'a> Codebook<'a> {
    fn of(view: &View<'a>) -> Option<Self> {
        let Codes::Nibbles { table, low_first } = view.codes else { return None };
        let rows = view.aligned(CHUNK)?;
        let peak = table.iter().fold(0.0f32, |peak, v| peak.max(v.abs()));
        let factor = PEAK_W / peak;
        if !factor.is_finite() || !table.iter().all(|v| v.is_finite()) {
            return None;
        }
        Some(Codebook {
            per_block: rows.block_size / CHUNK,
            rows,
            ints: table.map(|v| (v * factor).round_ties_even() as i16),
            unit: view.blocks.map_or(1.0, |b| b.unit) / factor,
            low_first,
        })
    }
}

/// Rounds `x: [M, K]`, or for the transposed product `x: [M, N]`; nothing if not all are finite, or other kernels
/// are faster.
pub(crate) fn prepare<'a, T: Element>(
    isa: Isa,
    view: &'a View<'a>,
    x: &[T],
    m: usize,
    transposed: bool,
    pool: &Pool,
) -> Option<Prepared<'a>> {
    let codebook = if transposed { None } else { Codebook::of(view) };
    if codebook.is_none() && m < ROUNDED_FROM {
        return None;
    }
    let len = if transposed { view.n } else { view.k };
    let lanes = isa.run(Lanes);
    let chunk = m.div_ceil(lanes) * (PAIRS + 1) * lanes;
    let mut out = Buffer::new(len.div_ceil(CHUNK) * chunk, 0i32);
    let failed = AtomicBool::new(false);
    pool.each(&mut out, chunk, m * len, |i, out| {
        if !isa.run(Round { x, m, len, from: i * CHUNK, out }) {
            failed.store(true, Ordering::Relaxed);
        }
    });
    let fits = len > 0 && !failed.into_inner();
    fits.then(|| Prepared {
        view,
        transposed,
        m,
        x: out,
        chunk,
        codebook,
        failed: AtomicBool::new(false),
    })
}

struct Lanes;

impl Task for Lanes {
    type Output = usize;
    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> usize {
        S::LANES
    }
}

/// A chunk of all rows of activations, which begins at term `from`; whether they are finite.
struct Round<'a, T> {
    x: &'a [T],
    m: usize,
    len: usize,
    from: usize,
    out: &'a mut [i32],
}

impl<T: Element> Task for Round<'_, T> {
    type Output = bool;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> bool {
        let Round { x, m, len, from, out } = self;
        let terms = CHUNK.min(len - from);
        let mut wide = [0.0f32; CHUNK];
        let mut ints = [0i32; PAIRS];
        let mut is_finite = true;
        for (panel, out) in out.chunks_exact_mut((PAIRS + 1) * S::LANES).enumerate() {
            // What is beyond the rows that there are stays zero.
            for row in panel * S::LANES..m.min((panel + 1) * S::LANES) {
                widen(s, &x[row * len + from..][..terms], &mut wide[..terms]);
                let scale = encode(s, &wide, PEAK_X, &mut ints);
                is_finite &= scale.is_finite();
                let of_row = out[row % S::LANES..].iter_mut().step_by(S::LANES);
                let scale = scale.to_bits() as i32;
                for (out, pair) in of_row.zip(ints.iter().chain([&scale])) {
                    *out = *pair;
                }
            }
        }
        is_finite
    }
}

/// A chunk as integers up to `peak`, in the order of a step; their scale, which is not finite if a number
/// is not.
#[inline(always)]
fn encode<S: Simd>(s: S, numbers: &[f32], peak: f32, out: &mut [i32]) -> f32 {
    let bits = s.max_magnitude_bits(numbers);
    if bits >= f32::INFINITY.to_bits() {
        return f32::NAN;
    }
    let largest = f32::from_bits(bits);
    s.encode_step(numbers, factor_of(peak, largest), bytemuck::cast_slice_mut(out));
    largest * (1.0 / peak)
}

/// What to multiply with: nothing is left of zeros, and of numbers too small to divide by.
#[inline(always)]
fn factor_of(peak: f32, largest: f32) -> f32 {
    let factor = peak / largest;
    if factor.is_finite() { factor } else { 0.0 }
}

impl Prepared<'_> {
    /// Computes `yᵀ = w xᵀ`, or `dxᵀ = wᵀ dyᵀ`; not if a weight is not finite.
    pub fn multiply(&self, isa: Isa, yt: &mut [f32], pool: &Pool) -> bool {
        let rows = yt.len() / self.m;
        // Each thread has some.
        let share = rows.div_ceil(2 * threads::count()).next_multiple_of(ROWS / 2);
        let len = ROWS.min(share);
        pool.each(yt, len * self.m, rows * self.m * self.len(), |i, y| {
            isa.run(GemmPairs { p: self, first: i * len, y });
        });
        !self.failed.load(Ordering::Relaxed)
    }

    /// Terms of a product.
    fn len(&self) -> usize {
        if self.transposed { self.view.n } else { self.view.k }
    }
}

/// Rows `first..` of `yᵀ = w xᵀ`, or of `dxᵀ = wᵀ dyᵀ`: `y: [rows, M]`.
struct GemmPairs<'a> {
    p: &'a Prepared<'a>,
    first: usize,
    y: &'a mut [f32],
}

/// Some chunks of some rows of a weight.
struct Weights {
    /// `[CHUNKS, ROWS, PAIRS]`, or for the transposed product `[PAIRS, ROWS]`. Rows that are missing are zero.
    ints: Buffer<i32>,
    /// `[CHUNKS, ROWS]`.
    scales: [[f32; ROWS]; CHUNKS],
    /// What is decoded on the way: one row, or for the transposed product a chunk of `ROWS` columns.
    numbers: Buffer<f32>,
    /// Scales of a row.
    of_row: Vec<f32>,
}

impl Task for GemmPairs<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.p.transposed {
            false => self.with::<S, false>(s),
            true => self.with::<S, true>(s),
        }
    }
}

impl GemmPairs<'_> {
    #[inline(always)]
    fn with<S: Simd, const TRANSPOSED: bool>(self, s: S) {
        let GemmPairs { p, first, y } = self;
        let m = p.m;
        let rows = y.len() / m;
        let panels = m.div_ceil(S::LANES);
        // Rows of sums a power of two apart would fall on the same lines of a cache.
        let stride = (panels + 1) * S::LANES;
        let mut sums = Buffer::new(rows.next_multiple_of(TILE) * stride, 0.0f32);
        let chunks = if TRANSPOSED { 1 } else { CHUNKS };
        let mut weights = Weights {
            ints: Buffer::new(chunks * ROWS * PAIRS, 0),
            scales: [[0.0; ROWS]; CHUNKS],
            numbers: Buffer::new(CHUNK * if TRANSPOSED { ROWS } else { CHUNKS }, 0.0),
            of_row: Vec::new(),
        };
        for (i, x) in p.x.chunks(chunks * p.chunk).enumerate() {
            let from = i * chunks * CHUNK;
            match &p.codebook {
                _ if TRANSPOSED => p.round_columns(s, first, rows, from, &mut weights),
                Some(book) if book.low_first => {
                    book.look_up::<S, true>(s, first, rows, from, &mut weights);
                }
                Some(book) => book.look_up::<S, false>(s, first, rows, from, &mut weights),
                None => p.round_rows(s, first, rows, from, &mut weights),
            }
            if weights.scales.iter().flatten().any(|v| !v.is_finite()) {
                p.failed.store(true, Ordering::Relaxed);
                return;
            }
            let w = weights.ints.chunks_exact(ROWS * PAIRS).zip(&weights.scales);
            for (x, (ints, scales)) in x.chunks_exact(p.chunk).zip(w) {
                let w = (ints, &scales[..rows.next_multiple_of(TILE)]);
                let mut at = 0;
                while at < panels {
                    let x = &x[at * (PAIRS + 1) * S::LANES..];
                    let sums = &mut sums[at * S::LANES..];
                    at += match panels - at {
                        4.. if S::MANY_REGISTERS => {
                            multiply::<S, 4, 4, TRANSPOSED>(s, w, x, sums, stride)
                        }
                        3 if S::MANY_REGISTERS => {
                            multiply::<S, 8, 3, TRANSPOSED>(s, w, x, sums, stride)
                        }
                        2.. if S::MANY_REGISTERS => {
                            multiply::<S, 8, 2, TRANSPOSED>(s, w, x, sums, stride)
                        }
                        2.. => multiply::<S, 4, 2, TRANSPOSED>(s, w, x, sums, stride),
                        _ => multiply::<S, 8, 1, TRANSPOSED>(s, w, x, sums, stride),
                    };
                }
            }
        }
        for (y, sums) in y.chunks_exact_mut(m).zip(sums.chunks_exact(stride)) {
            y.copy_from_slice(&sums[..m]);
        }
    }
}

impl Prepared<'_> {
    /// Weights of some rows from term `from` on.
    #[inline(always)]
    fn round_rows<S: Simd>(&self, s: S, first: usize, rows: usize, from: usize, to: &mut Weights) {
        let terms = (self.view.k - from).min(CHUNKS * CHUNK);
        for row in 0..rows {
            self.view.decode(s, first + row, from, &mut to.numbers[..terms]);
            to.numbers[terms..].fill(0.0);
            let chunks = to.numbers.chunks_exact(CHUNK).zip(&mut to.scales);
            let ints = to.ints[row * PAIRS..].chunks_mut(ROWS * PAIRS);
            for ((numbers, scales), ints) in chunks.zip(ints).take(terms.div_ceil(CHUNK)) {
                scales[row] = encode(s, numbers, PEAK_W, &mut ints[..PAIRS]);
            }
        }
    }

    /// Weights of a chunk of some columns, whose terms are rows from `from` on.
    #[inline(always)]
    fn round_columns<S: Simd>(
        &self,
        s: S,
        first: usize,
        columns: usize,
        from: usize,
        to: &mut Weights,
    ) {
        let terms = CHUNK.min(self.view.n - from);
        let lines = to.numbers.chunks_exact_mut(ROWS);
        for (i, numbers) in lines.enumerate().take(terms) {
            self.view.decode(s, from + i, first, &mut numbers[..columns]);
        }
        to.numbers[terms * ROWS..].fill(0.0);
        let mut factors = [0.0f32; ROWS];
        for at in (0..ROWS).step_by(S::LANES) {
            let mut largest = s.splat(0.0);
            for numbers in to.numbers[at..].chunks(ROWS) {
                largest = s.max_magnitude(largest, s.load(numbers));
            }
            s.store(largest, &mut to.scales[0][at..]);
        }
        for (factor, scale) in factors.iter_mut().zip(&mut to.scales[0]) {
            *factor = factor_of(PEAK_W, *scale);
            *scale *= 1.0 / PEAK_W;
        }
        // The order in which the terms of the other factor are.
        let mut order = [0i32; PAIRS];
        let ramp: [f32; CHUNK] = std::array::from_fn(|i| i as f32);
        s.encode_step(&ramp, 1.0, bytemuck::cast_slice_mut(&mut order));
        let order: &[[i16; 2]] = bytemuck::cast_slice(&order);
        for (order, ints) in order.iter().zip(to.ints.chunks_exact_mut(ROWS)) {
            let [a, b] = order.map(|i| &to.numbers[i as usize * ROWS..][..ROWS]);
            for at in (0..ROWS).step_by(S::LANES) {
                let factor = s.load(&factors[at..]);
                let [a, b] = [a, b].map(|v| &v[at..]);
                let pairs = s.round_pairs(s.mul(s.load(a), factor), s.mul(s.load(b), factor));
                s.store_pairs(pairs, &mut ints[at..]);
            }
        }
    }
}

impl Codebook<'_> {
    /// Weights of some rows from term `from` on.
    #[inline(always)]
    fn look_up<S: Simd, const LOW_FIRST: bool>(
        &self,
        s: S,
        first: usize,
        rows: usize,
        from: usize,
        to: &mut Weights,
    ) {
        const BYTES: usize = CHUNK / 2;
        let table = s.nibbles16(&self.ints);
        for row in 0..rows {
            let of_row = self.rows.scales(first + row, &mut to.of_row);
            let codes = self.rows.row(first + row)[from / CHUNK * BYTES..].chunks_exact(BYTES);
            let chunks = to.ints[row * PAIRS..].chunks_mut(ROWS * PAIRS).zip(&mut to.scales);
            for (i, (codes, (ints, scales))) in codes.zip(chunks).enumerate() {
                // What comes after these chunks of this row, while they are multiplied.
                s.prefetch(codes, CHUNKS * BYTES);
                let w = s.decode_step::<LOW_FIRST>(&table, codes);
                s.store_step(w, bytemuck::cast_slice_mut(&mut ints[..PAIRS]));
                scales[row] = of_row[(from / CHUNK + i) / self.per_block] * self.unit;
            }
        }
    }
}

/// Adds the products of a chunk of all rows of weights with `V` panels of activations to their sums; `V`.
/// `R` rows at a time are in registers.
#[inline(always)]
fn multiply<S: Simd, const R: usize, const V: usize, const TRANSPOSED: bool>(
    s: S,
    (w, scales): (&[i32], &[f32]),
    x: &[i32],
    sums: &mut [f32],
    stride: usize,
) -> usize {
    let mut panels: [&[i32]; V] = [&[]; V];
    let mut of_x = [s.splat(0.0); V];
    for (v, x) in x.chunks_exact((PAIRS + 1) * S::LANES).take(V).enumerate() {
        panels[v] = &x[..PAIRS * S::LANES];
        of_x[v] = s.load(bytemuck::cast_slice(&x[PAIRS * S::LANES..]));
    }
    let w = &w[..ROWS * PAIRS];
    let tiles = scales.chunks_exact(R).zip(sums.chunks_mut(R * stride));
    for (tile, (scales, sums)) in tiles.enumerate() {
        // Of lengths that the compiler knows, so that the loop asks no more.
        let w = if TRANSPOSED {
            &w[tile * R..][..(PAIRS - 1) * ROWS + R]
        } else {
            &w[tile * R * PAIRS..][..R * PAIRS]
        };
        let mut acc = [[s.no_sums(); V]; R];
        for pair in 0..PAIRS {
            let mut x = [s.no_sums(); V];
            for v in 0..V {
                x[v] = s.load_pairs(&panels[v][pair * S::LANES..(pair + 1) * S::LANES]);
            }
            for (r, acc) in acc.iter_mut().enumerate() {
                let at = if TRANSPOSED { pair * ROWS + r } else { r * PAIRS + pair };
                let w = s.splat_pair(w[at]);
                for v in 0..V {
                    acc[v] = s.dot_pairs(acc[v], w, x[v]);
                }
            }
        }
        // Copied, or the compiler would keep them in memory for this loop's sake.
        let done = acc;
        for (r, (done, scale)) in done.iter().zip(scales).enumerate() {
            let of_w = s.splat(*scale);
            for v in 0..V {
                let sum = &mut sums[r * stride + v * S::LANES..][..S::LANES];
                let product = s.mul(s.sums_to_f32(done[v]), of_w);
                s.store(s.fma(product, of_x[v], s.load(sum)), sum);
            }
        }
    }
    V
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Cpu, DenseTensor, Weight, formats};

    fn numbers(len: usize, seed: usize) -> Vec<f32> {
        (seed..seed + len).map(|i| ((i * 2_654_435_761) % 1009) as f32 / 500.0 - 1.0).collect()
    }

    /// A product, and the most by which rounding both factors may change it.
    fn exact(w: &[f32], x: &[f32]) -> (f64, f64) {
        let half = |v: &[f32], peak: f32| v.iter().fold(0.0f32, |a, b| a.max(b.abs())) / peak / 2.0;
        let (of_w, of_x) = (half(w, PEAK_W), half(x, PEAK_X));
        let bound = w.iter().zip(x).map(|(w, x)| f64::from(x.abs() * of_w + w.abs() * of_x));
        let sum = w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
        (sum, bound.sum::<f64>() * 1.01)
    }

    /// Both products with `w: [N, K]`, which the weight stands for, on every instruction set: those that
    /// prefer other kernels, too.
    fn check(weight: &Weight, w: &[f32], [n, k]: [usize; 2], m: usize) {
        let view = View::of(weight);
        let pool = Pool::for_work(0);
        let columns: Vec<f32> = (0..n * k).map(|i| w[i % n * k + i / n]).collect();
        for (isa, transposed) in
            Isa::available().into_iter().flat_map(|isa| [(isa, false), (isa, true)])
        {
            let (w, rows, len) = if transposed { (&columns[..], k, n) } else { (w, n, k) };
            let x = numbers(m * len, 17);
            let p = prepare(isa, &view, &x, m, transposed, &pool).unwrap();
            let mut y = vec![0.0; rows * m];
            assert!(p.multiply(isa, &mut y, &pool));
            for (i, y) in y.iter().enumerate() {
                let (sum, bound) = exact(&w[i / m * len..][..len], &x[i % m * len..][..len]);
                let error = (sum - f64::from(*y)).abs();
                assert!(error <= bound, "{} [{n}, {k}] {i}: {y} for {sum}", isa.name());
            }
        }
    }

    #[test]
    fn products_are_within_the_bounds_of_rounding() {
        for (n, k, m) in [(64, 128, 32), (70, 192, 53), (7, 64, 70), (130, 320, 33)] {
            let w = numbers(n * k, 0);
            for name in ["nf4", "mxfp4", "int8"] {
                let format = formats::by_name(name).unwrap();
                let q = Cpu::best().quantize(format, &w, &[n, k], None).unwrap();
                let mut w = vec![0.0; n * k];
                Cpu::best().dequantize(&q, &mut w).unwrap();
                check(&q.into(), &w, [n, k], m);
            }
        }
        let (n, k) = (33, 75);
        let w = numbers(n * k, 0);
        check(&DenseTensor::from_f32(vec![n, k], &w).unwrap().into(), &w, [n, k], 39);
    }

    #[test]
    fn what_is_not_finite_is_left_to_other_kernels() {
        let (n, k, m) = (33, 75, 39);
        let mut w = numbers(n * k, 0);
        w[n * k / 2] = f32::INFINITY;
        let weight = DenseTensor::from_f32(vec![n, k], &w).unwrap().into();
        let (view, pool) = (View::of(&weight), Pool::for_work(0));
        for isa in Isa::available() {
            for (transposed, rows, len) in [(false, n, k), (true, k, n)] {
                let mut x = vec![1.0f32; m * len];
                let p = prepare(isa, &view, &x, m, transposed, &pool).unwrap();
                assert!(!p.multiply(isa, &mut vec![0.0; rows * m], &pool));
                x[m * len - 1] = f32::NAN;
                assert!(prepare(isa, &view, &x, m, transposed, &pool).is_none());
            }
        }
    }
}
