//! Llama 1 to 3.2, and the many models saved under its name.

use super::layers::{Biases, Block};
use super::loader::Loader;
use super::{Defaults, ModelType, full_attention};
use crate::Result;
use crate::config::Config;

pub(super) static LLAMA: ModelType =
    ModelType { name: "llama", defaults: Defaults::LLAMA, windows: full_attention, block };

fn block(from: &mut Loader, config: &Config, layer: usize) -> Result<Block> {
    let Config { attention_bias, mlp_bias, .. } = *config;
    Block::load(
        from,
        config,
        layer,
        Biases { qkv: attention_bias, o: attention_bias, mlp: mlp_bias },
    )
}
