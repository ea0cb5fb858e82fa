//! Products of 8-bit integers, exact, and what turns them back into numbers: the two halves of
//! LLM.int8 (arXiv 2208.07339), for activations that are quantized as well.

use super::Cpu;
use super::buffer::Buffer;
use super::check_len;
use super::dispatch::Isa;
use super::int8_matrix;
use super::linear::Pool;
use super::simd::{Simd, Task};
use crate::{Element, Error, Result};

/// Largest K for which no sum can leave an i32: `K * 128 * 128 < 2^31`.
const MAX_K: usize = (1 << 17) - 1;
/// Rows of `b` that a thread takes at once.
const ROWS: usize = 64;
/// Rows of `a` that are multiplied with those before the next ones: the second-level cache holds
/// both at usual sizes.
const BATCH: usize = 24;
/// Rows of the result that are transposed together: a cache line of i32.
const LINE: usize = 16;
/// What an integer of LLM.int8 stands for is its row's absmax over this.
const PEAK: f32 = 127.0;

impl Cpu {
    /// `out = a bᵀ` in i32: `a: [M, k]`, `b: [N, k]`, `out: [M, N]`. Exact.
    ///
    /// # Errors
    /// [`Error::Argument`] if a length does not fit, or for a `k` whose sums may not fit an i32.
    pub fn int8_matmul(&self, a: &[i8], b: &[i8], k: usize, out: &mut [i32]) -> Result<()> {
        const OP: &str = "int8_matmul";
        check_k(OP, k)?;
        let rows = |of: &[i8]| of.len().checked_div(k);
        let (Some(m), Some(n)) = (rows(a), rows(b)) else {
            // No columns: every sum is one of nothing.
            check_len(OP, "numbers of a and b", 0, a.len() + b.len())?;
            out.fill(0);
            return Ok(());
        };
        check_len(OP, format_args!("numbers of a, {m} rows of k = {k}"), m * k, a.len())?;
        check_len(OP, format_args!("numbers of b, {n} rows of k = {k}"), n * k, b.len())?;
        check_len(OP, format_args!("numbers of out, {m} rows of {n}"), m * n, out.len())?;
        if out.is_empty() {
            return Ok(());
        }
        let pool = Pool::for_work(m * n * k);
        pool.enter(|| multiply(self.isa, a, b, k, out, &pool));
        Ok(())
    }

    /// `out[i, j] = sums[i, j] * rows[i] * columns[j] / 127² + bias[j]`: what a product of integers
    /// stands for whose operands had these absmax, by row. `sums, out: [M, N]`, `rows: [M]`,
    /// `columns, bias: [N]`.
    ///
    /// # Errors
    /// [`Error::Argument`] if a length does not fit.
    pub fn int8_rescale<T: Element>(
        &self,
        sums: &[i32],
        rows: &[f32],
        columns: &[f32],
        bias: Option<&[T]>,
        out: &mut [T],
    ) -> Result<()> {
        const OP: &str = "int8_rescale";
        let (m, n) = (rows.len(), columns.len());
        check_len(OP, format_args!("sums, {m} rows of {n}"), m * n, sums.len())?;
        check_len(OP, format_args!("numbers of out, {m} rows of {n}"), m * n, out.len())?;
        check_len(OP, format_args!("numbers of bias, N = {n}"), n, bias.map_or(n, <[T]>::len))?;
        if out.is_empty() {
            return Ok(());
        }
        let pool = Pool::for_work(m * n);
        pool.enter(|| {
            pool.each(out, n, m * n, |i, out| {
                let sums = &sums[i * n..];
                for (j, (out, sum)) in out.iter_mut().zip(sums).enumerate() {
                    let product = *sum as f32 * (rows[i] * columns[j]) * (1.0 / (PEAK * PEAK));
                    *out = T::from_f32(product + bias.map_or(0.0, |b| b[j].to_f32()));
                }
            });
        });
        Ok(())
    }
}

/// Refuses rows so long that a sum may leave an i32.
pub(super) fn check_k(op: &'static str, k: usize) -> Result<()> {
    if k <= MAX_K {
        return Ok(());
    }
    let help = "split the product along k and add the parts in a wider type";
    Err(Error::argument(op, format!("k up to {MAX_K}"), k.to_string(), help))
}

/// `out = a bᵀ`; everything fits.
fn multiply(isa: Isa, a: &[i8], b: &[i8], k: usize, out: &mut [i32], pool: &Pool) {
    let m = a.len() / k;
    if m == 1 {
        return multiply_transposed(isa, a, b, k, out, pool);
    }
    let mut transposed = vec![0; out.len()];
    multiply_transposed(isa, a, b, k, &mut transposed, pool);
    let n = out.len() / m;
    pool.each(out, LINE * n, m * n, |i, out| {
        for (j, column) in transposed.chunks_exact(m).enumerate() {
            for (row, sum) in out.chunks_exact_mut(n).zip(&column[i * LINE..]) {
                row[j] = *sum;
            }
        }
    });
}

/// `out = b aᵀ: [N, M]`: rows of `b` lie together, so that each thread owns its outputs.
pub(super) fn multiply_transposed(
    isa: Isa,
    a: &[i8],
    b: &[i8],
    k: usize,
    out: &mut [i32],
    pool: &Pool,
) {
    let (m, n) = (a.len() / k, b.len() / k);
    if isa.run(int8_matrix::Fits { m }) {
        return int8_matrix::multiply_transposed(isa, a, b, k, out, pool);
    }
    let sum = |a: &[i8]| a.iter().map(|a| i32::from(*a)).sum();
    let sums: Vec<i32> = a.chunks_exact(k).map(sum).collect();
    // Two bytes each at most, as the machine takes them.
    let mut ints = Buffer::new(a.len().div_ceil(4), 0u64);
    isa.run(Prepare { a, ints: &mut ints });
    pool.each(out, ROWS * m, m * n * k, |i, out| {
        let b = &b[i * ROWS * k..][..out.len() / m * k];
        isa.run(Rows { ints: &ints, sums: &sums, b, k, m, out });
    });
}

/// Activations as the machine takes them.
struct Prepare<'a> {
    a: &'a [i8],
    ints: &'a mut [u64],
}

impl Task for Prepare<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        for (int, a) in bytemuck::cast_slice_mut(self.ints).iter_mut().zip(self.a) {
            *int = S::int(*a);
        }
    }
}

/// The products of some rows of `b` with all of `a: [M, k]`: `out: [rows, M]`.
struct Rows<'a> {
    ints: &'a [u64],
    /// Of each row of `a`.
    sums: &'a [i32],
    b: &'a [i8],
    k: usize,
    m: usize,
    out: &'a mut [i32],
}

impl Task for Rows<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let a: &[S::Int] = &bytemuck::cast_slice(self.ints)[..self.m * self.k];
        for first in (0..self.m).step_by(BATCH) {
            let a = &a[first * self.k..][..BATCH.min(self.m - first) * self.k];
            if S::SIXTEEN_SUMS {
                tiles::<S, 4, 4>(s, a, self.b, self.k, self.out, self.m, first);
            } else {
                tiles::<S, 3, 3>(s, a, self.b, self.k, self.out, self.m, first);
            }
        }
        if S::OFFSET != 0 {
            // Sums are right modulo 2^32 throughout, and in the end they fit.
            for out in self.out.chunks_exact_mut(self.m) {
                for (out, sum) in out.iter_mut().zip(self.sums) {
                    *out = out.wrapping_sub(sum.wrapping_mul(S::OFFSET));
                }
            }
        }
    }
}

/// The products of all rows of `b` with some of `a`, which begin at row `first`, in tiles of `C`
/// times `R`.
#[inline(always)]
fn tiles<S: Simd, const C: usize, const R: usize>(
    s: S,
    a: &[S::Int],
    b: &[i8],
    k: usize,
    out: &mut [i32],
    m: usize,
    first: usize,
) {
    let whole = b.len() / k / C * C;
    let (tiles, rest) = b.split_at(whole * k);
    let (out_tiles, out_rest) = out.split_at_mut(whole * m);
    for (b, out) in tiles.chunks_exact(C * k).zip(out_tiles.chunks_exact_mut(C * m)) {
        strip::<S, C, R>(s, a, b, k, out, m, first);
    }
    for (b, out) in rest.chunks_exact(k).zip(out_rest.chunks_exact_mut(m)) {
        strip::<S, 1, R>(s, a, b, k, out, m, first);
    }
}

/// The products of `C` rows of `b`.
#[inline(always)]
fn strip<S: Simd, const C: usize, const R: usize>(
    s: S,
    a: &[S::Int],
    b: &[i8],
    k: usize,
    out: &mut [i32],
    m: usize,
    first: usize,
) {
    let b: [&[i8]; C] = std::array::from_fn(|c| &b[c * k..][..k]);
    let whole = a.len() / k / R * R;
    for i in (0..whole).step_by(R) {
        let sums = s.dot_ints(b, std::array::from_fn::<_, R, _>(|r| &a[(i + r) * k..][..k]));
        for (sums, out) in sums.iter().zip(out.chunks_exact_mut(m)) {
            out[first + i..][..R].copy_from_slice(sums);
        }
    }
    for (i, a) in a[whole * k..].chunks_exact(k).enumerate() {
        let sums = s.dot_ints(b, [a]);
        for ([sum], out) in sums.iter().zip(out.chunks_exact_mut(m)) {
            out[first + whole + i] = *sum;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::reference;

    /// Integers of the whole range, its ends among them.
    fn integers(len: usize, seed: i32) -> Vec<i8> {
        (0..len as i32)
            .map(|i| match i % 11 {
                0 => -128,
                1 => 127,
                _ => (i.wrapping_mul(i + seed).wrapping_mul(40_503) >> 7) as i8,
            })
            .collect()
    }

    #[test]
    fn products_are_exact() {
        for isa in Isa::available().into_iter().chain([Isa::modelled()]) {
            for (m, n, k) in [
                (1, 5, 64),
                (40, 70, 1100),
                (25, 130, 63),
                (4, 33, 100),
                (7, 17, 31),
                (67, 3, 257),
                (2, 1, 1),
                (1, 2, MAX_K),
            ] {
                let (a, b) = (integers(m * k, 3), integers(n * k, 8));
                let mut out = vec![1; m * n];
                Cpu::with(isa).int8_matmul(&a, &b, k, &mut out).unwrap();
                assert_eq!(out, reference::int8_matmul(&a, &b, k), "{} {m} {n} {k}", isa.name());
            }
        }
    }

    #[test]
    fn the_largest_sum_fits() {
        let a = vec![-128i8; MAX_K];
        for isa in Isa::available() {
            let mut out = [0];
            Cpu::with(isa).int8_matmul(&a, &a, MAX_K, &mut out).unwrap();
            assert_eq!(i64::from(out[0]), 128 * 128 * MAX_K as i64);
            assert!(
                Cpu::with(isa).int8_matmul(&vec![0; MAX_K + 1], &[], MAX_K + 1, &mut []).is_err()
            );
        }
    }

    #[test]
    fn rescales_to_what_was_multiplied() {
        // Numbers that 8 bits hold exactly under these absmax.
        let mut out = [0.0f32; 4];
        let sums = [127 * 127, -127, 0, 254];
        Cpu::best().int8_rescale(&sums, &[2.0, 127.0], &[4.0, 127.0], None, &mut out).unwrap();
        let expected = [8.0, -2.0, 0.0, 254.0];
        assert!(out.iter().zip(expected).all(|(o, e)| (o - e).abs() <= 1e-6 * e.abs()), "{out:?}");
        let bias = [half::f16::from_f32(1.0); 2];
        let mut out = [half::f16::ZERO; 2];
        Cpu::best().int8_rescale(&sums[..2], &[2.0], &[4.0, 127.0], Some(&bias), &mut out).unwrap();
        assert_eq!(out.map(|v| v.to_f32()), [9.0, -1.0]);
    }

    #[test]
    fn refuses_lengths_that_do_not_fit() {
        let cpu = Cpu::best();
        assert!(cpu.int8_matmul(&[1; 5], &[1; 4], 2, &mut [0; 4]).is_err());
        assert!(cpu.int8_matmul(&[1; 4], &[1; 4], 2, &mut [0; 3]).is_err());
        assert!(cpu.int8_matmul(&[1; 4], &[], 0, &mut []).is_err());
        assert!(cpu.int8_rescale::<f32>(&[1; 4], &[1.0], &[1.0; 3], None, &mut [0.0; 3]).is_err());
        let mut zeros = [7; 2];
        cpu.int8_matmul(&[], &[], 0, &mut zeros).unwrap();
        assert_eq!(zeros, [0; 2]);
    }
}
