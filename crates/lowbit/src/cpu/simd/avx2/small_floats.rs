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

#[cfg(test)]
mod tests {
    use crate::cpu::byte_values::ByteValues;
    use crate::cpu::simd::avx2::Avx2;
    use crate::cpu::simd::{Simd, Task};
    use crate::formats;

    struct Decode<'a>(&'a ByteValues, &'a [u8]);

    impl Task for Decode<'_> {
        type Output = Vec<f32>;
        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> Vec<f32> {
            let mut out = vec![0.0; self.1.len()];
            let vectors = s.decode_bytes(self.0, self.1);
            for (v, out) in vectors.into_iter().zip(out.chunks_exact_mut(S::LANES)) {
                s.store(v, out);
            }
            out
        }
    }

    /// Those that are not finite among them.
    #[test]
    fn every_code_has_its_value() {
        let Some(avx2) = Avx2::detect() else { return };
        let fp8 = formats::by_name("fp8_e4m3").unwrap().codebook().unwrap();
        let table = ByteValues::new(fp8.try_into().unwrap());
        assert!(table.small_floats.is_some());
        for first in (0..256).step_by(32) {
            let codes: Vec<u8> = (first..first + 32).map(|code| code as u8).collect();
            let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            let found = avx2.run(Decode(&table, &codes));
            assert_eq!(bits(&found), bits(&fp8[first..first + 32]));
        }
    }
}
