//! A device that remembers what was read back from it.

use std::sync::{Arc, Mutex};

use lowbit::device::{Attention, CacheShape, Device, KvCache, Rope, Tensor};
use lowbit::{Result, Weight};

/// Another device, and the lengths of all reads.
pub struct Counting {
    pub inner: Arc<dyn Device>,
    pub reads: Mutex<Vec<usize>>,
}

impl Device for Counting {
    fn name(&self) -> String {
        self.inner.name()
    }
    fn upload(&self, weight: &Weight) -> Result<Tensor> {
        self.inner.upload(weight)
    }
    fn kv_cache(&self, shape: CacheShape) -> Result<KvCache> {
        self.inner.kv_cache(shape)
    }
    fn embed(&self, table: &Tensor, ids: &[u32]) -> Result<Tensor> {
        self.inner.embed(table, ids)
    }
    fn linear(&self, x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        self.inner.linear(x, w, bias)
    }
    fn rms_norm(&self, x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
        self.inner.rms_norm(x, weight, eps)
    }
    fn rope(&self, x: &Tensor, rope: &Rope, start: usize) -> Result<Tensor> {
        self.inner.rope(x, rope, start)
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
        self.inner.attention(q, k, v, cache, layer, attention)
    }
    fn silu_mul(&self, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        self.inner.silu_mul(gate, up)
    }
    fn add(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        self.inner.add(a, b)
    }
    fn rows(&self, x: &Tensor, start: usize, rows: usize) -> Result<Tensor> {
        self.inner.rows(x, start, rows)
    }
    fn argmax(&self, x: &Tensor) -> Result<Tensor> {
        self.inner.argmax(x)
    }
    fn read(&self, x: &Tensor) -> Result<Vec<f32>> {
        let numbers = self.inner.read(x)?;
        self.reads.lock().unwrap().push(numbers.len());
        Ok(numbers)
    }
}
