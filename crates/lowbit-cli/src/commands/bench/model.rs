//! `lowbit bench model`: a whole model, prompt and answer.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

use clap::ArgGroup;
use clap::builder::PossibleValuesParser;
use lowbit::{DType, Format};
use lowbit_llm::generate::{Generation, Options, Session};
use lowbit_llm::models::{Experts, Logits};
use lowbit_llm::sampling::Sampling;
use lowbit_llm::{Checkpoint, Config, Model};
use regex::Regex;

use super::limits::cold_bytes;
use super::measure::Times;
use super::on::On;
use super::record::{Measured, Record, Report};
use super::shape::{self, Random, Storage};
use super::{Effort, warn_of_debug_build};
use crate::args;
use crate::device::Place;
use crate::failure::{Failure, Result};
use crate::model::{RunArgs, activations, load};
use crate::ui::Progress;

/// Measure a whole model: tokens per second of prompt and answer
#[derive(Debug, clap::Args)]
#[command(group = ArgGroup::new("what").required(true))]
#[command(after_help = "\
Examples:
  lowbit bench model models/tinybard-nf4dq
  lowbit bench model MODEL --prompt-tokens 512 --new-tokens 64 --json
  lowbit bench model --shape llama-1b --device gpu

prefill is the prompt in one pass, decode one token at a time. floor_ms is what reading every weight \
once and the multiply-adds of the linear layers take at the rates measured in the same run. \
max_error compares the logits of one pass over many tokens with those of passes of one token, and \
those of a GPU with the CPU's. With --shape the weights are random, the output layer in 16 bit.")]
pub struct Args {
    /// A model directory
    #[arg(group = "what")]
    model: Option<PathBuf>,
    /// Measure random weights in the shape of this model
    #[arg(long, value_name = "SHAPE", group = "what",
          value_parser = PossibleValuesParser::new(shape::NAMES))]
    shape: Option<String>,
    /// Format of random weights
    #[arg(long, value_name = "F", default_value = "nf4", value_parser = args::format())]
    format: &'static Format,
    /// Random weights that share a scale [default: the format's own]
    #[arg(long, value_name = "B")]
    block_size: Option<usize>,
    /// Quantize the scales of random weights as well
    #[arg(long)]
    double_quant: bool,
    /// Quantize random weights whose name this finds, too, embed_tokens for one; repeatable
    #[arg(long, value_name = "REGEX", value_parser = args::regex)]
    include: Vec<Regex>,
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
    let subject = Subject::open(args)?;
    let place = args.run.device(subject.activations)?;
    let model = subject.load(&place)?;
    warn_of_debug_build()?;
    let progress = Progress::new("measuring");
    progress.update(0, 2, "the limits of this machine");
    let on = On::new(place.chosen(), true)?;
    progress.update(1, 2, "prompt and answer");
    let lengths = [args.prompt_tokens, args.new_tokens];
    let (measured, max_error) = measure(&subject, &model, &on, lengths, args.effort.seconds)?;
    drop(progress);
    let mut report = Report::new(args.effort.json, out);
    for measured in measured {
        report.add(measured)?;
    }
    let is_small = model.bytes() < cold_bytes() as u64;
    report.finish(&on, is_small.then_some(SMALL))?;
    verdict(max_error, subject.activations)
}

/// Times prompts and answers of those lengths for about `seconds`, and compares logits.
pub fn measure(
    subject: &Subject,
    model: &Model,
    on: &On,
    [prompt, new]: [usize; 2],
    seconds: f32,
) -> Result<(Vec<Measured>, f64)> {
    let mut prefill = Times::default();
    let mut decode = Times::default();
    // The first answer may pay for what is made once.
    answer(model, prompt, new)?;
    Times::rounds(seconds, || {
        let bandwidth = on.bandwidth();
        let made = answer(model, prompt, new)?;
        prefill.add(made.prefill_time.as_secs_f64(), bandwidth);
        decode.add(made.decode_time.as_secs_f64() / made.decode_steps.max(1) as f64, bandwidth);
        Ok(())
    })?;
    let mut max_error = compare(model)?;
    if let On::Gpu(_) = on {
        let cpu = subject.load(&Place::cpu(subject.activations))?;
        let logits = |model| one_pass(model, &some_tokens(model, CHECKED_TOKENS));
        max_error = max_error.max(furthest(&logits(&cpu)?, &logits(model)?));
    }
    let measured = [("prefill", prefill, prompt), ("decode", decode, 1)]
        .map(|(op, times, tokens)| record(op, &times, tokens, subject, model, on, max_error));
    Ok((measured.into(), max_error))
}

/// What is measured.
pub struct Subject {
    weights: Weights,
    /// What it computes in.
    pub activations: DType,
    /// The format, or the type, that most weights are in.
    format: String,
    double_quant: bool,
}

enum Weights {
    Of(Box<Checkpoint>),
    Random(Box<Random>),
}

impl Subject {
    fn open(args: &Args) -> Result<Self> {
        if let Some(path) = &args.model {
            let checkpoint = Checkpoint::open(path)?;
            return Ok(Subject {
                activations: activations(&checkpoint)?,
                format: main_format(&checkpoint),
                double_quant: checkpoint.entries().iter().any(|entry| entry.double_quantized),
                weights: Weights::Of(Box::new(checkpoint)),
            });
        }
        args::check_block_size(args.format, args.block_size)?;
        args::check_double_quant(args.format, args.double_quant)?;
        let storage = Storage {
            format: args.format,
            block_size: args.block_size,
            double_quant: args.double_quant,
            include: &args.include,
        };
        Self::random(args.shape.as_deref().unwrap_or_default(), &storage)
    }

    /// Random weights in the shape of that name, one of [`shape::NAMES`].
    pub fn random(name: &str, storage: &Storage<'_>) -> Result<Self> {
        Ok(Subject {
            weights: Weights::Random(Box::new(Random::new(name, storage)?)),
            activations: DType::BF16,
            format: storage.format.name.to_owned(),
            double_quant: storage.double_quant,
        })
    }

    /// Moves the weights to a device.
    pub fn load(&self, place: &Place) -> Result<Model> {
        let random = match &self.weights {
            Weights::Of(checkpoint) => return load(checkpoint, place),
            Weights::Random(random) => random,
        };
        let progress = Progress::new("loading");
        let device = Arc::clone(&place.device);
        let show = &mut |done, total| progress.update(done, total, "");
        Ok(Model::from_source(random.config.clone(), &**random, device, show)?)
    }
}

const SMALL: &str = "\
The model is small: part of it stays in the caches, and decode may be faster\n\
than the floor, which is for weights that come from memory.";

/// One prompt and one answer, from an empty cache.
fn answer(model: &Model, prompt: usize, new: usize) -> Result<Generation> {
    let options =
        Options { max_new_tokens: new, sampling: Sampling::GREEDY, eos_token_ids: Vec::new() };
    let mut session = Session::new(model, prompt.saturating_add(new))?;
    let prompt = some_tokens(model, prompt);
    Ok(session.generate(&prompt, &options, &mut |_| ControlFlow::Continue(()))?)
}

/// Tokens without a meaning; how fast a model is does not depend on it.
fn some_tokens(model: &Model, count: usize) -> Vec<u32> {
    let vocabulary = model.config().vocab_size;
    (1..=count).map(|i| (i * 7919 % vocabulary) as u32).collect()
}

/// Logits of one pass over all tokens.
fn one_pass(model: &Model, ids: &[u32]) -> Result<Vec<f32>> {
    let mut cache = model.new_cache(ids.len())?;
    Ok(model.device().read(&model.forward(ids, &mut cache, Logits::All, None)?)?)
}

/// The largest difference between logits of one pass and of passes of one token.
fn compare(model: &Model) -> Result<f64> {
    let ids = some_tokens(model, CHECKED_TOKENS);
    let mut cache = model.new_cache(ids.len())?;
    let mut one_by_one = Vec::new();
    for id in &ids {
        let logits = model.forward(&[*id], &mut cache, Logits::Last, None)?;
        one_by_one.extend(model.device().read(&logits)?);
    }
    Ok(furthest(&one_pass(model, &ids)?, &one_by_one))
}

/// The largest difference, relative to the root mean square.
fn furthest(expected: &[f32], got: &[f32]) -> f64 {
    let squares: f64 = expected.iter().map(|x| f64::from(*x).powi(2)).sum();
    let differences = expected.iter().zip(got).map(|(a, b)| f64::from((a - b).abs()));
    let largest = differences.fold(0.0, |a, b| if b.is_nan() { f64::INFINITY } else { a.max(b) });
    largest / (squares / expected.len() as f64).sqrt()
}

/// Fails if the logits were wrong.
pub fn verdict(error: f64, activations: DType) -> Result {
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
    subject: &Subject,
    model: &Model,
    on: &On,
    max_error: f64,
) -> Measured {
    let (bytes, median) = (model.bytes_read(tokens) as f64, times.median());
    let flops = flops(model.config(), tokens);
    let arithmetic = on.arithmetic(flops, subject.activations);
    let record = Record {
        op,
        format: subject.format.clone(),
        shape: None,
        rows: Some(tokens),
        schedule: None,
        dtype: subject.activations.name(),
        device: on.device(),
        isa: on.name(),
        threads: on.threads(),
        ms_min: 1e3 * times.min(),
        ms_median: 1e3 * median,
        gb_s: 1e-9 * bytes / median,
        gflop_s: Some(1e-9 * flops / median),
        max_error,
        floor_ms: 1e3 * (bytes / times.bandwidth).max(arithmetic),
        block_size: None,
        double_quant: subject.double_quant,
        tok_s: Some(tokens as f64 / median),
    };
    Measured { record, bandwidth: times.bandwidth }
}

/// Operations of the linear layers for a pass over so many tokens, of which only the last one's
/// logits are computed.
fn flops(config: &Config, tokens: usize) -> f64 {
    let size = |n: usize, k: usize| n as f64 * k as f64;
    let hidden = config.hidden_size;
    let heads = config.num_attention_heads + config.num_key_value_heads;
    let attention = 2.0 * size(heads * config.head_dim, hidden);
    let mlp = |layer: usize| {
        let has = |experts: &&Experts| experts.layers.get(layer) == Some(&true);
        match config.experts.as_ref().filter(has) {
            Some(Experts { count, routing, intermediate_size, .. }) => {
                size(*count, hidden) + 3.0 * routing.top as f64 * size(*intermediate_size, hidden)
            }
            None => 3.0 * size(config.intermediate_size, hidden),
        }
    };
    let layers: f64 = (0..config.num_hidden_layers).map(|layer| attention + mlp(layer)).sum();
    2.0 * (tokens as f64 * layers + size(config.vocab_size, hidden))
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
