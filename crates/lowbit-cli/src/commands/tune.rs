//! `lowbit tune`: which kernels are the fastest on this GPU, for every other command to take them.

use std::io::Write;
use std::path::PathBuf;

use lowbit::DType;
use lowbit_gpu::tune::{Trials, tune};

use crate::args;
use crate::device::{Chosen, DeviceArgs};
use crate::failure::{Failure, Result};
use crate::tuned::{self, Tuned};
use crate::ui::{self, Align, Progress, Table};

/// Measure which kernels are the fastest on a GPU, and keep the table
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  lowbit tune
  lowbit tune --device gpu:NAME --shape 2048x2048,8192x2048
  lowbit tune --reset

Every kernel that can do a product is run for each shape, number of rows and type, its results are \
compared, and the fastest is written down. From then on all commands take it on this GPU. Products of \
other sizes take what was the fastest for the nearest. Run it while nothing else uses the GPU.")]
pub struct Args {
    #[command(flatten)]
    device: DeviceArgs,
    /// Weights to measure with, N rows of K
    #[arg(long, value_name = "NxK", value_delimiter = ',', value_parser = args::shape,
        default_value = "2048x2048,4096x4096,14336x4096")]
    shape: Vec<[usize; 2]>,
    /// Rows of activations to measure with
    #[arg(long, value_name = "M", value_delimiter = ',', value_parser = args::at_least(1),
        default_value = "1,2,4,8,16,32,64,128,512")]
    rows: Vec<usize>,
    /// Types of activations to measure with; those in 16 bits take the same kernels
    #[arg(long, value_name = "DTYPE", value_delimiter = ',', value_parser = args::dtype(),
        default_value = "bf16,f32")]
    dtype: Vec<DType>,
    /// Milliseconds to measure each kernel for, three times
    #[arg(long, value_name = "MS", default_value = "10", value_parser = args::positive)]
    milliseconds: f32,
    /// The file to write, if other commands are not to take it [default: among this user's settings]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Forget what was measured on this GPU
    #[arg(long, conflicts_with_all = ["shape", "rows", "dtype", "milliseconds", "output"])]
    reset: bool,
}

pub fn run(args: &Args, out: &mut dyn Write) -> Result {
    let Chosen::Gpu(gpu) = args.device.choose()? else {
        return Err(Failure::failed(
            "tune: expected a GPU, got the CPU, which has nothing to choose; lowbit devices lists what \
             there is",
        ));
    };
    let adapter = gpu.adapter();
    let kept = tuned::path(adapter);
    if args.reset {
        return reset(kept, out);
    }
    let path = args.output.clone().or(kept).ok_or_else(|| {
        Failure::failed("tune: this user has no directory for settings; choose an --output")
    })?;
    let trials = Trials {
        shapes: args.shape.clone(),
        rows: args.rows.clone(),
        dtypes: args.dtype.clone(),
        seconds: 1e-3 * f64::from(args.milliseconds),
    };
    let progress = Progress::new("measuring");
    let result = tune(&gpu, &trials, &mut |done, total, now| {
        progress.update(done as u64, total as u64, now);
    })?;
    drop(progress);
    let mut table = Table::new([
        ("N", Align::Right),
        ("rows", Align::Right),
        ("codes", Align::Left),
        ("type", Align::Left),
        ("us", Align::Right),
        ("usual", Align::Right),
        ("kernel", Align::Left),
    ]);
    let mut better = 0;
    for line in &result.choices.lines {
        better += usize::from(line.us < line.usual_us);
        table.row([
            line.weight_rows.to_string(),
            line.rows.to_string(),
            if line.class.pairs { "4 bits" } else { "others" }.to_owned(),
            if line.class.f32 { "f32" } else { "16 bits" }.to_owned(),
            format!("{:.1}", line.us),
            format!("{:.1}", line.usual_us),
            line.kernel(),
        ]);
    }
    table.print(out)?;
    let (products, measured) = (result.choices.lines.len(), result.measured);
    Tuned::new(adapter, result.choices).save(&path)?;
    let dim = ui::DIM;
    writeln!(
        out,
        "\n{}: {measured} kernels measured; for {better} of {products} products another is faster than the \
         usual one\n{dim}kept in {}{dim:#}",
        ui::printable(&adapter.name()),
        path.display()
    )?;
    match result.wrong.as_slice() {
        [] => Ok(()),
        wrong => Err(Failure::failed(format!(
            "tune: {} kernels gave wrong results and were left out, the first: {}; please report it",
            wrong.len(),
            wrong.first().map_or("", String::as_str)
        ))),
    }
}

fn reset(kept: Option<PathBuf>, out: &mut dyn Write) -> Result {
    let Some(path) = kept.filter(|path| path.exists()) else {
        writeln!(out, "Nothing was measured on this GPU.")?;
        return Ok(());
    };
    std::fs::remove_file(&path).map_err(|error| {
        Failure::failed(format!("tune: could not remove {}: {error}", path.display()))
    })?;
    writeln!(out, "Forgot {}.", path.display())?;
    Ok(())
}
