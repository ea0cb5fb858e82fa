//! Four parts: AVX-512BW.

use std::arch::x86_64::*;

use super::super::avx512::Avx512;
use super::{Bytes, LOW_MIDDLE, LOW_VALUES, ROWS, TABLE};

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
    #[inline(always)]
    fn load_parts(self, parts: [&[u8; 16]; 4]) -> __m512i {
        // SAFETY: see the top of this block.
        let [a, b, c, d] = parts.map(|part| unsafe { _mm_loadu_si128(part.as_ptr().cast()) });
        // SAFETY: see the top of this block.
        unsafe {
            let lower = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(a), b);
            let upper = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(c), d);
            _mm512_inserti64x4::<1>(_mm512_castsi256_si512(lower), upper)
        }
    }
    #[inline(always)]
    fn looks_up_bytes(self) -> bool {
        self.has_vbmi()
    }
    #[inline(always)]
    fn sum_bytes<const P: usize>(self, codes: &[u8], tables: &[u8]) -> [[[u8; ROWS]; 2]; P] {
        assert!(self.has_vbmi(), "only where bytes are looked up");
        // SAFETY: the processor has it, as was just seen; for the rest see the top of this block.
        unsafe { sum_bytes(self, codes, tables) }
    }
}

/// What [`Bytes::sum_bytes`] says, two columns at a time.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn sum_bytes<const P: usize>(s: Avx512, codes: &[u8], tables: &[u8]) -> [[[u8; ROWS]; 2]; P] {
    let mut sums = [[s.zeros(); 2]; P];
    let pairs = codes.chunks_exact(2 * ROWS).zip(tables.chunks_exact(2 * P * TABLE));
    for (codes, tables) in pairs {
        let [a, b] = [s.load_bytes(codes), s.load_bytes(&codes[ROWS..])];
        let upper = [_mm512_movepi8_mask(a), _mm512_movepi8_mask(b)];
        for (plane, sums) in sums.iter_mut().enumerate() {
            let a = look_up_256(s, &tables[plane * TABLE..], a, upper[0]);
            let b = look_up_256(s, &tables[(P + plane) * TABLE..], b, upper[1]);
            *sums = s.add_up(*sums, s.add_bytes(a, b));
        }
    }
    if codes.len() % (2 * ROWS) != 0 {
        let last = codes.len() / ROWS - 1;
        let a = s.load_bytes(&codes[last * ROWS..]);
        for (plane, sums) in sums.iter_mut().enumerate() {
            let table = &tables[(last * P + plane) * TABLE..];
            *sums = s.add_up(*sums, look_up_256(s, table, a, _mm512_movepi8_mask(a)));
        }
    }
    let mut words = [[[0u8; ROWS]; 2]; P];
    for (words, sums) in words.iter_mut().zip(sums) {
        for (words, sums) in words.iter_mut().zip(sums) {
            s.store_bytes(sums, words);
        }
    }
    words
}

/// `table[index]`, where `upper` says which indices are in the upper half.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn look_up_256(s: Avx512, table: &[u8], index: __m512i, upper: u64) -> __m512i {
    let quarter = |i: usize| s.load_bytes(&table[i * LEN..]);
    let low = _mm512_permutex2var_epi8(quarter(0), index, quarter(1));
    let high = _mm512_permutex2var_epi8(quarter(2), index, quarter(3));
    _mm512_mask_blend_epi8(upper, low, high)
}
