//! Two parts: AVX2.

use std::arch::x86_64::*;

use super::super::avx2::Avx2;
use super::{Bytes, LOW_MIDDLE, LOW_VALUES};

/// Bytes of a vector.
const LEN: usize = 32;
/// `2^16 / 27`, rounded up: exact for bytes.
const RECIPROCAL: i16 = 2428;

impl Bytes for Avx2 {
    type Bytes = __m256i;
    const PARTS: usize = LEN / 16;

    // SAFETY of this whole block: a value of `Avx2` proves the features that the intrinsics need,
    // and every access through a pointer is preceded by a slice of the length it touches.

    #[inline(always)]
    fn zeros(self) -> __m256i {
        // SAFETY: see the top of this block.
        unsafe { _mm256_setzero_si256() }
    }
    #[inline(always)]
    fn load_bytes(self, bytes: &[u8]) -> __m256i {
        let bytes = &bytes[..LEN];
        // SAFETY: see the top of this block.
        unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
    }
    #[inline(always)]
    fn store_bytes(self, v: __m256i, out: &mut [u8]) {
        let out = &mut out[..LEN];
        // SAFETY: see the top of this block.
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), v) }
    }
    #[inline(always)]
    fn prefetch(self, bytes: &[u8], ahead: usize) {
        // SAFETY: see the top of this block; a hint touches nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(bytes.as_ptr().wrapping_add(ahead).cast()) }
    }
    #[inline(always)]
    fn interleave(self, a: __m256i, b: __m256i) -> [__m256i; 2] {
        // SAFETY: see the top of this block.
        unsafe { [_mm256_unpacklo_epi8(a, b), _mm256_unpackhi_epi8(a, b)] }
    }
    #[inline(always)]
    fn nibbles_of(self, v: __m256i) -> [__m256i; 2] {
        // SAFETY: see the top of this block.
        unsafe {
            let low = _mm256_set1_epi8(15);
            [_mm256_and_si256(v, low), _mm256_and_si256(_mm256_srli_epi16::<4>(v), low)]
        }
    }
    #[inline(always)]
    fn trits_of(self, v: __m256i) -> [__m256i; 2] {
        // SAFETY: see the top of this block.
        unsafe {
            let (even, by) = (_mm256_set1_epi16(0xff), _mm256_set1_epi16(RECIPROCAL));
            // The upper byte of an odd one's product is its quotient.
            let odds = _mm256_mulhi_epu16(_mm256_andnot_si256(even, v), by);
            let evens = _mm256_mulhi_epu16(_mm256_and_si256(v, even), by);
            let upper = _mm256_or_si256(_mm256_andnot_si256(even, odds), evens);
            // At most 8 times 27, which fits a byte, so pairs can be multiplied as one.
            let whole = _mm256_mullo_epi16(upper, _mm256_set1_epi16(LOW_VALUES.into()));
            let middle = _mm256_set1_epi8(LOW_MIDDLE as i8);
            [_mm256_sub_epi8(_mm256_sub_epi8(v, whole), middle), upper]
        }
    }
    #[inline(always)]
    fn magnitudes(self, v: __m256i) -> __m256i {
        // SAFETY: see the top of this block.
        unsafe { _mm256_abs_epi8(v) }
    }
    #[inline(always)]
    fn with_sign(self, v: __m256i, sign: __m256i) -> __m256i {
        // SAFETY: see the top of this block.
        unsafe { _mm256_sign_epi8(v, sign) }
    }
    #[inline(always)]
    fn look_up(self, table: __m256i, index: __m256i) -> __m256i {
        // SAFETY: see the top of this block.
        unsafe { _mm256_shuffle_epi8(table, index) }
    }
    #[inline(always)]
    fn add_bytes(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: see the top of this block.
        unsafe { _mm256_add_epi8(a, b) }
    }
    #[inline(always)]
    fn masked(self, v: __m256i, mask: u8) -> __m256i {
        // SAFETY: see the top of this block.
        unsafe { _mm256_and_si256(v, _mm256_set1_epi8(mask as i8)) }
    }
    #[inline(always)]
    fn shifted_by_four(self, v: __m256i) -> __m256i {
        // SAFETY: see the top of this block.
        unsafe { _mm256_srli_epi16::<4>(v) }
    }
    #[inline(always)]
    fn add_up(self, [pairs, odds]: [__m256i; 2], v: __m256i) -> [__m256i; 2] {
        // SAFETY: see the top of this block.
        unsafe { [_mm256_add_epi16(pairs, v), _mm256_add_epi16(odds, _mm256_srli_epi16::<8>(v))] }
    }
}
