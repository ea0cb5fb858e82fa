//! `lowbit demo`: the whole job on a small real model, without a network.

mod locate;
mod show;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use lowbit::{Cpu, Format, formats};
use lowbit_llm::convert::{self, QuantizeOptions, Report, WriteOptions};
use lowbit_llm::eval::{Evaluation, evaluate};
use lowbit_llm::generate::{GenerationDefaults, Options, Session};
use lowbit_llm::sampling::Sampling;
use lowbit_llm::{Checkpoint, Model, Tokenizer};
use tempfile::TempDir;

use crate::args;
use crate::commands::eval;
use crate::failure::{Failure, Result};
use crate::interrupt::Interrupt;
use crate::model::{self, Loaded, RunArgs};
use crate::ui::{self, Align, Progress, Table};
use show::{Column, bar, columns, heading};

/// Quantize a small real model and see what becomes of it (offline)
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  lowbit demo
  lowbit demo --full             # evaluate on the whole text: minutes
  lowbit demo --format fp4 --seed 3

Nothing is kept: what it writes goes to a temporary directory. A model of your own needs a text \
beside it, validation.txt, or one given with --text.")]
pub struct Args {
    /// A model directory [default: models/tinybard here, or above the program]
    #[arg(long, value_name = "MODEL")]
    model: Option<PathBuf>,
    /// The format to look at closely
    #[arg(long, value_name = "F", default_value = "nf4", value_parser = args::format())]
    format: &'static Format,
    /// Text to evaluate on [default: validation.txt of the model]
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Evaluate on the whole text, not on a part of it
    #[arg(long)]
    full: bool,
    /// What the model shall continue
    #[arg(long, value_name = "TEXT", default_value = "ROMEO:\n", hide_default_value = true)]
    prompt: String,
    /// Random numbers of the sampled text
    #[arg(long, value_name = "S", default_value = "7")]
    seed: u64,
    #[command(flatten)]
    run: RunArgs,
}

/// Tokens in a window of the evaluation.
const WINDOW: usize = 256;
/// Windows without `--full`.
const WINDOWS: usize = 16;
/// Tokens of each text that is written.
const NEW_TOKENS: usize = 64;

pub fn run(args: &Args, out: &mut dyn Write) -> Result {
    let start = Instant::now();
    let directory = match &args.model {
        Some(path) => path.clone(),
        None => locate::model()?,
    };
    let text = args::read_text(&args.text.clone().unwrap_or(directory.join("validation.txt")))?;
    let temp = TempDir::new().map_err(|error| {
        Failure::failed(format!("could not make a temporary directory: {error}"))
    })?;
    let interrupt = Interrupt::listen()?;
    interrupt.idle_removing(temp.path(), || {
        let loaded = args.run.open(&directory)?;
        let tokenizer = Tokenizer::open(&directory)?;
        let windows = (!args.full).then_some(WINDOWS);
        let demo = Demo {
            args,
            tokens: eval::tokens(&tokenizer, &text, WINDOW, windows)?,
            directory,
            tokenizer,
            loaded,
            temp: temp.path(),
        };
        demo.run(out)
    })?;
    let dim = ui::DIM;
    writeln!(out, "{dim}That took {}.{dim:#} Go on with", ui::duration(start.elapsed()))?;
    for (command, about) in NEXT {
        writeln!(out, "  {command:<44} {dim}{about}{dim:#}")?;
    }
    Ok(())
}

const NEXT: [(&str, &str); 3] = [
    ("lowbit quantize MODEL OUT --double-quant", "a model of your own"),
    ("lowbit generate OUT --prompt 'Once upon'", "let it write"),
    ("lowbit --help", "everything else"),
];

struct Demo<'a> {
    args: &'a Args,
    directory: PathBuf,
    tokenizer: Tokenizer,
    /// The original.
    loaded: Loaded,
    /// Of the text to evaluate on.
    tokens: Vec<u32>,
    temp: &'a Path,
}

/// A way to store the weights.
#[derive(Clone, Copy)]
struct Variant {
    format: &'static Format,
    double_quant: bool,
}

impl Variant {
    fn name(self) -> String {
        let Variant { format, double_quant } = self;
        if double_quant { format!("{} dq", format.name) } else { format.name.into() }
    }
}

/// Every format that can hold weights of both signs with bits enough for a small model, and `format` with
/// double quantization too. `lowbit eval --sweep` shows the others.
fn variants(format: &Format) -> Vec<Variant> {
    let usable = |f: &&&Format| {
        f.encoder.is_some()
            && args::holds_negatives(f)
            && (f.code_bits >= 4 || f.name == format.name)
    };
    let mut all = Vec::new();
    for f in formats::ALL.iter().filter(usable) {
        all.push(Variant { format: f, double_quant: false });
        if std::ptr::eq(*f, format) && f.can_double_quantize() {
            all.push(Variant { format: f, double_quant: true });
        }
    }
    all
}

impl Demo<'_> {
    fn run(&self, out: &mut dyn Write) -> Result {
        self.introduce(out)?;
        let double_quant = self.args.format.can_double_quantize();
        let chosen = Variant { format: self.args.format, double_quant };
        let (path, report) = self.quantize(chosen)?;
        self.show_sizes(chosen, &report, out)?;
        self.show_losses(out)?;
        let quantized = self.load(&path)?;
        self.show_texts(chosen, &quantized, out)
    }

    fn introduce(&self, out: &mut dyn Write) -> Result {
        let (bold, dim) = (ui::HEADING, ui::DIM);
        let name = self.directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let config = self.loaded.model.config();
        let weights: u64 = self.loaded.checkpoint.entries().iter().map(|e| e.numel()).sum();
        writeln!(
            out,
            "{bold}{}{bold:#} ({}): {} weights in {}, run by {} threads of this\n\
             machine's processor ({}). {dim}Nothing is downloaded, nothing is kept.{dim:#}",
            ui::printable(&name),
            config.model_type.name,
            ui::count(weights),
            self.loaded.activations,
            rayon::current_num_threads(),
            Cpu::best().isa().name(),
        )?;
        Ok(())
    }

    /// Writes a variant to the temporary directory.
    fn quantize(&self, variant: Variant) -> Result<(PathBuf, Report)> {
        let path = self.temp.join(variant.name());
        let Variant { format, double_quant } = variant;
        // A variant that is looked at twice is the same both times.
        let write = WriteOptions { force: true, ..WriteOptions::default() };
        let options = QuantizeOptions { double_quant, write, ..QuantizeOptions::new(format) };
        let report = convert::quantize(&self.directory, &path, &options, &())?;
        Ok((path, report))
    }

    fn load(&self, path: &Path) -> Result<Model> {
        model::load(&Checkpoint::open(path)?, &self.loaded.place)
    }

    fn show_sizes(&self, variant: Variant, report: &Report, out: &mut dyn Write) -> Result {
        let Variant { format, double_quant } = variant;
        let dim = ui::DIM;
        let flag = if double_quant { " --double-quant" } else { "" };
        heading(1, "Quantize", out)?;
        writeln!(out, "   {dim}lowbit quantize IN OUT --format {}{flag}{dim:#}\n", format.name)?;
        let before: u64 = report.converted.iter().map(|c| c.bytes_before).sum();
        let after: u64 = report.converted.iter().map(|c| c.bytes_after).sum();
        let left = report.bytes_before - before;
        let most = report.bytes_before;
        writeln!(out, "   before  {}", bar(&[before, left], most))?;
        writeln!(out, "   after   {}\n", bar(&[after, left], most))?;
        let weights: usize =
            report.converted.iter().map(|c| c.shape.iter().product::<usize>()).sum();
        let bits = |bytes: u64| 8.0 * bytes as f64 / weights.max(1) as f64;
        let (accent, layers) = (ui::ACCENT, report.converted.len());
        writeln!(
            out,
            "   {accent}█{accent:#} {layers} linear layers: {accent}{} -> {}{accent:#}, {:.1} -> \
             {accent}{:.3} bits per weight{accent:#}",
            ui::bytes(before),
            ui::bytes(after),
            bits(before),
            bits(after),
        )?;
        let reasons = "embeddings and norms, left as they are";
        writeln!(out, "   {dim}░{dim:#} {reasons}: {}", ui::bytes(left))?;
        Ok(())
    }

    /// Evaluates every variant.
    fn show_losses(&self, out: &mut dyn Write) -> Result {
        heading(2, "What it costs", out)?;
        let windows = self.tokens.len() / WINDOW;
        let part = if self.args.full { "" } else { "; --full takes the whole text" };
        let (dim, loaded) = (ui::DIM, &self.loaded);
        writeln!(
            out,
            "   {dim}lowbit eval OUT --text FILE --reference IN\n   \
             on {windows} windows of {WINDOW} tokens that it never saw{part}{dim:#}\n"
        )?;
        out.flush()?;
        let mut table = Table::new([
            ("  format", Align::Left),
            ("size", Align::Right),
            ("bits", Align::Right),
            ("perplexity", Align::Right),
            ("KL", Align::Right),
            ("same choice", Align::Right),
        ]);
        let variants = variants(self.args.format);
        let progress = Progress::new("evaluating");
        let measure = |model: &Model, reference, name: &str, turn: usize| {
            let all = (variants.len() + 1) * windows;
            let report = &mut |done, _| {
                progress.update((turn * windows + done) as u64, all as u64, name);
            };
            evaluate(model, reference, &self.tokens, WINDOW, report)
        };
        let name = loaded.activations.name();
        let original = measure(&loaded.model, None, name, 0)?;
        let size = self.loaded.checkpoint.entries().iter().map(|entry| entry.bytes).sum();
        table.row(loss(name, size, &original));
        for (variant, turn) in variants.iter().zip(1..) {
            let (path, report) = self.quantize(*variant)?;
            let name = variant.name();
            let measured = measure(&self.load(&path)?, Some(&loaded.model), &name, turn)?;
            table.row(loss(&name, report.bytes_after, &measured));
        }
        drop(progress);
        table.print(out)?;
        writeln!(out, "\n{dim}{MEANING}{dim:#}")?;
        Ok(())
    }

    fn show_texts(&self, variant: Variant, quantized: &Model, out: &mut dyn Write) -> Result {
        heading(3, "What it writes", out)?;
        let dim = ui::DIM;
        writeln!(out, "   {dim}lowbit generate OUT --prompt {:?}{dim:#}\n", self.args.prompt)?;
        let sampled =
            Sampling { temperature: 0.8, top_p: 0.95, seed: self.args.seed, ..Sampling::GREEDY };
        let ways = [
            ("always the likeliest token", Sampling::GREEDY),
            ("sampled at temperature 0.8", sampled),
        ];
        for (how, sampling) in ways {
            let before = self.write(&self.loaded.model, sampling)?;
            let after = self.write(quantized, sampling)?;
            let title = |name: &str| format!("{name}, {how}");
            columns(
                [
                    Column { title: title(self.loaded.activations.name()), text: before },
                    Column { title: title(&variant.name()), text: after },
                ],
                out,
            )?;
        }
        Ok(())
    }

    /// The prompt and what a model makes of it.
    fn write(&self, model: &Model, sampling: Sampling) -> Result<String> {
        let mut tokens = self.tokenizer.encode(&self.args.prompt)?;
        let mut session = Session::new(model, tokens.len() + NEW_TOKENS)?;
        let defaults = GenerationDefaults::open(&self.directory, model.config())?;
        let eos_token_ids = defaults.eos_token_ids;
        let options = Options { max_new_tokens: NEW_TOKENS, sampling, eos_token_ids };
        let go_on = &mut |_| std::ops::ControlFlow::Continue(());
        tokens.extend(session.generate(&tokens, &options, go_on)?.tokens);
        Ok(self.tokenizer.decode(&tokens)?)
    }
}

const MEANING: &str = "   \
   perplexity   between how many tokens it hesitates, on average; low is good
   KL           how far its predictions are from the original's, in nats
   same choice  how often both find the same next token likeliest
   dq           double quantization: the scales are quantized as well";

fn loss(name: &str, bytes: u64, evaluation: &Evaluation) -> [String; 6] {
    [
        format!("  {name}"),
        ui::bytes(bytes),
        format!("{:.3}", evaluation.bits_per_weight),
        format!("{:.3}", evaluation.perplexity),
        evaluation.kl.map_or("-".into(), |kl| format!("{kl:.5}")),
        evaluation.top1_agreement.map_or("-".into(), |same| format!("{:.2} %", 100.0 * same)),
    ]
}
