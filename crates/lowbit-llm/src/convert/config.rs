//! What a conversion changes in a model's `config.json`.

use lowbit::format::Keys;
use lowbit::{DType, Format};
use serde_json::{Map, Value, json};

use crate::checkpoint::AUTO_BITLINEAR;
use crate::checkpoint::quant_state::torch_name;

/// Whose `quantization_config` transformers reads.
const BITSANDBYTES: &str = "bitsandbytes";
/// Whose layers have a scale a tensor.
const BITNET: &str = "bitnet";
/// Where MLX says how a model is quantized.
const MLX: &str = "quantization";
const QUANTIZATION_CONFIG: &str = "quantization_config";

/// How a model was quantized.
pub(super) struct Quantization<'a> {
    pub format: &'static Format,
    pub block_size: Option<usize>,
    pub double_quant: bool,
    /// Type of the activations.
    pub dtype: DType,
    /// Linear layers left in 16 bit; `None` if they are those that transformers leaves by itself.
    pub skip_modules: Option<&'a [String]>,
}

/// The method by which a model is quantized already, by its `config.json`.
pub(super) fn method(config: &Value) -> Option<&str> {
    let section = config.get(QUANTIZATION_CONFIG).filter(|section| !section.is_null())?;
    Some(section.get("quant_method").and_then(Value::as_str).unwrap_or("an unnamed method"))
}

/// `config.json` of the quantized model.
pub(super) fn quantized(config: &Value, how: &Quantization<'_>) -> Value {
    let (library, eight_bit) = match how.format.keys {
        Keys::QuantState { library } => (library, false),
        Keys::RowStats => (BITSANDBYTES, true),
        Keys::TensorScale => (BITNET, false),
    };
    let section = if library == BITNET {
        // As transformers' `BitNetQuantConfig`; the class says that scales multiply.
        json!({
            "linear_class": AUTO_BITLINEAR,
            "modules_to_not_convert": how.skip_modules,
            "quant_method": BITNET,
            "quantization_mode": "offline",
        })
    } else if library == BITSANDBYTES {
        bitsandbytes(how, eight_bit)
    } else {
        json!({
            "block_size": how.block_size,
            "double_quant": how.double_quant,
            "quant_method": library,
            "quant_type": how.format.name,
            "skip_modules": how.skip_modules,
        })
    };
    edited(config, |fields| {
        fields.insert(QUANTIZATION_CONFIG.into(), section);
    })
}

/// As transformers' `BitsAndBytesConfig` writes itself; what does not apply has its default there.
fn bitsandbytes(how: &Quantization<'_>, eight_bit: bool) -> Value {
    let (compute, quant_type) = match eight_bit {
        true => (DType::F32, "fp4"),
        false => (how.dtype, how.format.name),
    };
    json!({
        "_load_in_4bit": !eight_bit,
        "_load_in_8bit": eight_bit,
        "bnb_4bit_compute_dtype": torch_name(compute),
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_quant_type": quant_type,
        "bnb_4bit_use_double_quant": how.double_quant,
        "llm_int8_enable_fp32_cpu_offload": false,
        "llm_int8_has_fp16_weight": false,
        "llm_int8_skip_modules": how.skip_modules,
        "llm_int8_threshold": 6.0,
        "load_in_4bit": !eight_bit,
        "load_in_8bit": eight_bit,
        "quant_method": BITSANDBYTES,
    })
}

/// `config.json` of a model quantized to one bit as MLX does it.
pub(super) fn mlx(config: &Value, group_size: usize) -> Value {
    edited(config, |fields| {
        fields.insert(MLX.into(), json!({"group_size": group_size, "bits": 1}));
    })
}

/// `config.json` of the dequantized model; `dtype` is its type, if that has changed.
pub(super) fn dequantized(config: &Value, dtype: Option<DType>) -> Value {
    edited(config, |fields| {
        fields.shift_remove(QUANTIZATION_CONFIG);
        fields.shift_remove(MLX);
        if let Some(dtype) = dtype {
            let old = ["torch_dtype"].into_iter().find(|key| fields.contains_key(*key));
            fields.insert(old.unwrap_or("dtype").into(), torch_name(dtype).into());
        }
    })
}

/// A copy with other fields; in sorted order if it was, as transformers writes it.
fn edited(config: &Value, edit: impl FnOnce(&mut Map<String, Value>)) -> Value {
    let mut fields = config.as_object().cloned().unwrap_or_default();
    let was_sorted = fields.keys().is_sorted();
    edit(&mut fields);
    if was_sorted {
        fields.sort_keys();
    }
    Value::Object(fields)
}
