//! What the codes of an 8-bit moment stand for.

use std::sync::LazyLock;

use crate::Format;
use crate::cpu::byte_values::ByteValues;
use crate::cpu::cells::Cells;
use crate::format::Encoder;
use crate::formats::dynamic8;

/// A dynamic map, as moments use it.
#[derive(Debug)]
pub struct Map {
    format: &'static Format,
    pub(super) table: ByteValues,
    /// The format's, but that what is below zero stays so.
    pub(super) encoder: &'static Encoder,
    /// The same, fast.
    pub(super) cells: LazyLock<Cells>,
}

impl Map {
    /// The format that has these codes, in blocks of [`BLOCK_SIZE`](super::BLOCK_SIZE).
    pub fn format(&self) -> &'static Format {
        self.format
    }

    /// The thresholds between codes `i` and `i + 1`: the smallest number that has the higher one.
    pub fn thresholds(&self) -> &'static [f32] {
        self.encoder.ups
    }
}

/// For what may be negative.
static SIGNED: Map = Map {
    format: &dynamic8::SIGNED,
    table: ByteValues::new(&dynamic8::SIGNED_MAP),
    encoder: &dynamic8::MOMENT_ENCODER,
    cells: LazyLock::new(|| Cells::new(&dynamic8::MOMENT_ENCODER)),
};

/// For sums of squares.
static UNSIGNED: Map = Map {
    format: &dynamic8::UNSIGNED,
    table: ByteValues::new(&dynamic8::UNSIGNED_MAP),
    encoder: &dynamic8::UNSIGNED_ENCODER,
    cells: LazyLock::new(|| Cells::new(&dynamic8::UNSIGNED_ENCODER)),
};

/// Of rules with one moment: bitsandbytes keeps it signed, squares included.
pub(super) static ONE: [&Map; 1] = [&SIGNED];
pub(super) static TWO: [&Map; 2] = [&SIGNED, &UNSIGNED];
pub(super) static THREE: [&Map; 3] = [&SIGNED, &SIGNED, &UNSIGNED];
