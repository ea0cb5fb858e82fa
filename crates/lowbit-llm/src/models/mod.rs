//! Models of the Llama family, on any [`Device`].
//!
//! A model type is one file here and one line in [`MODEL_TYPES`]: it says how its configuration
//! and its layers differ from the shared ones of [`layers`](self). Nothing else asks which type
//! a model is.

mod experts;
mod layers;
mod llama;
mod loader;
mod mistral;
mod mixtral;
mod qwen2;
mod qwen3;
mod qwen3_moe;
pub(crate) mod stages;

use std::sync::Arc;

use lowbit::device::{CacheShape, Device, KvCache, Tensor};

pub use experts::Experts;
pub use layers::Tap;
use layers::{Block, Linear, Norm, Pass};
use loader::Loader;
pub use loader::Source;

use crate::config::Config;
use crate::fields::Fields;
use crate::{Checkpoint, Error, Result};

/// Every model type that can run.
pub static MODEL_TYPES: [&ModelType; 6] = [
    &llama::LLAMA,
    &mistral::MISTRAL,
    &mixtral::MIXTRAL,
    &qwen2::QWEN2,
    &qwen3::QWEN3,
    &qwen3_moe::QWEN3_MOE,
];

/// What is its own to a model type.
#[derive(Debug)]
pub struct ModelType {
    /// `model_type` of `config.json`.
    pub name: &'static str,
    defaults: Defaults,
    /// Reads the window of each of so many layers.
    windows: fn(&Fields, usize) -> Result<Vec<Option<usize>>>,
    /// Loads the layer of that index.
    block: fn(&mut Loader, &Config, usize) -> Result<Block>,
}

/// Values of fields that transformers fills in differently for each model type, and fields that only some
/// have.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Defaults {
    /// `None`: as many as heads of queries.
    pub num_key_value_heads: Option<usize>,
    /// `None`: `hidden_size / num_attention_heads`.
    pub head_dim: Option<usize>,
    pub rms_norm_eps: f32,
    pub experts: Option<ReadExperts>,
}

/// Reads what is said about experts, given `intermediate_size` and the number of layers.
pub(crate) type ReadExperts = fn(&Fields, usize, usize) -> Result<Experts>;

impl Defaults {
    /// Llama's.
    pub const LLAMA: Self =
        Defaults { num_key_value_heads: None, head_dim: None, rms_norm_eps: 1e-6, experts: None };
}

impl ModelType {
    pub(crate) fn defaults(&self) -> Defaults {
        self.defaults
    }

    pub(crate) fn windows(&self, fields: &Fields, layers: usize) -> Result<Vec<Option<usize>>> {
        (self.windows)(fields, layers)
    }
}

/// The model type of that name.
pub fn by_name(name: &str) -> Option<&'static ModelType> {
    MODEL_TYPES.into_iter().find(|model_type| model_type.name == name)
}

/// Their names, for errors and help.
pub fn names() -> String {
    MODEL_TYPES.map(|model_type| model_type.name).join(", ")
}

/// No layer has a window.
fn full_attention(_: &Fields, layers: usize) -> Result<Vec<Option<usize>>> {
    Ok(vec![None; layers])
}

/// Rows whose logits a pass returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Logits {
    /// The last position's: `[1, V]`.
    Last,
    /// Every position's: `[T, V]`.
    All,
}

/// A model on a device.
pub struct Model {
    config: Config,
    device: Arc<dyn Device>,
    embed_tokens: Tensor,
    layers: Vec<Block>,
    norm: Norm,
    lm_head: Linear,
    bytes: u64,
    expert_bytes: u64,
    weights: u64,
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (name, bytes, weights) = (self.config.model_type.name, self.bytes, self.weights);
        write!(
            f,
            "Model {{ {name}, {weights} weights in {bytes} bytes on {} }}",
            self.device.name()
        )
    }
}

impl Model {
    /// Moves a checkpoint's weights to a device, quantized as they are. `progress` is called with
    /// bytes done and bytes in total.
    ///
    /// # Errors
    /// [`Error::Config`] if `config.json` does not describe a model that runs here,
    /// [`Error::Tensor`] for a tensor that is missing or of another shape, and the device's own.
    pub fn load(
        checkpoint: &Checkpoint,
        device: Arc<dyn Device>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self> {
        let json = checkpoint.config().ok_or_else(|| {
            let help = "pass a model directory; a bare safetensors file does not say how to run it";
            Error::file(checkpoint.path(), "a model with its config.json", "none", help)
        })?;
        Self::from_source(Config::parse(json)?, checkpoint, device, progress)
    }

    /// [`load`](Self::load) for weights from anywhere.
    ///
    /// # Errors
    /// [`Error::Tensor`] for a tensor that is missing or of another shape, and the device's own.
    pub fn from_source(
        config: Config,
        source: &dyn Source,
        device: Arc<dyn Device>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self> {
        let mut from = Loader::new(source, &*device, config.rms_norm_eps, progress);
        let [vocabulary, hidden] = [config.vocab_size, config.hidden_size];
        const EMBEDDING: &str = "model.embed_tokens";
        let embed_tokens = from.matrix(EMBEDDING, [vocabulary, hidden])?;
        let layers = (0..config.num_hidden_layers)
            .map(|layer| (config.model_type.block)(&mut from, &config, layer))
            .collect::<Result<Vec<_>>>()?;
        let norm = from.norm("model.norm", hidden)?;
        let lm_head = match config.tie_word_embeddings {
            true => Linear {
                name: format!("{EMBEDDING}.weight"),
                weight: embed_tokens.clone(),
                bias: None,
            },
            false => from.linear("lm_head", [vocabulary, hidden], false)?,
        };
        let Loader { bytes, expert_bytes, weights, .. } = from;
        Ok(Model {
            config,
            device,
            embed_tokens,
            layers,
            norm,
            lm_head,
            bytes,
            expert_bytes,
            weights,
        })
    }

    /// Dimensions and settings.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Where it runs.
    pub fn device(&self) -> &dyn Device {
        &*self.device
    }

    /// Stored bytes of the weights in use, scales included; tied weights count once.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Those of [`bytes`](Self::bytes) that a pass over so many tokens reads at most: of experts, as
    /// many as the tokens can choose.
    pub fn bytes_read(&self, tokens: usize) -> u64 {
        let Some(Experts { count, routing, .. }) = &self.config.experts else { return self.bytes };
        let chosen = tokens.saturating_mul(routing.top).min(*count);
        let part = self.expert_bytes as f64 * chosen as f64 / (*count).max(1) as f64;
        self.bytes - self.expert_bytes + part as u64
    }

    /// Stored bits per weight in use, scales included, over all tensors.
    pub fn bits_per_weight(&self) -> f64 {
        8.0 * self.bytes as f64 / self.weights.max(1) as f64
    }

    /// An empty cache for so many positions, prompt and answer together.
    ///
    /// # Errors
    /// [`lowbit::Error::OutOfMemory`] with the bytes, if the machine has not as many free.
    pub fn new_cache(&self, max_context: usize) -> Result<KvCache> {
        let shape = CacheShape {
            layers: self.config.num_hidden_layers,
            kv_heads: self.config.num_key_value_heads,
            head_dim: self.config.head_dim,
            capacity: max_context,
        };
        let (bytes, available) = (self.device.cache_host_bytes(shape), available_memory());
        if let Some(available) = available.filter(|available| bytes > *available) {
            let per_position = (bytes / max_context.max(1) as u64).max(1);
            let fits = available / per_position;
            let help = format!(
                "a context of {max_context} positions takes {per_position} bytes each; lower \
                 --max-context, to at most {fits} with the memory that is free now"
            );
            return Err(lowbit::Error::OutOfMemory { op: "KV cache", bytes, help }.into());
        }
        Ok(self.device.kv_cache(shape)?)
    }

    /// Runs `ids` after the positions in the cache, in one pass: logits `[1, V]` or `[T, V]`.
    ///
    /// Nothing is read back, so a device may still be at work when this returns. After an error
    /// the cache holds what it held before.
    ///
    /// # Errors
    /// [`Error::Argument`] without any ids; the device's errors for ids outside the vocabulary, a
    /// full cache or one of another model; those of the tap.
    pub fn forward(
        &self,
        ids: &[u32],
        cache: &mut KvCache,
        logits: Logits,
        mut tap: Option<&mut dyn Tap>,
    ) -> Result<Tensor> {
        let x = self.hidden(ids, cache, &mut tap)?;
        let x = match logits {
            Logits::Last => self.device.rows(&x, ids.len() - 1, 1)?,
            Logits::All => x,
        };
        self.logits(&x, &mut tap)
    }

    /// [`forward`](Self::forward) of one token that is still on the device, as its argmax gave it.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn forward_token(&self, id: &Tensor, cache: &mut KvCache) -> Result<Tensor> {
        let x = self.device.embed_tokens(&self.embed_tokens, id)?;
        let x = self.run(x, cache, &mut None)?;
        self.logits(&x, &mut None)
    }

    /// The layers only: `[T, C]`.
    pub(crate) fn hidden(
        &self,
        ids: &[u32],
        cache: &mut KvCache,
        tap: &mut Option<&mut dyn Tap>,
    ) -> Result<Tensor> {
        if ids.is_empty() {
            let help = "begin with a prompt or the model's bos token";
            return Err(Error::argument("forward", "at least one token", "none", help));
        }
        let x = self.device.embed(&self.embed_tokens, ids)?;
        self.run(x, cache, tap)
    }

    /// The layers, on embeddings.
    fn run(
        &self,
        mut x: Tensor,
        cache: &mut KvCache,
        tap: &mut Option<&mut dyn Tap>,
    ) -> Result<Tensor> {
        let mut pass = Pass { device: &*self.device, rope: &self.config.rope, cache, tap };
        for (layer, block) in self.layers.iter().enumerate() {
            x = block.forward(&mut pass, layer, &x)?;
        }
        let (rows, _) = x.rows_cols();
        cache.advance(rows)?;
        Ok(x)
    }

    /// Norm and output layer: `x: [T, C]` to `[T, V]`.
    pub(crate) fn logits(&self, x: &Tensor, tap: &mut Option<&mut dyn Tap>) -> Result<Tensor> {
        let x = self.norm.forward(&*self.device, x)?;
        self.lm_head.forward(&*self.device, tap, &x)
    }
}

/// Bytes that this process can still have, if the system says.
fn available_memory() -> Option<u64> {
    let mut system = sysinfo::System::new();
    system.refresh_memory();
    if system.total_memory() == 0 {
        return None;
    }
    // What a container has used counts without its page cache, which makes room when it must.
    let container = system.cgroup_limits().map(|c| c.total_memory.saturating_sub(c.rss));
    Some(system.available_memory()).into_iter().chain(container).min()
}
