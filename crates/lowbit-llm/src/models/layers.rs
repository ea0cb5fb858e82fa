//! What the layers of all model types are made of. Fields have the names of the checkpoint.

use lowbit::device::{self, Device, KvCache, Rope, Tensor};

use super::experts::{Experts, Mixture};
use super::loader::Loader;
use crate::config::Config;
use crate::{Error, Result};

/// Sees what goes into each linear layer, before it runs: calibration needs it.
pub trait Tap {
    /// `x: [T, K]` is about to be multiplied by the weight of that checkpoint name, `[N, K]`.
    ///
    /// # Errors
    /// Whatever the tap returns ends the pass.
    fn input(&mut self, weight: &str, x: &Tensor) -> Result<()>;
}

/// One pass of some positions through the layers.
pub(crate) struct Pass<'a, 't> {
    pub device: &'a dyn Device,
    pub rope: &'a Rope,
    pub cache: &'a mut KvCache,
    pub tap: &'a mut Option<&'t mut dyn Tap>,
}

/// `x wᵀ + bias`: `weight: [N, K]`, `bias: [N]`.
pub(crate) struct Linear {
    /// Name of the weight.
    pub name: String,
    pub weight: Tensor,
    pub bias: Option<Tensor>,
}

impl Linear {
    /// `x: [T, K]` to `[T, N]`.
    pub fn forward(
        &self,
        device: &dyn Device,
        tap: &mut Option<&mut dyn Tap>,
        x: &Tensor,
    ) -> Result<Tensor> {
        show(tap, &self.name, x)?;
        Ok(device.linear(x, &self.weight, self.bias.as_ref())?)
    }
}

/// Shows an input to whoever wants to see it.
pub(super) fn show(tap: &mut Option<&mut dyn Tap>, name: &str, x: &Tensor) -> Result<()> {
    match tap {
        None => Ok(()),
        Some(tap) => tap.input(name, x),
    }
}

/// Linear layers that read the same input.
pub(crate) struct Bundle {
    /// Names of their weights.
    pub names: Vec<String>,
    pub weights: Tensor,
}

/// Names, borrowed.
pub(super) fn names<'a>(of: impl IntoIterator<Item = &'a String>) -> Vec<&'a str> {
    of.into_iter().map(String::as_str).collect()
}

impl Pass<'_, '_> {
    /// `x: [T, K]` to `[T, N]`, added to `to`.
    fn linear_add(&mut self, linear: &Linear, x: &Tensor, to: &Tensor) -> Result<Tensor> {
        show(self.tap, &linear.name, x)?;
        Ok(self.device.linear_add(x, &linear.weight, linear.bias.as_ref(), to)?)
    }

    /// Runs `f` on what goes into a bundle, which is `x` with a norm. The norm is taken before where
    /// someone wants to see its result.
    fn bundle<R>(
        &mut self,
        bundle: &Bundle,
        x: &Tensor,
        norm: &Norm,
        f: impl FnOnce(&dyn Device, &Tensor, Option<device::Norm<'_>>) -> lowbit::Result<R>,
    ) -> Result<R> {
        if self.tap.is_none() {
            return Ok(f(self.device, x, Some(norm.settings()))?);
        }
        let x = norm.forward(self.device, x)?;
        for name in &bundle.names {
            show(self.tap, name, &x)?;
        }
        Ok(f(self.device, &x, None)?)
    }
}

/// Root mean square norm.
pub(crate) struct Norm {
    /// Factors, `[C]`.
    pub weight: Tensor,
    pub eps: f32,
}

impl Norm {
    fn settings(&self) -> device::Norm<'_> {
        device::Norm { weight: &self.weight, eps: self.eps }
    }

    /// `x: [T, n * C]`, each run of `C` by itself.
    pub fn forward(&self, device: &dyn Device, x: &Tensor) -> Result<Tensor> {
        Ok(device.rms_norm(x, &self.weight, self.eps)?)
    }
}

/// Which linear layers of a block have a bias.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Biases {
    pub qkv: bool,
    pub o: bool,
    pub mlp: bool,
}

/// Attention: heads of queries in groups that share a head of keys and values.
pub(crate) struct Attention {
    /// `q_proj`, `k_proj` and `v_proj`.
    pub qkv: Bundle,
    pub o_proj: Linear,
    /// Norm of each head of queries, where the model type has it.
    pub q_norm: Option<Norm>,
    /// Norm of each head of keys, where the model type has it.
    pub k_norm: Option<Norm>,
    settings: device::Attention,
}

impl Attention {
    fn load(from: &mut Loader, config: &Config, layer: usize, biases: Biases) -> Result<Self> {
        let at = format!("model.layers.{layer}.self_attn");
        let hidden = config.hidden_size;
        let queries = config.num_attention_heads * config.head_dim;
        let keys = config.num_key_value_heads * config.head_dim;
        Ok(Attention {
            qkv: from.bundle(
                &at,
                &[("q_proj", queries), ("k_proj", keys), ("v_proj", keys)],
                hidden,
                biases.qkv,
            )?,
            o_proj: from.linear(&format!("{at}.o_proj"), [hidden, queries], biases.o)?,
            q_norm: None,
            k_norm: None,
            settings: device::Attention {
                heads: config.num_attention_heads,
                kv_heads: config.num_key_value_heads,
                head_dim: config.head_dim,
                scale: 1.0 / (config.head_dim as f32).sqrt(),
                window: config.windows.get(layer).copied().flatten(),
            },
        })
    }

    /// Adds what it gives for the norm of `x: [T, C]` to `x`.
    fn forward(&self, pass: &mut Pass, layer: usize, x: &Tensor, norm: &Norm) -> Result<Tensor> {
        let products = pass.bundle(&self.qkv, x, norm, |device, x, norm| {
            device.linears(x, norm, &self.qkv.weights)
        })?;
        let device = pass.device;
        let mut products = products.into_iter();
        let mut next = |norm: &Option<Norm>| match (products.next(), norm) {
            (Some(x), Some(norm)) => norm.forward(device, &x),
            (Some(x), None) => Ok(x),
            (None, _) => {
                let help = "the device lost one; report it";
                Err(Error::argument("attention", "queries, keys and values", "fewer", help))
            }
        };
        let (q, k, v) = (next(&self.q_norm)?, next(&self.k_norm)?, next(&None)?);
        let (rope, settings) = (pass.rope, &self.settings);
        let y = device.rope_attention(&q, &k, &v, rope, pass.cache, layer, settings)?;
        pass.linear_add(&self.o_proj, &y, x)
    }
}

/// Gated MLP: `down(silu(gate(x)) * up(x))`.
pub(crate) struct Mlp {
    /// `gate_proj` and `up_proj`.
    pub gate_up: Bundle,
    pub down_proj: Linear,
}

impl Mlp {
    fn load(from: &mut Loader, config: &Config, layer: usize, bias: bool) -> Result<Self> {
        let at = format!("model.layers.{layer}.mlp");
        let (hidden, wide) = (config.hidden_size, config.intermediate_size);
        Ok(Mlp {
            gate_up: from.bundle(&at, &[("gate_proj", wide), ("up_proj", wide)], hidden, bias)?,
            down_proj: from.linear(&format!("{at}.down_proj"), [hidden, wide], bias)?,
        })
    }

    /// Adds what it gives for the norm of `x: [T, C]` to `x`.
    fn forward(&self, pass: &mut Pass, x: &Tensor, norm: &Norm) -> Result<Tensor> {
        let y = pass.bundle(&self.gate_up, x, norm, |device, x, norm| {
            device.gated(x, norm, &self.gate_up.weights)
        })?;
        pass.linear_add(&self.down_proj, &y, x)
    }
}

/// What comes after attention in a layer.
pub(crate) enum FeedForward {
    Mlp(Mlp),
    Experts(Mixture),
}

impl FeedForward {
    fn load(from: &mut Loader, config: &Config, layer: usize, bias: bool) -> Result<Self> {
        let has = |experts: &&Experts| experts.layers.get(layer) == Some(&true);
        Ok(match config.experts.as_ref().filter(has) {
            Some(experts) => FeedForward::Experts(Mixture::load(from, config, experts, layer)?),
            None => FeedForward::Mlp(Mlp::load(from, config, layer, bias)?),
        })
    }

    /// As [`Block::stages`].
    fn stages(&self) -> Vec<Vec<&str>> {
        match self {
            FeedForward::Mlp(mlp) => vec![names(&mlp.gate_up.names), vec![&mlp.down_proj.name]],
            FeedForward::Experts(experts) => experts.stages(),
        }
    }

    fn forward(&self, pass: &mut Pass, x: &Tensor, norm: &Norm) -> Result<Tensor> {
        match self {
            FeedForward::Mlp(mlp) => mlp.forward(pass, x, norm),
            FeedForward::Experts(experts) => experts.forward(pass, x, norm),
        }
    }
}

/// A layer of the model.
pub(crate) struct Block {
    pub input_layernorm: Norm,
    pub self_attn: Attention,
    pub post_attention_layernorm: Norm,
    pub mlp: FeedForward,
}

impl Block {
    /// Loads `model.layers.<layer>`.
    pub fn load(from: &mut Loader, config: &Config, layer: usize, biases: Biases) -> Result<Self> {
        let norm = |from: &mut Loader, name: &str| {
            from.norm(&format!("model.layers.{layer}.{name}"), config.hidden_size)
        };
        Ok(Block {
            input_layernorm: norm(from, "input_layernorm")?,
            self_attn: Attention::load(from, config, layer, biases)?,
            post_attention_layernorm: norm(from, "post_attention_layernorm")?,
            mlp: FeedForward::load(from, config, layer, biases.mlp)?,
        })
    }

    /// Names of the weights of linear layers, in stages: what a stage reads is what the stages before
    /// it give.
    pub fn stages(&self) -> Vec<Vec<&str>> {
        let attention = [names(&self.self_attn.qkv.names), vec![&*self.self_attn.o_proj.name]];
        attention.into_iter().chain(self.mlp.stages()).collect()
    }

    /// `x: [T, C]` to `[T, C]`.
    pub fn forward(&self, pass: &mut Pass, layer: usize, x: &Tensor) -> Result<Tensor> {
        let x = self.self_attn.forward(pass, layer, x, &self.input_layernorm)?;
        self.mlp.forward(pass, &x, &self.post_attention_layernorm)
    }
}
