//! A quantized weight without its numbers: what kernels' texts and parameters follow from.

use lowbit::format::{Layout, Packing, ScaleKind, Values};
use lowbit::{Error, Format, Geometry, QTensor, Result, Scales};

use crate::queue::count;
use crate::weight::{Codes, Coding, Kind, Octets, Stored};

/// What is known of a quantized weight without its numbers.
#[derive(Debug, Clone, Copy)]
pub struct Description<'a> {
    /// Its format.
    pub format: &'static Format,
    /// `[N, K]`, or any for a format whose blocks do not lie in rows.
    pub shape: &'a [usize],
    /// Weights that share a scale.
    pub block_size: usize,
    /// Scales that share a nested absmax, where scales are quantized themselves.
    pub nested_block_size: Option<usize>,
    /// Whether the values of its codes are its own, not the format's.
    pub own_codebook: bool,
    /// Whether its scales are f16.
    pub half_scales: bool,
    /// Whether it keeps the means of its blocks.
    pub has_mean: bool,
}

impl<'a> From<&'a QTensor> for Description<'a> {
    fn from(q: &'a QTensor) -> Self {
        Description {
            format: q.format(),
            shape: q.shape(),
            block_size: q.block_size(),
            nested_block_size: match q.scales() {
                Scales::Nested(nested) => Some(nested.block_size),
                _ => None,
            },
            own_codebook: q.has_own_codebook(),
            half_scales: matches!(q.scales(), Scales::F16(_)),
            has_mean: q.means().is_some(),
        }
    }
}

impl Description<'_> {
    /// Its sizes.
    ///
    /// # Errors
    /// [`Error::Argument`] for a shape or block size that the format cannot have, and for scales or
    /// means that a [`QTensor`] of the format could not have.
    pub fn geometry(&self) -> Result<Geometry> {
        let format = self.format;
        let refuse = |expected: &str, got: String, hint| {
            Err(Error::argument("weight", expected, format!("{got} for {}", format.name), hint))
        };
        if let Some(size) = self.nested_block_size
            && (size == 0 || !format.can_double_quantize())
        {
            let hint = "leave the scales as they are";
            return refuse("nested blocks of f32 scales", size.to_string(), hint);
        }
        if self.half_scales
            && (format.scale != ScaleKind::Absmean || self.nested_block_size.is_some())
        {
            let hint = "read them under the format's own keys";
            return refuse("scales of the format's own kind", "f16".to_owned(), hint);
        }
        if self.has_mean && !format.has_mean {
            return refuse("no means", "means".to_owned(), "leave them out");
        }
        Geometry::new(self.format, self.shape, Some(self.block_size))
    }

    /// Values of its codes that kernels look up: none where codes are integers.
    pub(crate) fn table(&self) -> usize {
        match self.format.values {
            Values::Integer(_) if !self.own_codebook => 0,
            _ => self.format.codebook_len(),
        }
    }

    /// Bytes of its scales.
    pub(crate) fn scale_bytes(&self, g: &Geometry) -> usize {
        match (self.nested_block_size, self.format.scale) {
            (Some(_), _) | (_, ScaleKind::E8M0) => g.blocks,
            _ if self.half_scales => 2 * g.blocks,
            _ => 4 * g.blocks,
        }
    }

    fn whole_row(&self, g: &Geometry) -> bool {
        g.block_size >= g.k && self.format.in_rows()
    }

    /// Bits of a row of codes.
    pub(crate) fn row_bits(&self, g: &Geometry) -> usize {
        g.row_bytes.map_or(g.k * self.format.code_bits as usize, |bytes| 8 * bytes)
    }

    /// What the text of a kernel that reads it depends on.
    pub(crate) fn kind(&self, g: &Geometry) -> Kind {
        let format = self.format;
        let coding = Coding {
            bits: format.code_bits,
            per_code: format.weights_per_code,
            packing: format.packing,
            flat: !format.in_rows(),
            stacked: match format.layout {
                Layout::Stacked { rows } => rows as u32,
                _ => 1,
            },
            unit: format.unit.to_bits(),
            has_mean: self.has_mean,
        };
        let bits = format.code_bits as usize;
        // Where codes are whole fractions of a byte, one weight each, a row's bits are its weights'.
        let plain = bits <= 8
            && 8 % bits == 0
            && coding.per_code == 1
            && coding.stacked == 1
            && !matches!(coding.packing, Packing::Radix { .. });
        let whole_row = self.whole_row(g);
        let lies = |unit: usize| {
            let weights = unit / bits;
            plain
                && g.k > 0
                && self.row_bits(g) % unit == 0
                && g.k % weights.max(4) == 0
                && (whole_row || g.block_size % weights.max(4) == 0)
        };
        Kind {
            codes: Codes::Format(format.name, coding),
            scales: match (self.nested_block_size, format.scale) {
                (Some(_), _) => Stored::Nested,
                (None, ScaleKind::E8M0) => Stored::E8M0,
                (None, _) if self.half_scales => Stored::F16,
                (None, _) => Stored::F32,
            },
            table: self.table(),
            power_of_two: whole_row || g.block_size.is_power_of_two(),
            words: lies(32),
            vectors: lies(128),
            double_vectors: lies(256),
            span: self.span(g),
            octets: self.octets(g, lies(32)),
        }
    }

    fn octets(&self, g: &Geometry, words: bool) -> Octets {
        let (format, bits) = (self.format, self.format.code_bits);
        let in_blocks = self.whole_row(g) || g.block_size.is_multiple_of(8);
        if g.k == 0 || !g.k.is_multiple_of(8) || !in_blocks {
            return Octets::OneByOne;
        }
        let per_code = format.weights_per_code as u32;
        let (weights, group_bits, shift) = match (format.layout, format.packing) {
            _ if words => return Octets::Words,
            (Layout::Stacked { .. }, _) => return Octets::Stacked,
            (_, Packing::Radix { per_byte, .. }) => (u32::from(per_byte), 8, 0),
            (_, Packing::LowFirst) if per_code > 1 => (per_code, bits, 7),
            _ => return Octets::OneByOne,
        };
        // So many that eight weights may lie in, from anywhere in the first on.
        let groups = (weights + 14) / weights;
        match shift + groups * group_bits {
            ..=32 if format.in_rows() => Octets::Grouped([weights, group_bits]),
            _ => Octets::OneByOne,
        }
    }

    fn span(&self, g: &Geometry) -> Option<[u32; 2]> {
        let format = self.format;
        let per_byte = match format.packing {
            Packing::Radix { per_byte, .. } => per_byte as usize,
            _ if format.code_bits == 8 => format.weights_per_code,
            _ => 1,
        };
        let bytes = [1, 2, 4].into_iter().find(|bytes| (bytes * per_byte).is_multiple_of(4))?;
        let weights = bytes * per_byte;
        let lies = g.k.is_multiple_of(4) && g.k > 0 && format.in_rows();
        let in_blocks = self.whole_row(g) || g.block_size.is_multiple_of(weights);
        (per_byte > 1 && lies && in_blocks).then_some([bytes as u32, weights as u32])
    }

    /// The weight's own parameters, for so many of its rows; `powers` bring its largest weight to
    /// 1..2 and back.
    pub(crate) fn layout(
        &self,
        g: &Geometry,
        rows: usize,
        [down, up]: [u32; 2],
    ) -> Result<[u32; 12]> {
        let row_bits = self.row_bits(g);
        Ok([
            count("upload", rows)?,
            count("upload", g.k)?,
            (row_bits / 32) as u32,
            (row_bits / 128) as u32,
            count("upload", g.row_bytes.unwrap_or(0))?,
            count("upload", g.block_size)?,
            if self.whole_row(g) { 31 } else { g.block_size.trailing_zeros() },
            count("upload", g.k.div_ceil(g.block_size))?,
            count("upload", self.nested_block_size.unwrap_or(1))?,
            0,
            down,
            up,
        ])
    }
}
