//! Text to tokens and back, on the shipped tokenizer.

use std::fs;

use lowbit_llm::{Result, Tokenizer};
use serde_json::{Value, json};

use crate::tinybard;

#[test]
fn text_survives_the_round_trip() {
    let tokenizer = Tokenizer::open(&tinybard()).unwrap();
    for text in ["", "KING HENRY:\n", "  two  spaces ", "naïve — 日本語 🙂\u{0}", "<s>"] {
        let ids = tokenizer.encode(text).unwrap();
        let expected = if text == "<s>" { "" } else { text };
        assert_eq!(tokenizer.decode(&ids).unwrap(), expected);
    }
    assert_eq!(tokenizer.encode("<s>").unwrap(), [0]);
    assert_eq!(tokenizer.eos_token_id(), Some(1));
    assert_eq!(tokenizer.vocab_size(), 1024);
}

#[test]
fn a_stream_shows_whole_characters_only() {
    let tokenizer = Tokenizer::open(&tinybard()).unwrap();
    let text = "O naïve — 日本語 🙂 é\n\nend";
    let ids = tokenizer.encode(text).unwrap();
    let mut stream = tokenizer.stream();
    let mut shown = String::new();
    for id in &ids {
        shown += &stream.push(*id).unwrap();
        assert!(text.starts_with(&shown), "{shown:?}");
    }
    // Only what may still be a part of a character is held back.
    assert_eq!(shown, text);
    assert_eq!(stream.finish().unwrap(), "");
}

#[test]
fn a_stream_ends_with_the_bytes_it_held_back() {
    let tokenizer = Tokenizer::open(&tinybard()).unwrap();
    let ids = tokenizer.encode("a🙂").unwrap();
    assert_eq!(ids.len(), 5, "the smile is four tokens of one byte");
    let mut stream = tokenizer.stream();
    let pushed: String = ids[..4].iter().map(|id| stream.push(*id).unwrap()).collect();
    assert_eq!(pushed, "a");
    assert_eq!(stream.finish().unwrap(), "\u{fffd}");

    // Bytes that never become a character do not hold back the text for ever.
    let mut stream = tokenizer.stream();
    let garbage: String = (0..40).map(|_| stream.push(ids[2]).unwrap()).collect();
    assert!(garbage.chars().count() > 20, "{garbage:?}");
}

fn with_config(config: Value) -> Result<Tokenizer> {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::copy(tinybard().join("tokenizer.json"), at("tokenizer.json")).unwrap();
    fs::write(at("tokenizer_config.json"), config.to_string()).unwrap();
    Tokenizer::open(directory.path())
}

#[test]
fn bos_is_added_only_where_the_tokenizer_says_so() {
    let ids = |config| with_config(config).unwrap().encode("the").unwrap();
    let plain = ids(json!({ "bos_token": "<s>" }));
    assert_eq!(plain.len(), 1);
    assert_eq!(ids(json!({ "bos_token": "<s>", "add_bos_token": false })), plain);
    assert_eq!(ids(json!({ "bos_token": null, "add_bos_token": true })), plain);
    let both = json!({ "add_bos_token": true, "bos_token": { "content": "<s>" },
                       "add_eos_token": true, "eos_token": "</s>" });
    assert_eq!(ids(both.clone()), [&[0], &plain[..], &[1]].concat());
    let rendered = with_config(both).unwrap().encode_rendered("<s>the").unwrap();
    assert_eq!(rendered, [&[0], &plain[..]].concat());
    let foreign = json!({ "add_bos_token": true, "bos_token": "<|begin|>" });
    let error = with_config(foreign).unwrap_err().to_string();
    assert!(error.contains("<|begin|>"), "{error}");
}

#[test]
fn a_text_is_neither_cut_nor_padded() {
    let directory = tempfile::tempdir().unwrap();
    let mut json: Value =
        serde_json::from_slice(&fs::read(tinybard().join("tokenizer.json")).unwrap()).unwrap();
    json["truncation"] = json!({ "direction": "Right", "max_length": 4, "strategy": "LongestFirst",
                                 "stride": 0 });
    json["padding"] = json!({ "strategy": { "Fixed": 64 }, "direction": "Right",
                              "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0,
                              "pad_token": "<s>" });
    fs::write(directory.path().join("tokenizer.json"), json.to_string()).unwrap();
    let text = "Once more unto the breach, dear friends, once more";
    let ids = Tokenizer::open(directory.path()).unwrap().encode(text).unwrap();
    assert_eq!(ids, Tokenizer::open(&tinybard()).unwrap().encode(text).unwrap());
}

#[test]
fn broken_files_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let error = |text: Option<&str>| {
        if let Some(text) = text {
            fs::write(directory.path().join("tokenizer.json"), text).unwrap();
        }
        Tokenizer::open(directory.path()).unwrap_err().to_string()
    };
    for text in [None, Some(""), Some("{}"), Some("{\"model\": {\"type\": \"BPE\"}}")] {
        assert!(error(text).contains("tokenizer.json"), "{text:?}");
    }
    assert!(with_config(json!([])).is_err());
}
