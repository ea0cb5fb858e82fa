//! CPU kernels: the specification ([`reference`](mod@reference)) and the fast paths behind [`Cpu`].

mod device;
pub mod reference;

pub use device::CpuDevice;

use crate::tensor::rows_cols;
use crate::{Element, Error, Format, QTensor, Result, Scales, Weight};

/// The CPU with one chosen instruction set.
#[derive(Debug, Clone, Copy)]
pub struct Cpu {}

impl Cpu {
    /// The best instruction set of this machine.
    pub fn best() -> Self {
        Cpu {}
    }

    /// Quantizes `w`, row-major of that shape. See [`quantize`].
    ///
    /// # Errors
    /// As [`quantize`].
    pub fn quantize<T: Element>(
        &self,
        format: &'static Format,
        w: &[T],
        shape: &[usize],
        block_size: Option<usize>,
    ) -> Result<QTensor> {
        let w: Vec<f32> = w.iter().map(|v| v.to_f32()).collect();
        reference::quantize(format, &w, shape, block_size)
    }

    /// See [`dequantize`].
    ///
    /// # Errors
    /// As [`dequantize`].
    pub fn dequantize<T: Element>(&self, q: &QTensor, out: &mut [T]) -> Result<()> {
        check_len("dequantize", "numbers of output", q.numel(), out.len())?;
        for (o, v) in out.iter_mut().zip(reference::dequantize(q)) {
            *o = T::from_f32(v);
        }
        Ok(())
    }

    /// See [`linear`].
    ///
    /// # Errors
    /// As [`linear`].
    pub fn linear<T: Element>(
        &self,
        q: &QTensor,
        x: &[T],
        bias: Option<&[T]>,
        y: &mut [T],
    ) -> Result<()> {
        check_linear(q.shape(), x.len(), bias.map(<[T]>::len), y.len())?;
        let x: Vec<f32> = x.iter().map(|v| v.to_f32()).collect();
        let bias: Option<Vec<f32>> = bias.map(|b| b.iter().map(|v| v.to_f32()).collect());
        for (o, v) in y.iter_mut().zip(reference::linear(q, &x, bias.as_deref())) {
            *o = T::from_f32(v as f32);
        }
        Ok(())
    }

    /// `y = x wᵀ + bias` for any weight, on f32 numbers: `w: [N, K]`, `x: [.., K]`, `bias: [N]`,
    /// `y: [.., N]`. `precision` says what `x` stands for: a 16-bit type permits kernels that keep
    /// 16-bit accuracy, [`DType::F32`](crate::DType::F32) only exact ones.
    ///
    /// # Errors
    /// As [`linear`].
    pub fn linear_f32(
        &self,
        w: &Weight,
        x: &[f32],
        bias: Option<&[f32]>,
        y: &mut [f32],
        precision: crate::DType,
    ) -> Result<()> {
        let m = check_linear(w.shape(), x.len(), bias.map(<[f32]>::len), y.len())?;
        let _ = precision;
        let (n, k) = rows_cols(w.shape());
        let mut row = vec![0.0; k];
        for out in 0..n {
            decode_row(w, out, &mut row);
            for i in 0..m {
                let sum: f32 = x[i * k..(i + 1) * k].iter().zip(&row).map(|(a, b)| a * b).sum();
                y[i * n + out] = sum + bias.map_or(0.0, |b| b[out]);
            }
        }
        Ok(())
    }
}

/// Quantizes `w`, row-major of that shape, to a format; `block_size` None is the format's default.
///
/// # Errors
/// [`Error::Argument`] for a shape or block size the format cannot have, [`Error::NotFinite`] for
/// NaN or infinity in `w`.
pub fn quantize<T: Element>(
    format: &'static Format,
    w: &[T],
    shape: &[usize],
    block_size: Option<usize>,
) -> Result<QTensor> {
    Cpu::best().quantize(format, w, shape, block_size)
}

/// Quantizes the f32 scales of a tensor a second time: 4.127 bits a weight at block 64, against 4.5.
///
/// # Errors
/// [`Error::Argument`] if the scales are not f32.
pub fn double_quantize(q: QTensor) -> Result<QTensor> {
    match q.scales() {
        Scales::F32(scales) => {
            let nested = reference::double_quantize(scales)?;
            q.with_scales(Scales::Nested(nested))
        }
        Scales::Nested(_) => Ok(q),
        Scales::E8M0(_) => Err(Error::argument(
            "double_quantize",
            "f32 scales",
            format!("{}, whose scales are bytes already", q.format().name),
            "leave double quantization out",
        )),
    }
}

/// Writes all weights, row-major, to `out`.
///
/// # Errors
/// [`Error::Argument`] if `out` has another length.
pub fn dequantize<T: Element>(q: &QTensor, out: &mut [T]) -> Result<()> {
    Cpu::best().dequantize(q, out)
}

/// `y = x wᵀ + bias`: `w: [N, K]`, `x: [.., K]`, `bias: [N]`, `y: [.., N]`, f32 accumulation.
///
/// # Errors
/// [`Error::Argument`] if a length does not fit.
pub fn linear<T: Element>(q: &QTensor, x: &[T], bias: Option<&[T]>, y: &mut [T]) -> Result<()> {
    Cpu::best().linear(q, x, bias, y)
}

/// `dx = dy w`: `w: [N, K]`, `dy: [.., N]`, `dx: [.., K]`: the gradient of [`linear`]'s input.
///
/// # Errors
/// [`Error::Argument`] if a length does not fit.
pub fn linear_transposed<T: Element>(q: &QTensor, dy: &[T], dx: &mut [T]) -> Result<()> {
    let dy: Vec<f32> = dy.iter().map(|v| v.to_f32()).collect();
    for (o, v) in dx.iter_mut().zip(reference::linear_transposed(q, &dy)) {
        *o = T::from_f32(v as f32);
    }
    Ok(())
}

/// Row `row` of a weight in f32. `out: [K]`.
pub(crate) fn decode_row(w: &Weight, row: usize, out: &mut [f32]) {
    match w {
        Weight::Quantized(q) => {
            for (col, o) in out.iter_mut().enumerate() {
                *o = reference::weight(q, row, col);
            }
        }
        Weight::Dense(d) => {
            let k = out.len();
            let size = d.dtype().size();
            for (o, b) in out.iter_mut().zip(d.data()[row * k * size..].chunks_exact(size)) {
                *o = match d.dtype() {
                    crate::DType::F32 => f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
                    crate::DType::F16 => half::f16::from_le_bytes([b[0], b[1]]).to_f32(),
                    crate::DType::BF16 => half::bf16::from_le_bytes([b[0], b[1]]).to_f32(),
                };
            }
        }
    }
}

fn check_len(op: &'static str, what: &str, expected: usize, got: usize) -> Result<()> {
    if expected == got {
        return Ok(());
    }
    Err(Error::argument(op, format!("{expected} {what}"), got.to_string(), "check the shapes"))
}

/// Rows of `x` for `w` of that shape.
fn check_linear(shape: &[usize], x: usize, bias: Option<usize>, y: usize) -> Result<usize> {
    const OP: &str = "linear";
    let (n, k) = rows_cols(shape);
    let m = if k == 0 { y.checked_div(n).unwrap_or(0) } else { x / k };
    check_len(OP, &format!("numbers of x, rows of K = {k}"), m * k, x)?;
    check_len(OP, &format!("numbers of y, {m} rows of N = {n}"), m * n, y)?;
    check_len(OP, &format!("numbers of bias, N = {n}"), n, bias.unwrap_or(n))?;
    Ok(m)
}
