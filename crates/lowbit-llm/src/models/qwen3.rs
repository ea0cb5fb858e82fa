//! Qwen3: Llama with a norm on every head of queries and keys, and Qwen2's windows.

use super::layers::{Biases, Block};
use super::loader::Loader;
use super::{Defaults, ModelType, qwen2};
use crate::Result;
use crate::config::Config;

pub(super) static QWEN3: ModelType = ModelType {
    name: "qwen3",
    defaults: Defaults { num_key_value_heads: Some(32), head_dim: Some(128), ..Defaults::LLAMA },
    windows: qwen2::windows,
    block,
};

pub(super) fn block(from: &mut Loader, config: &Config, layer: usize) -> Result<Block> {
    let bias = config.attention_bias;
    let mut block = Block::load(from, config, layer, Biases { qkv: bias, o: bias, mlp: false })?;
    let at = format!("model.layers.{layer}.self_attn");
    block.self_attn.q_norm = Some(from.norm(&format!("{at}.q_norm"), config.head_dim)?);
    block.self_attn.k_norm = Some(from.norm(&format!("{at}.k_norm"), config.head_dim)?);
    Ok(block)
}
