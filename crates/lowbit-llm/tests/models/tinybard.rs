//! The shipped model against transformers and bitsandbytes.

use std::ops::ControlFlow;
use std::path::Path;

use lowbit::{DType, formats};
use lowbit_llm::convert::{QuantizeOptions, quantize};
use lowbit_llm::eval::{Evaluation, evaluate};
use lowbit_llm::generate::{Options, Session};
use lowbit_llm::sampling::Sampling;
use lowbit_llm::{Checkpoint, Model, Tokenizer};
use serde_json::Value;

use crate::{cpu, golden, golden_json, load, repository, tinybard};

const WINDOW: usize = 256;

fn validation() -> Vec<u32> {
    let text = std::fs::read_to_string(tinybard().join("validation.txt")).unwrap();
    Tokenizer::open(&tinybard()).unwrap().encode(&text).unwrap()
}

/// What transformers and bitsandbytes gave on CUDA.
fn reference() -> Value {
    let bytes = std::fs::read(tinybard().join("reference.json")).unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

fn nf4dq() -> Model {
    load(&repository().join("models/tinybard-nf4dq")).unwrap()
}

fn measure(model: &Model, reference: Option<&Model>, tokens: &[u32]) -> Evaluation {
    evaluate(model, reference, tokens, WINDOW, &mut |_, _| {}).unwrap()
}

fn close(got: f64, expected: &Value, relative: f64) {
    let expected = expected.as_f64().unwrap();
    assert!((got / expected - 1.0).abs() < relative, "{got} for {expected}");
}

/// Four windows, in f32 on both sides.
#[test]
fn figures_are_those_of_transformers_in_f32() {
    let expected: Value = golden_json("tinybard.json");
    let tokens = validation();
    assert_eq!(tokens.len() as u64, expected["text_tokens"].as_u64().unwrap());
    let windows = expected["windows"].as_u64().unwrap() as usize;
    let tokens = &tokens[..windows * WINDOW];

    let original = load(&tinybard()).unwrap();
    let own = measure(&original, None, tokens);
    assert_eq!(own.tokens, windows * (WINDOW - 1));
    close(own.perplexity, &expected["perplexity"], 1e-5);
    assert_eq!((own.kl, own.top1_agreement, own.bits_per_weight), (None, None, 16.0));

    let quantized = measure(&nf4dq(), Some(&original), tokens);
    let expected = &expected["nf4dq"];
    close(quantized.perplexity, &expected["perplexity"], 1e-5);
    close(quantized.kl.unwrap(), &expected["kl"], 1e-3);
    close(quantized.top1_agreement.unwrap(), &expected["top1_agreement"], 2.5e-3);

    let same = measure(&original, Some(&original), tokens);
    assert_eq!((same.kl, same.top1_agreement), (Some(0.0), Some(1.0)));
}

/// The whole text, against what bitsandbytes' CUDA kernels gave.
fn perplexity_is_that_of_bitsandbytes(name: &str, directory: &Path) {
    let checkpoint = Checkpoint::open(directory).unwrap();
    let model = Model::load(&checkpoint, cpu(DType::BF16), &mut |_, _| {}).unwrap();
    let got = measure(&model, None, &validation());
    let expected = &reference()["ppl"][name];
    assert_eq!(got.tokens as u64, expected[1].as_u64().unwrap());
    close(got.perplexity, &expected[0], 5e-3);
}

/// The same for the model as our own quantizer leaves it.
fn quantized_perplexity_is_that_of_bitsandbytes(name: &str, format: &str) {
    let directory = tempfile::tempdir().unwrap();
    let quantized = directory.path().join("quantized");
    let options = QuantizeOptions::new(formats::by_name(format).unwrap());
    quantize(&tinybard(), &quantized, &options, &()).unwrap();
    perplexity_is_that_of_bitsandbytes(name, &quantized);
}

#[test]
fn perplexity_in_bf16() {
    perplexity_is_that_of_bitsandbytes("bf16", &tinybard());
}

#[test]
fn perplexity_of_the_checkpoint_from_cuda() {
    perplexity_is_that_of_bitsandbytes("nf4dq", &repository().join("models/tinybard-nf4dq"));
}

#[test]
fn perplexity_in_nf4() {
    quantized_perplexity_is_that_of_bitsandbytes("nf4", "nf4");
}

#[test]
fn perplexity_in_fp4() {
    quantized_perplexity_is_that_of_bitsandbytes("fp4", "fp4");
}

#[test]
fn perplexity_in_int8() {
    quantized_perplexity_is_that_of_bitsandbytes("int8", "int8");
}

fn greedy(directory: &Path, prompt: &[u32], count: usize) -> Vec<u32> {
    let checkpoint = Checkpoint::open(directory).unwrap();
    let model = Model::load(&checkpoint, cpu(DType::BF16), &mut |_, _| {}).unwrap();
    let options = Options {
        max_new_tokens: count,
        sampling: Sampling::GREEDY,
        eos_token_ids: model.config().eos_token_ids.clone(),
    };
    let mut session = Session::new(&model, prompt.len() + count).unwrap();
    session.generate(prompt, &options, &mut |_| ControlFlow::Continue(())).unwrap().tokens
}

#[test]
fn greedy_text_is_that_of_transformers() {
    let reference = reference();
    let ids = |value: &Value| -> Vec<u32> {
        value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
    };
    let prompt = ids(&reference["prompt_ids"]);
    for (name, directory) in [("bf16", "models/tinybard"), ("nf4dq", "models/tinybard-nf4dq")] {
        let expected = ids(&reference["greedy"][name]);
        let answer = greedy(&repository().join(directory), &prompt, expected.len() - prompt.len());
        assert_eq!([&prompt[..], &answer].concat(), expected, "{name}");
    }
}

#[test]
fn texts_and_windows_that_do_not_fit_are_refused() {
    let model = load(&golden("qwen3")).unwrap();
    let other = load(&tinybard()).unwrap();
    let tokens = [1, 2, 3, 4, 5, 6, 7];
    let error = |reference, tokens: &[u32], window| {
        evaluate(&model, reference, tokens, window, &mut |_, _| {}).unwrap_err().to_string()
    };
    assert!(error(None, &tokens, 1).contains("window of 2"));
    assert!(error(None, &tokens, 0).contains("window of 2"));
    assert!(error(None, &tokens, 8).contains("8 tokens or more, got 7"));
    assert!(error(None, &[], 2).contains("got 0"));
    assert!(error(Some(&other), &tokens, 2).contains("vocabulary of 96, got 1024"));
    assert!(error(None, &[1, 2000], 2).contains("2000"));
    // A window cuts what is seen: the rest of the text changes nothing.
    let evaluation = |tokens: &[u32]| evaluate(&model, None, tokens, 3, &mut |_, _| {}).unwrap();
    assert_eq!(evaluation(&tokens).tokens, 4);
    assert_eq!(evaluation(&tokens), evaluation(&tokens[..6]));
    let mut calls = Vec::new();
    evaluate(&model, None, &tokens, 3, &mut |done, total| calls.push((done, total))).unwrap();
    assert_eq!(calls, [(0, 2), (1, 2), (2, 2)]);
}
