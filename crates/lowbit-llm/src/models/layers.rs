//! What the layers of all model types are made of. Fields have the names of the checkpoint.

use lowbit::device::{self, Device, KvCache, Rope, Tensor};

use super::loader::Loader;
use crate::Result;
use crate::config::Config;

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
        if let Some(tap) = tap {
            tap.input(&self.name, x)?;
        }
        Ok(device.linear(x, &self.weight, self.bias.as_ref())?)
    }
}

impl Pass<'_, '_> {
    fn linear(&mut self, linear: &Linear, x: &Tensor) -> Result<Tensor> {
        linear.forward(self.device, self.tap, x)
    }
}

/// Root mean square norm.
pub(crate) struct Norm {
    /// Factors, `[C]`.
    pub weight: Tensor,
    pub eps: f32,
}

impl Norm {
    /// `x: [T, n * C]`, each run of `C` by itself.
    pub fn forward(&self, device: &dyn Device, x: &Tensor) -> Result<Tensor> {
        Ok(device.rms_norm(x, &self.weight, self.eps)?)
    }
}

/// Activations between layers, `[T, C]`: a sum whose last term is not added yet, for adding it and
/// norming the sum is one operation of a device.
pub(crate) struct Stream {
    pub x: Tensor,
    pub term: Option<Tensor>,
}

impl Stream {
    /// The sum.
    pub fn sum(self, device: &dyn Device) -> Result<Tensor> {
        match self.term {
            None => Ok(self.x),
            Some(term) => Ok(device.add(&self.x, &term)?),
        }
    }

    /// The sum, and its norm.
    pub fn normed(self, device: &dyn Device, norm: &Norm) -> Result<(Tensor, Tensor)> {
        match self.term {
            None => norm.forward(device, &self.x).map(|normed| (self.x, normed)),
            Some(term) => Ok(device.add_rms_norm(&self.x, &term, &norm.weight, norm.eps)?),
        }
    }

    /// Some rows of it.
    pub fn rows(&self, device: &dyn Device, start: usize, rows: usize) -> Result<Self> {
        let part = |x: &Tensor| device.rows(x, start, rows);
        Ok(Stream { x: part(&self.x)?, term: self.term.as_ref().map(part).transpose()? })
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
    pub q_proj: Linear,
    pub k_proj: Linear,
    pub v_proj: Linear,
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
            q_proj: from.linear(&format!("{at}.q_proj"), [queries, hidden], biases.qkv)?,
            k_proj: from.linear(&format!("{at}.k_proj"), [keys, hidden], biases.qkv)?,
            v_proj: from.linear(&format!("{at}.v_proj"), [keys, hidden], biases.qkv)?,
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

    /// `x: [T, C]` to `[T, C]`.
    fn forward(&self, pass: &mut Pass, layer: usize, x: &Tensor) -> Result<Tensor> {
        let device = pass.device;
        let normed = |x: Tensor, norm: &Option<Norm>| match norm {
            Some(norm) => norm.forward(device, &x),
            None => Ok(x),
        };
        let q = normed(pass.linear(&self.q_proj, x)?, &self.q_norm)?;
        let k = normed(pass.linear(&self.k_proj, x)?, &self.k_norm)?;
        let v = pass.linear(&self.v_proj, x)?;
        let (rope, settings) = (pass.rope, &self.settings);
        let y = device.rope_attention(&q, &k, &v, rope, pass.cache, layer, settings)?;
        pass.linear(&self.o_proj, &y)
    }
}

/// Gated MLP: `down(silu(gate(x)) * up(x))`.
pub(crate) struct Mlp {
    pub gate_proj: Linear,
    pub up_proj: Linear,
    pub down_proj: Linear,
}

impl Mlp {
    fn load(from: &mut Loader, config: &Config, layer: usize, bias: bool) -> Result<Self> {
        let at = format!("model.layers.{layer}.mlp");
        let (hidden, wide) = (config.hidden_size, config.intermediate_size);
        Ok(Mlp {
            gate_proj: from.linear(&format!("{at}.gate_proj"), [wide, hidden], bias)?,
            up_proj: from.linear(&format!("{at}.up_proj"), [wide, hidden], bias)?,
            down_proj: from.linear(&format!("{at}.down_proj"), [hidden, wide], bias)?,
        })
    }

    /// `x: [T, C]` to `[T, C]`.
    fn forward(&self, pass: &mut Pass, x: &Tensor) -> Result<Tensor> {
        let gate = pass.linear(&self.gate_proj, x)?;
        let up = pass.linear(&self.up_proj, x)?;
        let y = pass.device.silu_mul(&gate, &up)?;
        pass.linear(&self.down_proj, &y)
    }
}

/// A layer of the model.
pub(crate) struct Block {
    pub input_layernorm: Norm,
    pub self_attn: Attention,
    pub post_attention_layernorm: Norm,
    pub mlp: Mlp,
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
            mlp: Mlp::load(from, config, layer, biases.mlp)?,
        })
    }

    /// `[T, C]` to `[T, C]`.
    pub fn forward(&self, pass: &mut Pass, layer: usize, stream: Stream) -> Result<Stream> {
        let device = pass.device;
        let (x, normed) = stream.normed(device, &self.input_layernorm)?;
        let seen = self.self_attn.forward(pass, layer, &normed)?;
        let stream = Stream { x, term: Some(seen) };
        let (x, normed) = stream.normed(device, &self.post_attention_layernorm)?;
        let y = self.mlp.forward(pass, &normed)?;
        Ok(Stream { x, term: Some(y) })
    }
}
