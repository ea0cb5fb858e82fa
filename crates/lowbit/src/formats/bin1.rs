//! One bit: the sign of each weight, a mean magnitude a row or a group, and where it is worth it, a
//! mean. The bytes are those of MLX's affine quantization to one bit.

use crate::format::{
    Encoder, Format, Keys, Layout, Packing, RowBlock, ScaleKind, Values, ascending,
};

static CODEBOOK: [f32; 2] = [-1.0, 1.0];
/// A zero counts as positive, as there is no code for it.
static UPS: [f32; 1] = [0.0];
static CODES: [u8; 2] = ascending();
static ENCODER: Encoder = Encoder { ups: &UPS, codes: &CODES, sign_bit: 0 };

pub(super) static BIN1: Format = Format {
    name: "bin1",
    about: "1 bit: the sign, times the mean magnitude of a row or group",
    values: Values::Codebook(&CODEBOOK),
    code_bits: 1,
    weights_per_code: 1,
    packing: Packing::LowFirst,
    layout: Layout::Rows { block: RowBlock::WholeOr(&[32, 64, 128]), pad: 32 },
    scale: ScaleKind::Absmean,
    peak: 1.0,
    unit: 1.0,
    has_mean: true,
    encoder: Some(&ENCODER),
    keys: Keys::QuantState { library: "lowbit" },
    variant: None,
};
