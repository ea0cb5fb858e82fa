//! The specification: every operation in scalar Rust, in the plainest order.
//!
//! Read this first. Every fast path and every device is tested against these functions.
//! Products accumulate in f64, so that what a test sees is the other side's error.

use std::sync::Arc;

use bytes::Bytes;

use crate::format::{Layout, ScaleKind, absmean, f16_scale};
use crate::tensor::{Geometry, rows_cols};
use crate::{
    Error, Format, NESTED_BLOCK_SIZE, Nested, Parts, QTensor, Result, Scales, formats, pack,
};

/// Quantizes `w`, row-major of that shape.
///
/// # Errors
/// [`Error::Argument`] for a shape or block size the format cannot have or a format without an
/// encoder, [`Error::NotFinite`] for NaN or infinity.
pub fn quantize(
    format: &'static Format,
    w: &[f32],
    shape: &[usize],
    block_size: Option<usize>,
) -> Result<QTensor> {
    let g = check_quantize(format, w.len(), shape, block_size)?;
    if let Some(index) = w.iter().position(|v| !v.is_finite()) {
        return Err(Error::NotFinite { op: "quantize", index, value: w[index] });
    }
    let mut blocks = vec![Vec::new(); g.blocks];
    for (i, v) in w.iter().enumerate() {
        blocks[g.block(i / g.k, i % g.k)].push(*v);
    }
    let magnitudes: Vec<f32> = blocks.iter().map(|b| magnitude(format, b)).collect();
    let mut codes = vec![0u8; g.code_bytes];
    let padded = match format.layout {
        Layout::Rows { pad, .. } => g.k.next_multiple_of(pad),
        Layout::Flat { .. } | Layout::Stacked { .. } => g.k,
    };
    let encoder = encoder_of(format)?;
    for row in 0..g.n {
        let (byte, first) = g.run(row);
        for col in 0..padded {
            let code = match col < g.k {
                true => {
                    let scaling = Scaling::new(format, magnitudes[g.block(row, col)]);
                    encoder.encode(scaling.apply(w[row * g.k + col]))
                }
                false => encoder.encode(0.0),
            };
            pack::set(
                format.packing,
                format.code_bits,
                &mut codes[byte..],
                first + col * g.stride(),
                code.into(),
            );
        }
    }
    let scales = finish(format, &g, &mut codes, &magnitudes);
    assemble(format, shape, &g, codes, scales)
}

/// What a block's scale is made from: its largest magnitude, or the mean.
fn magnitude(format: &Format, block: &[f32]) -> f32 {
    match format.scale {
        ScaleKind::Absmean => absmean(block),
        _ => block.iter().fold(0.0, |most, v| v.abs().max(most)),
    }
}

/// The scales of blocks with these magnitudes. A flat run may end inside a byte: what follows is the
/// code of zero.
pub(crate) fn finish(
    format: &Format,
    g: &Geometry,
    codes: &mut [u8],
    magnitudes: &[f32],
) -> Scales {
    if let (Layout::Flat { .. }, Some(encoder)) = (format.layout, format.encoder) {
        let total = codes.len() * 8 / format.code_bits as usize;
        for i in g.n * g.k..total {
            let code = encoder.encode(0.0).into();
            pack::set(format.packing, format.code_bits, codes, i, code);
        }
    }
    match format.scale {
        ScaleKind::Absmax => Scales::F32(magnitudes.to_vec().into()),
        ScaleKind::Step => Scales::F32(magnitudes.iter().map(|a| a / format.peak).collect()),
        ScaleKind::E8M0 => Scales::E8M0(magnitudes.iter().map(|a| e8m0_of(format, *a)).collect()),
        ScaleKind::Absmean => Scales::F16(magnitudes.iter().map(|a| f16_scale(*a)).collect()),
    }
}

/// The tensor of codes and scales.
pub(crate) fn assemble(
    format: &'static Format,
    shape: &[usize],
    g: &Geometry,
    codes: Vec<u8>,
    scales: Scales,
) -> Result<QTensor> {
    QTensor::from_parts(Parts {
        format,
        shape: shape.to_vec(),
        block_size: Some(g.block_size),
        codes: Bytes::from(codes),
        scales,
        means: None,
        codebook: None,
    })
}

/// How a block's weights are brought to the axis of the codebook.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scaling {
    /// Factor of a weight; 0 for a block of zeros.
    pub factor: f32,
    /// Set where `1 / absmax` overflows: then a weight is divided first.
    divisor: Option<f32>,
}

impl Scaling {
    /// For what is on that axis already.
    pub const ONE: Scaling = Scaling { factor: 1.0, divisor: None };

    #[inline]
    pub fn new(format: &Format, absmax: f32) -> Self {
        let factor = match format.scale {
            ScaleKind::E8M0 => 1.0 / crate::e8m0_to_f32(e8m0_of(format, absmax)),
            ScaleKind::Absmax | ScaleKind::Step | ScaleKind::Absmean => format.peak / absmax,
        };
        if absmax == 0.0 {
            Scaling { factor: 0.0, divisor: None }
        } else if factor.is_finite() {
            Scaling { factor, divisor: None }
        } else {
            Scaling { factor: format.peak, divisor: Some(absmax) }
        }
    }

    pub fn apply(&self, w: f32) -> f32 {
        match self.divisor {
            None => w * self.factor,
            Some(absmax) => w / absmax * self.factor,
        }
    }

    /// Whether `w * factor` is all there is to it.
    pub fn is_one_product(&self) -> bool {
        self.divisor.is_none()
    }
}

/// The biased exponent of the power of two `s` with `peak <= absmax / s < 2 peak`, kept in range.
fn e8m0_of(format: &Format, absmax: f32) -> u8 {
    let exponent = |x: f32| (x.to_bits() >> 23) as i32;
    (exponent(absmax) - exponent(format.peak) + 127).clamp(0, 254) as u8
}

pub(crate) fn check_quantize(
    format: &'static Format,
    len: usize,
    shape: &[usize],
    block_size: Option<usize>,
) -> Result<Geometry> {
    let g = Geometry::new(format, shape, block_size)?;
    if g.n * g.k != len {
        return Err(Error::argument(
            "quantize",
            format!("{} values for shape {shape:?}", g.n * g.k),
            len.to_string(),
            "pass the whole tensor, row-major",
        ));
    }
    encoder_of(format).map(|_| g)
}

pub(crate) fn encoder_of(format: &'static Format) -> Result<&'static crate::format::Encoder> {
    format.encoder.ok_or_else(|| {
        Error::argument(
            "quantize",
            "a format with an encoder",
            format.name,
            "choose another format",
        )
    })
}

/// Weight `(row, col)` in f32: the formula of [`crate::format`].
pub fn weight(q: &QTensor, row: usize, col: usize) -> f32 {
    let (format, g) = (q.format(), q.geometry());
    let (byte, first) = g.run(row);
    let (index, per_code) = (first + col * g.stride(), format.weights_per_code);
    let code = pack::get(format.packing, format.code_bits, &q.codes()[byte..], index / per_code);
    let value = q.codebook()[code * per_code + index % per_code];
    let block = g.block(row, col);
    let scaled = (value * q.scales().get(block)) * format.unit;
    match q.means() {
        None => scaled,
        Some(means) => scaled + means[block],
    }
}

/// All weights in f32, row-major.
pub fn dequantize(q: &QTensor) -> Vec<f32> {
    let (n, k) = rows_cols(q.shape());
    (0..n * k).map(|i| weight(q, i / k, i % k)).collect()
}

/// Mean, summed in f64; 0 of nothing.
pub(crate) fn mean(numbers: &[f32]) -> f32 {
    let sum: f64 = numbers.iter().map(|v| f64::from(*v)).sum();
    if numbers.is_empty() { 0.0 } else { (sum / numbers.len() as f64) as f32 }
}

/// Double quantization of f32 scales: signed dynamic map, blocks of 256, their mean taken off.
pub fn double_quantize(scales: &[f32]) -> Result<Nested> {
    let offset = mean(scales);
    let centred: Vec<f32> = scales.iter().map(|s| s - offset).collect();
    let map = formats::nested();
    let q = quantize(map, &centred, &[scales.len()], Some(NESTED_BLOCK_SIZE))?;
    Ok(Nested {
        codes: q.codes().clone(),
        absmax: q.scales().to_f32(),
        offset,
        block_size: NESTED_BLOCK_SIZE,
        map: Arc::from(q.codebook()),
    })
}

/// `y = x wᵀ + bias`: `w: [N, K]`, `x: [M, K]`, `bias: [N]`; `[M, N]`.
pub fn linear(q: &QTensor, x: &[f32], bias: Option<&[f32]>) -> Vec<f64> {
    let (n, k) = rows_cols(q.shape());
    let w = dequantize(q);
    let m = x.len().checked_div(k).unwrap_or(0);
    let mut y = Vec::with_capacity(m * n);
    for row in 0..m {
        for out in 0..n {
            let products = (0..k).map(|i| f64::from(x[row * k + i]) * f64::from(w[out * k + i]));
            y.push(products.sum::<f64>() + bias.map_or(0.0, |b| f64::from(b[out])));
        }
    }
    y
}

/// `a bᵀ` of integers: `a: [M, k]`, `b: [N, k]`; `[M, N]`.
pub fn int8_matmul(a: &[i8], b: &[i8], k: usize) -> Vec<i32> {
    let dot =
        |a: &[i8], b: &[i8]| a.iter().zip(b).map(|(a, b)| i32::from(*a) * i32::from(*b)).sum();
    a.chunks(k).flat_map(|a| b.chunks(k).map(move |b| dot(a, b))).collect()
}

/// `dx = dy w`: `w: [N, K]`, `dy: [M, N]`; `[M, K]`.
pub fn linear_transposed(q: &QTensor, dy: &[f32]) -> Vec<f64> {
    let (n, k) = rows_cols(q.shape());
    let w = dequantize(q);
    let m = dy.len().checked_div(n).unwrap_or(0);
    let mut dx = vec![0.0; m * k];
    for row in 0..m {
        for out in 0..n {
            for i in 0..k {
                dx[row * k + i] += f64::from(dy[row * n + out]) * f64::from(w[out * k + i]);
            }
        }
    }
    dx
}
