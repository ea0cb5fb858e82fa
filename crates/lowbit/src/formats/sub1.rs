//! Below one bit: a code stands for ten weights, a pattern of signs from a codebook that is stored
//! with each tensor (the line of BTC-LLM, arXiv 2506.12040), times a mean magnitude.

use std::sync::{Mutex, PoisonError};

use crate::format::{Format, Keys, Layout, Packing, RowBlock, ScaleKind, Values};
use crate::{Error, Result};

/// Weights in a code: what two planes of 16 bits hold.
const LENGTHS: std::ops::RangeInclusive<usize> = 2..=16;
/// Bits of a code.
const BITS: std::ops::RangeInclusive<u32> = 2..=12;

const LENGTH: usize = 10;
const ENTRIES: usize = 256;

pub(super) static SUB1: Format = format("sub1", LENGTH, ENTRIES, &[160, 320, 640]);

const fn format(
    name: &'static str,
    length: usize,
    entries: usize,
    blocks: &'static [usize],
) -> Format {
    Format {
        name,
        about: "a codebook of sign patterns, ten weights a byte, times a mean magnitude",
        values: Values::Patterns { entries },
        code_bits: entries.ilog2(),
        weights_per_code: length,
        packing: Packing::LowFirst,
        layout: Layout::Rows { block: RowBlock::WholeOr(blocks), pad: length },
        scale: ScaleKind::Absmean,
        peak: 1.0,
        unit: 1.0,
        has_mean: false,
        encoder: None,
        keys: Keys::QuantState { library: "lowbit" },
        variant: Some(variant),
    }
}

/// Variants that someone has asked for. Their number is bounded by that of lengths and widths.
static VARIANTS: Mutex<Vec<&'static Format>> = Mutex::new(Vec::new());

/// `sub1-v<length>-c<entries>`, the format of which there is one for the whole program.
fn variant(length: usize, entries: usize) -> Result<&'static Format> {
    if (length, entries) == (LENGTH, ENTRIES) {
        return Ok(&SUB1);
    }
    let fits = LENGTHS.contains(&length)
        && entries.is_power_of_two()
        && BITS.contains(&entries.ilog2())
        && entries.ilog2() as usize <= length;
    if !fits {
        return Err(Error::argument(
            "codebook",
            "patterns of 2 to 16 weights, and a power of two of them from 4 to 4096, no more than \
             there are signs of so many weights",
            format!("{entries} patterns of {length} weights"),
            "choose other sizes: 256 of 10 is the default",
        ));
    }
    let name = format!("{}-v{length}-c{entries}", SUB1.name);
    let mut variants = VARIANTS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = variants.iter().copied().find(|f| f.name == name) {
        return Ok(known);
    }
    let blocks = Vec::leak(vec![16 * length, 32 * length, 64 * length]);
    let made = Box::leak(Box::new(format(String::leak(name), length, entries, blocks)));
    variants.push(made);
    Ok(made)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats;

    #[test]
    fn variants_have_names_that_find_them() {
        let made = SUB1.with_bits(0.75).unwrap();
        assert_eq!((made.name, made.weights_per_code, made.code_bits), ("sub1-v16-c4096", 16, 12));
        assert!(std::ptr::eq(made, formats::by_name("sub1-v16-c4096").unwrap()));
        assert!(std::ptr::eq(SUB1.with_bits(0.8).unwrap(), formats::by_name("sub1").unwrap()));
        for (bits, entries) in [(0.9, 512), (0.7, 128), (0.5, 32)] {
            let values = SUB1.with_bits(bits).unwrap().values;
            assert!(matches!(values, Values::Patterns { entries: e } if e == entries), "{bits}");
        }
        for name in ["sub1-v17-c256", "sub1-v10-c255", "sub1-v3-c16", "sub1-v10", "sub1-v10-c256x"]
        {
            assert!(formats::by_name(name).is_err(), "{name}");
        }
        for bits in [0.0, 0.77, 1.5, -1.0, f64::NAN] {
            assert!(SUB1.with_bits(bits).is_err(), "{bits}");
        }
    }
}
