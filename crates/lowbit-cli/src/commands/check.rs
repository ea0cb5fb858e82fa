//! `lowbit check`: whether a device computes what it should, how fast it is, and a file that says so.

use std::io::Write;
use std::path::{Path, PathBuf};

use lowbit::conformance::{self, Size};
use lowbit::{Cpu, DType, formats};
use lowbit_gpu::OnGpu;
use serde::Serialize;
use tempfile::NamedTempFile;

use crate::commands::bench::cases::{Case, Operation};
use crate::commands::bench::model::{Subject, measure, verdict};
use crate::commands::bench::on::On;
use crate::commands::bench::record::{Record, Report};
use crate::commands::bench::shape::Storage;
use crate::commands::devices::{self, Graphics, Processor};
use crate::device::{Chosen, DeviceArgs, Place};
use crate::failure::{Failure, Result};
use crate::ui::{self, Progress};

/// Test a device against the reference, and measure it
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  lowbit check
  lowbit check --device gpu:NAME --output my-gpu.json

Runs every operation in every format on the device and compares the results with the reference, then \
measures a few. The file has all of it; attach it to a report, also if everything went well on a device \
that nobody has reported yet.")]
pub struct Args {
    #[command(flatten)]
    device: DeviceArgs,
    /// Test every block size with every shape and type, which takes much longer
    #[arg(long)]
    full: bool,
    /// Seconds to measure each case for
    #[arg(long, value_name = "S", default_value = "0.5", value_parser = crate::args::seconds)]
    seconds: f32,
    /// The file to write
    #[arg(long, value_name = "FILE", default_value = "lowbit-check.json")]
    output: PathBuf,
}

/// What the file says.
#[derive(Serialize)]
struct Findings {
    lowbit: &'static str,
    system: &'static str,
    architecture: &'static str,
    processor: Processor,
    /// The GPU that was tested; none if it was the processor.
    gpu: Option<Graphics>,
    /// Comparisons with the reference.
    cases: usize,
    failures: Vec<String>,
    measured: Vec<Record>,
}

/// Rows of activations that products are measured with.
const ROWS: [usize; 4] = [1, 8, 32, 512];
const SHAPE: [usize; 2] = [4096, 4096];
/// A prompt's and an answer's tokens.
const LENGTHS: [usize; 2] = [128, 32];
const MODEL: &str = "llama-15m";

pub fn run(args: &Args, out: &mut dyn Write) -> Result {
    let output = Output::create(&args.output)?;
    let place = args.device.open(DType::BF16)?;
    let gpu = place.gpu.as_ref().map(|gpu| devices::graphics(gpu.adapter(), false));
    let progress = Progress::new("checking");
    progress.update(0, 3, "every operation in every format");
    let size = if args.full { Size::Full } else { Size::Pairs };
    let tested = match place.chosen() {
        Chosen::Cpu => conformance::run(&Cpu::best(), size),
        Chosen::Gpu(queue) => {
            let name = queue.adapter().name();
            conformance::run(&OnGpu { queue: &queue, name }, size)
        }
    };
    let mut findings = Findings {
        lowbit: env!("CARGO_PKG_VERSION"),
        system: std::env::consts::OS,
        architecture: std::env::consts::ARCH,
        processor: devices::processor(gpu.is_none()),
        gpu,
        cases: tested.cases,
        failures: tested.failures,
        measured: Vec::new(),
    };
    progress.update(1, 3, "how fast it is");
    let on = On::new(place.chosen(), true)?;
    let mut report = Report::new(false, out);
    // What fails here is a finding as well.
    if let Err(failure) = measure_all(&place, &on, args.seconds, &mut findings, &mut report) {
        findings.failures.push(failure.message());
    }
    drop(progress);
    report.finish(&on, None)?;
    output.write(&findings)?;
    let (name, dim) = (place.device.name(), ui::DIM);
    let path = args.output.display();
    if findings.failures.is_empty() {
        writeln!(out, "\n{name}: {} comparisons, all as they should be", findings.cases)?;
        writeln!(
            out,
            "{dim}{path} has the figures; attach it if you report on this device.{dim:#}"
        )?;
        return Ok(());
    }
    Err(Failure::failed(format!(
        "{name}: {} of {} comparisons failed, the first: {}; please report it, and attach {path}",
        findings.failures.len(),
        findings.cases,
        findings.failures.first().map_or("", String::as_str),
    )))
}

/// Products, dequantize and quantize of the first format, and a small model.
fn measure_all(
    place: &Place,
    on: &On,
    seconds: f32,
    findings: &mut Findings,
    report: &mut Report<'_>,
) -> Result {
    let format = formats::ALL[0];
    let linear = ROWS.map(|rows| Operation::Linear(rows, None));
    for operation in linear.into_iter().chain([Operation::Dequantize, Operation::Quantize]) {
        let case = Case {
            operation,
            format,
            block_size: None,
            double_quant: false,
            shape: SHAPE,
            dtype: DType::BF16,
        };
        let measured = case.measure(on, seconds)?;
        if let Err(failure) = case.verdict(&measured.record) {
            findings.failures.push(failure.message());
        }
        findings.measured.push(measured.record.clone());
        report.add(measured)?;
    }
    let storage = Storage { format, block_size: None, double_quant: false, include: &[] };
    let subject = Subject::random(MODEL, &storage)?;
    let model = subject.load(place)?;
    let (measured, max_error) = measure(&subject, &model, on, LENGTHS, seconds)?;
    for measured in measured {
        findings.measured.push(measured.record.clone());
        report.add(measured)?;
    }
    verdict(max_error, subject.activations)
}

/// The file, under another name until it is complete.
struct Output<'a> {
    path: &'a Path,
    file: NamedTempFile,
}

impl<'a> Output<'a> {
    fn create(path: &'a Path) -> Result<Self> {
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let file = NamedTempFile::new_in(directory.unwrap_or(Path::new(".")));
        Ok(Output { path, file: file.map_err(|error| refuse(path, error))? })
    }

    fn write(mut self, findings: &Findings) -> Result {
        let path = self.path;
        serde_json::to_writer_pretty(&mut self.file, findings)
            .map_err(std::io::Error::from)
            .and_then(|()| writeln!(self.file))
            .and_then(|()| Ok(self.file.persist(path)?))
            .map(|_| ())
            .map_err(|error| refuse(path, error))
    }
}

fn refuse(path: &Path, error: std::io::Error) -> Failure {
    Failure::failed(format!("could not write {}: {error}", path.display()))
}
