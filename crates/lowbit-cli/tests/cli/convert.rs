//! quantize, dequantize and inspect.

use serde_json::Value;

use crate::support::{lowbit, names, start, temp, text, wave, write_tensors};

fn tensor<'a>(inspected: &'a Value, name: &str) -> &'a Value {
    let tensors = inspected["tensors"].as_array().expect("a list");
    tensors.iter().find(|t| t["name"] == name).expect("the tensor")
}

const LINEAR: &str = "model.layers.0.self_attn.q_proj.weight";

#[test]
fn a_model_is_quantized_inspected_and_brought_back() {
    let temp = temp();
    let (small, back) = (temp.path().join("small"), temp.path().join("back"));
    let (small, back) = (text(&small), text(&back));
    let told = lowbit(&["quantize", "models/tinybard", &small, "--double-quant"]).succeeds();
    for words in ["9.38 MB", "times smaller", "42 tensors, bf16 to nf4", "an embedding", "a norm"] {
        assert!(told.contains(words), "no {words:?} in: {told}");
    }
    assert_eq!(names(temp.path()), ["small"]);

    let inspected = lowbit(&["inspect", &small, "--json"]).json();
    let linear = tensor(&inspected, LINEAR);
    assert_eq!(linear["format"], "nf4");
    assert_eq!(linear["shape"], serde_json::json!([256, 256]));
    assert_eq!((&linear["block_size"], &linear["double_quantized"]), (&64.into(), &true.into()));
    let bits = linear["bits_per_weight"].as_f64().expect("a number");
    assert_eq!(bits, 8.0 * linear["bytes"].as_f64().expect("a number") / 65536.0);
    assert!((bits - 4.127).abs() < 0.01, "{bits}");
    let embedding = tensor(&inspected, "model.embed_tokens.weight");
    assert_eq!((&embedding["format"], &embedding["block_size"]), (&"bf16".into(), &Value::Null));
    let tensors = inspected["tensors"].as_array().expect("a list");
    let sum: u64 = tensors.iter().map(|t| t["bytes"].as_u64().expect("a number")).sum();
    assert_eq!(inspected["total"]["bytes"], sum);

    lowbit(&["dequantize", &small, &back]).succeeds();
    let inspected = lowbit(&["inspect", &back, "--json"]).json();
    assert_eq!(tensor(&inspected, LINEAR)["format"], "bf16");
    assert_eq!(inspected["total"]["bits_per_weight"], 16.0);
    lowbit(&["dequantize", &small, &back, "--force", "--dtype", "f32"]).succeeds();
    let inspected = lowbit(&["inspect", &back, "--json"]).json();
    assert_eq!(tensor(&inspected, LINEAR)["format"], "f32");
}

#[test]
fn what_exists_is_replaced_only_with_force() {
    let temp = temp();
    let out = temp.path().join("out");
    let arguments = ["quantize", "models/tinybard", &text(&out), "--format", "int8"];
    lowbit(&arguments).succeeds();
    lowbit(&arguments).fails(1, &["out", "exists"]);
    lowbit(&[&arguments[..], &["--force", "--threads", "1"]].concat()).succeeds();
}

#[test]
fn skip_and_include_choose_tensors() {
    let temp = temp();
    let out = temp.path().join("out");
    let out = text(&out);
    let chosen = ["--skip", r"q_proj", "--include", "embed_tokens"];
    let told = lowbit(&[&["quantize", "models/tinybard", &out][..], &chosen].concat()).succeeds();
    assert!(told.contains("6 tensors left: skipped as asked"), "{told}");
    let inspected = lowbit(&["inspect", &out, "--json"]).json();
    assert_eq!(tensor(&inspected, LINEAR)["format"], "bf16");
    assert_eq!(tensor(&inspected, "model.embed_tokens.weight")["format"], "nf4");
}

#[test]
fn of_a_bare_file_every_weight_is_quantized_that_can_be() {
    let temp = temp();
    let (file, out) = (temp.path().join("in.safetensors"), temp.path().join("out.safetensors"));
    let numbers = wave(3 * 50);
    write_tensors(
        &file,
        &[
            ("a.weight", &[3, 50], &numbers),
            ("a.bias", &[3], &numbers[..3]),
            ("norm.weight", &[50], &numbers[..50]),
        ],
    );
    let (file, out) = (text(&file), text(&out));
    let arguments = ["quantize", &*file, &*out, "--block-size", "32"];
    let told = lowbit(&arguments).succeeds();
    assert!(told.contains("2 tensors, f32 to nf4"), "{told}");
    assert!(lowbit(&["inspect", &out]).succeeds().contains("nf4 b32 "));
    let inspected = lowbit(&["inspect", &out, "--json"]).json();
    assert_eq!(tensor(&inspected, "a.weight")["block_size"], 32);
    assert_eq!(tensor(&inspected, "norm.weight")["format"], "nf4");
    assert_eq!(tensor(&inspected, "a.bias")["format"], "f32");

    // A scale per row needs rows.
    let told = lowbit(&["quantize", &file, &out, "--format", "int8", "--force"]).succeeds();
    assert!(told.contains("1 tensor, f32 to int8"), "{told}");
    assert!(told.contains("no rows"), "{told}");
}

#[test]
fn a_format_without_negative_numbers_says_so() {
    let temp = temp();
    let out = temp.path().join("out");
    let run = lowbit(&["quantize", "models/tinybard", &text(&out), "--format", "dynamic8u"]);
    assert_eq!(run.status, Some(0));
    assert_eq!(run.stderr, "note: dynamic8u holds no negative numbers; they become 0\n");
}

#[test]
fn inspect_shows_people_a_table() {
    let shown = lowbit(&["inspect", "models/tinybard-nf4dq"]).succeeds();
    let line = shown.lines().find(|line| line.starts_with(LINEAR)).expect("its line");
    assert!(["nf4 dq", "256x256", "33.8 kB", "4.127"].iter().all(|w| line.contains(w)));
    assert!(shown.contains("56 tensors, 4,689,152 weights"), "{shown}");
}

#[cfg(unix)]
#[test]
fn ctrl_c_leaves_nothing_behind() {
    let temp = temp();
    let (file, out) = (temp.path().join("in.safetensors"), temp.path().join("out.safetensors"));
    let numbers = vec![0.5; 1 << 20];
    let tensor_names: Vec<String> = (0..40).map(|i| format!("{i}.weight")).collect();
    let tensors: Vec<(&str, &[usize], &[f32])> =
        tensor_names.iter().map(|name| (name.as_str(), &[1 << 20][..], &numbers[..])).collect();
    write_tensors(&file, &tensors);
    let mut child = start(&["quantize", &text(&file), &text(&out), "--threads", "1"]);
    while names(temp.path()).len() == 1 {
        std::thread::sleep(std::time::Duration::from_millis(1));
        assert_eq!(child.try_wait().expect("a status"), None, "it ended before it began");
    }
    let id = child.id().to_string();
    std::process::Command::new("kill").args(["-INT", &id]).status().expect("kill");
    assert_eq!(child.wait().expect("an end").code(), Some(130));
    assert_eq!(names(temp.path()), ["in.safetensors"]);
}
