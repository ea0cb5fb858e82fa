//! `lowbit generate`: a prompt goes on.

use std::io::{IsTerminal, Read, Write};
use std::ops::ControlFlow;
use std::path::PathBuf;

use lowbit_llm::Tokenizer;
use lowbit_llm::generate::{Generation, GenerationDefaults, Options, Session, Stop};
use lowbit_llm::sampling::Sampling;
use serde::Serialize;

use crate::args;
use crate::commands::print_json;
use crate::failure::{Failure, Result};
use crate::model::{RunArgs, TokenizerArgs};
use crate::sampling::SamplingArgs;
use crate::ui;

/// Let a model continue a text
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  lowbit generate models/tinybard --prompt 'ROMEO:'
  lowbit generate models/tinybard --prompt 'ROMEO:' --temperature 0.8 --seed 7
  lowbit generate models/tinybard --prompt - --json < prompt.txt

Without sampling options the likeliest token is always taken; --top-k, --top-p and --min-p without \
a --temperature use 1. The text goes to stdout, as it comes.")]
pub struct Args {
    /// A model directory
    model: PathBuf,
    /// What the text begins with; - reads it from stdin
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: String,
    /// Tokens to write at most
    #[arg(long, value_name = "N", default_value = "128")]
    max_new_tokens: usize,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Positions to keep memory for [default: what prompt and answer need, as far as the model was
    /// trained]
    #[arg(long, value_name = "N", value_parser = args::at_least(1))]
    max_context: Option<usize>,
    #[command(flatten)]
    tokenizer: TokenizerArgs,
    #[command(flatten)]
    run: RunArgs,
    /// Write JSON, when done
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report<'a> {
    prompt_tokens: &'a [u32],
    tokens: &'a [u32],
    text: String,
    prefill_tok_s: f64,
    decode_tok_s: f64,
}

pub fn run(args: &Args, out: &mut dyn Write) -> Result {
    let text = match args.prompt.as_str() {
        "-" => read_stdin()?,
        text => text.to_owned(),
    };
    let loaded = args.run.open(&args.model)?;
    let (tokenizer, _) = args.tokenizer.open(&[&loaded.directory])?;
    let config = loaded.model.config();
    let prompt = tokenizer.encode(&text)?;
    let needed = prompt.len().saturating_add(args.max_new_tokens);
    let context = args.max_context.unwrap_or(needed.min(config.max_position_embeddings));
    let options = Options {
        max_new_tokens: args.max_new_tokens,
        sampling: args.sampling.over(Sampling::GREEDY),
        eos_token_ids: GenerationDefaults::open(&loaded.directory, config)?.eos_token_ids,
    };
    let mut session = Session::new(&loaded.model, context)?;
    if args.json {
        let made = session.generate(&prompt, &options, &mut |_| ControlFlow::Continue(()))?;
        return print_json(
            out,
            &Report {
                prompt_tokens: &prompt,
                tokens: &made.tokens,
                text: tokenizer.decode(&made.tokens)?,
                prefill_tok_s: made.prefill_tok_s(),
                decode_tok_s: made.decode_tok_s(),
            },
        );
    }
    let made = stream(&mut session, &tokenizer, &prompt, &options, out, || false)?;
    writeln!(out)?;
    summarize(&made)
}

/// Generates, and writes the text as it comes until `stop` says so.
pub fn stream(
    session: &mut Session,
    tokenizer: &Tokenizer,
    prompt: &[u32],
    options: &Options,
    out: &mut dyn Write,
    stop: impl Fn() -> bool,
) -> Result<Generation> {
    let mut text = tokenizer.stream();
    let mut show = |id| -> Result {
        write!(out, "{}", ui::printable(&text.push(id)?))?;
        Ok(out.flush()?)
    };
    let mut failure = None;
    let made = session.generate(prompt, options, &mut |id| match show(id) {
        Ok(()) if !stop() => ControlFlow::Continue(()),
        Ok(()) => ControlFlow::Break(()),
        Err(error) => {
            failure = Some(error);
            ControlFlow::Break(())
        }
    })?;
    if let Some(failure) = failure {
        return Err(failure);
    }
    write!(out, "{}", ui::printable(&text.finish()?))?;
    out.flush()?;
    Ok(made)
}

/// One line about speed, and about an answer that was cut short, for a person who watches.
fn summarize(made: &Generation) -> Result {
    let mut err = anstream::stderr();
    if !std::io::stderr().is_terminal() {
        return Ok(());
    }
    let dim = ui::DIM;
    let cut = if made.stop == Stop::ContextFull { ", the context is full" } else { "" };
    writeln!(
        err,
        "{dim}{} tokens{cut}; prompt {:.0} tokens/s, answer {:.0} tokens/s{dim:#}",
        made.tokens.len(),
        made.prefill_tok_s(),
        made.decode_tok_s(),
    )?;
    Ok(())
}

fn read_stdin() -> Result<String> {
    let mut text = String::new();
    let read = std::io::stdin().lock().read_to_string(&mut text);
    read.map_err(|error| Failure::failed(format!("could not read the prompt: {error}")))?;
    Ok(text)
}
