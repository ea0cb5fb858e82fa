//! Numbers and tensors at random, the same everywhere.

use std::sync::Arc;

use bytes::Bytes;
use half::f16;

use super::{Numbers, rounded};
use crate::format::{ScaleKind, Values};
use crate::tensor::Geometry;
use crate::{DType, Format, Parts, QTensor, Result, Scales, pack};

/// SplitMix64 (Steele, Lea, Flood 2014): the same numbers everywhere.
#[derive(Debug, Clone)]
pub struct Rng(pub u64);

impl Rng {
    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`, which is not 0.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next_u64() % n as u64) as usize
    }

    /// Normally distributed (Box and Muller).
    pub fn normal(&mut self) -> f32 {
        let uniform = |bits: u64| ((bits >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
        let (a, b) = (uniform(self.next_u64()), uniform(self.next_u64()));
        ((-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos()) as f32
    }

    /// Normally distributed numbers of a type.
    pub fn numbers(&mut self, dtype: DType, len: usize) -> Numbers {
        Numbers { dtype, values: (0..len).map(|_| rounded(dtype, self.normal())).collect() }
    }

    /// A tensor of random codes, scales, means and codebook, whatever the format.
    ///
    /// # Errors
    /// As [`QTensor::from_parts`].
    pub fn tensor(
        &mut self,
        format: &'static Format,
        shape: &[usize],
        block_size: Option<usize>,
    ) -> Result<QTensor> {
        let g = Geometry::new(format, shape, block_size)?;
        let codebook: Option<Arc<[f32]>> = match format.values {
            Values::Stored { entries } => {
                Some((0..entries * format.weights_per_code).map(|_| self.normal()).collect())
            }
            Values::Patterns { .. } => {
                let sign = |rng: &mut Self| [-1.0, 0.0, 1.0][rng.below(3)];
                Some((0..format.codebook_len()).map(|_| sign(self)).collect())
            }
            _ => None,
        };
        let finite: Vec<usize> = match format.codebook() {
            Some(book) => (0..book.len()).filter(|i| book[*i].is_finite()).collect(),
            None => {
                (0..codebook.as_ref().map_or(0, |b| b.len()) / format.weights_per_code).collect()
            }
        };
        let mut codes = vec![0; g.code_bytes];
        let (runs, run_bytes) = match g.row_bytes {
            None => (1, g.code_bytes),
            Some(bytes) => (g.n, bytes),
        };
        let per_run = (0..)
            .take_while(|n| pack::packed_len(format.packing, format.code_bits, n + 1) <= run_bytes);
        let per_run = per_run.count();
        for run in codes.chunks_mut(run_bytes.max(1)).take(runs) {
            for i in 0..per_run {
                let code = finite[self.below(finite.len())];
                pack::set(format.packing, format.code_bits, run, i, code);
            }
        }
        let scale = |rng: &mut Self| rng.normal().abs() / format.peak;
        let scales = match format.scale {
            ScaleKind::E8M0 => {
                Scales::E8M0((0..g.blocks).map(|_| 120 + self.below(10) as u8).collect())
            }
            ScaleKind::Absmean => {
                Scales::F16((0..g.blocks).map(|_| f16::from_f32(scale(self))).collect())
            }
            _ => Scales::F32((0..g.blocks).map(|_| scale(self)).collect()),
        };
        let mean = |rng: &mut Self| rounded(DType::F16, rng.normal());
        let means = format.has_mean.then(|| (0..g.blocks).map(|_| mean(self)).collect());
        QTensor::from_parts(Parts {
            format,
            shape: shape.to_vec(),
            block_size: format.block_sizes().first().and(block_size),
            codes: Bytes::from(codes),
            scales,
            means,
            codebook,
        })
    }
}
