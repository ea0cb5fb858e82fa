//! From the keys of files to logical tensors: a quantized weight gathers its side keys.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use lowbit::format::{Keys, Layout, ScaleKind, Values};
use lowbit::pack::unpack_patterns;
use lowbit::{DType, DenseTensor, Format, Geometry, Nested, formats};
use safetensors::Dtype;

use super::file::Stored;
use super::quant_state::{NestedState, QuantState, header_dtype, weight_dtype};
use crate::{Error, Result};

/// What marks the JSON beside a quantized weight.
pub(super) const QUANT_STATE: &str = ".quant_state.";
pub(super) const ABSMAX: &str = ".absmax";
pub(super) const QUANT_MAP: &str = ".quant_map";
pub(super) const NESTED_ABSMAX: &str = ".nested_absmax";
pub(super) const NESTED_QUANT_MAP: &str = ".nested_quant_map";
pub(super) const MEANS: &str = ".means";
/// The last word of a weight's name, which the keys of row statistics replace by theirs.
pub(super) const WEIGHT: &str = "weight";
pub(super) const ROW_STATS: &str = "SCB";
pub(super) const WEIGHT_FORMAT: &str = "weight_format";
/// mlx-lm's scale of a tensor.
pub(super) const WEIGHT_SCALE: &str = "weight_scale";
/// MLX's scales and biases of groups.
pub(super) const SCALES: &str = "scales";
pub(super) const BIASES: &str = "biases";
/// The value under [`WEIGHT_FORMAT`] that means row-major; others are layouts of old CUDA kernels.
pub(super) const ROW_MAJOR: u8 = 0;

const AGAIN: &str = "the file is incomplete or damaged: fetch or write it again";

/// A logical tensor: dense, or quantized with everything that belongs to it. Sizes are checked.
#[derive(Debug)]
pub(super) enum Group {
    Dense(Stored),
    Quantized(Box<Quantized>),
}

/// A quantized tensor whose keys are all there and have the sizes that its format and shape demand.
#[derive(Debug)]
pub(super) struct Quantized {
    pub name: String,
    pub path: Arc<PathBuf>,
    pub format: &'static Format,
    pub shape: Vec<usize>,
    /// What the weights were before, if the file says so.
    pub dtype: Option<DType>,
    pub geometry: Geometry,
    pub codes: Bytes,
    /// Scales as stored: f32, f16, E8M0, or codes of `nested`.
    pub scales: Bytes,
    /// Whether scales and means are f16.
    pub halves: bool,
    pub nested: Option<NestedParts>,
    pub means: Option<Bytes>,
    /// Only where it differs from the format's own.
    pub codebook: Option<Arc<[f32]>>,
}

/// What double quantization adds.
#[derive(Debug)]
pub(super) struct NestedParts {
    pub absmax: Bytes,
    pub map: Arc<[f32]>,
    pub block_size: usize,
    pub offset: f32,
}

/// What only a model's `config.json` says of its keys.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Hints {
    /// Scales of tensors divide (the weights of BitNet's own layers) and do not multiply.
    pub inverted_scales: bool,
    /// Bits of a code of MLX's.
    pub mlx_bits: Option<u64>,
}

/// Gathers the keys of a checkpoint, in no particular order.
pub(super) fn group(stored: Vec<Stored>, hints: Hints) -> Result<Vec<Group>> {
    let mut keys = KeyMap::new(stored)?;
    let mut groups = Vec::new();
    for (key, at) in keys.matching(|key| key.rfind(QUANT_STATE)) {
        groups.push(Group::Quantized(Box::new(keys.quant_state(&key, at)?)));
    }
    for (key, at) in keys.matching(|key| key.strip_suffix(ROW_STATS).map(str::len)) {
        groups.push(Group::Quantized(Box::new(keys.row_stats(&key, at)?)));
    }
    // Other libraries have such keys as well, beside weights of other types.
    for (key, at) in keys.beside(WEIGHT_SCALE, Dtype::U8) {
        groups.push(Group::Quantized(Box::new(keys.tensor_scale(&key, at, hints)?)));
    }
    if hints.mlx_bits == Some(1) {
        for (key, at) in keys.beside(BIASES, Dtype::U32) {
            groups.push(Group::Quantized(Box::new(keys.mlx(&key, at)?)));
        }
    }
    keys.refuse_orphans()?;
    groups.extend(keys.0.into_values().map(Group::Dense));
    Ok(groups)
}

/// Keys that no logical tensor has taken yet.
struct KeyMap(HashMap<String, Stored>);

impl KeyMap {
    fn new(stored: Vec<Stored>) -> Result<Self> {
        let mut keys: HashMap<String, Stored> = HashMap::with_capacity(stored.len());
        for tensor in stored {
            let (name, path) = (tensor.name.clone(), tensor.path.clone());
            if let Some(other) = keys.insert(name.clone(), tensor) {
                let got = format!("another in {}", other.path.display());
                let help = "remove one of the two";
                return Err(Error::tensor(&path, &name, "one tensor of that name", got, help));
            }
        }
        Ok(KeyMap(keys))
    }

    /// Keys, sorted, in which `find` finds the end of a tensor's or layer's name.
    fn matching(&self, find: impl Fn(&str) -> Option<usize>) -> Vec<(String, usize)> {
        let mut found: Vec<(String, usize)> =
            self.0.keys().filter_map(|key| Some((key.clone(), find(key)?))).collect();
        found.sort();
        found
    }

    /// Keys `<layer><suffix>` whose layer has a weight of that type, and the ends of its names.
    fn beside(&self, suffix: &str, dtype: Dtype) -> Vec<(String, usize)> {
        let mut found = self.matching(|key| key.strip_suffix(suffix).map(str::len));
        found.retain(|(key, at)| {
            self.0.get(&format!("{}{WEIGHT}", &key[..*at])).is_some_and(|w| w.dtype == dtype)
        });
        found
    }

    /// Takes `<name><suffix>`, which `owner` needs, as one of `dtypes`.
    fn take(
        &mut self,
        owner: &Stored,
        name: &str,
        suffix: &str,
        dtypes: &[Dtype],
    ) -> Result<Stored> {
        let key = format!("{name}{suffix}");
        let Some(tensor) = self.0.remove(&key) else {
            let expected = format!("{key:?} beside it");
            return Err(Error::tensor(&owner.path, &owner.name, expected, "none", AGAIN));
        };
        if !dtypes.contains(&tensor.dtype) {
            return Err(tensor.unlike(one_of(dtypes), tensor.dtype.to_string()));
        }
        Ok(tensor)
    }

    fn take_f32(&mut self, owner: &Stored, name: &str, suffix: &str) -> Result<Stored> {
        self.take(owner, name, suffix, &[Dtype::F32])
    }

    /// The tensor whose JSON is under `key`; its name ends at `at`.
    fn quant_state(&mut self, key: &str, at: usize) -> Result<Quantized> {
        let json = self.take_known(key)?;
        let (name, rest) = key.split_at(at);
        let (state, format) = QuantState::parse(&json.data, &rest[QUANT_STATE.len()..])
            .map_err(|(expected, got)| json.unlike(expected, got))?;
        let geometry = Geometry::new(format, &state.shape, Some(state.block_size))
            .map_err(Error::weight(&json.path, key))?;

        // Any type may hold the bytes of the codes (`quant_storage`).
        let storages = [Dtype::U8, Dtype::F16, Dtype::BF16, Dtype::F32];
        let codes = self.take(&json, name, "", &storages)?;
        codes.expect_bytes(geometry.code_bytes, format, &state.shape)?;
        let nested = match &state.nested {
            None => None,
            Some(nested) => Some(self.nested(&json, name, nested, geometry.blocks)?),
        };
        let in_bytes = nested.is_some() || format.scale == ScaleKind::E8M0;
        let halves = state.has_half_scales();
        let (scale_dtype, size) = match (in_bytes, halves) {
            (true, _) => (Dtype::U8, 1),
            (false, true) => (Dtype::F16, 2),
            (false, false) => (Dtype::F32, 4),
        };
        let scales = self.take(&json, name, ABSMAX, &[scale_dtype])?;
        scales.expect_bytes(geometry.blocks * size, format, &state.shape)?;
        let means = match format.has_mean && self.0.contains_key(&format!("{name}{MEANS}")) {
            false => None,
            true => {
                let means = self.take(&json, name, MEANS, &[scale_dtype])?;
                means.expect_bytes(geometry.blocks * size, format, &state.shape)?;
                Some(means.data)
            }
        };
        let codebook = match format.values {
            Values::Patterns { .. } => {
                let map = self.take(&json, name, QUANT_MAP, &[Dtype::U8])?;
                map.expect_bytes(format.codebook_bytes(), format, &state.shape)?;
                unpack_patterns(&map.data, format.weights_per_code)
            }
            _ => self.take_f32(&json, name, QUANT_MAP)?.f32s(format.codebook_len())?,
        };
        Ok(Quantized {
            name: name.into(),
            path: json.path.clone(),
            format,
            dtype: state.dtype(),
            shape: state.shape,
            geometry,
            codes: codes.data,
            scales: scales.data,
            halves,
            nested,
            means,
            codebook: match format.codebook() {
                Some(own) if same_values(own, &codebook) => None,
                _ => Some(codebook.into()),
            },
        })
    }

    fn nested(
        &mut self,
        json: &Stored,
        name: &str,
        state: &NestedState,
        blocks: usize,
    ) -> Result<NestedParts> {
        let absmax = self.take_f32(json, name, NESTED_ABSMAX)?;
        let expected = blocks.div_ceil(state.block_size);
        if absmax.data.len() != 4 * expected {
            return Err(absmax.unlike(format!("{expected} f32"), absmax.described()));
        }
        let map = self.take_f32(json, name, NESTED_QUANT_MAP)?.f32s(256)?;
        let own = Nested::default_map();
        let map = if same_values(&own, &map) { own } else { map.into() };
        let (block_size, offset) = (state.block_size, state.offset as f32);
        Ok(NestedParts { absmax: absmax.data, map, block_size, offset })
    }

    /// The tensor whose row statistics are under `key`; its layer's name ends at `at`.
    fn row_stats(&mut self, key: &str, at: usize) -> Result<Quantized> {
        let stats = self.take_known(key)?;
        let layer = &key[..at];
        let codes = self.take(&stats, layer, WEIGHT, &[Dtype::I8])?;
        let Some(format) = formats::ALL.iter().find(|f| f.keys == Keys::RowStats) else {
            return Err(stats.unlike("a format with row statistics", "none in this build"));
        };
        if stats.dtype != Dtype::F32 {
            return Err(stats.unlike("F32", stats.dtype.to_string()));
        }
        if let Some(layout) = self.0.remove(&format!("{layer}{WEIGHT_FORMAT}"))
            && layout.data.as_ref() != [ROW_MAJOR]
        {
            let got = format!(
                "{:?}, a layout of old CUDA kernels",
                &layout.data[..layout.data.len().min(8)]
            );
            return Err(Error::tensor(
                &layout.path,
                &layout.name,
                "0, for row-major",
                got,
                "load and save the model with a newer bitsandbytes",
            ));
        }
        let geometry = Geometry::new(format, &codes.shape, None)
            .map_err(Error::weight(&codes.path, &codes.name))?;
        codes.expect_bytes(geometry.code_bytes, format, &codes.shape)?;
        stats.expect_bytes(4 * geometry.blocks, format, &codes.shape)?;
        Ok(Quantized {
            name: codes.name,
            path: codes.path,
            format,
            shape: codes.shape,
            dtype: None,
            geometry,
            codes: codes.data,
            scales: stats.data,
            halves: false,
            nested: None,
            means: None,
            codebook: None,
        })
    }

    /// The tensor whose one scale is under `key`; its layer's name ends at `at`.
    fn tensor_scale(&mut self, key: &str, at: usize, hints: Hints) -> Result<Quantized> {
        let scale = self.take_known(key)?;
        let codes = self.take(&scale, &key[..at], WEIGHT, &[Dtype::U8])?;
        let Some(format) = formats::ALL.iter().find(|f| f.keys == Keys::TensorScale) else {
            return Err(scale.unlike("a format with a scale a tensor", "none in this build"));
        };
        let (Layout::Stacked { rows }, &[packed, k]) = (format.layout, codes.shape.as_slice())
        else {
            return Err(codes.unlike("rows of packed codes, [N / 4, K]", codes.described()));
        };
        let (mut scales, halves) = scale.numbers()?;
        let &[value] = scales.as_slice() else {
            return Err(scale.unlike("one number", scale.described()));
        };
        let mut halves = halves;
        if hints.inverted_scales {
            (scales, halves) = (vec![1.0 / value], false);
        }
        let shape = vec![packed.saturating_mul(rows), k];
        let geometry =
            Geometry::new(format, &shape, None).map_err(Error::weight(&codes.path, &codes.name))?;
        codes.expect_bytes(geometry.code_bytes, format, &shape)?;
        // A tensor without weights has no block for its scale.
        scales.truncate(geometry.blocks);
        Ok(Quantized {
            name: codes.name,
            path: codes.path,
            format,
            shape,
            dtype: None,
            geometry,
            codes: codes.data,
            scales: number_bytes(&scales, halves),
            halves,
            nested: None,
            means: None,
            codebook: None,
        })
    }

    /// A tensor in MLX's affine quantization to one bit, whose biases are under `key`: one of signs, of
    /// which one is 0 and the other 1.
    fn mlx(&mut self, key: &str, at: usize) -> Result<Quantized> {
        let layer = &key[..at];
        let biases = self.take_known(key)?;
        let codes = self.take(&biases, layer, WEIGHT, &[Dtype::U32])?;
        let scales = self.take(&biases, layer, SCALES, &NUMBERS)?;
        let format = formats::one_bit();
        let ([n, words], [_, blocks]) = (&codes.shape[..], &scales.shape[..]) else {
            return Err(
                scales.unlike("scales [N, groups] of codes [N, K / 32]", scales.described())
            );
        };
        let shape = vec![*n, words.saturating_mul(32)];
        let block_size = shape[1].checked_div(*blocks).filter(|size| size * blocks == shape[1]);
        let geometry = Geometry::new(format, &shape, block_size)
            .map_err(Error::weight(&biases.path, &biases.name))?;
        codes.expect_bytes(geometry.code_bytes, format, &shape)?;
        let ((scales, halves), (means, also)) = (scales.numbers()?, biases.numbers()?);
        if scales.len() != geometry.blocks || means.len() != geometry.blocks {
            let got = format!("{} scales and {} biases", scales.len(), means.len());
            return Err(biases.unlike(format!("{} of each", geometry.blocks), got));
        }
        let halves = halves && also;
        Ok(Quantized {
            name: codes.name,
            path: codes.path,
            format,
            shape,
            dtype: None,
            geometry,
            codes: codes.data,
            scales: number_bytes(&scales, halves),
            halves,
            nested: None,
            means: Some(number_bytes(&means, halves)),
            codebook: Some([0.0, 1.0].into()),
        })
    }

    fn take_known(&mut self, key: &str) -> Result<Stored> {
        self.0.remove(key).ok_or_else(|| {
            Error::argument("read", "a key that was listed", format!("{key:?}"), AGAIN)
        })
    }

    /// Side keys whose tensor's main key is missing would make codes look like a dense tensor.
    fn refuse_orphans(&self) -> Result<()> {
        let sides = [
            (ABSMAX, "", Dtype::U8, format!("its {QUANT_STATE}<library>__<format> beside it")),
            (WEIGHT_FORMAT, WEIGHT, Dtype::I8, format!("its {ROW_STATS} beside it")),
        ];
        for (suffix, main, dtype, expected) in sides {
            for (key, at) in self.matching(|key| key.strip_suffix(suffix).map(str::len)) {
                let codes = self.0.get(&format!("{}{main}", &key[..at]));
                if let Some(codes) = codes.filter(|codes| codes.dtype == dtype) {
                    return Err(codes.unlike(expected, format!("only {key:?}")));
                }
            }
        }
        Ok(())
    }
}

impl Stored {
    fn unlike(&self, expected: impl Into<String>, got: impl Into<String>) -> Error {
        Error::tensor(&self.path, &self.name, expected, got, AGAIN)
    }

    fn described(&self) -> String {
        format!("{} {:?}", self.dtype, self.shape)
    }

    fn expect_bytes(&self, expected: usize, format: &Format, shape: &[usize]) -> Result<()> {
        if self.data.len() == expected {
            return Ok(());
        }
        let expected = format!("{expected} bytes for {} of shape {shape:?}", format.name);
        Err(self.unlike(expected, format!("{}, {} bytes", self.described(), self.data.len())))
    }

    /// All numbers in f32, and whether they are f16.
    fn numbers(&self) -> Result<(Vec<f32>, bool)> {
        let Some(dtype) = weight_dtype(self.dtype) else {
            return Err(self.unlike(one_of(&NUMBERS), self.described()));
        };
        let dense = DenseTensor::new(dtype, self.shape.clone(), self.data.clone())
            .map_err(Error::weight(&self.path, &self.name))?;
        Ok((dense.to_f32(), dtype == DType::F16))
    }

    fn f32s(&self, expected: usize) -> Result<Vec<f32>> {
        if self.data.len() != 4 * expected {
            return Err(self.unlike(format!("{expected} f32"), self.described()));
        }
        Ok(bytemuck::pod_collect_to_vec(&self.data))
    }
}

/// Types of numbers that scales come in.
const NUMBERS: [Dtype; 3] = [Dtype::F16, Dtype::BF16, Dtype::F32];

/// Scales or means as they are kept: in two bytes if they are half floats.
fn number_bytes(numbers: &[f32], halves: bool) -> Bytes {
    if !halves {
        return Bytes::copy_from_slice(bytemuck::cast_slice(numbers));
    }
    numbers.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect()
}

fn one_of(dtypes: &[Dtype]) -> String {
    dtypes.iter().map(Dtype::to_string).collect::<Vec<_>>().join(" or ")
}

/// Whether two codebooks stand for the same weights: a code may mean NaN, and a zero may have a sign
/// here and none in the file.
fn same_values(a: &[f32], b: &[f32]) -> bool {
    let same = |(a, b): (&f32, &f32)| a == b || (a.is_nan() && b.is_nan());
    a.len() == b.len() && a.iter().zip(b).all(same)
}

/// The type that weights had before, where only the model's `config.json` can say.
pub(super) fn dtype_before(quantized: &Quantized, of_config: Option<DType>) -> Dtype {
    // LLM.int8 casts to f16 before it quantizes.
    header_dtype(quantized.dtype.or(of_config).unwrap_or(DType::F16))
}
