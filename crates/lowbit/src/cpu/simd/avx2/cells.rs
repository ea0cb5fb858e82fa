//! Codes of dynamic maps, by their lines.

use std::arch::x86_64::*;

use super::{Avx2, Cells, LANES};
use crate::cpu::lines::{DOUBT, FIRST, FRACTION, Lines, PER_SEGMENT};

/// See [`Simd::encode_cells`](crate::cpu::simd::Simd::encode_cells).
#[inline(always)]
pub(super) fn encode(_: Avx2, cells: &Cells, x: &[f32], factor: f32, out: &mut [u8]) {
    let (x, out) = (&x[..4 * LANES], &mut out[..4 * LANES]);
    let certain = if cells.zero > 0 {
        by_lines::<true>(cells, x, factor, out)
    } else {
        by_lines::<false>(cells, x, factor, out)
    };
    if !certain {
        cells.encode_one_by_one(x, factor, out);
    }
}

/// Codes of 32 numbers; false if some may be wrong.
#[inline(always)]
fn by_lines<const SIGNED: bool>(cells: &Cells, x: &[f32], factor: f32, out: &mut [u8]) -> bool {
    let (x, out) = (&x[..4 * LANES], &mut out[..4 * LANES]);
    let Lines { last, slope, offset, top } = &cells.lines;
    // SAFETY: only reached from methods of `Avx2`, which proves the feature; every access through a
    // pointer is to a whole array of 8 numbers, or preceded by a slice of the length it touches.
    unsafe {
        let last = _mm256_loadu_si256(last.as_ptr().cast());
        let slope = _mm256_loadu_ps(slope.as_ptr());
        let offset = _mm256_loadu_ps(offset.as_ptr());
        let top = _mm256_loadu_ps(top.as_ptr());
        let mut ranks = [_mm256_setzero_si256(); 4];
        let mut below = [_mm256_setzero_si256(); 4];
        for ((rank, below), x) in ranks.iter_mut().zip(&mut below).zip(x.chunks_exact(LANES)) {
            let x = _mm256_mul_ps(_mm256_loadu_ps(x.as_ptr()), _mm256_set1_ps(factor));
            let magnitude = _mm256_andnot_ps(_mm256_set1_ps(-0.0), x);
            let mut bits = _mm256_castps_si256(magnitude);
            if SIGNED {
                // Below zero a tie goes to the larger magnitude.
                *below = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_LT_OQ>(x, _mm256_setzero_ps()));
                bits = _mm256_sub_epi32(bits, *below);
            }
            let upper = _mm256_srli_epi32::<16>(bits);
            let above_first = _mm256_subs_epu16(upper, _mm256_set1_epi32(FIRST));
            let segment = _mm256_mulhi_epu16(above_first, _mm256_set1_epi32(PER_SEGMENT));
            let next = _mm256_cmpgt_epi32(bits, _mm256_permutevar8x32_epi32(last, segment));
            let segment = _mm256_sub_epi32(segment, next);
            let line = _mm256_fmadd_ps(
                magnitude,
                _mm256_permutevar8x32_ps(slope, segment),
                _mm256_permutevar8x32_ps(offset, segment),
            );
            *rank = _mm256_cvtps_epi32(_mm256_min_ps(line, _mm256_permutevar8x32_ps(top, segment)));
        }
        let least = _mm256_min_epu16(
            _mm256_min_epu16(ranks[0], ranks[1]),
            _mm256_min_epu16(ranks[2], ranks[3]),
        );
        let fraction = _mm256_or_si256(least, _mm256_set1_epi32(-1 << FRACTION));
        let doubt = _mm256_min_epu16(fraction, _mm256_set1_epi16(DOUBT as i16 - 1));
        let certain = _mm256_movemask_epi8(_mm256_cmpeq_epi16(doubt, fraction)) == 0;

        let mut codes = upper_bytes(ranks);
        if SIGNED {
            let below = {
                let first = _mm256_blend_epi16::<0xaa>(below[0], below[1]);
                let second = _mm256_blend_epi16::<0xaa>(below[2], below[3]);
                _mm256_packs_epi16(first, second)
            };
            // Below zero nothing has the code of zero, and the largest value has no opposite.
            codes = _mm256_max_epu8(codes, _mm256_abs_epi8(below));
            codes = _mm256_min_epu8(codes, _mm256_xor_si256(below, _mm256_set1_epi8(i8::MIN)));
            codes = _mm256_sub_epi8(_mm256_xor_si256(codes, below), below);
            codes = _mm256_add_epi8(codes, _mm256_set1_epi8(cells.zero as i8));
        }
        let deal = _mm256_setr_epi8(
            0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15, 0, 2, 4, 6, 1, 3, 5, 7, 8, 10,
            12, 14, 9, 11, 13, 15,
        );
        let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        let codes = _mm256_permutevar8x32_epi32(_mm256_shuffle_epi8(codes, deal), order);
        _mm256_storeu_si256(out.as_mut_ptr().cast(), codes);
        certain
    }
}

/// The upper halves of 32 numbers, at most 255, as bytes: in each half of the register four times
/// eight, of which the even ones are of one vector and the odd ones of the next.
#[inline(always)]
fn upper_bytes(v: [__m256i; 4]) -> __m256i {
    // SAFETY: only reached from methods of `Avx2`, which proves the feature.
    unsafe {
        let first = _mm256_blend_epi16::<0xaa>(_mm256_srli_epi32::<16>(v[0]), v[1]);
        let second = _mm256_blend_epi16::<0xaa>(_mm256_srli_epi32::<16>(v[2]), v[3]);
        _mm256_packus_epi16(first, second)
    }
}
