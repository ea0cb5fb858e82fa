//! What a model needs of a device: a closed list of operations on opaque tensors.
//!
//! All tensors are rows of f32 in meaning; how they are stored is the device's business. Nothing
//! but [`Device::read`] and [`Device::upload`] waits, so a device may queue a whole token and run
//! it at once.

pub mod bundle;
pub mod check;
pub mod experts;

use std::any::Any;
use std::sync::Arc;

use crate::{Error, Result, Weight};

/// A tensor that lives on a device. Cloning shares it.
#[derive(Clone)]
pub struct Tensor {
    shape: Vec<usize>,
    data: Arc<dyn Any + Send + Sync>,
}

impl Tensor {
    /// Wraps what a device stores.
    pub fn new(shape: Vec<usize>, data: impl Any + Send + Sync) -> Self {
        Tensor { shape, data: Arc::new(data) }
    }

    /// Its shape.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Rows and row length: the last dimension is a row.
    pub fn rows_cols(&self) -> (usize, usize) {
        match self.shape.as_slice() {
            [] => (1, 1),
            [rows @ .., cols] => (rows.iter().product(), *cols),
        }
    }

    /// What the device stored.
    ///
    /// # Errors
    /// [`Error::Argument`] if another device made the tensor, or it is of another kind.
    pub fn get<T: Any>(&self, op: &'static str) -> Result<&T> {
        self.data.downcast_ref().ok_or_else(|| {
            Error::argument(
                op,
                "a tensor of this device and kind",
                format!("a foreign tensor of shape {:?}", self.shape),
                "upload it to this device first",
            )
        })
    }
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tensor{:?}", self.shape)
    }
}

/// Keys and values of past positions, of all layers, on a device.
pub struct KvCache {
    /// What the device stores.
    pub data: Box<dyn Any + Send>,
    len: usize,
    shape: CacheShape,
}

/// Size of a [`KvCache`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheShape {
    /// Layers.
    pub layers: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Length of a head.
    pub head_dim: usize,
    /// Positions it holds.
    pub capacity: usize,
}

impl CacheShape {
    /// Bytes of keys and values at `element_size` bytes a number.
    pub fn bytes(&self, element_size: usize) -> u64 {
        [self.layers, self.kv_heads, self.head_dim, self.capacity, 2, element_size]
            .iter()
            .fold(1u64, |n, d| n.saturating_mul(*d as u64))
    }
}

impl KvCache {
    /// An empty cache around what the device stores.
    pub fn new(shape: CacheShape, data: impl Any + Send) -> Self {
        KvCache { data: Box::new(data), len: 0, shape }
    }

    /// Positions written so far.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing has been written.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Its size.
    pub fn shape(&self) -> CacheShape {
        self.shape
    }

    /// Counts `rows` new positions once every layer has written them.
    ///
    /// # Errors
    /// [`Error::Argument`] if they do not fit.
    pub fn advance(&mut self, rows: usize) -> Result<()> {
        self.check_room(rows)?;
        self.len += rows;
        Ok(())
    }

    /// Forgets all positions from `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// # Errors
    /// [`Error::Argument`] if `rows` more positions do not fit.
    pub fn check_room(&self, rows: usize) -> Result<()> {
        if self.len + rows <= self.shape.capacity {
            return Ok(());
        }
        Err(Error::argument(
            "attention",
            format!("at most {} positions", self.shape.capacity),
            format!("{}", self.len + rows),
            "shorten the text or allow a longer context",
        ))
    }
}

/// Rotary position embedding of a model: `angle(p, i) = p * inv_freq[i]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Radians per position of each pair, `[head_dim / 2]`.
    pub inv_freq: Vec<f32>,
    /// Factor of sine and cosine; 1 for all but a few variants.
    pub scale: f32,
}

/// What [`Device::attention`] needs besides tensors.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Attention {
    /// Query heads, a multiple of `kv_heads`.
    pub heads: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Length of a head.
    pub head_dim: usize,
    /// Factor of the scores, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// A position sees itself and this many less one before it; `None`: all before it.
    pub window: Option<usize>,
}

/// A [`rms_norm`](Device::rms_norm) before a product.
#[derive(Debug, Clone, Copy)]
pub struct Norm<'a> {
    /// Factors, `[K]`.
    pub weight: &'a Tensor,
    /// What is added to the mean square.
    pub eps: f32,
}

/// How rows choose their experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Routing {
    /// How many each row chooses.
    pub top: usize,
    /// Whether the shares of these sum to one; else those of all experts do.
    pub normalize: bool,
}

/// Which experts rows chose: the `i`-th of row `t` is at place `t * top + i`.
#[derive(Debug, Clone)]
pub struct Routes {
    /// Rows, `T`.
    pub rows: usize,
    /// Experts of each row, those of the largest shares first.
    pub top: usize,
    /// Numbers of the experts, `T * top` of them.
    pub experts: Tensor,
    /// Shares of their results, `T * top` of them.
    pub shares: Tensor,
}

/// A tensor on its way from a device: waits for it, row-major.
pub type Fetch = Box<dyn FnOnce() -> Result<Vec<f32>> + Send>;

/// A place that runs a model's operations.
///
/// The list is closed: a model may use these and nothing else. Those with a body are two of the
/// others in one; a device that can do so in one go says how. `x: [T, C]` are activations of `T`
/// positions. All operations fail with [`Error::Argument`] on shapes that do not fit, and with
/// [`Error::Device`] or [`Error::OutOfMemory`] when the device does.
pub trait Device: Send + Sync {
    /// What a person would call it.
    fn name(&self) -> String;

    /// Moves a weight to the device, quantized as it is.
    fn upload(&self, weight: &Weight) -> Result<Tensor>;

    /// An empty cache.
    fn kv_cache(&self, shape: CacheShape) -> Result<KvCache>;

    /// Rows `ids` of `table: [V, C]`: `[T, C]`.
    fn embed(&self, table: &Tensor, ids: &[u32]) -> Result<Tensor>;

    /// [`embed`](Self::embed) of ids that are on the device: `ids: [T]`, as
    /// [`argmax`](Self::argmax) gives them.
    fn embed_tokens(&self, table: &Tensor, ids: &Tensor) -> Result<Tensor> {
        let ids: Vec<u32> = self.read(ids)?.into_iter().map(|id| id as u32).collect();
        self.embed(table, &ids)
    }

    /// `x wᵀ + bias`: `x: [T, K]`, `w: [N, K]`, `bias: [N]`; `[T, N]`.
    fn linear(&self, x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Result<Tensor>;

    /// `to + x wᵀ + bias`, where `to: [T, N]`.
    fn linear_add(
        &self,
        x: &Tensor,
        w: &Tensor,
        bias: Option<&Tensor>,
        to: &Tensor,
    ) -> Result<Tensor> {
        self.add(to, &self.linear(x, w, bias)?)
    }

    /// Uploads weights `[N_i, K]` that all multiply the same `x`, each with its bias.
    fn bundle(&self, weights: &[(Weight, Option<Weight>)]) -> Result<Tensor> {
        bundle::upload(self, weights)
    }

    /// [`linear`](Self::linear) for each weight of a [`bundle`](Self::bundle), after a norm of `x` if
    /// one is given: `[T, N_i]`.
    fn linears(&self, x: &Tensor, norm: Option<Norm<'_>>, bundle: &Tensor) -> Result<Vec<Tensor>> {
        bundle::linears(self, x, norm, bundle)
    }

    /// [`silu_mul`](Self::silu_mul) of the [`linears`](Self::linears) of a bundle of two.
    fn gated(&self, x: &Tensor, norm: Option<Norm<'_>>, bundle: &Tensor) -> Result<Tensor> {
        bundle::gated(self, x, norm, bundle)
    }

    /// Uploads the weights of experts: for each those that read the same input, `[N_i, K]`, as many
    /// and of the same shapes.
    fn experts(&self, experts: &[Vec<Weight>]) -> Result<Tensor> {
        experts::upload(self, experts)
    }

    /// The experts with the largest of `logits: [T, E]`, and their shares of the softmax.
    fn route(&self, logits: &Tensor, routing: Routing) -> Result<Routes> {
        experts::route(self, logits, routing)
    }

    /// `x wᵀ` for each weight of the experts that rows chose: `x: [T, K]`, or `[T * top, K]` with a
    /// row for each place; `[T * top, N_i]`.
    fn linear_experts(&self, x: &Tensor, experts: &Tensor, routes: &Routes) -> Result<Vec<Tensor>> {
        experts::linears(self, x, experts, routes)
    }

    /// [`silu_mul`](Self::silu_mul) of the [`linear_experts`](Self::linear_experts) of experts of two
    /// weights.
    fn gated_experts(&self, x: &Tensor, experts: &Tensor, routes: &Routes) -> Result<Tensor> {
        experts::gated(self, x, experts, routes)
    }

    /// `to` and the shares of what the experts of each row gave: `y: [T * top, C]`, `to: [T, C]`;
    /// `[T, C]`.
    fn mix_experts(&self, y: &Tensor, routes: &Routes, to: &Tensor) -> Result<Tensor> {
        experts::mix(self, y, routes, to)
    }

    /// `x / sqrt(mean(x²) + eps) * weight` over rows of `weight`'s length, which divides `C`.
    fn rms_norm(&self, x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor>;

    /// Turns the pairs `(i, i + head_dim / 2)` of every head of `x: [T, heads * head_dim]` by the
    /// angles of positions `start, start + 1, ..`.
    fn rope(&self, x: &Tensor, rope: &Rope, start: usize) -> Result<Tensor>;

    /// Writes `k` and `v: [T, kv_heads * head_dim]` to `layer` of the cache at its length, and
    /// attends from `q: [T, heads * head_dim]` to all positions up to each row's own.
    fn attention(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        cache: &mut KvCache,
        layer: usize,
        attention: &Attention,
    ) -> Result<Tensor>;

    /// [`attention`](Self::attention) with `q` and `k` turned by [`rope`](Self::rope) at the cache's
    /// length.
    #[expect(clippy::too_many_arguments, reason = "two operations in one")]
    fn rope_attention(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        rope: &Rope,
        cache: &mut KvCache,
        layer: usize,
        attention: &Attention,
    ) -> Result<Tensor> {
        let start = cache.len();
        let (q, k) = (self.rope(q, rope, start)?, self.rope(k, rope, start)?);
        self.attention(&q, &k, v, cache, layer, attention)
    }

    /// `silu(gate) * up`, elementwise; `silu(x) = x / (1 + exp(-x))`.
    fn silu_mul(&self, gate: &Tensor, up: &Tensor) -> Result<Tensor>;

    /// `a + b`, elementwise.
    fn add(&self, a: &Tensor, b: &Tensor) -> Result<Tensor>;

    /// Rows `start .. start + rows` of `x`.
    fn rows(&self, x: &Tensor, start: usize, rows: usize) -> Result<Tensor>;

    /// Column of the largest number of each row, the first where several are: `[T]`, in f32
    /// (exact below 2^24 columns).
    fn argmax(&self, x: &Tensor) -> Result<Tensor>;

    /// Waits for everything queued and copies a tensor out, row-major.
    fn read(&self, x: &Tensor) -> Result<Vec<f32>>;

    /// [`read`](Self::read), later: what is queued after this call need not be waited for.
    fn fetch(&self, x: &Tensor) -> Result<Fetch> {
        let numbers = self.read(x)?;
        Ok(Box::new(move || Ok(numbers)))
    }

    /// Whether operations are only queued, so that it pays to queue the next token before the last
    /// one is known.
    fn queues(&self) -> bool {
        false
    }

    /// Bytes of the processor's memory that a cache of that shape takes.
    fn cache_host_bytes(&self, shape: CacheShape) -> u64 {
        shape.bytes(size_of::<f32>())
    }
}
