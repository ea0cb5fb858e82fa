//! How kernels see a weight, and how they read it: any run of a row as f32.

use crate::format::{Packing, Values};
use crate::tensor::{Geometry, rows_cols};
use crate::{DType, QTensor, Scales, Weight, e8m0_to_f32};

use super::byte_values::ByteValues;
use super::decode::{
    BF16, Bytes, Decode, F16, F32, Ints, Nibbles, decode_apart, decode_other, decode_run,
};
use super::groups::Groups;
use super::simd::{Simd, Task};
use super::turned::Turned;

/// A weight `w: [N, K]` as kernels see it.
#[derive(Clone)]
pub(crate) struct View<'a> {
    pub n: usize,
    pub k: usize,
    pub codes: Codes<'a>,
    pub bytes: &'a [u8],
    /// Absent for unquantized weights.
    pub blocks: Option<Blocks<'a>>,
}

/// What the bytes are.
#[derive(Clone)]
pub(crate) enum Codes<'a> {
    /// Two codes a byte.
    Nibbles { table: [f32; 16], low_first: bool },
    /// A code a byte.
    Bytes(Box<ByteValues>),
    /// A signed integer a byte.
    Ints,
    /// Codes that each stand for a group of weights.
    Groups(Groups),
    /// A code of this row in each byte, beside those of other rows: `first + step * code`.
    Apart { first: f32, step: f32, bits: usize },
    /// Any other packing, read code by code.
    Other(&'a QTensor),
    /// Numbers.
    Dense(DType),
}

/// Where scales are and what they do.
#[derive(Clone, Copy)]
pub(crate) struct Blocks<'a> {
    pub geometry: Geometry,
    pub scales: &'a Scales,
    pub means: Option<&'a [f32]>,
    pub unit: f32,
    /// Where codes that were turned are kept.
    pub turned: &'a Turned,
}

impl Blocks<'_> {
    /// Blocks of a row, where blocks lie in rows.
    pub fn of_row(&self) -> usize {
        self.geometry.k.div_ceil(self.geometry.block_size)
    }
}

impl<'a> View<'a> {
    pub fn of(weight: &'a Weight) -> Self {
        match weight {
            Weight::Quantized(q) => Self::quantized(q),
            Weight::Dense(d) => {
                let (n, k) = rows_cols(d.shape());
                View { n, k, codes: Codes::Dense(d.dtype()), bytes: d.data(), blocks: None }
            }
        }
    }

    /// Rows of `k` numbers.
    pub fn dense(numbers: &'a [f32], k: usize) -> Self {
        let (n, bytes) = (numbers.len() / k, bytemuck::cast_slice(numbers));
        View { n, k, codes: Codes::Dense(DType::F32), bytes, blocks: None }
    }

    pub fn quantized(q: &'a QTensor) -> Self {
        let (format, geometry) = (q.format(), q.geometry());
        let book = q.codebook();
        let low_first = format.packing == Packing::LowFirst;
        let plain = format.weights_per_code == 1
            && matches!(format.packing, Packing::HighFirst | Packing::LowFirst)
            && geometry.stacked.is_none();
        let codes = match (plain, format.code_bits, format.values) {
            (true, 4, _) => match book.try_into() {
                Ok(table) => Codes::Nibbles { table, low_first },
                Err(_) => Codes::Other(q),
            },
            (true, 8, Values::Integer(_)) if !q.has_own_codebook() => Codes::Ints,
            (true, 8, _) => match book.try_into() {
                Ok(values) => Codes::Bytes(Box::new(ByteValues::new(values))),
                Err(_) => Codes::Other(q),
            },
            _ if geometry
                .stacked
                .is_some_and(|(_, rows)| rows * format.code_bits as usize == 8) =>
            {
                apart(q)
            }
            _ => Groups::of(q).map_or(Codes::Other(q), Codes::Groups),
        };
        let blocks = Blocks {
            geometry,
            scales: q.scales(),
            means: q.means(),
            unit: format.unit,
            turned: q.turned(),
        };
        View { n: geometry.n, k: geometry.k, codes, bytes: q.codes(), blocks: Some(blocks) }
    }

    /// The same weight with these scales in place of its own.
    pub fn with_scales<'b>(&self, scales: &'b Scales) -> View<'b>
    where
        'a: 'b,
    {
        let blocks = self.blocks.map(|blocks| Blocks { scales, ..blocks });
        View { blocks, ..self.clone() }
    }

    /// Bits of a code, where each stands for one weight.
    fn code_bits(&self) -> usize {
        match self.codes {
            Codes::Nibbles { .. } => 4,
            Codes::Bytes(_) | Codes::Ints => 8,
            Codes::Dense(dtype) => 8 * dtype.size(),
            Codes::Groups(_) | Codes::Apart { .. } | Codes::Other(_) => 0,
        }
    }

    /// The bytes of the run that holds row `row`, and the index of its first weight in there.
    #[inline(always)]
    fn run(&self, row: usize) -> (&'a [u8], usize) {
        match &self.blocks {
            Some(blocks) => {
                let (byte, first) = blocks.geometry.run(row);
                (&self.bytes[byte..], first)
            }
            None => (self.bytes, row * self.k),
        }
    }

    /// If rows begin and end with whole steps of `step` weights, each within a block: the bytes
    /// and the scales of a row. Unquantized weights have one block a row.
    pub fn aligned(&self, step: usize) -> Option<Aligned<'a>> {
        let bits = self.code_bits();
        let block_size = match &self.blocks {
            Some(b) if b.means.is_some() => return None,
            Some(b) => b.geometry.block_size,
            None => self.k,
        };
        let row_codes = match self.blocks.and_then(|b| b.geometry.row_bytes) {
            Some(bytes) if bits > 0 => bytes * 8 / bits,
            _ => self.k,
        };
        let fits = bits > 0
            && self.k > 0
            && self.k % block_size == 0
            && block_size % step == 0
            && (row_codes * bits) % 8 == 0;
        fits.then(|| Aligned {
            bytes: self.bytes,
            row_bytes: row_codes * bits / 8,
            block_size,
            block_bytes: block_size * bits / 8,
            scales: self.blocks.map(|b| b.scales),
            blocks: self.k / block_size,
        })
    }

    /// Weights `col..col + out.len()` of row `row`, scaled.
    #[inline(always)]
    pub fn decode<S: Simd>(&self, s: S, row: usize, col: usize, out: &mut [f32]) {
        match &self.codes {
            Codes::Nibbles { table, low_first: false } => {
                self.decode_with(s, Nibbles::<S, false>::new(s, table), row, col, out);
            }
            Codes::Nibbles { table, low_first: true } => {
                self.decode_with(s, Nibbles::<S, true>::new(s, table), row, col, out);
            }
            Codes::Bytes(table) => self.decode_with(s, Bytes(table), row, col, out),
            Codes::Ints => self.decode_with(s, Ints, row, col, out),
            Codes::Dense(DType::F32) => self.decode_with(s, F32, row, col, out),
            Codes::Dense(DType::F16) => self.decode_with(s, F16, row, col, out),
            Codes::Dense(DType::BF16) => self.decode_with(s, BF16, row, col, out),
            Codes::Groups(groups) => {
                // Rows lie apart.
                groups.decode(self.run(row).0, col, out);
                if let Some(blocks) = &self.blocks {
                    blocks.scale(s, row, col, out);
                }
            }
            Codes::Apart { first, step, bits } => {
                let (bytes, place) = self.run(row);
                let bytes = &bytes[col..col + out.len()];
                decode_apart(s, bytes, place * bits, (1 << bits) - 1, [*first, *step], out);
                if let Some(blocks) = &self.blocks {
                    blocks.scale(s, row, col, out);
                }
            }
            Codes::Other(q) => {
                let (bytes, first) = self.run(row);
                let stride = self.blocks.map_or(1, |b| b.geometry.stride());
                decode_other(q, bytes, first + col * stride, stride, out);
                if let Some(blocks) = &self.blocks {
                    blocks.scale(s, row, col, out);
                }
            }
        }
    }

    #[inline(always)]
    fn decode_with<S: Simd, D: Decode<S>>(
        &self,
        s: S,
        d: D,
        row: usize,
        col: usize,
        out: &mut [f32],
    ) {
        let (bytes, first) = self.run(row);
        let at = first + col;
        let Some(blocks) = &self.blocks else {
            return decode_run(s, d, bytes, at, out);
        };
        let step = 4 * S::LANES;
        let size = blocks.geometry.block_size;
        let (block, within) = blocks.place(row, col);
        let whole = blocks.means.is_none()
            && within == 0
            && size % step == 0
            && out.len() % step == 0
            && (at * D::BITS) % 8 == 0;
        if !whole {
            decode_run(s, d, bytes, at, out);
            return blocks.scale(s, row, col, out);
        }
        // Indices, as iterators over the parts of each block would be made anew for 64 weights.
        let (steps, per_block) = (out.len() / step, size / step);
        let (len, ahead) = (step * D::BITS / 8, out.len() * D::BITS / 8);
        let bytes = &bytes[at * D::BITS / 8..][..steps * len];
        let mut i = 0;
        for block in block.. {
            if i == steps {
                break;
            }
            let scale = blocks.scales.get(block);
            let folded = d.folded(s, scale, blocks.unit);
            let (scale, unit) = (s.splat(scale), s.splat(blocks.unit));
            for i in i..steps.min(i + per_block) {
                let (bytes, out) = (&bytes[i * len..][..len], &mut out[i * step..][..step]);
                // Who decodes a part of a row comes back for the part after it.
                s.prefetch(bytes, ahead);
                let mut w = folded.unwrap_or(d).four(s, bytes);
                for v in 0..4 {
                    if folded.is_none() {
                        w[v] = s.mul(s.mul(w[v], scale), unit);
                    }
                    s.store(w[v], &mut out[v * S::LANES..]);
                }
            }
            i = steps.min(i + per_block);
        }
    }
}

/// Rows of whole blocks of whole vectors.
#[derive(Clone, Copy)]
pub(crate) struct Aligned<'a> {
    bytes: &'a [u8],
    row_bytes: usize,
    pub block_size: usize,
    pub block_bytes: usize,
    scales: Option<&'a Scales>,
    blocks: usize,
}

impl<'a> Aligned<'a> {
    /// The codes of a row.
    #[inline(always)]
    pub fn row(&self, row: usize) -> &'a [u8] {
        &self.bytes[row * self.row_bytes..][..self.blocks * self.block_bytes]
    }

    /// The scales of a row, without the format's unit, as a part of the tensor or in `buffer`.
    #[inline(always)]
    pub fn scales<'b>(&self, row: usize, buffer: &'b mut Vec<f32>) -> &'b [f32]
    where
        'a: 'b,
    {
        let of_row = row * self.blocks..(row + 1) * self.blocks;
        buffer.clear();
        match self.scales {
            Some(Scales::F32(scales)) => return &scales[of_row],
            // A compiler makes vectors of what it knows the kind of.
            Some(Scales::E8M0(scales)) => {
                buffer.extend(scales[of_row].iter().map(|scale| e8m0_to_f32(*scale)));
            }
            Some(scales) => buffer.extend(of_row.map(|i| scales.get(i))),
            None => buffer.push(1.0),
        }
        buffer
    }
}

impl Blocks<'_> {
    /// The block of a weight, and the weight's place in it.
    #[inline(always)]
    fn place(&self, row: usize, col: usize) -> (usize, usize) {
        let g = &self.geometry;
        match g.row_bytes {
            None => (g.block(row, col), (row * g.k + col) % g.block_size),
            Some(_) => (g.block(row, col), col % g.block_size),
        }
    }

    /// `(value * scale) * unit + mean` in place.
    #[inline(always)]
    fn scale<S: Simd>(&self, s: S, row: usize, col: usize, out: &mut [f32]) {
        let size = self.geometry.block_size;
        let (mut at, end) = (0, out.len());
        while at < end {
            let (block, within) = self.place(row, col + at);
            let len = (size - within).min(end - at);
            let scale = self.scales.get(block);
            let mean = self.means.map_or(0.0, |m| m[block]);
            let part = &mut out[at..at + len];
            let mut chunks = part.chunks_exact_mut(S::LANES);
            for chunk in &mut chunks {
                let v = s.mul(s.mul(s.load(chunk), s.splat(scale)), s.splat(self.unit));
                s.store(v, chunk);
            }
            for v in chunks.into_remainder() {
                *v = (*v * scale) * self.unit;
            }
            if self.means.is_some() {
                for v in &mut out[at..at + len] {
                    *v += mean;
                }
            }
            at += len;
        }
    }
}

/// Codes that lie a byte apart, if their values are evenly spaced.
fn apart(q: &QTensor) -> Codes<'_> {
    let (book, bits) = (q.codebook(), q.format().code_bits as usize);
    let one_each = q.format().weights_per_code == 1 && q.format().packing == Packing::LowFirst;
    match book {
        [first, second, ..] if one_each && bits < 8 => {
            let (first, step) = (*first, *second - *first);
            let even = book.iter().enumerate().all(|(code, v)| *v == first + step * code as f32);
            if even { Codes::Apart { first, step, bits } } else { Codes::Other(q) }
        }
        _ => Codes::Other(q),
    }
}

/// [`View::decode`] as a kernel.
pub(crate) struct DecodeRow<'a, 'b> {
    pub view: &'a View<'a>,
    pub row: usize,
    pub col: usize,
    pub out: &'b mut [f32],
}

impl Task for DecodeRow<'_, '_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        self.view.decode(s, self.row, self.col, self.out);
    }
}

/// Whether a format's rows lie apart: then a run of a flat tensor cannot cross them.
pub(crate) fn has_rows(q: &QTensor) -> bool {
    q.format().needs_rows()
}
