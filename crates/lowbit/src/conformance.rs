//! The suite that every device runs: each format of the table against the scalar
//! [`reference`](mod@crate::cpu::reference).
//!
//! ```
//! use lowbit::{Cpu, conformance};
//!
//! let report = conformance::run(&Cpu::best(), conformance::Size::Quick);
//! assert!(report.failures.is_empty(), "{report}");
//! ```

mod rng;

use std::fmt;

use half::{bf16, f16};

use crate::cpu::reference;
use crate::format::ScaleKind;
use crate::{Cpu, DType, Element, Format, QTensor, Result, Scales, formats};

pub use rng::Rng;

/// Numbers of a type; every value is one that the type has.
#[derive(Debug, Clone)]
pub struct Numbers {
    /// Their type.
    pub dtype: DType,
    /// The numbers.
    pub values: Vec<f32>,
}

/// What is tested: the operations of this crate, elsewhere.
pub trait Subject {
    /// What a person would call it.
    fn name(&self) -> String;
    /// Quantizes `w` of that shape.
    ///
    /// # Errors
    /// Whatever the subject reports; so for the others.
    fn quantize(
        &self,
        format: &'static Format,
        w: &Numbers,
        shape: &[usize],
        block_size: Option<usize>,
    ) -> Result<QTensor>;
    /// Quantizes f32 scales.
    ///
    /// # Errors
    /// As [`quantize`](Self::quantize).
    fn double_quantize(&self, q: QTensor) -> Result<QTensor>;
    /// All weights in a type.
    ///
    /// # Errors
    /// As [`quantize`](Self::quantize).
    fn dequantize(&self, q: &QTensor, dtype: DType) -> Result<Numbers>;
    /// `y = x wᵀ + bias`, in the type of `x`.
    ///
    /// # Errors
    /// As [`quantize`](Self::quantize).
    fn linear(&self, q: &QTensor, x: &Numbers, bias: Option<&Numbers>) -> Result<Numbers>;
    /// `dx = dy w`, in the type of `dy`.
    ///
    /// # Errors
    /// As [`quantize`](Self::quantize).
    fn linear_transposed(&self, q: &QTensor, dy: &Numbers) -> Result<Numbers>;
}

/// How much is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// A shape and a type for each format: a second.
    Quick,
    /// Every block size and every shape once, with one of the types, one of the numbers of rows, and some of
    /// what a weight and a product may have: minutes on an emulator.
    Pairs,
    /// Every block size with every shape, every type with every number of rows.
    Full,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Report {
    /// Comparisons made.
    pub cases: usize,
    /// What went wrong, one line each.
    pub failures: Vec<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} cases, {} failures", self.cases, self.failures.len())?;
        self.failures.iter().take(20).try_for_each(|line| writeln!(f, "  {line}"))
    }
}

/// `[N, K]`: whole blocks, blocks that cross rows, odd rows, single weights, nothing.
const SHAPES: [(usize, usize); 12] = [
    (16, 256),
    (33, 96),
    (16, 80),
    (48, 320),
    (5, 1024),
    (7, 61),
    (9, 1),
    (1, 129),
    (3, 4096),
    (40, 200),
    (0, 64),
    (4, 0),
];
/// Rows of activations: one, a few, more than a kernel keeps sums for.
const ROWS: [usize; 6] = [1, 2, 5, 16, 79, 0];

/// Runs every format of the table.
pub fn run(subject: &dyn Subject, size: Size) -> Report {
    let mut report = Report::default();
    for format in formats::ALL {
        run_format(subject, format, size, &mut report);
    }
    report
}

/// Runs one format, which need not be in the table.
pub fn run_format(subject: &dyn Subject, format: &'static Format, size: Size, report: &mut Report) {
    let mut sizes: Vec<Option<usize>> = format.block_sizes().into_iter().map(Some).collect();
    if format.default_block_size().is_none() {
        sizes.insert(0, None);
    }
    let seed = |seed: u64, b: u8| seed.wrapping_mul(31).wrapping_add(b.into());
    let mut rng = Rng(format.name.bytes().fold(1, seed));
    // Another format runs other pairs.
    let turn = rng.below(DType::ALL.len() * ROWS.len());
    let (sizes, shapes) = match size {
        Size::Quick => (&sizes[..1], &SHAPES[..2]),
        Size::Pairs | Size::Full => (&sizes[..], &SHAPES[..]),
    };
    let pairs: Vec<(usize, usize)> = match size {
        Size::Pairs => (0..sizes.len().max(shapes.len()))
            .map(|i| (i % sizes.len(), i % shapes.len()))
            .collect(),
        _ => (0..sizes.len()).flat_map(|i| (0..shapes.len()).map(move |j| (i, j))).collect(),
    };
    let all = size != Size::Pairs;
    for (place, (i, j)) in pairs.into_iter().enumerate() {
        let (block_size, (n, k)) = (sizes[i], shapes[j]);
        let n = n.next_multiple_of(format.row_multiple());
        let (dtype, m) = typed_rows(place + turn);
        let variants = if all { Variants::All } else { Variants::of(place + turn) };
        let mut case = Case { subject, format, n, k, block_size, variants, report };
        case.quantize(&mut rng, dtype);
        case.products(&mut rng, dtype, m);
    }
    if size != Size::Quick {
        // Whole blocks by the rows that models have, and so many that kernels take larger tiles.
        let usual = [(DType::BF16, 1), (DType::BF16, 5)];
        let many = [(DType::F16, 30), (DType::BF16, 67), (DType::F32, 130), (DType::BF16, 300)];
        for (place, (dtype, m)) in usual.into_iter().chain(many).enumerate() {
            let n = 37usize.next_multiple_of(format.row_multiple());
            let variants = if all { Variants::All } else { Variants::of(place + turn) };
            let (k, block_size) = (512, sizes[0]);
            let mut case = Case { subject, format, n, k, block_size, variants, report };
            case.products(&mut rng, dtype, m);
        }
    }
    if size == Size::Full {
        // Every type with every number of rows, on whole blocks and on rows that cross them.
        for (dtype, m) in DType::ALL.iter().flat_map(|d| ROWS.map(|m| (*d, m))) {
            for (n, k) in [(37usize, 512), (33, 96)] {
                let n = n.next_multiple_of(format.row_multiple());
                let (block_size, variants) = (sizes[0], Variants::All);
                let mut case = Case { subject, format, n, k, block_size, variants, report };
                case.products(&mut rng, dtype, m);
            }
        }
    }
}

/// A type and a number of rows: each with each in eighteen places that follow one another.
fn typed_rows(place: usize) -> (DType, usize) {
    let shift = place / ROWS.len() % DType::ALL.len();
    (DType::ALL[place % DType::ALL.len()], ROWS[(place + shift) % ROWS.len()])
}

/// Which of the forms of a weight and of a product are run: a device may have a kernel for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Variants {
    All,
    /// Scales as a format has them, or another form; products with a bias, or without.
    Some {
        plain: bool,
        bias: bool,
    },
}

impl Variants {
    /// Those of a place in a list of cases: each with each in four places that follow one another.
    fn of(place: usize) -> Self {
        Variants::Some { plain: place % 2 == 0, bias: place / 2 % 2 == 0 }
    }
}

/// One format, shape and block size.
struct Case<'a> {
    subject: &'a dyn Subject,
    format: &'static Format,
    n: usize,
    k: usize,
    block_size: Option<usize>,
    variants: Variants,
    report: &'a mut Report,
}

impl Case<'_> {
    fn check(&mut self, what: &str, outcome: std::result::Result<(), String>) {
        self.report.cases += 1;
        if let Err(why) = outcome {
            let Case { format, n, k, block_size, .. } = self;
            let block = block_size.map_or("row".to_owned(), |b| b.to_string());
            self.report.failures.push(format!(
                "{} {what} {} [{n}, {k}] block {block}: {why}",
                self.subject.name(),
                format.name
            ));
        }
    }

    /// Quantize, double quantize, and every type out of dequantize: bit for bit.
    fn quantize(&mut self, rng: &mut Rng, dtype: DType) {
        if self.format.encoder.is_none() {
            return;
        }
        let shape = [self.n, self.k];
        let mut w = rng.numbers(dtype, self.n * self.k);
        // A block of zeros, a zero among numbers, and magnitudes far apart.
        for (i, v) in w.values.iter_mut().enumerate() {
            match i / 64 {
                1 => *v = 0.0,
                2 => *v = rounded(dtype, *v * 1e-4),
                3 if i % 64 == 5 => *v = 0.0,
                _ => {}
            }
        }
        let expected = reference::quantize(self.format, &w.values, &shape, self.block_size);
        let got = self.subject.quantize(self.format, &w, &shape, self.block_size);
        let outcome = match (&expected, &got) {
            (Ok(expected), Ok(got)) => same_tensor(expected, got),
            (Err(_), Err(_)) => Ok(()),
            (e, g) => Err(format!("expected {}, got {}", outcome_of(e), outcome_of(g))),
        };
        self.check("quantize", outcome);
        let Ok(q) = expected else { return };
        self.dequantize(&q);
        if self.format.can_double_quantize() {
            let expected = reference::double_quantize(&q.scales().to_f32())
                .and_then(|nested| q.clone().with_scales(Scales::Nested(nested)));
            let got = self.subject.double_quantize(q);
            let outcome = match (&expected, &got) {
                (Ok(expected), Ok(got)) => same_tensor(expected, got),
                (e, g) => Err(format!("expected {}, got {}", outcome_of(e), outcome_of(g))),
            };
            self.check("double_quantize", outcome);
            if let Ok(q) = expected {
                self.dequantize(&q);
            }
        }
        self.refuse(rng, dtype);
    }

    /// A number that is not finite is refused, with its place.
    fn refuse(&mut self, rng: &mut Rng, dtype: DType) {
        let mut w = rng.numbers(dtype, self.n * self.k);
        let Some(place) = w.values.len().checked_sub(1).map(|last| rng.below(last + 1)) else {
            return;
        };
        w.values[place] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][rng.below(3)];
        let got = self.subject.quantize(self.format, &w, &[self.n, self.k], self.block_size);
        let outcome = match got {
            Err(crate::Error::NotFinite { index, .. }) if index == place => Ok(()),
            other => {
                Err(format!("expected a refusal of index {place}, got {}", outcome_of(&other)))
            }
        };
        self.check("refusal of", outcome);
    }

    fn dequantize(&mut self, q: &QTensor) {
        let expected = reference::dequantize(q);
        for dtype in DType::ALL {
            let outcome = match self.subject.dequantize(q, dtype) {
                Err(error) => Err(error.to_string()),
                Ok(got) => {
                    let expected = expected.iter().map(|v| rounded(dtype, *v));
                    let same = |(e, g): (f32, &f32)| e == *g || (e.is_nan() && g.is_nan());
                    match expected.clone().zip(&got.values).position(|pair| !same(pair)) {
                        _ if got.values.len() != expected.len() => {
                            Err(format!("{} numbers", got.values.len()))
                        }
                        None => Ok(()),
                        Some(i) => Err(format!("{dtype} number {i} is {}", got.values[i])),
                    }
                }
            };
            self.check("dequantize", outcome);
        }
    }

    /// Products with random codes, which need no encoder.
    fn products(&mut self, rng: &mut Rng, dtype: DType, m: usize) {
        let (plain, others, biased) = match self.variants {
            Variants::All => (true, true, true),
            Variants::Some { plain, bias } => (plain, !plain, bias),
        };
        let mut tensors = Vec::new();
        match rng.tensor(self.format, &[self.n, self.k], self.block_size) {
            Ok(q) => {
                if let (true, Ok(nested)) = (
                    self.format.can_double_quantize(),
                    reference::double_quantize(&q.scales().to_f32()),
                ) {
                    tensors.extend(q.clone().with_scales(Scales::Nested(nested)));
                }
                // What a file may have instead of a format's usual parts.
                if self.format.scale == ScaleKind::Absmean {
                    tensors.extend(q.clone().with_scales(Scales::F32(q.scales().to_f32().into())));
                }
                tensors.extend(q.without_means());
                if !others {
                    tensors.clear();
                }
                if plain || tensors.is_empty() {
                    tensors.push(q);
                }
            }
            Err(error) => self.check("from_parts", Err(error.to_string())),
        }
        for q in tensors {
            self.dequantize(&q);
            let bias = rng.numbers(dtype, self.n);
            let bias = biased.then_some(&bias);
            let x = rng.numbers(dtype, m * self.k);
            let expected = reference::linear(&q, &x.values, bias.map(|b| b.values.as_slice()));
            let expected = if self.k == 0 { Vec::new() } else { expected };
            let (w, got) = (reference::dequantize(&q), self.subject.linear(&q, &x, bias));
            let bound = |i: usize| {
                let (row, out) = (i / self.n, i % self.n);
                let x = &x.values[row * self.k..(row + 1) * self.k];
                norm(x) * norm(&w[out * self.k..(out + 1) * self.k])
            };
            let outcome = close(dtype, &expected, got, bound);
            self.check(&format!("linear M={m} {dtype}"), outcome);

            let dy = rng.numbers(dtype, m * self.n);
            let expected = reference::linear_transposed(&q, &dy.values);
            let expected = if self.n == 0 { Vec::new() } else { expected };
            let bound = |i: usize| {
                let (row, col) = (i / self.k, i % self.k);
                let column: Vec<f32> = (0..self.n).map(|r| w[r * self.k + col]).collect();
                norm(&dy.values[row * self.n..(row + 1) * self.n]) * norm(&column)
            };
            let outcome = close(dtype, &expected, self.subject.linear_transposed(&q, &dy), bound);
            self.check(&format!("linear_transposed M={m} {dtype}"), outcome);

            if m > 0 && self.k > 0 && self.n > 0 {
                let mut x = x;
                x.values[0] = f32::NAN;
                let bias = bias.filter(|_| self.variants != Variants::All);
                let outcome = match self.subject.linear(&q, &x, bias) {
                    Ok(y)
                        if y.values[..self.n].iter().all(|v| v.is_nan())
                            && y.values[self.n..].iter().all(|v| v.is_finite()) =>
                    {
                        Ok(())
                    }
                    other => Err(format!("a NaN in row 0 of x did not stay in row 0: {other:?}")),
                };
                self.check("NaN through", outcome);
            }
        }
    }
}

/// A tensor in two words, or the error.
fn outcome_of(result: &Result<QTensor>) -> String {
    match result {
        Ok(q) => format!("a tensor of shape {:?}", q.shape()),
        Err(error) => error.to_string(),
    }
}

/// Codes, scales and the rest are the same bytes.
fn same_tensor(expected: &QTensor, got: &QTensor) -> std::result::Result<(), String> {
    let (e, g) = (expected.scales().to_f32(), got.scales().to_f32());
    if let Some(i) = (0..e.len()).find(|i| g.get(*i).map(|v| v.to_bits()) != Some(e[*i].to_bits()))
    {
        return Err(format!("scale {i}: expected {}, got {:?}", e[i], g.get(i)));
    }
    let (e, g) = (expected.codes(), got.codes());
    match (0..e.len().max(g.len())).find(|i| e.get(*i) != g.get(*i)) {
        Some(i) => Err(format!("byte {i}: expected {:?}, got {:?}", e.get(i), g.get(i))),
        None => Ok(()),
    }
}

/// Within the accuracy of the type: of f32 sums, or of 16-bit activations and results. `norms(i)`
/// is `|x| |w|` of result `i`.
fn close(
    dtype: DType,
    expected: &[f64],
    got: Result<Numbers>,
    norms: impl Fn(usize) -> f64,
) -> std::result::Result<(), String> {
    let got = got.map_err(|e| e.to_string())?.values;
    if got.len() != expected.len() {
        return Err(format!("expected {} numbers, got {}", expected.len(), got.len()));
    }
    // Of |x| |w|, of the result, and half the smallest step of a half float.
    let (of_sum, of_result, least) = match dtype {
        DType::F32 => (1e-6, 1e-6, 1e-30),
        DType::F16 => (3e-4, 1e-3, 3e-8),
        // Of 512 terms and more, weights may be rounded to bf16.
        DType::BF16 => (5e-4, 8e-3, 1e-30),
    };
    for (i, (e, g)) in expected.iter().zip(&got).enumerate() {
        let bound = of_sum * norms(i) + of_result * e.abs() + least;
        let error = (e - f64::from(*g)).abs();
        if error.is_nan() || error > bound {
            return Err(format!(
                "number {i}: expected {e}, got {g}, error {error:.2e} > {bound:.2e}"
            ));
        }
    }
    Ok(())
}

fn norm(v: &[f32]) -> f64 {
    v.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt()
}

/// The nearest number of a type.
fn rounded(dtype: DType, x: f32) -> f32 {
    match dtype {
        DType::F32 => x,
        DType::F16 => f16::from_f32(x).to_f32(),
        DType::BF16 => bf16::from_f32(x).to_f32(),
    }
}

/// Evaluates an expression with `$t` as the type of that name.
macro_rules! with_dtype {
    ($dtype:expr, $t:ident => $body:expr) => {
        match $dtype {
            DType::F32 => {
                type $t = f32;
                $body
            }
            DType::F16 => {
                type $t = f16;
                $body
            }
            DType::BF16 => {
                type $t = bf16;
                $body
            }
        }
    };
}

impl Subject for Cpu {
    fn name(&self) -> String {
        self.isa().name().to_owned()
    }

    fn quantize(
        &self,
        format: &'static Format,
        w: &Numbers,
        shape: &[usize],
        block_size: Option<usize>,
    ) -> Result<QTensor> {
        with_dtype!(w.dtype, T => Cpu::quantize(self, format, &cast::<T>(w), shape, block_size))
    }

    fn double_quantize(&self, q: QTensor) -> Result<QTensor> {
        Cpu::double_quantize(self, q)
    }

    fn dequantize(&self, q: &QTensor, dtype: DType) -> Result<Numbers> {
        with_dtype!(dtype, T => filled::<T>(q.numel(), |out| Cpu::dequantize(self, q, out)))
    }

    fn linear(&self, q: &QTensor, x: &Numbers, bias: Option<&Numbers>) -> Result<Numbers> {
        let m = x.values.len().checked_div(q.cols()).unwrap_or(0);
        with_dtype!(x.dtype, T => {
            let (x, bias) = (cast::<T>(x), bias.map(cast::<T>));
            filled::<T>(m * q.rows(), |y| Cpu::linear(self, q, &x, bias.as_deref(), y))
        })
    }

    fn linear_transposed(&self, q: &QTensor, dy: &Numbers) -> Result<Numbers> {
        let m = dy.values.len().checked_div(q.rows()).unwrap_or(0);
        with_dtype!(dy.dtype, T => {
            let dy = cast::<T>(dy);
            filled::<T>(m * q.cols(), |dx| Cpu::linear_transposed(self, q, &dy, dx))
        })
    }
}

fn cast<T: Element>(x: &Numbers) -> Vec<T> {
    x.values.iter().map(|v| T::from_f32(*v)).collect()
}

/// What `f` writes to `len` numbers of a type.
fn filled<T: Element>(len: usize, f: impl FnOnce(&mut [T]) -> Result<()>) -> Result<Numbers> {
    let mut out = vec![T::default(); len];
    f(&mut out)?;
    Ok(Numbers { dtype: T::DTYPE, values: out.into_iter().map(T::to_f32).collect() })
}
