//! Answers: where they end, that a session reuses its cache, and what is refused.

use std::fs;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

use lowbit::DType;
use lowbit_llm::generate::{GenerationDefaults, Options, Session, Stop};
use lowbit_llm::models::Logits;
use lowbit_llm::sampling::Sampling;
use lowbit_llm::{Checkpoint, Config, Model};
use serde_json::json;

use crate::counting::Counting;
use crate::logits::{MODELS, words};
use crate::{cpu, golden, golden_json, load};

fn model() -> Model {
    load(&golden("mistral-window")).unwrap()
}

fn options(max_new_tokens: usize) -> Options {
    Options { max_new_tokens, sampling: Sampling::GREEDY, eos_token_ids: Vec::new() }
}

fn go_on(_: u32) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

const PROMPT: [u32; 5] = [5, 17, 80, 3, 41];

/// Greedy tokens the slow way: a fresh cache for each.
fn slowly(model: &Model, prompt: &[u32], count: usize) -> Vec<u32> {
    let mut ids = prompt.to_vec();
    for _ in 0..count {
        let mut cache = model.new_cache(ids.len()).unwrap();
        let logits = model.forward(&ids, &mut cache, Logits::Last, None).unwrap();
        let logits = model.device().read(&logits).unwrap();
        let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap();
        ids.push(best as u32);
    }
    ids.split_off(prompt.len())
}

#[test]
fn greedy_takes_the_likeliest_token_each_time() {
    let model = model();
    let expected = slowly(&model, &PROMPT, 12);
    let mut session = Session::new(&model, 64).unwrap();
    let mut seen = Vec::new();
    let answer = session
        .generate(&PROMPT, &options(12), &mut |id| {
            seen.push(id);
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(answer.tokens, expected);
    assert_eq!(seen, expected);
    assert_eq!(answer.stop, Stop::MaxNewTokens);
    assert_eq!((answer.prefill_tokens, answer.decode_steps), (5, 11));
    assert!(answer.prefill_tok_s() > 0.0 && answer.decode_tok_s() > 0.0);
    // A penalty of 1 and one candidate choose the same on the other path.
    let sampling = Sampling { temperature: 0.7, top_k: 1, ..Sampling::GREEDY };
    let again = Session::new(&model, 64).unwrap().generate(
        &PROMPT,
        &Options { sampling, ..options(12) },
        &mut go_on,
    );
    assert_eq!(again.unwrap().tokens, expected);
}

/// Eight tokens, and what transformers makes of them.
#[test]
fn greedy_tokens_are_those_of_transformers() {
    for name in MODELS {
        let expected: Vec<u32> =
            words(name, "greedy").into_iter().map(u32::from_le_bytes).collect();
        let model = load(&golden(name)).unwrap();
        let mut session = Session::new(&model, expected.len()).unwrap();
        let options = options(expected.len() - 8);
        let answer = session.generate(&expected[..8], &options, &mut go_on).unwrap();
        assert_eq!(answer.tokens, expected[8..], "{name}");
    }
}

/// A device may queue a whole token: the model waits for it once, and greedy for one number.
#[test]
fn a_token_is_read_back_once() {
    let device = Arc::new(Counting { inner: cpu(DType::F32), reads: Mutex::default() });
    let checkpoint = Checkpoint::open(&golden("mistral-window")).unwrap();
    let model = Model::load(&checkpoint, device.clone(), &mut |_, _| {}).unwrap();
    let sampling = Sampling { temperature: 1.0, ..Sampling::GREEDY };
    for (options, numbers) in [(options(5), 1), (Options { sampling, ..options(5) }, 96)] {
        let mut session = Session::new(&model, 64).unwrap();
        session.generate(&PROMPT, &options, &mut go_on).unwrap();
        assert_eq!(std::mem::take(&mut *device.reads.lock().unwrap()), [numbers; 5]);
    }
}

#[test]
fn a_session_computes_only_what_is_new() {
    let model = model();
    let mut session = Session::new(&model, 64).unwrap();
    let first = session.generate(&PROMPT, &options(6), &mut go_on).unwrap();
    let longer = [&PROMPT[..], &first.tokens, &[9, 8]].concat();
    let second = session.generate(&longer, &options(6), &mut go_on).unwrap();
    // The last token of an answer has not been through the model.
    assert_eq!(second.prefill_tokens, 3);
    assert_eq!(second.tokens, slowly(&model, &longer, 6));
    // Another conversation, then the same prompt once more.
    let other = [5, 17, 2];
    let third = session.generate(&other, &options(6), &mut go_on).unwrap();
    assert_eq!((third.prefill_tokens, third.tokens), (1, slowly(&model, &other, 6)));
    let fourth = session.generate(&other, &options(6), &mut go_on).unwrap();
    assert_eq!((fourth.prefill_tokens, fourth.tokens), (1, slowly(&model, &other, 6)));
}

#[test]
fn answers_end_for_four_reasons() {
    let model = model();
    let expected = slowly(&model, &PROMPT, 8);
    let answer =
        |max_context: usize, options: Options, callback: &mut dyn FnMut(u32) -> ControlFlow<()>| {
            let answer =
                Session::new(&model, max_context).unwrap().generate(&PROMPT, &options, callback);
            let answer = answer.unwrap();
            (answer.tokens, answer.stop)
        };
    assert_eq!(answer(64, options(0), &mut go_on), (vec![], Stop::MaxNewTokens));
    assert_eq!(answer(64, options(3), &mut go_on), (expected[..3].to_vec(), Stop::MaxNewTokens));

    let eos = expected[4];
    let until = expected.iter().position(|id| *id == eos).unwrap();
    let with_eos = Options { eos_token_ids: vec![95, eos], ..options(8) };
    assert_eq!(answer(64, with_eos, &mut go_on), (expected[..until].to_vec(), Stop::EndOfText));

    // Seven positions: five of the prompt, two of the answer, and a last token that needs none.
    assert_eq!(answer(7, options(8), &mut go_on), (expected[..3].to_vec(), Stop::ContextFull));
    assert_eq!(answer(7, options(3), &mut go_on), (expected[..3].to_vec(), Stop::MaxNewTokens));

    let mut left = 2;
    let mut two = |_| {
        left -= 1;
        if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    assert_eq!(answer(64, options(8), &mut two), (expected[..2].to_vec(), Stop::Interrupted));
}

#[test]
fn seeds_decide_sampled_answers() {
    let model = model();
    let answer = |seed| {
        let sampling = Sampling { temperature: 1.5, seed, ..Sampling::GREEDY };
        let mut session = Session::new(&model, 64).unwrap();
        let answer = session.generate(&PROMPT, &Options { sampling, ..options(20) }, &mut go_on);
        answer.unwrap().tokens
    };
    assert_eq!(answer(1), answer(1));
    assert_ne!(answer(1), answer(2));
}

#[test]
fn a_strong_penalty_forbids_repeats() {
    let model = model();
    let sampling = Sampling { repetition_penalty: 1e9, ..Sampling::GREEDY };
    let mut session = Session::new(&model, 64).unwrap();
    let options = Options { sampling, ..options(30) };
    let answer = session.generate(&PROMPT, &options, &mut go_on).unwrap();
    let mut all = [&PROMPT[..], &answer.tokens].concat();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), 35);
}

#[test]
fn prompts_that_do_not_fit_are_refused() {
    let model = model();
    let mut session = Session::new(&model, 4).unwrap();
    let mut error = |prompt: &[u32], options: &Options| {
        session.generate(prompt, options, &mut go_on).unwrap_err().to_string()
    };
    assert!(error(&PROMPT, &options(1)).contains("--max-context"));
    assert!(error(&[], &options(1)).contains("1 to 4 tokens"));
    assert!(error(&[200], &options(1)).contains("200"));
    let bad = Options { sampling: Sampling { top_p: 2.0, ..Sampling::GREEDY }, ..options(1) };
    assert!(error(&[1], &bad).contains("top_p"));
    // The session still works.
    assert_eq!(session.generate(&[7], &options(2), &mut go_on).unwrap().tokens.len(), 2);
}

#[test]
fn generation_config_overrides_config() {
    let config = Config::parse(&golden_json("llama-llama3-rope/config.json")).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let open = |json: Option<serde_json::Value>| {
        if let Some(json) = json {
            fs::write(directory.path().join("generation_config.json"), json.to_string()).unwrap();
        }
        GenerationDefaults::open(directory.path(), &config)
    };
    let none = open(None).unwrap();
    assert_eq!((none.eos_token_ids, none.sampling), (vec![1, 2], None));
    let greedy = open(Some(json!({ "eos_token_id": 7, "temperature": 0.6 }))).unwrap();
    assert_eq!((greedy.eos_token_ids, greedy.sampling), (vec![7], Some(Sampling::GREEDY)));
    let sampled = json!({ "do_sample": true, "temperature": 0.6, "top_p": 0.9, "min_p": 0.0 });
    let sampled = open(Some(sampled)).unwrap();
    let expected = Sampling { temperature: 0.6, top_k: 50, top_p: 0.9, ..Sampling::GREEDY };
    assert_eq!((sampled.eos_token_ids, sampled.sampling), (vec![1, 2], Some(expected)));
    let top_k = open(Some(json!({ "do_sample": true, "top_k": 0 }))).unwrap().sampling.unwrap();
    assert_eq!((top_k.top_k, top_k.temperature), (0, 1.0));
    for bad in [json!({ "do_sample": true, "top_p": 3 }), json!({ "eos_token_id": "x" }), json!([])]
    {
        assert!(open(Some(bad.clone())).is_err(), "{bad}");
    }
}
