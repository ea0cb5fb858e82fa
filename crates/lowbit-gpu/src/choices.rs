//! A table of kernels for products that someone measured on an adapter, which goes before the rules
//! that hold for any.

use lowbit::{DType, Result};
use serde::{Deserialize, Serialize};

use crate::choose::{Halves, Product, candidates};
use crate::matrix::Tiles;
use crate::product::linear_by;
use crate::weight::Kind;
use crate::{GpuWeight, Limits, Queue};

/// Products that take the same kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Class {
    /// Whether the weight's codes are of four bits, so that a byte of them can be looked up at once.
    pub pairs: bool,
    /// Whether activations are f32, and not in 16 bits.
    pub f32: bool,
}

impl Class {
    pub(crate) fn of(kind: &Kind, dtype: DType) -> Self {
        Class { pairs: kind.is_nibble_table(), f32: dtype == DType::F32 }
    }
}

/// What was the fastest for `x: [rows, K]` and `w: [weight_rows, K]`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// Of which products.
    #[serde(flatten)]
    pub class: Class,
    /// N.
    pub weight_rows: usize,
    /// M.
    pub rows: usize,
    /// The kernel.
    pub(crate) product: Product,
    /// Microseconds that it took.
    pub us: f64,
    /// Microseconds that the built-in choice took.
    pub usual_us: f64,
}

impl Line {
    /// What a person would call the kernel.
    pub fn kernel(&self) -> String {
        self.product.to_string()
    }
}

impl std::fmt::Display for Product {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Product::Gemv { rows, batch } => write!(f, "gemv {rows}x{batch}"),
            Product::GemvSpans { rows, batch } => write!(f, "gemv {rows}x{batch} by spans"),
            Product::GemvPairs { rows, batch, group, replicas } => {
                write!(f, "gemv {rows}x{batch} by pairs, {replicas} tables for {group} threads")
            }
            Product::GemvHalves { rows, batch, group, halves } => {
                let Halves { replicas, ahead, one_exponent } = halves;
                let exponents = if *one_exponent { "one exponent" } else { "exponents" };
                write!(
                    f,
                    "gemv {rows}x{batch} by halves and {exponents}, {replicas} tables for {group} threads, \
                     {ahead} ahead"
                )
            }
            Product::GemvRegisters { rows, batch, group, replicas, pieces } => write!(
                f,
                "gemv {rows}x{batch} by registers, {pieces} pieces at a time, {replicas} tables for {group} \
                 threads"
            ),
            Product::Gemm => f.write_str("gemm"),
            Product::Matrix { tiles, schedule } => {
                let Tiles { m, n, group, slices, depth, .. } = tiles;
                write!(f, "matrix {m}x{n}x{slices}x{depth}, {group} threads, {schedule:?}")
            }
            Product::Transposed => f.write_str("gemm, transposed"),
        }
    }
}

/// The table.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Choices {
    /// In any order.
    pub lines: Vec<Line>,
}

impl Choices {
    /// Those lines that such an adapter can run: a file may be another adapter's, or written by hand.
    #[cfg_attr(
        not(any(test, feature = "wgpu")),
        expect(dead_code, reason = "wgpu alone has adapters")
    )]
    pub(crate) fn runnable(mut self, limits: &Limits) -> Self {
        self.lines.retain(|l| candidates(l.rows, l.class, limits).contains(&l.product));
        self
    }

    /// The kernel for `x: [M, K]` of that type and `w: [N, K]`: that of the nearest N, and of the
    /// next M above.
    pub(crate) fn product(
        &self,
        [m, n, _]: [usize; 3],
        kind: &Kind,
        dtype: DType,
    ) -> Option<Product> {
        let class = Class::of(kind, dtype);
        let far = |l: &Line| (l.weight_rows as f64 / n as f64).ln().abs();
        // Of lines for fewer rows, that for the most.
        let rows = |l: &Line| if l.rows >= m { l.rows } else { usize::MAX - l.rows };
        let lines = self.lines.iter().filter(|l| l.class == class);
        let nearest = lines.min_by(|a, b| far(a).total_cmp(&far(b)).then(rows(a).cmp(&rows(b))))?;
        Some(nearest.product)
    }
}

/// `x wᵀ` by each kernel that can do it and has a `wanted` name, and that name: `x: [M, K]` and the
/// results `[M, N]` of that type.
///
/// # Errors
/// As [`Queue::dispatch`].
pub fn linear_by_all<Q: Queue>(
    queue: &Q,
    x: &Q::Buffer,
    m: usize,
    w: &GpuWeight<Q::Buffer>,
    dtype: DType,
    wanted: impl Fn(&str) -> bool,
) -> Result<Vec<(String, Q::Buffer)>> {
    let ((n, k), kind, limits) = (w.rows_cols(), w.kind(), queue.limits());
    candidates(m, Class::of(kind, dtype), limits)
        .into_iter()
        .filter(|product| product.suits([n, k], kind, limits) && wanted(&product.to_string()))
        .map(|product| Ok((product.to_string(), linear_by(queue, x, m, w, product, dtype)?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{msl, plan::Planner};

    fn line(weight_rows: usize, rows: usize, product: Product) -> Line {
        let class = Class { pairs: true, f32: false };
        Line { class, weight_rows, rows, product, us: 1.0, usual_us: 2.0 }
    }

    fn kind() -> Kind {
        let format = lowbit::formats::ALL.iter().find(|f| f.code_bits == 4).unwrap();
        let q = lowbit::Cpu::best().quantize(format, &[1.0; 1024], &[8, 128], None).unwrap();
        *GpuWeight::upload(&Planner::new(msl::APPLE), &q.into()).unwrap().kind()
    }

    #[test]
    fn the_line_of_the_nearest_shape_is_taken() {
        let gemv = |rows| Product::Gemv { rows, batch: 1 };
        let batch = Product::Gemv { rows: 2, batch: 8 };
        let lines = vec![line(4096, 8, batch), line(4096, 1, gemv(2)), line(16384, 1, gemv(4))];
        let choices = Choices { lines };
        let chosen = |m, n, dtype| choices.product([m, n, 128], &kind(), dtype);
        assert_eq!(chosen(1, 4000, DType::BF16), Some(gemv(2)));
        assert_eq!(chosen(1, 60000, DType::F16), Some(gemv(4)));
        assert_eq!(chosen(2, 64, DType::F16), Some(batch));
        assert_eq!(chosen(100, 64, DType::F16), Some(batch));
        assert_eq!(chosen(1, 4096, DType::F32), None);
    }

    #[test]
    fn files_of_other_adapters_do_no_harm() {
        let good = line(64, 1, Product::Gemv { rows: 2, batch: 1 });
        let lines = vec![
            line(64, 1, Product::Gemv { rows: 3, batch: 1 }),
            line(64, 1, Product::GemvPairs { rows: 2, batch: 1, group: 4096, replicas: 4 }),
            line(64, 1, Product::GemvPairs { rows: 2, batch: 1, group: 128, replicas: 1 << 20 }),
            good,
        ];
        let text = serde_json::to_string(&Choices { lines }).unwrap();
        let choices: Choices = serde_json::from_str(&text).unwrap();
        assert_eq!(choices.runnable(&msl::APPLE).lines, [good]);
    }
}
