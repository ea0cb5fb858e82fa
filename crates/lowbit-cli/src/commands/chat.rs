//! `lowbit chat`: a conversation.

use std::io::{BufRead, IsTerminal, Write};
use std::path::PathBuf;

use lowbit_llm::chat::{self, ChatTemplate, Message};
use lowbit_llm::generate::{GenerationDefaults, Options, Session, Stop};
use lowbit_llm::sampling::Sampling;
use lowbit_llm::{Model, Tokenizer};
use serde_json::Map;

use crate::args;
use crate::commands::generate::stream;
use crate::failure::{Failure, Result};
use crate::interrupt::Interrupt;
use crate::model::{Loaded, RunArgs, TokenizerArgs};
use crate::sampling::SamplingArgs;
use crate::ui;

/// Talk with a model
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  lowbit chat models/tinybard
  lowbit chat MODEL --system 'Answer in one sentence.' --temperature 0.7
  echo 'What is NF4?' | lowbit chat MODEL

Ctrl-C stops an answer; at the prompt it ends the conversation, as do Ctrl-D and /exit. A model \
without a chat template simply goes on from what you type. Sampling is as the model's makers set \
it in generation_config.json, else temperature 0.8 with top-p 0.95.")]
pub struct Args {
    /// A model directory
    model: PathBuf,
    /// What the model is told first
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Tokens of an answer at most
    #[arg(long, value_name = "N", default_value = "512")]
    max_new_tokens: usize,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Positions to keep memory for [default: as many as the model was trained on, at most 4096]
    #[arg(long, value_name = "N", value_parser = args::at_least(2))]
    max_context: Option<usize>,
    #[command(flatten)]
    tokenizer: TokenizerArgs,
    #[command(flatten)]
    run: RunArgs,
}

/// Context where none is asked for, so that a model trained on a long one does not fill the memory.
const DEFAULT_CONTEXT: usize = 4096;

const HELP: &str = "\
/clear   forget the conversation
/exit    end it (so do Ctrl-D and, at the prompt, Ctrl-C)
/help    show this";

pub fn run(args: &Args, out: &mut dyn Write) -> Result {
    let interrupt = Interrupt::listen()?;
    let loaded = interrupt.idle(|| args.run.open(&args.model))?;
    let mut chat = Chat::new(args, &loaded)?;
    let person = std::io::stdin().is_terminal();
    if person {
        greet(args, &loaded.model, chat.session.max_context(), out)?;
    }
    while let Some(line) = interrupt.idle(|| ask(person, out))? {
        match line.trim() {
            "" => continue,
            "/exit" | "/quit" | "/bye" => break,
            "/clear" => chat.clear(),
            "/help" => writeln!(out, "{HELP}")?,
            command if command.starts_with('/') && person => {
                writeln!(out, "{command} is no command; /help lists them")?;
            }
            said => {
                interrupt.reset();
                match chat.answer(said, out, interrupt) {
                    // A person can say something else.
                    Err(Failure::Failed(why)) if person => {
                        chat.messages.pop();
                        writeln!(out, "{}", ui::printable(&why))?;
                    }
                    answered => answered?,
                }
            }
        }
    }
    Ok(())
}

fn greet(args: &Args, model: &Model, context: usize, out: &mut dyn Write) -> Result {
    let (accent, dim) = (ui::ACCENT, ui::DIM);
    writeln!(
        out,
        "{accent}{}{accent:#}{dim}  {}, {:.2} bits per weight, context {context}\n\
         /help lists commands; Ctrl-C stops an answer, Ctrl-D ends{dim:#}",
        args.model.display(),
        ui::bytes(model.bytes()),
        model.bits_per_weight(),
    )?;
    Ok(())
}

/// Reads a line; `None` at the end of the input.
fn ask(person: bool, out: &mut dyn Write) -> Result<Option<String>> {
    if person {
        let accent = ui::ACCENT;
        write!(out, "\n{accent}>{accent:#} ")?;
        out.flush()?;
    }
    let mut line = Vec::new();
    let read = std::io::stdin().lock().read_until(b'\n', &mut line);
    let bytes =
        read.map_err(|error| Failure::failed(format!("could not read what you say: {error}")))?;
    if bytes == 0 && person {
        writeln!(out)?;
    }
    Ok((bytes > 0).then(|| String::from_utf8_lossy(&line).into_owned()))
}

/// A conversation and what it takes to go on.
struct Chat<'a> {
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
    session: Session<'a>,
    options: Options,
    /// The system's message first, if there is one.
    messages: Vec<Message>,
    /// How many of them are never forgotten.
    kept: usize,
}

impl<'a> Chat<'a> {
    fn new(args: &Args, loaded: &'a Loaded) -> Result<Self> {
        let Loaded { model, directory, .. } = loaded;
        let (tokenizer, tokenizer_directory) = args.tokenizer.open(&[directory])?;
        let config = model.config();
        let context = config.max_position_embeddings.min(DEFAULT_CONTEXT);
        let defaults = GenerationDefaults::open(directory, config)?;
        let lively = Sampling { temperature: 0.8, top_p: 0.95, ..Sampling::GREEDY };
        let mut eos_token_ids = defaults.eos_token_ids;
        eos_token_ids.extend(tokenizer.eos_token_id());
        let system = args.system.iter().map(|text| Message::new("system", text));
        let messages: Vec<Message> = system.collect();
        Ok(Chat {
            template: ChatTemplate::open(tokenizer_directory, &tokenizer)?,
            session: Session::new(model, args.max_context.unwrap_or(context))?,
            options: Options {
                max_new_tokens: args.max_new_tokens,
                sampling: args.sampling.over(defaults.sampling.unwrap_or(lively)),
                eos_token_ids,
            },
            kept: messages.len(),
            messages,
            tokenizer,
        })
    }

    fn clear(&mut self) {
        self.messages.truncate(self.kept);
    }

    fn answer(&mut self, said: &str, out: &mut dyn Write, interrupt: Interrupt) -> Result {
        self.messages.push(Message::new("user", said));
        let prompt = self.prompt()?;
        let tokenizer = &self.tokenizer;
        let stop = || interrupt.pressed();
        let made = stream(&mut self.session, tokenizer, &prompt, &self.options, out, stop)?;
        writeln!(out)?;
        if made.stop == Stop::ContextFull {
            let dim = ui::DIM;
            let limit = self.session.max_context();
            writeln!(out, "{dim}(the context of {limit} tokens is full; --max-context){dim:#}")?;
        }
        self.messages.push(Message::new("assistant", tokenizer.decode(&made.tokens)?));
        // Each answer draws its own random numbers.
        self.options.sampling.seed = self.options.sampling.seed.wrapping_add(1);
        Ok(())
    }

    /// The tokens of the conversation; the oldest turns are forgotten while it leaves an answer less
    /// than a quarter of the context.
    fn prompt(&mut self) -> Result<Vec<u32>> {
        let most = self.session.max_context() * 3 / 4;
        loop {
            let prompt = self.encode()?;
            if prompt.len() <= most || self.messages.len() <= self.kept + 1 {
                return Ok(prompt);
            }
            // A question goes with its answer.
            let turn = self.kept..(self.kept + 2).min(self.messages.len() - 1);
            self.messages.drain(turn);
        }
    }

    fn encode(&self) -> Result<Vec<u32>> {
        let tokenizer = &self.tokenizer;
        Ok(match &self.template {
            Some(template) => {
                tokenizer.encode_rendered(&template.render(&self.messages, true, &Map::new())?)?
            }
            None => tokenizer.encode(&chat::plain(&self.messages))?,
        })
    }
}
