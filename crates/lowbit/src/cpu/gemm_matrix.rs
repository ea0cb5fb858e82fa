//! Products on machines that multiply matrices, of any weight with some rows of activations: decoded
//! weights are split into parts of 8 bits and multiplied block by block.

use std::sync::atomic::{AtomicBool, Ordering};

use half::bf16;

use super::buffer::Buffer;
use super::convert::widen;
use super::dispatch::Isa;
use super::linear::Pool;
use super::simd::matrix::{BLOCK, FACTOR, MOST_PARTS, Matrix, Parts, SIDE, TERMS};
use super::simd::{Simd, Task};
use super::view::{Codes, View};
use crate::{DType, Element};

/// Steps of a tile: the first-level cache holds them of a block of rows of both factors. Sums of so many terms
/// are added up by themselves.
const STEPS: usize = 16;
/// Columns of a tile, or rows of the weight where that is transposed.
const LEN: usize = STEPS * TERMS;
/// Magnitudes between which all parts of a number are as exact as they can be: the machine takes what
/// is smaller than 2^-126 for zero, and rounds what is near the largest f32 to infinity.
pub(crate) const EXACT: std::ops::Range<f32> = 1e-20..1e38;

/// Terms of a sum from which quantized weights are rounded to bf16 where activations are: the errors of so many
/// average out to about that of the result, which is rounded as well.
const ROUNDED_FROM: usize = 1024;

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
    let mut out = Buffer::new(m.div_ceil(BLOCK) * block, bf16::ZERO);
    let failed = AtomicBool::new(false);
    pool.each(&mut out, block.max(1), m * len, |i, out| {
        let x = &x[i * BLOCK * len..];
        let x = &x[..x.len().min(BLOCK * len)];
        if !isa.run(SplitRows { x, len, parts: parts[0], transpose: !transposed, out }) {
            failed.store(true, Ordering::Relaxed);
        }
    });
    let fits = len > 0 && !failed.load(Ordering::Relaxed);
    fits.then_some(Prepared { view, m, x: out, steps, parts, failed })
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
    /// Whether they are the second factor.
    transpose: bool,
    out: &'a mut [bf16],
}

impl<T: Element> Task for SplitRows<'_, T> {
    type Output = bool;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> bool {
        let SplitRows { x, len, parts, transpose, out } = self;
        let Some(matrix) = s.matrix() else { return false };
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
        if transpose {
            matrix.transpose(out);
        }
        true
    }
}

impl Prepared<'_> {
    /// Whether a result was not finite, so that it has to be computed in another way: infinity among the
    /// weights, or sums, is not what its parts add up to.
    pub fn failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    /// Rows of activations with what is missing of the last block.
    pub fn padded(&self) -> usize {
        self.m.next_multiple_of(BLOCK)
    }

    /// Numbers of a block of activations.
    fn block(&self) -> usize {
        self.steps * self.parts[0] * 2 * FACTOR
    }

    #[inline(always)]
    fn check<S: Simd>(&self, s: S, y: &[f32]) {
        if !f32::from_bits(s.max_magnitude_bits(y)).is_finite() {
            self.failed.store(true, Ordering::Relaxed);
        }
    }
}

/// Adds a product, rows of `COLS` numbers, to sums whose rows lie `stride` apart. Sums of all terms that were
/// taken by themselves would be less exact.
#[inline(always)]
fn add<S: Simd, const COLS: usize>(s: S, product: &[f32], sums: &mut [f32], stride: usize) {
    for (product, sums) in product.chunks_exact(COLS).zip(sums.chunks_mut(stride)) {
        let sums = &mut sums[..COLS];
        for at in (0..COLS).step_by(S::LANES) {
            let sum = &mut sums[at..at + S::LANES];
            s.store(s.add(s.load(sum), s.load(&product[at..at + S::LANES])), sum);
        }
    }
}

/// Rows `first..` of `yᵀ = w xᵀ`: `y: [rows, M]`.
pub(crate) struct GemmMatrix<'a> {
    pub p: &'a Prepared<'a>,
    pub first: usize,
    pub y: &'a mut [f32],
}

impl Task for GemmMatrix<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let GemmMatrix { p, first, y } = self;
        let Some(matrix) = s.matrix() else { return };
        let (view, m) = (p.view, p.m);
        let parts = Parts { a: p.parts[1], b: p.parts[0] };
        let step = [parts.a * 2 * FACTOR, parts.b * 2 * FACTOR];
        let rows = y.len() / m;
        // Of few rows of x two blocks of w are multiplied at a time.
        let blocks = rows.div_ceil(2 * BLOCK) * 2;
        let len = STEPS * step[0];
        // Rows of sums a power of two apart would fall on the same lines of a cache.
        let stride = p.padded() + BLOCK / 2;
        let mut row = Buffer::new(LEN, 0.0f32);
        let mut w = Buffer::new(blocks * len, bf16::ZERO);
        let mut sums = Buffer::new(blocks * BLOCK * stride, 0.0f32);
        let mut product = Buffer::new(BLOCK * BLOCK, 0.0f32);
        for from in (0..p.steps).step_by(STEPS) {
            let steps = STEPS.min(p.steps - from);
            let (col, padded) = (from * TERMS, steps * TERMS);
            let cols = padded.min(view.k - col);
            for i in 0..rows {
                view.decode(s, first + i, col, &mut row[..cols]);
                row[cols..padded].fill(0.0);
                let at = i / BLOCK * len + i % BLOCK * TERMS;
                matrix.split(&row[..padded], parts.a, &mut w[at..], step[0], 2 * FACTOR);
            }
            for (j, x) in p.x.chunks_exact(p.block()).enumerate() {
                let (x, sums) = (&x[from * step[1]..], &mut sums[j * BLOCK..]);
                let narrow = m - j * BLOCK <= SIDE;
                let each = if narrow { 2 } else { 1 };
                let blocks = w.chunks_exact(each * len);
                for (w, sums) in blocks.zip(sums.chunks_mut(each * BLOCK * stride)) {
                    if narrow {
                        matrix.multiply_narrow(w, len, x, parts, steps, &mut product);
                        add::<S, SIDE>(s, &product, sums, stride);
                    } else {
                        matrix.multiply(w, x, parts, steps, &mut product);
                        add::<S, BLOCK>(s, &product, sums, stride);
                    }
                }
            }
        }
        for (y, sums) in y.chunks_exact_mut(m).zip(sums.chunks_exact(stride)) {
            y.copy_from_slice(&sums[..m]);
        }
        p.check(s, y);
    }
}

/// Columns `col..` of `dx = dy w` for prepared `dy: [M, N]`: `dx: [M, COLS]`, with what is missing of the last
/// block of rows.
pub(crate) struct Columns<'a, const COLS: usize> {
    pub p: &'a Prepared<'a>,
    pub col: usize,
    pub dx: &'a mut [f32],
}

impl<const COLS: usize> Task for Columns<'_, COLS> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Columns { p, col, dx } = self;
        let Some(matrix) = s.matrix() else { return };
        let view = p.view;
        let parts = Parts { a: p.parts[0], b: p.parts[1] };
        let step = [parts.a * 2 * FACTOR, parts.b * 2 * FACTOR];
        let cols = COLS.min(view.k - col);
        let mut rows = [[0.0f32; COLS]; 2];
        let mut product = Buffer::new(BLOCK * BLOCK, 0.0f32);
        let mut w = Buffer::new(COLS / BLOCK * STEPS * step[1], bf16::ZERO);
        for from in (0..p.steps).step_by(STEPS) {
            let steps = STEPS.min(p.steps - from);
            for pair in 0..steps * TERMS / 2 {
                for (i, row) in rows.iter_mut().enumerate() {
                    // In the order of terms of the other factor.
                    let at = from * TERMS + pair / SIDE * TERMS + i * SIDE + pair % SIDE;
                    if at < view.n {
                        view.decode(s, at, col, &mut row[..cols]);
                    } else {
                        row.fill(0.0);
                    }
                }
                let at = pair / SIDE * step[1] + pair % SIDE * TERMS;
                let blocks = w.chunks_exact_mut(STEPS * step[1]);
                for (i, w) in blocks.enumerate().take(cols.div_ceil(BLOCK)) {
                    let [a, b] = &rows;
                    let part = i * BLOCK..(i + 1) * BLOCK;
                    let part = [&a[part.clone()], &b[part]];
                    matrix.split_pair(part, parts.b, &mut w[at..], FACTOR, 2 * FACTOR);
                }
            }
            for (dy, dx) in p.x.chunks_exact(p.block()).zip(dx.chunks_exact_mut(BLOCK * COLS)) {
                let dy = &dy[from * step[0]..];
                let blocks = w.chunks_exact(STEPS * step[1]);
                for (i, w) in blocks.enumerate().take(cols.div_ceil(BLOCK)) {
                    matrix.multiply(dy, w, parts, steps, &mut product);
                    add::<S, BLOCK>(s, &product, &mut dx[i * BLOCK..], COLS);
                }
            }
        }
        for dx in dx.chunks_exact(COLS).take(p.m) {
            p.check(s, &dx[..cols]);
        }
    }
}
