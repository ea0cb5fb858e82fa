//! FP4 as bitsandbytes defines it: sign and eight magnitudes in an order of its own (not E2M1).

use crate::format::{Encoder, Format, Keys, Layout, Packing, ScaleKind, Values, next_up};

static CODEBOOK: [f32; 16] = values();
/// The CUDA kernel's constants for `|x|`; a tie goes towards zero.
static UPS: [f32; 7] = [
    next_up(0.00260417),
    next_up(0.0859375),
    next_up(0.20833333),
    next_up(0.29166667),
    next_up(0.4166667),
    next_up(0.583333),
    next_up(0.8333333),
];
/// Magnitudes ascend in the order of these codes.
static CODES: [u8; 8] = [0, 1, 6, 7, 4, 5, 2, 3];
static ENCODER: Encoder = Encoder { ups: &UPS, codes: &CODES, sign_bit: 8 };

const fn values() -> [f32; 16] {
    let magnitudes = [0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0];
    let mut values = [0.0; 16];
    let mut i = 0;
    while i < 8 {
        values[i] = magnitudes[i] / 12.0;
        values[i + 8] = -values[i];
        i += 1;
    }
    values
}

pub(super) static FP4: Format = Format {
    name: "fp4",
    about: "4-bit float of bitsandbytes",
    values: Values::Codebook(&CODEBOOK),
    code_bits: 4,
    weights_per_code: 1,
    packing: Packing::HighFirst,
    layout: Layout::Flat { min: 32, max: 4096, default: 64 },
    scale: ScaleKind::Absmax,
    peak: 1.0,
    unit: 1.0,
    has_mean: false,
    encoder: Some(&ENCODER),
    keys: Keys::QuantState { library: "bitsandbytes" },
    variant: None,
};
