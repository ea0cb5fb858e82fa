//! Blockwise 8 bit with the dynamic map (8-bit optimizers, arXiv 2110.02861), signed and unsigned.
//!
//! A decade per exponent, `10^-6 .. 10^0`, each cut into twice as many steps as the one below.

use crate::format::{
    Encoder, Format, Keys, Layout, Packing, ScaleKind, Values, ascending, midpoints_tie_down,
};

const DECADES: usize = 7;

/// The signed map, ascending; also the codebook of double quantization.
pub static SIGNED_MAP: [f32; 256] = dynamic_map(true);
pub(crate) static UNSIGNED_MAP: [f32; 256] = dynamic_map(false);
static CODES: [u8; 256] = ascending();
static SIGNED_UPS: [f32; 255] = midpoints_tie_down(&dynamic_map(true));
static UNSIGNED_UPS: [f32; 255] = midpoints_tie_down(&dynamic_map(false));
static SIGNED_ENCODER: Encoder = Encoder { ups: &SIGNED_UPS, codes: &CODES, sign_bit: 0 };
pub(crate) static UNSIGNED_ENCODER: Encoder =
    Encoder { ups: &UNSIGNED_UPS, codes: &CODES, sign_bit: 0 };
static MOMENT_UPS: [f32; 255] = keeping_negatives(&SIGNED_UPS);

/// The signed map's encoder for an optimizer's first moment: as bitsandbytes' optimizers do, it
/// gives what is below zero no code of a number that is not, however near zero it is.
pub(crate) static MOMENT_ENCODER: Encoder =
    Encoder { ups: &MOMENT_UPS, codes: &CODES, sign_bit: 0 };

/// The same thresholds, but that the code of zero begins at zero.
const fn keeping_negatives(ups: &[f32; 255]) -> [f32; 255] {
    let mut kept = *ups;
    let mut i = 0;
    while kept[i] < 0.0 {
        i += 1;
    }
    kept[i - 1] = 0.0;
    kept
}

/// The 256 values of bitsandbytes' `create_dynamic_map`, ascending.
const fn dynamic_map(signed: bool) -> [f32; 256] {
    let mut map = [0.0f32; 256];
    let mut n = 0;
    let mut decade = 0;
    while decade < DECADES {
        let items = if signed { (1 << decade) + 1 } else { (1 << (decade + 1)) + 1 };
        let mut scale = 1.0f64;
        let mut down = decade;
        while down + 1 < DECADES {
            scale /= 10.0;
            down += 1;
        }
        // Python's 10 ** -n is correctly rounded; dividing n times by ten is too, for n <= 6,
        // once it is narrowed to the f32 that torch multiplies by.
        let scale = scale as f32;
        let mut i = 0;
        while i + 1 < items {
            let mean = (boundary(i, items) + boundary(i + 1, items)) / 2.0;
            map[n] = scale * mean;
            n += 1;
            if signed {
                map[n] = -(scale * mean);
                n += 1;
            }
            i += 1;
        }
        decade += 1;
    }
    map[n] = 0.0;
    map[n + 1] = 1.0;
    sorted(map)
}

/// Entry `i` of `torch.linspace(0.1, 1, items)`: torch fills it from both ends, with a step in f32
/// and one rounding per entry (a fused multiply-add, which f64 does exactly at these sizes).
const fn boundary(i: usize, items: usize) -> f32 {
    let step = ((1.0f32 - 0.1f32) / (items - 1) as f32) as f64;
    if i < items / 2 {
        (0.1f32 as f64 + step * i as f64) as f32
    } else {
        (1.0 - step * (items - i - 1) as f64) as f32
    }
}

const fn sorted(mut map: [f32; 256]) -> [f32; 256] {
    let mut i = 1;
    while i < map.len() {
        let mut j = i;
        while j > 0 && map[j - 1] > map[j] {
            let lower = map[j];
            map[j] = map[j - 1];
            map[j - 1] = lower;
            j -= 1;
        }
        i += 1;
    }
    map
}

const fn format(
    name: &'static str,
    about: &'static str,
    map: &'static [f32; 256],
    encoder: &'static Encoder,
) -> Format {
    Format {
        name,
        about,
        values: Values::Codebook(map),
        code_bits: 8,
        weights_per_code: 1,
        packing: Packing::HighFirst,
        layout: Layout::Flat { min: 32, max: 4096, default: 256 },
        scale: ScaleKind::Absmax,
        peak: 1.0,
        unit: 1.0,
        has_mean: false,
        encoder: Some(encoder),
        keys: Keys::QuantState { library: "lowbit" },
        variant: None,
    }
}

pub(crate) static SIGNED: Format = format(
    "dynamic8",
    "8-bit dynamic map, signed (bitsandbytes' blockwise quantization)",
    &SIGNED_MAP,
    &SIGNED_ENCODER,
);
pub(crate) static UNSIGNED: Format = format(
    "dynamic8u",
    "8-bit dynamic map, unsigned: for what is never negative",
    &UNSIGNED_MAP,
    &UNSIGNED_ENCODER,
);

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest, Sha256};

    fn sha256(map: &[f32]) -> String {
        let bytes: Vec<u8> = map.iter().flat_map(|v| v.to_le_bytes()).collect();
        Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
    }

    #[test]
    fn the_maps_are_those_of_bitsandbytes() {
        assert_eq!(
            sha256(&SIGNED_MAP),
            "e732639a65f497b4ad684bb166a4467708255edd5207757de8b8f0c7e1fda89c"
        );
        assert_eq!(
            sha256(&UNSIGNED_MAP),
            "305f002cc11278fb769d13b25b9fd0c7c83c8402c40a878fe086f4039fde6398"
        );
    }
}
