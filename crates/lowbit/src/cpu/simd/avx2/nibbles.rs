//! Codes of four bits: the ranks of numbers among 15 thresholds at most, found by halving.

use std::arch::x86_64::*;

use super::{Avx2, LANES, plane};

/// Thresholds, and the codes of their ranks.
#[derive(Clone, Copy)]
pub(crate) struct Ranks {
    /// `ups[7]`, `ups[3]`, `ups[11]` in every lane.
    first: __m256,
    second: [__m256; 2],
    /// `ups[1, 5, 9, 13]` and `ups[0, 2, .. 14]`; entry `v` stands at index `-v mod 8`.
    third: __m256,
    fourth: __m256,
    codes: __m256i,
    magnitude: __m256,
    negative: __m256i,
}

impl Ranks {
    /// Of ascending `ups`, which infinities may follow; `signed` codes have their sign in bit 3.
    #[inline(always)]
    pub fn new(_: Avx2, ups: &[f32; 15], codes: &[u8; 16], signed: bool) -> Self {
        let turned = |step: usize, first: usize, count: usize| -> [f32; 8] {
            std::array::from_fn(|i| ups[first + step * ((8 - i) % 8 % count)])
        };
        // SAFETY: `Avx2` proves the feature; 8 numbers are read from arrays of 8.
        unsafe {
            Ranks {
                first: _mm256_set1_ps(ups[7]),
                second: [_mm256_set1_ps(ups[3]), _mm256_set1_ps(ups[11])],
                third: _mm256_loadu_ps(turned(4, 1, 4).as_ptr()),
                fourth: _mm256_loadu_ps(turned(2, 0, 8).as_ptr()),
                codes: plane(codes.map(|c| [c]), 0),
                magnitude: _mm256_castsi256_ps(_mm256_set1_epi32(if signed {
                    0x7fff_ffff
                } else {
                    -1
                })),
                negative: _mm256_set1_epi32(if signed { 8 } else { 0 }),
            }
        }
    }
}

/// Codes of 32 numbers times a factor, two to a byte.
#[inline(always)]
pub fn encode<const LOW_FIRST: bool>(ranks: &Ranks, x: &[f32], factor: f32, out: &mut [u8]) {
    let (x, out) = (&x[..4 * LANES], &mut out[..2 * LANES]);
    // SAFETY: `Ranks` exist only where `Avx2` proves the feature; the slices have these lengths.
    unsafe {
        let factor = _mm256_set1_ps(factor);
        let mut rank = [_mm256_setzero_si256(); 4];
        for (v, rank) in rank.iter_mut().enumerate() {
            let x = &x[v * LANES..(v + 1) * LANES];
            *rank = rank_of(ranks, _mm256_mul_ps(_mm256_loadu_ps(x.as_ptr()), factor));
        }
        let low = _mm256_packs_epi32(rank[0], rank[1]);
        let high = _mm256_packs_epi32(rank[2], rank[3]);
        let mixed = _mm256_packus_epi16(low, high);
        let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        let ordered = _mm256_permutevar8x32_epi32(mixed, order);
        let codes = _mm256_shuffle_epi8(ranks.codes, ordered);
        let weights = _mm256_set1_epi16(if LOW_FIRST { 0x1001 } else { 0x0110 });
        let pairs = _mm256_maddubs_epi16(codes, weights);
        let packed = _mm256_packus_epi16(pairs, pairs);
        let ordered = _mm256_permute4x64_epi64::<0b00_00_10_00>(packed);
        _mm_storeu_si128(out.as_mut_ptr().cast(), _mm256_castsi256_si128(ordered));
    }
}

/// Rank of eight numbers in 32-bit lanes, by halving; plus 8 where a signed format sees `x < 0`.
///
/// A comparison yields -1, so the count is kept negative: `2 * count + mask` appends a bit.
#[inline(always)]
fn rank_of(ranks: &Ranks, x: __m256) -> __m256i {
    // SAFETY: only reached from methods of `Avx2`, which proves the feature.
    unsafe {
        let negative = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_LT_OQ>(x, _mm256_setzero_ps()));
        let x = _mm256_and_ps(x, ranks.magnitude);
        let m1 = _mm256_cmp_ps::<_CMP_GE_OQ>(x, ranks.first);
        let up = _mm256_blendv_ps(ranks.second[0], ranks.second[1], m1);
        let two = append(_mm256_castps_si256(m1), _mm256_cmp_ps::<_CMP_GE_OQ>(x, up));
        let up = _mm256_permutevar8x32_ps(ranks.third, two);
        let three = append(two, _mm256_cmp_ps::<_CMP_GE_OQ>(x, up));
        let up = _mm256_permutevar8x32_ps(ranks.fourth, three);
        let four = append(three, _mm256_cmp_ps::<_CMP_GE_OQ>(x, up));
        let sign = _mm256_and_si256(negative, ranks.negative);
        _mm256_sub_epi32(sign, four)
    }
}

/// `2 * count + mask`.
#[inline(always)]
fn append(count: __m256i, mask: __m256) -> __m256i {
    // SAFETY: only reached from methods of `Avx2`, which proves the feature.
    unsafe { _mm256_add_epi32(_mm256_add_epi32(count, count), _mm256_castps_si256(mask)) }
}
