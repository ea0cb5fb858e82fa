//! Scales and means that fit best to the codes they lead to: rounds of coding a block and fitting it.

use std::sync::Arc;

use bytes::Bytes;
use rayon::prelude::*;

use super::{Options, check_finite};
use crate::cpu::reference::{encoder_of, finish};
use crate::format::{Encoder, Layout, ScaleKind, absmean, f16_scale};
use crate::tensor::Geometry;
use crate::{Format, Parts, QTensor, Result, Scales, pack};

/// Quantizes `w: [N, K]` with fitted scales, and means where the format may have them.
///
/// # Errors
/// As [`super::quantize`].
pub(super) fn quantize(
    format: &'static Format,
    w: &[f32],
    shape: &[usize],
    block_size: Option<usize>,
    options: &Options,
) -> Result<QTensor> {
    let g = Geometry::new(format, shape, block_size)?;
    check_finite(&g, w)?;
    let encoder = encoder_of(format)?;
    let fits = rounded(format, fits(format, encoder, &g, w, None, options)?);
    let mut codes = vec![0u16; w.len()];
    codes.par_chunks_mut(g.k).zip(w.par_chunks(g.k)).enumerate().for_each(|(row, (codes, w))| {
        for (col, (code, w)) in codes.iter_mut().zip(w).enumerate() {
            *code = fits[g.block(row, col)].code(encoder, *w).into();
        }
    });
    assemble(&g, format, shape, &codes, &fits, options.gives_means(format), None)
}

/// `value(code) * scale + mean` for a block.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Fit {
    pub scale: f32,
    pub mean: f32,
}

impl Fit {
    /// The code of a weight.
    #[inline(always)]
    pub fn code(&self, encoder: &Encoder, w: f32) -> u8 {
        let x = if self.scale > 0.0 { (w - self.mean) / self.scale } else { 0.0 };
        encoder.encode(x)
    }
}

/// Fits a block, starting from its mean magnitude. `importance`: factors of squared errors. A mean is
/// fitted where `with_mean` says so, else it is 0.
///
/// Each round codes the weights, then takes the scale and the mean that make the squared error of
/// these codes least: for signs, `B = sign(W - mu)`, `d = mean(B (W - mu))`, `mu += mean residual`.
pub(super) fn fit(
    format: &Format,
    encoder: &Encoder,
    block: &[f32],
    importance: Option<&[f32]>,
    with_mean: bool,
    rounds: usize,
) -> Fit {
    let book = format.codebook().unwrap_or_default();
    let h = |i: usize| importance.map_or(1.0, |h| f64::from(h[i]));
    let mut fit = Fit { scale: absmean(block), mean: 0.0 };
    for _ in 0..rounds {
        let (mut values, mut squares, mut along, mut weights, mut total) =
            (0.0, 0.0, 0.0, 0.0, 0.0);
        for (i, w) in block.iter().enumerate() {
            let value = f64::from(book[usize::from(fit.code(encoder, *w))]);
            let (h, w) = (h(i), f64::from(*w));
            values += h * value;
            squares += h * value * value;
            along += h * value * w;
            weights += h * w;
            total += h;
        }
        let next = match with_mean {
            // Least squares in two unknowns.
            true if total * squares - values * values > 1e-9 * total * squares => {
                let determinant = total * squares - values * values;
                Fit {
                    scale: ((total * along - values * weights) / determinant) as f32,
                    mean: ((squares * weights - values * along) / determinant) as f32,
                }
            }
            _ if squares > 0.0 => Fit { scale: (along / squares) as f32, mean: 0.0 },
            _ => break,
        };
        if next == fit || !next.scale.is_finite() || next.scale <= 0.0 {
            break;
        }
        fit = next;
    }
    fit
}

/// A scale and a mean for each block.
pub(super) fn fits(
    format: &'static Format,
    encoder: &'static Encoder,
    g: &Geometry,
    w: &[f32],
    importance: Option<&[f32]>,
    options: &Options,
) -> Result<Vec<Fit>> {
    if format.scale != ScaleKind::Absmean {
        let plain = crate::quantize(format, w, &[g.n, g.k], Some(g.block_size))?;
        let scales = plain.scales().to_f32().into_iter();
        return Ok(scales.map(|scale| Fit { scale, mean: 0.0 }).collect());
    }
    let with_mean = options.gives_means(format);
    let of = |block: &[f32], h: Option<&[f32]>| {
        fit(format, encoder, block, h, with_mean, options.search.rounds)
    };
    if g.block_size > g.k {
        return Ok(vec![of(w, None)]);
    }
    let row = |w: &[f32]| -> Vec<Fit> {
        let part = |i: usize, len: usize| importance.map(|h| &h[i * g.block_size..][..len]);
        let blocks = w.chunks(g.block_size).enumerate();
        blocks.map(|(i, w)| of(w, part(i, w.len()))).collect()
    };
    Ok(w.par_chunks(g.k).flat_map_iter(row).collect())
}

/// The fits as they will be stored.
pub(super) fn rounded(format: &Format, fits: Vec<Fit>) -> Vec<Fit> {
    if format.scale != ScaleKind::Absmean {
        return fits;
    }
    let round = |f: Fit| Fit {
        scale: f16_scale(f.scale).to_f32(),
        mean: half::f16::from_f32(f.mean).to_f32(),
    };
    fits.into_iter().map(round).collect()
}

/// The tensor of codes that are not packed yet, in rows that are filled up to whole codes.
pub(super) fn assemble(
    g: &Geometry,
    format: &'static Format,
    shape: &[usize],
    codes: &[u16],
    fits: &[Fit],
    means: bool,
    codebook: Option<Arc<[f32]>>,
) -> Result<QTensor> {
    let mut packed = vec![0; g.code_bytes];
    finish(format, g, &mut packed, &[]);
    let per_row = g.k.div_ceil(format.weights_per_code);
    let zero = format.encoder.map_or(0, |encoder| encoder.encode(0.0).into());
    let padded = match format.layout {
        Layout::Rows { pad, .. } => g.k.next_multiple_of(pad) / format.weights_per_code,
        Layout::Flat { .. } | Layout::Stacked { .. } => per_row,
    };
    for (row, codes) in codes.chunks_exact(per_row).enumerate() {
        let (byte, first) = g.run(row);
        let filled = codes.iter().copied().chain(std::iter::repeat_n(zero, padded - per_row));
        for (i, code) in filled.enumerate() {
            let at = first + i * g.stride();
            pack::set(format.packing, format.code_bits, &mut packed[byte..], at, code.into());
        }
    }
    let scales = || fits.iter().map(|f| f.scale);
    let scales = match format.scale {
        ScaleKind::Absmean => Scales::F16(scales().map(f16_scale).collect()),
        ScaleKind::Absmax | ScaleKind::Step => Scales::F32(scales().collect()),
        ScaleKind::E8M0 => Scales::E8M0(scales().map(|s| (s.to_bits() >> 23) as u8).collect()),
    };
    QTensor::from_parts(Parts {
        format,
        shape: shape.to_vec(),
        block_size: Some(g.block_size),
        codes: Bytes::from(packed),
        scales,
        means: means.then(|| fits.iter().map(|f| f.mean).collect()),
        codebook,
    })
}
