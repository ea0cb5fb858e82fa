//! Ternary, 1.6 bits: five trits a byte, a mean magnitude a row or a group (BitNet b1.58's absmean,
//! arXiv 2402.17764: `round(w / mean|w|)`, kept within -1..1).

use crate::format::{
    Encoder, Format, Keys, Layout, Packing, Parity, RowBlock, ScaleKind, Values, ascending,
    midpoints_tie_even,
};

static CODEBOOK: [f32; 3] = [-1.0, 0.0, 1.0];
/// A tie goes to zero, the even one.
static UPS: [f32; 2] = midpoints_tie_even(&[-1.0, 0.0, 1.0], Parity::Odd);
static CODES: [u8; 3] = ascending();
/// Also that of the other layout of trits.
pub(super) static ENCODER: Encoder = Encoder { ups: &UPS, codes: &CODES, sign_bit: 0 };

pub(super) static T158: Format = Format {
    name: "t158",
    about: "ternary, five to a byte, times the mean magnitude of a row or group",
    values: Values::Codebook(&CODEBOOK),
    code_bits: 2,
    weights_per_code: 1,
    packing: Packing::Radix { base: 3, per_byte: 5 },
    layout: Layout::Rows { block: RowBlock::WholeOr(&[80, 160, 320]), pad: 5 },
    scale: ScaleKind::Absmean,
    peak: 1.0,
    unit: 1.0,
    has_mean: false,
    encoder: Some(&ENCODER),
    keys: Keys::QuantState { library: "lowbit" },
    variant: None,
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_as_rint_does_and_saturates() {
        let cases = [(-7.0, 0), (-0.51, 0), (-0.5, 1), (0.0, 1), (0.5, 1), (0.51, 2), (9.0, 2)];
        for (x, code) in cases {
            assert_eq!(ENCODER.encode(x), code, "{x}");
        }
    }
}
