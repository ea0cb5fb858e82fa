//! Searches for codes and scales: what an [`Encoder`](crate::format::Encoder) alone does not find.
//!
//! Everything here is deterministic: the same weights, options and seed give the same bytes on every
//! machine, whatever its instruction set and number of threads; with [`Inputs::cross`], whose products
//! are in f32, on those of one instruction set.

mod factor;
mod feedback;
pub mod patterns;
mod refine;

use crate::cpu::{Isa, check_len};
use crate::format::{ScaleKind, Values};
use crate::tensor::Geometry;
use crate::{Cpu, Error, Format, QTensor, Result};

/// How a search is made.
#[derive(Debug, Clone, Copy)]
pub struct Search {
    /// Of the random choices.
    pub seed: u64,
    /// Rounds of assigning vectors to codes and codes to vectors, or of coding and fitting scales.
    pub rounds: usize,
    /// Vectors that a codebook is made from at most; then all are coded.
    pub sample: usize,
}

impl Default for Search {
    fn default() -> Self {
        Search { seed: 0, rounds: 15, sample: 1 << 16 }
    }
}

/// How a weight is quantized.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// How codebooks and scales are searched for.
    pub search: Search,
    /// Whether scales that would be mean magnitudes are fitted to the codes that they lead to.
    pub fit: bool,
    /// Whether a mean is fitted and stored as well, where the format may have one.
    pub means: bool,
}

impl Options {
    /// Whether a tensor of that format will have means.
    pub fn gives_means(&self, format: &Format) -> bool {
        self.fit && self.means && format.has_mean
    }
}

/// Means of products of a layer's inputs, over a text.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// `[K, K]`: inner products of the columns `x` that the layer will see.
    pub gram: &'a [f32],
    /// `[K, K]`: products `gᵀ x` of what the layer was given in the original model, where that is
    /// something else; then it aims at what the original made of it.
    pub cross: Option<&'a [f32]>,
}

/// Quantizes `w: [N, K]` by the best way that is open: with error feedback, given the inputs that
/// the layer will see; else by a search where the format's codes need one or `fit` asks for it,
/// else as [`crate::quantize`] does.
///
/// # Errors
/// As [`crate::quantize`]; [`Error::Argument`] for inputs of another size or that are none.
pub fn quantize(
    isa: Isa,
    format: &'static Format,
    w: &[f32],
    shape: &[usize],
    block_size: Option<usize>,
    inputs: Option<&Inputs<'_>>,
    options: &Options,
) -> Result<QTensor> {
    match (inputs, format.values) {
        (Some(inputs), _) if !w.is_empty() => {
            feedback::quantize(isa, format, w, shape, block_size, inputs, options)
        }
        (_, Values::Patterns { .. }) => {
            patterns::quantize(isa, format, w, shape, block_size, None, &options.search)
        }
        _ if options.fit && format.scale == ScaleKind::Absmean && !w.is_empty() => {
            refine::quantize(format, w, shape, block_size, options)
        }
        _ => Cpu::with(isa).quantize(format, w, shape, block_size),
    }
}

/// Checks a weight and the inner products of its inputs; the mean square of each column of these.
fn check_inputs(g: &Geometry, w: &[f32], gram: &[f32]) -> Result<Vec<f32>> {
    check_finite(g, w)?;
    check_len("quantize", "inner products of inputs, K * K", g.k * g.k, gram.len())?;
    let diagonal: Vec<f32> = (0..g.k).map(|i| gram[i * g.k + i]).collect();
    match diagonal.iter().position(|h| !h.is_finite() || *h < 0.0) {
        Some(index) => Err(Error::NotFinite { op: "calibrate", index, value: diagonal[index] }),
        None => Ok(diagonal),
    }
}

fn check_finite(g: &Geometry, w: &[f32]) -> Result<()> {
    const OP: &str = "quantize";
    check_len(OP, "weights", g.n * g.k, w.len())?;
    match w.iter().position(|v| !v.is_finite()) {
        Some(index) => Err(Error::NotFinite { op: OP, index, value: w[index] }),
        None => Ok(()),
    }
}
