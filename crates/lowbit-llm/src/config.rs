//! What a model needs of `config.json`, checked: after [`Config::parse`] no dimension is zero, odd
//! where it may not be, or large enough to overflow a product of two others.
//!
//! Field names and defaults are those of transformers' configuration classes; what a model type
//! has of its own is in its file under [`crate::models`].

use lowbit::DType;
use lowbit::device::Rope;
use serde_json::{Map, Value};

use crate::models::{self, ModelType};
use crate::{Error, Result, checkpoint, rope};

/// Columns that [`Device::argmax`](lowbit::device::Device::argmax) can tell apart.
const MAX_VOCABULARY: u64 = 1 << 24;
/// Larger than any published model's by far; products of two such numbers fit in 64 bits.
const MAX_WIDTH: u64 = 1 << 24;
const MAX_LAYERS: u64 = 1 << 12;
const MAX_HEADS: u64 = 1 << 12;
const MAX_HEAD_DIM: u64 = 1 << 12;
const MAX_POSITIONS: u64 = 1 << 31;

/// What to do about a value that another program may well run.
pub const OTHER_MODEL: &str = "a model with that setting cannot run here yet";
/// What to do about a value that no model has.
pub const INCONSISTENT: &str = "take config.json from where the weights come from";

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
    /// [`Error::Config`] naming the field, for a missing or malformed field or a value that no
    /// model here supports.
    pub fn parse(json: &Value) -> Result<Self> {
        let fields = Fields::new(checkpoint::CONFIG, json)?;
        let name: &str = fields.required("model_type", text)?;
        let model_type = models::by_name(name).ok_or_else(|| {
            fields.refuse("model_type", format!("one of {}", models::names()), OTHER_MODEL)
        })?;
        Ok(Config { dtype: checkpoint::config_dtype(json), ..Self::common(&fields, model_type)? })
    }

    fn common(fields: &Fields, model_type: &'static ModelType) -> Result<Self> {
        let activation = fields.optional("hidden_act", text)?.unwrap_or("silu");
        if activation != "silu" {
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
        if given.is_none() && hidden_size % heads != 0 {
            let expected = format!("a multiple of num_attention_heads = {heads}, or a head_dim");
            return Err(fields.refuse("hidden_size", expected, INCONSISTENT));
        }
        let head_dim = given.unwrap_or(hidden_size / heads);
        if head_dim % 2 != 0 {
            return Err(fields.refuse("head_dim", "an even number", INCONSISTENT));
        }
        let num_hidden_layers = fields.count("num_hidden_layers", MAX_LAYERS)?;
        let max_position_embeddings =
            fields.optional("max_position_embeddings", count(MAX_POSITIONS))?.unwrap_or(2048);
        Ok(Config {
            model_type,
            vocab_size: fields.count("vocab_size", MAX_VOCABULARY)?,
            hidden_size,
            intermediate_size: fields.count("intermediate_size", MAX_WIDTH)?,
            num_hidden_layers,
            num_attention_heads: heads,
            num_key_value_heads: kv_heads,
            head_dim,
            rms_norm_eps: fields.optional("rms_norm_eps", positive)?.unwrap_or(1e-6),
            tie_word_embeddings: fields.flag("tie_word_embeddings")?,
            attention_bias: fields.flag("attention_bias")?,
            mlp_bias: fields.flag("mlp_bias")?,
            windows: model_type.windows(fields, num_hidden_layers)?,
            rope: rope::parse(fields, head_dim, max_position_embeddings)?,
            max_position_embeddings,
            eos_token_ids: fields.optional("eos_token_id", token_ids)?.unwrap_or_default(),
            dtype: None,
        })
    }
}

/// An object of a JSON file, and where it is there.
#[derive(Debug, Clone, Copy)]
pub struct Fields<'a> {
    file: &'static str,
    object: &'a Map<String, Value>,
    /// Prefix of field names in errors.
    inside: &'static str,
}

/// Reads a value, or says what it should have been.
type Reader<'a, T> = Result<T, &'static str>;

impl<'a> Fields<'a> {
    /// The fields of a whole file of that name.
    ///
    /// # Errors
    /// [`Error::Config`] if it is not an object.
    pub fn new(file: &'static str, json: &'a Value) -> Result<Self> {
        let object = json.as_object().ok_or_else(|| Error::Config {
            file,
            field: "the file".into(),
            expected: "a JSON object".into(),
            got: shown(json),
            help: INCONSISTENT.into(),
        })?;
        Ok(Fields { file, object, inside: "" })
    }

    /// A field, `None` where it is missing or null.
    ///
    /// # Errors
    /// [`Error::Config`] if `read` refuses the value.
    pub fn optional<T>(
        &self,
        name: &str,
        read: impl FnOnce(&'a Value) -> Reader<'a, T>,
    ) -> Result<Option<T>> {
        let refused = |expected| self.refuse(name, expected, INCONSISTENT);
        self.get(name).map(|value| read(value).map_err(refused)).transpose()
    }

    /// A field that must be there.
    ///
    /// # Errors
    /// As [`optional`](Self::optional), and where it is missing.
    pub fn required<T>(
        &self,
        name: &str,
        read: impl FnOnce(&'a Value) -> Reader<'a, T>,
    ) -> Result<T> {
        self.optional(name, read)?.ok_or_else(|| self.refuse(name, "a value", INCONSISTENT))
    }

    /// A required number in `1..=max`.
    fn count(&self, name: &str, max: u64) -> Result<usize> {
        self.required(name, count(max))
    }

    /// A boolean that is false where it is missing.
    ///
    /// # Errors
    /// As [`optional`](Self::optional).
    pub fn flag(&self, name: &str) -> Result<bool> {
        let read = |value: &Value| value.as_bool().ok_or("true or false");
        Ok(self.optional(name, read)?.unwrap_or(false))
    }

    /// A value as it is, `None` where it is missing or null.
    pub fn get(&self, name: &str) -> Option<&'a Value> {
        self.object.get(name).filter(|value| !value.is_null())
    }

    /// Whether a field is there, null included.
    pub fn has(&self, name: &str) -> bool {
        self.object.contains_key(name)
    }

    /// The fields of an object inside this one, if it has it.
    ///
    /// # Errors
    /// As [`optional`](Self::optional).
    pub fn object(&self, name: &'static str) -> Result<Option<Fields<'a>>> {
        let object = self.optional(name, |value| value.as_object().ok_or("an object"))?;
        Ok(object.map(|object| Fields { object, inside: name, ..*self }))
    }

    /// All fields.
    pub fn iter(&self) -> impl Iterator<Item = (&'a str, &'a Value)> + use<'a> {
        self.object.iter().map(|(name, value)| (name.as_str(), value))
    }

    /// The error for the value of a field.
    pub fn refuse(&self, name: &str, expected: impl Into<String>, help: &str) -> Error {
        let field = match self.inside {
            "" => name.to_string(),
            inside => format!("{inside}.{name}"),
        };
        Error::Config {
            file: self.file,
            field,
            expected: expected.into(),
            got: self.object.get(name).map_or("nothing".into(), shown),
            help: help.into(),
        }
    }
}

/// A value as errors show it: a hostile one is not repeated in full.
fn shown(value: &Value) -> String {
    const LENGTH: usize = 60;
    let text = value.to_string();
    match text.char_indices().nth(LENGTH) {
        Some((end, _)) => format!("{}..", &text[..end]),
        None => text,
    }
}

/// Reads a whole number in `1..=max`.
pub fn count(max: u64) -> impl FnOnce(&Value) -> Reader<'_, usize> {
    move |value| match value.as_u64() {
        Some(n) if (1..=max).contains(&n) => usize::try_from(n).map_err(|_| "a smaller number"),
        Some(0) => Err("a number above 0"),
        Some(_) => Err("a number that a model can have"),
        None => Err("a whole number above 0"),
    }
}

/// Reads a number of positions.
pub fn positions(value: &Value) -> Reader<'_, usize> {
    count(MAX_POSITIONS)(value)
}

/// Reads a finite number above 0.
pub fn positive(value: &Value) -> Reader<'_, f32> {
    match value.as_f64().map(|x| x as f32) {
        Some(x) if x.is_finite() && x > 0.0 => Ok(x),
        _ => Err("a number above 0"),
    }
}

/// Reads a string.
pub fn text(value: &Value) -> Reader<'_, &str> {
    value.as_str().ok_or("a string")
}

/// Reads a token id or a list of them.
pub fn token_ids(value: &Value) -> Reader<'_, Vec<u32>> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let ids = match value {
        Value::Array(values) => values.iter().map(id).collect(),
        value => id(value).map(|id| vec![id]),
    };
    ids.ok_or("a token id or a list of them")
}
