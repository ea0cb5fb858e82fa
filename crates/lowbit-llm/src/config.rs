//! What a model needs of `config.json`, checked: after [`Config::parse`] no dimension is zero, odd
//! where it may not be, or large enough to overflow a product of two others.
//!
//! Field names and defaults are those of transformers' configuration classes; what a model type
//! has of its own is in its file under [`crate::models`].

use lowbit::DType;
use lowbit::device::Rope;
use serde_json::Value;

use crate::fields::{
    Fields, INCONSISTENT, OTHER_MODEL, count, positions, positive, text, token_ids,
};
use crate::models::{self, Experts, ModelType, ReadExperts};
use crate::{Result, checkpoint, rope};

/// Columns that [`Device::argmax`](lowbit::device::Device::argmax) can tell apart.
const MAX_VOCABULARY: u64 = 1 << 24;
/// Larger than any published model's by far; products of two such numbers fit in 64 bits.
pub(crate) const MAX_WIDTH: u64 = 1 << 24;
const MAX_LAYERS: u64 = 1 << 12;
const MAX_HEADS: u64 = 1 << 12;
const MAX_HEAD_DIM: u64 = 1 << 12;

/// Dimensions and settings of a model.
#[derive(Debug, Clone)]
pub struct Config {
    /// Which of [`models::MODEL_TYPES`] it is.
    pub model_type: &'static ModelType,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Numbers per position between layers.
    pub hidden_size: usize,
    /// Numbers per position inside a layer's MLP.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Heads of queries, a multiple of `num_key_value_heads`.
    pub num_attention_heads: usize,
    /// Heads of keys and values.
    pub num_key_value_heads: usize,
    /// Length of a head, even; need not be `hidden_size / num_attention_heads`.
    pub head_dim: usize,
    /// Added to the mean square in every norm.
    pub rms_norm_eps: f32,
    /// Whether the embedding is also the output layer.
    pub tie_word_embeddings: bool,
    /// Whether the file asks for biases in attention; not every model type heeds it.
    pub attention_bias: bool,
    /// Whether the file asks for biases in the MLP; not every model type heeds it.
    pub mlp_bias: bool,
    /// Per layer, how many positions one sees, itself included; `None`: all before it.
    pub windows: Vec<Option<usize>>,
    /// Experts that some layers have instead of an MLP.
    pub experts: Option<Experts>,
    /// Rotary embedding, scaling included.
    pub rope: Rope,
    /// Positions that the model was trained for.
    pub max_position_embeddings: usize,
    /// Tokens that end a text; may be none.
    pub eos_token_ids: Vec<u32>,
    /// Type that the model was saved in, if the file says.
    pub dtype: Option<DType>,
}

impl Config {
    /// Reads a parsed `config.json`.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) naming the field, for a missing or malformed field
    /// or a value that no model here supports.
    pub fn parse(json: &Value) -> Result<Self> {
        let fields = Fields::new(checkpoint::CONFIG, json)?;
        let name: &str = fields.required("model_type", text)?;
        let model_type = models::by_name(name).ok_or_else(|| {
            fields.refuse("model_type", format!("one of {}", models::names()), OTHER_MODEL)
        })?;
        Ok(Config { dtype: checkpoint::config_dtype(json), ..Self::common(&fields, model_type)? })
    }

    fn common(fields: &Fields, model_type: &'static ModelType) -> Result<Self> {
        // transformers knows this activation under both names.
        let activation = fields.optional("hidden_act", text)?.unwrap_or("silu");
        if !["silu", "swish"].contains(&activation) {
            return Err(fields.refuse("hidden_act", "\"silu\"", OTHER_MODEL));
        }
        let defaults = model_type.defaults();
        let hidden_size = fields.count("hidden_size", MAX_WIDTH)?;
        let heads = fields.count("num_attention_heads", MAX_HEADS)?;
        let kv_heads = fields
            .optional("num_key_value_heads", count(MAX_HEADS))?
            .unwrap_or(defaults.num_key_value_heads.unwrap_or(heads));
        if heads % kv_heads != 0 {
            let expected = format!("a divisor of num_attention_heads = {heads}");
            return Err(fields.refuse("num_key_value_heads", expected, INCONSISTENT));
        }
        let given = fields.optional("head_dim", count(MAX_HEAD_DIM))?.or(defaults.head_dim);
        let head_dim = match given {
            Some(even) if even % 2 == 0 => even,
            Some(_) => return Err(fields.refuse("head_dim", "an even number", INCONSISTENT)),
            None if hidden_size % (2 * heads) == 0 => hidden_size / heads,
            None => {
                let expected = format!("a multiple of 2 * num_attention_heads = {}", 2 * heads);
                return Err(fields.refuse("hidden_size", expected, INCONSISTENT));
            }
        };
        let num_hidden_layers = fields.count("num_hidden_layers", MAX_LAYERS)?;
        let intermediate_size = fields.count("intermediate_size", MAX_WIDTH)?;
        let experts = |read: ReadExperts| read(fields, intermediate_size, num_hidden_layers);
        let max_position_embeddings =
            fields.optional("max_position_embeddings", positions)?.unwrap_or(2048);
        Ok(Config {
            model_type,
            vocab_size: fields.count("vocab_size", MAX_VOCABULARY)?,
            hidden_size,
            intermediate_size,
            num_hidden_layers,
            num_attention_heads: heads,
            num_key_value_heads: kv_heads,
            head_dim,
            rms_norm_eps: fields
                .optional("rms_norm_eps", positive)?
                .unwrap_or(defaults.rms_norm_eps),
            tie_word_embeddings: fields.flag("tie_word_embeddings")?,
            attention_bias: fields.flag("attention_bias")?,
            mlp_bias: fields.flag("mlp_bias")?,
            windows: model_type.windows(fields, num_hidden_layers)?,
            experts: defaults.experts.map(experts).transpose()?,
            rope: rope::parse(fields, head_dim, max_position_embeddings)?,
            max_position_embeddings,
            eos_token_ids: fields.optional("eos_token_id", token_ids)?.unwrap_or_default(),
            dtype: None,
        })
    }
}
