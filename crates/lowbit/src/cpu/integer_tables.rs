//! Tables of what codes contribute to a sum, for instruction sets that look bytes up: an integer in planes
//! of seven bits, so that sums of several fit a byte.

use super::buffer::Buffer;
use super::dispatch::Isa;
use super::linear::Pool;
use super::simd::{Simd, Task};
use super::view::Blocks;

/// Bits of a plane.
const BITS: usize = 7;
/// What makes an entry's planes positive: half of each.
pub(super) const HALF: i32 = 64;
/// Rows whose sums are folded together, in parts.
pub(super) const STEP: usize = 64;
/// Rows of a part.
const ROWS: usize = 16;

/// How rows of activations, `x: [M, K]`, are cut into tiles.
pub(super) struct Cut {
    pub m: usize,
    pub k: usize,
    pub planes: usize,
    /// Activations of a tile.
    pub weights: usize,
    /// Bytes of its tables.
    pub bytes: usize,
}

/// What works out the tables of a tile.
pub(super) trait FillTile: Sync + Sized {
    /// All tables, for the activations of a tile, fewer at the end of a row; what the integers stand for, which is
    /// not finite if they cannot be.
    fn fill<S: Simd, const P: usize>(&self, s: S, x: &[f32], tables: &mut [u8]) -> f32;

    /// The tables of all tiles, `[tiles, M, bytes]`, and what their integers stand for, `[tiles, M]`.
    fn tables(&self, isa: Isa, pool: &Pool, x: &[f32], cut: Cut) -> Option<(Buffer<u8>, Vec<f32>)> {
        let Cut { m, k, planes, weights, bytes } = cut;
        let tiles = k.div_ceil(weights);
        let mut tables = Buffer::new(tiles * m * bytes, 0u8);
        let mut units = vec![0.0; tiles * m];
        let parts = tables.chunks_exact_mut(bytes).zip(&mut units).enumerate();
        let mut parts: Vec<Part<'_, Self>> = parts
            .map(|(i, (tables, unit))| {
                let row = &x[i % m * k..][..k];
                let x = &row[i / m * weights..];
                Part { fill: self, planes, x: &x[..x.len().min(weights)], tables, unit }
            })
            .collect();
        pool.each(&mut parts, 1, tiles * m * bytes, |_, parts| {
            for part in parts {
                isa.run(part);
            }
        });
        units.iter().all(|unit| unit.is_finite()).then_some((tables, units))
    }
}

/// A tile of a row of activations.
struct Part<'a, F> {
    fill: &'a F,
    planes: usize,
    x: &'a [f32],
    tables: &'a mut [u8],
    unit: &'a mut f32,
}

impl<F: FillTile> Task for &mut Part<'_, F> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        *self.unit = match self.planes {
            3 => self.fill.fill::<S, 3>(s, self.x, self.tables),
            _ => self.fill.fill::<S, 2>(s, self.x, self.tables),
        };
    }
}

/// What lies from each of those places on, at least `len` bytes: copied to `ends` with zeros after it where
/// the weight ends before, so that vectors may reach beyond it.
#[inline(always)]
pub(super) fn runs<'a, const R: usize>(
    bytes: &'a [u8],
    places: impl Iterator<Item = usize>,
    len: usize,
    ends: &'a mut Vec<u8>,
) -> [&'a [u8]; R] {
    let mut runs: [&[u8]; R] = [&[]; R];
    for (run, place) in runs.iter_mut().zip(places) {
        *run = &bytes[place..];
    }
    if runs.iter().any(|run| run.len() < len) {
        ends.resize(R * len, 0);
        for (run, end) in runs.iter_mut().zip(ends.chunks_exact_mut(len)) {
            let there = len.min(run.len());
            end[..there].copy_from_slice(&run[..there]);
            *run = end;
        }
    }
    runs
}

/// What the integers of some activations' products stand for.
pub(super) struct Unit {
    /// Not finite if an activation is not, or if all are too small for integers.
    pub value: f32,
    pub factor: f32,
    /// What makes an entry's planes positive.
    pub half: i32,
}

impl Unit {
    /// For `x`, whose products are summed in those runs with values of at most that magnitude, in `P`
    /// planes.
    #[inline(always)]
    pub fn new<'x, S: Simd, const P: usize>(
        s: S,
        x: &[f32],
        runs: impl Iterator<Item = &'x [f32]>,
        largest: f32,
    ) -> Self {
        // The largest sum, but for its values: where one activation is far larger than the others, no
        // bit is lost to those beside it.
        let most = runs.map(|x| x.iter().map(|x| x.abs()).sum()).fold(0.0, f32::max);
        let peak = ((HALF - 1) << (BITS * (P - 1))) as f32;
        let value = most * largest / peak;
        let factor = if value > 0.0 { 1.0 / value } else { 0.0 };
        let finite = s.max_magnitude_bits(x) < f32::INFINITY.to_bits() && factor.is_finite();
        let half = (0..P).map(|plane| HALF << (BITS * plane)).sum();
        Unit { value: if finite { value } else { f32::NAN }, factor, half }
    }

    /// A product, rounded, as a number that is not negative.
    #[inline(always)]
    pub fn integer(&self, product: f32) -> i32 {
        // Adding 1.5 * 2^23 leaves the integer in the low bits.
        const SHIFT: f32 = 12_582_912.0;
        (product * self.factor + SHIFT).to_bits() as i32 - SHIFT.to_bits() as i32 + self.half
    }
}

/// Seven bits of such an integer.
#[inline(always)]
pub(super) fn plane(integer: i32, plane: usize) -> i32 {
    integer >> (BITS * plane) & 127
}

/// Adds the means of rows `first..` times the sums of each block's activations to `y: [rows, M]`.
#[inline(always)]
pub(super) fn add_means<S: Simd>(
    s: S,
    blocks: &Blocks<'_>,
    first: usize,
    sums: &[f32],
    m: usize,
    y: &mut [f32],
) {
    let Some(means) = blocks.means else { return };
    let per_row = blocks.of_row();
    let means = means[first * per_row..].chunks_exact(per_row);
    for (y, means) in y.chunks_exact_mut(m).zip(means) {
        for (y, sums) in y.iter_mut().zip(sums.chunks_exact(per_row)) {
            *y += dot(s, means, sums);
        }
    }
}

/// The integers of such sums of so many look-ups a row, by parts and rows; of each plane pairs of bytes as
/// little-endian integers, and the odd ones.
#[inline(always)]
pub(super) fn integers<const P: usize>(
    sums: &[[[u8; STEP]; 2]; P],
    looked_up: usize,
) -> [[i32; ROWS]; STEP / ROWS] {
    let mut all = [0i32; STEP];
    let mut half = 0;
    for (plane, [pairs, odds]) in sums.iter().enumerate() {
        let word = |v: &[u8; STEP], i: usize| u16::from_le_bytes([v[2 * i], v[2 * i + 1]]);
        for i in 0..STEP / 2 {
            let (pair, odd) = (word(pairs, i), word(odds, i));
            let even = pair.wrapping_sub(odd << 8);
            all[2 * i] += i32::from(even) << (BITS * plane);
            all[2 * i + 1] += i32::from(odd) << (BITS * plane);
        }
        half += HALF << (BITS * plane);
    }
    let mut parts = [[0; ROWS]; STEP / ROWS];
    for (part, all) in parts.iter_mut().zip(all.chunks_exact(ROWS)) {
        for (value, sum) in part.iter_mut().zip(all) {
            *value = sum - half * looked_up as i32;
        }
    }
    parts
}

/// The sum of products.
#[inline(always)]
fn dot<S: Simd>(s: S, a: &[f32], b: &[f32]) -> f32 {
    let mut sum = s.splat(0.0);
    let whole = a.len() / S::LANES * S::LANES;
    for (a, b) in a.chunks_exact(S::LANES).zip(b.chunks_exact(S::LANES)) {
        sum = s.fma(s.load(a), s.load(b), sum);
    }
    a[whole..].iter().zip(&b[whole..]).fold(s.sum(sum), |sum, (a, b)| sum + a * b)
}
