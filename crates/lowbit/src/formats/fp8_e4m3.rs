//! FP8 E4M3 (OCP 8-bit floating point, v1.0): bias 7, largest 448, no infinity, NaN = 0x7f.

use crate::format::{
    Encoder, Format, Keys, Layout, Packing, Parity, RowBlock, ScaleKind, Values, ascending,
    midpoints_tie_even,
};

const NAN_CODE: usize = 0x7f;

static CODEBOOK: [f32; 256] = values();
static UPS: [f32; 126] = midpoints_tie_even(&magnitudes(), Parity::Even);
static CODES: [u8; 127] = ascending();
static ENCODER: Encoder = Encoder { ups: &UPS, codes: &CODES, sign_bit: 0x80 };

/// Magnitude of codes 0..=0x7e, ascending. An even code has an even mantissa.
const fn magnitudes() -> [f32; NAN_CODE] {
    let mut magnitudes = [0.0; NAN_CODE];
    let mut code = 0;
    while code < NAN_CODE {
        let (exponent, mantissa) = (code >> 3, (code & 7) as f32);
        magnitudes[code] = if exponent == 0 {
            mantissa / 512.0
        } else {
            // 2^(exponent - 7), built from its bits.
            (1.0 + mantissa / 8.0) * f32::from_bits(((exponent + 120) as u32) << 23)
        };
        code += 1;
    }
    magnitudes
}

const fn values() -> [f32; 256] {
    let magnitudes = magnitudes();
    let mut values = [f32::NAN; 256];
    let mut code = 0;
    while code < NAN_CODE {
        values[code] = magnitudes[code];
        values[code + 128] = -magnitudes[code];
        code += 1;
    }
    values
}

pub(super) static FP8_E4M3: Format = Format {
    name: "fp8_e4m3",
    about: "8-bit float E4M3 (OCP), one scale a row",
    values: Values::Codebook(&CODEBOOK),
    code_bits: 8,
    weights_per_code: 1,
    packing: Packing::HighFirst,
    layout: Layout::Rows { block: RowBlock::Whole, pad: 1 },
    scale: ScaleKind::Step,
    peak: 448.0,
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
    fn values_are_those_of_the_ocp_table() {
        let known = [
            (0x00, 0.0),
            (0x01, 0.001953125),
            (0x07, 0.013671875),
            (0x08, 0.015625),
            (0x38, 1.0),
            (0x3f, 1.875),
            (0x7e, 448.0),
            (0xb8, -1.0),
            (0xfe, -448.0),
        ];
        for (code, value) in known {
            assert_eq!(CODEBOOK[code], value, "code {code:#x}");
        }
        assert!(CODEBOOK[0x7f].is_nan() && CODEBOOK[0xff].is_nan());
    }

    #[test]
    fn rounds_to_nearest_even_carries_and_saturates() {
        let cases = [
            (1.0625, 0x38),        // tie between 1.0 and 1.125: even mantissa
            (1.1875, 0x3a),        // tie between 1.125 and 1.25
            (1.96875, 0x40),       // past 1.9375, the tie with 2.0: carries into the exponent
            (1.9375, 0x40),        // that tie itself
            (0.0009765625, 0x00),  // tie between 0 and the smallest subnormal
            (-0.0029296875, 0x82), // tie between two subnormals
            (463.0, 0x7e),
            (1e9, 0x7e),
            (-1e9, 0xfe),
        ];
        for (x, code) in cases {
            assert_eq!(ENCODER.encode(x), code, "{x}");
        }
    }
}
