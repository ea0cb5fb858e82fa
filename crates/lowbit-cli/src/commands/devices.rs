//! `lowbit devices`: what a model can run on here.

use std::io::Write;

use lowbit::cpu::Isa;
use lowbit_gpu::Adapter;
use serde::Serialize;

use crate::commands::print_json;
use crate::failure::Result;
use crate::ui::{self, Align, Table};
use crate::{device, machine};

/// List the devices of this machine
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  lowbit devices
  lowbit devices --json
  lowbit generate MODEL --prompt Hello --device gpu:NAME

--device auto takes a GPU through Metal, then a card, then a GPU that is part of the processor, and \
else the processor; never a software rasterizer.")]
pub struct Args {
    /// Write JSON
    #[arg(long)]
    json: bool,
}

/// A device, as programs read it.
#[derive(Serialize)]
#[serde(untagged)]
enum Device {
    Cpu(Processor),
    Gpu(Graphics),
}

#[derive(Serialize)]
pub struct Processor {
    /// What `--device` takes.
    device: &'static str,
    name: String,
    /// Whether `--device auto` takes it.
    auto: bool,
    /// Instruction sets with kernels of their own, the best first.
    instruction_sets: Vec<&'static str>,
    threads: usize,
    memory_bytes: u64,
    memory_free_bytes: u64,
}

#[derive(Serialize)]
pub struct Graphics {
    /// What `--device` takes.
    device: String,
    name: String,
    auto: bool,
    kind: &'static str,
    backend: &'static str,
    driver: String,
    /// Fewest and most threads of a subgroup.
    subgroup_size: [u32; 2],
    /// What its kernels can use: f16 arithmetic, subgroup operations, cooperative matrices.
    f16: bool,
    subgroups: bool,
    matrix_size: Option<u32>,
    /// The largest tensor that a kernel sees in one piece; larger ones are split.
    binding_bytes: u64,
}

pub fn run(args: &Args, out: &mut dyn Write) -> Result {
    let adapters = Adapter::all();
    let auto = device::best(&adapters);
    let cpu = processor(auto.is_none());
    let is_auto = |a| auto.is_some_and(|auto| std::ptr::eq(auto, a));
    let gpus: Vec<Graphics> = adapters.iter().map(|a| graphics(a, is_auto(a))).collect();
    if args.json {
        let all: Vec<Device> =
            std::iter::once(Device::Cpu(cpu)).chain(gpus.into_iter().map(Device::Gpu)).collect();
        return print_json(out, &all);
    }
    let mut table = Table::new([
        ("device", Align::Left),
        ("name", Align::Left),
        ("instructions", Align::Left),
        ("threads", Align::Right),
        ("memory", Align::Right),
        ("free", Align::Right),
    ]);
    table.row([
        starred(cpu.device, cpu.auto),
        cpu.name,
        cpu.instruction_sets.join(" "),
        cpu.threads.to_string(),
        ui::bytes(cpu.memory_bytes),
        ui::bytes(cpu.memory_free_bytes),
    ]);
    table.print(out)?;
    writeln!(out)?;
    if gpus.is_empty() {
        writeln!(out, "No GPU was found.")?;
    } else {
        print_gpus(&gpus, out)?;
    }
    let dim = ui::DIM;
    writeln!(out, "\n{dim}* is what --device auto takes.{dim:#}")?;
    Ok(())
}

fn print_gpus(gpus: &[Graphics], out: &mut dyn Write) -> Result {
    let mut table = Table::new([
        ("device", Align::Left),
        ("kind", Align::Left),
        ("through", Align::Left),
        ("driver", Align::Left),
        ("subgroup", Align::Right),
        ("f16", Align::Left),
        ("matrices", Align::Right),
        ("binding", Align::Right),
    ]);
    for gpu in gpus {
        let [least, most] = gpu.subgroup_size;
        table.row([
            starred(&gpu.device, gpu.auto),
            gpu.kind.to_owned(),
            gpu.backend.to_owned(),
            gpu.driver.clone(),
            match (gpu.subgroups, least == most) {
                (false, _) => "-".into(),
                (true, true) => most.to_string(),
                (true, false) => format!("{least}..{most}"),
            },
            if gpu.f16 { "yes" } else { "-" }.to_owned(),
            gpu.matrix_size.map_or("-".into(), |side| format!("{side}x{side}")),
            ui::bytes(gpu.binding_bytes),
        ]);
    }
    table.print(out)
}

fn starred(device: &str, auto: bool) -> String {
    format!("{device}{}", if auto { " *" } else { "" })
}

/// What is known of the processor.
pub fn processor(auto: bool) -> Processor {
    let memory = machine::memory();
    Processor {
        device: "cpu",
        name: machine::processor(),
        auto,
        instruction_sets: Isa::available().into_iter().map(Isa::name).collect(),
        threads: rayon::current_num_threads(),
        memory_bytes: memory.total,
        memory_free_bytes: memory.free,
    }
}

/// What is known of an adapter.
pub fn graphics(adapter: &Adapter, auto: bool) -> Graphics {
    let limits = adapter.limits();
    let name = ui::printable(&adapter.name());
    Graphics {
        device: format!("gpu:{name}"),
        name,
        auto,
        kind: adapter.kind().name(),
        backend: adapter.backend(),
        driver: ui::printable(&adapter.driver()),
        subgroup_size: [limits.subgroup.0, limits.subgroup.1],
        f16: limits.f16,
        subgroups: limits.subgroups,
        matrix_size: limits.matrix,
        binding_bytes: limits.binding,
    }
}
