//! Error feedback (GPTQ, arXiv 2210.17323): columns are coded one after the other, and what a column
//! loses is made up for by the columns that are still to come, as the inputs of the layer allow.
//!
//! With `gram⁻¹ = Uᵀ U` and `e = (w - q) / U[j, j]` for column `j`, every later weight of the row
//! becomes `w[i] - e U[j, i]`. Where a code stands for several columns, these are coded together: with
//! `V` their part of `U`, an error `e` in them costs `|e V⁻¹|²` once later columns have made up for it.
//!
//! Where the layers before have lost something already, the weights that come nearest to what the
//! original gave are quantized in place of its own: `w' = w C gram⁻¹`, with `C` the products of the
//! original's inputs with those that are seen (as in GPTAQ, arXiv 2504.02692).

use std::borrow::Cow;
use std::ops::Range;

use rayon::prelude::*;

use super::factor::inverse_root;
use super::patterns::{Assign, Book, Coder, Costs, LANES, Vectors, signs};
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
/// Rounds of coding all columns and fitting the scales to their codes. A row that makes up for losses
/// has larger weights than its scale is for; more rounds than this change little.
const ROUNDS: usize = 4;

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
            let metrics = Metric::all(&u, g.k, coder.length, &book);
            (Coding::Patterns { book, length: coder.length, metrics }, fits)
        }
        _ => {
            let encoder = encoder_of(format)?;
            (Coding::Encoder(encoder), fits(format, encoder, &g, w, Some(&importance), options)?)
        }
    };
    let mut fits = rounded(format, fits);
    let per_row = g.k.div_ceil(coding.length());
    let mut codes = vec![0u16; g.n * per_row];
    // One scale a row can be fitted to the row's codes, and has to follow them.
    let fitted = g.block_size == g.k && format.scale == ScaleKind::Absmean;
    for _ in 0..if fitted { ROUNDS } else { 1 } {
        let feedback = Feedback { g: &g, format, coding: &coding, fits: &fits, u: &u };
        codes.par_chunks_mut(ROWS * per_row).zip(w.par_chunks(ROWS * g.k)).enumerate().for_each(
            |(i, (codes, w))| isa.run(Tile { feedback: &feedback, first: i * ROWS, w, codes }),
        );
        if fitted {
            fits = rounded(format, refitted(&feedback, w, gram, &codes));
        }
    }
    let book = match &coding {
        Coding::Encoder(_) => None,
        Coding::Patterns { book, length, .. } => Some(signs(book, *length)),
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
    Patterns { book: Book, length: usize, metrics: Vec<Metric> },
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

/// What errors in a group of columns cost, once the columns after it have made up for them.
struct Metric {
    /// `M = V⁻¹ V⁻ᵀ`: an error `e` costs `e M eᵀ`. `[L, L]` for the `L` columns that the group has.
    matrix: Vec<f32>,
    /// `c M cᵀ / 2` of each pattern `c`.
    halves: Vec<f32>,
}

impl Metric {
    /// Those of all groups of `length` columns, of which the last may be shorter.
    fn all(u: &[f32], k: usize, length: usize, book: &Book) -> Vec<Metric> {
        let starts: Vec<usize> = (0..k).step_by(length).collect();
        starts
            .into_par_iter()
            .map(|start| {
                let part = |i: usize| &u[(start + i) * k + start..][..length.min(k - start)];
                Metric::new(&(0..length.min(k - start)).map(part).collect::<Vec<_>>(), book)
            })
            .collect()
    }

    /// `v`: the rows of `V`, an upper triangle.
    fn new(v: &[&[f32]], book: &Book) -> Self {
        let length = v.len();
        let mut inverse = vec![0.0f64; length * length];
        for i in (0..length).rev() {
            for j in i..length {
                let along = |m: usize| f64::from(v[i][m]) * inverse[m * length + j];
                let sum: f64 = (i + 1..=j).map(along).sum();
                inverse[i * length + j] = (f64::from(i == j) - sum) / f64::from(v[i][i]);
            }
        }
        let rows = || inverse.chunks_exact(length);
        let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let matrix: Vec<f32> =
            rows().flat_map(|a| rows().map(move |b| product(a, b) as f32)).collect();
        let half = |pattern: &u16| {
            let sign = |i: usize| if pattern >> i & 1 == 1 { 1.0f32 } else { -1.0 };
            let along =
                |row: &[f32]| -> f32 { row.iter().enumerate().map(|(i, m)| sign(i) * m).sum() };
            let rows = matrix.chunks_exact(length).enumerate();
            0.5 * rows.map(|(i, row)| sign(i) * along(row)).sum::<f32>()
        };
        let halves = book.iter().map(half).collect();
        Metric { matrix, halves }
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
            Coding::Patterns { book, length, metrics } => {
                let Metric { matrix, halves } = &metrics[place];
                let mut vectors = Vectors::new(w.len() / k, *length);
                for (row, w) in w.chunks_exact(k).enumerate() {
                    let w = &w[group.clone()];
                    for (i, m) in matrix.chunks_exact(group.len()).enumerate() {
                        vectors.put(row, i, w.iter().zip(m).map(|(w, m)| w * m).sum());
                    }
                }
                // Of a group in one block: blocks are of whole groups.
                let scale = |row: usize| self.fits[self.g.block(first + row, group.start)].scale;
                let scales: Vec<f32> = (0..w.len() / k).map(scale).collect();
                let costs = Costs { vectors: &scales, codes: halves };
                let found = Assign { book, length: *length, vectors: &vectors, costs }.run(s);
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Where no column comes after a group, nothing makes up for its errors.
    #[test]
    fn errors_in_all_columns_cost_what_the_inputs_say() {
        let gram = [4.0f32, 1.0, -0.5, 1.0, 3.0, 0.25, -0.5, 0.25, 2.0];
        let (u, damping) = inverse_root(&gram, 3).unwrap();
        let book = vec![0b111, 0b010];
        let metrics = Metric::all(&u, 3, 3, &book);
        let [Metric { matrix, halves }] = &metrics[..] else { panic!("one group") };
        for (i, (got, gram)) in matrix.iter().zip(gram).enumerate() {
            let expected = if i % 4 == 0 { gram + damping } else { gram };
            assert!((got - expected).abs() < 1e-4, "{i}: {got} for {expected}");
        }
        // Half the sums of the matrix with the signs of both patterns, -1 1 -1 the second.
        let diagonal = 9.0 + 3.0 * damping;
        for (got, expected) in halves.iter().zip([diagonal + 1.5, diagonal - 3.5]) {
            assert!((got - expected / 2.0).abs() < 1e-4, "{got} for {}", expected / 2.0);
        }
    }
}
