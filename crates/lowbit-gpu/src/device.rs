//! A GPU as a [`Device`] that models run on.

mod experts;

use std::sync::{Mutex, PoisonError};

use lowbit::device::{
    Attention, CacheShape, Device, Fetch, KvCache, Norm, Rope, Routes, Routing, Tensor, bundle,
    check,
};
use lowbit::{DType, DenseTensor, Error, Result, Weight};

use crate::attention::{Heads, Layer};
use crate::elementwise::columns;
use crate::embed::Ids;
use crate::numbers::{from_bytes, to_bytes};
use crate::product::{Around, gated, linear_around};
use crate::rope::Turns;
use crate::stack::stack;
use crate::{GpuWeight, Queue, argmax, attention, elementwise, embed, rms_norm, rope};

/// Tables of sines and cosines that are kept: one for each model that runs at a time.
const TABLES: usize = 4;

/// A GPU as a [`Device`]: every operation computes in f32 and rounds its result to the type of
/// activations, as [`CpuDevice`](lowbit::CpuDevice) does.
#[derive(Debug)]
pub struct GpuDevice<Q: Queue> {
    queue: Q,
    name: String,
    activations: DType,
    turns: Mutex<Vec<Turns<Q::Buffer>>>,
}

/// Numbers that a kernel wrote.
struct Numbers<B> {
    buffer: B,
    dtype: DType,
}

/// A vector of a model: a norm's factors or a bias.
struct Vector<B> {
    /// In f32.
    numbers: B,
    /// In the type of activations.
    rounded: B,
}

/// Linear layers that read the same input, as one.
struct Stacked<B> {
    weight: GpuWeight<B>,
    bias: Option<B>,
    /// Rows of each.
    rows: Vec<usize>,
}

impl<Q: Queue> GpuDevice<Q> {
    /// A device on that queue, of that name, whose activations are of that type.
    pub fn new(queue: Q, name: impl Into<String>, activations: DType) -> Self {
        GpuDevice { queue, name: name.into(), activations, turns: Mutex::default() }
    }

    /// What runs its kernels.
    pub fn queue(&self) -> &Q {
        &self.queue
    }

    /// A result of a kernel.
    fn tensor(&self, shape: Vec<usize>, buffer: Q::Buffer) -> Tensor {
        Tensor::new(shape, Numbers { buffer, dtype: self.activations })
    }

    /// Activations that go into a kernel.
    fn numbers<'a>(&self, op: &'static str, x: &'a Tensor) -> Result<&'a Q::Buffer> {
        let numbers = x.get::<Numbers<Q::Buffer>>(op)?;
        if numbers.dtype == self.activations {
            return Ok(&numbers.buffer);
        }
        Err(Error::argument(
            op,
            format!("activations in {}", self.activations),
            format!("{:?} in {}", x.shape(), numbers.dtype),
            "results of argmax are no activations",
        ))
    }

    fn vector<'a>(&self, op: &'static str, x: &'a Tensor) -> Result<&'a Vector<Q::Buffer>> {
        x.get(op)
    }

    fn weight<'a>(&self, op: &'static str, w: &'a Tensor) -> Result<&'a GpuWeight<Q::Buffer>> {
        w.get(op)
    }

    /// `x wᵀ + bias`, added to `to`.
    fn product(
        &self,
        x: &Tensor,
        w: &Tensor,
        bias: Option<&Tensor>,
        to: Option<&Tensor>,
    ) -> Result<Tensor> {
        const OP: &str = "linear";
        let weight = self.weight(OP, w)?;
        let (n, k) = weight.rows_cols();
        let (m, _) = x.rows_cols();
        check::linear(x, k)?;
        let bias = match bias {
            None => None,
            Some(bias) => {
                check::bias(bias.shape().iter().product(), n)?;
                Some(&self.vector(OP, bias)?.rounded)
            }
        };
        let to = match to {
            None => None,
            Some(to) => {
                check::shape(OP, to, &[m, n])?;
                Some(self.numbers(OP, to)?)
            }
        };
        let around = Around { bias, to, ..Around::default() };
        let x = self.numbers(OP, x)?;
        let y = linear_around(&self.queue, x, m, weight, around, self.activations)?;
        Ok(self.tensor(vec![m, n], y))
    }

    /// Weights with biases on top of each other, where that can be.
    fn stacked(&self, weights: &[(Weight, Option<Weight>)]) -> Result<Option<Stacked<Q::Buffer>>> {
        let all: Vec<&Weight> = weights.iter().map(|(weight, _)| weight).collect();
        let biases: Vec<&Weight> = weights.iter().filter_map(|(_, bias)| bias.as_ref()).collect();
        let complete = biases.is_empty() || biases.len() == weights.len();
        let Some(stack) = stack(&all).filter(|_| complete) else { return Ok(None) };
        let mut numbers = Vec::new();
        for bias in biases {
            match bias {
                Weight::Dense(dense) => numbers.extend(dense.to_f32()),
                Weight::Quantized(_) => return Ok(None),
            }
        }
        let bias = match numbers.is_empty() {
            true => None,
            false => Some(self.queue.upload(&to_bytes(&numbers, self.activations))?),
        };
        let rows = all.iter().map(|w| w.shape()[0]).collect();
        let weight = GpuWeight::upload_stack(&self.queue, &stack)?;
        if bias.is_some() {
            check::bias(numbers.len(), weight.rows_cols().0)?;
        }
        Ok(Some(Stacked { weight, bias, rows }))
    }

    /// Runs of so many columns each, of `y` of `rows` rows.
    fn columns(&self, y: Q::Buffer, rows: usize, widths: &[usize]) -> Result<Vec<Tensor>> {
        if let [all] = *widths {
            return Ok(vec![self.tensor(vec![rows, all], y)]);
        }
        let (all, mut start) = (widths.iter().sum(), 0);
        let each = widths.iter().map(|cols| {
            let part = columns(&self.queue, self.activations, &y, [rows, all], start, *cols)?;
            start += cols;
            Ok(self.tensor(vec![rows, *cols], part))
        });
        each.collect()
    }

    /// What goes with a product of `x: [_, k]` with a stack.
    fn around<'a>(
        &self,
        norm: Option<Norm<'a>>,
        stacked: &'a Stacked<Q::Buffer>,
        k: usize,
    ) -> Result<Around<'a, Q::Buffer>> {
        const OP: &str = "rms_norm";
        let norm = match norm {
            None => None,
            Some(norm) => {
                check::shape(OP, norm.weight, &[k])?;
                let factors = norm.weight.get::<Vector<Q::Buffer>>(OP)?;
                Some((&factors.numbers, norm.eps))
            }
        };
        Ok(Around { norm, bias: stacked.bias.as_ref(), ..Around::default() })
    }

    /// Calls `f` with the angles of `rows` positions from `start` on, and the row of the first.
    fn with_turns<R>(
        &self,
        rope: &Rope,
        start: usize,
        rows: usize,
        f: impl FnOnce(&Q::Buffer, u32) -> Result<R>,
    ) -> Result<R> {
        let mut tables = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        let known = tables.iter().find_map(|t| Some((t.buffer.clone(), t.row(rope, start, rows)?)));
        let (buffer, row) = match known {
            Some(known) => known,
            None => {
                let table = Turns::new(&self.queue, rope, start, rows)?;
                let buffer = table.buffer.clone();
                tables.insert(0, table);
                tables.truncate(TABLES);
                (buffer, 0)
            }
        };
        drop(tables);
        f(&buffer, row)
    }

    fn attend(
        &self,
        [q, k, v]: [&Tensor; 3],
        turns: Option<&Rope>,
        cache: &mut KvCache,
        layer: usize,
        settings: &Attention,
    ) -> Result<Tensor> {
        const OP: &str = "attention";
        let rows = check::attention([q, k, v], cache, layer, settings)?;
        let at = [cache.len(), cache.shape().capacity];
        let layers = cache.data.downcast_ref::<Vec<Layer<Q::Buffer>>>();
        let layer = layers.and_then(|l| l.get(layer)).ok_or_else(check::foreign_cache)?;
        let [q, k, v] = [self.numbers(OP, q)?, self.numbers(OP, k)?, self.numbers(OP, v)?];
        let run = |turns: Option<(&Q::Buffer, u32)>| {
            let heads = Heads { q, k, v, rows, turns };
            attention(&self.queue, self.activations, heads, layer, at, settings)
        };
        let y = match turns {
            None => run(None)?,
            Some(rope) => self.with_turns(rope, at[0], rows, |b, row| run(Some((b, row))))?,
        };
        Ok(self.tensor(vec![rows, settings.heads * settings.head_dim], y))
    }

    fn of_two(
        &self,
        op: &'static str,
        run: OfTwo<Q, Q::Buffer>,
        a: &Tensor,
        b: &Tensor,
    ) -> Result<Tensor> {
        check::same_shape(op, a, b)?;
        let (rows, cols) = a.rows_cols();
        let (x, y) = (self.numbers(op, a)?, self.numbers(op, b)?);
        Ok(self.tensor(a.shape().to_vec(), run(&self.queue, self.activations, x, y, rows * cols)?))
    }

    fn embed_ids(
        &self,
        table: &Tensor,
        ids: &Q::Buffer,
        stored: Ids,
        rows: usize,
    ) -> Result<Tensor> {
        let table = self.weight("embed", table)?;
        let (_, cols) = table.rows_cols();
        let y = embed(&self.queue, self.activations, table, ids, stored, rows)?;
        Ok(self.tensor(vec![rows, cols], y))
    }
}

/// An operation on two tensors of one shape.
type OfTwo<Q, B> = fn(&Q, DType, &B, &B, usize) -> Result<B>;

impl<Q: Queue> Device for GpuDevice<Q> {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn upload(&self, weight: &Weight) -> Result<Tensor> {
        let shape = weight.shape().to_vec();
        let vector = |dense: &DenseTensor| -> Result<Vector<Q::Buffer>> {
            let numbers = dense.to_f32();
            Ok(Vector {
                numbers: self.queue.upload(bytemuck::cast_slice(&numbers))?,
                rounded: self.queue.upload(&to_bytes(&numbers, self.activations))?,
            })
        };
        Ok(match weight {
            // Vectors (norms, biases) are read as numbers, matrices as weights.
            Weight::Dense(dense) if shape.len() < 2 => Tensor::new(shape, vector(dense)?),
            _ => Tensor::new(shape, GpuWeight::upload(&self.queue, weight)?),
        })
    }

    fn kv_cache(&self, shape: CacheShape) -> Result<KvCache> {
        let bytes = Layer::<Q::Buffer>::bytes(shape, self.activations);
        let refuse = |bytes, why: &str| Error::OutOfMemory {
            op: "kv_cache",
            bytes,
            help: format!("{why}; use a shorter context than {} positions", shape.capacity),
        };
        // Keys and values are bound by themselves.
        let most = self.queue.limits().binding;
        if bytes / 2 > most {
            let why = format!("this GPU takes at most {} bytes a layer", 2 * most);
            return Err(refuse(bytes, &why));
        }
        let layer = || Layer::new(&self.queue, shape, self.activations);
        let layers = (0..shape.layers).map(|_| layer()).collect::<Result<Vec<_>>>();
        match layers {
            Err(Error::OutOfMemory { .. }) => Err(refuse(
                bytes.saturating_mul(shape.layers as u64),
                "the GPU has not as much memory left",
            )),
            layers => Ok(KvCache::new(shape, layers?)),
        }
    }

    fn embed(&self, table: &Tensor, ids: &[u32]) -> Result<Tensor> {
        let (rows, _) = self.weight("embed", table)?.rows_cols();
        check::ids(rows, ids)?;
        let buffer = self.queue.upload(bytemuck::cast_slice(ids))?;
        self.embed_ids(table, &buffer, Ids::U32, ids.len())
    }

    fn embed_tokens(&self, table: &Tensor, ids: &Tensor) -> Result<Tensor> {
        let numbers = ids.get::<Numbers<Q::Buffer>>("embed")?;
        let (rows, cols) = ids.rows_cols();
        self.embed_ids(table, &numbers.buffer, Ids::F32, rows * cols)
    }

    fn linear(&self, x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        self.product(x, w, bias, None)
    }

    fn linear_add(
        &self,
        x: &Tensor,
        w: &Tensor,
        bias: Option<&Tensor>,
        to: &Tensor,
    ) -> Result<Tensor> {
        self.product(x, w, bias, Some(to))
    }

    fn bundle(&self, weights: &[(Weight, Option<Weight>)]) -> Result<Tensor> {
        match self.stacked(weights)? {
            None => bundle::upload(self, weights),
            Some(stacked) => Ok(Tensor::new(vec![weights.len()], stacked)),
        }
    }

    fn linears(&self, x: &Tensor, norm: Option<Norm<'_>>, bundle: &Tensor) -> Result<Vec<Tensor>> {
        const OP: &str = "linears";
        let Ok(stacked) = bundle.get::<Stacked<Q::Buffer>>(OP) else {
            return bundle::linears(self, x, norm, bundle);
        };
        let (_, k) = stacked.weight.rows_cols();
        check::linear(x, k)?;
        let (m, _) = x.rows_cols();
        let (x_numbers, around) = (self.numbers(OP, x)?, self.around(norm, stacked, k)?);
        let weight = &stacked.weight;
        let y = linear_around(&self.queue, x_numbers, m, weight, around, self.activations)?;
        self.columns(y, m, &stacked.rows)
    }

    fn gated(&self, x: &Tensor, norm: Option<Norm<'_>>, bundle: &Tensor) -> Result<Tensor> {
        const OP: &str = "gated";
        if let Ok(stacked) = bundle.get::<Stacked<Q::Buffer>>(OP)
            && let [gate, up] = stacked.rows[..]
            && gate == up
            && x.rows_cols().0 == 1
        {
            let (_, k) = stacked.weight.rows_cols();
            check::linear(x, k)?;
            let (x_numbers, around) = (self.numbers(OP, x)?, self.around(norm, stacked, k)?);
            let weight = &stacked.weight;
            if let Some(y) = gated(&self.queue, x_numbers, weight, around, self.activations)? {
                return Ok(self.tensor(vec![1, up], y));
            }
        }
        bundle::gated(self, x, norm, bundle)
    }

    fn experts(&self, experts: &[Vec<Weight>]) -> Result<Tensor> {
        self.upload_experts(experts)
    }

    fn route(&self, logits: &Tensor, routing: Routing) -> Result<Routes> {
        self.choose_experts(logits, routing)
    }

    fn linear_experts(&self, x: &Tensor, experts: &Tensor, routes: &Routes) -> Result<Vec<Tensor>> {
        self.multiply_experts(x, experts, routes)
    }

    fn gated_experts(&self, x: &Tensor, experts: &Tensor, routes: &Routes) -> Result<Tensor> {
        self.gate_experts(x, experts, routes)
    }

    fn mix_experts(&self, y: &Tensor, routes: &Routes, to: &Tensor) -> Result<Tensor> {
        self.add_experts(y, routes, to)
    }

    fn rms_norm(&self, x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
        const OP: &str = "rms_norm";
        let factors = &self.vector(OP, weight)?.numbers;
        let length = weight.shape().iter().product();
        check::runs(OP, x, length)?;
        let (rows, cols) = x.rows_cols();
        let (x_numbers, len) = (self.numbers(OP, x)?, rows * cols);
        let dtype = self.activations;
        let y = rms_norm(&self.queue, dtype, x_numbers, len, factors, length, eps)?;
        Ok(self.tensor(x.shape().to_vec(), y))
    }

    fn rope(&self, x: &Tensor, settings: &Rope, start: usize) -> Result<Tensor> {
        let head_dim = check::rope(x, settings)?;
        let (rows, cols) = x.rows_cols();
        let numbers = self.numbers("rope", x)?;
        let y = self.with_turns(settings, start, rows, |turns, first| {
            let shape = [rows, cols];
            rope(&self.queue, self.activations, numbers, shape, head_dim, turns, first)
        })?;
        Ok(self.tensor(x.shape().to_vec(), y))
    }

    fn attention(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        cache: &mut KvCache,
        layer: usize,
        attention: &Attention,
    ) -> Result<Tensor> {
        self.attend([q, k, v], None, cache, layer, attention)
    }

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
        for x in [q, k] {
            check::rope(x, rope)?;
        }
        if 2 * rope.inv_freq.len() == attention.head_dim {
            return self.attend([q, k, v], Some(rope), cache, layer, attention);
        }
        // The pieces that are turned are not the heads.
        let start = cache.len();
        let (q, k) = (self.rope(q, rope, start)?, self.rope(k, rope, start)?);
        self.attend([&q, &k, v], None, cache, layer, attention)
    }

    fn silu_mul(&self, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        self.of_two("silu_mul", elementwise::silu_mul, gate, up)
    }

    fn add(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        self.of_two("add", elementwise::add, a, b)
    }

    fn rows(&self, x: &Tensor, start: usize, rows: usize) -> Result<Tensor> {
        check::rows(x, start, rows)?;
        let (have, cols) = x.rows_cols();
        if rows == have && x.shape().len() == 2 {
            return Ok(x.clone());
        }
        let numbers = self.numbers("rows", x)?;
        let (from, len) = (start * cols, rows * cols);
        let y = elementwise::rows(&self.queue, self.activations, numbers, from, len)?;
        Ok(self.tensor(vec![rows, cols], y))
    }

    fn argmax(&self, x: &Tensor) -> Result<Tensor> {
        let (rows, cols) = x.rows_cols();
        let numbers = self.numbers("argmax", x)?;
        let buffer = argmax(&self.queue, self.activations, numbers, [rows, cols])?;
        Ok(Tensor::new(vec![rows], Numbers { buffer, dtype: DType::F32 }))
    }

    fn read(&self, x: &Tensor) -> Result<Vec<f32>> {
        self.fetch(x)?()
    }

    fn fetch(&self, x: &Tensor) -> Result<Fetch> {
        const OP: &str = "read";
        let len: usize = x.shape().iter().product();
        let (buffer, dtype) = match x.get::<Vector<Q::Buffer>>(OP) {
            Ok(vector) => (&vector.numbers, DType::F32),
            Err(_) => {
                let numbers = x.get::<Numbers<Q::Buffer>>(OP)?;
                (&numbers.buffer, numbers.dtype)
            }
        };
        let bytes = self.queue.fetch(buffer, (len * dtype.size()) as u64)?;
        Ok(Box::new(move || Ok(from_bytes(&bytes()?, dtype))))
    }

    fn queues(&self) -> bool {
        true
    }

    fn cache_host_bytes(&self, _: CacheShape) -> u64 {
        0
    }
}
