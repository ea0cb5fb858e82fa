//! Codes that are floats of eight bits: they become half floats, which the processor widens.

use std::arch::x86_64::*;

use super::LANES;
use crate::cpu::simd::SmallFloats;

/// 32 codes as half floats, unless one of them stands for something else.
#[inline(always)]
pub(super) fn decode(floats: SmallFloats, codes: &[u8]) -> Option<[__m256; 4]> {
    let codes = &codes[..4 * LANES];
    // SAFETY: only reached from methods of `Avx2`, which proves the features; 32 bytes are read.
    unsafe {
        let bytes = _mm256_loadu_si256(codes.as_ptr().cast());
        let magnitudes = _mm256_and_si256(bytes, _mm256_set1_epi8(0x7f));
        let last = _mm256_set1_epi8((floats.end - 1) as i8);
        if _mm256_movemask_epi8(_mm256_cmpgt_epi8(magnitudes, last)) != 0 {
            return None;
        }
        let mut out = [_mm256_set1_ps(floats.factor); 4];
        for (out, codes) in out.chunks_exact_mut(2).zip(codes.chunks_exact(16)) {
            let words = _mm256_cvtepu8_epi16(_mm_loadu_si128(codes.as_ptr().cast()));
            let sign = _mm256_and_si256(_mm256_slli_epi16::<8>(words), _mm256_set1_epi16(i16::MIN));
            let shifted = _mm256_sll_epi16(words, _mm_cvtsi32_si128(floats.shift as i32));
            // A sign that was shifted to below its place is in the way.
            let magnitude = _mm256_and_si256(shifted, _mm256_set1_epi16(0x7f << floats.shift));
            let halves = _mm256_or_si256(sign, magnitude);
            let low = _mm256_cvtph_ps(_mm256_castsi256_si128(halves));
            let high = _mm256_cvtph_ps(_mm256_extracti128_si256::<1>(halves));
            out[0] = _mm256_mul_ps(low, out[0]);
            out[1] = _mm256_mul_ps(high, out[1]);
        }
        Some(out)
    }
}
