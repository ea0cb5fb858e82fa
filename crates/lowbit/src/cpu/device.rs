//! The CPU as a [`Device`]: activations are vectors of f32 that hold numbers of the type they stand
//! for, every operation runs at once.

use super::Cpu;
use crate::device::{Attention, CacheShape, Device, KvCache, Rope, Tensor, check};
use crate::tensor::rows_cols;
use crate::{DType, Element, Error, Result, Weight, threads};

/// The CPU as a [`Device`].
#[derive(Debug, Clone, Copy)]
pub struct CpuDevice {
    cpu: Cpu,
    activations: DType,
}

/// Keys and values of one layer, `[kv_heads, capacity, head_dim]` each.
struct Layer {
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl CpuDevice {
    /// A device whose activations are of that type: every operation computes in f32 and rounds
    /// its result to it, as a model does that runs in that type elsewhere. So where two logits tie
    /// in 16 bits they tie here. 16-bit types are faster, f32 is exact to f32.
    pub fn new(cpu: Cpu, activations: DType) -> Self {
        CpuDevice { cpu, activations }
    }

    /// A result, rounded to the type of activations.
    fn activation(&self, shape: Vec<usize>, mut numbers: Vec<f32>) -> Tensor {
        match self.activations {
            DType::F32 => {}
            DType::F16 => round::<half::f16>(&mut numbers),
            DType::BF16 => round::<half::bf16>(&mut numbers),
        }
        Tensor::new(shape, numbers)
    }
}

fn round<T: Element>(numbers: &mut [f32]) {
    let round = |_, part: &mut [f32]| part.iter_mut().for_each(|x| *x = T::from_f32(*x).to_f32());
    for_rows(numbers, 4096, round);
}

/// Elements below which a loop is not worth a second thread.
const PARALLEL_FROM: usize = 1 << 14;

fn numbers<'a>(op: &'static str, x: &'a Tensor) -> Result<&'a [f32]> {
    x.get::<Vec<f32>>(op).map(Vec::as_slice)
}

fn zeros(op: &'static str, len: usize) -> Result<Vec<f32>> {
    let mut v = Vec::new();
    v.try_reserve_exact(len).map_err(|_| Error::OutOfMemory {
        op,
        bytes: 4 * len as u64,
        help: "use a shorter context or a smaller batch".into(),
    })?;
    v.resize(len, 0.0);
    Ok(v)
}

/// Calls `f(row index, row)` for every row, on all threads where that pays.
fn for_rows(out: &mut [f32], cols: usize, f: impl Fn(usize, &mut [f32]) + Sync + Send) {
    if out.len() >= PARALLEL_FROM {
        threads::for_each(out.chunks_mut(cols).enumerate(), |(i, row)| f(i, row));
    } else {
        out.chunks_mut(cols.max(1)).enumerate().for_each(|(i, row)| f(i, row));
    }
}

impl Device for CpuDevice {
    fn name(&self) -> String {
        format!("CPU ({})", self.cpu.isa().name())
    }

    fn upload(&self, weight: &Weight) -> Result<Tensor> {
        let shape = weight.shape().to_vec();
        Ok(match weight {
            // Vectors (norms, biases) are read as numbers, matrices as weights.
            Weight::Dense(d) if shape.len() < 2 => Tensor::new(shape, d.to_f32()),
            _ => Tensor::new(shape, weight.clone()),
        })
    }

    fn kv_cache(&self, shape: CacheShape) -> Result<KvCache> {
        let len = shape.kv_heads * shape.head_dim * shape.capacity;
        let out_of_memory = |_| Error::OutOfMemory {
            op: "kv_cache",
            bytes: shape.bytes(4),
            help: format!("use a shorter context than {} positions", shape.capacity),
        };
        let layer = || -> Result<Layer> {
            let reserve = || -> Result<Vec<f32>> {
                let mut v = Vec::new();
                v.try_reserve_exact(len).map_err(out_of_memory)?;
                v.resize(len, 0.0);
                Ok(v)
            };
            Ok(Layer { keys: reserve()?, values: reserve()? })
        };
        let layers = (0..shape.layers).map(|_| layer()).collect::<Result<Vec<_>>>()?;
        Ok(KvCache::new(shape, layers))
    }

    fn embed(&self, table: &Tensor, ids: &[u32]) -> Result<Tensor> {
        const OP: &str = "embed";
        let weight = table.get::<Weight>(OP)?;
        let (vocabulary, cols) = rows_cols(weight.shape());
        check::ids(vocabulary, ids)?;
        let mut out = zeros(OP, ids.len() * cols)?;
        for_rows(&mut out, cols, |i, row| self.cpu.decode_row(weight, ids[i] as usize, row));
        Ok(self.activation(vec![ids.len(), cols], out))
    }

    fn linear(&self, x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        const OP: &str = "linear";
        let weight = w.get::<Weight>(OP)?;
        let (n, k) = rows_cols(weight.shape());
        let (m, _) = x.rows_cols();
        check::linear(x, k)?;
        let bias = bias.map(|b| numbers(OP, b)).transpose()?;
        let mut y = zeros(OP, m * n)?;
        self.cpu.linear_f32(weight, numbers(OP, x)?, bias, &mut y, self.activations)?;
        Ok(self.activation(vec![m, n], y))
    }

    fn rms_norm(&self, x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
        const OP: &str = "rms_norm";
        let weight = numbers(OP, weight)?;
        check::runs(OP, x, weight.len())?;
        let mut out = numbers(OP, x)?.to_vec();
        for_rows(&mut out, weight.len(), |_, row| {
            let mean = row.iter().map(|v| v * v).sum::<f32>() / row.len() as f32;
            let inverse = 1.0 / (mean + eps).sqrt();
            for (v, w) in row.iter_mut().zip(weight) {
                *v *= inverse * w;
            }
        });
        Ok(self.activation(x.shape().to_vec(), out))
    }

    fn rope(&self, x: &Tensor, rope: &Rope, start: usize) -> Result<Tensor> {
        const OP: &str = "rope";
        let (rows, cols) = x.rows_cols();
        let half = check::rope(x, rope)? / 2;
        let turns: Vec<(f32, f32)> = (start..start + rows)
            .flat_map(|p| rope.inv_freq.iter().map(move |f| (p as f32 * f).sin_cos()))
            .map(|(sin, cos)| (sin * rope.scale, cos * rope.scale))
            .collect();
        let mut out = numbers(OP, x)?.to_vec();
        for_rows(&mut out, cols, |t, row| {
            for head in row.chunks_exact_mut(2 * half) {
                let (a, b) = head.split_at_mut(half);
                for ((a, b), (sin, cos)) in a.iter_mut().zip(b).zip(&turns[t * half..]) {
                    (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                }
            }
        });
        Ok(self.activation(x.shape().to_vec(), out))
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
        const OP: &str = "attention";
        let Attention { heads, kv_heads, head_dim, .. } = *attention;
        let rows = check::attention([q, k, v], cache, layer, attention)?;
        let shape = cache.shape();
        let past = cache.len();
        let layers = cache.data.downcast_mut::<Vec<Layer>>();
        let layer = layers.and_then(|l| l.get_mut(layer)).ok_or_else(check::foreign_cache)?;
        let (q, k, v) = (numbers(OP, q)?, numbers(OP, k)?, numbers(OP, v)?);
        for t in 0..rows {
            for head in 0..kv_heads {
                let from = (t * kv_heads + head) * head_dim;
                let to = (head * shape.capacity + past + t) * head_dim;
                layer.keys[to..to + head_dim].copy_from_slice(&k[from..from + head_dim]);
                layer.values[to..to + head_dim].copy_from_slice(&v[from..from + head_dim]);
            }
        }
        let mut out = zeros(OP, rows * heads * head_dim)?;
        let layer = &*layer;
        let attend = |i: usize, out: &mut [f32]| {
            let (t, head) = (i / heads, i % heads);
            let last = past + t;
            let first = attention.window.map_or(0, |w| (last + 1).saturating_sub(w));
            let at = (head / (heads / kv_heads) * shape.capacity + first) * head_dim;
            let seen = at..at + (last + 1 - first) * head_dim;
            let query = &q[i * head_dim..(i + 1) * head_dim];
            attend_one(query, &layer.keys[seen.clone()], &layer.values[seen], attention.scale, out);
        };
        if rows * heads * head_dim * (past + rows) >= PARALLEL_FROM {
            threads::for_each(out.chunks_mut(head_dim).enumerate(), |(i, out)| attend(i, out));
        } else {
            out.chunks_mut(head_dim.max(1)).enumerate().for_each(|(i, out)| attend(i, out));
        }
        Ok(self.activation(vec![rows, heads * head_dim], out))
    }

    fn silu_mul(&self, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        const OP: &str = "silu_mul";
        check::same_shape(OP, gate, up)?;
        let (gate_numbers, up) = (numbers(OP, gate)?, numbers(OP, up)?);
        let mut out = zeros(OP, up.len())?;
        for_rows(&mut out, 1024, |i, out| {
            let from = i * 1024;
            for ((o, g), u) in out.iter_mut().zip(&gate_numbers[from..]).zip(&up[from..]) {
                *o = g / (1.0 + (-g).exp()) * u;
            }
        });
        Ok(self.activation(gate.shape().to_vec(), out))
    }

    fn add(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        const OP: &str = "add";
        check::same_shape(OP, a, b)?;
        let sums = numbers(OP, a)?.iter().zip(numbers(OP, b)?).map(|(a, b)| a + b);
        Ok(self.activation(a.shape().to_vec(), sums.collect()))
    }

    fn rows(&self, x: &Tensor, start: usize, rows: usize) -> Result<Tensor> {
        const OP: &str = "rows";
        let (_, cols) = x.rows_cols();
        check::rows(x, start, rows)?;
        let part = numbers(OP, x)?[start * cols..(start + rows) * cols].to_vec();
        Ok(Tensor::new(vec![rows, cols], part))
    }

    fn argmax(&self, x: &Tensor) -> Result<Tensor> {
        const OP: &str = "argmax";
        let (rows, cols) = x.rows_cols();
        let largest = |row: &[f32]| {
            let mut best = 0;
            for (i, v) in row.iter().enumerate() {
                if *v > row[best] {
                    best = i;
                }
            }
            best as f32
        };
        let ids: Vec<f32> = match cols {
            0 => vec![0.0; rows],
            _ => numbers(OP, x)?.chunks_exact(cols).map(largest).collect(),
        };
        Ok(Tensor::new(vec![rows], ids))
    }

    fn read(&self, x: &Tensor) -> Result<Vec<f32>> {
        numbers("read", x).map(<[f32]>::to_vec)
    }
}

/// `softmax(scale * q kᵀ) v` for one query: `q: [D]`, `k, v: [P, D]`, `out: [D]`.
fn attend_one(q: &[f32], k: &[f32], v: &[f32], scale: f32, out: &mut [f32]) {
    let dim = q.len();
    let mut weights: Vec<f32> = k.chunks_exact(dim).map(|k| scale * dot(q, k)).collect();
    let max = weights.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for w in &mut weights {
        *w = (*w - max).exp();
        sum += *w;
    }
    for (w, v) in weights.iter().zip(v.chunks_exact(dim)) {
        for (o, v) in out.iter_mut().zip(v) {
            *o += w / sum * v;
        }
    }
}

/// Sum of products in eight partial sums, which a compiler turns into vectors.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; 8];
    let (a8, b8) = (a.chunks_exact(8), b.chunks_exact(8));
    let tail: f32 = a8.remainder().iter().zip(b8.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a8.zip(b8) {
        for i in 0..8 {
            sums[i] += a[i] * b[i];
        }
    }
    sums.iter().sum::<f32>() + tail
}
