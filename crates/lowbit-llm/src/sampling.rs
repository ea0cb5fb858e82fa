//! From logits to the next token, with the filters of transformers in its order: repetition
//! penalty, temperature, top-k, top-p, min-p.
//!
//! Random numbers come from ChaCha8 (`rand`'s portable generator), keyed with the seed itself and
//! read as 53-bit fractions: the same seed gives the same text in every release, as long as the
//! logits are the same.

use std::collections::HashSet;

use rand::rngs::ChaCha8Rng;
use rand::{Rng, SeedableRng};

use crate::{Error, Result};

/// How the next token is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Divisor of the logits; 0 takes the likeliest token (greedy) and ignores the fields from
    /// `top_k` to `min_p`.
    pub temperature: f32,
    /// Keeps this many of the likeliest tokens, and any as likely as the last of them; 0: all.
    pub top_k: usize,
    /// Keeps the likeliest tokens that together reach this probability; 1: all.
    pub top_p: f32,
    /// Keeps tokens at least this fraction as likely as the likeliest; 0: all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens that the prompt or the answer
    /// already has; 1: no change.
    pub repetition_penalty: f32,
    /// Where the random numbers begin.
    pub seed: u64,
}

impl Sampling {
    /// The likeliest token, always.
    pub const GREEDY: Sampling = Sampling {
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        repetition_penalty: 1.0,
        seed: 0,
    };

    /// Whether the next token is that of the largest unchanged logit, so that the device can find
    /// it and logits need not be read back.
    pub fn is_argmax(&self) -> bool {
        self.temperature == 0.0 && self.repetition_penalty == 1.0
    }

    /// # Errors
    /// [`Error::Argument`] for a setting out of its range.
    pub fn check(&self) -> Result<()> {
        let checks = [
            ("temperature", "0 or more", self.temperature, self.temperature >= 0.0),
            ("top_p", "above 0, at most 1", self.top_p, self.top_p > 0.0 && self.top_p <= 1.0),
            ("min_p", "from 0 to 1", self.min_p, (0.0..=1.0).contains(&self.min_p)),
            (
                "repetition_penalty",
                "above 0",
                self.repetition_penalty,
                self.repetition_penalty > 0.0,
            ),
        ];
        for (name, range, value, fits) in checks {
            if !fits || !value.is_finite() {
                let expected = format!("{name} {range}");
                return Err(Error::argument("sampling", expected, value.to_string(), "change it"));
            }
        }
        Ok(())
    }
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling::GREEDY
    }
}

/// A token that may come next.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// Its id.
    pub id: u32,
    /// Its probability; those of all candidates sum to 1.
    pub probability: f64,
}

/// Draws tokens.
#[derive(Debug)]
pub struct Sampler {
    settings: Sampling,
    random: ChaCha8Rng,
}

impl Sampler {
    /// # Errors
    /// As [`Sampling::check`].
    pub fn new(settings: Sampling) -> Result<Self> {
        settings.check()?;
        let mut key = [0; 32];
        key[..8].copy_from_slice(&settings.seed.to_le_bytes());
        Ok(Sampler { settings, random: ChaCha8Rng::from_seed(key) })
    }

    /// How tokens are drawn.
    pub fn settings(&self) -> &Sampling {
        &self.settings
    }

    /// The next token after `history`, given its logits `[V]`.
    ///
    /// # Errors
    /// As [`candidates`].
    pub fn sample(&mut self, logits: &[f32], history: &[u32]) -> Result<u32> {
        let candidates = candidates(&self.settings, logits, history)?;
        if let [only] = candidates.as_slice() {
            return Ok(only.id);
        }
        let fraction = (self.random.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        let mut below = 0.0;
        let chosen = candidates.iter().find(|candidate| {
            below += candidate.probability;
            fraction < below
        });
        // Rounding may leave the sum a hair under 1.
        Ok(chosen.or(candidates.last()).map_or(0, |candidate| candidate.id))
    }
}

/// The tokens that the settings keep, by id.
///
/// # Errors
/// [`Error::Argument`] without logits, or where one is NaN or none is finite.
pub fn candidates(settings: &Sampling, logits: &[f32], history: &[u32]) -> Result<Vec<Candidate>> {
    let mut scores = penalized(logits, history, settings.repetition_penalty);
    let max = scores.iter().map(|s| s.1).fold(f32::NEG_INFINITY, f32::max);
    if !max.is_finite() || scores.iter().any(|s| s.1.is_nan()) {
        let help = "the model's weights are damaged, or overflow in this precision";
        return Err(Error::argument("sampling", "finite logits", "NaN or infinity", help));
    }
    if settings.temperature == 0.0 {
        let first = scores.iter().find(|s| s.1 == max).map_or(0, |s| s.0);
        return Ok(vec![Candidate { id: first, probability: 1.0 }]);
    }
    for score in &mut scores {
        score.1 /= settings.temperature;
    }
    keep_top_k(&mut scores, settings.top_k);
    keep_top_p(&mut scores, settings.top_p);
    let mut candidates = softmax(&scores);
    let likeliest = candidates.iter().map(|c| c.probability).fold(0.0, f64::max);
    candidates.retain(|c| c.probability >= f64::from(settings.min_p) * likeliest);
    let sum: f64 = candidates.iter().map(|c| c.probability).sum();
    for candidate in &mut candidates {
        candidate.probability /= sum;
    }
    candidates.sort_unstable_by_key(|c| c.id);
    Ok(candidates)
}

/// A token and its logit.
type Score = (u32, f32);

fn penalized(logits: &[f32], history: &[u32], penalty: f32) -> Vec<Score> {
    let mut scores: Vec<Score> = (0..).zip(logits.iter().copied()).collect();
    if penalty != 1.0 {
        for id in history.iter().collect::<HashSet<_>>() {
            if let Some((_, score)) = scores.get_mut(*id as usize) {
                *score = if *score < 0.0 { *score * penalty } else { *score / penalty };
            }
        }
    }
    scores
}

fn keep_top_k(scores: &mut Vec<Score>, k: usize) {
    if (1..scores.len()).contains(&k) {
        let (_, last, _) = scores.select_nth_unstable_by(k - 1, |a, b| b.1.total_cmp(&a.1));
        let least = last.1;
        scores.retain(|s| s.1 >= least);
    }
}

/// From the least likely up, drops tokens while what is dropped sums to at most `1 - p`.
fn keep_top_p(scores: &mut Vec<Score>, p: f32) {
    if p >= 1.0 {
        return;
    }
    scores.sort_unstable_by(|a, b| a.1.total_cmp(&b.1).then(b.0.cmp(&a.0)));
    let mut dropped = 0.0;
    let kept_from = softmax(scores).iter().position(|c| {
        dropped += c.probability;
        dropped > 1.0 - f64::from(p)
    });
    scores.drain(..kept_from.unwrap_or(scores.len()).min(scores.len() - 1));
}

fn softmax(scores: &[Score]) -> Vec<Candidate> {
    let max = scores.iter().map(|s| s.1).fold(f32::NEG_INFINITY, f32::max);
    let weight = |score: f32| (f64::from(score) - f64::from(max)).exp();
    let sum: f64 = scores.iter().map(|s| weight(s.1)).sum();
    scores.iter().map(|&(id, s)| Candidate { id, probability: weight(s) / sum }).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn settings() -> impl Strategy<Value = Sampling> {
        (0.1f32..3.0, 0usize..40, 0.05f32..=1.0, 0.0f32..=1.0, 0.5f32..2.0, any::<u64>()).prop_map(
            |(temperature, top_k, top_p, min_p, repetition_penalty, seed)| Sampling {
                temperature,
                top_k,
                top_p,
                min_p,
                repetition_penalty,
                seed,
            },
        )
    }

    fn logits() -> impl Strategy<Value = Vec<f32>> {
        prop::collection::vec(-20.0f32..20.0, 1..60)
    }

    fn argmax(logits: &[f32]) -> u32 {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        logits.iter().position(|l| *l == max).unwrap() as u32
    }

    proptest! {
        #[test]
        fn probabilities_sum_to_one(
            s in settings(),
            logits in logits(),
            history in prop::collection::vec(0u32..80, 0..20),
        ) {
            let kept = candidates(&s, &logits, &history).unwrap();
            prop_assert!((kept.iter().map(|c| c.probability).sum::<f64>() - 1.0).abs() < 1e-9);
            prop_assert!(kept.windows(2).all(|pair| pair[0].id < pair[1].id));
            prop_assert!(kept.iter().all(|c| c.probability > 0.0 && (c.id as usize) < logits.len()));
        }

        #[test]
        fn top_k_keeps_the_k_largest(mut logits in logits(), k in 1usize..70) {
            logits.sort_unstable_by(|a, b| b.total_cmp(a));
            logits.dedup();
            let s = Sampling { temperature: 1.0, top_k: k, ..Sampling::GREEDY };
            let ids: Vec<u32> = candidates(&s, &logits, &[]).unwrap().iter().map(|c| c.id).collect();
            prop_assert_eq!(ids, (0..k.min(logits.len()) as u32).collect::<Vec<_>>());
        }

        #[test]
        fn top_p_keeps_the_fewest_that_reach_p(logits in logits(), p in 0.01f32..0.99) {
            let all = Sampling { temperature: 1.0, ..Sampling::GREEDY };
            let mut full = candidates(&all, &logits, &[]).unwrap();
            let kept = candidates(&Sampling { top_p: p, ..all }, &logits, &[]).unwrap();
            let mass: f64 =
                full.iter().filter(|c| kept.iter().any(|k| k.id == c.id)).map(|c| c.probability).sum();
            prop_assert!(mass >= f64::from(p) - 1e-9);
            full.retain(|c| kept.iter().any(|k| k.id == c.id));
            let least = full.iter().map(|c| c.probability).fold(f64::INFINITY, f64::min);
            prop_assert!(kept.len() == 1 || mass - least <= f64::from(p) + 1e-9);
        }

        #[test]
        fn min_p_keeps_what_is_likely_enough(logits in logits(), min_p in 0.0f32..=1.0) {
            let s = Sampling { temperature: 1.0, min_p, ..Sampling::GREEDY };
            let kept = candidates(&s, &logits, &[]).unwrap();
            let top = kept.iter().map(|c| c.probability).fold(0.0, f64::max);
            prop_assert!(kept.iter().all(|c| c.probability >= f64::from(min_p) * top * (1.0 - 1e-12)));
        }

        #[test]
        fn greedy_is_argmax(logits in logits(), seed in any::<u64>()) {
            let greedy = Sampling { seed, ..Sampling::GREEDY };
            let one = Sampling { temperature: 1.0, top_k: 1, ..greedy };
            let id = Sampler::new(greedy).unwrap().sample(&logits, &[]).unwrap();
            prop_assert_eq!(id, argmax(&logits));
            let id = Sampler::new(one).unwrap().sample(&logits, &[]).unwrap();
            prop_assert_eq!(logits[id as usize], logits[argmax(&logits) as usize]);
        }

        #[test]
        fn a_penalty_never_helps_a_repeated_token(logits in logits(), penalty in 1.0f32..3.0) {
            let plain = Sampling { temperature: 1.0, ..Sampling::GREEDY };
            let hard = Sampling { repetition_penalty: penalty, ..plain };
            let before = candidates(&plain, &logits, &[0]).unwrap()[0].probability;
            let after = candidates(&hard, &logits, &[0]).unwrap()[0].probability;
            prop_assert!(after <= before + 1e-12);
        }
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let logits: Vec<f32> = [0.1f32, 0.2, 0.3, 0.4].iter().map(|p| p.ln()).collect();
        let s = Sampling { temperature: 1.0, seed: 3, ..Sampling::GREEDY };
        let mut sampler = Sampler::new(s).unwrap();
        let mut counts = [0u32; 4];
        for _ in 0..20_000 {
            counts[sampler.sample(&logits, &[]).unwrap() as usize] += 1;
        }
        for (count, p) in counts.iter().zip([0.1, 0.2, 0.3, 0.4]) {
            assert!((f64::from(*count) / 20_000.0 - p).abs() < 0.015, "{counts:?}");
        }
    }

    /// If this fails, seeds no longer mean what they meant in earlier releases.
    #[test]
    fn seeds_are_stable() {
        let draw = |seed| {
            let s = Sampling { temperature: 1.0, seed, ..Sampling::GREEDY };
            let mut sampler = Sampler::new(s).unwrap();
            (0..8).map(|_| sampler.sample(&[0.0; 100], &[]).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(draw(0), SEED_0);
        assert_eq!(draw(42), SEED_42);
    }

    /// From an implementation of ChaCha8 in Python: `floor(100 * (u64 >> 11) / 2^53)`.
    const SEED_0: [u32; 8] = [83, 63, 23, 11, 25, 9, 0, 26];
    const SEED_42: [u32; 8] = [34, 28, 49, 36, 82, 6, 48, 26];

    #[test]
    fn hostile_settings_and_logits_are_refused() {
        let base = Sampling { temperature: 1.0, ..Sampling::GREEDY };
        for bad in [
            Sampling { temperature: -1.0, ..base },
            Sampling { temperature: f32::NAN, ..base },
            Sampling { temperature: f32::INFINITY, ..base },
            Sampling { top_p: 0.0, ..base },
            Sampling { top_p: 1.5, ..base },
            Sampling { min_p: -0.1, ..base },
            Sampling { repetition_penalty: 0.0, ..base },
        ] {
            assert!(Sampler::new(bad).is_err(), "{bad:?}");
        }
        for logits in [&[][..], &[f32::NAN, 1.0], &[f32::NEG_INFINITY], &[f32::INFINITY, 0.0]] {
            assert!(candidates(&base, logits, &[]).is_err(), "{logits:?}");
        }
        let masked = candidates(&base, &[f32::NEG_INFINITY, 1.0], &[7]).unwrap();
        assert_eq!(masked.iter().map(|c| c.probability).sum::<f64>(), 1.0);
    }
}
