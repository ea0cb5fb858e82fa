//! Codes of dynamic maps, by their lines.

use std::arch::x86_64::*;

use super::{Avx512, Cells, LANES};
use crate::cpu::lines::{DOUBT, FRACTION, LEAST, Quads};

/// See [`Simd::encode_cells`](crate::cpu::simd::Simd::encode_cells).
#[inline(always)]
pub(super) fn encode(s: Avx512, cells: &Cells, x: &[f32], factor: f32, out: &mut [u8]) {
    let (x, out) = (&x[..4 * LANES], &mut out[..4 * LANES]);
    let certain = if cells.zero > 0 {
        by_lines::<true>(s, cells, x, factor, out)
    } else {
        by_lines::<false>(s, cells, x, factor, out)
    };
    if !certain {
        cells.encode_one_by_one(x, factor, out);
    }
}

/// Codes of 64 numbers; false if some may be wrong.
#[inline(always)]
fn by_lines<const SIGNED: bool>(
    _: Avx512,
    cells: &Cells,
    x: &[f32],
    factor: f32,
    out: &mut [u8],
) -> bool {
    let (x, out) = (&x[..4 * LANES], &mut out[..4 * LANES]);
    let Quads { last, slope, offset, top } = &cells.quads;
    // SAFETY: a value of `Avx512` proves the features; every access through a pointer is to a whole
    // array of 16 numbers, or to a slice of the length it touches.
    unsafe {
        let last = _mm512_loadu_si512(last.as_ptr().cast());
        let both = |v: &[[f32; LANES]; 2]| v.each_ref().map(|v| _mm512_loadu_ps(v.as_ptr()));
        let (slope, offset, top) = (both(slope), both(offset), both(top));
        let mut ranks = [_mm512_setzero_si512(); 4];
        let mut below = 0u64;
        for (i, (rank, x)) in ranks.iter_mut().zip(x.chunks_exact(LANES)).enumerate() {
            let x = _mm512_mul_ps(_mm512_loadu_ps(x.as_ptr()), _mm512_set1_ps(factor));
            // As integers, which more ports take.
            let bits = _mm512_castps_si512(_mm512_abs_ps(x));
            let mut bits = _mm512_max_epi32(bits, _mm512_set1_epi32(LEAST.to_bits() as i32));
            let magnitude = _mm512_castsi512_ps(bits);
            let quad = _mm512_srli_epi32::<24>(bits);
            if SIGNED {
                // Below zero a tie goes to the larger magnitude.
                let mask = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(x, _mm512_setzero_ps());
                below |= u64::from(mask) << (LANES * i);
                bits = _mm512_mask_add_epi32(bits, mask, bits, _mm512_set1_epi32(1));
            }
            let upper = _mm512_cmpgt_epi32_mask(bits, _mm512_permutexvar_epi32(quad, last));
            let segment = _mm512_mask_sub_epi32(quad, upper, quad, _mm512_set1_epi32(16));
            let line = _mm512_fmadd_ps(
                magnitude,
                _mm512_permutex2var_ps(slope[0], segment, slope[1]),
                _mm512_permutex2var_ps(offset[0], segment, offset[1]),
            );
            let top = _mm512_permutex2var_ps(top[0], segment, top[1]);
            let rank_f32 = _mm512_min_epi32(_mm512_castps_si512(line), _mm512_castps_si512(top));
            *rank = _mm512_cvtps_epi32(_mm512_castsi512_ps(rank_f32));
        }
        let [a, b, c, d] = ranks;
        // Upper halves are whole ranks, of two vectors beside each other, and of four.
        let pair = |a, b| _mm512_mask_blend_epi16(0xaaaa_aaaa, _mm512_srli_epi32::<FRACTION>(a), b);
        let bytes = _mm512_packus_epi16(pair(a, b), pair(c, d));
        // In each part of a vector bytes of a and b take turns, then those of c and d.
        let turns = _mm_set_epi8(15, 13, 11, 9, 14, 12, 10, 8, 7, 5, 3, 1, 6, 4, 2, 0);
        let fours = _mm512_shuffle_epi8(bytes, _mm512_broadcast_i32x4(turns));
        let order = _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
        let mut codes = _mm512_permutexvar_epi32(order, fours);
        if SIGNED {
            // Below zero nothing has the code of zero, and the largest value has no opposite.
            let zero = _mm512_set1_epi8(cells.zero as i8);
            codes = _mm512_mask_max_epu8(codes, below, codes, _mm512_set1_epi8(1));
            codes = _mm512_mask_min_epu8(codes, below, codes, zero);
            let above = _mm512_add_epi8(zero, codes);
            codes = _mm512_mask_sub_epi8(above, below, zero, codes);
        }
        _mm512_storeu_si512(out.as_mut_ptr().cast(), codes);
        let least = _mm512_min_epu16(_mm512_min_epu16(a, b), _mm512_min_epu16(c, d));
        let fraction = _mm512_or_si512(least, _mm512_set1_epi32(-1 << FRACTION));
        _mm512_cmplt_epu16_mask(fraction, _mm512_set1_epi16(DOUBT as i16)) == 0
    }
}
