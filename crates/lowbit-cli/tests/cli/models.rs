//! eval, generate, chat and demo on the shipped model.

use std::fs;

use serde_json::Value;

use crate::support::{gpu, lowbit, lowbit_with_input, root, start, temp, text};

const MODEL: &str = "models/tinybard";
const QUANTIZED: &str = "models/tinybard-nf4dq";

/// The first bytes of the held-out text, in a file.
fn short_text(directory: &tempfile::TempDir, bytes: usize) -> String {
    let whole = fs::read_to_string(root().join(MODEL).join("validation.txt")).expect("the text");
    let path = directory.path().join("text.txt");
    fs::write(&path, &whole[..bytes]).expect("a file");
    text(&path).into_owned()
}

#[test]
fn greedy_text_is_that_of_transformers() {
    let json = fs::read(root().join(MODEL).join("reference.json")).expect("the reference");
    let reference: Value = serde_json::from_slice(&json).expect("JSON");
    let arguments = ["generate", MODEL, "--prompt", "ROMEO:\n", "--temperature", "0", "--json"];
    let made = lowbit(&[&arguments[..], &["--max-new-tokens", "64"]].concat()).json();
    let expected = reference["greedy"]["bf16"].as_array().expect("a list");
    let prompt = made["prompt_tokens"].as_array().expect("a list");
    let tokens = made["tokens"].as_array().expect("a list");
    assert_eq!(prompt, reference["prompt_ids"].as_array().expect("a list"));
    assert_eq!(tokens.len(), 64);
    // Two logits may tie, and rounding decide, after so many.
    let same = tokens.iter().zip(&expected[prompt.len()..]).take_while(|(a, b)| a == b).count();
    assert!(same >= 40, "{same} tokens agree");
    assert!(made["text"].as_str().expect("text").starts_with("I am a bawd,"));
    assert!(made["prefill_tok_s"].as_f64() > Some(0.0));
    assert!(made["decode_tok_s"].as_f64() > Some(0.0));
}

#[test]
fn text_streams_as_json_has_it() {
    let arguments = ["generate", MODEL, "--prompt", "ROMEO:", "--max-new-tokens", "12"];
    let streamed = lowbit(&arguments).succeeds();
    let whole = lowbit(&[&arguments[..], &["--json"]].concat()).json();
    assert_eq!(streamed.trim_end_matches('\n'), whole["text"].as_str().expect("text").trim_end());
    let piped = ["generate", MODEL, "--prompt", "-", "--max-new-tokens", "12"];
    assert_eq!(lowbit_with_input(&piped, "ROMEO:").succeeds(), streamed);
}

#[test]
fn a_gpu_writes_what_the_processor_writes() {
    let Some(gpu) = gpu() else { return };
    let on = |device: &str| {
        let arguments = ["generate", QUANTIZED, "--tokenizer", MODEL, "--prompt", "ROMEO:"];
        let more = ["--max-new-tokens", "24", "--device", device];
        lowbit(&[&arguments[..], &more].concat()).succeeds()
    };
    assert_eq!(on("cpu"), on(&gpu));
}

#[test]
fn seeds_repeat_and_differ() {
    let sample = |seed: &str| {
        let arguments = ["generate", MODEL, "--prompt", "JULIET:", "--max-new-tokens", "24"];
        lowbit(&[&arguments[..], &["--top-p", "0.95", "--seed", seed, "--threads", "1"]].concat())
            .succeeds()
    };
    assert_eq!(sample("1"), sample("1"));
    assert_ne!(sample("1"), sample("2"));
}

#[test]
fn generate_refuses_what_cannot_be() {
    let generate = |more: &[&str]| lowbit(&[&["generate", MODEL][..], more].concat());
    generate(&["--prompt", ""]).fails(1, &["prompt"]);
    generate(&["--prompt", "a b c d e f", "--max-context", "2"]).fails(1, &["--max-context"]);
    let huge = ["--prompt", "x", "--max-context", "1000000000000"];
    generate(&huge).fails(1, &["bytes", "--max-context"]);
    generate(&["--prompt", "x", "--device", "gpu:no such"]).fails(1, &["no GPU"]);
    generate(&["--prompt", "x", "--device", "tpu"]).fails(2, &["tpu", "cpu"]);
    lowbit(&["generate", QUANTIZED, "--prompt", "x"]).fails(1, &["tokenizer.json", "--tokenizer"]);
}

#[test]
fn another_models_tokenizer_can_be_named() {
    let arguments = ["generate", QUANTIZED, "--prompt", "ROMEO:\n", "--tokenizer", MODEL];
    let text = lowbit(&[&arguments[..], &["--max-new-tokens", "8"]].concat()).succeeds();
    assert!(text.starts_with("I am a bawd,"), "{text}");
}

#[test]
fn eval_measures_and_compares() {
    let temp = temp();
    let file = short_text(&temp, 6000);
    let eval = |more: &[&str]| lowbit(&[&["eval"][..], more, &["--text", &file]].concat());
    let alone = eval(&[MODEL, "--json"]).json();
    assert!((10.0..40.0).contains(&alone["perplexity"].as_f64().expect("a number")), "{alone}");
    assert_eq!(alone["tokens"].as_u64().expect("a number") % 255, 0);
    assert_eq!((&alone["kl"], &alone["top1_agreement"]), (&Value::Null, &Value::Null));
    assert_eq!(alone["bits_per_weight"], 16.0);

    let itself = eval(&[MODEL, "--reference", MODEL, "--json", "--max-windows", "1"]).json();
    assert!(itself["kl"].as_f64().expect("a number").abs() < 1e-9, "{itself}");
    assert_eq!((&itself["top1_agreement"], &itself["tokens"]), (&1.0.into(), &255.into()));

    let quantized = eval(&[QUANTIZED, "--reference", MODEL, "--json"]).json();
    assert!((1e-4..0.05).contains(&quantized["kl"].as_f64().expect("a number")), "{quantized}");
    assert!((0.85..1.0).contains(&quantized["top1_agreement"].as_f64().expect("a number")));

    let shown = eval(&[QUANTIZED, "--reference", MODEL]).succeeds();
    assert!(["perplexity", "KL divergence", "top-1"].iter().all(|w| shown.contains(w)), "{shown}");
}

#[test]
fn eval_refuses_texts_that_it_cannot_use() {
    let temp = temp();
    let file = short_text(&temp, 100);
    lowbit(&["eval", MODEL, "--text", &file]).fails(1, &["256", "--window"]);
    fs::write(temp.path().join("text.txt"), b"abc\xff").expect("a file");
    lowbit(&["eval", MODEL, "--text", &file]).fails(1, &["UTF-8", "byte 3"]);
}

#[test]
fn chat_answers_what_is_piped_in() {
    let arguments = ["chat", MODEL, "--max-new-tokens", "8", "--temperature", "0"];
    let said = lowbit_with_input(&arguments, "ROMEO:\n\nJULIET:\n").succeeds();
    assert!(said.starts_with("I am a bawd,"), "{said}");
    assert!(said.lines().count() >= 2, "{said}");
    assert_eq!(lowbit_with_input(&arguments, "/exit\nROMEO:\n").succeeds(), "");
    assert_eq!(lowbit_with_input(&arguments, "").succeeds(), "");
}

#[test]
fn a_conversation_may_be_longer_than_the_context() {
    let arguments = ["chat", MODEL, "--max-new-tokens", "16", "--max-context", "40"];
    let turns = "But soft, what light through yonder window breaks?\n".repeat(5);
    let said = lowbit_with_input(&arguments, &turns).succeeds();
    assert!(said.lines().count() >= 5, "{said}");
}

#[cfg(unix)]
#[test]
fn ctrl_c_at_the_prompt_ends_a_chat() {
    use std::io::{Read, Write};
    let mut child = start(&["chat", MODEL, "--max-new-tokens", "4"]);
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(b"ROMEO:\n").expect("the command reads");
    // Once it has answered, it waits for more.
    let mut first = [0];
    child.stdout.as_mut().expect("a pipe").read_exact(&mut first).expect("an answer");
    std::thread::sleep(std::time::Duration::from_millis(500));
    let id = child.id().to_string();
    let status = std::process::Command::new("kill").args(["-INT", &id]).status().expect("kill");
    assert!(status.success());
    assert_eq!(child.wait().expect("an end").code(), Some(130));
    drop(stdin);
}

#[test]
fn the_demo_runs_from_end_to_end() {
    let temp = temp();
    let file = short_text(&temp, 1200);
    let shown = lowbit(&["demo", "--text", &file]).succeeds();
    for words in ["9.38 MB", "2.81 MB", "perplexity", "nf4 dq", "mxfp4", "ROMEO:", "That took"] {
        assert!(shown.contains(words), "no {words:?} in: {shown}");
    }
    assert!(!shown.contains("dynamic8u"), "an unsigned format cannot hold weights");
    let widest = shown.lines().map(|line| line.chars().count()).max();
    assert!(widest <= Some(80), "{widest:?} columns: {shown}");
}
