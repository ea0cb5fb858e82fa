//! One file per command.

mod bench;
mod chat;
mod check;
mod completions;
mod convert;
mod demo;
mod dequantize;
mod devices;
mod eval;
mod formats;
mod generate;
mod inspect;
mod quantize;
mod tune;

use std::io::Write;

use anstyle::AnsiColor;
use clap::builder::Styles;

use crate::failure::Result;
use crate::ui;

/// Low-bit weights for every machine without a CUDA card
#[derive(Debug, clap::Parser)]
#[command(name = "lowbit", version, styles = STYLES, max_term_width = 100)]
#[command(arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Demo(demo::Args),
    Quantize(quantize::Args),
    Dequantize(dequantize::Args),
    Inspect(inspect::Args),
    Eval(eval::Args),
    Generate(generate::Args),
    Chat(chat::Args),
    Bench(bench::Args),
    Formats(formats::Args),
    Devices(devices::Args),
    Check(check::Args),
    Tune(tune::Args),
    Completions(completions::Args),
}

const STYLES: Styles = Styles::styled()
    .header(ui::HEADING)
    .usage(ui::HEADING)
    .literal(AnsiColor::Cyan.on_default())
    .placeholder(AnsiColor::Cyan.on_default().dimmed());

impl Cli {
    /// Runs the command; what it has to say goes to `out`.
    pub fn run(self, out: &mut dyn Write) -> Result {
        match self.command {
            Command::Demo(args) => demo::run(&args, out),
            Command::Quantize(args) => quantize::run(&args, out),
            Command::Dequantize(args) => dequantize::run(&args, out),
            Command::Inspect(args) => inspect::run(&args, out),
            Command::Eval(args) => eval::run(&args, out),
            Command::Generate(args) => generate::run(&args, out),
            Command::Chat(args) => chat::run(&args, out),
            Command::Bench(args) => bench::run(&args, out),
            Command::Formats(args) => formats::run(&args, out),
            Command::Devices(args) => devices::run(&args, out),
            Command::Check(args) => check::run(&args, out),
            Command::Tune(args) => tune::run(&args, out),
            Command::Completions(args) => completions::run(&args, out),
        }
    }
}

/// Writes one JSON document and a line break.
fn print_json(out: &mut dyn Write, value: &impl serde::Serialize) -> Result {
    serde_json::to_writer(&mut *out, value).map_err(std::io::Error::from)?;
    writeln!(out)?;
    Ok(())
}
