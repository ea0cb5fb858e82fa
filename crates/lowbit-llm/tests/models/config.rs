//! What config.json may hold, and what of it is refused.

use lowbit::DType;
use lowbit_llm::{Config, Error};
use proptest::prelude::*;
use serde_json::{Value, json};

fn llama() -> Value {
    json!({
        "model_type": "llama", "vocab_size": 96, "hidden_size": 32, "intermediate_size": 56,
        "num_hidden_layers": 3, "num_attention_heads": 4,
    })
}

fn with(changes: Value) -> Value {
    let mut config = llama();
    config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    config
}

fn parse(changes: Value) -> Config {
    Config::parse(&with(changes)).unwrap()
}

fn refused(changes: Value) -> (String, String) {
    match Config::parse(&with(changes.clone())) {
        Err(error @ Error::Config { .. }) => {
            let line = error.to_string();
            let Error::Config { field, .. } = error else { unreachable!() };
            (field, line)
        }
        other => panic!("{changes}: {other:?}"),
    }
}

#[test]
fn missing_fields_have_the_defaults_of_their_model_type() {
    let config = parse(json!({}));
    assert_eq!((config.num_key_value_heads, config.head_dim), (4, 8));
    assert_eq!((config.rms_norm_eps, config.max_position_embeddings), (1e-6, 2048));
    assert!(!config.tie_word_embeddings && !config.attention_bias && !config.mlp_bias);
    assert!(config.eos_token_ids.is_empty());
    assert_eq!(config.dtype, None);
    assert_eq!(config.windows, [None; 3]);

    let mistral = parse(json!({ "model_type": "mistral", "num_attention_heads": 16 }));
    assert_eq!((mistral.num_key_value_heads, mistral.head_dim), (8, 2));
    assert_eq!(mistral.windows, [Some(4096); 3]);
    let full = parse(
        json!({ "model_type": "mistral", "num_attention_heads": 16, "sliding_window": null }),
    );
    assert_eq!(full.windows, [None; 3]);
    let qwen3 = parse(json!({ "model_type": "qwen3", "num_key_value_heads": 2 }));
    assert_eq!(qwen3.head_dim, 128);
}

#[test]
fn windows_of_qwen_follow_their_switch() {
    let windows = |changes: Value| {
        let mut all =
            json!({ "model_type": "qwen2", "num_key_value_heads": 2, "sliding_window": 7 });
        all.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        parse(all).windows
    };
    assert_eq!(windows(json!({ "max_window_layers": 0 })), [None; 3]);
    let on = json!({ "use_sliding_window": true, "max_window_layers": 1 });
    assert_eq!(windows(on), [None, Some(7), Some(7)]);
    let types = json!(["sliding_attention", "full_attention", "sliding_attention"]);
    let on = json!({ "use_sliding_window": true, "max_window_layers": 1, "layer_types": types });
    assert_eq!(windows(on), [Some(7), None, Some(7)]);
    assert_eq!(windows(json!({ "layer_types": types })), [None; 3]);
}

#[test]
fn experts_are_read_under_both_names() {
    let experts = |changes: Value| parse(changes).experts.unwrap();
    let kv = json!({ "model_type": "mixtral", "num_key_value_heads": 2 });
    let mixtral = |more: Value| {
        let mut all = kv.clone();
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        all
    };
    let shown = experts(mixtral(json!({})));
    assert_eq!((shown.count, shown.routing.top, shown.routing.normalize), (8, 2, true));
    assert_eq!((shown.intermediate_size, shown.layers), (56, vec![true; 3]));
    for name in ["num_experts", "num_local_experts"] {
        assert_eq!(experts(mixtral(json!({ name: 5 }))).count, 5);
    }
    let config = parse(mixtral(json!({})));
    assert_eq!((config.rms_norm_eps, config.windows), (1e-5, vec![None; 3]));
    assert_eq!(parse(json!({})).experts.map(|experts| experts.count), None);

    let qwen = |more: Value| {
        let mut all = json!({ "model_type": "qwen3_moe" });
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        experts(all)
    };
    let shown = qwen(json!({}));
    assert_eq!((shown.count, shown.routing.top, shown.routing.normalize), (128, 8, false));
    assert_eq!((shown.intermediate_size, shown.layers), (768, vec![true; 3]));
    let some = qwen(json!({ "decoder_sparse_step": 2, "norm_topk_prob": true }));
    assert_eq!((some.layers, some.routing.normalize), (vec![false, true, false], true));
    assert_eq!(qwen(json!({ "mlp_only_layers": [2, 7] })).layers, [true, true, false]);

    let (field, line) = refused(mixtral(json!({ "num_experts_per_tok": 9 })));
    assert!(field == "num_experts_per_tok" && line.contains('8'), "{line}");
    for (field, value) in [
        ("num_experts", json!(0)),
        ("decoder_sparse_step", json!(0)),
        ("mlp_only_layers", json!(1)),
    ] {
        let (named, _) = refused(json!({ "model_type": "qwen3_moe", field: value }));
        assert_eq!(named, field);
    }
}

#[test]
fn tokens_and_types_come_in_several_spellings() {
    assert_eq!(parse(json!({ "eos_token_id": 2 })).eos_token_ids, [2]);
    assert_eq!(parse(json!({ "eos_token_id": [2, 5] })).eos_token_ids, [2, 5]);
    assert!(parse(json!({ "eos_token_id": null })).eos_token_ids.is_empty());
    assert_eq!(parse(json!({ "torch_dtype": "float16" })).dtype, Some(DType::F16));
    assert_eq!(parse(json!({ "dtype": "bfloat16" })).dtype, Some(DType::BF16));
}

#[test]
fn rope_is_read_in_both_styles() {
    let base = parse(json!({})).rope;
    assert_eq!(base.inv_freq.len(), 4);
    // 10000^(-2i/8)
    for (got, expected) in base.inv_freq.iter().zip([1.0, 0.1, 0.01, 0.001]) {
        assert!((got / expected - 1.0).abs() < 1e-6, "{got}");
    }
    let same = |a: Value, b: Value| assert_eq!(parse(a).rope, parse(b).rope);
    let llama3 = json!({ "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4, "original_max_position_embeddings": 8192 });
    same(
        json!({ "rope_theta": 5e5, "rope_scaling": llama3 }),
        json!({ "rope_parameters": llama3 }),
    );
    same(
        json!({ "rope_theta": 5000, "rope_scaling": { "type": "linear", "factor": 4 } }),
        json!({ "rope_parameters": { "rope_type": "linear", "rope_theta": 5000, "factor": 4.0 } }),
    );
    same(
        json!({ "rope_theta": 5e5, "rope_scaling": null }),
        json!({ "rope_parameters": { "rope_theta": 5e5 } }),
    );
    // Without a length of its own, the scaled context counts from max_position_embeddings.
    let mut short = llama3.clone();
    short.as_object_mut().unwrap().remove("original_max_position_embeddings");
    same(
        json!({ "max_position_embeddings": 8192, "rope_parameters": short }),
        json!({ "rope_parameters": llama3 }),
    );
}

/// Llama 3.1 8B's frequencies, as transformers computes them.
#[test]
fn llama3_frequencies_are_those_of_transformers() {
    let config = parse(json!({
        "hidden_size": 128, "num_attention_heads": 1,
        "rope_theta": 500000.0,
        "rope_scaling": { "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192 },
    }));
    for (i, expected) in LLAMA_3_1 {
        let got = config.rope.inv_freq[i];
        assert!((got / expected - 1.0).abs() < 2e-7, "{i}: {got} for {expected}");
    }
}

/// Kept, interpolated and divided ones.
const LLAMA_3_1: [(usize, f32); 11] = [
    (0, 1.0),
    (1, 0.8146172),
    (20, 0.01656044),
    (27, 0.003942276),
    (29, 0.0021665706),
    (30, 0.0013718937),
    (31, 0.00085675145),
    (33, 0.00031269365),
    (35, 9.556212e-5),
    (40, 3.4281024e-5),
    (63, 3.068926e-7),
];

#[test]
fn unsupported_and_absurd_values_are_named() {
    let big = u64::MAX;
    let cases = [
        (json!({ "model_type": "gpt2" }), "model_type", "\"gpt2\""),
        (json!({ "model_type": null }), "model_type", "null"),
        (json!({ "hidden_act": "gelu" }), "hidden_act", "\"gelu\""),
        (json!({ "num_attention_heads": 0 }), "num_attention_heads", "got 0"),
        (json!({ "num_attention_heads": -4 }), "num_attention_heads", "-4"),
        (json!({ "num_attention_heads": 5 }), "hidden_size", "32"),
        (json!({ "num_attention_heads": 4.0 }), "num_attention_heads", "4.0"),
        (json!({ "num_key_value_heads": 3 }), "num_key_value_heads", "got 3"),
        (json!({ "num_key_value_heads": 8 }), "num_key_value_heads", "got 8"),
        (json!({ "head_dim": 7 }), "head_dim", "got 7"),
        (json!({ "head_dim": big }), "head_dim", "18446744073709551615"),
        (json!({ "hidden_size": big }), "hidden_size", "18446744073709551615"),
        (json!({ "hidden_size": "32" }), "hidden_size", "\"32\""),
        (json!({ "hidden_size": null }), "hidden_size", "null"),
        (json!({ "vocab_size": 1u64 << 40 }), "vocab_size", "1099511627776"),
        (json!({ "num_hidden_layers": 1e30 }), "num_hidden_layers", "1e+30"),
        (json!({ "rms_norm_eps": -1.0 }), "rms_norm_eps", "-1.0"),
        (json!({ "rms_norm_eps": 1e-60 }), "rms_norm_eps", "1e-60"),
        (json!({ "tie_word_embeddings": "yes" }), "tie_word_embeddings", "\"yes\""),
        (json!({ "eos_token_id": [1, "x"] }), "eos_token_id", "\"x\""),
        (json!({ "eos_token_id": -1 }), "eos_token_id", "-1"),
        (json!({ "rope_theta": 0 }), "rope_theta", "got 0"),
        (json!({ "rope_theta": 1e60 }), "rope_theta", "1e+60"),
        (json!({ "rope_scaling": "linear" }), "rope_scaling", "\"linear\""),
        (json!({ "rope_scaling": { "type": "yarn", "factor": 4 } }), "rope_scaling.type", "yarn"),
        (json!({ "rope_scaling": { "rope_type": "linear" } }), "rope_scaling.factor", "nothing"),
        (
            json!({ "rope_parameters": { "partial_rotary_factor": 0.5 } }),
            "rope_parameters.partial_rotary_factor",
            "0.5",
        ),
        (json!({ "partial_rotary_factor": 0.25 }), "partial_rotary_factor", "0.25"),
        (
            json!({ "rope_parameters": { "full_attention": { "rope_theta": 1e4 } } }),
            "rope_parameters.full_attention",
            "rope_theta",
        ),
        (
            json!({ "rope_parameters": { "rope_type": "llama3", "factor": 8, "low_freq_factor": 4,
            "high_freq_factor": 4 } }),
            "rope_parameters.high_freq_factor",
            "got 4",
        ),
        (
            json!({ "model_type": "mistral", "num_key_value_heads": 4, "sliding_window": 0 }),
            "sliding_window",
            "got 0",
        ),
        (
            json!({ "model_type": "qwen2", "num_key_value_heads": 4, "layer_types": ["full_attention"] }),
            "layer_types",
            "full_attention",
        ),
        (
            json!({ "model_type": "qwen2", "num_key_value_heads": 4,
            "layer_types": ["chunked_attention", "full_attention", "full_attention"] }),
            "layer_types",
            "chunked",
        ),
        (json!({ "model_type": "x".repeat(10_000) }), "model_type", "xx.."),
    ];
    for (changes, expected, shown) in cases {
        let (field, line) = refused(changes.clone());
        assert_eq!(field, expected, "{changes}");
        assert!(line.starts_with("config.json: ") && line.contains(shown), "{line}");
        assert!(line.len() < 300 && !line.contains('\n'), "{line}");
    }
    for file in [json!([]), json!(null), json!("llama"), json!({})] {
        assert!(matches!(Config::parse(&file), Err(Error::Config { .. })), "{file}");
    }
}

fn any_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (0u64..200).prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
        Just(json!([])),
        Just(json!([1, null])),
        Just(json!({ "rope_type": "linear", "factor": 2 })),
    ]
}

proptest! {
    /// Whatever the fields hold, parsing ends in a configuration or in an error.
    #[test]
    fn hostile_fields_never_panic(
        model_type in prop::sample::select(vec!["llama", "mistral", "qwen2", "qwen3"]),
        changes in prop::collection::vec((prop::sample::select(FIELDS.to_vec()), any_value()), 1..6),
    ) {
        let mut config = with(json!({ "model_type": model_type }));
        for (name, value) in changes {
            config[name] = value;
        }
        if let Ok(config) = Config::parse(&config) {
            prop_assert!(config.num_attention_heads % config.num_key_value_heads == 0);
            prop_assert_eq!(config.rope.inv_freq.len() * 2, config.head_dim);
            prop_assert_eq!(config.windows.len(), config.num_hidden_layers);
            prop_assert!(config.windows.iter().flatten().all(|window| *window > 0));
        }
    }
}

const FIELDS: [&str; 22] = [
    "attention_bias",
    "eos_token_id",
    "head_dim",
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "layer_types",
    "max_position_embeddings",
    "max_window_layers",
    "mlp_bias",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "partial_rotary_factor",
    "rms_norm_eps",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "sliding_window",
    "tie_word_embeddings",
    "use_sliding_window",
    "vocab_size",
];
