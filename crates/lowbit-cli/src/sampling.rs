//! How the next token is chosen, as `generate` and `chat` ask for it.

use std::time::{SystemTime, UNIX_EPOCH};

use lowbit_llm::sampling::Sampling;

use crate::args;

/// How the next token is chosen.
#[derive(Debug, clap::Args)]
pub struct SamplingArgs {
    /// Randomness: 0 always takes the likeliest token
    #[arg(long, value_name = "T", value_parser = args::not_negative)]
    temperature: Option<f32>,
    /// Choose among the K likeliest tokens; 0 for all
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Choose among the likeliest tokens that together reach probability P
    #[arg(long, value_name = "P", value_parser = args::positive_fraction)]
    top_p: Option<f32>,
    /// Choose among tokens at least P times as likely as the likeliest
    #[arg(long, value_name = "P", value_parser = args::fraction)]
    min_p: Option<f32>,
    /// Make tokens that were there already less likely; 1 for no change
    #[arg(long, value_name = "R", value_parser = args::positive)]
    repetition_penalty: Option<f32>,
    /// Repeat an earlier choice of random numbers [default: new ones each time]
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
}

impl SamplingArgs {
    /// What was asked for, and `otherwise` where nothing was.
    ///
    /// A filter without a temperature means 1 where `otherwise` is greedy: it would have no effect.
    pub fn over(&self, otherwise: Sampling) -> Sampling {
        let filtered = self.top_k.is_some() || self.top_p.is_some() || self.min_p.is_some();
        let temperature = match otherwise.temperature {
            0.0 if filtered => 1.0,
            temperature => temperature,
        };
        Sampling {
            temperature: self.temperature.unwrap_or(temperature),
            top_k: self.top_k.unwrap_or(otherwise.top_k),
            top_p: self.top_p.unwrap_or(otherwise.top_p),
            min_p: self.min_p.unwrap_or(otherwise.min_p),
            repetition_penalty: self.repetition_penalty.unwrap_or(otherwise.repetition_penalty),
            seed: self.seed.unwrap_or_else(clock),
        }
    }
}

/// A seed that differs from run to run.
fn clock() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64)
}
