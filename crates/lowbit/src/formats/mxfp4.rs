//! MXFP4 (OCP Microscaling v1.0): E2M1 codes, blocks of 32 along a row, a power of two as scale.

use crate::format::{
    Encoder, Format, Keys, Layout, Packing, Parity, RowBlock, ScaleKind, Values, ascending,
    midpoints_tie_even,
};

const MAGNITUDES: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];

static CODEBOOK: [f32; 16] = values();
static UPS: [f32; 7] = midpoints_tie_even(&MAGNITUDES, Parity::Even);
static CODES: [u8; 8] = ascending();
static ENCODER: Encoder = Encoder { ups: &UPS, codes: &CODES, sign_bit: 8 };

const fn values() -> [f32; 16] {
    let mut values = [0.0; 16];
    let mut i = 0;
    while i < 8 {
        values[i] = MAGNITUDES[i];
        values[i + 8] = -MAGNITUDES[i];
        i += 1;
    }
    values
}

pub(super) static MXFP4: Format = Format {
    name: "mxfp4",
    about: "4-bit float E2M1, a power of two per 32 weights (OCP Microscaling)",
    values: Values::Codebook(&CODEBOOK),
    code_bits: 4,
    weights_per_code: 1,
    // The order in which published MXFP4 checkpoints keep their nibbles.
    packing: Packing::LowFirst,
    layout: Layout::Rows { block: RowBlock::Fixed(32), pad: 32 },
    scale: ScaleKind::E8M0,
    peak: 4.0,
    unit: 1.0,
    has_mean: false,
    encoder: Some(&ENCODER),
    keys: Keys::QuantState { library: "lowbit" },
    variant: None,
};
