//! Products on machines that multiply matrices, of any weight with some rows of activations: decoded
//! weights are split into parts of 8 bits and multiplied block by block.

use std::sync::atomic::{AtomicBool, Ordering};

use half::bf16;

use super::buffer::Buffer;
use super::columns::{self, MOST};
use super::convert::widen;
use super::dispatch::Isa;
use super::linear::Pool;
use super::simd::matrix::{BLOCK, Blocks, FACTOR, MOST_PARTS, Matrix, Parts, SIDE, Sums, TERMS};
use super::simd::{Simd, Task};
use super::view::{Codes, View};
use crate::{DType, Element, threads};

/// Steps of a tile: the first-level cache holds them of a block of activations, and the weights pass it by. Sums of so many
/// terms are added up by themselves, but where eight bits of them count.
const STEPS: usize = 16;
/// Columns of a tile, or rows of the weight where that is transposed.
const LEN: usize = STEPS * TERMS;
/// Magnitudes between which all parts of a number are as exact as they can be: the machine takes what
/// is smaller than 2^-126 for zero, and rounds what is near the largest f32 to infinity.
pub(crate) const EXACT: std::ops::Range<f32> = 1e-20..1e38;

/// Terms of a sum from which quantized weights are rounded to bf16 where activations are: the errors of so many
/// average out to about that of the result, which is rounded as well.
const ROUNDED_FROM: usize = 512;

/// Whether there is such a machine.
pub(crate) struct HasMatrices;

impl Task for HasMatrices {
    type Output = bool;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> bool {
        s.matrix().is_some()
    }
}

/// Rows of activations as one factor of the product.
pub(crate) struct Prepared<'a> {
    view: &'a View<'a>,
    m: usize,
    /// Whether the weight is the second factor as it is: `y = x w`, not `y = x wᵀ`.
    transposed: bool,
    /// `[M / BLOCK, steps, parts, 2, FACTOR]`.
    x: Buffer<bf16>,
    steps: usize,
    /// Parts of the activations, and of the weights.
    parts: [usize; 2],
    /// A result was not finite.
    failed: AtomicBool,
}

/// Splits `x: [M, K]`, or for the transposed product `x: [M, N]`, which are numbers of that type. `None`
/// if they are not finite, or so large or small that parts of them would not be.
pub(crate) fn prepare<'a, T: Element>(
    isa: Isa,
    view: &'a View<'a>,
    x: &[T],
    m: usize,
    transposed: bool,
    precision: DType,
    pool: &Pool,
) -> Option<Prepared<'a>> {
    let len = if transposed { view.n } else { view.k };
    let of_w = match view.codes {
        Codes::Dense(dtype) => exact(dtype),
        _ if precision == DType::BF16 && len >= ROUNDED_FROM => 1,
        _ => MOST_PARTS,
    };
    let parts = parts(precision, of_w);
    let steps = len.div_ceil(TERMS);
    let block = steps * parts[0] * 2 * FACTOR;
    let numbers = m.div_ceil(BLOCK) * block;
    let is_whole = m % BLOCK == 0 && len % TERMS == 0;
    let make = if is_whole { Buffer::scratch } else { Buffer::new };
    // What is beyond the rows and terms that there are stays zero.
    let mut out = make(numbers, bf16::ZERO);
    let failed = AtomicBool::new(false);
    pool.each(&mut out, block.max(1), m * len, |i, out| {
        let x = &x[i * BLOCK * len..];
        let x = &x[..x.len().min(BLOCK * len)];
        if !isa.run(SplitRows { x, len, parts: parts[0], out }) {
            failed.store(true, Ordering::Relaxed);
        }
    });
    let fits = len > 0 && !failed.load(Ordering::Relaxed);
    fits.then_some(Prepared { view, m, transposed, x: out, steps, parts, failed })
}

/// Parts of activations of that type, and of weights that so many parts would hold.
pub(crate) fn parts(precision: DType, of_w: usize) -> [usize; 2] {
    let most = if precision == DType::F32 { MOST_PARTS } else { 2 };
    [exact(precision), of_w.min(most)]
}

/// Parts that hold every number of a type.
fn exact(dtype: DType) -> usize {
    match dtype {
        DType::BF16 => 1,
        DType::F16 => 2,
        DType::F32 => 3,
    }
}

/// A block of rows of `len` activations; whether their magnitudes are such that this is exact.
struct SplitRows<'a, T> {
    x: &'a [T],
    len: usize,
    parts: usize,
    out: &'a mut [bf16],
}

impl<T: Element> Task for SplitRows<'_, T> {
    type Output = bool;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> bool {
        let SplitRows { x, len, parts, out } = self;
        let Some(matrix) = s.matrix() else { return false };
        if let (DType::BF16, 1) = (T::DTYPE, parts) {
            return put_in_order(bytemuck::cast_slice(x), len, out);
        }
        // What is beyond the terms that there are stays zero.
        let mut row = Buffer::new(len.next_multiple_of(TERMS), 0.0f32);
        for (i, x) in x.chunks_exact(len).enumerate() {
            widen(s, x, &mut row);
            let largest = f32::from_bits(s.max_magnitude_bits(&row));
            if largest != 0.0 && !EXACT.contains(&largest) {
                return false;
            }
            matrix.split(&row, parts, &mut out[i * TERMS..], parts * 2 * FACTOR, 2 * FACTOR);
        }
        true
    }
}

/// The same of numbers that are parts already.
#[inline(always)]
fn put_in_order(x: &[bf16], len: usize, out: &mut [bf16]) -> bool {
    for (i, x) in x.chunks_exact(len).enumerate() {
        let mut largest = 0;
        for v in x {
            largest = (v.to_bits() & 0x7fff).max(largest);
        }
        let largest = bf16::from_bits(largest).to_f32();
        if largest != 0.0 && !EXACT.contains(&largest) {
            return false;
        }
        for (terms, out) in x.chunks(TERMS).zip(out[i * TERMS..].chunks_mut(2 * FACTOR)) {
            let mut whole = [bf16::ZERO; TERMS];
            whole[..terms.len()].copy_from_slice(terms);
            let (first, last) = whole.split_at(SIDE);
            for ((out, a), b) in out[..TERMS].chunks_exact_mut(2).zip(first).zip(last) {
                out.copy_from_slice(&[*a, *b]);
            }
        }
    }
    true
}

impl Prepared<'_> {
    /// `y: [M, N]`, or `[M, K]` of the transposed product, with a bias for each row, if any. `false` if a result is not
    /// finite, so that it has to be computed in another way: infinity among the weights, or sums, is not what
    /// its parts add up to.
    pub fn multiply<T: Element>(
        &self,
        isa: Isa,
        bias: Option<&[f32]>,
        y: &mut [T],
        pool: &Pool,
    ) -> bool {
        let len = y.len() / self.m;
        // As wide as leaves all threads about the same.
        let (tasks, threads) = (len.div_ceil(MOST), threads::count());
        let is_even = tasks.is_multiple_of(threads) || tasks >= 8 * threads;
        let cols = if is_even { MOST } else { MOST / 2 };
        // Where columns are too few for all threads they share rows, and decode the same weights.
        let groups = (threads / len.div_ceil(cols)).max(1);
        let rows = self.m.div_ceil(groups).next_multiple_of(BLOCK);
        let mut columns = columns::cut(y, len, cols);
        let mut tasks: Vec<_> = columns
            .chunks_mut(self.m)
            .enumerate()
            .flat_map(|(i, y)| y.chunks_mut(rows).enumerate().map(move |(j, y)| (i, j, y)))
            .collect();
        let work = self.m * self.view.n * self.view.k;
        pool.each(&mut tasks, 1, work, |_, tasks| {
            for (i, j, y) in tasks {
                let place = [*i * cols, len];
                isa.run(Product { p: self, first: *j * rows, place, cols, bias, y });
            }
        });
        !self.failed.load(Ordering::Relaxed)
    }

    /// Whether products are added on to sums of earlier terms, not taken by themselves, which is more exact where numbers are
    /// more so than eight bits.
    fn adds_on(&self) -> bool {
        self.parts == [1, 1]
    }

    /// Numbers of a block of activations.
    fn block(&self) -> usize {
        self.steps * self.parts[0] * 2 * FACTOR
    }
}

/// Adds numbers to sums, whole vectors of them.
#[inline(always)]
fn add<S: Simd>(s: S, numbers: &[f32], sums: &mut [f32]) {
    for (sum, v) in sums.chunks_exact_mut(S::LANES).zip(numbers.chunks_exact(S::LANES)) {
        s.store(s.add(s.load(sum), s.load(v)), sum);
    }
}

/// Some rows and columns of `y = x wᵀ` or `y = x w`.
struct Product<'a, 'y, T> {
    p: &'a Prepared<'a>,
    /// The first of the rows, whole blocks from the start.
    first: usize,
    /// The first of the columns, and how many there are.
    place: [usize; 2],
    /// Columns of a tile.
    cols: usize,
    /// That of all columns.
    bias: Option<&'a [f32]>,
    y: &'a mut [&'y mut [T]],
}

impl<T: Element> Task for Product<'_, '_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Product { p, first, place: [col, all], cols: stride, bias, y } = self;
        let m = y.len();
        let Some(matrix) = s.matrix() else { return };
        let cols = stride.min(all - col);
        let parts = Parts { a: p.parts[0], b: p.parts[1] };
        let step = parts.a * 2 * FACTOR;
        let len = STEPS * parts.b * 2 * FACTOR;
        let mut w = Buffer::scratch(stride / BLOCK * len, bf16::ZERO);
        let mut product = Buffer::scratch(BLOCK * stride, 0.0f32);
        // With what is missing of the last block of rows.
        let mut sums = Buffer::scratch(m.next_multiple_of(BLOCK) * stride, 0.0f32);
        for from in (0..p.steps).step_by(STEPS) {
            let steps = STEPS.min(p.steps - from);
            let w_of = Weights { view: p.view, col, cols, term: from * TERMS, steps };
            if p.transposed {
                w_of.columns(s, matrix, parts.b, &mut w);
            } else {
                w_of.rows(s, matrix, parts.b, &mut w);
            }
            let is_first = from == 0;
            let w = Blocks { factors: &w, stride: len, count: cols.div_ceil(BLOCK) };
            let x = p.x[first / BLOCK * p.block()..].chunks_exact(p.block());
            let blocks = x.zip(sums.chunks_exact_mut(BLOCK * stride));
            for (j, (x, sums)) in blocks.enumerate() {
                let x = &x[from * step..];
                let rows = m - j * BLOCK;
                let is_apart = !is_first && !p.adds_on();
                let numbers = if is_apart { &mut product[..] } else { &mut *sums };
                let to = Sums { numbers, stride, adds: !is_first && !is_apart };
                if rows <= SIDE {
                    matrix.multiply_narrow(x, w, parts, steps, to);
                } else {
                    matrix.multiply(x, w, parts, steps, to);
                }
                if is_apart {
                    add(s, &product, &mut sums[..rows.min(BLOCK) * stride]);
                }
            }
        }
        for sums in sums.chunks_exact(stride).take(m) {
            if !f32::from_bits(s.max_magnitude_bits(&sums[..cols])).is_finite() {
                p.failed.store(true, Ordering::Relaxed);
            }
        }
        columns::write(s, &sums, stride, bias.map(|bias| &bias[col..]), y);
    }
}

/// What a tile holds of a weight: some columns of the second factor, and `steps` of their terms.
struct Weights<'a> {
    view: &'a View<'a>,
    col: usize,
    cols: usize,
    term: usize,
    steps: usize,
}

impl Weights<'_> {
    /// Columns that are rows of the weight, in blocks that lie as far apart as whole tiles do.
    #[inline(always)]
    fn rows<S: Simd>(&self, s: S, matrix: S::Matrix, parts: usize, out: &mut [bf16]) {
        let Weights { view, col, cols, term, steps } = *self;
        let step = parts * 2 * FACTOR;
        let mut row = [0.0f32; LEN];
        let padded = steps * TERMS;
        let terms = padded.min(view.k - term);
        for (i, out) in out.chunks_exact_mut(STEPS * step).enumerate().take(cols.div_ceil(BLOCK)) {
            for j in 0..BLOCK.min(cols - i * BLOCK) {
                view.decode(s, col + i * BLOCK + j, term, &mut row[..terms]);
                row[terms..padded].fill(0.0);
                matrix.split(&row[..padded], parts, &mut out[j * TERMS..], step, 2 * FACTOR);
            }
            // What is left of earlier terms in rows that are missing ends in columns that nobody reads.
            matrix.transpose(&mut out[..steps * step]);
        }
    }

    /// Columns of the weight, whose rows are terms.
    #[inline(always)]
    fn columns<S: Simd>(&self, s: S, matrix: S::Matrix, parts: usize, out: &mut [bf16]) {
        let Weights { view, col, cols, term, steps } = *self;
        let step = parts * 2 * FACTOR;
        let mut rows = [[0.0f32; MOST]; 2];
        for pair in 0..steps * TERMS / 2 {
            for (i, row) in rows.iter_mut().enumerate() {
                // In the order of terms of the other factor.
                let at = term + pair / SIDE * TERMS + i * SIDE + pair % SIDE;
                if at < view.n {
                    view.decode(s, at, col, &mut row[..cols]);
                } else {
                    row.fill(0.0);
                }
            }
            let at = pair / SIDE * step + pair % SIDE * TERMS;
            let blocks = out.chunks_exact_mut(STEPS * step).enumerate();
            for (i, out) in blocks.take(cols.div_ceil(BLOCK)) {
                let pair = rows.each_ref().map(|row| &row[i * BLOCK..(i + 1) * BLOCK]);
                matrix.split_pair(pair, parts, &mut out[at..], FACTOR, 2 * FACTOR);
            }
        }
    }
}
