//! `dx = dy w`: the gradient of a linear layer's input, without a dense copy of `w`.

use super::dispatch::Isa;
use super::linear::Pool;
use super::simd::{Simd, Task};
use super::view::View;

/// Columns that a thread takes at once.
const COLS: usize = 256;
/// Rows of `w` that are decoded together.
const ROWS: usize = 4;
/// Rows of `dy` that share their loads.
const MR: usize = 2;

/// `dy: [M, N]`, `dx: [M, K]`; the lengths are right.
pub(crate) fn linear_transposed(isa: Isa, view: &View<'_>, dy: &[f32], dx: &mut [f32]) {
    let (n, k) = (view.n, view.k);
    if dx.is_empty() {
        return;
    }
    let m = dx.len() / k;
    let pool = Pool::for_work(m * n * k);
    pool.enter(|| {
        // [K / COLS, M, COLS]: each thread owns its columns.
        let mut parts = vec![0.0f32; k.div_ceil(COLS) * m * COLS];
        pool.each(&mut parts, m * COLS, m * n * k, |i, dx| {
            isa.run(Columns { view, dy, col: i * COLS, dx });
        });
        pool.each(dx, k, m * k, |i, row| {
            for (part, out) in row.chunks_mut(COLS).enumerate() {
                out.copy_from_slice(&parts[(part * m + i) * COLS..][..out.len()]);
            }
        });
    });
}

/// Columns `col..col + COLS` of dx: `[M, COLS]`.
struct Columns<'a> {
    view: &'a View<'a>,
    dy: &'a [f32],
    col: usize,
    dx: &'a mut [f32],
}

impl Task for Columns<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Columns { view, dy, col, dx } = self;
        let n = view.n;
        let cols = COLS.min(view.k - col);
        let mut tile = [0.0f32; ROWS * COLS];
        for row in (0..n).step_by(ROWS) {
            let rows = ROWS.min(n - row);
            for (i, tile) in tile.chunks_exact_mut(COLS).enumerate() {
                if i < rows {
                    view.decode(s, row + i, col, &mut tile[..cols]);
                } else {
                    tile.fill(0.0);
                }
            }
            let weight = |i: usize, j: usize| if j < rows { dy[i * n + row + j] } else { 0.0 };
            let mut groups = dx.chunks_exact_mut(MR * COLS);
            let mut i = 0;
            for group in &mut groups {
                let factors: [[f32; ROWS]; MR] =
                    std::array::from_fn(|r| std::array::from_fn(|j| weight(i + r, j)));
                add_rows(s, &tile, factors, group);
                i += MR;
            }
            for group in groups.into_remainder().chunks_exact_mut(COLS) {
                add_rows(s, &tile, [std::array::from_fn(|j| weight(i, j))], group);
                i += 1;
            }
        }
    }
}

/// `dx[r] += sum of factors[r][j] * tile[j]`.
#[inline(always)]
fn add_rows<S: Simd, const R: usize>(
    s: S,
    tile: &[f32; ROWS * COLS],
    factors: [[f32; ROWS]; R],
    dx: &mut [f32],
) {
    let factors = factors.map(|row| row.map(|f| s.splat(f)));
    let mut at = 0;
    while at < COLS {
        let w: [S::F; ROWS] = std::array::from_fn(|j| s.load(&tile[j * COLS + at..]));
        for r in 0..R {
            let dx = &mut dx[r * COLS + at..][..S::LANES];
            let mut sum = s.load(dx);
            for j in 0..ROWS {
                sum = s.fma(w[j], factors[r][j], sum);
            }
            s.store(sum, dx);
        }
        at += S::LANES;
    }
}
