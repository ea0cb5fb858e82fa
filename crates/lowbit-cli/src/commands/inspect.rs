//! `lowbit inspect`: what is in a checkpoint.

use std::io::Write;
use std::path::PathBuf;

use lowbit::{Geometry, formats};
use lowbit_llm::{Checkpoint, Entry};
use serde::Serialize;

use crate::commands::print_json;
use crate::failure::Result;
use crate::ui::{self, Align, Table};

/// Show the tensors of a model: format, shape, size, bits
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  lowbit inspect models/tinybard
  lowbit inspect model-00001-of-00004.safetensors
  lowbit inspect models/tinybard-nf4dq --json")]
pub struct Args {
    /// A model directory or a safetensors file
    path: PathBuf,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report<'a> {
    tensors: Vec<Row<'a>>,
    total: Total,
}

#[derive(Serialize)]
struct Row<'a> {
    name: &'a str,
    /// Of its codes, or the type of its numbers.
    format: String,
    shape: &'a [usize],
    /// Null for a dense tensor.
    block_size: Option<usize>,
    /// Scales included.
    bytes: u64,
    bits_per_weight: f64,
    double_quantized: bool,
}

#[derive(Serialize)]
struct Total {
    tensors: usize,
    weights: u64,
    bytes: u64,
    bits_per_weight: f64,
}

impl<'a> Row<'a> {
    fn new(entry: &'a Entry) -> Self {
        Row {
            name: &entry.name,
            format: entry.format_name(),
            shape: &entry.shape,
            block_size: entry.block_size,
            bytes: entry.bytes,
            bits_per_weight: entry.bits_per_weight(),
            double_quantized: entry.double_quantized,
        }
    }

    /// Its format with what is not as usual: `nf4`, `nf4 b128 dq`.
    fn stored(&self) -> String {
        let usual = formats::by_name(&self.format)
            .and_then(|f| Ok(Geometry::new(f, self.shape, None)?.block_size))
            .ok();
        let block = match self.block_size {
            Some(b) if usual != Some(b) => format!(" b{b}"),
            _ => String::new(),
        };
        format!("{}{block}{}", self.format, if self.double_quantized { " dq" } else { "" })
    }
}

pub fn run(args: &Args, out: &mut dyn Write) -> Result {
    let checkpoint = Checkpoint::open(&args.path)?;
    let entries = checkpoint.entries();
    let report = Report {
        tensors: entries.iter().map(Row::new).collect(),
        total: Total {
            tensors: entries.len(),
            weights: entries.iter().map(Entry::numel).sum(),
            bytes: entries.iter().map(|entry| entry.bytes).sum(),
            bits_per_weight: checkpoint.bits_per_weight(),
        },
    };
    if args.json { print_json(out, &report) } else { print(&report, out) }
}

fn print(report: &Report, out: &mut dyn Write) -> Result {
    let mut table = Table::new([
        ("tensor", Align::Left),
        ("format", Align::Left),
        ("shape", Align::Right),
        ("size", Align::Right),
        ("bits", Align::Right),
    ]);
    for row in &report.tensors {
        let shape: Vec<String> = row.shape.iter().map(usize::to_string).collect();
        table.row([
            ui::printable(row.name),
            row.stored(),
            shape.join("x"),
            ui::bytes(row.bytes),
            format!("{:.3}", row.bits_per_weight),
        ]);
    }
    table.print(out)?;
    let Total { tensors, weights, bytes, bits_per_weight } = report.total;
    let accent = ui::ACCENT;
    writeln!(
        out,
        "\n{tensors} tensors, {} weights, {accent}{}{accent:#}, {bits_per_weight:.3} bits per weight",
        ui::count(weights),
        ui::bytes(bytes),
    )?;
    let stored: Vec<String> = report.tensors.iter().map(Row::stored).collect();
    if stored.iter().any(|text| text.contains(" b")) {
        writeln!(out, "b: weights that share a scale, where not as many as usual")?;
    }
    if stored.iter().any(|text| text.ends_with(" dq")) {
        writeln!(out, "dq: the scales are quantized as well (double quantization)")?;
    }
    Ok(())
}
