//! Which tensors of a checkpoint are quantized.

use std::fmt;

use lowbit::Format;
use regex::Regex;

use crate::Entry;
use crate::checkpoint::Dtype;
use crate::checkpoint::quant_state::weight_dtype;

/// Why a tensor is left as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// It matches a pattern of the caller's.
    Skipped,
    /// It holds numbers of a type that is no weight's.
    NotFloat(Dtype),
    /// It is not named as the weight of a layer: a bias, a buffer.
    NotAWeight,
    /// It is an embedding.
    Embedding,
    /// It is the layer that makes the logits.
    Head,
    /// It is a norm.
    Norm,
    /// It chooses among experts.
    Router,
    /// It is not a matrix, so not the weight of a linear layer.
    NotAMatrix,
    /// It has no rows, and the format keeps a scale for each.
    NoRows,
    /// It was not quantized, and no other type was asked for.
    NotQuantized,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Skipped => f.write_str("skipped as asked"),
            Reason::NotFloat(dtype) => write!(f, "numbers of type {dtype}"),
            Reason::NotAWeight => f.write_str("not a weight by its name"),
            Reason::Embedding => f.write_str("an embedding"),
            Reason::Head => f.write_str("the output head"),
            Reason::Norm => f.write_str("a norm"),
            Reason::Router => f.write_str("a router of experts"),
            Reason::NotAMatrix => f.write_str("not a matrix"),
            Reason::NoRows => f.write_str("no rows, which this format needs"),
            Reason::NotQuantized => f.write_str("not quantized"),
        }
    }
}

/// What a caller and the kind of checkpoint decide.
pub(super) struct Selection<'a> {
    pub format: &'static Format,
    pub skip: &'a [Regex],
    pub include: &'a [Regex],
    /// Of a model only linear layers are quantized; of a bare file every `..weight`.
    pub is_model: bool,
}

impl Selection<'_> {
    /// Why `entry` is left; `None` if it is quantized.
    pub fn left(&self, entry: &Entry) -> Option<Reason> {
        let matches = |patterns: &[Regex]| patterns.iter().any(|p| p.is_match(&entry.name));
        if weight_dtype(entry.dtype).is_none() {
            Some(Reason::NotFloat(entry.dtype))
        } else if matches(self.skip) {
            Some(Reason::Skipped)
        } else if self.format.needs_rows() && entry.shape.len() < 2 {
            Some(Reason::NoRows)
        } else if matches(self.include) {
            None
        } else if self.is_model {
            left_in_model(entry)
        } else {
            (!entry.name.ends_with("weight")).then_some(Reason::NotAWeight)
        }
    }
}

/// Why a tensor of a model is left by default; `None` for the weight of a linear layer.
pub(super) fn left_in_model(entry: &Entry) -> Option<Reason> {
    let Some(layer) = module(&entry.name) else {
        return Some(Reason::NotAWeight);
    };
    let last = layer.rsplit('.').next().unwrap_or(layer).to_lowercase();
    let last = last.as_str();
    if HEADS.contains(&last) || layer == "output" {
        Some(Reason::Head)
    } else if last.contains("embed") || EMBEDDINGS.contains(&last) {
        Some(Reason::Embedding)
    } else if last.contains("norm") || NORMS.contains(&last) {
        Some(Reason::Norm)
    } else if ROUTERS.contains(&last) {
        Some(Reason::Router)
    } else {
        (entry.shape.len() != 2).then_some(Reason::NotAMatrix)
    }
}

/// The layer that a weight belongs to; `None` if it is not named as one.
pub(super) fn module(name: &str) -> Option<&str> {
    name.strip_suffix(".weight")
}

/// Last words of layers that make a model's output; transformers keeps them in 16 bit as well.
const HEADS: [&str; 5] = ["lm_head", "embed_out", "score", "classifier", "qa_outputs"];
/// Last words of embeddings whose names do not say so.
const EMBEDDINGS: [&str; 4] = ["wte", "wpe", "shared", "relative_attention_bias"];
/// Last words of layers that choose among experts: a rounding sends whole positions elsewhere.
const ROUTERS: [&str; 3] = ["gate", "router", "shared_expert_gate"];
/// Last words of norms whose names do not say so.
const NORMS: [&str; 3] = ["ln_1", "ln_2", "ln_f"];
