//! Measures the kernels that products can take on an adapter.

use lowbit::{Cpu, DType, Error, Result, Weight, formats};

use crate::choices::{Choices, Class, Line};
use crate::choose::{Product, candidates, usual};
use crate::numbers::{from_bytes, to_bytes};
use crate::product::linear_by;
use crate::{Buffer, Gpu, GpuWeight, Queue};

/// Bytes of weights to rotate through: several times the largest cache of a GPU.
const COLD_BYTES: usize = 400_000_000;
/// Copies of a weight, and calls of one submission, at most.
const CALLS: usize = 64;
/// Submissions whose fastest counts.
const ROUNDS: usize = 3;
/// A kernel that takes so many times as long as the best is not measured again.
const HOPELESS: f64 = 2.0;
/// What a kernel must take of the built-in choice's time to be preferred to it.
const BETTER: f64 = 0.97;

/// What to measure.
#[derive(Debug, Clone)]
pub struct Trials {
    /// `[N, K]` of weights.
    pub shapes: Vec<[usize; 2]>,
    /// Rows of activations.
    pub rows: Vec<usize>,
    /// Types of activations; those in 16 bits take the same kernels.
    pub dtypes: Vec<DType>,
    /// Seconds of a submission, about.
    pub seconds: f64,
}

/// What came of it.
#[derive(Debug)]
pub struct Tuned {
    /// The fastest kernels.
    pub choices: Choices,
    /// Kernels that were measured.
    pub measured: usize,
    /// Kernels whose results were wrong, which are not among the choices.
    pub wrong: Vec<String>,
}

/// Measures every kernel for every product; `progress` is called with products done and in total and
/// what is next.
///
/// # Errors
/// As [`Queue::dispatch`].
pub fn tune(
    gpu: &Gpu,
    trials: &Trials,
    progress: &mut dyn FnMut(usize, usize, &str),
) -> Result<Tuned> {
    let mut tuned = Tuned { choices: Choices::default(), measured: 0, wrong: Vec::new() };
    let total = 2 * trials.dtypes.len() * trials.shapes.len() * trials.rows.len();
    let mut done = 0;
    for [n, k] in &trials.shapes {
        for pairs in [true, false] {
            let weights = weights(gpu, [*n, *k], pairs)?;
            for (dtype, m) in
                trials.dtypes.iter().flat_map(|d| trials.rows.iter().map(|m| (*d, *m)))
            {
                progress(done, total, &format!("{m} x {n} x {k}, {dtype}"));
                let x: Vec<f32> = (0..m * k).map(|i| noise(i as u32)).collect();
                let x = gpu.upload(&to_bytes(&x, dtype))?;
                let bench = Bench { gpu, weights: &weights, x, m, dtype, seconds: trials.seconds };
                tuned.choices.lines.push(bench.fastest(&mut tuned.measured, &mut tuned.wrong)?);
                done += 1;
            }
        }
    }
    progress(done, total, "");
    Ok(tuned)
}

/// A number from -1 to 1, another one for each `i`.
fn noise(i: u32) -> f32 {
    let mixed = (i ^ (i >> 15)).wrapping_mul(0x2c1b_3c6d);
    let mixed = (mixed ^ (mixed >> 12)).wrapping_mul(0x297a_2d39);
    (mixed ^ (mixed >> 15)) as i32 as f32 / -(i32::MIN as f32)
}

/// Copies of a weight that no cache holds: of the first format whose codes are looked up in pairs, or of
/// the first whose are not.
fn weights(gpu: &Gpu, [n, k]: [usize; 2], pairs: bool) -> Result<Vec<GpuWeight<Buffer>>> {
    let numbers: Vec<f32> = (0..n * k).map(|i| noise(i as u32)).collect();
    for format in formats::ALL.iter().filter(|f| f.encoder.is_some()) {
        let q = Cpu::best().quantize(format, &numbers, &[n, k], None)?;
        let bytes = q.bytes();
        let weight = Weight::Quantized(q);
        let first = GpuWeight::upload(gpu, &weight)?;
        if first.kind().is_nibble_table() == pairs {
            let more = COLD_BYTES.div_ceil(bytes.max(1)).clamp(2, CALLS) - 1;
            let more = (0..more).map(|_| GpuWeight::upload(gpu, &weight));
            return std::iter::once(Ok(first)).chain(more).collect();
        }
    }
    Err(Error::argument("tune", "a format of each kind", "none", "report it"))
}

/// One product.
struct Bench<'a> {
    gpu: &'a Gpu,
    weights: &'a [GpuWeight<Buffer>],
    /// `[M, K]`.
    x: Buffer,
    m: usize,
    dtype: DType,
    seconds: f64,
}

impl Bench<'_> {
    /// The fastest kernel that is right.
    fn fastest(&self, measured: &mut usize, wrong: &mut Vec<String>) -> Result<Line> {
        let weight = &self.weights[0];
        let ((n, k), kind, limits) = (weight.rows_cols(), weight.kind(), self.gpu.limits());
        let usual = usual([self.m, n, k], kind, self.dtype, limits);
        let expected = self.result(usual)?;
        let usual_us = self.time(usual, f64::INFINITY)?;
        let class = Class::of(kind, self.dtype);
        let line =
            Line { class, weight_rows: n, rows: self.m, product: usual, us: usual_us, usual_us };
        let mut best = Line { us: BETTER * usual_us, ..line };
        let others = candidates(self.m, class, limits);
        let fits = |p: &Product| p.suits([n, k], kind, limits) && p.is_for(self.dtype);
        let others = others.into_iter().filter(|p| *p != usual && fits(p));
        for product in others {
            *measured += 1;
            let candidate = Line { product, ..line };
            if !agree(&self.result(product)?, &expected, self.dtype) {
                wrong.push(format!("{} of {} rows in {}", product, self.m, self.dtype));
                continue;
            }
            let us = self.time(product, HOPELESS * best.us)?;
            if us < best.us {
                best = Line { us, ..candidate };
            }
        }
        Ok(if best.product == usual { line } else { best })
    }

    fn result(&self, product: Product) -> Result<Vec<f32>> {
        let (n, _) = self.weights[0].rows_cols();
        let y = linear_by(self.gpu, &self.x, self.m, &self.weights[0], product, self.dtype)?;
        let bytes = self.gpu.read(&y, (self.m * n * self.dtype.size()) as u64)?;
        Ok(from_bytes(&bytes, self.dtype))
    }

    /// Microseconds of a call, many of them in a submission; of one call alone, if that takes more
    /// than `hopeless`.
    fn time(&self, product: Product, hopeless: f64) -> Result<f64> {
        let mut turn = self.weights.iter().cycle();
        let mut submit = |calls: usize| {
            let work = || -> Result<Vec<Buffer>> {
                let call = |w| linear_by(self.gpu, &self.x, self.m, w, product, self.dtype);
                turn.by_ref().take(calls).map(call).collect()
            };
            self.gpu.timed(work).map(|(_, seconds)| 1e6 * seconds / calls as f64)
        };
        let once = submit(1)?.min(submit(1)?);
        if once > hopeless {
            return Ok(once);
        }
        let calls = ((1e6 * self.seconds / once.max(0.1)) as usize).clamp(1, CALLS);
        (0..ROUNDS).try_fold(f64::INFINITY, |best, _| Ok(best.min(submit(calls)?)))
    }
}

/// Whether results differ by no more than sums of another order, rounded to that type, may.
fn agree(y: &[f32], expected: &[f32], dtype: DType) -> bool {
    let largest = expected.iter().fold(0.0f32, |most, y| most.max(y.abs()));
    let unit = match dtype {
        DType::F32 => 1e-5,
        DType::F16 => 2f32.powi(-9),
        DType::BF16 => 2f32.powi(-6),
    };
    y.iter().zip(expected).all(|(y, e)| (y - e).abs() <= unit * largest)
}
