//! `lowbit bench`: how fast the kernels are here, against what this machine could do, with every
//! answer checked in the same run.

pub(super) mod cases;
mod gpu;
mod limits;
mod measure;
pub(super) mod model;
pub(super) mod on;
mod optimizer;
pub(super) mod record;
pub(super) mod shape;

use std::io::Write;
use std::num::NonZeroUsize;

use lowbit::{DType, Format};
use lowbit_gpu::Schedule;

use crate::args::{self, Threads};
use crate::device::{Chosen, DeviceArgs};
use crate::failure::{Failure, Result};
use crate::ui::Progress;
use cases::{Case, Operation};
use on::On;
use record::Report;

/// Measure the kernels against the limits of this machine
#[derive(Debug, clap::Args)]
#[command(arg_required_else_help = true)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Measure quantize: weights to codes and scales
    #[command(after_help = QUANTIZE_EXAMPLES)]
    Quantize(Options),
    /// Measure dequantize: codes and scales to weights
    #[command(after_help = DEQUANTIZE_EXAMPLES)]
    Dequantize(Options),
    /// Measure linear, y = x wT, with quantized weights
    #[command(after_help = LINEAR_EXAMPLES)]
    Linear {
        #[command(flatten)]
        options: Options,
        /// Rows of x (M), each measured
        #[arg(long, value_name = "M", default_value = "1,16,128", value_delimiter = ',')]
        rows: Vec<NonZeroUsize>,
        /// On a GPU with matrix hardware: how tiles of results are dealt to groups of threads, each
        /// measured; whole, split:PARTS (split-K) or stream:GROUPS (stream-K) [default: the best]
        #[arg(long, value_name = "S", value_delimiter = ',', value_parser = args::schedule)]
        schedule: Vec<Schedule>,
    },
    Model(model::Args),
    Optimizer(optimizer::Args),
}

const QUANTIZE_EXAMPLES: &str = "\
Examples:
  lowbit bench quantize
  lowbit bench quantize --format nf4,int8 --dtype f32 --json";

const DEQUANTIZE_EXAMPLES: &str = "\
Examples:
  lowbit bench dequantize
  lowbit bench dequantize --format fp4 --shape 14336x4096 --dtype f16";

const LINEAR_EXAMPLES: &str = "\
Examples:
  lowbit bench linear
  lowbit bench linear --rows 1 --dtype f32,bf16 --seconds 3
  lowbit bench linear --double-quant --shape 4096x4096,4096x11008 --json
  lowbit bench linear --device gpu --shape 4096x16384 --rows 4096 --schedule whole,split:2,stream:264

Weights are rotated over more than the last-level cache, so every call finds them in memory. \
gb_s and gflop_s are taken from the median; floor_ms is what the memory bandwidth and the \
multiply-add rate measured in the same run allow; max_error is relative to the root mean square \
of the output.";

#[derive(Debug, clap::Args)]
struct Options {
    /// Formats, each measured
    #[arg(long, value_name = "F", default_value = "nf4", value_delimiter = ',',
          value_parser = args::format())]
    format: Vec<&'static Format>,
    /// Weights that share a scale [default: the format's own]
    #[arg(long, value_name = "B")]
    block_size: Option<usize>,
    /// Quantize the scales as well
    #[arg(long)]
    double_quant: bool,
    /// Shapes of the weights, N rows of K, each measured
    #[arg(long, value_name = "NxK", default_value = "4096x4096", value_delimiter = ',',
          value_parser = args::shape)]
    shape: Vec<[usize; 2]>,
    /// Types of the activations, or of the weights that are quantized, each measured
    #[arg(long, value_name = "TYPE", default_value = "bf16", value_delimiter = ',',
          value_parser = args::dtype())]
    dtype: Vec<DType>,
    #[command(flatten)]
    device: DeviceArgs,
    /// On a GPU: let each call wait for the one before it, as in a model
    #[arg(long)]
    serial: bool,
    #[command(flatten)]
    threads: Threads,
    #[command(flatten)]
    effort: Effort,
}

#[derive(Debug, clap::Args)]
struct Effort {
    /// Seconds to measure each case for
    #[arg(long, value_name = "S", default_value = "1", value_parser = args::seconds)]
    seconds: f32,
    /// Write one JSON object a line
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args, out: &mut dyn Write) -> Result {
    match &args.what {
        What::Quantize(options) => run_cases(options, &[Operation::Quantize], out),
        What::Dequantize(options) => run_cases(options, &[Operation::Dequantize], out),
        What::Linear { options, rows, schedule } => {
            let schedules = match schedule.is_empty() {
                true => vec![None],
                false => schedule.iter().copied().map(Some).collect(),
            };
            let operations: Vec<_> = rows
                .iter()
                .flat_map(|m| schedules.iter().map(|s| Operation::Linear(m.get(), *s)))
                .collect();
            run_cases(options, &operations, out)
        }
        What::Model(args) => model::run(args, out),
        What::Optimizer(args) => optimizer::run(args, out),
    }
}

fn run_cases(options: &Options, operations: &[Operation], out: &mut dyn Write) -> Result {
    let cases = cases_of(options, operations)?;
    options.threads.apply()?;
    let chosen = options.device.choose()?;
    let scheduled = cases.iter().any(|c| matches!(c.operation, Operation::Linear(_, Some(_))));
    if scheduled && matches!(chosen, Chosen::Cpu) {
        let text = "--schedule is for GPUs with matrix hardware; add --device gpu";
        return Err(Failure::usage(text));
    }
    let mut report = Report::new(options.effort.json, out);
    warn_of_debug_build()?;
    let progress = Progress::new("measuring");
    progress.update(0, cases.len() as u64, "the limits of this machine");
    let on = On::new(chosen, options.serial)?;
    for (done, case) in cases.iter().enumerate() {
        progress.update(done as u64, cases.len() as u64, &case.to_string());
        let measured = case.measure(&on, options.effort.seconds)?;
        let verdict = case.verdict(&measured.record);
        report.add(measured)?;
        verdict?;
    }
    drop(progress);
    report.finish(&on, None)
}

/// Figures of a build for debugging mislead.
fn warn_of_debug_build() -> Result {
    if cfg!(debug_assertions) {
        let text = "note: a build for debugging; its figures say nothing (cargo build --release)";
        writeln!(anstream::stderr(), "{text}")?;
    }
    Ok(())
}

/// Every combination, checked before anything is measured.
fn cases_of(options: &Options, operations: &[Operation]) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for &format in &options.format {
        args::check_block_size(format, options.block_size)?;
        args::check_double_quant(format, options.double_quant)?;
        for &shape in &options.shape {
            let (block_size, double_quant) = (options.block_size, options.double_quant);
            lowbit::Geometry::new(format, &shape, block_size)
                .map_err(|error| Failure::usage(error.to_string()))?;
            for &dtype in &options.dtype {
                for &operation in operations {
                    let case = Case { operation, format, block_size, double_quant, shape, dtype };
                    case.check_memory()?;
                    cases.push(case);
                }
            }
        }
    }
    Ok(cases)
}
