//! Models of a published shape with random weights: how fast they run does not depend on what they
//! have learnt.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::Path;

use bytes::Bytes;
use half::bf16;
use lowbit::{Cpu, DType, DenseTensor, Format, Weight};
use lowbit_llm::models::Source;
use lowbit_llm::{Config, Error};
use regex::Regex;
use serde_json::{Value, json};

use super::cases::deep_copy;
use super::measure::gaussian;
use crate::failure::Result;

/// Deviation of the weights, as models are initialized.
const DEVIATION: f32 = 0.02;

/// Their names.
pub const NAMES: [&str; 3] = ["llama-15m", "llama-1b", "llama-8b"];

/// `config.json` of a shape: of TinyLlama's stories15M, Llama 3.2 1B, Llama 3.1 8B.
fn config(name: &str) -> Value {
    let (hidden, wide, layers, heads, kv_heads, vocabulary, tied) = match name {
        "llama-15m" => (288, 768, 6, 6, 6, 32_000, true),
        "llama-1b" => (2048, 8192, 16, 32, 8, 128_256, true),
        _ => (4096, 14_336, 32, 32, 8, 128_256, false),
    };
    json!({
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": wide,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0,
        "max_position_embeddings": 131_072,
        "torch_dtype": "bfloat16",
    })
}

/// How the weights are stored.
#[derive(Debug)]
pub struct Storage<'a> {
    pub format: &'static Format,
    pub block_size: Option<usize>,
    pub double_quant: bool,
    /// Names of tensors to be quantized besides the layers' linear weights.
    pub include: &'a [Regex],
}

/// The weights of a random model.
pub struct Random {
    pub config: Config,
    name: String,
    /// Shapes by name.
    shapes: HashMap<String, Vec<usize>>,
    /// One weight of each shape and kind, for those that are quantized and those that are not.
    weights: HashMap<(Vec<usize>, bool), Weight>,
    include: Vec<Regex>,
}

impl Random {
    /// Makes a weight of each shape; the layers get copies.
    pub fn new(name: &str, storage: &Storage<'_>) -> Result<Self> {
        let config = Config::parse(&config(name))?;
        let mut this = Random {
            shapes: shapes(&config),
            config,
            name: format!("--shape {name}"),
            weights: HashMap::new(),
            include: storage.include.to_vec(),
        };
        for (name, shape) in &this.shapes {
            let is_quantized = this.is_quantized(name, shape);
            let key = (shape.clone(), is_quantized);
            if let Entry::Vacant(place) = this.weights.entry(key) {
                place.insert(random(shape, is_quantized.then_some(storage))?);
            }
        }
        Ok(this)
    }

    fn is_quantized(&self, name: &str, shape: &[usize]) -> bool {
        let asked = name.contains("_proj.") || self.include.iter().any(|r| r.is_match(name));
        shape.len() == 2 && asked
    }

    fn find(&self, name: &str) -> Option<&Weight> {
        let shape = self.shapes.get(name)?;
        self.weights.get(&(shape.clone(), self.is_quantized(name, shape)))
    }
}

impl Source for Random {
    fn name(&self) -> &Path {
        Path::new(&self.name)
    }

    fn bytes(&self) -> u64 {
        self.shapes.keys().filter_map(|name| self.size(name)).map(|(bytes, _)| bytes).sum()
    }

    fn size(&self, name: &str) -> Option<(u64, u64)> {
        let weight = self.find(name)?;
        Some((weight.bytes() as u64, weight.shape().iter().product::<usize>() as u64))
    }

    /// A copy of its own, as the weights of a checkpoint are.
    fn weight(&self, name: &str, _: &[usize]) -> lowbit_llm::Result<Weight> {
        let expected = || {
            let help = "this is a mistake in lowbit; report it";
            Error::tensor(self.name(), name, "a tensor of that name", "none", help)
        };
        Ok(match self.find(name).ok_or_else(expected)? {
            Weight::Quantized(q) => deep_copy(q)?.into(),
            Weight::Dense(dense) => {
                let data = Bytes::copy_from_slice(dense.data());
                DenseTensor::new(dense.dtype(), dense.shape().to_vec(), data)?.into()
            }
        })
    }
}

/// Shapes of all weights of a Llama, by name.
fn shapes(config: &Config) -> HashMap<String, Vec<usize>> {
    let (hidden, wide) = (config.hidden_size, config.intermediate_size);
    let queries = config.num_attention_heads * config.head_dim;
    let keys = config.num_key_value_heads * config.head_dim;
    let layer = [
        ("input_layernorm", vec![hidden]),
        ("post_attention_layernorm", vec![hidden]),
        ("self_attn.q_proj", vec![queries, hidden]),
        ("self_attn.k_proj", vec![keys, hidden]),
        ("self_attn.v_proj", vec![keys, hidden]),
        ("self_attn.o_proj", vec![hidden, queries]),
        ("mlp.gate_proj", vec![wide, hidden]),
        ("mlp.up_proj", vec![wide, hidden]),
        ("mlp.down_proj", vec![hidden, wide]),
    ];
    let mut shapes = HashMap::from([
        ("model.embed_tokens.weight".to_owned(), vec![config.vocab_size, hidden]),
        ("model.norm.weight".to_owned(), vec![hidden]),
    ]);
    if !config.tie_word_embeddings {
        shapes.insert("lm_head.weight".to_owned(), vec![config.vocab_size, hidden]);
    }
    for i in 0..config.num_hidden_layers {
        let named = |(name, shape): &(&str, Vec<usize>)| {
            (format!("model.layers.{i}.{name}.weight"), shape.clone())
        };
        shapes.extend(layer.iter().map(named));
    }
    shapes
}

/// Norms are ones; matrices are random, in bf16 or quantized.
fn random(shape: &[usize], storage: Option<&Storage<'_>>) -> Result<Weight> {
    let numel: usize = shape.iter().product();
    if shape.len() < 2 {
        return Ok(DenseTensor::from_f32(shape.to_vec(), &vec![1.0; numel])?.into());
    }
    let numbers: Vec<bf16> = gaussian(numel, DEVIATION, numel as u64)?;
    let Some(storage) = storage else {
        let data = Bytes::from(bytemuck::cast_slice::<bf16, u8>(&numbers).to_vec());
        return Ok(DenseTensor::new(DType::BF16, shape.to_vec(), data)?.into());
    };
    let q = Cpu::best().quantize(storage.format, &numbers, shape, storage.block_size)?;
    Ok(if storage.double_quant { lowbit::double_quantize(q)? } else { q }.into())
}
