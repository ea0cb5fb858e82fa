//! The keys of a quantized tensor: announced before it is quantized, filled after.

use bytes::Bytes;
use lowbit::format::{Keys, ScaleKind, Values};
use lowbit::{DType, Format, Geometry, NESTED_BLOCK_SIZE, QTensor, Scales};
use safetensors::Dtype;

use super::group::{
    ABSMAX, MEANS, NESTED_ABSMAX, NESTED_QUANT_MAP, QUANT_MAP, QUANT_STATE, ROW_MAJOR, ROW_STATS,
    WEIGHT, WEIGHT_FORMAT,
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
        let Some(suffix) = suffix(format) else {
            let layer = layer(name, format)?;
            return Ok(vec![
                Slot::new(name.clone(), Dtype::I8, shape.clone()),
                Slot::new(format!("{layer}{ROW_STATS}"), Dtype::F32, vec![g.blocks]),
                Slot::new(format!("{layer}{WEIGHT_FORMAT}"), Dtype::U8, vec![]),
            ]);
        };
        let entries = match format.values {
            Values::Codebook(table) | Values::Integer(table) => table.len(),
            Values::Stored { entries } => entries * format.weights_per_code,
        };
        let f32s = |key: &str, n: usize| Slot::new(format!("{name}{key}"), Dtype::F32, vec![n]);
        let in_bytes = self.double_quant || format.scale == ScaleKind::E8M0;
        let mut slots = vec![
            Slot::new(name.clone(), Dtype::U8, vec![g.code_bytes, 1]),
            match in_bytes {
                true => Slot::new(format!("{name}{ABSMAX}"), Dtype::U8, vec![g.blocks]),
                false => f32s(ABSMAX, g.blocks),
            },
            f32s(QUANT_MAP, entries),
        ];
        if format.has_mean {
            slots.push(f32s(MEANS, g.blocks));
        }
        let mut nested = None;
        if self.double_quant {
            slots.push(f32s(NESTED_ABSMAX, g.blocks.div_ceil(NESTED_BLOCK_SIZE)));
            slots.push(f32s(NESTED_QUANT_MAP, NESTED_MAP_ENTRIES));
            nested = Some((NESTED_BLOCK_SIZE, 0.0));
        }
        let json = self.json(g.block_size, nested)?;
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
        let Some(suffix) = suffix(self.format) else {
            let layer = layer(name, self.format)?;
            return Ok(vec![
                (name.clone(), q.codes().clone()),
                (format!("{layer}{ROW_STATS}"), f32_bytes(&q.scales().to_f32())),
                (format!("{layer}{WEIGHT_FORMAT}"), Bytes::from_static(&[ROW_MAJOR])),
            ]);
        };
        let part = |key: &str, data: Bytes| (format!("{name}{key}"), data);
        let mut parts = vec![
            part("", q.codes().clone()),
            part(QUANT_MAP, f32_bytes(&unsigned_zeros(q.codebook()))),
        ];
        if let Some(means) = q.means() {
            parts.push(part(MEANS, f32_bytes(means)));
        }
        let mut nested = None;
        match q.scales() {
            Scales::F32(scales) => parts.push(part(ABSMAX, f32_bytes(scales))),
            Scales::E8M0(exponents) => parts.push(part(ABSMAX, exponents.clone())),
            Scales::Nested(n) => {
                nested = Some((n.block_size, n.offset));
                parts.push(part(ABSMAX, n.codes.clone()));
                parts.push(part(NESTED_ABSMAX, f32_bytes(&n.absmax)));
                parts.push(part(NESTED_QUANT_MAP, f32_bytes(&n.map)));
            }
        }
        let json = self.json(q.block_size(), nested)?;
        parts.push(part(&format!("{QUANT_STATE}{suffix}"), json.into()));
        Ok(parts)
    }

    fn json(&self, block_size: usize, nested: Option<(usize, f32)>) -> Result<Vec<u8>> {
        let state = QuantState::new(self.format, block_size, self.dtype, &self.shape, nested);
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
        Keys::QuantState { .. } => "whose scales are bytes already",
    };
    Err(Error::argument(
        "double quantization",
        "a format with f32 scales that its checkpoint keys can nest",
        format!("{}, {why}", format.name),
        "leave double quantization out or choose another format",
    ))
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

fn f32_bytes(values: &[f32]) -> Bytes {
    Bytes::copy_from_slice(bytemuck::cast_slice(values))
}
