//! Mistral 7B and its kin: Llama without biases, where a position sees a window of those before it.

use super::layers::{Biases, Block};
use super::loader::Loader;
use super::{Defaults, ModelType};
use crate::Result;
use crate::config::Config;
use crate::fields::{Fields, positions};

pub(super) static MISTRAL: ModelType = ModelType {
    name: "mistral",
    defaults: Defaults { num_key_value_heads: Some(8), ..Defaults::LLAMA },
    windows,
    block,
};

/// One window for all layers: null is none, and a missing field transformers' default.
fn windows(fields: &Fields, layers: usize) -> Result<Vec<Option<usize>>> {
    const NAME: &str = "sliding_window";
    let window = if fields.has(NAME) { fields.optional(NAME, positions)? } else { Some(4096) };
    Ok(vec![window; layers])
}

pub(super) fn block(from: &mut Loader, config: &Config, layer: usize) -> Result<Block> {
    Block::load(from, config, layer, Biases { qkv: false, o: false, mlp: false })
}
