//! How well a model predicts a text, and how far a quantized model is from its original.

use std::ops::Range;

use lowbit::device::{KvCache, Tensor};
use rayon::prelude::*;
use serde::Serialize;

use crate::models::Model;
use crate::{Error, Result};

/// Logits that are read from a device at once, so that a large vocabulary does not fill memory.
const LOGITS_AT_ONCE: usize = 1 << 24;

/// What [`evaluate`] measures. As JSON it is what `lowbit eval --json` prints.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Evaluation {
    /// `exp` of the mean negative log-likelihood, in nats, of the predicted tokens.
    pub perplexity: f64,
    /// Tokens that were predicted.
    pub tokens: usize,
    /// Mean over them of `KL(reference || model)`, in nats; `None` without a reference.
    pub kl: Option<f64>,
    /// Fraction of them where model and reference find the same token likeliest.
    pub top1_agreement: Option<f64>,
    /// Stored bits per weight of the model, scales included.
    pub bits_per_weight: f64,
}

/// Sums over predicted tokens.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    /// Negative log-likelihood.
    nll: f64,
    kl: f64,
    agreed: usize,
}

impl std::ops::Add for Sums {
    type Output = Sums;
    fn add(self, other: Sums) -> Sums {
        Sums {
            nll: self.nll + other.nll,
            kl: self.kl + other.kl,
            agreed: self.agreed + other.agreed,
        }
    }
}

/// Measures a model on a text's tokens.
///
/// The tokens are cut into windows of exactly `window`, without overlap; the rest is dropped. In
/// each window every token but the first is predicted from those before it. Sums are in f64.
/// `progress` is called with windows done and windows in total.
///
/// # Errors
/// [`Error::Argument`] for a window below 2, a text shorter than a window or a reference with
/// another vocabulary; those of [`Model::new_cache`] and [`Model::forward`].
pub fn evaluate(
    model: &Model,
    reference: Option<&Model>,
    tokens: &[u32],
    window: usize,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Evaluation> {
    const OP: &str = "eval";
    if window < 2 {
        let help = "the first token of a window predicts the second";
        return Err(Error::argument(OP, "a window of 2 or more", window.to_string(), help));
    }
    let windows = tokens.len() / window;
    if windows == 0 {
        let (expected, got) = (format!("a text of {window} tokens or more"), tokens.len());
        let help = "use a longer text or a smaller --window";
        return Err(Error::argument(OP, expected, got.to_string(), help));
    }
    if let Some(reference) = reference {
        let (ours, theirs) = (model.config().vocab_size, reference.config().vocab_size);
        if ours != theirs {
            let expected = format!("a reference with a vocabulary of {ours}");
            let help = "compare a model with the one that it was made from";
            return Err(Error::argument(OP, expected, theirs.to_string(), help));
        }
    }
    let mut model = Runner::new(model, window)?;
    let mut reference = reference.map(|reference| Runner::new(reference, window)).transpose()?;
    let mut sums = Sums::default();
    for (done, ids) in tokens.chunks_exact(window).enumerate() {
        progress(done, windows);
        sums = sums + window_sums(&mut model, reference.as_mut(), ids)?;
    }
    progress(windows, windows);
    let predicted = windows * (window - 1);
    let mean = |sum: f64| sum / predicted as f64;
    Ok(Evaluation {
        perplexity: mean(sums.nll).exp(),
        tokens: predicted,
        kl: reference.is_some().then_some(mean(sums.kl)),
        top1_agreement: reference.is_some().then_some(mean(sums.agreed as f64)),
        bits_per_weight: model.model.bits_per_weight(),
    })
}

/// A model with the cache for one window.
struct Runner<'a> {
    model: &'a Model,
    cache: KvCache,
}

impl<'a> Runner<'a> {
    fn new(model: &'a Model, window: usize) -> Result<Self> {
        Ok(Runner { model, cache: model.new_cache(window)? })
    }

    /// Runs the layers on a window by itself: `[T, C]`.
    fn hidden(&mut self, ids: &[u32]) -> Result<Tensor> {
        self.cache.truncate(0);
        self.model.hidden(ids, &mut self.cache, &mut None)
    }

    /// Logits of some rows, row-major.
    fn logits(&self, hidden: &Tensor, rows: &Range<usize>) -> Result<Vec<f32>> {
        let device = self.model.device();
        let hidden = device.rows(hidden, rows.start, rows.len())?;
        Ok(device.read(&self.model.logits(&hidden, &mut None)?)?)
    }
}

fn window_sums(
    model: &mut Runner,
    mut reference: Option<&mut Runner>,
    ids: &[u32],
) -> Result<Sums> {
    let vocabulary = model.model.config().vocab_size;
    let hidden = model.hidden(ids)?;
    let reference_hidden = reference.as_mut().map(|r| r.hidden(ids)).transpose()?;
    let targets = &ids[1..];
    let mut sums = Sums::default();
    let step = (LOGITS_AT_ONCE / vocabulary).max(1);
    for start in (0..targets.len()).step_by(step) {
        let rows = start..(start + step).min(targets.len());
        let logits = model.logits(&hidden, &rows)?;
        let theirs = match (&reference, &reference_hidden) {
            (Some(reference), Some(hidden)) => Some(reference.logits(hidden, &rows)?),
            _ => None,
        };
        let row_sums = |(i, target): (usize, &u32)| {
            let row = i * vocabulary..(i + 1) * vocabulary;
            token_sums(&logits[row.clone()], theirs.as_ref().map(|l| &l[row]), *target as usize)
        };
        sums = sums
            + targets[rows.clone()]
                .par_iter()
                .enumerate()
                .map(row_sums)
                .reduce(Sums::default, |a, b| a + b);
    }
    Ok(sums)
}

/// One predicted token: `logits: [V]` of the model and of the reference.
fn token_sums(logits: &[f32], reference: Option<&[f32]>, target: usize) -> Sums {
    let normalizer = log_sum_exp(logits);
    let nll = normalizer - f64::from(logits[target]);
    let Some(reference) = reference else { return Sums { nll, ..Sums::default() } };
    let shift = log_sum_exp(reference);
    let kl = logits.iter().zip(reference).map(|(q, p)| {
        let log_p = f64::from(*p) - shift;
        log_p.exp() * (log_p - (f64::from(*q) - normalizer))
    });
    Sums { nll, kl: kl.sum(), agreed: usize::from(argmax(logits) == argmax(reference)) }
}

/// `ln(sum(exp(x)))`.
fn log_sum_exp(x: &[f32]) -> f64 {
    let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let max = f64::from(max);
    max + x.iter().map(|x| (f64::from(*x) - max).exp()).sum::<f64>().ln()
}

/// The first of the largest.
fn argmax(x: &[f32]) -> usize {
    let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    x.iter().position(|x| *x == max).unwrap_or(0)
}
