//! What is measured, and how each answer is checked.

use std::fmt;
use std::ops::Range;

use bytes::Bytes;
use half::{bf16, f16};
use lowbit::cpu::reference;
use lowbit::format::Layout;
use lowbit::{Cpu, DType, Element, Format, Nested, Parts, QTensor, Scales};
use lowbit_gpu::Schedule;

use super::limits::cold_bytes;
use super::measure::{Times, gaussian, rotation, spread};
use super::on::On;
use super::record::{Measured, Record};
use crate::failure::{Failure, Result};
use crate::{args, machine, ui};

/// One operation on one kind of tensor.
#[derive(Debug, Clone)]
pub struct Case {
    pub operation: Operation,
    pub format: &'static Format,
    pub block_size: Option<usize>,
    pub double_quant: bool,
    /// `[N, K]` of the weights.
    pub shape: [usize; 2],
    pub dtype: DType,
}

#[derive(Debug, Clone, Copy)]
pub enum Operation {
    Quantize,
    Dequantize,
    /// With this many rows of `x`, and on matrix hardware dealt so.
    Linear(usize, Option<Schedule>),
}

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Operation::Quantize => "quantize",
            Operation::Dequantize => "dequantize",
            Operation::Linear(..) => "linear",
        }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Case { operation, format, shape: [n, k], dtype, .. } = self;
        write!(f, "{} {} {n}x{k} {dtype}", operation.name(), format.name)?;
        match operation {
            Operation::Linear(rows, _) => write!(f, " rows {rows}"),
            _ => Ok(()),
        }
    }
}

/// Weights' and activations' seeds and deviations.
const WEIGHTS: (f32, u64) = (0.02, 1);
const ACTIVATIONS: (f32, u64) = (1.0, 2);

/// Rows of weights, and of `x`, that are checked.
const CHECKED_ROWS: usize = 16;

impl Case {
    /// Refuses a case that does not fit in memory.
    pub fn check_memory(&self) -> Result {
        let [n, k] = self.shape.map(|d| d as u64);
        let rows = match self.operation {
            Operation::Linear(rows, _) => rows as u64,
            _ => 0,
        };
        // The weights, and two copies of them as input or output; twice what no cache holds; x and y.
        let numbers = n.saturating_mul(k).saturating_mul(3);
        let numbers = numbers.saturating_add(rows.saturating_mul(n.saturating_add(k)));
        let bytes = numbers.saturating_mul(self.dtype.size() as u64);
        let (needed, free) =
            (bytes.saturating_add(2 * cold_bytes() as u64), machine::memory().free);
        if needed <= free {
            return Ok(());
        }
        Err(Failure::failed(format!(
            "bench {self}: it takes {}, and {} of memory are free; choose a smaller --shape or fewer \
             --rows",
            ui::bytes(needed),
            ui::bytes(free)
        )))
    }

    /// Runs it for about `seconds`.
    pub fn measure(&self, on: &On, seconds: f32) -> Result<Measured> {
        match self.dtype {
            DType::F32 => self.measure_as::<f32>(on, seconds),
            DType::F16 => self.measure_as::<f16>(on, seconds),
            DType::BF16 => self.measure_as::<bf16>(on, seconds),
        }
    }

    /// Fails if the kernel's answer was wrong.
    pub fn verdict(&self, record: &Record) -> Result {
        let bound = match (self.operation, self.dtype) {
            // A code may differ where a weight lies within rounding of a threshold.
            (Operation::Quantize, _) => 1e-4,
            (Operation::Dequantize, _) => 0.0,
            // Four roundings of the largest outputs, and of the sum.
            (Operation::Linear(..), DType::F32) => 2e-5,
            (Operation::Linear(..), DType::F16) => 4.0 * f64::from(f16::EPSILON),
            (Operation::Linear(..), DType::BF16) => 4.0 * f64::from(bf16::EPSILON),
        };
        if record.max_error <= bound {
            return Ok(());
        }
        Err(Failure::failed(format!(
            "bench {self}: expected an error of at most {bound:.1e} against the reference, got \
             {:.1e}; the kernel is wrong on this machine, please report it",
            record.max_error
        )))
    }

    fn measure_as<T: Element>(&self, on: &On, seconds: f32) -> Result<Measured> {
        let [n, k] = self.shape;
        let w: Vec<T> = gaussian(n * k, WEIGHTS.0, WEIGHTS.1)?;
        match self.operation {
            Operation::Quantize => self.measure_quantize(&w, on, seconds),
            Operation::Dequantize => self.measure_dequantize(&w, on, seconds),
            Operation::Linear(..) => self.measure_linear(&w, on, seconds),
        }
    }

    fn quantize<T: Element>(&self, w: &[T]) -> Result<QTensor> {
        let q = Cpu::best().quantize(self.format, w, &self.shape, self.block_size)?;
        Ok(if self.double_quant { lowbit::double_quantize(q)? } else { q })
    }

    fn measure_quantize<T: Element>(&self, w: &[T], on: &On, s: f32) -> Result<Measured> {
        // The scales of the reference are not double quantized: compare before that step.
        let (times, plain) = match on {
            On::Cpu(limits) => {
                let inputs = rotation(size_of_val(w), || Ok(w.to_vec()))?;
                let times = Times::take(limits, s, inputs.len(), |i| self.quantize(&inputs[i]))?;
                let plain = Cpu::best().quantize(self.format, w, &self.shape, self.block_size)?;
                (times, plain)
            }
            On::Gpu(place) => place.quantize(self.format, w, &self.shape, self.block_size, s)?,
        };
        let bytes = size_of_val(w) + plain.bytes();
        Ok(self.record(&times, on, bytes, None, self.differing_codes(w, &plain)?))
    }

    fn measure_dequantize<T: Element>(&self, w: &[T], on: &On, s: f32) -> Result<Measured> {
        let q = self.quantize(w)?;
        let bytes = q.bytes() + size_of_val(w);
        let (times, out) = match on {
            On::Cpu(limits) => {
                let mut items =
                    rotation(bytes, || Ok((deep_copy(&q)?, vec![T::default(); w.len()])))?;
                let times = Times::take(limits, s, items.len(), |i| {
                    let (q, out) = &mut items[i];
                    Ok(Cpu::best().dequantize(q, out)?)
                })?;
                (times, items.swap_remove(0).1)
            }
            On::Gpu(place) => place.dequantize::<T>(&q, s)?,
        };
        let k = self.shape[1];
        let rows = spread(self.shape[0], CHECKED_ROWS);
        let differs = |row: usize, col: usize| {
            let expected = T::from_f32(reference::weight(&q, row, col)).to_f32();
            expected.to_bits() != out[row * k + col].to_f32().to_bits()
        };
        let wrong: usize =
            rows.iter().map(|&row| (0..k).filter(|&col| differs(row, col)).count()).sum();
        let share = wrong as f64 / (rows.len() * k) as f64;
        Ok(self.record(&times, on, bytes, None, share))
    }

    fn measure_linear<T: Element>(&self, w: &[T], on: &On, s: f32) -> Result<Measured> {
        let [n, k] = self.shape;
        let (rows, schedule) = match self.operation {
            Operation::Linear(rows, schedule) => (rows, schedule),
            _ => (0, None),
        };
        let x: Vec<T> = gaussian(rows * k, ACTIVATIONS.0, ACTIVATIONS.1)?;
        let q = self.quantize(w)?;
        let (times, y) = match on {
            On::Cpu(limits) => {
                let mut y = vec![T::default(); rows * n];
                let copies = rotation(q.bytes(), || Ok(deep_copy(&q)?))?;
                let times = Times::take(limits, s, copies.len(), |i| {
                    Ok(Cpu::best().linear(&copies[i], &x, None, &mut y)?)
                })?;
                (times, y)
            }
            On::Gpu(place) => place.linear(&q, &x, rows, schedule, s)?,
        };
        let bytes = q.bytes() + size_of_val(x.as_slice()) + size_of_val(y.as_slice());
        let flops = 2.0 * rows as f64 * n as f64 * k as f64;
        Ok(self.record(&times, on, bytes, Some(flops), linear_error(&q, &x, &y)))
    }

    fn record(
        &self,
        times: &Times,
        on: &On,
        bytes: usize,
        flops: Option<f64>,
        max_error: f64,
    ) -> Measured {
        let (min, median) = (times.min(), times.median());
        let memory = bytes as f64 / times.bandwidth;
        let arithmetic = on.arithmetic(flops.unwrap_or(0.0), self.dtype);
        let record = Record {
            op: self.operation.name(),
            format: self.format.name.to_owned(),
            shape: Some(self.shape),
            rows: match self.operation {
                Operation::Linear(rows, _) => Some(rows),
                _ => None,
            },
            schedule: match self.operation {
                Operation::Linear(_, Some(schedule)) => Some(args::schedule_name(schedule)),
                _ => None,
            },
            dtype: self.dtype.name(),
            device: on.device(),
            isa: on.name(),
            threads: on.threads(),
            ms_min: 1e3 * min,
            ms_median: 1e3 * median,
            gb_s: 1e-9 * bytes as f64 / median,
            gflop_s: flops.map(|flops| 1e-9 * flops / median),
            max_error,
            floor_ms: 1e3 * memory.max(arithmetic),
            block_size: self.block_size,
            double_quant: self.double_quant,
            tok_s: None,
        };
        Measured { record, bandwidth: times.bandwidth }
    }

    /// The share of weights whose code or scale differs from the reference's, on a sample of rows.
    fn differing_codes<T: Element>(&self, w: &[T], q: &QTensor) -> Result<f64> {
        let k = self.shape[1];
        if self.format.encoder.is_none() {
            return Ok(lost(w, q));
        }
        let (mut wrong, mut total) = (0, 0);
        for rows in self.whole_blocks(q) {
            let part: Vec<f32> =
                w[rows.start * k..rows.end * k].iter().map(|x| x.to_f32()).collect();
            let shape = [rows.len(), k];
            let expected = reference::quantize(self.format, &part, &shape, Some(q.block_size()))?;
            let differs = |(row, col)| {
                let expected = reference::weight(&expected, row - rows.start, col);
                expected.to_bits() != reference::weight(q, row, col).to_bits()
            };
            let weights = rows.clone().flat_map(|row| (0..k).map(move |col| (row, col)));
            wrong += weights.filter(|w| differs(*w)).count();
            total += part.len();
        }
        Ok(wrong as f64 / total as f64)
    }

    /// Ranges of rows, the first, a middle and the last, that begin and end with a block.
    fn whole_blocks(&self, q: &QTensor) -> Vec<Range<usize>> {
        let [n, k] = self.shape;
        let step = match self.format.layout {
            Layout::Rows { .. } => Some(1),
            Layout::Stacked { .. } => None,
            Layout::Flat { .. } => (1..n).find(|rows| (rows * k).is_multiple_of(q.block_size())),
        };
        let step = step.unwrap_or(n);
        spread(n.div_ceil(step), 3).iter().map(|i| i * step..n.min((i + 1) * step)).collect()
    }
}

/// 0 if a search has found what keeps nearly half of a sample's weight, else the share that is lost.
fn lost<T: Element>(w: &[T], q: &QTensor) -> f64 {
    let (k, square) = (q.cols(), |v: f32| f64::from(v) * f64::from(v));
    let (mut error, mut total) = (0.0, 0.0);
    for row in spread(q.rows(), CHECKED_ROWS) {
        for (col, w) in w[row * k..(row + 1) * k].iter().enumerate() {
            error += square(w.to_f32() - reference::weight(q, row, col));
            total += square(w.to_f32());
        }
    }
    if error < 0.7 * total { 0.0 } else { error / total }
}

/// The largest error of `y` against the reference, on a sample of its rows and columns, relative to
/// their root mean square.
fn linear_error<T: Element>(q: &QTensor, x: &[T], y: &[T]) -> f64 {
    let (n, k) = (q.rows(), q.cols());
    let (mut largest, mut squares, mut count) = (0f64, 0f64, 0f64);
    for out in spread(n, CHECKED_ROWS) {
        let w: Vec<f64> = (0..k).map(|col| f64::from(reference::weight(q, out, col))).collect();
        for row in spread(y.len() / n, CHECKED_ROWS) {
            let x = &x[row * k..(row + 1) * k];
            let expected: f64 = x.iter().zip(&w).map(|(x, w)| f64::from(x.to_f32()) * w).sum();
            let error = (f64::from(y[row * n + out].to_f32()) - expected).abs();
            // A NaN must not be lost in a maximum.
            largest = if error.is_nan() { f64::INFINITY } else { largest.max(error) };
            squares += expected * expected;
            count += 1.0;
        }
    }
    largest / (squares / count).sqrt()
}

/// The same tensor in memory of its own.
pub fn deep_copy(q: &QTensor) -> lowbit::Result<QTensor> {
    let own = |bytes: &Bytes| Bytes::copy_from_slice(bytes);
    let scales = match q.scales() {
        Scales::F32(scales) => Scales::F32(scales.clone()),
        Scales::F16(scales) => Scales::F16(scales.clone()),
        Scales::Nested(nested) => {
            Scales::Nested(Nested { codes: own(&nested.codes), ..nested.clone() })
        }
        Scales::E8M0(exponents) => Scales::E8M0(own(exponents)),
    };
    QTensor::from_parts(Parts {
        format: q.format(),
        shape: q.shape().to_vec(),
        block_size: Some(q.block_size()),
        codes: own(q.codes()),
        scales,
        means: q.means().map(<[f32]>::to_vec),
        codebook: q.has_own_codebook().then(|| q.codebook().into()),
    })
}
