//! The filters against transformers' on fixed logits.

use lowbit_llm::sampling::{Sampling, candidates};
use serde_json::Value;

use crate::golden_json;

#[test]
fn probabilities_are_those_of_transformers() {
    let cases: Vec<Value> = golden_json("sampling.json");
    assert_eq!(cases.len(), 10);
    for case in cases {
        let setting = |name: &str| case["settings"][name].as_f64().map(|x| x as f32);
        let settings = Sampling {
            temperature: setting("temperature").unwrap_or(1.0),
            top_k: setting("top_k").unwrap_or(0.0) as usize,
            top_p: setting("top_p").unwrap_or(1.0),
            min_p: setting("min_p").unwrap_or(0.0),
            repetition_penalty: setting("repetition_penalty").unwrap_or(1.0),
            seed: 0,
        };
        let numbers = |name: &str| -> Vec<f64> {
            case[name].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
        };
        let logits: Vec<f32> = numbers("logits").into_iter().map(|x| x as f32).collect();
        let history: Vec<u32> = numbers("history").into_iter().map(|x| x as u32).collect();
        let expected = numbers("probabilities");
        let mut got = vec![0.0; expected.len()];
        for candidate in candidates(&settings, &logits, &history).unwrap() {
            got[candidate.id as usize] = candidate.probability;
        }
        for (got, expected) in got.iter().zip(&expected) {
            assert!((got - expected).abs() < 1e-6, "{settings:?}: {got} for {expected}");
            assert_eq!(*got == 0.0, *expected == 0.0, "{settings:?}");
        }
    }
}
