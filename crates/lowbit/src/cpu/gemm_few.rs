//! A few rows of activations and codes of four bits, on machines that multiply matrices: values of the codebook
//! are multiplied as they are, 64 rows of weights at a time, and what comes of each 64 columns is scaled.
//!
//! Looking up parts of values costs a sixth of decoding, scaling and splitting each weight, which is most of the
//! work where there are few activations.

use half::bf16;

use super::buffer::Buffer;
use super::convert::widen;
use super::dispatch::Isa;
use super::gemm_matrix::{EXACT, parts};
use super::gemv::AHEAD;
use super::simd::matrix::{FACTOR, FEW_ROWS, MOST_PARTS, Matrix, Parts, SIDE, TERMS};
use super::simd::{STEP16, Simd, Task};
use super::view::{Aligned, Codes, View};
use crate::{DType, Element};

/// Most rows of activations: two matrices of them.
pub(crate) const MOST: usize = 2 * SIDE;
/// Bytes of the codes of a step.
const BYTES: usize = STEP16 / 2;

/// Rows of activations, and what the codes stand for.
pub(crate) struct Prepared<'a> {
    rows: Aligned<'a>,
    m: usize,
    steps: usize,
    /// Steps of a block are `1 << shift`.
    shift: u32,
    unit: f32,
    low_first: bool,
    parts: Parts,
    /// Parts of the codebook, as bits.
    tables: [[i16; 16]; MOST_PARTS],
    /// `[M / SIDE, steps, parts, 2, FACTOR]`, terms in the order of a step.
    x: Buffer<bf16>,
}

/// `None` if rows are not whole steps of blocks of 64 or a power of two above, or activations are not finite or
/// so large or small that parts of them would not be.
pub(crate) fn prepare<'a, T: Element>(
    isa: Isa,
    view: &View<'a>,
    x: &[T],
    m: usize,
    precision: DType,
) -> Option<Prepared<'a>> {
    let Codes::Nibbles { table, low_first } = &view.codes else { return None };
    let rows = view.aligned(STEP16)?;
    let per_block = rows.block_size / STEP16;
    let finite = table.iter().all(|v| v.is_finite());
    if m > MOST || !per_block.is_power_of_two() || !finite {
        return None;
    }
    let [b, a] = parts(precision, MOST_PARTS);
    let mut rest = *table;
    let tables = std::array::from_fn(|p| {
        std::array::from_fn(|i| {
            // All but the last part are cut off, which leaves the rest for the next.
            let part = if p + 1 < a {
                bf16::from_bits((rest[i].to_bits() >> 16) as u16)
            } else {
                bf16::from_f32(rest[i])
            };
            rest[i] -= part.to_f32();
            part.to_bits() as i16
        })
    });
    let steps = view.k / STEP16;
    let mut out = Buffer::new(m.div_ceil(SIDE) * steps * b * 2 * FACTOR, bf16::ZERO);
    isa.run(Pack { x, k: view.k, parts: b, out: &mut out }).then_some(Prepared {
        rows,
        m,
        steps,
        shift: per_block.ilog2(),
        unit: view.blocks.map_or(1.0, |b| b.unit),
        low_first: *low_first,
        parts: Parts { a, b },
        tables,
        x: out,
    })
}

/// Activations `[M, K]` as factors; whether their magnitudes are such that this is exact.
struct Pack<'a, T> {
    x: &'a [T],
    k: usize,
    parts: usize,
    out: &'a mut [bf16],
}

impl<T: Element> Task for Pack<'_, T> {
    type Output = bool;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> bool {
        let Pack { x, k, parts, out } = self;
        let Some(matrix) = s.matrix() else { return false };
        // Which weight of a step is where.
        let mut order = [0i16; STEP16];
        s.encode_step(&std::array::from_fn::<_, STEP16, _>(|i| i as f32), 1.0, &mut order);
        let (mut row, mut turned) = (vec![0.0f32; k], vec![0.0f32; k]);
        for (i, x) in x.chunks_exact(k).enumerate() {
            widen(s, x, &mut row);
            let largest = f32::from_bits(s.max_magnitude_bits(&row));
            if largest != 0.0 && !EXACT.contains(&largest) {
                return false;
            }
            for (step, turned) in row.chunks_exact(STEP16).zip(turned.chunks_exact_mut(STEP16)) {
                for (at, index) in order.iter().enumerate() {
                    // `split` takes the first and the last 16 of 32 in turn.
                    let at = at / TERMS * TERMS + at % 2 * SIDE + at % TERMS / 2;
                    turned[at] = step[*index as usize];
                }
            }
            let block = k / STEP16 * parts * 2 * FACTOR;
            let out = &mut out[i / SIDE * block + i % SIDE * TERMS..];
            let steps = turned.chunks_exact(STEP16).enumerate();
            for (step, turned) in steps {
                let out = &mut out[step * parts * 2 * FACTOR..];
                matrix.split(turned, parts, out, FACTOR, 2 * FACTOR);
            }
        }
        matrix.transpose(out);
        true
    }
}

/// Rows `first..` of `yᵀ = w xᵀ`, at most `FEW_ROWS` of them: `y: [rows, M]`.
pub(crate) struct GemmFew<'a> {
    pub p: &'a Prepared<'a>,
    pub first: usize,
    pub y: &'a mut [f32],
}

impl Task for GemmFew<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.p.low_first {
            false => self.with::<S, false>(s),
            true => self.with::<S, true>(s),
        }
    }
}

impl GemmFew<'_> {
    #[inline(always)]
    fn with<S: Simd, const LOW_FIRST: bool>(self, s: S) {
        let GemmFew { p, first, y } = self;
        let Some(matrix) = s.matrix() else { return };
        let rows = y.len() / p.m;
        let tables = p.tables.map(|table| s.nibbles16(&table));
        let scales = scales_of(p, first, rows);
        let part = FEW_ROWS * STEP16;
        let mut w = Buffer::new(p.parts.a * part, 0i16);
        let mut product = Buffer::new(FEW_ROWS * SIDE, 0.0f32);
        let mut sums = Buffer::new(MOST / SIDE * FEW_ROWS * SIDE, 0.0f32);
        for step in 0..p.steps {
            for row in 0..rows {
                let codes = &p.rows.row(first + row)[step * BYTES..][..BYTES];
                // Many rows are read in turn: no processor sees that each goes on.
                s.prefetch(codes, AHEAD / 4);
                for (i, table) in tables.iter().enumerate().take(p.parts.a) {
                    let out = &mut w[i * part + row * STEP16..][..STEP16];
                    s.store_step(s.decode_step::<LOW_FIRST>(table, codes), out);
                }
            }
            let scales = &scales[(step >> p.shift) * FEW_ROWS..][..FEW_ROWS];
            let factor = p.parts.b * 2 * FACTOR;
            let columns = p.x.chunks_exact(p.steps * factor);
            for (x, sums) in columns.zip(sums.chunks_exact_mut(FEW_ROWS * SIDE)) {
                let x = &x[step * factor..][..factor];
                matrix.multiply_few(bytemuck::cast_slice(&w), x, p.parts, &mut product);
                for (row, scale) in scales.iter().enumerate() {
                    let scale = s.splat(*scale);
                    for at in (row * SIDE..(row + 1) * SIDE).step_by(S::LANES) {
                        let sum = &mut sums[at..at + S::LANES];
                        let product = s.load(&product[at..at + S::LANES]);
                        s.store(s.fma(product, scale, s.load(sum)), sum);
                    }
                }
            }
        }
        for (row, y) in y.chunks_exact_mut(p.m).enumerate() {
            for (j, y) in y.iter_mut().enumerate() {
                *y = sums[(j / SIDE * FEW_ROWS + row) * SIDE + j % SIDE] * p.unit;
            }
        }
    }
}

/// Scales of `FEW_ROWS` rows, zero where there are fewer: `[blocks, FEW_ROWS]`.
fn scales_of(p: &Prepared<'_>, first: usize, rows: usize) -> Vec<f32> {
    let mut out = vec![0.0; (p.steps >> p.shift) * FEW_ROWS];
    let mut buffer = Vec::new();
    for row in 0..rows {
        let scales = p.rows.scales(first + row, &mut buffer);
        for (out, scale) in out[row..].iter_mut().step_by(FEW_ROWS).zip(scales) {
            *out = *scale;
        }
    }
    out
}
