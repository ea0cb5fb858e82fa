//! The table of formats. Tests, benches, commands and the README iterate [`ALL`].

mod bin1;
mod bitlinear;
pub(crate) mod dynamic8;
mod fp4;
mod fp8_e4m3;
mod int8;
mod mxfp4;
mod nf4;
mod sub1;
mod t158;

pub use dynamic8::SIGNED_MAP;

use crate::{Error, Format, Result};

/// Every format. Adding one is a file beside this one and a line here.
pub const ALL: &[&Format] = &[
    &nf4::NF4,
    &fp4::FP4,
    &dynamic8::SIGNED,
    &dynamic8::UNSIGNED,
    &int8::INT8,
    &fp8_e4m3::FP8_E4M3,
    &mxfp4::MXFP4,
    &t158::T158,
    &bitlinear::BITLINEAR,
    &bin1::BIN1,
    &sub1::SUB1,
];

/// The format of double quantized scales.
pub fn nested() -> &'static Format {
    &dynamic8::SIGNED
}

/// The format whose codes are MLX's, where it quantizes to one bit.
pub fn one_bit() -> &'static Format {
    &bin1::BIN1
}

/// The format of that name: one of [`ALL`], or `<name>-v<length>-c<codes>` for its variant of other
/// sizes, where it has any.
///
/// # Errors
/// [`Error::UnknownFormat`], with the names there are; [`Error::Argument`] for sizes that the format
/// cannot have.
pub fn by_name(name: &str) -> Result<&'static Format> {
    if let Some(format) = ALL.iter().copied().find(|f| f.name == name) {
        return Ok(format);
    }
    match ALL.iter().find_map(|f| Some((f, f.variant.and(sizes(name, f.name))?))) {
        Some((format, [length, codes])) => format.with_codebook(length, codes),
        None => Err(Error::UnknownFormat {
            name: name.to_owned(),
            known: ALL.iter().map(|f| f.name).collect::<Vec<_>>().join(", "),
        }),
    }
}

/// The sizes in the name of a variant.
fn sizes(name: &str, of: &str) -> Option<[usize; 2]> {
    let (length, codes) = name.strip_prefix(of)?.strip_prefix("-v")?.split_once("-c")?;
    Some([length.parse().ok()?, codes.parse().ok()?])
}
