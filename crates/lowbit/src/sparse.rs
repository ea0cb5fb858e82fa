//! Sparse matrices as lists of places and values (COO), in numbers or 8-bit integers, times dense
//! ones.
//!
//! ```
//! use lowbit::{Cpu, sparse::{Coo, from_dense}};
//!
//! let found = from_dense(&[0.0f32, 2.0, 0.0, 3.0], [2, 2], 0.0)?;
//! let (dense, mut out) = ([1.0f32, 10.0], [0.0f32; 2]);
//! Cpu::best().sparse_matmul(&found.coo(), &dense, &mut out)?;
//! assert_eq!(out, [20.0, 30.0]);
//! # Ok::<(), lowbit::Error>(())
//! ```

use crate::cpu::convert::{narrow, widen};
use crate::cpu::embedding::check_indices;
use crate::cpu::simd::{Simd, Task};
use crate::cpu::{Cpu, check_len};
use crate::{Element, Error, Result, threads};

/// Multiply-adds from which several threads are faster than one.
const PARALLEL_FROM: usize = 1 << 16;

/// Largest magnitude of a value in 8 bits.
const PEAK: f32 = 127.0;

/// A sparse matrix: `values[i]` at `rows[i], columns[i]`, in any order. Values at one place add up.
#[derive(Debug, Clone, Copy)]
pub struct Coo<'a, V> {
    /// Rows and columns of the matrix.
    pub shape: [usize; 2],
    /// Row of each value.
    pub rows: &'a [i64],
    /// Column of each value.
    pub columns: &'a [i64],
    /// The values.
    pub values: &'a [V],
}

/// A [`Coo`] that owns its lists, in the order of rows.
#[derive(Debug, Clone, PartialEq)]
pub struct CooVec<V> {
    /// Rows and columns of the matrix.
    pub shape: [usize; 2],
    /// Row of each value.
    pub rows: Vec<i64>,
    /// Column of each value.
    pub columns: Vec<i64>,
    /// The values.
    pub values: Vec<V>,
}

impl<V> CooVec<V> {
    /// The same, borrowed.
    pub fn coo(&self) -> Coo<'_, V> {
        let CooVec { shape, rows, columns, values } = self;
        Coo { shape: *shape, rows, columns, values }
    }
}

/// The values of a dense matrix, row-major of that shape, that are not zero; with a threshold above
/// zero, those of that magnitude or more. NaN is kept.
///
/// # Errors
/// [`Error::Argument`] if the length does not fit the shape, or for a threshold that is negative or
/// NaN.
pub fn from_dense<T: Element>(dense: &[T], shape: [usize; 2], threshold: f32) -> Result<CooVec<T>> {
    const OP: &str = "sparse::from_dense";
    // Sizes that overflow fit no slice, and saturated ones fit none either.
    let numbers = shape[0].saturating_mul(shape[1]);
    check_len(OP, format_args!("numbers for shape {shape:?}"), numbers, dense.len())?;
    if threshold.is_nan() || threshold < 0.0 {
        let help = "pass 0 to keep all that is not zero";
        return Err(Error::argument(OP, "a threshold from 0", threshold.to_string(), help));
    }
    let mut found = CooVec { shape, rows: vec![], columns: vec![], values: vec![] };
    for (i, v) in dense.iter().enumerate() {
        let magnitude = v.to_f32().abs();
        if magnitude.is_nan() || (magnitude >= threshold && magnitude > 0.0) {
            found.rows.push((i / shape[1]) as i64);
            found.columns.push((i % shape[1]) as i64);
            found.values.push(*v);
        }
    }
    Ok(found)
}

/// Values in 8 bits and what one step stands for: `value = integer * scale`, rounded to nearest,
/// ties to even.
///
/// # Errors
/// [`Error::NotFinite`] for NaN or infinity.
pub fn quantize_values<T: Element>(values: &[T]) -> Result<(Vec<i8>, f32)> {
    let wide: Vec<f32> = values.iter().map(|v| v.to_f32()).collect();
    if let Some(index) = wide.iter().position(|v| !v.is_finite()) {
        let value = wide[index];
        return Err(Error::NotFinite { op: "sparse::quantize_values", index, value });
    }
    let absmax = wide.iter().fold(0.0f32, |max, v| max.max(v.abs()));
    if absmax == 0.0 {
        return Ok((vec![0; values.len()], 0.0));
    }
    // Divided twice, for 127 / absmax may not fit.
    let integer = |v: &f32| (v / absmax * PEAK).round_ties_even() as i8;
    Ok((wide.iter().map(integer).collect(), absmax / PEAK))
}

impl Cpu {
    /// `out = a dense`: `a: [R, C]` sparse, `dense: [C, D]`, `out: [R, D]`, with f32 sums in the
    /// order of the values.
    ///
    /// # Errors
    /// [`Error::Argument`] for an index outside the matrix, or if a length does not fit.
    pub fn sparse_matmul<T: Element>(
        &self,
        a: &Coo<'_, T>,
        dense: &[T],
        out: &mut [T],
    ) -> Result<()> {
        multiply(self, a, |v| v.to_f32(), dense, out)
    }

    /// The same with values in 8 bits: `value = integer * scale`.
    ///
    /// # Errors
    /// As [`sparse_matmul`](Self::sparse_matmul).
    pub fn sparse_matmul_int8<T: Element>(
        &self,
        a: &Coo<'_, i8>,
        scale: f32,
        dense: &[T],
        out: &mut [T],
    ) -> Result<()> {
        multiply(self, a, |v| f32::from(v) * scale, dense, out)
    }
}

fn multiply<V: Copy + Sync, T: Element>(
    cpu: &Cpu,
    a: &Coo<'_, V>,
    value: impl Fn(V) -> f32 + Sync,
    dense: &[T],
    out: &mut [T],
) -> Result<()> {
    const OP: &str = "sparse_matmul";
    let [rows, columns] = a.shape;
    let width = dense.len().checked_div(columns).or(out.len().checked_div(rows)).unwrap_or(0);
    for (what, rows, len) in [("dense", columns, dense.len()), ("out", rows, out.len())] {
        let expected = rows.saturating_mul(width);
        check_len(OP, format_args!("numbers of {what}, {rows} rows of {width}"), expected, len)?;
    }
    check_len(OP, "rows, one for each value", a.values.len(), a.rows.len())?;
    check_len(OP, "columns, one for each value", a.values.len(), a.columns.len())?;
    check_indices(OP, "rows", a.rows, rows)?;
    check_indices(OP, "columns", a.columns, columns)?;
    if out.is_empty() {
        return Ok(());
    }
    let (starts, order) = by_row(a.rows, rows);
    let task = |(row, out): (usize, &mut [T])| {
        let entries = order[starts[row]..starts[row + 1]].iter();
        let entries = entries.map(|i| (value(a.values[*i]), a.columns[*i] as usize));
        cpu.isa().run(Row { entries, dense, out });
    };
    if (a.values.len() + rows) * width < PARALLEL_FROM {
        out.chunks_exact_mut(width).enumerate().for_each(task);
    } else {
        threads::for_each(out.chunks_exact_mut(width).enumerate(), task);
    }
    Ok(())
}

/// Where the values of each row begin in a list of all, and that list: rows keep the order of
/// their values.
fn by_row(of: &[i64], rows: usize) -> (Vec<usize>, Vec<usize>) {
    let mut starts = vec![0; rows + 1];
    for row in of {
        starts[*row as usize + 1] += 1;
    }
    for row in 0..rows {
        starts[row + 1] += starts[row];
    }
    let (mut next, mut order) = (starts.clone(), vec![0; of.len()]);
    for (i, row) in of.iter().enumerate() {
        let place = &mut next[*row as usize];
        order[*place] = i;
        *place += 1;
    }
    (starts, order)
}

/// A row of the result: the sum of its entries times rows of `dense`.
struct Row<'a, I, T> {
    entries: I,
    dense: &'a [T],
    out: &'a mut [T],
}

impl<I: Iterator<Item = (f32, usize)>, T: Element> Task for Row<'_, I, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let width = self.out.len();
        let padded = width.next_multiple_of(S::LANES);
        let (mut sums, mut row) = (vec![0.0f32; padded], vec![0.0f32; padded]);
        for (value, column) in self.entries {
            widen(s, &self.dense[column * width..][..width], &mut row);
            let value = s.splat(value);
            for (sum, row) in sums.chunks_exact_mut(S::LANES).zip(row.chunks_exact(S::LANES)) {
                s.store(s.fma(s.load(row), value, s.load(sum)), sum);
            }
        }
        narrow(s, &sums, self.out);
    }
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;
    use crate::conformance::Rng;
    use crate::cpu::Isa;

    fn expected(a: &Coo<'_, f32>, dense: &[f32], width: usize) -> Vec<f64> {
        let mut out = vec![0.0; a.shape[0] * width];
        for (i, v) in a.values.iter().enumerate() {
            for j in 0..width {
                let x = dense[a.columns[i] as usize * width + j];
                out[a.rows[i] as usize * width + j] += f64::from(*v) * f64::from(x);
            }
        }
        out
    }

    #[test]
    fn products_are_those_of_dense_matrices_and_duplicates_add_up() {
        let mut rng = Rng(9);
        for (rows, columns, width, count) in
            [(5, 7, 3, 20), (40, 60, 130, 900), (1, 1, 1, 4), (6, 4, 16, 0), (300, 9, 70, 4000)]
        {
            // More values than places somewhere: duplicates.
            let at = |rng: &mut Rng, below| (0..count).map(|_| rng.below(below) as i64).collect();
            let (r, c): (Vec<i64>, Vec<i64>) = (at(&mut rng, rows), at(&mut rng, columns));
            let values: Vec<f32> = (0..count).map(|_| rng.normal()).collect();
            let dense: Vec<f32> = (0..columns * width).map(|_| rng.normal()).collect();
            let a = Coo { shape: [rows, columns], rows: &r, columns: &c, values: &values };
            let (ints, scale) = quantize_values(&values).unwrap();
            let restored: Vec<f32> = ints.iter().map(|v| f32::from(*v) * scale).collect();
            for isa in Isa::available() {
                let cpu = Cpu::with(isa);
                let close = |a: &Coo<'_, f32>, out: &[f32]| {
                    for (e, g) in expected(a, &dense, width).iter().zip(out) {
                        assert!((e - f64::from(*g)).abs() < 2e-4, "{} {e} {g}", isa.name());
                    }
                };
                let mut out = vec![7.0f32; rows * width];
                cpu.sparse_matmul(&a, &dense, &mut out).unwrap();
                close(&a, &out);
                let a8 = Coo { shape: a.shape, rows: a.rows, columns: a.columns, values: &ints };
                cpu.sparse_matmul_int8(&a8, scale, &dense, &mut out).unwrap();
                close(&Coo { values: &restored, ..a }, &out);
            }
        }
    }

    #[test]
    fn dense_matrices_come_back() {
        let dense = [0.0f32, -1.5, 0.25, 0.0, f32::NAN, 3.0];
        let all = from_dense(&dense, [3, 2], 0.0).unwrap();
        assert_eq!((&all.rows[..], &all.columns[..]), (&[0, 1, 2, 2][..], &[1, 0, 0, 1][..]));
        let large = from_dense(&dense[..4], [2, 2], 0.5).unwrap();
        assert_eq!((large.rows, large.columns, large.values), (vec![0], vec![1], vec![-1.5]));
        let halves: Vec<f16> = [1.0f32, 0.0, 2.0, -4.0].map(f16::from_f32).to_vec();
        let found = from_dense(&halves, [2, 2], 0.0).unwrap();
        let unit = [1.0f32, 0.0, 0.0, 1.0].map(f16::from_f32);
        let mut out = [f16::ZERO; 4];
        Cpu::best().sparse_matmul(&found.coo(), &unit, &mut out).unwrap();
        assert_eq!(out[..], halves[..]);
    }

    #[test]
    fn values_in_8_bits_are_rounded_to_even() {
        let (ints, scale) = quantize_values(&[127.0f32, 0.5, 1.5, -127.0, 0.0]).unwrap();
        assert_eq!((ints, scale), (vec![127, 0, 2, -127, 0], 1.0));
        assert_eq!(quantize_values(&[0.0f32; 2]).unwrap(), (vec![0; 2], 0.0));
        let why = quantize_values(&[1.0, f32::INFINITY]).unwrap_err();
        assert!(matches!(why, Error::NotFinite { index: 1, .. }));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let cpu = Cpu::best();
        let refuse = |rows: &[i64], columns: &[i64], dense: usize, out: usize| {
            let a = Coo { shape: [2, 3], rows, columns, values: &[1.0f32] };
            let outcome = cpu.sparse_matmul(&a, &vec![0.0; dense], &mut vec![0.0; out]);
            outcome.unwrap_err().to_string()
        };
        assert!(refuse(&[2], &[0], 6, 4).contains("rows from 0 to less than 2"));
        assert!(refuse(&[0], &[-1], 6, 4).contains("columns from 0 to less than 3"));
        assert!(refuse(&[0, 1], &[0], 6, 4).contains("one for each value"));
        assert!(refuse(&[0], &[0], 7, 4).contains("dense"));
        assert!(refuse(&[0], &[0], 6, 5).contains("out"));
        assert!(from_dense(&[0.0f32; 3], [2, 2], 0.0).is_err());
        assert!(from_dense(&[0.0f32; 4], [2, 2], -1.0).is_err());
        assert!(from_dense(&[0.0f32; 0], [usize::MAX / 2 + 1, 2], 0.0).is_err());
        let rows = usize::MAX / 8 + 2; // Eight times as much is eight, but for the carry.
        let a = Coo { shape: [rows, 1], rows: &[0], columns: &[0], values: &[1.0f32] };
        assert!(cpu.sparse_matmul(&a, &[0.0; 8], &mut [0.0; 8]).is_err());
    }
}
