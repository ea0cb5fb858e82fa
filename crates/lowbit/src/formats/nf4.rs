//! NF4: quantiles of a normal distribution (QLoRA, arXiv 2305.14314), as bitsandbytes stores it.

use crate::format::{
    Encoder, Format, Keys, Layout, Packing, ScaleKind, Values, ascending, midpoints_tie_down,
};

/// f32 bits of the codebook, in the order of the codes and ascending.
const BITS: [u32; 16] = [
    0xbf800000, 0xbf3239b1, 0xbf066b30, 0xbeca32a0, 0xbe91a24d, 0xbe3d353f, 0xbdba7871, 0x00000000,
    0x3da2faff, 0x3e24cae3, 0x3e7c04dd, 0x3ead033a, 0x3ee1a4b8, 0x3f1007ab, 0x3f3913b3, 0x3f800000,
];

static CODEBOOK: [f32; 16] = values();
static UPS: [f32; 15] = midpoints_tie_down(&values());
static CODES: [u8; 16] = ascending();
static ENCODER: Encoder = Encoder { ups: &UPS, codes: &CODES, sign_bit: 0 };

const fn values() -> [f32; 16] {
    let mut values = [0.0; 16];
    let mut i = 0;
    while i < 16 {
        values[i] = f32::from_bits(BITS[i]);
        i += 1;
    }
    values
}

pub(super) static NF4: Format = Format {
    name: "nf4",
    about: "4-bit quantiles of a normal distribution (bitsandbytes, QLoRA)",
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
