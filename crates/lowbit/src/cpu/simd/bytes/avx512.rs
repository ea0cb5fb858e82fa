//! Four parts: AVX-512BW.

use std::arch::x86_64::*;

use super::super::avx512::Avx512;
use super::{Bytes, LOW_MIDDLE, LOW_VALUES};

/// Bytes of a vector.
const LEN: usize = 64;
/// `2^16 / 27`, rounded up: exact for bytes.
const RECIPROCAL: i16 = 2428;

impl Bytes for Avx512 {
    type Bytes = __m512i;
    const PARTS: usize = LEN / 16;

    // SAFETY of this whole block: a value of `Avx512` proves the features that the intrinsics need,
    // and every access through a pointer is preceded by a slice of the length it touches.

    #[inline(always)]
    fn zeros(self) -> __m512i {
        // SAFETY: see the top of this block.
        unsafe { _mm512_setzero_si512() }
    }
    #[inline(always)]
    fn load_bytes(self, bytes: &[u8]) -> __m512i {
        let bytes = &bytes[..LEN];
        // SAFETY: see the top of this block.
        unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
    }
    #[inline(always)]
    fn store_bytes(self, v: __m512i, out: &mut [u8]) {
        let out = &mut out[..LEN];
        // SAFETY: see the top of this block.
        unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), v) }
    }
    #[inline(always)]
    fn prefetch(self, bytes: &[u8], ahead: usize) {
        // SAFETY: see the top of this block; a hint touches nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(bytes.as_ptr().wrapping_add(ahead).cast()) }
    }
    #[inline(always)]
    fn interleave(self, a: __m512i, b: __m512i) -> [__m512i; 2] {
        // SAFETY: see the top of this block.
        unsafe { [_mm512_unpacklo_epi8(a, b), _mm512_unpackhi_epi8(a, b)] }
    }
    #[inline(always)]
    fn nibbles_of(self, v: __m512i) -> [__m512i; 2] {
        // SAFETY: see the top of this block.
        unsafe {
            let low = _mm512_set1_epi8(15);
            [_mm512_and_si512(v, low), _mm512_and_si512(_mm512_srli_epi16::<4>(v), low)]
        }
    }
    #[inline(always)]
    fn trits_of(self, v: __m512i) -> [__m512i; 2] {
        // SAFETY: see the top of this block.
        unsafe {
            let (even, by) = (_mm512_set1_epi16(0xff), _mm512_set1_epi16(RECIPROCAL));
            // The upper byte of an odd one's product is its quotient.
            let odds = _mm512_mulhi_epu16(_mm512_andnot_si512(even, v), by);
            let evens = _mm512_mulhi_epu16(_mm512_and_si512(v, even), by);
            let upper = _mm512_or_si512(_mm512_andnot_si512(even, odds), evens);
            // At most 8 times 27, which fits a byte, so pairs can be multiplied as one.
            let whole = _mm512_mullo_epi16(upper, _mm512_set1_epi16(LOW_VALUES.into()));
            let middle = _mm512_set1_epi8(LOW_MIDDLE as i8);
            [_mm512_sub_epi8(_mm512_sub_epi8(v, whole), middle), upper]
        }
    }
    #[inline(always)]
    fn magnitudes(self, v: __m512i) -> __m512i {
        // SAFETY: see the top of this block.
        unsafe { _mm512_abs_epi8(v) }
    }
    #[inline(always)]
    fn with_sign(self, v: __m512i, sign: __m512i) -> __m512i {
        // SAFETY: see the top of this block.
        unsafe {
            let negative = _mm512_movepi8_mask(sign);
            _mm512_mask_sub_epi8(v, negative, _mm512_setzero_si512(), v)
        }
    }
    #[inline(always)]
    fn look_up(self, table: __m512i, index: __m512i) -> __m512i {
        // SAFETY: see the top of this block.
        unsafe { _mm512_shuffle_epi8(table, index) }
    }
    #[inline(always)]
    fn add_bytes(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: see the top of this block.
        unsafe { _mm512_add_epi8(a, b) }
    }
    #[inline(always)]
    fn add_up(self, [pairs, odds]: [__m512i; 2], v: __m512i) -> [__m512i; 2] {
        // SAFETY: see the top of this block.
        unsafe { [_mm512_add_epi16(pairs, v), _mm512_add_epi16(odds, _mm512_srli_epi16::<8>(v))] }
    }
}
