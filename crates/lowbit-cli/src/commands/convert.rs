//! What `quantize` and `dequantize` have in common: how they write, and what they tell.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use lowbit_llm::convert::{self, Left, Report, WriteOptions};

use crate::args::Threads;
use crate::failure::Result;
use crate::interrupt::Interrupt;
use crate::ui::{self, Align, Progress, Table};

/// From where to where.
#[derive(Debug, clap::Args)]
pub struct ConvertArgs {
    /// A model directory or a safetensors file
    #[arg(value_name = "IN")]
    pub input: PathBuf,
    /// What to write, of the same kind
    #[arg(value_name = "OUT")]
    pub output: PathBuf,
    #[command(flatten)]
    threads: Threads,
    /// Replace OUT if it exists, once the new one is complete
    #[arg(long)]
    force: bool,
}

impl ConvertArgs {
    /// How the output is written.
    pub fn write_options(&self) -> WriteOptions {
        let WriteOptions { max_shard_size, .. } = WriteOptions::default();
        WriteOptions { threads: self.threads.count(), force: self.force, max_shard_size }
    }
}

/// A progress bar that Ctrl-C cancels the work behind: what it has written so far is removed.
pub struct Watch {
    bar: Progress,
    interrupt: Interrupt,
}

impl Watch {
    /// Watches from now on.
    pub fn new(what: &'static str) -> Result<Self> {
        Ok(Watch { bar: Progress::new(what), interrupt: Interrupt::listen()? })
    }
}

impl convert::Progress for Watch {
    fn update(&self, done: u64, total: u64, name: &str) {
        self.bar.update(done, total, &ui::printable(name));
    }

    fn cancelled(&self) -> bool {
        self.interrupt.pressed()
    }
}

/// Tells what a conversion did.
pub fn print_report(report: &Report, output: &Path, out: &mut dyn Write) -> Result {
    let smaller = report.bytes_before as f64 / report.bytes_after.max(1) as f64;
    let mut table = Table::new([
        ("", Align::Left),
        ("before", Align::Right),
        ("after", Align::Right),
        ("", Align::Left),
    ]);
    table.row([
        "size".to_owned(),
        ui::bytes(report.bytes_before),
        ui::bytes(report.bytes_after),
        if smaller > 1.0 { format!("{smaller:.2} times smaller") } else { String::new() },
    ]);
    table.row([
        "bits per weight".to_owned(),
        format!("{:.3}", report.bits_before),
        format!("{:.3}", report.bits_after),
        String::new(),
    ]);
    table.print(out)?;
    writeln!(out, "\n{}, {}", tensors(report.converted.len()), kinds(report))?;
    for (reason, left) in by_reason(&report.left) {
        let (dim, first) = (ui::DIM, ui::printable(&left[0].name));
        let more = if left.len() > 1 { ", .." } else { "" };
        let count = tensors(left.len());
        writeln!(out, "{count} left: {reason} {dim}({first}{more}){dim:#}")?;
    }
    let accent = ui::ACCENT;
    writeln!(out, "wrote {accent}{}{accent:#}", output.display())?;
    Ok(())
}

fn tensors(count: usize) -> String {
    format!("{count} tensor{}", if count == 1 { "" } else { "s" })
}

/// `bf16 to nf4`, of all that were converted.
fn kinds(report: &Report) -> String {
    let mut kinds: Vec<String> =
        report.converted.iter().map(|c| format!("{} to {}", c.from, c.to)).collect();
    kinds.sort();
    kinds.dedup();
    if kinds.is_empty() { "nothing to convert".into() } else { kinds.join(", ") }
}

fn by_reason(left: &[Left]) -> BTreeMap<String, Vec<&Left>> {
    let mut groups: BTreeMap<String, Vec<&Left>> = BTreeMap::new();
    for tensor in left {
        groups.entry(tensor.reason.to_string()).or_default().push(tensor);
    }
    groups
}
