//! One row of f32 activations: codes are looked up, multiplied and summed in registers.

use super::dispatch::Isa;
use super::simd::{Simd, Task};
use super::view::{Aligned, BF16, Bytes, Codes, Decode, F16, F32, Ints, Nibbles, View};
use crate::DType;

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
        view.aligned(isa.run(Step)).is_some()
    }
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
        let Some(rows) = self.view.aligned(4 * S::LANES) else { return };
        match self.view.codes {
            Codes::Nibbles { table, low_first: false } => {
                self.with(s, Nibbles::<S, false>::new(s, &table), rows);
            }
            Codes::Nibbles { table, low_first: true } => {
                self.with(s, Nibbles::<S, true>::new(s, &table), rows);
            }
            Codes::Bytes(table) => self.with(s, Bytes(table), rows),
            Codes::Ints => self.with(s, Ints, rows),
            Codes::Dense(DType::F32) => self.with(s, F32, rows),
            Codes::Dense(DType::F16) => self.with(s, F16, rows),
            Codes::Dense(DType::BF16) => self.with(s, BF16, rows),
            Codes::Other(_) => {}
        }
    }
}

impl Gemv<'_> {
    #[inline(always)]
    fn with<S: Simd, D: Decode<S>>(self, s: S, d: D, rows: Aligned<'_>) {
        let Gemv { view, x, first, y } = self;
        let step = 4 * S::LANES;
        let unit = view.blocks.map_or(1.0, |b| b.unit);
        let zero = s.splat(0.0);
        let mut buffer = Vec::new();
        for (i, y) in y.iter_mut().enumerate() {
            let codes = rows.row(first + i).chunks_exact(rows.block_bytes);
            let scales = rows.scales(first + i, &mut buffer);
            let mut total = zero;
            for ((codes, x), scale) in codes.zip(x.chunks_exact(rows.block_size)).zip(scales) {
                let mut sums = [zero; 4];
                let codes = codes.chunks_exact(step * D::BITS / 8);
                for (codes, x) in codes.zip(x.chunks_exact(step)) {
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
