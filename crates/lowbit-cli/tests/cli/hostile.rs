//! Inputs that are missing, damaged or malicious: one line, status 1, nothing left behind.

use std::fs;
use std::path::Path;

use crate::support::{lowbit, names, temp, text, wave, write_tensors};

/// Quantizing `file` must fail with those words and leave the directory as it is.
#[track_caller]
fn refuses(file: &Path, words: &[&str]) {
    let directory = file.parent().expect("a directory");
    let before = names(directory);
    let out = directory.join("out");
    lowbit(&["quantize", &text(file), &text(&out)]).fails(1, words);
    assert_eq!(names(directory), before, "something was left behind");
}

#[test]
fn a_weight_that_is_not_finite_is_named() {
    for (bad, word) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (f32::NEG_INFINITY, "-inf")] {
        let temp = temp();
        let file = temp.path().join("bad.safetensors");
        let mut numbers = wave(256);
        numbers[77] = bad;
        write_tensors(
            &file,
            &[("good.weight", &[256], &wave(256)), ("bad.weight", &[4, 64], &numbers)],
        );
        refuses(&file, &["bad.weight", word, "77"]);
    }
}

#[test]
fn damaged_files_are_refused() {
    let temp = temp();
    let file = temp.path().join("x.safetensors");
    write_tensors(&file, &[("a.weight", &[64, 64], &wave(64 * 64))]);
    let whole = fs::read(&file).expect("a file");
    let mut lying = whole.clone();
    lying[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    let shape = whole.windows(7).position(|w| w == b"[64,64]").expect("the shape");
    let mut wrong = whole.clone();
    wrong[shape..shape + 7].copy_from_slice(b"[64,65]");
    for damaged in [&whole[..whole.len() - 5], &whole[..20], &whole[..3], &[], &lying, &wrong] {
        fs::write(&file, damaged).expect("a file");
        refuses(&file, &["x.safetensors"]);
        lowbit(&["inspect", &text(&file)]).fails(1, &["x.safetensors"]);
    }
}

#[test]
fn a_truncated_or_missing_shard_is_named() {
    let temp = temp();
    let model = temp.path().join("model");
    fs::create_dir(&model).expect("a directory");
    fs::write(model.join("config.json"), r#"{"model_type": "llama"}"#).expect("a file");
    let index = r#"{"weight_map": {"a.weight": "model-00002-of-00002.safetensors"}}"#;
    fs::write(model.join("model.safetensors.index.json"), index).expect("a file");
    refuses(&model, &["model-00002-of-00002.safetensors"]);
}

#[test]
fn paths_that_are_not_there_are_named() {
    let temp = temp();
    let missing = temp.path().join("missing\nthing");
    let missing = text(&missing);
    for arguments in [
        &["quantize", &*missing, "out"][..],
        &["dequantize", &missing, "out"],
        &["inspect", &missing],
        &["generate", &missing, "--prompt", "x"],
        &["chat", &missing],
        &["bench", "model", &missing],
        &["eval", "models/tinybard", "--text", &missing],
        &["demo", "--model", &missing],
    ] {
        lowbit(arguments).fails(1, &[r"missing\nthing"]);
    }
    let nowhere = temp.path().join("no/where/out");
    lowbit(&["quantize", "models/tinybard", &text(&nowhere)]).fails(1, &["where"]);
}

#[test]
fn names_in_files_do_not_steer_the_terminal() {
    let temp = temp();
    let file = temp.path().join("x.safetensors");
    write_tensors(&file, &[("\u{1b}]0;owned\u{7}.weight", &[64], &wave(64))]);
    lowbit(&["inspect", &text(&file)]).succeeds();
    let mut bad = wave(64);
    bad[0] = f32::NAN;
    write_tensors(&file, &[("\u{1b}[31m.weight", &[64], &bad)]);
    refuses(&file, &["NaN"]);
}

#[test]
fn a_bare_file_is_no_model() {
    let file = "models/tinybard/model.safetensors";
    lowbit(&["generate", file, "--prompt", "x"]).fails(1, &["config.json"]);
}

#[test]
fn what_is_quantized_is_not_quantized_again_nor_what_is_not_dequantized() {
    let temp = temp();
    let out = temp.path().join("out");
    let out = text(&out);
    lowbit(&["quantize", "models/tinybard-nf4dq", &out]).fails(1, &["nf4", "dequantize"]);
    lowbit(&["dequantize", "models/tinybard", &out]).fails(1, &["nothing here to dequantize"]);
    lowbit(&["quantize", "models/tinybard", "models/tinybard", "--force"]).fails(1, &["tinybard"]);
}
