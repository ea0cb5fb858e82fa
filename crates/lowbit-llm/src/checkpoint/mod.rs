//! Checkpoints: Hugging Face model directories and safetensors files, memory-mapped.
//!
//! A [`Checkpoint`] lists logical tensors: a quantized weight is one [`Entry`], whatever keys a file
//! spreads it over. Five schemes are read.
//!
//! **Dense**: `<name>`, f32, f16 or bf16. Other types are listed, but are no weights.
//!
//! **With a quant state**, as bitsandbytes writes 4-bit weights. `n` is the number of weights:
//!
//! | key | type, shape |
//! |---|---|
//! | `<name>` | u8 `[bytes of codes, 1]`, or the same bytes viewed as f16, bf16 or f32 |
//! | `<name>.absmax` | the scales: f32 or f16 `[blocks]`; u8 when double quantized, or for E8M0 |
//! | `<name>.quant_map` | f32: the codebook; u8, of patterns of signs: planes of bits |
//! | `<name>.nested_absmax` | f32 `[ceil(blocks / 256)]`; double quantized only |
//! | `<name>.nested_quant_map` | f32 `[256]`; double quantized only |
//! | `<name>.means` | as the scales; only where a mean is added per block |
//! | `<name>.quant_state.<library>__<format>` | u8: the JSON below, in UTF-8 |
//!
//! ```json
//! {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [128, 64]}
//! ```
//!
//! with `"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 2.5` when double
//! quantized. `dtype` is what the weights were before. `<library>` is `bitsandbytes` for its formats
//! and `lowbit` for those it lacks, whose `quant_type` is [`Format::name`]. The bytes of E8M0 scales
//! are told from nested codes by `"scale_dtype": "float8_e8m0fnu"`, those of f16 by `"float16"`.
//!
//! **With row statistics**, as bitsandbytes writes LLM.int8: `<layer>.weight` i8 `[N, K]`,
//! `<layer>.SCB` f32 `[N]`, and mostly `<layer>.weight_format`, a u8 0.
//!
//! **With a scale of the tensor**, as mlx-lm and transformers write BitNet's BitLinear:
//! `<layer>.weight` u8 `[N / 4, K]`, `<layer>.weight_scale` `[1]`. The scale divides where
//! `config.json` says `"quant_method": "bitnet"` and not `"linear_class": "autobitlinear"`.
//!
//! **With scales and biases**, as MLX writes affine quantization to one bit: `<layer>.weight` u32
//! `[N, K / 32]`, `<layer>.scales` and `<layer>.biases` `[N, groups]`.

pub(crate) mod encode;
mod file;
mod group;
mod locate;
pub(crate) mod python_json;
pub(crate) mod quant_state;
pub(crate) mod write;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use lowbit::format::ScaleKind;
use lowbit::{DType, DenseTensor, Format, Nested, Parts, QTensor, Scales, Weight};
pub use safetensors::Dtype;
use serde_json::Value;

use crate::{Error, Result};
use group::{Group, Quantized};
pub(crate) use locate::{INDEX, SINGLE, read_json};
use quant_state::{from_torch_name, weight_dtype};

/// Name of the file that describes a model, in its directory.
pub(crate) const CONFIG: &str = "config.json";

/// The tensors of a model directory or of one safetensors file, memory-mapped.
///
/// Opening reads and checks the headers; weights are paged in when they are used. A file must not be
/// cut short or overwritten in place while it is open: as with every memory map the process would
/// see other bytes or be stopped. What this library writes is always a new file.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    directory: Option<PathBuf>,
    files: Vec<PathBuf>,
    config: Option<Value>,
    entries: Vec<Entry>,
    by_name: HashMap<String, usize>,
}

/// A logical tensor of a [`Checkpoint`].
#[derive(Debug)]
#[non_exhaustive]
pub struct Entry {
    /// Its name, as a model asks for it.
    pub name: String,
    /// Shape of the weights.
    pub shape: Vec<usize>,
    /// How it is quantized; `None` for a dense tensor.
    pub format: Option<&'static Format>,
    /// Type of a dense tensor, or what a quantized one was before.
    pub dtype: Dtype,
    /// Weights that share a scale; `None` for a dense tensor.
    pub block_size: Option<usize>,
    /// Whether the scales are quantized themselves.
    pub double_quantized: bool,
    /// Stored bytes: the numbers, or codes, scales, means and a codebook of its own.
    pub bytes: u64,
    group: Group,
}

impl Checkpoint {
    /// Opens a model directory (`model.safetensors`, or `model.safetensors.index.json` and its
    /// shards, and `config.json`) or a safetensors file.
    ///
    /// # Errors
    /// [`Error::Io`] for a path that is missing or cannot be read; [`Error::File`],
    /// [`Error::Tensor`] and [`Error::Weight`] for contents that are not a whole checkpoint.
    pub fn open(path: &Path) -> Result<Checkpoint> {
        let files = locate::locate(path)?;
        let mut stored = Vec::new();
        for file in &files.weights {
            stored.extend(file::read(file)?);
        }
        let held: HashSet<(&str, &Path)> =
            stored.iter().map(|t| (t.name.as_str(), t.path.as_path())).collect();
        for (name, shard) in &files.weight_map {
            if !held.contains(&(name.as_str(), shard.as_path())) {
                let (expected, help) = ("it, as the index says", "fetch the shard again");
                return Err(Error::tensor(shard, name, expected, "no such tensor", help));
            }
        }
        let config = read_config(files.directory.as_deref())?;
        let dtype = config.as_ref().and_then(config_dtype);
        let hints = config.as_ref().map(hints).unwrap_or_default();
        let mut entries: Vec<Entry> =
            group::group(stored, hints)?.into_iter().map(|g| Entry::new(g, dtype)).collect();
        entries.sort_by_cached_key(|entry| natural(&entry.name));
        let by_name = entries.iter().enumerate().map(|(i, e)| (e.name.clone(), i)).collect();
        Ok(Checkpoint {
            path: path.into(),
            directory: files.directory,
            files: files.weights,
            config,
            entries,
            by_name,
        })
    }

    /// The logical tensors, by name with numbers in numeric order: layer 10 after layer 9.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The logical tensor of that name.
    pub fn entry(&self, name: &str) -> Option<&Entry> {
        self.by_name.get(name).and_then(|i| self.entries.get(*i))
    }

    /// A weight. Codes and dense numbers share the memory map, scales are copied.
    ///
    /// # Errors
    /// [`Error::Tensor`] if there is none of that name, or it is of a type that no weight has.
    pub fn weight(&self, name: &str) -> Result<Weight> {
        self.require(name)?.weight()
    }

    pub(crate) fn require(&self, name: &str) -> Result<&Entry> {
        self.entry(name).ok_or_else(|| {
            let help = "is it the checkpoint of another model?";
            Error::tensor(&self.path, name, "a tensor of that name", "none", help)
        })
    }

    /// The keys of one file as they are stored, unchecked against each other.
    pub(crate) fn stored(file: &Path) -> Result<Vec<file::Stored>> {
        file::read(file)
    }

    /// The contents of `config.json`; `None` for a file, or a directory without one.
    pub fn config(&self) -> Option<&Value> {
        self.config.as_ref()
    }

    /// The path it was opened with.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The model directory, if it is one.
    pub fn directory(&self) -> Option<&Path> {
        self.directory.as_deref()
    }

    /// The safetensors files it is read from.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// Stored bytes of all tensors together, scales included.
    pub fn bytes(&self) -> u64 {
        self.entries.iter().map(|e| e.bytes).sum()
    }

    /// Number of weights of all tensors together.
    pub fn numel(&self) -> u64 {
        self.entries.iter().map(Entry::numel).sum()
    }

    /// Stored bits per weight of all tensors together, scales included; 0 without any.
    pub fn bits_per_weight(&self) -> f64 {
        bits_per_weight(self.bytes(), self.numel())
    }
}

impl Entry {
    fn new(group: Group, of_config: Option<DType>) -> Self {
        match &group {
            Group::Dense(stored) => Entry {
                name: stored.name.clone(),
                shape: stored.shape.clone(),
                format: None,
                dtype: stored.dtype,
                block_size: None,
                double_quantized: false,
                bytes: stored.data.len() as u64,
                group,
            },
            Group::Quantized(q) => Entry {
                name: q.name.clone(),
                shape: q.shape.clone(),
                format: Some(q.format),
                dtype: group::dtype_before(q, of_config),
                block_size: Some(q.geometry.block_size),
                double_quantized: q.nested.is_some(),
                bytes: q.bytes(),
                group,
            },
        }
    }

    /// Number of weights.
    pub fn numel(&self) -> u64 {
        self.shape.iter().map(|d| *d as u64).product()
    }

    /// Stored bits per weight, scales included; 0 for an empty tensor.
    pub fn bits_per_weight(&self) -> f64 {
        bits_per_weight(self.bytes, self.numel())
    }

    /// Name of its format, or of its type: `nf4`, `bf16`.
    pub fn format_name(&self) -> String {
        self.format.map_or_else(|| self.dtype.to_string().to_lowercase(), |f| f.name.to_owned())
    }

    /// The tensor. See [`Checkpoint::weight`].
    ///
    /// # Errors
    /// [`Error::Tensor`] if it is of a type that no weight has.
    pub fn weight(&self) -> Result<Weight> {
        match &self.group {
            Group::Quantized(q) => Ok(q.tensor()?.into()),
            Group::Dense(stored) => {
                let dtype = weight_dtype(stored.dtype).ok_or_else(|| {
                    Error::tensor(
                        &stored.path,
                        &stored.name,
                        "F32, F16 or BF16",
                        stored.dtype.to_string(),
                        "convert the checkpoint to one of those first",
                    )
                })?;
                let dense = DenseTensor::new(dtype, stored.shape.clone(), stored.data.clone());
                Ok(dense.map_err(Error::weight(&stored.path, &stored.name))?.into())
            }
        }
    }

    /// The file that holds it.
    pub fn file(&self) -> &Path {
        match &self.group {
            Group::Dense(stored) => &stored.path,
            Group::Quantized(q) => &q.path,
        }
    }

    /// The bytes of a dense tensor, of whatever type.
    pub(crate) fn dense_bytes(&self) -> Option<&Bytes> {
        match &self.group {
            Group::Dense(stored) => Some(&stored.data),
            Group::Quantized(_) => None,
        }
    }
}

impl Quantized {
    fn tensor(&self) -> Result<QTensor> {
        let f32s = |bytes: &Bytes| bytemuck::pod_collect_to_vec(bytes);
        let scales = match (&self.nested, self.format.scale) {
            (Some(nested), _) => Scales::Nested(Nested {
                codes: self.scales.clone(),
                absmax: f32s(&nested.absmax),
                offset: nested.offset,
                block_size: nested.block_size,
                map: nested.map.clone(),
            }),
            (None, ScaleKind::E8M0) => Scales::E8M0(self.scales.clone()),
            (None, _) if self.halves => {
                Scales::F16(bytemuck::pod_collect_to_vec(&self.scales).into())
            }
            (None, _) => Scales::F32(f32s(&self.scales).into()),
        };
        let means = |bytes: &Bytes| match self.halves {
            true => bytemuck::pod_collect_to_vec::<u8, half::f16>(bytes)
                .into_iter()
                .map(half::f16::to_f32)
                .collect(),
            false => f32s(bytes),
        };
        QTensor::from_parts(Parts {
            format: self.format,
            shape: self.shape.clone(),
            block_size: Some(self.geometry.block_size),
            codes: self.codes.clone(),
            scales,
            means: self.means.as_ref().map(means),
            codebook: self.codebook.clone(),
        })
        .map_err(Error::weight(&self.path, &self.name))
    }

    /// As [`QTensor::bytes`], without reading anything.
    fn bytes(&self) -> u64 {
        let nested = self.nested.as_ref().map_or(0, |n| n.absmax.len() + size_of::<f32>());
        let means = self.means.as_ref().map_or(0, Bytes::len);
        let codebook = self.codebook.as_ref().map_or(0, |_| self.format.codebook_bytes());
        (self.codes.len() + self.scales.len() + nested + means + codebook) as u64
    }
}

fn bits_per_weight(bytes: u64, weights: u64) -> f64 {
    if weights == 0 { 0.0 } else { 8.0 * bytes as f64 / weights as f64 }
}

fn read_config(directory: Option<&Path>) -> Result<Option<Value>> {
    match directory.map(|d| d.join(CONFIG)) {
        Some(path) if path.exists() => read_json(&path).map(Some),
        _ => Ok(None),
    }
}

/// The type that a `config.json` gives the weights, under its newer or its older name.
pub(crate) fn config_dtype(config: &Value) -> Option<DType> {
    let name = config.get("dtype").or_else(|| config.get("torch_dtype"))?;
    from_torch_name(name.as_str()?)
}

/// What a `config.json` says of how keys are to be read.
fn hints(config: &Value) -> group::Hints {
    let text = |section: &Value, key: &str| Some(section.get(key)?.as_str()?.to_owned());
    let section = config.get("quantization_config");
    let is_bitnet = section.and_then(|s| text(s, "quant_method")).as_deref() == Some("bitnet");
    let class = section.and_then(|s| text(s, "linear_class"));
    group::Hints {
        inverted_scales: is_bitnet && class.as_deref() != Some(AUTO_BITLINEAR),
        mlx_bits: config.get("quantization").and_then(|q| q.get("bits")?.as_u64()),
    }
}

/// BitNet's layers whose scales multiply; those of its other layers divide.
pub(crate) const AUTO_BITLINEAR: &str = "autobitlinear";

/// What sorts names so that runs of digits compare as numbers.
fn natural(name: &str) -> (Vec<(u64, String)>, String) {
    let part = |part: &str| {
        let digits = part.bytes().take_while(u8::is_ascii_digit).count();
        let (number, rest) = part.split_at(digits);
        (number.parse().unwrap_or(0), rest.to_owned())
    };
    let parts = name.split_inclusive(|c: char| !c.is_ascii_digit()).map(part).collect();
    (parts, name.to_owned())
}
