//! A quantized tensor: codes, scales, shape and format.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use half::f16;

use crate::cpu::turned::Turned;
use crate::format::{Layout, ScaleKind, Values};
use crate::formats::SIGNED_MAP;
use crate::{DType, Error, Format, Result, pack};

/// Blocks of f32 scales that double quantization quantizes together.
pub const NESTED_BLOCK_SIZE: usize = 256;

/// A quantized tensor. Every part has been checked against the format and the shape, so kernels
/// index without asking again.
///
/// Cloning is cheap where the codes are shared with a file's memory map.
#[derive(Debug, Clone)]
pub struct QTensor {
    format: &'static Format,
    shape: Vec<usize>,
    block_size: usize,
    codes: Bytes,
    scales: Scales,
    means: Option<Vec<f32>>,
    codebook: Option<Arc<[f32]>>,
    turned: Arc<Turned>,
}

/// One scale per block, as stored.
#[derive(Debug, Clone)]
pub enum Scales {
    /// As they are. Borrowed where whoever has them keeps them in memory that outlives the tensor.
    F32(Cow<'static, [f32]>),
    /// Quantized themselves: `map[code] * absmax[i / block_size] + offset`.
    Nested(Nested),
    /// Exponents of powers of two, biased by 127; 255 is NaN.
    E8M0(Bytes),
    /// Half floats. Means of such a tensor are half floats as well.
    F16(Cow<'static, [f16]>),
}

/// Double quantized scales: `scale[i] = map[codes[i]] * absmax[i / block_size] + offset`.
#[derive(Debug, Clone)]
pub struct Nested {
    /// One code per scale, an index into `map`.
    pub codes: Bytes,
    /// One per `block_size` scales.
    pub absmax: Vec<f32>,
    /// The mean that was taken off before quantizing.
    pub offset: f32,
    /// Scales that share a nested absmax; [`NESTED_BLOCK_SIZE`] unless a file says otherwise.
    pub block_size: usize,
    /// 256 values; [`SIGNED_MAP`] unless a file says otherwise.
    pub map: Arc<[f32]>,
}

impl Nested {
    /// Scale `i` in f32, exactly as bitsandbytes restores it.
    #[inline(always)]
    pub fn get(&self, i: usize) -> f32 {
        self.map[usize::from(self.codes[i])] * self.absmax[i / self.block_size] + self.offset
    }

    /// The signed dynamic map, shared.
    pub fn default_map() -> Arc<[f32]> {
        Arc::from(SIGNED_MAP.as_slice())
    }
}

impl Scales {
    /// Number of blocks.
    pub fn len(&self) -> usize {
        match self {
            Scales::F32(s) => s.len(),
            Scales::Nested(n) => n.codes.len(),
            Scales::E8M0(e) => e.len(),
            Scales::F16(s) => s.len(),
        }
    }

    /// Whether there are no blocks.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Scale of block `i` in f32.
    #[inline(always)]
    pub fn get(&self, i: usize) -> f32 {
        match self {
            Scales::F32(s) => s[i],
            Scales::Nested(n) => n.get(i),
            Scales::E8M0(e) => e8m0_to_f32(e[i]),
            Scales::F16(s) => s[i].to_f32(),
        }
    }

    /// All scales in f32.
    pub fn to_f32(&self) -> Vec<f32> {
        (0..self.len()).map(|i| self.get(i)).collect()
    }

    /// Stored bytes, nested absmax and offset included.
    pub fn bytes(&self) -> usize {
        match self {
            Scales::F32(s) => 4 * s.len(),
            Scales::Nested(n) => n.codes.len() + 4 * n.absmax.len() + 4,
            Scales::E8M0(e) => e.len(),
            Scales::F16(s) => 2 * s.len(),
        }
    }

    /// What a person would call them.
    fn kind(&self) -> &'static str {
        match self {
            Scales::F32(_) => "f32",
            Scales::Nested(_) => "nested",
            Scales::E8M0(_) => "E8M0",
            Scales::F16(_) => "f16",
        }
    }
}

/// `2^(e - 127)`, or NaN for 255.
#[inline(always)]
pub fn e8m0_to_f32(e: u8) -> f32 {
    match e {
        0 => f32::from_bits(0x0040_0000),
        255 => f32::NAN,
        e => f32::from_bits(u32::from(e) << 23),
    }
}

/// The parts of a [`QTensor`], for those who read them from a file.
#[derive(Debug, Clone)]
pub struct Parts {
    /// Its format.
    pub format: &'static Format,
    /// Shape of the weights; row layouts take `[N, K]`, flat layouts any.
    pub shape: Vec<usize>,
    /// Weights a scale stands for; `None` for the format's default.
    pub block_size: Option<usize>,
    /// Packed codes.
    pub codes: Bytes,
    /// Scales.
    pub scales: Scales,
    /// Block means, for a format that adds them.
    pub means: Option<Vec<f32>>,
    /// Values of the codes where they are not the format's own.
    pub codebook: Option<Arc<[f32]>>,
}

impl QTensor {
    /// Puts a tensor together from its stored parts.
    ///
    /// # Errors
    /// [`Error::Argument`] if a part has the wrong length or kind for the format and the shape.
    pub fn from_parts(parts: Parts) -> Result<Self> {
        const OP: &str = "QTensor::from_parts";
        let Parts { format, shape, block_size, codes, scales, means, codebook } = parts;
        let geometry = Geometry::new(format, &shape, block_size)?;
        let expect = |what: &str, expected: usize, got: usize| {
            if expected == got {
                return Ok(());
            }
            Err(Error::argument(
                OP,
                format!("{expected} {what} for {} of shape {shape:?}", format.name),
                got.to_string(),
                "the tensor is truncated or belongs to another shape or block size",
            ))
        };
        expect("bytes of codes", geometry.code_bytes, codes.len())?;
        expect("scales", geometry.blocks, scales.len())?;
        if let Some(means) = &means {
            expect("means", if format.has_mean { geometry.blocks } else { 0 }, means.len())?;
        }
        // Kernels ask only whether there are means.
        let means = means.filter(|_| format.has_mean);
        match (&scales, format.scale) {
            (Scales::E8M0(_), ScaleKind::E8M0) => {}
            (Scales::F32(_), ScaleKind::Absmax | ScaleKind::Step | ScaleKind::Absmean) => {}
            (Scales::F16(_), ScaleKind::Absmean) => {
                let halves = |m: &f32| f16::from_f32(*m).to_f32().to_bits() == m.to_bits();
                if let Some(mean) = means.iter().flatten().find(|m| !m.is_nan() && !halves(m)) {
                    return Err(Error::argument(
                        OP,
                        "means that are half floats, as the scales are",
                        mean.to_string(),
                        "round them, or keep both in f32",
                    ));
                }
            }
            (Scales::Nested(n), ScaleKind::Absmax | ScaleKind::Step) => {
                if n.block_size == 0 {
                    expect("weights per nested block", NESTED_BLOCK_SIZE, 0)?;
                }
                expect("nested absmax", n.codes.len().div_ceil(n.block_size), n.absmax.len())?;
                expect("entries of the nested map", 256, n.map.len())?;
            }
            (scales, kind) => {
                return Err(Error::argument(
                    OP,
                    format!("scales of kind {kind:?} for {}", format.name),
                    scales.kind(),
                    "read them under the format's own keys",
                ));
            }
        }
        let entries = format.codebook_len();
        match &codebook {
            Some(book) => expect("codebook entries", entries, book.len())?,
            None if format.codebook().is_none() => expect("codebook entries", entries, 0)?,
            None => {}
        }
        if let (Values::Patterns { .. }, Some(book)) = (format.values, &codebook)
            && let Some(other) = book.iter().find(|v| ![-1.0, 0.0, 1.0].contains(*v))
        {
            return Err(Error::argument(
                OP,
                format!("a codebook of -1, 0 and 1 for {}", format.name),
                other.to_string(),
                "read it under the format's own keys",
            ));
        }
        Ok(QTensor {
            format,
            shape,
            block_size: geometry.block_size,
            codes,
            scales,
            means,
            codebook,
            turned: Arc::default(),
        })
    }

    /// Its codes as some kernels take them.
    pub(crate) fn turned(&self) -> &Turned {
        &self.turned
    }

    /// How the weights are stored.
    pub fn format(&self) -> &'static Format {
        self.format
    }

    /// Shape of the weights.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of rows: `N` of `[N, K]`, 1 for a vector or a scalar.
    pub fn rows(&self) -> usize {
        rows_cols(&self.shape).0
    }

    /// Length of a row: `K` of `[N, K]`; of a tensor of higher rank, all but the first dimension.
    pub fn cols(&self) -> usize {
        rows_cols(&self.shape).1
    }

    /// Number of weights.
    pub fn numel(&self) -> usize {
        self.shape.iter().product()
    }

    /// Weights that one scale stands for.
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// Packed codes.
    pub fn codes(&self) -> &Bytes {
        &self.codes
    }

    /// Scales as stored.
    pub fn scales(&self) -> &Scales {
        &self.scales
    }

    /// Block means, where the format adds them.
    pub fn means(&self) -> Option<&[f32]> {
        self.means.as_deref()
    }

    /// Values of the codes.
    pub fn codebook(&self) -> &[f32] {
        match (&self.codebook, self.format.codebook()) {
            (Some(book), _) => book,
            (None, Some(book)) => book,
            (None, None) => &[],
        }
    }

    /// The values of the codes, where they are not the format's.
    pub(crate) fn own_codebook(&self) -> Option<&Arc<[f32]>> {
        self.codebook.as_ref()
    }

    /// Whether the codes stand for other values than the format's own table.
    pub fn has_own_codebook(&self) -> bool {
        self.codebook.is_some()
    }

    /// Stored bytes: codes, scales, means and a codebook of its own.
    pub fn bytes(&self) -> usize {
        let mean = if matches!(self.scales, Scales::F16(_)) { 2 } else { 4 };
        self.codes.len()
            + self.scales.bytes()
            + mean * self.means.as_ref().map_or(0, Vec::len)
            + self.codebook.as_ref().map_or(0, |_| self.format.codebook_bytes())
    }

    /// Stored bits per weight, scales included; 0 for an empty tensor.
    pub fn bits_per_weight(&self) -> f64 {
        if self.numel() == 0 { 0.0 } else { 8.0 * self.bytes() as f64 / self.numel() as f64 }
    }

    /// The same tensor with other scales of the same number.
    ///
    /// # Errors
    /// As [`from_parts`](Self::from_parts).
    pub fn with_scales(self, scales: Scales) -> Result<Self> {
        let QTensor { format, shape, block_size, codes, means, codebook, .. } = self;
        let block_size = Some(block_size);
        Self::from_parts(Parts { format, shape, block_size, codes, scales, means, codebook })
    }

    /// The same tensor without its means, if it has any.
    pub fn without_means(&self) -> Option<Self> {
        self.means.as_ref()?;
        Some(QTensor { means: None, ..self.clone() })
    }

    /// Where row starts, blocks and codes lie.
    pub(crate) fn geometry(&self) -> Geometry {
        Geometry::of(self.format, &self.shape, self.block_size)
    }
}

/// `[N, K]` of a shape: the first dimension, and the product of the others.
pub(crate) fn rows_cols(shape: &[usize]) -> (usize, usize) {
    match shape {
        [] => (1, 1),
        [k] => (1, *k),
        [n, rest @ ..] => (*n, rest.iter().product()),
    }
}

/// Sizes that follow from a format, a shape and a block size: what a tensor will take, before any of
/// it is quantized.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Geometry {
    /// Rows of `[N, K]`.
    pub n: usize,
    /// Weights in a row.
    pub k: usize,
    /// Weights that share a scale.
    pub block_size: usize,
    /// Blocks in the tensor.
    pub blocks: usize,
    /// Bytes of packed codes.
    pub code_bytes: usize,
    /// For a row layout: bytes of a row.
    pub row_bytes: Option<usize>,
    /// For a stacked layout: rows of bytes, and rows of weights in each.
    pub stacked: Option<(usize, usize)>,
}

impl Geometry {
    /// Checks the shape and the block size (`None` for the format's default) and works the sizes out.
    ///
    /// # Errors
    /// [`Error::Argument`] for a block size or a shape that the format cannot have.
    pub fn new(format: &Format, shape: &[usize], block_size: Option<usize>) -> Result<Self> {
        const OP: &str = "shape";
        // A dimension of zero must not hide others whose product overflows.
        let numel = shape.iter().try_fold(1usize, |n, d| n.checked_mul((*d).max(1)));
        if numel.is_none_or(|n| n > isize::MAX as usize / 16) {
            return Err(Error::argument(
                OP,
                "a product of dimensions that fits in memory",
                format!("{shape:?}"),
                "check the shape",
            ));
        }
        if format.needs_rows() && shape.len() < 2 {
            return Err(Error::argument(
                OP,
                format!("[N, K] for {}, which lays rows apart", format.name),
                format!("{shape:?}"),
                "reshape it, or choose a format with flat blocks",
            ));
        }
        let (n, k) = rows_cols(shape);
        let mut whole = k;
        if let Layout::Stacked { rows } = format.layout {
            whole = n * k;
            if n % rows != 0 {
                return Err(Error::argument(
                    OP,
                    format!("a multiple of {rows} rows for {}, which packs so many", format.name),
                    format!("{shape:?}"),
                    "leave that tensor out, pad its rows, or choose another format",
                ));
            }
        }
        Ok(Self::of(format, shape, format.block_size(block_size, whole)?))
    }

    fn of(format: &Format, shape: &[usize], block_size: usize) -> Self {
        let (n, k) = rows_cols(shape);
        let packed = |weights: usize| {
            let codes = weights.div_ceil(format.weights_per_code);
            pack::packed_len(format.packing, format.code_bits, codes)
        };
        match format.layout {
            Layout::Flat { .. } => Geometry {
                n,
                k,
                block_size,
                blocks: (n * k).div_ceil(block_size),
                code_bytes: packed(n * k),
                row_bytes: None,
                stacked: None,
            },
            Layout::Stacked { rows } => Geometry {
                n,
                k,
                block_size,
                blocks: (n * k).div_ceil(block_size),
                code_bytes: n / rows * k,
                row_bytes: None,
                stacked: Some((n / rows, rows)),
            },
            Layout::Rows { pad, .. } => {
                let row_bytes = packed(k.next_multiple_of(pad));
                Geometry {
                    n,
                    k,
                    block_size,
                    blocks: n * k.div_ceil(block_size),
                    code_bytes: n * row_bytes,
                    row_bytes: Some(row_bytes),
                    stacked: None,
                }
            }
        }
    }

    /// Block of weight `(row, col)`.
    #[inline(always)]
    pub(crate) fn block(&self, row: usize, col: usize) -> usize {
        match self.row_bytes {
            None => (row * self.k + col) / self.block_size,
            Some(_) => row * self.k.div_ceil(self.block_size) + col / self.block_size,
        }
    }

    /// First byte of the run of codes that holds a row, and the index of its first weight there.
    #[inline(always)]
    pub(crate) fn run(&self, row: usize) -> (usize, usize) {
        match (self.row_bytes, self.stacked) {
            (Some(bytes), _) => (row * bytes, 0),
            (None, Some((rows, _))) => (row % rows * self.k, row / rows),
            (None, None) => (0, row * self.k),
        }
    }

    /// How far apart neighbouring weights of a row lie in its run.
    #[inline(always)]
    pub(crate) fn stride(&self) -> usize {
        self.stacked.map_or(1, |(_, rows)| rows)
    }
}

/// An unquantized tensor, as a checkpoint holds it: little-endian numbers.
#[derive(Debug, Clone)]
pub struct DenseTensor {
    dtype: DType,
    shape: Vec<usize>,
    data: Bytes,
}

impl DenseTensor {
    /// Wraps the bytes of a tensor.
    ///
    /// # Errors
    /// [`Error::Argument`] if their number does not fit the shape.
    pub fn new(dtype: DType, shape: Vec<usize>, data: Bytes) -> Result<Self> {
        let expected = shape.iter().try_fold(dtype.size(), |n, d| n.checked_mul(*d));
        if expected != Some(data.len()) {
            return Err(Error::argument(
                "DenseTensor::new",
                format!("the bytes of {dtype} {shape:?}"),
                format!("{} bytes", data.len()),
                "the tensor is truncated or has another shape",
            ));
        }
        Ok(DenseTensor { dtype, shape, data })
    }

    /// Copies f32 numbers.
    ///
    /// # Errors
    /// [`Error::Argument`] if their number does not fit the shape.
    pub fn from_f32(shape: Vec<usize>, data: &[f32]) -> Result<Self> {
        Self::new(DType::F32, shape, Bytes::copy_from_slice(bytemuck::cast_slice(data)))
    }

    /// Type of the numbers.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Shape.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The bytes.
    pub fn data(&self) -> &Bytes {
        &self.data
    }

    /// The numbers in f32.
    pub fn to_f32(&self) -> Vec<f32> {
        let wide = |pair: &[u8]| u16::from_le_bytes([pair[0], pair[1]]);
        match self.dtype {
            DType::F32 => bytemuck::pod_collect_to_vec(&self.data),
            DType::F16 => {
                self.data.chunks_exact(2).map(|p| f16::from_bits(wide(p)).to_f32()).collect()
            }
            DType::BF16 => {
                self.data.chunks_exact(2).map(|p| half::bf16::from_bits(wide(p)).to_f32()).collect()
            }
        }
    }
}

/// A weight as a checkpoint has it.
#[derive(Debug, Clone)]
pub enum Weight {
    /// Not quantized.
    Dense(DenseTensor),
    /// Quantized.
    Quantized(QTensor),
}

impl Weight {
    /// Shape of the weights.
    pub fn shape(&self) -> &[usize] {
        match self {
            Weight::Dense(d) => d.shape(),
            Weight::Quantized(q) => q.shape(),
        }
    }

    /// Stored bytes, scales included.
    pub fn bytes(&self) -> usize {
        match self {
            Weight::Dense(d) => d.data().len(),
            Weight::Quantized(q) => q.bytes(),
        }
    }
}

impl From<DenseTensor> for Weight {
    fn from(dense: DenseTensor) -> Self {
        Weight::Dense(dense)
    }
}

impl From<QTensor> for Weight {
    fn from(q: QTensor) -> Self {
        Weight::Quantized(q)
    }
}
