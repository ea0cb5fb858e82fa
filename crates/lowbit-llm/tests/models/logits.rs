//! Logits of the tiny golden models, and what a pass refuses.

use lowbit::device::Tensor;
use lowbit_llm::models::{Logits, Tap};
use lowbit_llm::{Checkpoint, Model, Result};
use serde_json::json;

use crate::{golden, load, repository, with_config};

pub const MODELS: [&str; 10] = [
    "llama-linear-rope-biases",
    "llama-llama3-rope",
    "mistral-window",
    "mixtral",
    "qwen2-tied",
    "qwen2-window",
    "qwen3",
    "qwen3-moe",
    "qwen3-moe-window-biases",
    "qwen3-window-biases",
];

/// A tensor that transformers gave, in words.
pub fn words(name: &str, tensor: &str) -> Vec<[u8; 4]> {
    let bytes = std::fs::read(golden(name).join("logits.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let data = file.tensor(tensor).unwrap().data();
    data.chunks_exact(4).map(|word| word.try_into().unwrap()).collect()
}

/// The input that transformers was given, and its logits, `[T, V]`.
fn expected(name: &str) -> (Vec<u32>, Vec<f32>) {
    let ids = words(name, "ids").into_iter().map(u32::from_le_bytes).collect();
    (ids, words(name, "logits").into_iter().map(f32::from_le_bytes).collect())
}

/// Logits of every position, where the passes end at these positions.
fn run(model: &Model, ids: &[u32], ends: impl IntoIterator<Item = usize>) -> Result<Vec<f32>> {
    let mut cache = model.new_cache(ids.len())?;
    let mut logits = Vec::new();
    for end in ends {
        let part = &ids[cache.len()..end];
        let part = model.forward(part, &mut cache, Logits::All, None)?;
        logits.extend(model.device().read(&part)?);
    }
    Ok(logits)
}

fn furthest(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn logits_are_those_of_transformers() {
    for name in MODELS {
        let (ids, expected) = expected(name);
        let model = load(&golden(name)).unwrap();
        let whole = run(&model, &ids, [ids.len()]).unwrap();
        let distance = furthest(&whole, &expected);
        assert!(distance < 1e-4, "{name}: {distance}");
        // A prefill, a second piece of several tokens, then token by token.
        let ends = [17, 23].into_iter().chain(24..=ids.len());
        let distance = furthest(&run(&model, &ids, ends).unwrap(), &expected);
        assert!(distance < 1e-4, "{name} in pieces: {distance}");
    }
}

#[test]
fn last_logits_are_the_last_row_of_all() {
    let (ids, _) = expected("qwen3");
    let model = load(&golden("qwen3")).unwrap();
    let all = run(&model, &ids, [ids.len()]).unwrap();
    let mut cache = model.new_cache(ids.len()).unwrap();
    let last = model.forward(&ids, &mut cache, Logits::Last, None).unwrap();
    assert_eq!(last.shape(), [1, model.config().vocab_size]);
    let last = model.device().read(&last).unwrap();
    assert!(furthest(&last, &all[all.len() - last.len()..]) < 1e-5);
}

/// Each setting moves the golden logits by far more than the test above allows.
#[test]
fn every_setting_matters() {
    let cases = [
        ("mistral-window", json!({ "sliding_window": 8 })),
        ("mistral-window", json!({ "rope_parameters": { "rope_theta": 1100.0 } })),
        ("qwen2-tied", json!({ "use_sliding_window": true })),
        ("qwen2-tied", json!({ "rms_norm_eps": 0.1 })),
        ("qwen2-window", json!({ "max_window_layers": 2 })),
        ("qwen2-window", json!({ "use_sliding_window": false })),
        ("qwen2-window", json!({ "tie_word_embeddings": true })),
        ("mixtral", json!({ "num_experts_per_tok": 1 })),
        ("mixtral", json!({ "sliding_window": null })),
        ("qwen3-moe", json!({ "num_experts_per_tok": 3 })),
        ("qwen3-moe", json!({ "norm_topk_prob": false })),
        ("qwen3-moe-window-biases", json!({ "norm_topk_prob": true })),
        ("qwen3-moe-window-biases", json!({ "use_sliding_window": false })),
        ("qwen3-window-biases", json!({ "layer_types": null, "max_window_layers": 2 })),
        ("llama-llama3-rope", json!({ "rope_scaling": null })),
        ("llama-linear-rope-biases", json!({ "rope_scaling": null })),
        ("llama-linear-rope-biases", json!({ "rope_theta": 900.0 })),
    ];
    for (name, changes) in cases {
        let (ids, expected) = expected(name);
        let model = load(with_config(name, changes.clone()).path()).unwrap();
        let distance = furthest(&run(&model, &ids, [ids.len()]).unwrap(), &expected);
        assert!(distance > 5e-3, "{name} with {changes}: {distance}");
    }
}

#[test]
fn weights_that_do_not_fit_the_config_are_named() {
    let cases = [
        (
            "mistral-window",
            json!({ "num_hidden_layers": 3 }),
            "model.layers.2.input_layernorm.weight",
        ),
        ("qwen3-moe", json!({ "decoder_sparse_step": 1 }), "model.layers.0.mlp.gate.weight"),
        ("qwen3-moe", json!({ "num_experts": 10 }), "model.layers.1.mlp.gate.weight"),
        (
            "qwen3-moe",
            json!({ "moe_intermediate_size": 21 }),
            "model.layers.1.mlp.experts.0.gate_proj.weight",
        ),
        ("qwen3", json!({ "head_dim": 8 }), "model.layers.0.self_attn.q_proj.weight"),
        ("qwen3", json!({ "vocab_size": 95 }), "model.embed_tokens.weight"),
        ("qwen3", json!({ "intermediate_size": 57 }), "model.layers.0.mlp.gate_proj.weight"),
        ("qwen3", json!({ "attention_bias": true }), "model.layers.0.self_attn.q_proj.bias"),
        ("qwen3", json!({ "model_type": "qwen2" }), "model.layers.0.self_attn.q_proj.bias"),
        ("qwen2-tied", json!({ "tie_word_embeddings": false }), "lm_head.weight"),
        (
            "llama-linear-rope-biases",
            json!({ "mlp_bias": false }),
            "model.layers.0.mlp.gate_proj.bias",
        ),
    ];
    for (name, changes, tensor) in cases {
        let error = load(with_config(name, changes.clone()).path()).unwrap_err().to_string();
        assert!(error.contains(&format!("{tensor:?}")), "{name} with {changes}: {error}");
        assert!(!error.contains('\n'), "{error}");
    }
}

/// bitsandbytes' own files: quantized logits point where those of bf16 do.
#[test]
fn checkpoints_of_bitsandbytes_run() {
    let ids: Vec<u32> = (0..32).map(|i| i * 13 % 512).collect();
    let logits = |name: &str| {
        let model = load(&repository().join("golden/checkpoints").join(name)).unwrap();
        run(&model, &ids, [ids.len()]).unwrap()
    };
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
    let original = logits("tiny-bf16");
    for (name, least) in
        [("tiny-int8", 0.999), ("tiny-nf4", 0.95), ("tiny-nf4-dq", 0.95), ("tiny-fp4", 0.93)]
    {
        let quantized = logits(name);
        let cosine = dot(&original, &quantized)
            / (dot(&original, &original) * dot(&quantized, &quantized)).sqrt();
        assert!(cosine > least && cosine < 1.0 - 1e-9, "{name}: {cosine}");
    }
}

#[test]
fn a_model_needs_its_config() {
    let checkpoint = golden("qwen3").join("model.safetensors");
    let error = load(&checkpoint).unwrap_err().to_string();
    assert!(error.contains("config.json"), "{error}");
}

/// What a tap saw.
struct Seen(Vec<(String, Vec<usize>)>);

impl Tap for Seen {
    fn input(&mut self, weight: &str, x: &Tensor) -> Result<()> {
        self.0.push((weight.into(), x.shape().to_vec()));
        Ok(())
    }
}

#[test]
fn a_tap_sees_every_linear_layer_and_its_input() {
    let checkpoint = Checkpoint::open(&golden("qwen3")).unwrap();
    let model = load(&golden("qwen3")).unwrap();
    let mut seen = Seen(Vec::new());
    let mut cache = model.new_cache(5).unwrap();
    model.forward(&[1, 2, 3], &mut cache, Logits::All, Some(&mut seen)).unwrap();
    let layer = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
    let names: Vec<&str> =
        seen.0.iter().filter_map(|(name, _)| name.split('.').rev().nth(1)).collect();
    assert_eq!(names, [&layer[..], &layer[..], &["lm_head"]].concat());
    for (name, shape) in &seen.0 {
        let columns = checkpoint.entry(name).unwrap().shape[1];
        assert_eq!(shape, &[3, columns], "{name}");
    }
}

/// Of a mixture, each expert sees the rows that were sent to it, and nothing else changes.
#[test]
fn a_tap_sees_what_each_expert_reads() {
    let (ids, expected) = expected("mixtral");
    let model = load(&golden("mixtral")).unwrap();
    let (mut seen, mut cache) = (Seen(Vec::new()), model.new_cache(40).unwrap());
    let logits = model.forward(&ids, &mut cache, Logits::All, Some(&mut seen)).unwrap();
    assert!(furthest(&model.device().read(&logits).unwrap(), &expected) < 1e-4);
    let rows = |layer: usize, part: &str| -> Vec<usize> {
        let of_layer = format!("model.layers.{layer}.block_sparse_moe.experts.");
        let mine = |name: &str| name.starts_with(&of_layer) && name.ends_with(part);
        seen.0.iter().filter(|(name, _)| mine(name)).map(|(_, shape)| shape[0]).collect()
    };
    for layer in 0..2 {
        let rows = ["w1.weight", "w2.weight", "w3.weight"].map(|part| rows(layer, part));
        assert!(rows[0].len() > 1 && rows[0] == rows[1] && rows[0] == rows[2], "{rows:?}");
        assert_eq!(rows[0].iter().sum::<usize>(), 2 * ids.len());
    }
}

#[test]
fn a_pass_that_fails_leaves_the_cache_as_it_was() {
    let (ids, expected) = expected("mistral-window");
    let model = load(&golden("mistral-window")).unwrap();
    let mut cache = model.new_cache(ids.len()).unwrap();
    let mut pass = |ids: &[u32]| -> Result<Vec<f32>> {
        let logits = model.forward(ids, &mut cache, Logits::Last, None)?;
        Ok(model.device().read(&logits)?)
    };
    pass(&ids[..30]).unwrap();
    for (bad, word) in [(&[][..], "token"), (&[3, 96], "96"), (&ids[..11], "40 positions")] {
        let error = pass(bad).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
    let last = pass(&ids[30..]).unwrap();
    assert!(furthest(&last, &expected[expected.len() - last.len()..]) < 1e-4);

    let mut foreign = load(&golden("qwen3")).unwrap().new_cache(40).unwrap();
    assert!(model.forward(&ids, &mut foreign, Logits::Last, None).is_err());
}

#[test]
fn a_cache_beyond_memory_is_refused_with_its_bytes() {
    let model = load(&golden("qwen2-tied")).unwrap();
    // 2 layers, 2 heads of 8 keys and 8 values, 4 bytes each.
    let error = model.new_cache(1 << 50).err().unwrap().to_string();
    assert!(error.contains(&(256u64 << 50).to_string()), "{error}");
    assert!(error.contains("--max-context"), "{error}");
    assert!(model.new_cache(usize::MAX).is_err());
}

#[test]
fn size_counts_tied_weights_once() {
    let tied = load(&golden("qwen2-tied")).unwrap();
    let checkpoint = Checkpoint::open(&golden("qwen2-tied")).unwrap();
    let bytes: u64 = checkpoint.entries().iter().map(|entry| entry.bytes).sum();
    assert_eq!((tied.bytes(), tied.bits_per_weight()), (bytes, 16.0));
}

/// Two of five experts for a token, all for many.
#[test]
fn a_pass_reads_the_experts_that_tokens_choose() {
    let model = load(&golden("mixtral")).unwrap();
    let experts = 2 * 5 * 3 * 32 * 56 * 2;
    assert_eq!(model.bytes_read(1), model.bytes() - experts / 5 * 3);
    assert_eq!([3, usize::MAX].map(|tokens| model.bytes_read(tokens)), [model.bytes(); 2]);
    let dense = load(&golden("qwen3")).unwrap();
    assert_eq!(dense.bytes_read(1), dense.bytes());
}

#[test]
fn progress_ends_at_the_total() {
    let checkpoint = Checkpoint::open(&golden("qwen3")).unwrap();
    let mut calls: Vec<(u64, u64)> = Vec::new();
    let progress = &mut |done, total| calls.push((done, total));
    Model::load(&checkpoint, crate::cpu(lowbit::DType::F32), progress).unwrap();
    assert!(calls.windows(2).all(|pair| pair[0].0 < pair[1].0));
    let &(done, total) = calls.last().unwrap();
    assert_eq!(done, total);
}
