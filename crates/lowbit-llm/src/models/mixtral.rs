//! Mixtral: Mistral with a mixture of experts in every layer.

use super::experts::{Experts, Names};
use super::{Defaults, ModelType, mistral};
use crate::Result;
use crate::fields::{Fields, positions};

pub(super) static MIXTRAL: ModelType = ModelType {
    name: "mixtral",
    defaults: Defaults {
        num_key_value_heads: Some(8),
        rms_norm_eps: 1e-5,
        experts: Some(experts),
        ..Defaults::LLAMA
    },
    windows,
    block: mistral::block,
};

static NAMES: Names = Names { mixture: "block_sparse_moe", gate: "w1", up: "w3", down: "w2" };

/// One window for all layers, or none.
fn windows(fields: &Fields, layers: usize) -> Result<Vec<Option<usize>>> {
    Ok(vec![fields.optional("sliding_window", positions)?; layers])
}

fn experts(fields: &Fields, intermediate_size: usize, layers: usize) -> Result<Experts> {
    Experts::read(fields, &NAMES, [8, 2], true, intermediate_size, vec![true; layers])
}
