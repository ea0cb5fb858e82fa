//! What codes of a byte stand for.

use std::arch::x86_64::*;

use super::{Avx512, ByteValues, LANES};

/// See [`Simd::decode_bytes`](crate::cpu::simd::Simd::decode_bytes).
#[inline(always)]
pub(super) fn decode(s: Avx512, table: &ByteValues, codes: &[u8]) -> [__m512; 4] {
    let codes = &codes[..4 * LANES];
    // SAFETY: a value of `Avx512` proves the features, and says whether there is VBMI; 64 bytes are
    // read from 64 codes, 16 from each 16.
    unsafe {
        if s.vbmi {
            return of_planes(table, _mm512_loadu_si512(codes.as_ptr().cast()));
        }
        let mut out = [_mm512_setzero_ps(); 4];
        for (out, codes) in out.iter_mut().zip(codes.chunks_exact(LANES)) {
            let index = _mm512_cvtepu8_epi32(_mm_loadu_si128(codes.as_ptr().cast()));
            let upper = _mm512_test_epi32_mask(index, _mm512_set1_epi32(0x80));
            let (low, high) = table.values.split_at(128);
            *out = _mm512_mask_mov_ps(look_up_128(low, index), upper, look_up_128(high, index));
        }
        out
    }
}

/// The f32 whose four bytes stand in the planes of a table, of 64 codes.
///
/// # Safety
///
/// Only where AVX-512 has VBMI.
#[inline(always)]
unsafe fn of_planes(table: &ByteValues, codes: __m512i) -> [__m512; 4] {
    let [a, b, c, d] = &table.planes;
    // SAFETY: the caller has a processor that does all of this.
    unsafe {
        // Where bytes are made words and these f32, each part of a vector takes its own four by four.
        let order = _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
        let codes = _mm512_permutexvar_epi32(order, codes);
        let upper = _mm512_movepi8_mask(codes);
        let ([c], [d]) = (look_up_256(c, [codes], [upper]), look_up_256(d, [codes], [upper]));
        let ends = [_mm512_unpacklo_epi8(c, d), _mm512_unpackhi_epi8(c, d)];
        let mut words = [_mm512_setzero_si512(); 2];
        if !table.are_bf16 {
            let ([a], [b]) = (look_up_256(a, [codes], [upper]), look_up_256(b, [codes], [upper]));
            words = [_mm512_unpacklo_epi8(a, b), _mm512_unpackhi_epi8(a, b)];
        }
        [
            _mm512_castsi512_ps(_mm512_unpacklo_epi16(words[0], ends[0])),
            _mm512_castsi512_ps(_mm512_unpackhi_epi16(words[0], ends[0])),
            _mm512_castsi512_ps(_mm512_unpacklo_epi16(words[1], ends[1])),
            _mm512_castsi512_ps(_mm512_unpackhi_epi16(words[1], ends[1])),
        ]
    }
}

/// `table[code]` of some vectors, given where codes are in its upper half.
///
/// # Safety
///
/// Only where AVX-512 has VBMI.
#[inline(always)]
unsafe fn look_up_256<const N: usize>(
    table: &[u8; 256],
    codes: [__m512i; N],
    upper: [u64; N],
) -> [__m512i; N] {
    // SAFETY: the caller has a processor that does all of this; 64 bytes are read from each quarter.
    unsafe {
        let mut quarters = [_mm512_setzero_si512(); 4];
        for (quarter, from) in quarters.iter_mut().zip(table.chunks_exact(64)) {
            *quarter = _mm512_loadu_si512(from.as_ptr().cast());
        }
        let [first, second, third, fourth] = quarters;
        let mut found = codes;
        for ((found, codes), upper) in found.iter_mut().zip(codes).zip(upper) {
            let low = look_up_128_bytes(codes, first, second);
            let high = look_up_128_bytes(codes, third, fourth);
            *found = _mm512_mask_blend_epi8(upper, low, high);
        }
        found
    }
}

impl Avx512 {
    /// See [`Bytes::look_up_codes`](crate::cpu::simd::bytes::Bytes::look_up_codes).
    #[inline(always)]
    pub(in crate::cpu::simd) fn look_up_256<const N: usize>(
        self,
        table: &[u8; 256],
        codes: [__m512i; N],
    ) -> [__m512i; N] {
        assert!(self.vbmi, "only where bytes are looked up");
        let mut upper = [0; N];
        // SAFETY: the processor has VBMI, as was just seen.
        unsafe {
            for (upper, codes) in upper.iter_mut().zip(codes) {
                *upper = _mm512_movepi8_mask(codes);
            }
            look_up_256(table, codes, upper)
        }
    }
}

/// `[low, high][code mod 128]`: `vpermi2b`, for functions that are not compiled with VBMI as a whole, which
/// the intrinsic could not become a part of.
///
/// # Safety
///
/// Only where AVX-512 has VBMI.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn look_up_128_bytes(codes: __m512i, low: __m512i, high: __m512i) -> __m512i {
    let bytes;
    // SAFETY: one instruction on registers, which the caller's processor has.
    unsafe {
        std::arch::asm!(
            "vpermi2b {bytes}, {low}, {high}",
            bytes = inout(zmm_reg) codes => bytes,
            low = in(zmm_reg) low,
            high = in(zmm_reg) high,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    bytes
}

/// `table[index mod 128]` of a table of 128.
#[inline(always)]
fn look_up_128(table: &[f32], index: __m512i) -> __m512 {
    let table = &table[..128];
    // SAFETY: only reached from methods of `Avx512`, which proves the features; 16 are read from
    // each place.
    unsafe {
        let mut quarters = [_mm512_setzero_ps(); 4];
        for (quarter, table) in quarters.iter_mut().zip(table.chunks_exact(32)) {
            let (low, high) =
                (_mm512_loadu_ps(table.as_ptr()), _mm512_loadu_ps(table[16..].as_ptr()));
            *quarter = _mm512_permutex2var_ps(low, index, high);
        }
        let odd = _mm512_test_epi32_mask(index, _mm512_set1_epi32(0x20));
        let low = _mm512_mask_mov_ps(quarters[0], odd, quarters[1]);
        let high = _mm512_mask_mov_ps(quarters[2], odd, quarters[3]);
        let upper = _mm512_test_epi32_mask(index, _mm512_set1_epi32(0x40));
        _mm512_mask_mov_ps(low, upper, high)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::byte_values::tests::check_decoding;

    #[test]
    fn without_vbmi_every_code_has_its_value() {
        let Some(avx512) = Avx512::detect() else { return };
        check_decoding(|decode| Avx512 { vbmi: false, ..avx512 }.run(decode));
    }
}
