//! Qwen2 and Qwen2.5: Llama with biases on queries, keys and values, and windows in some layers.

use super::layers::{Biases, Block};
use super::loader::Loader;
use super::{Defaults, ModelType};
use crate::Result;
use crate::config::Config;
use crate::fields::{Fields, INCONSISTENT, OTHER_MODEL, positions};

pub(super) static QWEN2: ModelType = ModelType {
    name: "qwen2",
    defaults: Defaults { num_key_value_heads: Some(32), ..Defaults::LLAMA },
    windows,
    block,
};

/// `sliding_window` counts only with `use_sliding_window`, and then for the layers that
/// `layer_types` names, or for those from `max_window_layers` on.
pub(super) fn windows(fields: &Fields, layers: usize) -> Result<Vec<Option<usize>>> {
    let window = window(fields)?;
    let Some(types) = fields.optional("layer_types", |v| v.as_array().ok_or("a list"))? else {
        let count = |v: &serde_json::Value| v.as_u64().ok_or("a number of layers");
        let full = fields.optional("max_window_layers", count)?.unwrap_or(28);
        return Ok((0..layers as u64).map(|i| window.filter(|_| i >= full)).collect());
    };
    if types.len() != layers {
        let expected = format!("num_hidden_layers = {layers} of them");
        return Err(fields.refuse("layer_types", expected, INCONSISTENT));
    }
    let of_type = |name: &serde_json::Value| match name.as_str() {
        Some("full_attention") => Ok(None),
        Some("sliding_attention") => Ok(window),
        _ => {
            let expected = "\"full_attention\" and \"sliding_attention\"";
            Err(fields.refuse("layer_types", expected, OTHER_MODEL))
        }
    };
    types.iter().map(of_type).collect()
}

/// `sliding_window`, with `use_sliding_window`.
pub(super) fn window(fields: &Fields) -> Result<Option<usize>> {
    let use_window = fields.flag("use_sliding_window")?;
    let size = match fields.has("sliding_window") {
        true => fields.optional("sliding_window", positions)?,
        false => Some(4096),
    };
    Ok(size.filter(|_| use_window))
}

fn block(from: &mut Loader, config: &Config, layer: usize) -> Result<Block> {
    Block::load(from, config, layer, Biases { qkv: true, o: false, mlp: false })
}
