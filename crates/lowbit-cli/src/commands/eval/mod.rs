//! `lowbit eval`: how well a model predicts a text.

mod picture;
mod sweep;

use std::io::Write;
use std::path::{Path, PathBuf};

use lowbit_llm::eval::{Evaluation, evaluate};
use lowbit_llm::{Checkpoint, Tokenizer};

use crate::args;
use crate::commands::print_json;
use crate::failure::Result;
use crate::model::{self, RunArgs, TokenizerArgs};
use crate::ui::{self, Progress};

/// Measure a model on a text: perplexity, and what quantization cost
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  lowbit eval models/tinybard --text models/tinybard/validation.txt
  lowbit eval models/tinybard-nf4dq --text models/tinybard/validation.txt \\
      --reference models/tinybard --json
  lowbit eval models/tinybard --text models/tinybard/validation.txt --sweep \\
      --calibrate models/tinybard/train.txt --picture sweep.svg

The tokens of the text are cut into windows without overlap, the rest is dropped, and in each \
window every token but the first is predicted. KL divergence (in nats) and top-1 agreement compare \
the predictions with those of --reference, whose tokenizer is used where MODEL has none.")]
pub struct Args {
    /// A model directory
    model: PathBuf,
    /// The text, a UTF-8 file
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// Tokens in a window
    #[arg(long, value_name = "N", default_value = "256",
          value_parser = args::at_least(2))]
    window: usize,
    /// Windows at most [default: all]
    #[arg(long, value_name = "N", value_parser = args::at_least(1))]
    max_windows: Option<usize>,
    /// The model to compare with, usually the unquantized one
    #[arg(long, value_name = "MODEL")]
    reference: Option<PathBuf>,
    #[command(flatten)]
    sweep: sweep::SweepArgs,
    #[command(flatten)]
    tokenizer: TokenizerArgs,
    #[command(flatten)]
    run: RunArgs,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args, out: &mut dyn Write) -> Result {
    let text = args::read_text(&args.text)?;
    let loaded = args.run.open(&args.model)?;
    if args.sweep.sweep {
        let (tokenizer, _) = args.tokenizer.open(&[&loaded.directory])?;
        let tokens = tokens(&tokenizer, &text, args.window, args.max_windows)?;
        let sweep =
            sweep::Sweep { args: &args.sweep, loaded, tokenizer, tokens, window: args.window };
        return sweep.run(args.json, out);
    }
    let reference = match &args.reference {
        Some(path) => Some(model::load(&Checkpoint::open(path)?, &loaded.place)?),
        None => None,
    };
    let places: Vec<&Path> =
        std::iter::once(loaded.directory.as_path()).chain(args.reference.as_deref()).collect();
    let (tokenizer, _) = args.tokenizer.open(&places)?;
    let tokens = tokens(&tokenizer, &text, args.window, args.max_windows)?;
    let progress = Progress::new("evaluating");
    let report = &mut |done, total| progress.update(done as u64, total as u64, "");
    let evaluation = evaluate(&loaded.model, reference.as_ref(), &tokens, args.window, report)?;
    drop(progress);
    if args.json { print_json(out, &evaluation) } else { print(&evaluation, args.window, out) }
}

/// The tokens of a text, cut after so many windows.
pub fn tokens(
    tokenizer: &Tokenizer,
    text: &str,
    window: usize,
    max_windows: Option<usize>,
) -> Result<Vec<u32>> {
    let mut tokens = tokenizer.encode(text)?;
    if let Some(most) = max_windows {
        tokens.truncate(most.saturating_mul(window));
    }
    Ok(tokens)
}

fn print(evaluation: &Evaluation, window: usize, out: &mut dyn Write) -> Result {
    let Evaluation { perplexity, tokens, kl, top1_agreement, bits_per_weight } = *evaluation;
    let (accent, tokens) = (ui::ACCENT, ui::count(tokens as u64));
    writeln!(out, "perplexity        {accent}{perplexity:.4}{accent:#}")?;
    writeln!(out, "tokens            {tokens} predicted, in windows of {window}")?;
    if let (Some(kl), Some(agreement)) = (kl, top1_agreement) {
        writeln!(out, "KL divergence     {kl:.5} nats from the reference")?;
        writeln!(out, "top-1 agreement   {:.2} % with the reference", 100.0 * agreement)?;
    }
    writeln!(out, "bits per weight   {bits_per_weight:.3}")?;
    Ok(())
}
