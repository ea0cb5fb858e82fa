//! What a format is: a table of values, a width, a packing, a block geometry and a kind of scale.
//!
//! A [`Format`] is data. No kernel knows a format's name: each reads the fields below, so a new
//! format is one file in [`crate::formats`] and one line in [`crate::formats::ALL`].
//!
//! A stored weight is read as
//!
//! ```text
//! weight = (value(code) * scale[block]) * unit  (+ mean[block], where the format keeps one)
//! ```
//!
//! in f32, in this order, and written by the inverse: `x = weight * (peak / absmax[block])` (or, where
//! the scale is a power of two, the exact quotient), then the code that the format's [`Encoder`]
//! gives to `x`. Where the scale is a mean magnitude, that stands in the place of absmax. Codes of a
//! codebook that is stored with each tensor are found by a search: see [`crate::quantizers`].

use crate::{Error, Result};

/// How weights of one kind are stored. See the [module](self) for the formula.
#[derive(Debug)]
pub struct Format {
    /// The name in commands, checkpoints (`quant_type`) and errors.
    pub name: &'static str,
    /// One line for tables.
    pub about: &'static str,
    /// What a code stands for.
    pub values: Values,
    /// Width of a code.
    pub code_bits: u32,
    /// How many neighbouring weights of a row one code stands for.
    pub weights_per_code: usize,
    /// How codes are laid into bytes.
    pub packing: Packing,
    /// How blocks lie on the tensor.
    pub layout: Layout,
    /// What is stored per block.
    pub scale: ScaleKind,
    /// The magnitude on the value axis that a block's absmax is mapped to.
    pub peak: f32,
    /// Constant factor of every weight: `1/127` where codes are integers, else 1.
    pub unit: f32,
    /// Whether a tensor may keep a second number a block, its mean, which is added after scaling.
    pub has_mean: bool,
    /// How a scaled weight becomes a code; absent for formats whose codes only a search can find.
    pub encoder: Option<&'static Encoder>,
    /// The keys under which a checkpoint stores it.
    pub keys: Keys,
    /// The same format with other numbers of weights in a code and of codes; see
    /// [`with_codebook`](Self::with_codebook).
    pub variant: Option<fn(usize, usize) -> Result<&'static Format>>,
}

/// What the codes of a format stand for.
#[derive(Debug, Clone, Copy)]
pub enum Values {
    /// `table[code]`, the same for every tensor.
    Codebook(&'static [f32]),
    /// The code itself, a two's complement integer; the table spells the same values out.
    Integer(&'static [f32]),
    /// A table of `entries * weights_per_code` values that is stored with each tensor.
    Stored {
        /// Number of codes.
        entries: usize,
    },
    /// The same, of values that are all -1, 0 or 1: stored as two planes of bits.
    Patterns {
        /// Number of codes.
        entries: usize,
    },
}

/// How codes are laid into bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Packing {
    /// The first code is in the high bits of its byte (bitsandbytes' nibbles).
    HighFirst,
    /// The first code is in the low bits; codes may cross bytes (a little-endian bit stream).
    LowFirst,
    /// `per_byte` codes are the digits of a byte in base `base`, the first the least significant.
    Radix {
        /// Number of codes.
        base: u8,
        /// Digits in one byte.
        per_byte: u8,
    },
}

/// How blocks, each with a scale of its own, lie on a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Over the flattened row-major tensor: a block may begin in one row and end in the next.
    /// The block size is a power of two in `min..=max`.
    Flat {
        /// Smallest block size.
        min: usize,
        /// Largest block size.
        max: usize,
        /// Block size where none is asked for.
        default: usize,
    },
    /// Along each row of `[N, K]`; rows start on a byte and are padded to `pad` weights.
    Rows {
        /// Length of a block.
        block: RowBlock,
        /// Rows are padded with the code of zero to a multiple of this.
        pad: usize,
    },
    /// Over the whole tensor `[N, K]`, one block: row `r` shares its bytes with the rows
    /// `r + N / rows`, `r + 2 N / rows`, .. so that the bytes are `[N / rows, K]`.
    Stacked {
        /// Rows in a byte, the first in its low bits.
        rows: usize,
    },
}

/// Length of a block in a row layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowBlock {
    /// One block a row.
    Whole,
    /// Always this many weights; the last block of a row may be shorter.
    Fixed(usize),
    /// One of these, the first where none is asked for.
    OneOf(&'static [usize]),
    /// One block a row, or where one of these is asked for, so many weights.
    WholeOr(&'static [usize]),
}

/// What is stored per block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScaleKind {
    /// f32: the largest magnitude of the block. May be double quantized.
    Absmax,
    /// f32: `absmax / peak`. May be double quantized.
    Step,
    /// One byte `e` for the power of two `s = 2^(e - 127)` with `peak <= absmax / s < 2 peak`
    /// (OCP Microscaling v1.0, 6.3); 255 is NaN.
    E8M0,
    /// f16, or where a file has it so f32: the mean magnitude of the block, as [`absmean`] sums it.
    Absmean,
}

/// The keys under which a checkpoint stores a tensor `<name>` of a format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keys {
    /// `<name>`, `<name>.absmax`, `<name>.quant_map`, `<name>.quant_state.<library>__<format>`.
    QuantState {
        /// Whose format it is: the prefix before the two underscores.
        library: &'static str,
    },
    /// `<layer>.weight`, `<layer>.SCB`, `<layer>.weight_format`.
    RowStats,
    /// `<layer>.weight`, `<layer>.weight_scale`: one scale of the whole tensor (mlx-lm's BitLinear).
    TensorScale,
}

impl Format {
    /// Values of the codes, `[entries * weights_per_code]`; `None` if stored with the tensor.
    pub fn codebook(&self) -> Option<&'static [f32]> {
        match self.values {
            Values::Codebook(table) | Values::Integer(table) => Some(table),
            Values::Stored { .. } | Values::Patterns { .. } => None,
        }
    }

    /// Numbers in a codebook, whoever holds it: `entries * weights_per_code`.
    pub fn codebook_len(&self) -> usize {
        match self.values {
            Values::Codebook(table) | Values::Integer(table) => table.len(),
            Values::Stored { entries } | Values::Patterns { entries } => {
                entries * self.weights_per_code
            }
        }
    }

    /// Bytes of a codebook that is stored with a tensor.
    pub fn codebook_bytes(&self) -> usize {
        match self.values {
            Values::Patterns { entries } => entries * 2 * self.weights_per_code.div_ceil(8),
            _ => 4 * self.codebook_len(),
        }
    }

    /// The same format with so many weights in a code and so many codes.
    ///
    /// # Errors
    /// [`Error::Argument`] if the format has no such variant.
    pub fn with_codebook(
        &self,
        weights_per_code: usize,
        entries: usize,
    ) -> Result<&'static Format> {
        match self.variant {
            Some(variant) => variant(weights_per_code, entries),
            None => Err(Error::argument(
                "codebook",
                "a format whose codebook can have other sizes",
                self.name,
                "leave the sizes out, or choose such a format",
            )),
        }
    }

    /// The variant whose codes take so many bits for each weight: 0.9, 0.8, 0.75, 0.7, ..
    ///
    /// # Errors
    /// [`Error::Argument`] if there is none.
    pub fn with_bits(&self, bits: f64) -> Result<&'static Format> {
        const LENGTHS: [usize; 2] = [10, 16];
        let whole = |v: &usize| (bits * *v as f64 - (bits * *v as f64).round()).abs() < 1e-6;
        let length = LENGTHS.into_iter().find(whole).filter(|_| (0.0..=2.0).contains(&bits));
        match length {
            Some(v) => self.with_codebook(v, 1 << (bits * v as f64).round() as u32),
            None => Err(Error::argument(
                "bits",
                format!("a number of sixteenths or tenths of a bit for {}", self.name),
                bits.to_string(),
                "ask for 0.9, 0.8, 0.75 or 0.7, or give the sizes of the codebook",
            )),
        }
    }

    /// The block size to use for rows of `k` weights, given what the caller asks for; where one block
    /// is the whole tensor, `k` is all of it.
    ///
    /// A whole-row format answers `k` (at least 1).
    ///
    /// # Errors
    /// [`Error::Argument`] if the format cannot have that block size.
    pub fn block_size(&self, asked: Option<usize>, k: usize) -> Result<usize> {
        let refuse = |expected: String, got: usize| {
            Err(Error::argument(
                "block_size",
                format!("{expected} for format {}", self.name),
                got.to_string(),
                "choose one of those or leave it out",
            ))
        };
        match self.layout {
            Layout::Flat { min, max, default } => match asked.unwrap_or(default) {
                b if b.is_power_of_two() && (min..=max).contains(&b) => Ok(b),
                b => refuse(format!("a power of two from {min} to {max}"), b),
            },
            Layout::Rows { block: RowBlock::Whole, .. } => match asked {
                Some(b) if b != k.max(1) => refuse("the whole row".into(), b),
                _ => Ok(k.max(1)),
            },
            Layout::Stacked { .. } => match asked {
                Some(b) if b != k.max(1) => refuse("the whole tensor".into(), b),
                _ => Ok(k.max(1)),
            },
            Layout::Rows { block: RowBlock::WholeOr(sizes), .. } => match asked {
                Some(b) if b != k.max(1) && !sizes.contains(&b) => {
                    refuse(format!("the whole row or one of {sizes:?}"), b)
                }
                _ => Ok(asked.unwrap_or(k.max(1))),
            },
            Layout::Rows { block: RowBlock::Fixed(size), .. } => match asked {
                Some(b) if b != size => refuse(size.to_string(), b),
                _ => Ok(size),
            },
            Layout::Rows { block: RowBlock::OneOf(sizes), .. } => {
                let b = asked.unwrap_or(sizes.first().copied().unwrap_or(1));
                if sizes.contains(&b) { Ok(b) } else { refuse(format!("one of {sizes:?}"), b) }
            }
        }
    }

    /// The block size where none is asked for; `None` where that is a whole row or the whole tensor.
    pub fn default_block_size(&self) -> Option<usize> {
        match self.layout {
            Layout::Flat { default, .. } => Some(default),
            Layout::Rows { block: RowBlock::Fixed(b), .. } => Some(b),
            Layout::Rows { block: RowBlock::OneOf(sizes), .. } => sizes.first().copied(),
            Layout::Rows { block: RowBlock::Whole | RowBlock::WholeOr(_), .. } => None,
            Layout::Stacked { .. } => None,
        }
    }

    /// The block sizes that [`block_size`](Self::block_size) takes besides whole rows, or the whole
    /// tensor.
    pub fn block_sizes(&self) -> Vec<usize> {
        match self.layout {
            Layout::Flat { min, max, .. } => std::iter::successors(Some(min), |b| Some(b * 2))
                .take_while(|b| *b <= max)
                .collect(),
            Layout::Rows { block: RowBlock::Whole, .. } | Layout::Stacked { .. } => Vec::new(),
            Layout::Rows { block: RowBlock::Fixed(b), .. } => vec![b],
            Layout::Rows { block: RowBlock::OneOf(sizes) | RowBlock::WholeOr(sizes), .. } => {
                sizes.to_vec()
            }
        }
    }

    /// A matrix has a multiple of this many rows.
    pub fn row_multiple(&self) -> usize {
        match self.layout {
            Layout::Stacked { rows } => rows,
            Layout::Flat { .. } | Layout::Rows { .. } => 1,
        }
    }

    /// Whether a block is never the whole tensor, nor crosses rows.
    pub fn in_rows(&self) -> bool {
        matches!(self.layout, Layout::Rows { .. })
    }

    /// Whether it takes matrices `[N, K]` only.
    pub fn needs_rows(&self) -> bool {
        !matches!(self.layout, Layout::Flat { .. })
    }

    /// Whether the scales are f32, and so may be quantized a second time.
    pub fn can_double_quantize(&self) -> bool {
        matches!(self.scale, ScaleKind::Absmax | ScaleKind::Step)
    }
}

/// Sums that [`absmean`] keeps side by side.
const LANES: usize = 32;

/// The mean magnitude of a block, in f32 and in an order that vectors and GPUs share, so that all
/// give the same bits: 32 sums, each of every 32nd weight, then halves added to halves. 0 of nothing;
/// a sum past f32's largest number is that number.
#[inline(always)]
pub fn absmean(block: &[f32]) -> f32 {
    let mut sums = [0.0f32; LANES];
    let mut groups = block.chunks_exact(LANES);
    for group in &mut groups {
        for (sum, w) in sums.iter_mut().zip(group) {
            *sum += w.abs();
        }
    }
    for (sum, w) in sums.iter_mut().zip(groups.remainder()) {
        *sum += w.abs();
    }
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            sums[i] += sums[i + half];
        }
        half /= 2;
    }
    if block.is_empty() { 0.0 } else { sums[0].min(f32::MAX) / block.len() as f32 }
}

/// A scale as f16 stores it: the nearest, and at most the largest.
pub fn f16_scale(scale: f32) -> half::f16 {
    half::f16::from_f32(scale.min(half::f16::MAX.to_f32()))
}

/// How a scaled weight becomes a code: by counting thresholds.
///
/// `rank(x)` is the number of entries of `ups` that are `<= x`, and the code is `codes[rank]`. An
/// entry is *the smallest f32 that rounds up*, so one comparison expresses every rule for ties:
/// "a tie goes down" stores the number after the midpoint, "a tie goes up" the midpoint itself.
///
/// With a `sign_bit`, `|x|` is ranked and the bit is set where `x < 0`.
#[derive(Debug)]
pub struct Encoder {
    /// Ascending; one fewer than `codes`.
    pub ups: &'static [f32],
    /// Code of each rank.
    pub codes: &'static [u8],
    /// Zero, or the bit that says "negative".
    pub sign_bit: u8,
}

impl Encoder {
    /// The code of a scaled weight. NaN has the code of rank 0.
    pub fn encode(&self, x: f32) -> u8 {
        if self.sign_bit == 0 {
            return self.codes[self.rank(x)];
        }
        let sign = if x < 0.0 { self.sign_bit } else { 0 };
        self.codes[self.rank(x.abs())] | sign
    }

    fn rank(&self, x: f32) -> usize {
        self.ups.partition_point(|up| *up <= x)
    }
}

/// Thresholds halfway between ascending `values`; a tie goes to the lower value.
pub(crate) const fn midpoints_tie_down<const N: usize, const T: usize>(
    values: &[f32; N],
) -> [f32; T] {
    assert!(T + 1 == N);
    let mut ups = [0.0; T];
    let mut i = 0;
    while i < T {
        ups[i] = next_up((values[i] + values[i + 1]) * 0.5);
        i += 1;
    }
    ups
}

/// Thresholds halfway between ascending `values`, whose parities alternate from that of the first;
/// a tie goes to the even one.
pub(crate) const fn midpoints_tie_even<const N: usize, const T: usize>(
    values: &[f32; N],
    first: Parity,
) -> [f32; T] {
    assert!(T + 1 == N);
    let mut ups = [0.0; T];
    let mut i = 0;
    while i < T {
        let middle = (values[i] + values[i + 1]) * 0.5;
        let lower_is_even = (i % 2 == 0) == matches!(first, Parity::Even);
        ups[i] = if lower_is_even { next_up(middle) } else { middle };
        i += 1;
    }
    ups
}

/// Whether the last bit of a value's significand is set.
#[derive(Clone, Copy)]
pub(crate) enum Parity {
    Even,
    Odd,
}

/// The next larger f32 of a finite number.
pub(crate) const fn next_up(x: f32) -> f32 {
    let bits = x.to_bits();
    f32::from_bits(if x == 0.0 {
        1
    } else if bits >> 31 == 0 {
        bits + 1
    } else {
        bits - 1
    })
}

/// `[0, 1, 2, ..]`: the codes of a table that is already ascending.
pub(crate) const fn ascending<const N: usize>() -> [u8; N] {
    let mut codes = [0; N];
    let mut i = 0;
    while i < N {
        codes[i] = i as u8;
        i += 1;
    }
    codes
}
