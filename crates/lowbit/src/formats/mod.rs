//! The table of formats. Tests, benches, commands and the README iterate [`ALL`].

pub(crate) mod dynamic8;
mod fp4;
mod fp8_e4m3;
mod int8;
mod mxfp4;
mod nf4;

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
];

/// The format of double quantized scales.
pub fn nested() -> &'static Format {
    &dynamic8::SIGNED
}

/// The format of that name.
///
/// # Errors
/// [`Error::UnknownFormat`], with the names there are.
pub fn by_name(name: &str) -> Result<&'static Format> {
    ALL.iter().copied().find(|f| f.name == name).ok_or_else(|| Error::UnknownFormat {
        name: name.to_owned(),
        known: ALL.iter().map(|f| f.name).collect::<Vec<_>>().join(", "),
    })
}
