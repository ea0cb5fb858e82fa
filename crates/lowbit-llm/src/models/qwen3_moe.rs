//! Qwen3's mixtures of experts: Qwen3 where all layers or some choose among small MLPs.

use serde_json::Value;

use super::experts::{Experts, Names};
use super::{Defaults, ModelType, qwen2, qwen3};
use crate::Result;
use crate::config::MAX_WIDTH;
use crate::fields::{Fields, count};

pub(super) static QWEN3_MOE: ModelType = ModelType {
    name: "qwen3_moe",
    defaults: Defaults { num_key_value_heads: Some(4), experts: Some(experts), ..Defaults::LLAMA },
    windows,
    block: qwen3::block,
};

static NAMES: Names = Names { mixture: "mlp", gate: "gate_proj", up: "up_proj", down: "down_proj" };

/// One window for all layers, if `use_sliding_window` says so.
fn windows(fields: &Fields, layers: usize) -> Result<Vec<Option<usize>>> {
    Ok(vec![qwen2::window(fields)?; layers])
}

/// Every `decoder_sparse_step`-th layer has experts, unless `mlp_only_layers` names it.
fn experts(fields: &Fields, _: usize, layers: usize) -> Result<Experts> {
    let step = fields.optional("decoder_sparse_step", count(u64::MAX))?.unwrap_or(1);
    let list = |value: &Value| -> Result<Vec<u64>, &'static str> {
        let list = value.as_array().map(|list| list.iter().map(Value::as_u64).collect());
        list.flatten().ok_or("a list of layers")
    };
    let dense = fields.optional("mlp_only_layers", list)?.unwrap_or_default();
    let has = |layer: usize| !dense.contains(&(layer as u64)) && (layer + 1) % step == 0;
    let layers = (0..layers).map(has).collect();
    let normalize = fields.flag("norm_topk_prob")?;
    let wide = fields.optional("moe_intermediate_size", count(MAX_WIDTH))?.unwrap_or(768);
    Experts::read(fields, &NAMES, [128, 8], normalize, wide, layers)
}
