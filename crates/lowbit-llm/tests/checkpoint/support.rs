//! Small files and directories to read.

use std::fs;
use std::path::{Path, PathBuf};

use lowbit::{QTensor, Weight};
use lowbit_llm::Checkpoint;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

/// Data that others wrote, in the repository.
pub fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden/checkpoints").join(name)
}

/// A model of the repository.
pub fn model(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models").join(name)
}

/// A tensor to put into a file.
#[derive(Clone)]
pub struct Tensor {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub data: Vec<u8>,
}

impl Tensor {
    pub fn new(name: &str, dtype: Dtype, shape: &[usize], data: Vec<u8>) -> Self {
        Tensor { name: name.into(), dtype, shape: shape.into(), data }
    }

    pub fn f32s(name: &str, shape: &[usize], values: &[f32]) -> Self {
        Self::new(name, Dtype::F32, shape, bytemuck::cast_slice(values).to_vec())
    }

    /// Weights that look like a trained layer's, the same for the same name.
    pub fn weights(name: &str, shape: &[usize]) -> Self {
        let mut state = name.bytes().fold(1u32, |h, b| h.wrapping_mul(31).wrapping_add(b.into()));
        let mut uniform = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32 - 0.5
        };
        let values: Vec<f32> =
            (0..shape.iter().product()).map(|_| uniform() + uniform() + uniform()).collect();
        Self::f32s(name, shape, &values)
    }
}

/// Writes a safetensors file with the crate that defines them.
pub fn write(path: &Path, tensors: &[Tensor]) {
    let views = tensors
        .iter()
        .map(|t| (t.name.clone(), TensorView::new(t.dtype, t.shape.clone(), &t.data).unwrap()));
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// Reads one with that crate, sorted by name.
pub fn read(path: &Path) -> Vec<Tensor> {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: Vec<Tensor> = file
        .iter()
        .map(|(name, view)| Tensor::new(name, view.dtype(), view.shape(), view.data().to_vec()))
        .collect();
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    tensors
}

/// A safetensors file of this header and so many zeros.
pub fn raw(header: &[u8], zeros: usize) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header, &vec![0; zeros]].concat()
}

/// A quantized tensor of a checkpoint.
pub fn quantized(checkpoint: &Checkpoint, name: &str) -> QTensor {
    match checkpoint.weight(name).unwrap() {
        Weight::Quantized(q) => q,
        Weight::Dense(_) => panic!("{name} is dense"),
    }
}

/// All that a tensor stores, as bits.
pub fn bits(q: &QTensor) -> (Vec<usize>, usize, Vec<u8>, Vec<u32>, Vec<u32>, bool) {
    let f32s = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    let scales = f32s(&q.scales().to_f32());
    let means = f32s(q.means().unwrap_or(&[]));
    let own = q.has_own_codebook();
    (q.shape().to_vec(), q.block_size(), q.codes().to_vec(), scales, means, own)
}
