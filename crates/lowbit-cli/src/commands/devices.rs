//! `lowbit devices`: what a model can run on here.

use std::io::Write;

use lowbit::cpu::Isa;
use serde::Serialize;

use crate::commands::print_json;
use crate::failure::Result;
use crate::machine;
use crate::ui::{self, Align, Table};

/// List the devices of this machine
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  lowbit devices
  lowbit devices --json")]
pub struct Args {
    /// Write JSON
    #[arg(long)]
    json: bool,
}

/// A device, as people and programs read it.
#[derive(Serialize)]
struct Device {
    /// What `--device` takes.
    device: &'static str,
    name: String,
    /// Instruction sets with kernels of their own, the best first.
    instruction_sets: Vec<&'static str>,
    threads: usize,
    memory_bytes: u64,
    memory_free_bytes: u64,
}

pub fn run(args: &Args, out: &mut dyn Write) -> Result {
    let devices = [cpu()];
    if args.json {
        return print_json(out, &devices);
    }
    let mut table = Table::new([
        ("device", Align::Left),
        ("name", Align::Left),
        ("instructions", Align::Left),
        ("threads", Align::Right),
        ("memory", Align::Right),
        ("free", Align::Right),
    ]);
    for device in &devices {
        table.row([
            device.device.to_owned(),
            device.name.clone(),
            device.instruction_sets.join(" "),
            device.threads.to_string(),
            ui::bytes(device.memory_bytes),
            ui::bytes(device.memory_free_bytes),
        ]);
    }
    table.print(out)
}

fn cpu() -> Device {
    let memory = machine::memory();
    Device {
        device: "cpu",
        name: machine::processor(),
        instruction_sets: Isa::available().into_iter().map(Isa::name).collect(),
        threads: rayon::current_num_threads(),
        memory_bytes: memory.total,
        memory_free_bytes: memory.free,
    }
}
