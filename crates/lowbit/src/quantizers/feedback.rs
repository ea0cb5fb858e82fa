//! Error feedback (GPTQ, arXiv 2210.17323): columns are coded one after the other, and what a column
//! loses is made up for by the columns that are still to come, as the inputs of the layer allow.
//!
//! With `gram⁻¹ = Uᵀ U` and `e = (w - q) / U[j, j]` for column `j`, every later weight of the row
//! becomes `w[i] - e U[j, i]`. Where a code stands for several columns, these are coded together, with
//! `1 / U[j, j]²` as what an error in each costs.
//!
//! Where the layers before have lost something already, the weights that come nearest to what the
//! original gave are quantized in place of its own: `w' = w C gram⁻¹`, with `C` the products of the
//! original's inputs with those that are seen (as in GPTAQ, arXiv 2504.02692).

use std::borrow::Cow;
use std::ops::Range;

use rayon::prelude::*;

use super::factor::inverse_root;
use super::patterns::{Assign, Book, Coder, LANES, Vectors, signs};
use super::refine::{Fit, assemble, fits, rounded};
use super::{Inputs, Options, check_inputs};
use crate::cpu::reference::encoder_of;
use crate::cpu::simd::{Simd, Task};
use crate::cpu::{Isa, check_len};
use crate::format::{Encoder, ScaleKind, Values};
use crate::tensor::Geometry;
use crate::{Cpu, DType, DenseTensor, Error, Format, QTensor, Result, Weight};

/// Columns whose losses are gathered before the columns after them are changed.
const COLUMNS: usize = 128;
/// Rows that are coded together: what they read of `U` is read once.
const ROWS: usize = 2 * LANES;

/// Quantizes `w: [N, K]`, given what the layer's inputs are like.
///
/// # Errors
/// As [`super::quantize`].
pub(super) fn quantize(
    isa: Isa,
    format: &'static Format,
    w: &[f32],
    shape: &[usize],
    block_size: Option<usize>,
    inputs: &Inputs<'_>,
    options: &Options,
) -> Result<QTensor> {
    let g = Geometry::new(format, shape, block_size)?;
    let Inputs { gram, cross } = *inputs;
    let importance = check_inputs(&g, w, gram)?;
    let (u, damping) = inverse_root(gram, g.k)?;
    let w = &match cross {
        None => Cow::Borrowed(w),
        Some(cross) => Cow::Owned(aim(isa, &g, w, cross, &u, damping)?),
    };
    let (coding, fits) = match format.values {
        Values::Patterns { .. } => {
            let coder = Coder::new(format, shape, block_size)?;
            coder.check(w, Some(&importance))?;
            let scales = coder.absmeans(w);
            let book = coder.codebook(isa, w, &scales, Some(&importance), &options.search);
            // The scale of what patterns can express of the weights.
            let plain = coder.code(isa, w, scales, Some(&importance), &book);
            let fits = plain.1.into_iter().map(|scale| Fit { scale, mean: 0.0 }).collect();
            (Coding::Patterns { book, length: coder.length }, fits)
        }
        _ => {
            let encoder = encoder_of(format)?;
            (Coding::Encoder(encoder), fits(format, encoder, &g, w, Some(&importance), options)?)
        }
    };
    let fits = rounded(format, fits);
    let feedback = Feedback { g: &g, format, coding: &coding, fits: &fits, u: &u };
    let per_row = g.k.div_ceil(coding.length());
    let mut codes = vec![0u16; g.n * per_row];
    codes.par_chunks_mut(ROWS * per_row).zip(w.par_chunks(ROWS * g.k)).enumerate().for_each(
        |(i, (codes, w))| isa.run(Tile { feedback: &feedback, first: i * ROWS, w, codes }),
    );
    let fits = match g.block_size == g.k && format.scale == ScaleKind::Absmean {
        true => rounded(format, refitted(&feedback, w, gram, &codes)),
        false => fits,
    };
    let book = match &coding {
        Coding::Encoder(_) => None,
        Coding::Patterns { book, length } => Some(signs(book, *length)),
    };
    let means = options.gives_means(format);
    assemble(&g, format, shape, &codes, &fits, means, book)
}

/// `(w C + damping w) (gram + damping)⁻¹`, of which the inverse is `Uᵀ U`.
fn aim(
    isa: Isa,
    g: &Geometry,
    w: &[f32],
    cross: &[f32],
    u: &[f32],
    damping: f32,
) -> Result<Vec<f32>> {
    check_len("quantize", "products of inputs, K * K", g.k * g.k, cross.len())?;
    if let Some(index) = cross.iter().position(|v| !v.is_finite()) {
        return Err(Error::NotFinite { op: "calibrate", index, value: cross[index] });
    }
    let square = |numbers: &[f32]| DenseTensor::from_f32(vec![g.k, g.k], numbers).map(Weight::from);
    let (cross, u) = (square(cross)?, square(u)?);
    let (cpu, mut made) = (Cpu::with(isa), vec![0.0; w.len()]);
    cpu.linear_transposed_f32(&cross, w, &mut made);
    made.iter_mut().zip(w).for_each(|(made, w)| *made += damping * w);
    let mut turned = vec![0.0; w.len()];
    cpu.linear_f32(&u, &made, None, &mut turned, DType::F32)?;
    cpu.linear_transposed_f32(&u, &turned, &mut made);
    Ok(made)
}

/// What codes stand for.
enum Coding {
    Encoder(&'static Encoder),
    Patterns { book: Book, length: usize },
}

impl Coding {
    /// Columns of a code.
    fn length(&self) -> usize {
        match self {
            Coding::Encoder(_) => 1,
            Coding::Patterns { length, .. } => *length,
        }
    }

    /// Value of column `i` of a code.
    #[inline(always)]
    fn value(&self, format: &Format, code: u16, i: usize) -> f32 {
        match self {
            Coding::Encoder(_) => {
                format.codebook().map_or(0.0, |book| book[usize::from(code)]) * format.unit
            }
            Coding::Patterns { book, .. } => {
                if book[usize::from(code)] >> i & 1 == 1 {
                    1.0
                } else {
                    -1.0
                }
            }
        }
    }
}

struct Feedback<'a> {
    g: &'a Geometry,
    format: &'static Format,
    coding: &'a Coding,
    fits: &'a [Fit],
    u: &'a [f32],
}

/// Some rows of weights, and where their codes go.
struct Tile<'a> {
    feedback: &'a Feedback<'a>,
    first: usize,
    w: &'a [f32],
    codes: &'a mut [u16],
}

impl Task for Tile<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Tile { feedback, first, w, codes } = self;
        let (k, length) = (feedback.g.k, feedback.coding.length());
        let step = COLUMNS / length * length;
        let mut w = w.to_vec();
        let mut errors = vec![0.0f32; w.len() / k * step];
        for start in (0..k).step_by(step) {
            let end = k.min(start + step);
            for col in (start..end).step_by(length) {
                let group = col..end.min(col + length);
                feedback.code(s, first, &w, group.clone(), codes);
                feedback.lose(first, &mut w, group, start..end, codes, &mut errors);
            }
            for (w, errors) in w.chunks_exact_mut(k).zip(errors.chunks_exact(step)) {
                for (j, error) in (start..end).zip(errors) {
                    let u = &feedback.u[j * k + end..(j + 1) * k];
                    for (w, u) in w[end..].iter_mut().zip(u) {
                        *w -= error * u;
                    }
                }
            }
        }
    }
}

impl Feedback<'_> {
    /// Codes of a group of columns, of all rows of a tile.
    #[inline(always)]
    fn code<S: Simd>(&self, s: S, first: usize, w: &[f32], group: Range<usize>, codes: &mut [u16]) {
        let k = self.g.k;
        let per_row = k.div_ceil(self.coding.length());
        let place = group.start / self.coding.length();
        match self.coding {
            Coding::Encoder(encoder) => {
                let unit = self.format.unit;
                for (i, (w, codes)) in
                    w.chunks_exact(k).zip(codes.chunks_exact_mut(per_row)).enumerate()
                {
                    let fit = self.fits[self.g.block(first + i, group.start)];
                    let fit = Fit { scale: fit.scale * unit, ..fit };
                    codes[place] = fit.code(encoder, w[group.start]).into();
                }
            }
            Coding::Patterns { book, length } => {
                let rows = w.len() / k;
                let mut vectors = Vectors::new(rows, *length);
                for (row, w) in w.chunks_exact(k).enumerate() {
                    for (i, j) in group.clone().enumerate() {
                        let u = self.u[j * k + j];
                        vectors.put(row, i, w[j] / (u * u));
                    }
                }
                let found = Assign { book, length: *length, vectors: &vectors }.run(s);
                for (codes, (code, _)) in codes.chunks_exact_mut(per_row).zip(found) {
                    codes[place] = code;
                }
            }
        }
    }

    /// What a group of columns loses, taken from the others of the range.
    #[inline(always)]
    fn lose(
        &self,
        first: usize,
        w: &mut [f32],
        group: Range<usize>,
        range: Range<usize>,
        codes: &[u16],
        errors: &mut [f32],
    ) {
        let (k, length) = (self.g.k, self.coding.length());
        let (per_row, step) = (k.div_ceil(length), errors.len() / (w.len() / k));
        let rows = w.chunks_exact_mut(k).zip(errors.chunks_exact_mut(step));
        for (i, (w, errors)) in rows.enumerate() {
            let code = codes[i * per_row + group.start / length];
            for j in group.clone() {
                let fit = self.fits[self.g.block(first + i, j)];
                let q =
                    self.coding.value(self.format, code, j - group.start) * fit.scale + fit.mean;
                let u = &self.u[j * k..(j + 1) * k];
                let error = (w[j] - q) / u[j];
                errors[j - range.start] = error;
                for (w, u) in w[j + 1..range.end].iter_mut().zip(&u[j + 1..range.end]) {
                    *w -= error * u;
                }
            }
        }
    }
}

/// The scale of each row that makes the layer's error least with these codes:
/// `(w - mean)ᵀ gram c / cᵀ gram c`.
fn refitted(feedback: &Feedback<'_>, w: &[f32], gram: &[f32], codes: &[u16]) -> Vec<Fit> {
    let (k, length) = (feedback.g.k, feedback.coding.length());
    let per_row = k.div_ceil(length);
    let row = |((w, codes), old): ((&[f32], &[u16]), &Fit)| {
        let value =
            |j: usize| feedback.coding.value(feedback.format, codes[j / length], j % length);
        let c: Vec<f32> = (0..k).map(value).collect();
        let (mut along, mut square) = (0.0f64, 0.0f64);
        for (j, gram) in gram.chunks_exact(k).enumerate() {
            let product: f32 = gram.iter().zip(&c).map(|(a, b)| a * b).sum();
            along += f64::from(product) * f64::from(w[j] - old.mean);
            square += f64::from(product) * f64::from(c[j]);
        }
        let scale = (along / square) as f32;
        if scale.is_finite() && scale > 0.0 { Fit { scale, ..*old } } else { *old }
    };
    w.par_chunks_exact(k).zip(codes.par_chunks_exact(per_row)).zip(feedback.fits).map(row).collect()
}
