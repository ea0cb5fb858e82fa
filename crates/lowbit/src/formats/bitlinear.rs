//! Ternary as mlx-lm's BitLinear layers keep it: two bits a weight, four rows that lie a quarter of
//! the matrix apart in a byte, one scale of the whole tensor. N must be a multiple of 4.

use super::t158;
use crate::format::{Format, Keys, Layout, Packing, ScaleKind, Values};

/// The fourth code is never written; read as mlx-lm's kernels compute it, `code - 1`.
static CODEBOOK: [f32; 4] = [-1.0, 0.0, 1.0, 2.0];

pub(super) static BITLINEAR: Format = Format {
    name: "bitlinear",
    about: "ternary, two bits, one scale a tensor (mlx-lm's BitLinear)",
    values: Values::Codebook(&CODEBOOK),
    code_bits: 2,
    weights_per_code: 1,
    packing: Packing::LowFirst,
    layout: Layout::Stacked { rows: 4 },
    scale: ScaleKind::Absmean,
    peak: 1.0,
    unit: 1.0,
    has_mean: false,
    encoder: Some(&t158::ENCODER),
    keys: Keys::TensorScale,
    variant: None,
};
