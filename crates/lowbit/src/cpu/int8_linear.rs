//! LLM.int8's product (arXiv 2208.07339): activations are quantized by rows, integers multiplied,
//! and columns that hold an outlier added in f32.

use super::convert::widen;
use super::dispatch::Isa;
use super::int8::multiply_transposed;
use super::linear::Pool;
use super::simd::{Simd, Task};
use super::{Cpu, check_linear, reference};
use crate::format::{Layout, Packing, Values};
use crate::tensor::rows_cols;
use crate::{Element, Error, Format, QTensor, Result, threads};

/// Columns of `y` that are written together: a cache line of f32.
const LINE: usize = 16;

impl Cpu {
    /// `y = x wᵀ + bias` as LLM.int8 computes it: `w: [N, K]` in rows of 8-bit integers,
    /// `x: [.., K]`, `bias: [N]`, `y: [.., N]`.
    ///
    /// Each row of `x` is quantized as
    /// [`quantize_without_outliers`](Self::quantize_without_outliers) does; the product of the
    /// integers is exact, and columns in which some `x` has the magnitude `threshold` are
    /// multiplied as they are, with f32 sums. A threshold of 0 means no outliers. A row with a
    /// number that is not finite, where that is no outlier, comes out as NaN.
    ///
    /// # Errors
    /// [`Error::Argument`] if a length does not fit, `w` is of another kind, K may overflow a sum,
    /// or the threshold is negative or NaN.
    pub fn int8_linear<T: Element>(
        &self,
        w: &QTensor,
        x: &[T],
        threshold: f32,
        bias: Option<&[T]>,
        y: &mut [T],
    ) -> Result<()> {
        T::int8_linear(self, w, x, threshold, bias, y)
    }
}

/// [`Cpu::int8_linear`].
pub(super) fn int8_linear<T: Element>(
    isa: Isa,
    w: &QTensor,
    x: &[T],
    threshold: f32,
    bias: Option<&[T]>,
    y: &mut [T],
) -> Result<()> {
    const OP: &str = "int8_linear";
    check_linear(w.shape(), x.len(), bias.map(<[T]>::len), y.len())?;
    check_weight(OP, w)?;
    super::outliers::check_threshold(OP, threshold)?;
    let (n, k) = rows_cols(w.shape());
    super::int8::check_k(OP, k)?;
    if y.is_empty() {
        return Ok(());
    }
    if k == 0 {
        for row in y.chunks_exact_mut(n) {
            for (j, y) in row.iter_mut().enumerate() {
                *y = bias.map_or(T::default(), |b| b[j]);
            }
        }
        return Ok(());
    }
    let m = y.len() / n;
    let pool = Pool::for_work(m * n * k);
    pool.enter(|| {
        let rows = Rows::quantize(isa, w.format(), x, k, threshold, &pool);
        let mut sums = vec![0; n * m];
        let codes = bytemuck::cast_slice(w.codes());
        multiply_transposed(isa, &rows.codes, codes, k, &mut sums, &pool);
        let columns = Columns::new(w, &rows.columns);
        // y in lines of columns would tear rows apart; sums in lines of rows do not.
        pool.each(y, LINE * n, n * m, |i, y| {
            let finish = Finish { rows: &rows, columns: &columns, sums: &sums, first: i * LINE };
            isa.run(FinishLine { finish, bias, m, n, y });
        });
    });
    Ok(())
}

fn check_weight(op: &'static str, w: &QTensor) -> Result<()> {
    let format = w.format();
    let fits = matches!(format.values, Values::Integer(_))
        && matches!(format.layout, Layout::Rows { pad: 1, .. })
        && format.code_bits == 8
        && format.packing == Packing::HighFirst
        && w.block_size() == w.cols().max(1)
        && !format.has_mean;
    if fits {
        return Ok(());
    }
    let help = "quantize the weight to int8, or use linear";
    Err(Error::argument(op, "a weight of one 8-bit integer row per scale", format.name, help))
}

/// Quantized activations.
struct Rows {
    /// `[M, K]`, zero in columns of outliers.
    codes: Vec<i8>,
    /// Factor of each row's integers.
    scales: Vec<f32>,
    /// Columns of outliers, ascending.
    columns: Vec<usize>,
    /// What stands there: `[M, columns]`.
    outliers: Vec<f32>,
}

impl Rows {
    fn quantize<T: Element>(
        isa: Isa,
        format: &'static Format,
        x: &[T],
        k: usize,
        threshold: f32,
        pool: &Pool,
    ) -> Self {
        let m = x.len() / k;
        let mut codes = vec![0i8; m * k];
        let mut found: Vec<Found> = vec![(0.0, Vec::new()); m];
        let task = |((x, codes), found): ((&[T], &mut [i8]), &mut Found)| {
            *found = isa.run(QuantizeRow { format, x, threshold, codes });
        };
        let rows = x.chunks_exact(k).zip(codes.chunks_exact_mut(k)).zip(&mut found);
        if pool.is_serial() || m == 1 {
            rows.for_each(task);
        } else {
            threads::for_each(rows, task);
        }
        let mut columns: Vec<usize> =
            found.iter().flat_map(|(_, columns)| columns).copied().collect();
        columns.sort_unstable();
        columns.dedup();
        let mut outliers = Vec::with_capacity(m * columns.len());
        if !columns.is_empty() {
            for (x, codes) in x.chunks_exact(k).zip(codes.chunks_exact_mut(k)) {
                for &column in &columns {
                    codes[column] = 0;
                    outliers.push(x[column].to_f32());
                }
            }
        }
        let scales = found.iter().map(|(absmax, _)| absmax * format.unit).collect();
        Rows { codes, scales, columns, outliers }
    }
}

/// The absmax of what is no outlier, and the columns of what is.
type Found = (f32, Vec<usize>);

/// One row of activations to integers.
struct QuantizeRow<'a, T> {
    format: &'static Format,
    x: &'a [T],
    threshold: f32,
    codes: &'a mut [i8],
}

impl<T: Element> Task for QuantizeRow<'_, T> {
    type Output = Found;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Found {
        let QuantizeRow { format, x, threshold, codes } = self;
        let mut row = vec![0.0; x.len()];
        widen(s, x, &mut row);
        let mut columns = Vec::new();
        let mut bits = s.max_magnitude_bits(&row);
        if threshold > 0.0 && bits >= threshold.to_bits() {
            for (column, v) in row.iter_mut().enumerate() {
                if v.is_nan() || v.abs() >= threshold {
                    *v = 0.0;
                    columns.push(column);
                }
            }
            bits = s.max_magnitude_bits(&row);
        }
        if bits >= f32::INFINITY.to_bits() {
            return (f32::NAN, columns);
        }
        let absmax = f32::from_bits(bits);
        let scaling = reference::Scaling::new(format, absmax);
        let step = 4 * S::LANES;
        let whole = if scaling.is_one_product() { row.len() / step * step } else { 0 };
        let (row_whole, row_rest) = row.split_at(whole);
        let (codes_whole, codes_rest) = codes.split_at_mut(whole);
        let chunks = bytemuck::cast_slice_mut(codes_whole).chunks_exact_mut(step);
        for (row, codes) in row_whole.chunks_exact(step).zip(chunks) {
            s.encode_ints(row, scaling.factor, format.peak, codes);
        }
        if let Some(encoder) = format.encoder {
            for (v, code) in row_rest.iter().zip(codes_rest) {
                *code = encoder.encode(scaling.apply(*v)) as i8;
            }
        }
        (absmax, columns)
    }
}

/// What the outputs take of the weight.
struct Columns {
    /// Factor of each row's integers: `[N]`.
    scales: Vec<f32>,
    /// The weights that outliers meet: `[columns, N]`.
    weights: Vec<f32>,
}

impl Columns {
    fn new(w: &QTensor, columns: &[usize]) -> Self {
        let (n, k) = rows_cols(w.shape());
        let scales: Vec<f32> = (0..n).map(|i| w.scales().get(i) * w.format().unit).collect();
        let weight =
            |i: usize, column: usize| f32::from(w.codes()[i * k + column] as i8) * scales[i];
        let weights = columns.iter().flat_map(|c| (0..n).map(move |i| (i, *c)));
        let weights = weights.map(|(i, c)| weight(i, c)).collect();
        Columns { scales, weights }
    }
}

/// What the outputs are made of.
#[derive(Clone, Copy)]
struct Finish<'a> {
    rows: &'a Rows,
    columns: &'a Columns,
    /// `[N, M]`.
    sums: &'a [i32],
    /// The first row of `y`.
    first: usize,
}

/// `y = sums * rows * columns + outliers weights + bias`, for some rows.
struct FinishLine<'a, T> {
    finish: Finish<'a>,
    bias: Option<&'a [T]>,
    m: usize,
    n: usize,
    y: &'a mut [T],
}

impl<T: Element> Task for FinishLine<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let FinishLine { finish: Finish { rows, columns, sums, first }, bias, m, n, y } = self;
        let mut numbers = vec![0.0f32; y.len()];
        for (j, sums) in sums.chunks_exact(m).enumerate() {
            let scale = columns.scales[j];
            for (i, row) in numbers.chunks_exact_mut(n).enumerate() {
                row[j] = sums[first + i] as f32 * (rows.scales[first + i] * scale);
            }
        }
        let per_row = rows.columns.len();
        for (i, row) in numbers.chunks_exact_mut(n).enumerate() {
            let outliers = &rows.outliers[(first + i) * per_row..][..per_row];
            for (x, w) in outliers.iter().zip(columns.weights.chunks_exact(n)) {
                let whole = n / S::LANES * S::LANES;
                let factor = s.splat(*x);
                let parts = row[..whole].chunks_exact_mut(S::LANES);
                for (row, w) in parts.zip(w.chunks_exact(S::LANES)) {
                    s.store(s.fma(s.load(w), factor, s.load(row)), row);
                }
                for (row, w) in row[whole..].iter_mut().zip(&w[whole..]) {
                    *row += x * w;
                }
            }
            if let Some(bias) = bias {
                for (v, b) in row.iter_mut().zip(bias) {
                    *v += b.to_f32();
                }
            }
        }
        super::convert::narrow(s, &numbers, y);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::Rng;
    use crate::{DType, formats};

    fn numbers<T: Element>(rng: &mut Rng, len: usize) -> Vec<T> {
        (0..len).map(|_| T::from_f32(rng.normal())).collect()
    }

    /// The formula in f64, from what the split gives.
    fn expected<T: Element>(w: &QTensor, x: &[T], threshold: f32, bias: &[T]) -> Vec<f64> {
        let (n, k) = rows_cols(w.shape());
        let m = x.len() / k;
        let split = Cpu::best()
            .quantize_without_outliers(w.format(), x, [m, k], threshold)
            .expect("finite numbers");
        let (x_wide, w_wide) = (reference::dequantize(&split.codes), reference::dequantize(w));
        let mut y = Vec::new();
        for i in 0..m {
            for j in 0..n {
                let mut sum = f64::from(bias[j].to_f32());
                for c in 0..k {
                    let kept = f64::from(x_wide[i * k + c]) * f64::from(w_wide[j * k + c]);
                    let outlier = split.columns.binary_search(&c).is_ok();
                    let whole = f64::from(x[i * k + c].to_f32()) * f64::from(w_wide[j * k + c]);
                    sum += if outlier { whole } else { kept };
                }
                y.push(sum);
            }
        }
        y
    }

    fn check<T: Element>(isa: Isa, m: usize, n: usize, k: usize, threshold: f32) {
        let mut rng = Rng((m * n + k) as u64);
        let w: Vec<f32> = numbers(&mut rng, n * k);
        let w = Cpu::best().quantize(formats::by_name("int8").unwrap(), &w, &[n, k], None).unwrap();
        let mut x: Vec<T> = numbers(&mut rng, m * k);
        for _ in 0..3 {
            let at = rng.below(m * k);
            x[at] = T::from_f32(-20.0);
        }
        let bias: Vec<T> = numbers(&mut rng, n);
        let mut y = vec![T::default(); m * n];
        Cpu::with(isa).int8_linear(&w, &x, threshold, Some(&bias), &mut y).unwrap();
        let largest = x.iter().fold(0.0f32, |max, v| v.to_f32().abs().max(max));
        let step = match T::DTYPE {
            DType::F32 => 1e-6,
            DType::F16 => 5e-4,
            DType::BF16 => 4e-3,
        };
        for (i, (y, e)) in y.iter().zip(expected(&w, &x, threshold, &bias)).enumerate() {
            let bound = step * e.abs() + 1e-6 * f64::from(largest) * k as f64;
            let error = (f64::from(y.to_f32()) - e).abs();
            assert!(
                error <= bound,
                "{} {m}x{n}x{k} {i}: {} {e} {threshold}",
                isa.name(),
                y.to_f32()
            );
        }
    }

    #[test]
    fn quick_products_are_those_of_the_formula() {
        for isa in Isa::available() {
            for (m, n, k) in [(1, 40, 96), (5, 33, 100), (19, 64, 257), (2, 3, 1)] {
                for threshold in [0.0, 6.0] {
                    check::<f32>(isa, m, n, k, threshold);
                    check::<half::bf16>(isa, m, n, k, threshold);
                }
                check::<half::f16>(isa, m, n, k, 2.5);
            }
        }
    }

    #[test]
    fn what_is_not_finite_stays_in_its_row() {
        let w = vec![0.5f32; 4 * 64];
        let w =
            Cpu::best().quantize(formats::by_name("int8").unwrap(), &w, &[4, 64], None).unwrap();
        for (bad, threshold) in [(f32::NAN, 0.0), (f32::INFINITY, 0.0), (f32::NAN, 6.0)] {
            let mut x = vec![1.0f32; 2 * 64];
            x[3] = bad;
            let mut y = vec![0.0f32; 8];
            Cpu::best().int8_linear(&w, &x, threshold, None, &mut y).unwrap();
            assert!(y[..4].iter().all(|v| v.is_nan()), "{y:?}");
            assert!(y[4..].iter().all(|v| (v - 32.0).abs() < 1e-3), "{y:?}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let cpu = Cpu::best();
        let w = vec![0.5f32; 4 * 64];
        let int8 = cpu.quantize(formats::by_name("int8").unwrap(), &w, &[4, 64], None).unwrap();
        let nf4 = cpu.quantize(formats::by_name("nf4").unwrap(), &w, &[4, 64], None).unwrap();
        let mut y = vec![0.0f32; 4];
        let why = cpu.int8_linear(&nf4, &[0.0; 64], 0.0, None, &mut y).unwrap_err().to_string();
        assert!(why.contains("nf4"), "{why}");
        assert!(cpu.int8_linear(&int8, &[0.0; 63], 0.0, None, &mut y).is_err());
        assert!(cpu.int8_linear(&int8, &[0.0; 64], -1.0, None, &mut y).is_err());
        assert!(cpu.int8_linear(&int8, &[0.0; 64], f32::NAN, None, &mut y).is_err());
    }
}
