//! CPU kernels: the specification ([`reference`](mod@reference)) and the fast paths behind [`Cpu`].

mod buffer;
mod byte_tables;
pub(crate) mod byte_values;
pub(crate) mod cells;
mod columns;
pub(crate) mod convert;
mod decode;
mod dequantize;
mod device;
mod dispatch;
mod dots;
pub(crate) mod embedding;
pub(crate) mod entries;
mod gemm;
mod gemm16;
mod gemm_few;
mod gemm_matrix;
mod gemm_pairs;
mod gemm_wide;
mod gemv;
mod groups;
mod int8;
mod int8_linear;
mod int8_matrix;
mod integer_tables;
mod linear;
#[cfg(target_arch = "x86_64")]
pub(crate) mod lines;
mod lookup;
mod low_rank;
pub mod measure;
mod outliers;
mod planes;
mod quantize;
pub mod reference;
mod scales;
pub(crate) mod simd;
mod stacked;
mod tile;
mod transposed;
pub(crate) mod turned;
mod view;

pub use device::CpuDevice;
pub use dispatch::Isa;
pub use low_rank::{LowRank, LowRankGradients};
pub use outliers::WithoutOutliers;

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use crate::tensor::rows_cols;
use crate::{
    DType, Element, Error, Format, NESTED_BLOCK_SIZE, Nested, QTensor, Result, Scales, Weight,
    formats,
};
use view::{DecodeRow, View};

/// The CPU with one instruction set. Work is spread over rayon's current thread pool, or over the
/// [team](crate::threads) that is given.
#[derive(Debug, Clone, Copy)]
pub struct Cpu {
    isa: Isa,
}

impl Cpu {
    /// The best instruction set of this machine.
    pub fn best() -> Self {
        Self::with(Isa::best())
    }

    /// A chosen instruction set.
    pub fn with(isa: Isa) -> Self {
        Cpu { isa }
    }

    /// The instruction set.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Quantizes `w`, row-major of that shape, to a format; `block_size` None is the format's
    /// default.
    ///
    /// # Errors
    /// [`Error::Argument`] for a shape or block size the format cannot have, [`Error::NotFinite`]
    /// for NaN or infinity in `w`.
    pub fn quantize<T: Element>(
        &self,
        format: &'static Format,
        w: &[T],
        shape: &[usize],
        block_size: Option<usize>,
    ) -> Result<QTensor> {
        T::quantize(self, format, w, shape, block_size)
    }

    /// [`quantize`](Self::quantize) with the codes written to memory of the caller, as many bytes as
    /// [`Geometry::code_bytes`](crate::Geometry) says, whatever was in them. Returns the scales.
    ///
    /// # Errors
    /// As [`quantize`](Self::quantize), and for a format whose codebook is made for each tensor, and [`Error::Argument`] if `codes` has another length.
    pub fn quantize_into<T: Element>(
        &self,
        format: &'static Format,
        w: &[T],
        shape: &[usize],
        block_size: Option<usize>,
        codes: &mut [u8],
    ) -> Result<Scales> {
        T::quantize_into(self, format, w, shape, block_size, codes)
    }

    /// Quantizes the f32 scales of a tensor a second time, as bitsandbytes does: their mean is
    /// taken off, the rest is quantized with the signed dynamic map in blocks of 256.
    ///
    /// # Errors
    /// [`Error::Argument`] if the scales are not f32.
    pub fn double_quantize(&self, q: QTensor) -> Result<QTensor> {
        let scales = match q.scales() {
            Scales::F32(scales) => scales,
            Scales::Nested(_) => return Ok(q),
            Scales::E8M0(_) | Scales::F16(_) => {
                return Err(Error::argument(
                    "double_quantize",
                    "f32 scales",
                    format!("{}, whose scales are small already", q.format().name),
                    "leave double quantization out",
                ));
            }
        };
        let nested = self.double_quantize_scales(scales)?;
        q.with_scales(Scales::Nested(nested))
    }

    /// What [`double_quantize`](Self::double_quantize) makes of scales.
    ///
    /// # Errors
    /// [`Error::NotFinite`] for NaN or infinity in `scales`.
    pub fn double_quantize_scales(&self, scales: &[f32]) -> Result<Nested> {
        let offset = reference::mean(scales);
        let centred: Vec<f32> = scales.iter().map(|s| s - offset).collect();
        let map = formats::nested();
        let nested = self.quantize(map, &centred, &[scales.len()], Some(NESTED_BLOCK_SIZE))?;
        Ok(Nested {
            codes: nested.codes().clone(),
            absmax: nested.scales().to_f32(),
            offset,
            block_size: NESTED_BLOCK_SIZE,
            map: Arc::from(nested.codebook()),
        })
    }

    /// Writes all weights, row-major, to `out`.
    ///
    /// # Errors
    /// [`Error::Argument`] if `out` has another length.
    pub fn dequantize<T: Element>(&self, q: &QTensor, out: &mut [T]) -> Result<()> {
        T::dequantize(self, q, out)
    }

    /// `y = x wᵀ + bias`: `w: [N, K]`, `x: [.., K]`, `bias: [N]`, `y: [.., N]`.
    ///
    /// Accumulates in f32. f32 activations get f32 accuracy; f16 and bf16 ones may be rounded to
    /// 16-bit integers, to less than 1e-4 of the largest in each 64, and weights to 12 bits or more; in
    /// many rows of bf16, where K is large, weights to bf16.
    ///
    /// # Errors
    /// [`Error::Argument`] if a length does not fit.
    pub fn linear<T: Element>(
        &self,
        q: &QTensor,
        x: &[T],
        bias: Option<&[T]>,
        y: &mut [T],
    ) -> Result<()> {
        T::linear(self, q, x, bias, y)
    }

    /// [`linear`](Self::linear) for one row of activations, without bias: `x: [K]`, `y: [N]`.
    ///
    /// # Errors
    /// [`Error::Argument`] if a length does not fit.
    pub fn gemv<T: Element>(&self, q: &QTensor, x: &[T], y: &mut [T]) -> Result<()> {
        check_len("gemv", "numbers of x, one row of K", q.cols(), x.len())?;
        check_len("gemv", "numbers of y, one row of N", q.rows(), y.len())?;
        self.linear(q, x, None, y)
    }

    /// [`linear`](Self::linear) for `m` rows of activations, without bias: `x: [m, K]`,
    /// `y: [m, N]`.
    ///
    /// # Errors
    /// [`Error::Argument`] if a length does not fit.
    pub fn gemm<T: Element>(&self, q: &QTensor, x: &[T], m: usize, y: &mut [T]) -> Result<()> {
        check_len("gemm", format_args!("numbers of x, {m} rows of K"), m * q.cols(), x.len())?;
        check_len("gemm", format_args!("numbers of y, {m} rows of N"), m * q.rows(), y.len())?;
        self.linear(q, x, None, y)
    }

    /// `dx = dy w`: `w: [N, K]`, `dy: [.., N]`, `dx: [.., K]`: the gradient of
    /// [`linear`](Self::linear)'s input. f32 accuracy, for 16-bit types at least 16 bits of it.
    ///
    /// # Errors
    /// [`Error::Argument`] if a length does not fit.
    pub fn linear_transposed<T: Element>(&self, q: &QTensor, dy: &[T], dx: &mut [T]) -> Result<()> {
        T::linear_transposed(self, q, dy, dx)
    }

    /// `y += scale (x aᵀ) bᵀ`, what an adapter of low rank (LoRA) adds to a result, in f32: `x: [.., K]`,
    /// `y: [.., N]`. `hidden: [.., rank]` takes `scale x aᵀ`, which
    /// [`low_rank_backward`](Self::low_rank_backward) needs.
    ///
    /// # Errors
    /// [`Error::Argument`] if a length does not fit.
    pub fn low_rank<T: Element>(
        &self,
        of: &LowRank<'_>,
        x: &[T],
        y: &mut [T],
        hidden: &mut [f32],
    ) -> Result<()> {
        T::low_rank(self, of, x, y, hidden)
    }

    /// Gradients of [`low_rank`](Self::low_rank): `x: [.., K]`, `hidden: [.., rank]`, `dy: [.., N]`.
    ///
    /// # Errors
    /// [`Error::Argument`] if a length does not fit.
    pub fn low_rank_backward<T: Element>(
        &self,
        of: &LowRank<'_>,
        x: &[T],
        hidden: &[f32],
        dy: &[T],
        out: LowRankGradients<'_, T>,
    ) -> Result<()> {
        T::low_rank_backward(self, of, x, hidden, dy, out)
    }

    /// `y = x wᵀ + bias` for any weight, on f32 numbers: `w: [N, K]`, `x: [.., K]`, `bias: [N]`,
    /// `y: [.., N]`. `precision` says what `x` stands for: a 16-bit type permits the kernels that
    /// [`linear`](Self::linear) uses for it, [`DType::F32`] only exact ones.
    ///
    /// # Errors
    /// [`Error::Argument`] if a length does not fit.
    pub fn linear_f32(
        &self,
        w: &Weight,
        x: &[f32],
        bias: Option<&[f32]>,
        y: &mut [f32],
        precision: DType,
    ) -> Result<()> {
        check_linear(w.shape(), x.len(), bias.map(<[f32]>::len), y.len())?;
        linear::linear(self.isa, &View::of(w), x, bias, y, precision);
        Ok(())
    }

    /// `dx = dy w` for any weight: `w: [N, K]`, `dy: [M, N]`, `dx: [M, K]`; all fit.
    pub(crate) fn linear_transposed_f32(&self, w: &Weight, dy: &[f32], dx: &mut [f32]) {
        transposed::linear_transposed(self.isa, &View::of(w), dy, dx, DType::F32);
    }

    /// Row `row` of a weight in f32. `out: [K]`; both fit.
    pub(crate) fn decode_row(&self, w: &Weight, row: usize, out: &mut [f32]) {
        self.isa.run(DecodeRow { view: &View::of(w), row, col: 0, out });
    }
}

/// [`Cpu::quantize`] on the best instruction set.
///
/// # Errors
/// As [`Cpu::quantize`].
pub fn quantize<T: Element>(
    format: &'static Format,
    w: &[T],
    shape: &[usize],
    block_size: Option<usize>,
) -> Result<QTensor> {
    Cpu::best().quantize(format, w, shape, block_size)
}

/// [`Cpu::double_quantize`] on the best instruction set.
///
/// # Errors
/// As [`Cpu::double_quantize`].
pub fn double_quantize(q: QTensor) -> Result<QTensor> {
    Cpu::best().double_quantize(q)
}

/// [`Cpu::dequantize`] on the best instruction set.
///
/// # Errors
/// As [`Cpu::dequantize`].
pub fn dequantize<T: Element>(q: &QTensor, out: &mut [T]) -> Result<()> {
    Cpu::best().dequantize(q, out)
}

/// [`Cpu::linear`] on the best instruction set.
///
/// # Errors
/// As [`Cpu::linear`].
pub fn linear<T: Element>(q: &QTensor, x: &[T], bias: Option<&[T]>, y: &mut [T]) -> Result<()> {
    Cpu::best().linear(q, x, bias, y)
}

/// [`Cpu::gemv`] on the best instruction set.
///
/// # Errors
/// As [`Cpu::gemv`].
pub fn gemv<T: Element>(q: &QTensor, x: &[T], y: &mut [T]) -> Result<()> {
    Cpu::best().gemv(q, x, y)
}

/// [`Cpu::gemm`] on the best instruction set.
///
/// # Errors
/// As [`Cpu::gemm`].
pub fn gemm<T: Element>(q: &QTensor, x: &[T], m: usize, y: &mut [T]) -> Result<()> {
    Cpu::best().gemm(q, x, m, y)
}

/// [`Cpu::linear_transposed`] on the best instruction set.
///
/// # Errors
/// As [`Cpu::linear_transposed`].
pub fn linear_transposed<T: Element>(q: &QTensor, dy: &[T], dx: &mut [T]) -> Result<()> {
    Cpu::best().linear_transposed(q, dy, dx)
}

/// Numbers in f32; f32 itself is not copied.
fn to_f32<T: Element>(x: &[T]) -> Cow<'_, [f32]> {
    match bytemuck::try_cast_slice(x) {
        Ok(x) if T::DTYPE == DType::F32 => Cow::Borrowed(x),
        _ => Cow::Owned(x.iter().map(|v| v.to_f32()).collect()),
    }
}

pub(crate) fn check_len(
    op: &'static str,
    what: impl fmt::Display,
    expected: usize,
    got: usize,
) -> Result<()> {
    if expected == got {
        return Ok(());
    }
    Err(Error::argument(op, format!("{expected} {what}"), got.to_string(), "check the shapes"))
}

/// Rows of `input` numbers in rows of `of`; where those are empty, of the output.
fn rows_of(input: usize, of: usize, output: usize, of_output: usize) -> usize {
    input.checked_div(of).or(output.checked_div(of_output)).unwrap_or(0)
}

fn check_linear(shape: &[usize], x: usize, bias: Option<usize>, y: usize) -> Result<()> {
    const OP: &str = "linear";
    let (n, k) = rows_cols(shape);
    let m = rows_of(x, k, y, n);
    check_len(OP, format_args!("numbers of x, rows of K = {k}"), m * k, x)?;
    check_len(OP, format_args!("numbers of y, {m} rows of N = {n}"), m * n, y)?;
    check_len(OP, format_args!("numbers of bias, N = {n}"), n, bias.unwrap_or(n))
}
