//! `lowbit bench optimizer`: a training step's last part, over one large parameter.

use std::io::Write;

use half::{bf16, f16};
use lowbit::optim::{BLOCK_SIZE, Owned, Rule, Settings, State, reference};
use lowbit::{Cpu, DType, Element};

use super::measure::{Times, gaussian};
use super::on::On;
use super::record::{Measured, Record, Report};
use super::{Effort, warn_of_debug_build};
use crate::args::{self, Threads};
use crate::device::DeviceArgs;
use crate::failure::{Failure, Result};
use crate::ui::Progress;
use crate::{machine, ui};

/// Measure an optimizer's step, with its moments in 8 or 32 bits
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  lowbit bench optimizer
  lowbit bench optimizer --optimizer adam,lion --bits 8,32 --dtype bf16 --json
  lowbit bench optimizer --device gpu --bits 8,32

The step reads parameter, gradient and moments and writes parameter and moments, once each: gb_s and \
floor_ms count these bytes. max_error is the share of numbers in which some steps differ from the \
reference, on a GPU by more than its divisions and roots are off: none may.")]
pub struct Args {
    /// Optimizers, each measured
    #[arg(long, value_name = "NAME", default_value = "adam", value_delimiter = ',',
          value_parser = Rule::by_name)]
    optimizer: Vec<Rule>,
    /// Numbers of the parameter
    #[arg(long, value_name = "N", default_value = "100000000", value_parser = args::at_least(1))]
    numbers: usize,
    /// Bits of a moment, 8 or 32, each measured
    #[arg(long, value_name = "BITS", default_value = "8", value_delimiter = ',',
          value_parser = ["8", "32"])]
    bits: Vec<String>,
    /// Types of parameter and gradient, each measured
    #[arg(long, value_name = "TYPE", default_value = "f32", value_delimiter = ',',
          value_parser = args::dtype())]
    dtype: Vec<DType>,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    threads: Threads,
    #[command(flatten)]
    effort: Effort,
}

/// Numbers that are compared with the reference, over this many steps.
const CHECKED: usize = 40 * BLOCK_SIZE + 100;
const CHECKED_STEPS: u64 = 3;

pub fn run(args: &Args, out: &mut dyn Write) -> Result {
    args.threads.apply()?;
    let mut cases = Vec::new();
    for &rule in &args.optimizer {
        for &dtype in &args.dtype {
            for bits in &args.bits {
                let case = Case { rule, dtype, is_8bit: bits == "8", numbers: args.numbers };
                case.check_memory()?;
                cases.push(case);
            }
        }
    }
    let chosen = args.device.choose()?;
    let mut report = Report::new(args.effort.json, out);
    warn_of_debug_build()?;
    let progress = Progress::new("measuring");
    progress.update(0, cases.len() as u64, "the limits of this machine");
    // A step waits for the one before it, wherever.
    let on = On::new(chosen, true)?;
    for (done, case) in cases.iter().enumerate() {
        progress.update(done as u64, cases.len() as u64, &case.name());
        let measured = match case.dtype {
            DType::F32 => case.measure::<f32>(&on, args.effort.seconds)?,
            DType::F16 => case.measure::<f16>(&on, args.effort.seconds)?,
            DType::BF16 => case.measure::<bf16>(&on, args.effort.seconds)?,
        };
        let differ = measured.record.max_error;
        report.add(measured)?;
        if differ > 0.0 {
            return Err(Failure::failed(format!(
                "bench {}: expected the numbers of the reference, got others in {differ:.1e} of \
                 them; the kernel is wrong on this machine, please report it",
                case.name()
            )));
        }
    }
    drop(progress);
    report.finish(&on, None)
}

struct Case {
    rule: Rule,
    dtype: DType,
    is_8bit: bool,
    numbers: usize,
}

impl Case {
    fn name(&self) -> String {
        format!("{} {}", self.rule.name(), if self.is_8bit { "8-bit" } else { "32-bit" })
    }

    fn state(&self, numbers: usize) -> State {
        let new = if self.is_8bit { State::new_8bit } else { State::new_f32 };
        new(self.rule, numbers)
    }

    /// Bytes of parameter, gradient and moments.
    fn bytes(&self) -> u64 {
        let moments = self.rule.moments().len() as u64;
        let moment = if self.is_8bit { 1 } else { 4 };
        (self.numbers as u64).saturating_mul(2 * self.dtype.size() as u64 + moments * moment)
    }

    fn check_memory(&self) -> Result {
        let (needed, free) = (self.bytes(), machine::memory().free);
        if needed <= free {
            return Ok(());
        }
        Err(Failure::failed(format!(
            "bench optimizer {}: it takes {}, and {} of memory are free; choose fewer --numbers",
            self.name(),
            ui::bytes(needed),
            ui::bytes(free)
        )))
    }

    fn measure<T: Element>(&self, on: &On, seconds: f32) -> Result<Measured> {
        let settings = Settings { weight_decay: 0.01, ..Settings::of(self.rule) };
        let max_error = self.compare::<T>(on, &settings)?;
        let mut p: Vec<T> = gaussian(self.numbers, 0.02, 1)?;
        let g: Vec<T> = gaussian(self.numbers, 1e-3, 2)?;
        let mut state = self.state(self.numbers);
        let times = match on {
            On::Cpu(limits) => Times::take(limits, seconds, 1, |_| {
                Ok(Cpu::best().optimizer_step(&settings, &mut state, &mut p, &g)?)
            })?,
            On::Gpu(place) => place.optimizer_steps(&settings, &state, &p, &g, seconds)?,
        };
        // All but the gradient is read and written.
        let bytes = 2.0 * self.bytes() as f64 - size_of_val(&g[..]) as f64;
        let record = Record {
            op: "optimizer",
            format: self.name(),
            shape: Some([1, self.numbers]),
            rows: None,
            dtype: self.dtype.name(),
            device: on.device(),
            isa: on.name(),
            threads: on.threads(),
            ms_min: 1e3 * times.min(),
            ms_median: 1e3 * times.median(),
            gb_s: 1e-9 * bytes / times.median(),
            gflop_s: None,
            max_error,
            floor_ms: 1e3 * bytes / times.bandwidth,
            block_size: self.is_8bit.then_some(BLOCK_SIZE),
            double_quant: false,
            schedule: None,
            tok_s: None,
        };
        Ok(Measured { record, bandwidth: times.bandwidth })
    }

    /// The share of numbers that differ from the reference after some steps, each of which begins where the
    /// reference's does.
    fn compare<T: Element>(&self, on: &On, settings: &Settings) -> Result<f64> {
        let len = CHECKED.min(self.numbers);
        let mut p: Vec<T> = gaussian(len, 0.02, 1)?;
        let mut state = self.state(len);
        let mut wrong = 0;
        for step in 1..=CHECKED_STEPS {
            let g: Vec<T> = gaussian(len, 1e-3, step)?;
            let (mut fast, mut fast_state) = (p.clone(), state.clone());
            let slack = match on {
                On::Cpu(_) => {
                    let cpu = Cpu::best();
                    cpu.optimizer_step(settings, &mut fast_state, &mut fast, &g)?;
                    Slack::NONE
                }
                On::Gpu(place) => {
                    (fast, fast_state) = place.optimizer_step(settings, &fast_state, &p, &g)?;
                    Slack::of::<T>(settings)
                }
            };
            let before = p.clone();
            reference::update(self.rule, settings, step, &mut p, &g, &mut state.moments())?;
            state = State::from_parts(self.rule, step, state.parts().to_vec())?;
            let parameters = fast.iter().zip(&p).zip(&before);
            wrong +=
                parameters.filter(|((a, b), before)| !slack.is_near(**a, **b, **before)).count();
            let moments = fast_state.parts().iter().zip(state.parts());
            wrong += moments.map(|(a, b)| slack.differ(a, b)).sum::<usize>();
        }
        let numbers = len * (1 + self.rule.moments().len()) * CHECKED_STEPS as usize;
        Ok(wrong as f64 / numbers as f64)
    }
}

/// How far a step may be off.
struct Slack {
    /// Of a parameter: of itself, of what it was moved by, and of anything.
    parameter: [f32; 3],
    /// Of a moment in f32, and of an absmax.
    moment: f32,
    /// Of a code, in ranks.
    code: u8,
}

impl Slack {
    const NONE: Slack = Slack { parameter: [0.0; 3], moment: 0.0, code: 0 };

    /// Divisions and roots of a GPU are some units in the last place off, so numbers may be rounded the other
    /// way, and codes lie beside what they should be.
    fn of<T: Element>(settings: &Settings) -> Self {
        let eps = match T::DTYPE {
            DType::F32 => 4e-7,
            DType::F16 => f16::EPSILON.to_f32(),
            DType::BF16 => bf16::EPSILON.to_f32(),
        };
        Slack { parameter: [eps, 1e-5, 1e-5 * settings.lr as f32], moment: 4e-6, code: 1 }
    }

    /// Whether a parameter is no further off, given what it was before.
    fn is_near<T: Element>(&self, a: T, b: T, before: T) -> bool {
        let (a, b, before) = (a.to_f32(), b.to_f32(), before.to_f32());
        let [itself, moved, anything] = self.parameter;
        (a - b).abs() <= itself * b.abs() + moved * (b - before).abs() + anything
    }

    /// How many numbers of two moments are further off.
    fn differ(&self, a: &Owned, b: &Owned) -> usize {
        let numbers = |a: &[f32], b: &[f32]| {
            let largest = b.iter().fold(0.0f32, |most, v| v.abs().max(most));
            let most = |b: f32| self.moment * (b.abs() + 0.05 * largest);
            // Counted this way around, as NaN is near nothing.
            b.len() - a.iter().zip(b).filter(|(a, b)| (*a - *b).abs() <= most(**b)).count()
        };
        match (a, b) {
            (Owned::F32(a), Owned::F32(b)) => numbers(a, b),
            (Owned::Bits8 { codes: a, absmax: x }, Owned::Bits8 { codes: b, absmax: y }) => {
                a.iter().zip(b).filter(|(a, b)| a.abs_diff(**b) > self.code).count() + numbers(x, y)
            }
            _ => usize::MAX,
        }
    }
}
