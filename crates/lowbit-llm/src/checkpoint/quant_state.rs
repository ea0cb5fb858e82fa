//! The JSON beside a quantized weight, under `<name>.quant_state.<library>__<format>`.

use lowbit::format::{Keys, ScaleKind};
use lowbit::{DType, Format, formats};
use safetensors::Dtype;
use serde::{Deserialize, Serialize};

use super::python_json;

/// torch's name of the E8M0 scales of OCP Microscaling.
const E8M0: &str = "float8_e8m0fnu";
/// torch's name of half floats.
const F16: &str = "float16";

/// What does not fit in a tensor: fields in the order in which bitsandbytes writes them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct QuantState {
    quant_type: String,
    #[serde(rename = "blocksize")]
    pub block_size: usize,
    dtype: String,
    pub shape: Vec<usize>,
    #[serde(flatten)]
    pub nested: Option<NestedState>,
    /// Only where the bytes under `.absmax` are neither f32 nor nested codes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    scale_dtype: Option<String>,
}

/// The fields that double quantization adds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct NestedState {
    #[serde(rename = "nested_blocksize")]
    pub block_size: usize,
    #[serde(rename = "nested_dtype")]
    dtype: String,
    #[serde(rename = "nested_offset")]
    pub offset: f64,
}

impl QuantState {
    /// The state of a tensor that had `dtype` before; `nested` is block size and offset, `halves` says
    /// that scales are f16.
    pub fn new(
        format: &Format,
        block_size: usize,
        dtype: DType,
        shape: &[usize],
        nested: Option<(usize, f32)>,
        halves: bool,
    ) -> Self {
        let nested = nested.map(|(block_size, offset)| NestedState {
            block_size,
            dtype: torch_name(DType::F32).into(),
            offset: offset.into(),
        });
        QuantState {
            quant_type: format.name.into(),
            block_size,
            dtype: torch_name(dtype).into(),
            shape: shape.into(),
            nested,
            scale_dtype: match format.scale {
                ScaleKind::E8M0 => Some(E8M0.into()),
                _ => halves.then(|| F16.into()),
            },
        }
    }

    /// Reads the JSON under `key`, the last part of the tensor's name: `bitsandbytes__nf4`.
    ///
    /// # Errors
    /// What was expected and what came.
    pub fn parse(json: &[u8], key: &str) -> Result<(Self, &'static Format), (String, String)> {
        let state: QuantState = serde_json::from_slice(json)
            .map_err(|e| ("the JSON of a quantized tensor".to_owned(), e.to_string()))?;
        let named = key.split_once("__").and_then(|(_, name)| formats::by_name(name).ok());
        let Some(format) = named.filter(|f| suffix(f).as_deref() == Some(key)) else {
            let known: Vec<String> = formats::ALL.iter().filter_map(|f| suffix(f)).collect();
            let got = format!("{key}, which this version does not know");
            return Err((format!("one of {}", known.join(", ")), got));
        };
        let quoted = |s: &str| format!("{s:?}");
        if state.quant_type != format.name {
            let expected = format!("quant_type {:?} under {key}", format.name);
            return Err((expected, quoted(&state.quant_type)));
        }
        if state.dtype().is_none() {
            let expected = "dtype float32, float16 or bfloat16";
            return Err((expected.into(), quoted(&state.dtype)));
        }
        if let Some(nested) = &state.nested {
            if !format.can_double_quantize() {
                return Err((format!("no nested scales for {}", format.name), "some".into()));
            }
            if nested.dtype != torch_name(DType::F32) {
                return Err(("nested_dtype \"float32\"".into(), quoted(&nested.dtype)));
            }
            if nested.block_size == 0 || !(nested.offset as f32).is_finite() {
                let expected = "a positive nested_blocksize and a finite nested_offset in f32";
                return Err((
                    expected.into(),
                    format!("{} and {:e}", nested.block_size, nested.offset),
                ));
            }
        }
        let fits: &[Option<&str>] = match format.scale {
            ScaleKind::E8M0 => &[Some(E8M0)],
            ScaleKind::Absmean => &[Some(F16), None],
            ScaleKind::Absmax | ScaleKind::Step => &[None],
        };
        if !fits.contains(&state.scale_dtype.as_deref()) {
            return Err((format!("scale_dtype {:?}", fits[0]), format!("{:?}", state.scale_dtype)));
        }
        Ok((state, format))
    }

    /// Whether scales are f16.
    pub fn has_half_scales(&self) -> bool {
        self.scale_dtype.as_deref() == Some(F16)
    }

    /// What the weights were before.
    pub fn dtype(&self) -> Option<DType> {
        from_torch_name(&self.dtype)
    }

    /// As `json.dumps` writes it.
    pub fn to_json(&self) -> serde_json::Result<Vec<u8>> {
        python_json::line(self)
    }
}

/// The last part of the JSON's key: `bitsandbytes__nf4`; `None` for a format stored otherwise.
pub(super) fn suffix(format: &Format) -> Option<String> {
    match format.keys {
        Keys::QuantState { library } => Some(format!("{library}__{}", format.name)),
        Keys::RowStats | Keys::TensorScale => None,
    }
}

/// What torch, and so a `config.json`, calls a type.
pub(crate) fn torch_name(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "float32",
        DType::F16 => "float16",
        DType::BF16 => "bfloat16",
    }
}

/// The inverse of [`torch_name`].
pub(crate) fn from_torch_name(name: &str) -> Option<DType> {
    DType::ALL.into_iter().find(|d| torch_name(*d) == name)
}

/// What a safetensors header calls a type.
pub(crate) fn header_dtype(dtype: DType) -> Dtype {
    match dtype {
        DType::F32 => Dtype::F32,
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::BF16,
    }
}

/// The inverse of [`header_dtype`]; `None` for what cannot be a weight.
pub(crate) fn weight_dtype(dtype: Dtype) -> Option<DType> {
    DType::ALL.into_iter().find(|d| header_dtype(*d) == dtype)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nf4() -> &'static Format {
        formats::by_name("nf4").unwrap()
    }

    #[test]
    fn json_is_that_of_bitsandbytes() {
        let plain = QuantState::new(nf4(), 64, DType::BF16, &[128, 64], None, false);
        assert_eq!(
            String::from_utf8(plain.to_json().unwrap()).unwrap(),
            r#"{"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [128, 64]}"#
        );
        let nested =
            QuantState::new(nf4(), 64, DType::F16, &[128, 64], Some((256, 2.565_124_5)), false);
        let json = nested.to_json().unwrap();
        assert_eq!(
            String::from_utf8(json.clone()).unwrap(),
            r#"{"quant_type": "nf4", "blocksize": 64, "dtype": "float16", "shape": [128, 64], "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 2.56512451171875}"#
        );
        let (read, format) = QuantState::parse(&json, "bitsandbytes__nf4").unwrap();
        assert_eq!((read, format.name), (nested, "nf4"));
    }

    #[test]
    fn refuses_what_it_does_not_know() {
        let json =
            QuantState::new(nf4(), 64, DType::BF16, &[2, 32], None, false).to_json().unwrap();
        let text = String::from_utf8(json).unwrap();
        let key = "bitsandbytes__nf4";
        assert!(QuantState::parse(text.as_bytes(), key).is_ok());
        let cases = [
            (text.replace("bfloat16", "int4"), key, "dtype"),
            (text.replace("nf4", "fp4"), key, "quant_type"),
            (text.clone(), "bitsandbytes__nf5", "one of"),
            (text.replace("64", "\"64\""), key, "JSON"),
            (text.replace('}', ", \"scale_dtype\": \"u4\"}"), key, "scale_dtype"),
            (
                text.replace('}', ", \"nested_blocksize\": 0, \"nested_dtype\": \"float32\", \"nested_offset\": 0.5}"),
                key,
                "nested_blocksize",
            ),
            ("\u{0}".to_owned(), key, "JSON"),
        ];
        for (json, key, expected) in cases {
            let (message, _) = QuantState::parse(json.as_bytes(), key).unwrap_err();
            assert!(message.contains(expected), "{message}");
        }
    }
}
