//! Adapters of low rank beside a weight (LoRA), in f32 whatever the type of activations; where a machine multiplies
//! matrices, what reaches the rank has 16 bits of it.

use super::buffer::Buffer;
use super::columns;
use super::convert::{narrow, widen};
use super::dispatch::Isa;
use super::gemm_matrix::{self, HasMatrices};
use super::gemm_wide::Width;
use super::linear::Pool;
use super::simd::{Simd, Task};
use super::tile::{self, Narrowest, Panels};
use super::view::View;
use super::{check_len, rows_of};
use crate::{DType, Element, Error, Result, threads};

/// The most rows that a thread takes at once, which the first-level cache holds in f32, and what they are a
/// multiple of.
const MOST_ROWS: usize = 24;
const TILE: usize = 8;
/// Rows from which on machines that multiply matrices are faster.
const MATRICES_FROM: usize = 32;
/// Rows whose outer products are added up at a time: a panel of them stays in the first-level cache.
const DEPTH: usize = 256;

/// What is added to results of a weight `[N, K]`: `y += scale (x aᵀ) bᵀ` (Hu et al. 2021, "LoRA").
#[derive(Debug, Clone, Copy)]
pub struct LowRank<'a> {
    /// `[rank, K]`.
    pub a: &'a [f32],
    /// `[N, rank]`.
    pub b: &'a [f32],
    /// Rows of `a` and columns of `b`, at least one.
    pub rank: usize,
    /// Usually LoRA's alpha by the rank.
    pub scale: f32,
}

/// Where gradients of an adapter go.
#[derive(Debug)]
pub struct LowRankGradients<'a, T> {
    /// `[.., K]`, if that of the input is wanted, which is added to what is there.
    pub dx: Option<&'a mut [T]>,
    /// `[rank, K]`, whatever was there.
    pub da: &'a mut [f32],
    /// `[N, rank]`, whatever was there.
    pub db: &'a mut [f32],
}

impl LowRank<'_> {
    /// N and K.
    fn sizes(&self, op: &'static str) -> Result<(usize, usize)> {
        let [n, k] = [self.b.len(), self.a.len()].map(|len| len / self.rank.max(1));
        if n == 0 || k == 0 {
            return Err(Error::argument(
                op,
                "a rank of 1 or more, and a row of each factor at least",
                format!("rank {}, {} and {} numbers", self.rank, self.a.len(), self.b.len()),
                "check the shapes",
            ));
        }
        check_len(op, format_args!("numbers of a, rows of K = {k}"), self.rank * k, self.a.len())?;
        check_len(op, format_args!("numbers of b, {n} rows"), n * self.rank, self.b.len())?;
        Ok((n, k))
    }
}

/// [`Cpu::low_rank`](super::Cpu::low_rank).
pub(crate) fn forward<T: Element>(
    isa: Isa,
    of: &LowRank<'_>,
    x: &[T],
    y: &mut [T],
    hidden: &mut [f32],
) -> Result<()> {
    const OP: &str = "low_rank";
    let (n, k) = of.sizes(OP)?;
    let m = rows_of(x.len(), k, y.len(), n);
    check_len(OP, format_args!("numbers of x, {m} rows of K = {k}"), m * k, x.len())?;
    check_len(OP, format_args!("numbers of y, {m} rows of N = {n}"), m * n, y.len())?;
    check_len(OP, format_args!("numbers of hidden, {m} rows"), m * of.rank, hidden.len())?;
    let pool = Pool::for_work(m * of.rank * (n + k));
    pool.enter(|| {
        Through { of, transposed: false, x }.run(isa, hidden, Some(y), &pool);
    });
    Ok(())
}

/// [`Cpu::low_rank_backward`](super::Cpu::low_rank_backward).
pub(crate) fn backward<T: Element>(
    isa: Isa,
    of: &LowRank<'_>,
    x: &[T],
    hidden: &[f32],
    dy: &[T],
    out: LowRankGradients<'_, T>,
) -> Result<()> {
    const OP: &str = "low_rank_backward";
    let (n, k) = of.sizes(OP)?;
    let (m, rank) = (rows_of(x.len(), k, dy.len(), n), of.rank);
    let LowRankGradients { dx, da, db } = out;
    check_len(OP, format_args!("numbers of x, {m} rows of K = {k}"), m * k, x.len())?;
    check_len(OP, format_args!("numbers of dy, {m} rows of N = {n}"), m * n, dy.len())?;
    check_len(OP, format_args!("numbers of hidden, {m} rows"), m * rank, hidden.len())?;
    let of_dx = dx.as_ref().map_or(m * k, |dx| dx.len());
    check_len(OP, "numbers of dx, as many as of x", m * k, of_dx)?;
    check_len(OP, "numbers of da, as many as of a", of.a.len(), da.len())?;
    check_len(OP, "numbers of db, as many as of b", of.b.len(), db.len())?;
    let pool = Pool::for_work(2 * m * rank * (n + k));
    pool.enter(|| {
        // What reaches `x aᵀ`: `[M, rank]`.
        let mut inner = Buffer::new(m * rank, 0.0f32);
        Through { of, transposed: true, x: dy }.run(isa, &mut inner, dx, &pool);
        if m == 0 {
            da.fill(0.0);
            return db.fill(0.0);
        }
        let wide = isa.run(Width);
        let [inner, hidden] = [&inner, hidden].map(|v| tile::panels(v, m, rank, m, &pool));
        pool.each(&mut columns::cut(da, k, wide), rank, m * k * rank, |i, da| {
            let sums = isa.run(Outer { left: &inner, right: x, m, len: k, col: i * wide, wide });
            for (da, sums) in da.iter_mut().zip(sums.chunks_exact(wide)) {
                da.copy_from_slice(&sums[..da.len()]);
            }
        });
        pool.each(db, wide * rank, m * n * rank, |i, db| {
            let sums = isa.run(Outer { left: &hidden, right: dy, m, len: n, col: i * wide, wide });
            for (col, db) in db.chunks_exact_mut(rank).enumerate() {
                for (db, sums) in db.iter_mut().zip(sums.chunks_exact(wide)) {
                    *db = sums[col];
                }
            }
        });
    });
    Ok(())
}

/// Rows through both factors of an adapter.
struct Through<'a, T> {
    of: &'a LowRank<'a>,
    /// Whether they are gradients: `(x b) a`, not `(x aᵀ) bᵀ`.
    transposed: bool,
    x: &'a [T],
}

impl<T: Element> Through<'_, T> {
    /// `hidden: [M, rank]`, scaled, and what is added to `y` if it is wanted.
    fn run(&self, isa: Isa, hidden: &mut [f32], y: Option<&mut [T]>, pool: &Pool) {
        let Through { of, transposed, x } = *self;
        let LowRank { a, b, rank, scale } = *of;
        let k = a.len() / rank;
        let m = hidden.len() / rank;
        let (wide, few) = (isa.run(Width), isa.run(Narrowest { cols: rank }));
        let up = match transposed {
            true => Panels::straight(a, k, wide, pool),
            false => Panels::transposed(b, rank, wide, pool),
        };
        let down = if by_matrices(isa, self, hidden, pool) {
            None
        } else if transposed {
            Some(Panels::straight(b, rank, few, pool))
        } else {
            Some(Panels::transposed(a, k, few, pool))
        };
        let rows = m.div_ceil(4 * threads::count()).next_multiple_of(TILE).clamp(TILE, MOST_ROWS);
        let hidden = hidden.chunks_mut(rows * rank);
        let mut parts: Vec<_> = match y {
            Some(y) => hidden.zip(y.chunks_mut(rows * up.cols).map(Some)).collect(),
            None => hidden.map(|hidden| (hidden, None)).collect(),
        };
        pool.each(&mut parts, 1, x.len() * rank, |i, parts| {
            for (hidden, y) in parts {
                let of_row = x.len() / m;
                let x = &x[i * rows * of_row..][..hidden.len() / rank * of_row];
                let y = y.as_deref_mut();
                isa.run(Rows { down: down.as_ref(), up: &up, scale, x, hidden, y });
            }
        });
    }
}

/// Rows to the rank in 16 bits and more of each number, where a machine multiplies matrices and activations have no more.
fn by_matrices<T: Element>(
    isa: Isa,
    through: &Through<'_, T>,
    hidden: &mut [f32],
    pool: &Pool,
) -> bool {
    let Through { of, transposed, x } = *through;
    let LowRank { a, b, rank, .. } = *of;
    let (m, n, k) = (hidden.len() / rank, b.len() / rank, a.len() / rank);
    if T::DTYPE == DType::F32 || m < MATRICES_FROM || !isa.run(HasMatrices) {
        return false;
    }
    let turned;
    let w = if transposed {
        turned = tile::panels(b, n, rank, n, pool);
        View::dense(&turned, n)
    } else {
        View::dense(a, k)
    };
    gemm_matrix::prepare(isa, &w, x, m, false, T::DTYPE, pool)
        .is_some_and(|p| p.multiply(isa, None, hidden, pool))
}

/// Some rows.
struct Rows<'a, T> {
    /// To the rank, unless that was done.
    down: Option<&'a Panels>,
    /// And from it.
    up: &'a Panels,
    scale: f32,
    x: &'a [T],
    hidden: &'a mut [f32],
    y: Option<&'a mut [T]>,
}

impl<T: Element> Task for Rows<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Rows { down, up, scale, x, hidden, y } = self;
        let rank = up.terms;
        if let Some(down) = down {
            let mut wide = Buffer::scratch(x.len(), 0.0f32);
            widen(s, x, &mut wide);
            let stride = down.padded();
            let mut sums = Buffer::new(hidden.len() / rank * stride, 0.0f32);
            down.multiply(s, &wide, &mut sums);
            for (hidden, sums) in hidden.chunks_exact_mut(rank).zip(sums.chunks_exact(stride)) {
                hidden.copy_from_slice(&sums[..rank]);
            }
        }
        hidden.iter_mut().for_each(|v| *v *= scale);
        let Some(y) = y else { return };
        let (cols, stride) = (up.cols, up.padded());
        let mut sums = Buffer::scratch(y.len() / cols * stride, 0.0f32);
        for (y, sums) in y.chunks_exact(cols).zip(sums.chunks_exact_mut(stride)) {
            widen(s, y, sums);
        }
        up.multiply(s, hidden, &mut sums);
        for (y, sums) in y.chunks_exact_mut(cols).zip(sums.chunks_exact(stride)) {
            narrow(s, sums, y);
        }
    }
}

/// Columns `col..` of `left right`: `left: [rank, M]`, `right: [M, len]`; gives `[rank, wide]`.
struct Outer<'a, T> {
    left: &'a [f32],
    right: &'a [T],
    m: usize,
    len: usize,
    col: usize,
    wide: usize,
}

impl<T: Element> Task for Outer<'_, T> {
    type Output = Buffer<f32>;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Buffer<f32> {
        let Outer { left, right, m, len, col, wide } = self;
        let cols = wide.min(len - col);
        let mut sums = Buffer::new(left.len() / m * wide, 0.0f32);
        let mut panel = Buffer::scratch(DEPTH.min(m) * wide, 0.0f32);
        for first in (0..m).step_by(DEPTH) {
            let depth = DEPTH.min(m - first);
            let rows = right[first * len..].chunks_exact(len);
            for (row, panel) in rows.zip(panel.chunks_exact_mut(wide)) {
                widen(s, &row[col..col + cols], panel);
            }
            tile::rows(s, &left[first..], m, &panel[..depth * wide], wide, &mut sums, wide);
        }
        sums
    }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;
    use crate::Cpu;
    use crate::conformance::Rng;

    /// `a b`: `a: [M, K]`, `b: [K, N]`, in f64.
    fn product(a: &[f64], b: &[f64], k: usize) -> Vec<f64> {
        let n = b.len() / k;
        let rows = a.chunks_exact(k);
        rows.flat_map(|a| (0..n).map(move |j| (0..k).map(|i| a[i] * b[i * n + j]).sum())).collect()
    }

    fn turned(x: &[f64], cols: usize) -> Vec<f64> {
        (0..cols).flat_map(|j| x[j..].iter().step_by(cols).copied()).collect()
    }

    fn as_f64<T: Element>(x: &[T]) -> Vec<f64> {
        x.iter().map(|v| f64::from(v.to_f32())).collect()
    }

    #[track_caller]
    fn assert_close(what: &str, got: &[f64], expected: &[f64], relative: f64) {
        assert_eq!(got.len(), expected.len(), "{what}");
        let largest = expected.iter().fold(0.0f64, |most, v| most.max(v.abs()));
        for (g, e) in got.iter().zip(expected) {
            assert!((g - e).abs() <= relative * largest + 1e-30, "{what}: {g} for {e}");
        }
    }

    fn check<T: Element>(cpu: Cpu, [m, n, k, rank]: [usize; 4], relative: f64) {
        let what = format!("{} {m}x{n}x{k} rank {rank} {}", cpu.isa().name(), T::DTYPE);
        // Of f32, or 16 bits of it.
        let exact = if T::DTYPE == DType::F32 { 1e-5 } else { 5e-5 };
        let mut rng = Rng((m * n + k * rank) as u64);
        let mut of_type = |len: usize| -> Vec<T> {
            rng.numbers(T::DTYPE, len).values.into_iter().map(T::from_f32).collect()
        };
        let (x, base, dy, dx0) = (of_type(m * k), of_type(m * n), of_type(m * n), of_type(m * k));
        let (a, b) = (rng.numbers(DType::F32, rank * k), rng.numbers(DType::F32, n * rank));
        let of = LowRank { a: &a.values, b: &b.values, rank, scale: 0.5 };
        let (mut y, mut hidden) = (base.clone(), vec![f32::NAN; m * rank]);
        cpu.low_rank(&of, &x, &mut y, &mut hidden).unwrap();
        let (a64, b64, x64, dy64) = (as_f64(of.a), as_f64(of.b), as_f64(&x), as_f64(&dy));
        let expected: Vec<_> = product(&x64, &turned(&a64, k), k).iter().map(|v| v / 2.0).collect();
        assert_close(&format!("{what} hidden"), &as_f64(&hidden), &expected, exact);
        let of_y = product(&expected, &turned(&b64, rank), rank);
        let of_y: Vec<_> = of_y.iter().zip(as_f64(&base)).map(|(v, b)| v + b).collect();
        assert_close(&format!("{what} y"), &as_f64(&y), &of_y, relative);

        let inner: Vec<_> = product(&dy64, &b64, n).iter().map(|v| v / 2.0).collect();
        let of_x = product(&inner, &a64, rank);
        let of_x: Vec<_> = of_x.iter().zip(as_f64(&dx0)).map(|(v, b)| v + b).collect();
        let gradients = |dx: Option<&mut [T]>| {
            let (mut da, mut db) = (vec![f32::NAN; rank * k], vec![f32::NAN; n * rank]);
            let out = LowRankGradients { dx, da: &mut da, db: &mut db };
            cpu.low_rank_backward(&of, &x, &hidden, &dy, out).unwrap();
            (da, db)
        };
        let mut dx = dx0.clone();
        let (da, db) = gradients(Some(&mut dx));
        assert_close(&format!("{what} dx"), &as_f64(&dx), &of_x, relative);
        let over_rows = |left: &[f64], cols: usize, right: &[f64], zeros: usize| match m {
            0 => vec![0.0; zeros],
            _ => product(&turned(left, cols), right, m),
        };
        let of_a = over_rows(&inner, rank, &x64, rank * k);
        assert_close(&format!("{what} da"), &as_f64(&da), &of_a, exact);
        let of_b = over_rows(&dy64, n, &expected, n * rank);
        assert_close(&format!("{what} db"), &as_f64(&db), &of_b, exact);
        assert!(gradients(None) == (da, db), "{what} without dx");
    }

    #[test]
    fn every_instruction_set_gives_results_and_gradients() {
        // Of many rows, so that threads share them; of a rank beyond a tile; odd; one row; none.
        let shapes =
            [[300, 130, 96, 16], [25, 40, 70, 40], [7, 5, 3, 1], [1, 33, 64, 8], [0, 4, 4, 2]];
        for cpu in Isa::available().into_iter().map(Cpu::with) {
            for shape in shapes {
                check::<f32>(cpu, shape, 1e-5);
                check::<bf16>(cpu, shape, 4e-3);
                check::<f16>(cpu, shape, 5e-4);
            }
        }
    }

    #[test]
    fn lengths_that_do_not_fit_are_errors() {
        let cpu = Cpu::best();
        let of = LowRank { a: &[0.0; 12], b: &[0.0; 8], rank: 4, scale: 1.0 };
        let run = |of: LowRank<'_>, [x, y, hidden]: [usize; 3]| {
            cpu.low_rank(&of, &vec![0.0f32; x], &mut vec![0.0; y], &mut vec![0.0; hidden])
        };
        assert!(run(of, [6, 4, 8]).is_ok());
        for lengths in [[5, 4, 8], [6, 5, 8], [6, 4, 7]] {
            let error = run(of, lengths).unwrap_err().to_string();
            assert!(error.contains("low_rank"), "{error}");
        }
        for of in [LowRank { rank: 0, ..of }, LowRank { rank: 5, ..of }, LowRank { a: &[], ..of }] {
            assert!(run(of, [6, 4, 8]).is_err());
        }
    }
}
