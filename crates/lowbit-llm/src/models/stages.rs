//! A model one layer at a time, for those who change a layer before the next one is run: no more than
//! one layer's weights are on the device.

use lowbit::device::{CacheShape, Device, Tensor};

use super::layers::{Block, Pass, Tap};
use super::loader::{Loader, Source};
use crate::Result;
use crate::config::Config;

/// Embeddings of some windows of tokens: `[T, C]` each.
pub(crate) fn embed(
    config: &Config,
    source: &dyn Source,
    device: &dyn Device,
    windows: &[&[u32]],
) -> Result<Vec<Tensor>> {
    let silent = &mut |_, _| {};
    let mut from = Loader::new(source, device, config.rms_norm_eps, silent);
    let shape = [config.vocab_size, config.hidden_size];
    let table = from.matrix("model.embed_tokens", shape)?;
    windows.iter().map(|ids| Ok(device.embed(&table, ids)?)).collect()
}

/// One layer, on a device.
pub(crate) struct Layer<'a> {
    config: &'a Config,
    device: &'a dyn Device,
    block: Block,
}

impl<'a> Layer<'a> {
    /// Loads layer `layer`.
    pub fn load(
        config: &'a Config,
        source: &dyn Source,
        device: &'a dyn Device,
        layer: usize,
    ) -> Result<Self> {
        let silent = &mut |_, _| {};
        let mut from = Loader::new(source, device, config.rms_norm_eps, silent);
        let block = (config.model_type.block)(&mut from, config, layer)?;
        Ok(Layer { config, device, block })
    }

    /// Names of its linear layers' weights, in stages: what a stage reads is what the stages before
    /// it give.
    pub fn stages(&self) -> Vec<Vec<&str>> {
        self.block.stages()
    }

    /// Runs it on what the layer before gave for a window, `[T, C]`; shows the inputs of its linear
    /// layers to the tap.
    pub fn run(&self, x: &Tensor, mut tap: Option<&mut dyn Tap>) -> Result<Tensor> {
        let (config, device, block) = (self.config, self.device, &self.block);
        // The cache holds this layer alone, and begins anew with each window.
        let mut cache = device.kv_cache(CacheShape {
            layers: 1,
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            capacity: x.rows_cols().0,
        })?;
        let mut pass = Pass { device, rope: &config.rope, cache: &mut cache, tap: &mut tap };
        block.forward(&mut pass, 0, x)
    }
}
