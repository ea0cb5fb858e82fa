//! A weight on the GPU, and what a kernel's text needs to know to read it.

mod text;

use std::ops::Range;

use lowbit::format::Packing;
use lowbit::{DType, DenseTensor, Error, QTensor, Result, Scales, Weight};

use crate::queue::{Queue, count};
use crate::stack::Stack;
use crate::{Description, Limits};

/// Parameters of a kernel that reads a weight: the weight's, then its own.
macro_rules! params {
    ($($own:literal),*) => {
        &[
            "n", "k", "row_words", "row_vectors", "row_bytes", "block_size", "block_shift",
            "blocks_per_row", "nested_size", "zero", "down", "up", $($own),*
        ]
    };
}
pub(crate) use params;

/// Those of most kernels that read weights.
pub(crate) const PARAMS: &[&str] = params!("m", "row_x", "first_x", "row_y", "first_y");

/// Most entries of a codebook that kernels copy to workgroup memory.
const TABLE: usize = 4096;

/// A weight on the GPU: `[N, K]`, in several parts where it is larger than a binding may be.
pub struct GpuWeight<B> {
    shape: Vec<usize>,
    n: usize,
    k: usize,
    kind: Kind,
    parts: Vec<Part<B>>,
}

/// What the text of a kernel depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Kind {
    pub codes: Codes,
    pub scales: Stored,
    /// Values come from a table that is bound; else a code is a signed integer.
    pub table: usize,
    /// Blocks are a power of two, or whole rows.
    pub power_of_two: bool,
    /// Four weights from a multiple of four lie in one word and one block, or are dense.
    pub words: bool,
    /// A vector of 128 bits from a multiple of that lies in one row and one block.
    pub vectors: bool,
    /// So do two such vectors, from a multiple of both.
    pub double_vectors: bool,
    /// Where a byte stands for several weights: bytes and weights of spans that are a multiple of four
    /// weights and lie in one block, if K is such a multiple as well.
    pub span: Option<[u32; 2]>,
    pub octets: Octets,
}

/// How eight weights from a multiple of eight, which lie in one row and block, are loaded at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Octets {
    /// They are not: they do not lie so.
    OneByOne,
    /// Each of their codes, or they themselves, lie in words.
    Words,
    /// A run of codes stands for so many of a row's weights in so many bits.
    Grouped([u32; 2]),
    /// Their codes lie a byte apart, with those of other rows.
    Stacked,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Codes {
    Dense(DType),
    Format(&'static str, Coding),
}

/// The fields of a format that a kernel needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Coding {
    pub bits: u32,
    pub per_code: usize,
    pub packing: Packing,
    /// Blocks lie on the flattened tensor.
    pub flat: bool,
    /// Rows that share a byte, each far from the next; 1 where none do.
    pub stacked: u32,
    /// Bits of the f32.
    pub unit: u32,
    pub has_mean: bool,
}

/// What a kernel reads of codes at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reads {
    /// 32 bits.
    Words,
    /// 64 bits.
    Pairs,
    /// 128 bits.
    Vectors,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Stored {
    None,
    F32,
    F16,
    Nested,
    E8M0,
}

/// Rows that lie in buffers of their own.
pub(crate) struct Part<B> {
    pub rows: Range<usize>,
    codes: B,
    /// Scales, nested absmax with their offsets and map, means, codebook: those that the kind has, in this order.
    rest: Vec<B>,
    layout: [u32; 12],
}

impl<B: Clone> GpuWeight<B> {
    /// Copies a weight to the GPU.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] or [`Error::Device`] as the GPU reports, [`Error::Argument`] for rows
    /// too long for one binding.
    pub fn upload<Q: Queue<Buffer = B>>(queue: &Q, weight: &Weight) -> Result<Self> {
        Self::upload_with(queue, weight, None)
    }

    /// Copies several weights to the GPU, one after the other.
    ///
    /// # Errors
    /// As [`upload`](Self::upload).
    pub(crate) fn upload_stack<Q: Queue<Buffer = B>>(queue: &Q, stack: &Stack) -> Result<Self> {
        Self::upload_with(queue, &stack.weight, stack.offsets.as_deref())
    }

    /// `offsets` are those of nested blocks, where they are not all the same.
    fn upload_with<Q: Queue<Buffer = B>>(
        queue: &Q,
        weight: &Weight,
        offsets: Option<&[f32]>,
    ) -> Result<Self> {
        match weight {
            Weight::Dense(dense) => Self::upload_dense(queue, dense),
            Weight::Quantized(q) => Self::upload_quantized(queue, q, offsets),
        }
    }

    fn upload_dense<Q: Queue<Buffer = B>>(queue: &Q, dense: &DenseTensor) -> Result<Self> {
        let (n, k) = rows_cols(dense.shape());
        let size = dense.dtype().size();
        let bits = 8 * size;
        let row = k * size;
        let aligned = |unit: usize| k > 0 && (k * bits) % unit == 0;
        let kind = Kind {
            codes: Codes::Dense(dense.dtype()),
            scales: Stored::None,
            table: 0,
            power_of_two: true,
            words: k % 4 == 0,
            vectors: aligned(128),
            double_vectors: aligned(256),
            span: None,
            octets: if k > 0 && k % 8 == 0 { Octets::Words } else { Octets::OneByOne },
        };
        let largest = dense.to_f32().iter().fold(0.0f32, |most, w| most.max(w.abs()));
        let [down, up] = powers(largest);
        let mut parts = Vec::new();
        for rows in split(n, row.max(1), queue.limits().binding)? {
            let layout = [
                count("upload", rows.len())?,
                count("upload", k)?,
                (row / 4) as u32,
                (row / 16) as u32,
                count("upload", row)?,
                1,
                0,
                0,
                1,
                0,
                down,
                up,
            ];
            let codes = queue.upload(&dense.data()[rows.start * row..rows.end * row])?;
            parts.push(Part { rows, codes, rest: Vec::new(), layout });
        }
        Ok(GpuWeight { shape: dense.shape().to_vec(), n, k, kind, parts })
    }

    fn upload_quantized<Q: Queue<Buffer = B>>(
        queue: &Q,
        q: &QTensor,
        offsets: Option<&[f32]>,
    ) -> Result<Self> {
        let (format, n, k) = (q.format(), q.rows(), q.cols());
        let description = Description::from(q);
        let g = description.geometry()?;
        let kind = description.kind(&g);
        let row_bits = description.row_bits(&g);
        // A part begins with a byte and a block; flat runs may have to stay whole.
        let row_bytes = row_bits.div_ceil(8).max(1);
        let limit = queue.limits().binding;
        let fits = q.codes().len() as u64 <= limit && 4 * q.scales().len() as u64 <= limit;
        let separable = match g.row_bytes {
            Some(_) => true,
            None => row_bits % 8 == 0 && k % q.block_size() == 0,
        } && match q.scales() {
            Scales::Nested(nested) => PART_ROWS % nested.block_size == 0,
            _ => true,
        };
        let ranges = match (fits, separable) {
            (true, _) => std::iter::once(0..n).collect(),
            (false, true) => split(n, row_bytes.max(4 * k.div_ceil(q.block_size())), limit)?,
            (false, false) => {
                return Err(Error::argument(
                    "upload",
                    format!("at most {limit} bytes, or rows of whole bytes"),
                    format!("{} of {:?}", format.name, q.shape()),
                    "choose a block size that divides the row, or use the CPU",
                ));
            }
        };
        let value = q.codebook().iter().filter(|v| v.is_finite());
        let value = value.fold(0.0f32, |most, v| most.max(v.abs())) * format.unit;
        let scale = (0..q.scales().len()).map(|i| q.scales().get(i).abs());
        let mean = q.means().unwrap_or_default().iter().fold(0.0f32, |most, v| most.max(v.abs()));
        let [down, up] = powers(value * scale.fold(0.0, f32::max) + mean);
        let shared = SharedParts::upload(queue, q, kind.table)?;
        let mut parts = Vec::new();
        for rows in ranges {
            let blocks = |row: usize| match g.row_bytes {
                Some(_) => row * k.div_ceil(q.block_size()),
                None => (row * k).div_ceil(q.block_size()),
            };
            let (from, to) = (blocks(rows.start), blocks(rows.end));
            let bytes = if rows == (0..n) {
                0..q.codes().len()
            } else {
                rows.start * row_bytes..rows.end * row_bytes
            };
            let layout = description.layout(&g, rows.len(), [down, up])?;
            let rest = shared.of(queue, q, offsets, from..to)?;
            parts.push(Part { rows, codes: queue.upload(&q.codes()[bytes])?, rest, layout });
        }
        Ok(GpuWeight { shape: q.shape().to_vec(), n, k, kind, parts })
    }

    /// A weight whose numbers lie in buffers already: `buffer` gives each by the name of its binding
    /// and its length in bytes.
    pub(crate) fn of_buffers(
        description: &Description<'_>,
        limits: &Limits,
        mut buffer: impl FnMut(&'static str, u64) -> Result<B>,
    ) -> Result<Self> {
        let g = description.geometry()?;
        let kind = description.kind(&g);
        if g.code_bytes as u64 > limits.binding {
            return Err(Error::argument(
                "weight",
                format!("at most {} bytes of codes", limits.binding),
                g.code_bytes.to_string(),
                "split the weight, or use the CPU",
            ));
        }
        let bytes = description.scale_bytes(&g);
        let codes = buffer("codes", g.code_bytes as u64)?;
        let mut rest = vec![buffer("scales", bytes as u64)?];
        if let Some(size) = description.nested_block_size {
            rest.push(buffer("nested_absmax", 8 * g.blocks.div_ceil(size) as u64)?);
            rest.push(buffer("nested_map", 4 * 256)?);
        }
        if description.has_mean {
            rest.push(buffer("means", 4 * g.blocks as u64)?);
        }
        if kind.table > 0 {
            rest.push(buffer("book", 4 * kind.table as u64)?);
        }
        let layout = description.layout(&g, g.n, powers(0.0))?;
        let parts = vec![Part { rows: 0..g.n, codes, rest, layout }];
        Ok(GpuWeight { shape: description.shape.to_vec(), n: g.n, k: g.k, kind, parts })
    }

    /// Its shape.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Rows, and length of a row.
    pub(crate) fn rows_cols(&self) -> (usize, usize) {
        (self.n, self.k)
    }

    /// Whether its rows follow each other without a gap, as one row would lie, in words.
    pub(crate) fn is_line(&self) -> bool {
        let Some(part) = self.parts.first() else { return false };
        let bits = self.kind.bits() as usize;
        let [_, _, _, _, row_bytes, block_size, block_shift, ..] = part.layout;
        let (row_bits, block_size) = (8 * row_bytes as usize, block_size as usize);
        self.kind.octets == Octets::Words
            && (row_bits == 0 || row_bits == self.k * bits)
            && if block_shift == 31 {
                self.n <= 1
            } else {
                row_bits == 0 || self.k % block_size == 0
            }
            && (self.n * self.k * bits) as u64 <= u64::from(u32::MAX)
    }

    /// Whether no row has more than one block.
    pub(crate) fn has_whole_rows(&self) -> bool {
        self.parts.iter().all(|part| part.layout[7] <= 1)
    }

    pub(crate) fn kind(&self) -> &Kind {
        &self.kind
    }

    pub(crate) fn parts(&self) -> &[Part<B>] {
        &self.parts
    }
}

/// Bits of the power of two that brings `largest` to 1..2, and of its inverse; 1 where there is none.
fn powers(largest: f32) -> [u32; 2] {
    let exponent = largest.to_bits() >> 23;
    if exponent == 0 || exponent >= 254 {
        return [1f32.to_bits(); 2];
    }
    [(254 - exponent) << 23, exponent << 23]
}

/// Parts hold a multiple of so many rows, and so whole nested blocks.
const PART_ROWS: usize = 256;

/// Ranges of `n` rows that take at most `limit` bytes each.
fn split(n: usize, row_bytes: usize, limit: u64) -> Result<Vec<Range<usize>>> {
    let most = usize::try_from(limit).unwrap_or(usize::MAX) / row_bytes;
    if most >= n {
        return Ok(std::iter::once(0..n).collect());
    }
    let step = most / PART_ROWS * PART_ROWS;
    if step == 0 {
        return Err(Error::argument(
            "upload",
            format!("{PART_ROWS} rows within {limit} bytes"),
            format!("rows of {row_bytes} bytes"),
            "use a GPU with larger bindings, or the CPU",
        ));
    }
    Ok((0..n).step_by(step).map(|from| from..n.min(from + step)).collect())
}

fn rows_cols(shape: &[usize]) -> (usize, usize) {
    match shape {
        [] => (1, 1),
        [k] => (1, *k),
        [n, rest @ ..] => (*n, rest.iter().product()),
    }
}

/// What all parts of a quantized weight share.
struct SharedParts<B> {
    /// The nested map.
    map: Option<B>,
    book: Option<B>,
}

impl<B: Clone> SharedParts<B> {
    fn upload<Q: Queue<Buffer = B>>(queue: &Q, q: &QTensor, table: usize) -> Result<Self> {
        let map = match q.scales() {
            Scales::Nested(nested) => Some(queue.upload(bytemuck::cast_slice(&nested.map))?),
            _ => None,
        };
        let book = match table {
            0 => None,
            _ => Some(queue.upload(bytemuck::cast_slice(q.codebook()))?),
        };
        Ok(SharedParts { map, book })
    }

    /// The buffers of blocks `range`, in the order of [`Part::rest`].
    fn of<Q: Queue<Buffer = B>>(
        &self,
        queue: &Q,
        q: &QTensor,
        offsets: Option<&[f32]>,
        blocks: Range<usize>,
    ) -> Result<Vec<B>> {
        let mut rest = Vec::new();
        let range = blocks.clone();
        match q.scales() {
            Scales::F32(scales) => rest.push(queue.upload(bytemuck::cast_slice(&scales[range]))?),
            Scales::F16(scales) => rest.push(queue.upload(bytemuck::cast_slice(&scales[range]))?),
            Scales::E8M0(scales) => rest.push(queue.upload(&scales[range])?),
            Scales::Nested(nested) => {
                // Parts begin with a nested block.
                let absmax = range.start / nested.block_size..range.end.div_ceil(nested.block_size);
                rest.push(queue.upload(&nested.codes[range])?);
                let offset = |i: usize| offsets.map_or(nested.offset, |offsets| offsets[i]);
                let pairs: Vec<[f32; 2]> = absmax.map(|i| [nested.absmax[i], offset(i)]).collect();
                rest.push(queue.upload(bytemuck::cast_slice(&pairs))?);
                rest.extend(self.map.clone());
            }
        }
        if let Some(means) = q.means() {
            rest.push(queue.upload(bytemuck::cast_slice(&means[blocks]))?);
        }
        rest.extend(self.book.clone());
        Ok(rest)
    }
}

impl Kind {
    /// Whether kernels can read four weights at once.
    pub fn words(&self) -> bool {
        self.words
    }

    /// Workgroup memory that its codebook takes.
    pub fn table_bytes(&self) -> u32 {
        if self.table <= TABLE { 4 * self.table as u32 } else { 0 }
    }

    /// Whether a weight takes few instructions to decode.
    pub fn is_light(&self) -> bool {
        self.has_nibble_vectors() || self.bits() == 8
    }

    /// Bits of a code.
    pub fn bits(&self) -> u32 {
        match self.codes {
            Codes::Dense(dtype) => 8 * dtype.size() as u32,
            Codes::Format(_, coding) => coding.bits,
        }
    }

    /// Whether 32 such codes from a multiple of 32 lie in one vector and block.
    pub fn has_nibble_vectors(&self) -> bool {
        self.vectors && self.is_nibble_table()
    }

    /// Whether a code is four bits that stand for one weight of a table, without means.
    pub fn is_nibble_table(&self) -> bool {
        matches!(self.codes, Codes::Format(_, c) if c.bits == 4 && c.per_code == 1 && !c.has_mean)
            && self.table == 16
    }
}

impl<B: Clone> Part<B> {
    /// Its buffers, in the order in which [`Builder::weight`] binds them.
    pub fn buffers(&self) -> impl Iterator<Item = &B> {
        std::iter::once(&self.codes).chain(&self.rest)
    }

    /// The parameters [`PARAMS`]: those of the weight, then the others.
    pub fn params<const L: usize>(&self, others: [u32; L]) -> Vec<u32> {
        [&self.layout[..], &others].concat()
    }
}

impl<B> std::fmt::Debug for GpuWeight<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "GpuWeight{:?} {:?}", self.shape, self.kind)
    }
}
