//! `lowbit eval --sweep`: what each format costs a model, with and without calibration.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use lowbit::{Format, quantizers};
use lowbit_llm::convert::{self, Calibration, QuantizeOptions, Report};
use lowbit_llm::eval::evaluate;
use lowbit_llm::generate::{Options, Session};
use lowbit_llm::sampling::Sampling;
use lowbit_llm::{Checkpoint, Model, Tokenizer};
use serde::Serialize;
use tempfile::TempDir;

use super::picture;
use crate::args;
use crate::commands::print_json;
use crate::failure::{Failure, Result};
use crate::interrupt::Interrupt;
use crate::model::{self, Loaded};
use crate::ui::{self, Align, Progress, Table};

/// What a sweep does.
#[derive(Debug, clap::Args)]
pub struct SweepArgs {
    /// Quantize MODEL to several formats and measure each against MODEL itself
    #[arg(long, conflicts_with = "reference")]
    pub sweep: bool,
    /// The formats of a sweep, separated by commas
    #[arg(long, value_name = "F,..", requires = "sweep", value_delimiter = ',',
          default_value = "nf4,t158,bin1,sub1-v10-c512,sub1,sub1-v10-c128",
          value_parser = args::format())]
    formats: Vec<&'static Format>,
    /// Of a sweep: a text to calibrate with; formats below four bits are measured with and without
    #[arg(long, value_name = "FILE", requires = "sweep")]
    calibrate: Option<PathBuf>,
    /// Of a sweep: windows of that text
    #[arg(long, value_name = "N", requires = "calibrate", value_parser = args::at_least(1))]
    samples: Option<usize>,
    /// Of a sweep: what every model continues, always by the likeliest token
    #[arg(
        long,
        value_name = "TEXT",
        requires = "sweep",
        default_value = "ROMEO:\n",
        hide_default_value = true
    )]
    prompt: String,
    /// Of a sweep: write a picture of size against KL divergence, an SVG file
    #[arg(long, value_name = "FILE", requires = "sweep")]
    picture: Option<PathBuf>,
}

/// A sweep, ready to run.
pub struct Sweep<'a> {
    pub args: &'a SweepArgs,
    pub loaded: Loaded,
    pub tokenizer: Tokenizer,
    pub tokens: Vec<u32>,
    pub window: usize,
}

/// One model of a sweep.
#[derive(Debug, Serialize)]
pub struct Row {
    pub format: String,
    pub calibrated: bool,
    /// Of the layers that are quantized: codes, scales, means and codebooks.
    pub bits_per_weight: f64,
    /// Of the whole model.
    pub bytes: u64,
    pub perplexity: f64,
    pub kl: Option<f64>,
    pub top1_agreement: Option<f64>,
    /// The prompt and what follows.
    pub text: String,
}

/// Tokens of each text that is written.
const NEW_TOKENS: usize = 40;
/// Formats of fewer bits are calibrated.
const CALIBRATED_BELOW: u32 = 4;

impl Sweep<'_> {
    pub fn run(&self, json: bool, out: &mut dyn Write) -> Result {
        let temp = TempDir::new().map_err(|error| {
            Failure::failed(format!("could not make a temporary directory: {error}"))
        })?;
        let interrupt = Interrupt::listen()?;
        let rows = interrupt.idle_removing(temp.path(), || self.rows(temp.path()))?;
        if let Some(path) = &self.args.picture {
            std::fs::write(path, picture::draw(&rows)).map_err(|error| {
                Failure::failed(format!("could not write {}: {error}", path.display()))
            })?;
        }
        if json { print_json(out, &rows) } else { print(&rows, out) }
    }

    fn rows(&self, temp: &Path) -> Result<Vec<Row>> {
        let calibration = match &self.args.calibrate {
            None => None,
            Some(path) => Some(Calibration {
                tokens: self.tokenizer.encode(&args::read_text(path)?)?,
                samples: self.args.samples,
                window: self.window,
            }),
        };
        let mut ways = Vec::new();
        for format in &self.args.formats {
            // One code may stand for several weights.
            let bits = format.code_bits.div_ceil(format.weights_per_code as u32);
            ways.push((*format, None));
            if let Some(calibration) = calibration.as_ref().filter(|_| bits < CALIBRATED_BELOW) {
                ways.push((*format, Some(calibration)));
            }
        }
        let progress = Progress::new("sweeping");
        let total = ways.len() as u64 + 1;
        progress.update(0, total, self.loaded.activations.name());
        let mut rows = vec![self.original()?];
        for (turn, (format, calibration)) in ways.into_iter().enumerate() {
            progress.update(turn as u64 + 1, total, format.name);
            rows.push(self.measure(format, calibration, temp)?);
        }
        Ok(rows)
    }

    fn original(&self) -> Result<Row> {
        let Loaded { model, activations, checkpoint, .. } = &self.loaded;
        let measured = evaluate(model, None, &self.tokens, self.window, &mut |_, _| {})?;
        Ok(Row {
            format: activations.name().to_owned(),
            calibrated: false,
            bits_per_weight: 8.0 * activations.size() as f64,
            bytes: checkpoint.bytes(),
            perplexity: measured.perplexity,
            kl: None,
            top1_agreement: None,
            text: self.write(model)?,
        })
    }

    fn measure(
        &self,
        format: &'static Format,
        calibration: Option<&Calibration>,
        temp: &Path,
    ) -> Result<Row> {
        let mut options = QuantizeOptions::new(format);
        options.search = quantizers::Options { fit: true, ..quantizers::Options::default() };
        options.calibration = calibration.cloned();
        options.write.force = true;
        let path = temp.join("model");
        let report = convert::quantize(&self.loaded.directory, &path, &options, &())?;
        let model = model::load(&Checkpoint::open(&path)?, &self.loaded.place)?;
        let reference = Some(&self.loaded.model);
        let measured = evaluate(&model, reference, &self.tokens, self.window, &mut |_, _| {})?;
        Ok(Row {
            format: format.name.to_owned(),
            calibrated: calibration.is_some(),
            bits_per_weight: bits(&report),
            bytes: report.bytes_after,
            perplexity: measured.perplexity,
            kl: measured.kl,
            top1_agreement: measured.top1_agreement,
            text: self.write(&model)?,
        })
    }

    /// The prompt and what a model makes of it, always by the likeliest token.
    fn write(&self, model: &Model) -> Result<String> {
        let mut tokens = self.tokenizer.encode(&self.args.prompt)?;
        let mut session = Session::new(model, tokens.len() + NEW_TOKENS)?;
        let options = Options {
            max_new_tokens: NEW_TOKENS,
            sampling: Sampling::GREEDY,
            eos_token_ids: model.config().eos_token_ids.clone(),
        };
        let go_on = &mut |_| ControlFlow::Continue(());
        tokens.extend(session.generate(&tokens, &options, go_on)?.tokens);
        Ok(self.tokenizer.decode(&tokens)?)
    }
}

/// Stored bits for each weight that was quantized.
fn bits(report: &Report) -> f64 {
    let bytes: u64 = report.converted.iter().map(|c| c.bytes_after).sum();
    let weights: usize = report.converted.iter().map(|c| c.shape.iter().product::<usize>()).sum();
    8.0 * bytes as f64 / weights.max(1) as f64
}

fn print(rows: &[Row], out: &mut dyn Write) -> Result {
    let mut table = Table::new([
        ("format", Align::Left),
        ("calibrated", Align::Left),
        ("bits", Align::Right),
        ("size", Align::Right),
        ("perplexity", Align::Right),
        ("KL", Align::Right),
        ("same choice", Align::Right),
    ]);
    for row in rows {
        table.row([
            row.format.clone(),
            if row.calibrated { "yes".to_owned() } else { String::new() },
            format!("{:.3}", row.bits_per_weight),
            ui::bytes(row.bytes),
            format!("{:.3}", row.perplexity),
            row.kl.map_or("-".into(), |kl| format!("{kl:.4}")),
            row.top1_agreement.map_or("-".into(), |same| format!("{:.1} %", 100.0 * same)),
        ]);
    }
    table.print(out)?;
    writeln!(
        out,
        "\nbits: per weight of the quantized layers, with scales and codebooks; size: the whole model;\n\
         KL: from the predictions of the first row, in nats.\n"
    )?;
    let dim = ui::DIM;
    for row in rows {
        let way = if row.calibrated { ", calibrated" } else { "" };
        let text = ui::printable(&row.text.replace('\n', " / "));
        writeln!(out, "{dim}{}{way}:{dim:#} {text}", row.format)?;
    }
    Ok(())
}
