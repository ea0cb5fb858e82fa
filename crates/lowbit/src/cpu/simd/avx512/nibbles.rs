//! Codes of four bits: the ranks of numbers among 15 thresholds at most, found in an even grid of 32 cells
//! with a threshold each at most, or by halving.

use std::arch::x86_64::*;

use super::{Avx512, LANES, Simd};

const CELLS: usize = 32;
/// Next to it, numbers end in their last whole bit.
const WHOLE: f32 = 8_388_608.0;

/// A number `x`, or its magnitude, is in cell `round(x * scale + start)`.
#[derive(Debug, Clone, Copy)]
struct Grid {
    scale: f32,
    /// A whole number, beside [`WHOLE`].
    start: f32,
    /// What numbers are cut off at, beyond all thresholds and within the grid.
    limit: f32,
    /// The threshold in each cell, or infinity.
    ups: [f32; CELLS],
    /// Thresholds in the cells before.
    ranks: [u32; CELLS],
}

impl Grid {
    /// The coarsest of some grids that suits the ascending `ups`, which infinities may follow.
    fn of(ups: &[f32; 15], signed: bool) -> Option<Self> {
        let ups: Vec<f32> = ups.iter().copied().filter(|up| up.is_finite()).collect();
        let limit = ups.iter().fold(f32::MIN_POSITIVE, |most, up| most.max(up.abs())) * 1.0625;
        // From the middle up and down, or from the first cell up: within half a cell of the last.
        let (start, most) = if signed { (0.0, 31.4) } else { (16.0, 15.4) };
        (0..16).rev().find_map(|i| Self::with(&ups, start, limit, (most - i as f32 / 4.0) / limit))
    }

    fn with(thresholds: &[f32], start: f32, limit: f32, scale: f32) -> Option<Self> {
        let start = WHOLE + start;
        let mut grid = Grid { scale, start, limit, ups: [f32::INFINITY; CELLS], ranks: [0; CELLS] };
        if !scale.is_finite() {
            return None;
        }
        for up in thresholds {
            let cell = grid.cell(*up);
            if grid.ups[cell].is_finite() {
                return None;
            }
            grid.ups[cell] = *up;
        }
        for cell in 1..CELLS {
            grid.ranks[cell] = grid.ranks[cell - 1] + u32::from(grid.ups[cell - 1].is_finite());
        }
        Some(grid)
    }

    /// As the vectors find it: rounded once, and so in the order of the numbers.
    fn cell(&self, x: f32) -> usize {
        x.mul_add(self.scale, self.start).to_bits() as usize % CELLS
    }
}

/// How ranks are found.
#[derive(Clone, Copy)]
pub(crate) struct Ranks {
    /// Of each rank.
    codes: __m256i,
    way: Way,
}

#[derive(Clone, Copy)]
enum Way {
    Cells(Cells<false>),
    SignedCells(Cells<true>),
    Halves(Halves),
}

/// Of sixteen numbers times a factor a byte each: the rank, plus 8 where a signed format sees a negative
/// number.
trait Rank {
    fn rank(&self, x: &[f32], factor: __m512) -> __m128i;
}

#[derive(Clone, Copy)]
struct Cells<const SIGNED: bool> {
    scale: __m512,
    start: __m512,
    limit: __m512,
    ups: [__m512; 2],
    ranks: [__m512i; 2],
}

impl<const SIGNED: bool> Cells<SIGNED> {
    #[inline(always)]
    fn new(s: Avx512, grid: &Grid) -> Self {
        let [scale, start, limit] = [grid.scale, grid.start, grid.limit].map(|x| s.splat(x));
        let ups = [0, LANES].map(|from| s.load(&grid.ups[from..]));
        // SAFETY: `s` proves the features; each half of 32 ranks has as many bytes as are read.
        let ranks = [0, LANES].map(|from| unsafe {
            _mm512_loadu_si512(grid.ranks[from..from + LANES].as_ptr().cast())
        });
        Cells { scale, start, limit, ups, ranks }
    }
}

impl<const SIGNED: bool> Rank for Cells<SIGNED> {
    #[inline(always)]
    fn rank(&self, x: &[f32], factor: __m512) -> __m128i {
        let x = &x[..LANES];
        // SAFETY: only reached from methods of `Avx512`, which proves the features; 16 are read.
        unsafe {
            let x = _mm512_mul_ps(_mm512_loadu_ps(x.as_ptr()), factor);
            // The smaller magnitude, with the sign of `x` or, of magnitudes, without.
            let within = match SIGNED {
                true => _mm512_range_ps::<0b1010>(x, self.limit),
                false => _mm512_range_ps::<0b0010>(x, self.limit),
            };
            let cell = _mm512_castps_si512(_mm512_fmadd_ps(within, self.scale, self.start));
            let up = _mm512_permutex2var_ps(self.ups[0], cell, self.ups[1]);
            let above = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(within, up);
            let rank = _mm512_permutex2var_epi32(self.ranks[0], cell, self.ranks[1]);
            let mut rank = _mm512_mask_add_epi32(rank, above, rank, _mm512_set1_epi32(1));
            if SIGNED {
                let negative = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(x, _mm512_setzero_ps());
                rank = _mm512_mask_add_epi32(rank, negative, rank, _mm512_set1_epi32(8));
            }
            _mm512_cvtepi32_epi8(rank)
        }
    }
}

#[derive(Clone, Copy)]
struct Halves {
    /// Threshold to compare with next, by the rank so far: `ups[r + 7]`, `+ 3`, `+ 1`, `+ 0`.
    ups: [__m512; 4],
    magnitude: __m512i,
    negative: __m512i,
}

impl Halves {
    #[inline(always)]
    fn new(s: Avx512, ups: &[f32; 15], signed: bool) -> Self {
        let shifted = |by: usize| -> [f32; LANES] {
            std::array::from_fn(|i| ups.get(i + by).copied().unwrap_or(f32::INFINITY))
        };
        let ups = [7, 3, 1, 0].map(|by| s.load(&shifted(by)));
        // SAFETY: `s` proves the features.
        unsafe {
            let magnitude = _mm512_set1_epi32(if signed { 0x7fff_ffff } else { -1 });
            Halves { ups, magnitude, negative: _mm512_set1_epi32(if signed { 8 } else { 0 }) }
        }
    }
}

impl Rank for Halves {
    #[inline(always)]
    fn rank(&self, x: &[f32], factor: __m512) -> __m128i {
        let x = &x[..LANES];
        // SAFETY: only reached from methods of `Avx512`, which proves the features; 16 are read.
        unsafe {
            let x = _mm512_mul_ps(_mm512_loadu_ps(x.as_ptr()), factor);
            let negative = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(x, _mm512_setzero_ps());
            let bits = _mm512_and_si512(_mm512_castps_si512(x), self.magnitude);
            let x = _mm512_castsi512_ps(bits);
            let mut rank = _mm512_setzero_si512();
            for (ups, step) in self.ups.into_iter().zip([8, 4, 2, 1]) {
                let up = _mm512_permutexvar_ps(rank, ups);
                let above = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(x, up);
                rank = _mm512_mask_add_epi32(rank, above, rank, _mm512_set1_epi32(step));
            }
            _mm512_cvtepi32_epi8(_mm512_mask_add_epi32(rank, negative, rank, self.negative))
        }
    }
}

impl Ranks {
    #[inline(always)]
    pub fn new(s: Avx512, ups: &[f32; 15], codes: &[u8; 16], signed: bool) -> Self {
        let way = match Grid::of(ups, signed) {
            Some(grid) if signed => Way::SignedCells(Cells::new(s, &grid)),
            Some(grid) => Way::Cells(Cells::new(s, &grid)),
            None => Way::Halves(Halves::new(s, ups, signed)),
        };
        // SAFETY: `s` proves the features; 16 bytes are read from 16 codes.
        let codes = unsafe { _mm256_broadcastsi128_si256(_mm_loadu_si128(codes.as_ptr().cast())) };
        Ranks { codes, way }
    }
}

/// [`Simd::encode_nibbles`].
#[inline(always)]
pub(super) fn encode<const LOW_FIRST: bool>(ranks: &Ranks, x: &[f32], factor: f32, out: &mut [u8]) {
    match &ranks.way {
        Way::Cells(cells) => encode_by::<LOW_FIRST>(cells, ranks.codes, x, factor, out),
        Way::SignedCells(cells) => encode_by::<LOW_FIRST>(cells, ranks.codes, x, factor, out),
        Way::Halves(halves) => encode_by::<LOW_FIRST>(halves, ranks.codes, x, factor, out),
    }
}

#[inline(always)]
fn encode_by<const LOW_FIRST: bool>(
    ranks: &impl Rank,
    codes: __m256i,
    x: &[f32],
    factor: f32,
    out: &mut [u8],
) {
    let (x, out) = (&x[..4 * LANES], &mut out[..2 * LANES]);
    // SAFETY: only reached from methods of `Avx512`, which proves the features; 16 bytes are written to
    // each half of `out`.
    unsafe {
        let factor = _mm512_set1_ps(factor);
        let weights = _mm256_set1_epi16(if LOW_FIRST { 0x1001 } else { 0x0110 });
        for half in 0..2 {
            let a = ranks.rank(&x[32 * half..], factor);
            let b = ranks.rank(&x[32 * half + 16..], factor);
            let codes = _mm256_shuffle_epi8(codes, _mm256_set_m128i(b, a));
            let pairs = _mm256_cvtepi16_epi8(_mm256_maddubs_epi16(codes, weights));
            _mm_storeu_si128(out[16 * half..16 * half + 16].as_mut_ptr().cast(), pairs);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats;

    /// As vectors do it.
    fn rank(grid: &Grid, x: f32, signed: bool) -> usize {
        let within = x.abs().min(grid.limit);
        let within = if signed { within } else { within.copysign(x) };
        let cell = grid.cell(within);
        grid.ranks[cell] as usize + usize::from(within >= grid.ups[cell])
    }

    #[test]
    fn a_grid_finds_the_ranks_of_its_encoder() {
        let mut grids = 0;
        for format in formats::ALL.iter().filter(|format| format.code_bits == 4) {
            let Some(encoder) = format.encoder.filter(|e| e.ups.len() < 16) else { continue };
            let signed = encoder.sign_bit != 0;
            let ups = std::array::from_fn(|i| encoder.ups.get(i).copied().unwrap_or(f32::INFINITY));
            let grid = Grid::of(&ups, signed).unwrap_or_else(|| panic!("{}", format.name));
            grids += 1;
            let near = |x: f32| [x.next_down().next_down(), x.next_down(), x, x.next_up()];
            let ends = (-32..=64).map(|i| (i as f32 - 0.5) / grid.scale);
            let inside = (-4000..=4000).map(|i| i as f32 * format.peak / 3000.0);
            let all = encoder.ups.iter().copied().chain(ends).flat_map(near).chain(inside);
            for x in all.chain([0.0, 1e30, f32::MAX]).flat_map(|x| [x, -x]) {
                let of_encoder = if signed { x.abs() } else { x };
                let expected = encoder.ups.iter().filter(|up| **up <= of_encoder).count();
                assert_eq!(rank(&grid, x, signed), expected, "{} {x}", format.name);
            }
        }
        assert!(grids > 2, "{grids} formats");
    }

    #[test]
    fn crowded_thresholds_have_no_grid() {
        let mut ups = [f32::INFINITY; 15];
        ups[..3].copy_from_slice(&[0.1, 0.101, 0.9]);
        assert!(Grid::of(&ups, false).is_none());
    }

    /// By both ways, on a machine that has the instructions.
    #[test]
    fn halving_finds_the_same_codes() {
        let Some(s) = Avx512::detect() else { return };
        let encoder = formats::ALL[0].encoder.unwrap();
        let ups: [f32; 15] = encoder.ups.try_into().unwrap();
        let codes: [u8; 16] = encoder.codes.try_into().unwrap();
        let cells = Ranks::new(s, &ups, &codes, false);
        let halves = Ranks { way: Way::Halves(Halves::new(s, &ups, false)), ..cells };
        let x: Vec<f32> = (0..64).map(|i| i as f32 / 31.0 - 1.03).collect();
        let [mut a, mut b] = [[0u8; 32]; 2];
        encode::<false>(&cells, &x, 1.0, &mut a);
        encode::<false>(&halves, &x, 1.0, &mut b);
        assert_eq!(a, b);
    }
}
