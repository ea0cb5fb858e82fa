//! The keys of a quantized tensor: announced before it is quantized, filled after.

use bytes::Bytes;
use lowbit::format::{Keys, ScaleKind, Values, f16_scale};
use lowbit::pack::pack_patterns;
use lowbit::{DType, Format, Geometry, NESTED_BLOCK_SIZE, QTensor, Scales, formats};
use safetensors::Dtype;

use super::group::{
    ABSMAX, BIASES, MEANS, NESTED_ABSMAX, NESTED_QUANT_MAP, QUANT_MAP, QUANT_STATE, ROW_MAJOR,
    ROW_STATS, SCALES, WEIGHT, WEIGHT_FORMAT, WEIGHT_SCALE,
};
use super::quant_state::{QuantState, suffix};
use super::write::Slot;
use crate::{Error, Result};

/// Entries of the map that nested scales are codes of.
const NESTED_MAP_ENTRIES: usize = 256;
/// No f32 takes more characters in JSON: `-1.1754943508222875e-38` and some to spare.
const OFFSET_CHARACTERS: usize = 32;

/// What a tensor is to be quantized to.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub name: String,
    pub format: &'static Format,
    pub shape: Vec<usize>,
    pub block_size: Option<usize>,
    pub double_quant: bool,
    /// What the weights are now.
    pub dtype: DType,
    /// Whether it will have means.
    pub means: bool,
    /// Whether it is written under the keys of MLX's affine quantization.
    pub mlx: bool,
}

impl Target {
    /// The keys it will take.
    ///
    /// # Errors
    /// [`Error::Core`] for a shape or a block size that the format cannot have,
    /// [`Error::Argument`] for double quantization or a name that its keys cannot express.
    pub fn slots(&self) -> Result<Vec<Slot>> {
        let Target { name, format, shape, .. } = self;
        let g = Geometry::new(format, shape, self.block_size)?;
        if self.double_quant {
            check_double_quant(format)?;
        }
        if self.mlx {
            check_mlx(format, &g)?;
            let (layer, groups) = (layer(name, format)?, vec![g.n, g.k / g.block_size]);
            return Ok(vec![
                Slot::new(name.clone(), Dtype::U32, vec![g.n, g.k / MLX_CODES]),
                Slot::new(format!("{layer}{SCALES}"), Dtype::F16, groups.clone()),
                Slot::new(format!("{layer}{BIASES}"), Dtype::F16, groups),
            ]);
        }
        let Some(suffix) = suffix(format) else {
            let layer = layer(name, format)?;
            if let Some((rows, _)) = g.stacked {
                return Ok(vec![
                    Slot::new(name.clone(), Dtype::U8, vec![rows, g.k]),
                    Slot::new(format!("{layer}{WEIGHT_SCALE}"), Dtype::F16, vec![1]),
                ]);
            }
            return Ok(vec![
                Slot::new(name.clone(), Dtype::I8, shape.clone()),
                Slot::new(format!("{layer}{ROW_STATS}"), Dtype::F32, vec![g.blocks]),
                Slot::new(format!("{layer}{WEIGHT_FORMAT}"), Dtype::U8, vec![]),
            ]);
        };
        let slot = |key: &str, dtype, n: usize| Slot::new(format!("{name}{key}"), dtype, vec![n]);
        let f32s = |key: &str, n: usize| slot(key, Dtype::F32, n);
        let scale = match format.scale {
            _ if self.double_quant => Dtype::U8,
            ScaleKind::E8M0 => Dtype::U8,
            ScaleKind::Absmean => Dtype::F16,
            ScaleKind::Absmax | ScaleKind::Step => Dtype::F32,
        };
        let mut slots = vec![
            Slot::new(name.clone(), Dtype::U8, vec![g.code_bytes, 1]),
            slot(ABSMAX, scale, g.blocks),
            match format.values {
                Values::Patterns { .. } => slot(QUANT_MAP, Dtype::U8, format.codebook_bytes()),
                _ => f32s(QUANT_MAP, format.codebook_len()),
            },
        ];
        if self.means {
            slots.push(slot(MEANS, scale, g.blocks));
        }
        let mut nested = None;
        if self.double_quant {
            slots.push(f32s(NESTED_ABSMAX, g.blocks.div_ceil(NESTED_BLOCK_SIZE)));
            slots.push(f32s(NESTED_QUANT_MAP, NESTED_MAP_ENTRIES));
            nested = Some((NESTED_BLOCK_SIZE, 0.0));
        }
        let json = self.json(g.block_size, nested, scale == Dtype::F16)?;
        let most = json.len() + if self.double_quant { OFFSET_CHARACTERS } else { 0 };
        slots.push(Slot::late(format!("{name}{QUANT_STATE}{suffix}"), most));
        Ok(slots)
    }

    /// The bytes of those keys.
    ///
    /// # Errors
    /// As [`slots`](Self::slots).
    pub fn parts(&self, q: &QTensor) -> Result<Vec<(String, Bytes)>> {
        let name = &self.name;
        if self.mlx {
            let layer = layer(name, self.format)?;
            let (scales, biases) = affine(q);
            return Ok(vec![
                (name.clone(), q.codes().clone()),
                (format!("{layer}{SCALES}"), f16_bytes(scales)),
                (format!("{layer}{BIASES}"), f16_bytes(biases)),
            ]);
        }
        let Some(suffix) = suffix(self.format) else {
            let layer = layer(name, self.format)?;
            if self.format.keys == Keys::TensorScale {
                let scale = match q.scales() {
                    Scales::F16(scales) => scales.first().copied().unwrap_or(half::f16::ONE),
                    other => f16_scale(other.to_f32().first().copied().unwrap_or(1.0)),
                };
                return Ok(vec![
                    (name.clone(), q.codes().clone()),
                    (format!("{layer}{WEIGHT_SCALE}"), f16_bytes([scale])),
                ]);
            }
            return Ok(vec![
                (name.clone(), q.codes().clone()),
                (format!("{layer}{ROW_STATS}"), f32_bytes(&q.scales().to_f32())),
                (format!("{layer}{WEIGHT_FORMAT}"), Bytes::from_static(&[ROW_MAJOR])),
            ]);
        };
        let part = |key: &str, data: Bytes| (format!("{name}{key}"), data);
        let mut parts = vec![
            part("", q.codes().clone()),
            match self.format.values {
                Values::Patterns { .. } => {
                    let planes = pack_patterns(q.codebook(), self.format.weights_per_code);
                    part(QUANT_MAP, planes.into())
                }
                _ => part(QUANT_MAP, f32_bytes(&unsigned_zeros(q.codebook()))),
            },
        ];
        let halves = matches!(q.scales(), Scales::F16(_));
        if let Some(means) = q.means() {
            let data = match halves {
                true => f16_bytes(means.iter().map(|m| half::f16::from_f32(*m))),
                false => f32_bytes(means),
            };
            parts.push(part(MEANS, data));
        }
        let mut nested = None;
        match q.scales() {
            Scales::F32(scales) => parts.push(part(ABSMAX, f32_bytes(scales))),
            Scales::F16(scales) => parts.push(part(ABSMAX, f16_bytes(scales.iter().copied()))),
            Scales::E8M0(exponents) => parts.push(part(ABSMAX, exponents.clone())),
            Scales::Nested(n) => {
                nested = Some((n.block_size, n.offset));
                parts.push(part(ABSMAX, n.codes.clone()));
                parts.push(part(NESTED_ABSMAX, f32_bytes(&n.absmax)));
                parts.push(part(NESTED_QUANT_MAP, f32_bytes(&n.map)));
            }
        }
        let json = self.json(q.block_size(), nested, halves)?;
        parts.push(part(&format!("{QUANT_STATE}{suffix}"), json.into()));
        Ok(parts)
    }

    fn json(
        &self,
        block_size: usize,
        nested: Option<(usize, f32)>,
        halves: bool,
    ) -> Result<Vec<u8>> {
        let state =
            QuantState::new(self.format, block_size, self.dtype, &self.shape, nested, halves);
        state.to_json().map_err(|e| {
            Error::argument("quantize", "a state that JSON can hold", e.to_string(), "report it")
        })
    }
}

/// Whether a checkpoint can hold this format's scales double quantized.
///
/// # Errors
/// [`Error::Argument`] if not.
pub(crate) fn check_double_quant(format: &Format) -> Result<()> {
    let why = match format.keys {
        Keys::RowStats => "whose row statistics bitsandbytes keeps in f32",
        Keys::QuantState { .. } if format.can_double_quantize() => return Ok(()),
        Keys::QuantState { .. } => "whose scales are small already",
        Keys::TensorScale => "which has one scale",
    };
    Err(Error::argument(
        "double quantization",
        "a format with f32 scales that its checkpoint keys can nest",
        format!("{}, {why}", format.name),
        "leave double quantization out or choose another format",
    ))
}

/// Codes in a word of MLX's.
const MLX_CODES: usize = 32;

/// Whether MLX has such a tensor: one bit a weight, whole words and whole groups of the sizes it knows.
///
/// # Errors
/// [`Error::Argument`] if not.
fn check_mlx(format: &Format, g: &Geometry) -> Result<()> {
    let fits = std::ptr::eq(format, formats::one_bit())
        && format.block_sizes().contains(&g.block_size)
        && g.k % g.block_size == 0
        && g.k % MLX_CODES == 0;
    if fits {
        return Ok(());
    }
    let sizes = formats::one_bit().block_sizes();
    Err(Error::argument(
        "quantize for MLX",
        format!("{} in blocks of one of {sizes:?} that divide the row", formats::one_bit().name),
        format!("{} in blocks of {} of rows of {}", format.name, g.block_size, g.k),
        "choose that format and such a block size, or leave the tensor out",
    ))
}

/// `w = scale * code + bias` of each group, for codes 0 and 1.
fn affine(q: &QTensor) -> (Vec<half::f16>, Vec<half::f16>) {
    let [low, high] = [0, 1].map(|code| q.codebook().get(code).copied().unwrap_or_default());
    let mean = |i: usize| q.means().map_or(0.0, |means| means[i]);
    let scales = q.scales().to_f32().into_iter();
    scales
        .enumerate()
        .map(|(i, s)| (f16_scale(s * (high - low)), half::f16::from_f32(mean(i) + s * low)))
        .unzip()
}

/// What keys of row statistics begin with: a weight's name without its last word.
fn layer<'a>(name: &'a str, format: &Format) -> Result<&'a str> {
    name.strip_suffix(WEIGHT).ok_or_else(|| {
        Error::argument(
            "quantize",
            format!("a tensor whose name ends in {WEIGHT} for {}", format.name),
            format!("{name:?}"),
            "leave that tensor out or choose another format",
        )
    })
}

/// bitsandbytes' tables have no negative zero.
fn unsigned_zeros(table: &[f32]) -> Vec<f32> {
    table.iter().map(|v| v + 0.0).collect()
}

fn f16_bytes(values: impl IntoIterator<Item = half::f16>) -> Bytes {
    values.into_iter().flat_map(half::f16::to_le_bytes).collect()
}

fn f32_bytes(values: &[f32]) -> Bytes {
    Bytes::copy_from_slice(bytemuck::cast_slice(values))
}
