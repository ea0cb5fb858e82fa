//! Codes of dynamic maps, by their lines.

use std::arch::x86_64::*;

use super::{Avx512, Cells, LANES};
use crate::cpu::lines::{DOUBT, FIRST, FRACTION, Lines, PER_SEGMENT};

/// See [`Simd::encode_cells`](crate::cpu::simd::Simd::encode_cells).
#[inline(always)]
pub(super) fn encode(_: Avx512, cells: &Cells, x: &[f32], factor: f32, out: &mut [u8]) {
    let (x, out) = (&x[..4 * LANES], &mut out[..4 * LANES]);
    let Lines { last, slope, offset, top } = &cells.lines;
    let signed = cells.zero > 0;
    // SAFETY: a value of `Avx512` proves the features; every access through a pointer is to a whole
    // array of 8 numbers, or to a chunk of the length it touches.
    let doubtful = unsafe {
        // Segments are below 8, so the upper half of a table is never looked up.
        let both =
            |half: __m256i| _mm512_castps_si512(_mm512_broadcast_f32x8(_mm256_castsi256_ps(half)));
        let numbers = |v: &[f32; 8]| _mm512_broadcast_f32x8(_mm256_loadu_ps(v.as_ptr()));
        let last = both(_mm256_loadu_si256(last.as_ptr().cast()));
        let (slope, offset, top) = (numbers(slope), numbers(offset), numbers(top));
        let zero_code = _mm512_set1_epi32(cells.zero.into());
        let mut least = _mm512_set1_epi32(-1);
        for (x, out) in x.chunks_exact(LANES).zip(out.chunks_exact_mut(LANES)) {
            let x = _mm512_mul_ps(_mm512_loadu_ps(x.as_ptr()), _mm512_set1_ps(factor));
            let magnitude = _mm512_abs_ps(x);
            // Below zero a tie goes to the larger magnitude.
            let below = match signed {
                true => _mm512_cmp_ps_mask::<_CMP_LT_OQ>(x, _mm512_setzero_ps()),
                false => 0,
            };
            let bits = _mm512_castps_si512(magnitude);
            let bits = _mm512_mask_add_epi32(bits, below, bits, _mm512_set1_epi32(1));
            let upper = _mm512_srli_epi32::<16>(bits);
            let above_first = _mm512_subs_epu16(upper, _mm512_set1_epi32(FIRST));
            let segment = _mm512_mulhi_epu16(above_first, _mm512_set1_epi32(PER_SEGMENT));
            let next = _mm512_cmpgt_epi32_mask(bits, _mm512_permutexvar_epi32(segment, last));
            let segment = _mm512_mask_add_epi32(segment, next, segment, _mm512_set1_epi32(1));
            let line = _mm512_fmadd_ps(
                magnitude,
                _mm512_permutexvar_ps(segment, slope),
                _mm512_permutexvar_ps(segment, offset),
            );
            let rank = _mm512_min_ps(line, _mm512_permutexvar_ps(segment, top));
            let rank = _mm512_cvtps_epi32(rank);
            least = _mm512_min_epu16(least, rank);
            let mut code = _mm512_srli_epi32::<{ FRACTION }>(rank);
            if signed {
                // Below zero nothing has the code of zero, and the largest value has no opposite.
                code = _mm512_mask_max_epi32(code, below, code, _mm512_set1_epi32(1));
                code = _mm512_mask_min_epi32(code, below, code, zero_code);
                let above = _mm512_add_epi32(zero_code, code);
                code = _mm512_mask_sub_epi32(above, below, zero_code, code);
            }
            _mm_storeu_si128(out.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(code));
        }
        let fraction = _mm512_or_si512(least, _mm512_set1_epi32(-1 << FRACTION));
        _mm512_cmplt_epu16_mask(fraction, _mm512_set1_epi16(DOUBT as i16)) != 0
    };
    if doubtful {
        cells.encode_one_by_one(x, factor, out);
    }
}
