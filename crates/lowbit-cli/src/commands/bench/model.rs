//! `lowbit bench model`: a whole model, prompt and answer.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::PathBuf;

use lowbit::{Cpu, DType};
use lowbit_llm::generate::{Generation, Options, Session};
use lowbit_llm::models::Logits;
use lowbit_llm::sampling::Sampling;
use lowbit_llm::{Checkpoint, Config, Model};

use super::cases::On;
use super::limits::{Limits, cold_bytes};
use super::measure::Times;
use super::record::{Measured, Record, Report};
use super::{Effort, warn_of_debug_build};
use crate::args;
use crate::failure::{Failure, Result};
use crate::model::{Loaded, RunArgs};
use crate::ui::Progress;

/// Measure a whole model: tokens per second of prompt and answer
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  lowbit bench model models/tinybard-nf4dq
  lowbit bench model MODEL --prompt-tokens 512 --new-tokens 64 --json

prefill is the prompt in one pass, decode one token at a time. floor_ms is what reading every weight \
once and the multiply-adds of the linear layers take at the rates measured in the same run. \
max_error compares the logits of one pass over many tokens with those of passes of one token.")]
pub struct Args {
    /// A model directory
    model: PathBuf,
    /// Tokens of the prompt
    #[arg(long, value_name = "N", default_value = "128", value_parser = args::at_least(1))]
    prompt_tokens: usize,
    /// Tokens of the answer
    #[arg(long, value_name = "N", default_value = "32", value_parser = args::at_least(2))]
    new_tokens: usize,
    #[command(flatten)]
    run: RunArgs,
    #[command(flatten)]
    effort: Effort,
}

/// Passes of one token that are compared with one pass over all of them.
const CHECKED_TOKENS: usize = 64;

pub fn run(args: &Args, out: &mut dyn Write) -> Result {
    let loaded = args.run.open(&args.model)?;
    warn_of_debug_build()?;
    let progress = Progress::new("measuring");
    progress.update(0, 2, "the limits of this machine");
    let limits = Limits::measure();
    progress.update(1, 2, "prompt and answer");
    let mut prefill = Times::default();
    let mut decode = Times::default();
    Times::rounds(args.effort.seconds, || {
        let bandwidth = limits.bandwidth();
        let made = answer(&loaded.model, args)?;
        prefill.add(made.prefill_time.as_secs_f64(), bandwidth);
        decode.add(made.decode_time.as_secs_f64() / made.decode_steps.max(1) as f64, bandwidth);
        Ok(())
    })?;
    let max_error = compare(&loaded.model)?;
    drop(progress);
    let mut report = Report::new(args.effort.json, out);
    for (op, times, tokens) in [("prefill", prefill, args.prompt_tokens), ("decode", decode, 1)] {
        report.add(record(op, &times, tokens, &loaded, &limits, max_error))?;
    }
    let is_small = loaded.model.bytes() < cold_bytes() as u64;
    report.finish(On::Cpu(&limits), is_small.then_some(SMALL))?;
    verdict(max_error, loaded.activations)
}

const SMALL: &str = "\
The model is small: part of it stays in the caches, and decode may be faster\n\
than the floor, which is for weights that come from memory.";

/// One prompt and one answer, from an empty cache.
fn answer(model: &Model, args: &Args) -> Result<Generation> {
    let options = Options {
        max_new_tokens: args.new_tokens,
        sampling: Sampling::GREEDY,
        eos_token_ids: Vec::new(),
    };
    let mut session = Session::new(model, args.prompt_tokens.saturating_add(args.new_tokens))?;
    let prompt = some_tokens(model, args.prompt_tokens);
    Ok(session.generate(&prompt, &options, &mut |_| ControlFlow::Continue(()))?)
}

/// Tokens without a meaning; how fast a model is does not depend on it.
fn some_tokens(model: &Model, count: usize) -> Vec<u32> {
    let vocabulary = model.config().vocab_size;
    (1..=count).map(|i| (i * 7919 % vocabulary) as u32).collect()
}

/// The largest difference between logits of one pass and of passes of one token, relative to their
/// root mean square.
fn compare(model: &Model) -> Result<f64> {
    let ids = some_tokens(model, CHECKED_TOKENS);
    let read = |logits| model.device().read(&logits);
    let mut cache = model.new_cache(ids.len())?;
    let at_once = read(model.forward(&ids, &mut cache, Logits::All, None)?)?;
    cache.truncate(0);
    let mut one_by_one = Vec::with_capacity(at_once.len());
    for id in &ids {
        one_by_one.extend(read(model.forward(&[*id], &mut cache, Logits::Last, None)?)?);
    }
    let squares: f64 = at_once.iter().map(|x| f64::from(*x).powi(2)).sum();
    let differences = at_once.iter().zip(&one_by_one).map(|(a, b)| f64::from((a - b).abs()));
    let largest = differences.fold(0.0, |a, b| if b.is_nan() { f64::INFINITY } else { a.max(b) });
    Ok(largest / (squares / at_once.len() as f64).sqrt())
}

fn verdict(error: f64, activations: DType) -> Result {
    // Many layers of rounding: a few percent in 16 bit.
    let bound = if activations == DType::F32 { 1e-3 } else { 0.1 };
    if error <= bound {
        return Ok(());
    }
    Err(Failure::failed(format!(
        "bench model: expected the logits of one pass and of single tokens to agree within {bound}, \
         got {error:.1e}; the kernels are wrong on this machine, please report it"
    )))
}

fn record(
    op: &'static str,
    times: &Times,
    tokens: usize,
    loaded: &Loaded,
    limits: &Limits,
    max_error: f64,
) -> Measured {
    let (bytes, median) = (loaded.model.bytes() as f64, times.median());
    let flops = flops(loaded.model.config(), tokens);
    let record = Record {
        op,
        format: main_format(&loaded.checkpoint),
        shape: None,
        rows: Some(tokens),
        dtype: loaded.activations.name(),
        device: loaded.place.kind,
        isa: Cpu::best().isa().name().to_owned(),
        threads: rayon::current_num_threads(),
        ms_min: 1e3 * times.min(),
        ms_median: 1e3 * median,
        gb_s: 1e-9 * bytes / median,
        gflop_s: Some(1e-9 * flops / median),
        max_error,
        floor_ms: 1e3 * (bytes / times.bandwidth).max(flops / limits.flops(loaded.activations)),
        block_size: None,
        double_quant: loaded.checkpoint.entries().iter().any(|entry| entry.double_quantized),
        tok_s: Some(tokens as f64 / median),
    };
    Measured { record, bandwidth: times.bandwidth }
}

/// Operations of the linear layers for a pass over so many tokens, of which only the last one's
/// logits are computed.
fn flops(config: &Config, tokens: usize) -> f64 {
    let size = |n: usize, k: usize| n as f64 * k as f64;
    let attention = config.num_attention_heads + config.num_key_value_heads;
    let layer = 2.0 * size(attention * config.head_dim, config.hidden_size)
        + 3.0 * size(config.intermediate_size, config.hidden_size);
    let head = size(config.vocab_size, config.hidden_size);
    2.0 * (tokens as f64 * config.num_hidden_layers as f64 * layer + head)
}

/// The format, or the type, that most weights are in.
fn main_format(checkpoint: &Checkpoint) -> String {
    let weights = |name: &str| -> u64 {
        let same = checkpoint.entries().iter().filter(|entry| entry.format_name() == name);
        same.map(|entry| entry.numel()).sum()
    };
    let names = checkpoint.entries().iter().map(|entry| entry.format_name());
    names.max_by_key(|name| weights(name)).unwrap_or_default()
}
