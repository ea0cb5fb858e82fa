//! AVX2 with FMA and F16C.

mod cells;
mod nibbles;
mod small_floats;

use std::arch::x86_64::*;
use std::convert::Infallible;

use half::{bf16, f16};

use super::{ByteValues, Cells, STEP16, Simd, Task, dot_ints_scalar, max_magnitude_bits_scalar};

/// Proof that the machine has AVX2, FMA and F16C.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx2(());

const LANES: usize = 8;

impl Avx2 {
    /// The proof, if it has.
    pub fn detect() -> Option<Self> {
        let has = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        has.then_some(Avx2(()))
    }

    /// Runs a task compiled for this instruction set.
    #[inline(always)]
    pub fn run<T: Task>(self, task: T) -> T::Output {
        #[target_feature(enable = "avx2,fma,f16c")]
        fn with_features<T: Task>(s: Avx2, task: T) -> T::Output {
            task.run(s)
        }
        // SAFETY: `self` exists only where `detect` found the features.
        unsafe { with_features(self, task) }
    }
}

/// Byte `i` of sixteen entries, for `pshufb`, in both halves of a register.
#[inline(always)]
fn plane<const N: usize>(bytes: [[u8; N]; 16], i: usize) -> __m256i {
    let plane: [u8; 16] = std::array::from_fn(|entry| bytes[entry][i]);
    // SAFETY: 16 bytes are read from an array of 16; AVX2 is there, or no `Avx2` would be.
    unsafe { _mm256_broadcastsi128_si256(_mm_loadu_si128(plane.as_ptr().cast())) }
}

impl Simd for Avx2 {
    type F = __m256;
    const LANES: usize = LANES;
    const ROWS16: usize = 256;
    const SPLITS_F32: bool = true;
    const MANY_REGISTERS: bool = false;
    type Matrix = Infallible;

    // SAFETY of this whole block: a value of `Avx2` proves the features that the intrinsics need,
    // and every access through a pointer is preceded by a slice of the length it touches.

    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        // SAFETY: see the top of this block.
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    fn load(self, x: &[f32]) -> __m256 {
        let x = &x[..LANES];
        // SAFETY: see the top of this block.
        unsafe { _mm256_loadu_ps(x.as_ptr()) }
    }
    #[inline(always)]
    fn store(self, v: __m256, out: &mut [f32]) {
        let out = &mut out[..LANES];
        // SAFETY: see the top of this block.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr(), v) }
    }
    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: see the top of this block.
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: see the top of this block.
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    fn fma(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: see the top of this block.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn div(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: see the top of this block.
        unsafe { _mm256_div_ps(a, b) }
    }
    #[inline(always)]
    fn sqrt(self, v: __m256) -> __m256 {
        // SAFETY: see the top of this block.
        unsafe { _mm256_sqrt_ps(v) }
    }
    #[inline(always)]
    fn sign(self, v: __m256) -> __m256 {
        // SAFETY: see the top of this block.
        unsafe {
            let (zero, one) = (_mm256_setzero_ps(), _mm256_set1_ps(1.0));
            let above = _mm256_and_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(v, zero), one);
            let below = _mm256_and_ps(_mm256_cmp_ps::<_CMP_LT_OQ>(v, zero), one);
            _mm256_sub_ps(above, below)
        }
    }
    #[inline(always)]
    fn if_finite(self, test: __m256, then: __m256, otherwise: __m256) -> __m256 {
        // SAFETY: see the top of this block.
        unsafe {
            let magnitude = _mm256_andnot_ps(_mm256_set1_ps(-0.0), test);
            let infinity = _mm256_set1_ps(f32::INFINITY);
            let finite = _mm256_cmp_ps::<_CMP_LT_OQ>(magnitude, infinity);
            _mm256_blendv_ps(otherwise, then, finite)
        }
    }
    #[inline(always)]
    fn max_magnitude(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: see the top of this block.
        unsafe {
            let b = _mm256_and_si256(_mm256_castps_si256(b), _mm256_set1_epi32(0x7fff_ffff));
            _mm256_castsi256_ps(_mm256_max_epi32(_mm256_castps_si256(a), b))
        }
    }
    #[inline(always)]
    fn sum(self, v: __m256) -> f32 {
        // SAFETY: see the top of this block.
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }

    /// The four bytes of each entry, a plane each.
    type Nibbles = [__m256i; 4];
    #[inline(always)]
    fn nibbles(self, table: &[f32; 16]) -> [__m256i; 4] {
        let bytes = table.map(f32::to_le_bytes);
        std::array::from_fn(|i| plane(bytes, i))
    }
    #[inline(always)]
    fn decode_nibbles<const LOW_FIRST: bool>(
        self,
        table: &[__m256i; 4],
        codes: &[u8],
    ) -> [__m256; 4] {
        let codes = &codes[..2 * LANES];
        // SAFETY: see the top of this block.
        unsafe {
            // The unpacking below deals groups of four codes to the low and the high half in
            // turn, so the bytes are dealt out that way, each twice, a word for its two codes.
            let deal = _mm256_setr_epi8(
                0, 0, 1, 1, 4, 4, 5, 5, 8, 8, 9, 9, 12, 12, 13, 13, 2, 2, 3, 3, 6, 6, 7, 7, 10, 10,
                11, 11, 14, 14, 15, 15,
            );
            let bytes = _mm256_broadcastsi128_si256(_mm_loadu_si128(codes.as_ptr().cast()));
            let words = _mm256_shuffle_epi8(bytes, deal);
            let shifted = _mm256_srli_epi16::<4>(words);
            let (first, second) = if LOW_FIRST { (words, shifted) } else { (shifted, words) };
            let index = _mm256_or_si256(
                _mm256_and_si256(first, _mm256_set1_epi16(0x000f)),
                _mm256_and_si256(second, _mm256_set1_epi16(0x0f00)),
            );
            let [b0, b1, b2, b3] = table.map(|plane| _mm256_shuffle_epi8(plane, index));
            let (low_a, low_b) = (_mm256_unpacklo_epi8(b0, b1), _mm256_unpackhi_epi8(b0, b1));
            let (high_a, high_b) = (_mm256_unpacklo_epi8(b2, b3), _mm256_unpackhi_epi8(b2, b3));
            [
                _mm256_castsi256_ps(_mm256_unpacklo_epi16(low_a, high_a)),
                _mm256_castsi256_ps(_mm256_unpackhi_epi16(low_a, high_a)),
                _mm256_castsi256_ps(_mm256_unpacklo_epi16(low_b, high_b)),
                _mm256_castsi256_ps(_mm256_unpackhi_epi16(low_b, high_b)),
            ]
        }
    }
    #[inline(always)]
    fn decode_bytes(self, table: &ByteValues, codes: &[u8]) -> [__m256; 4] {
        if let Some(floats) = table.small_floats
            && let Some(out) = small_floats::decode(floats, codes)
        {
            return out;
        }
        // Integers, which are put into a vector where they are read.
        let table: &[i32; 256] = bytemuck::cast_ref(&table.values);
        let mut out = [self.splat(0.0); 4];
        for (out, codes) in out.iter_mut().zip(codes[..4 * LANES].chunks_exact(LANES)) {
            let mut eight = [0; 8];
            eight.copy_from_slice(codes);
            let eight = u64::from_le_bytes(eight);
            let (low, high) = (four_of(table, eight as u32), four_of(table, (eight >> 32) as u32));
            // SAFETY: see the top of this block.
            *out = unsafe { _mm256_castsi256_ps(_mm256_setr_m128i(low, high)) };
        }
        out
    }
    #[inline(always)]
    fn decode_ints(self, codes: &[u8]) -> [__m256; 4] {
        let codes = &codes[..4 * LANES];
        let mut out = [self.splat(0.0); 4];
        for (v, out) in out.iter_mut().enumerate() {
            let part = &codes[v * LANES..(v + 1) * LANES];
            // SAFETY: see the top of this block.
            *out = unsafe {
                let ints = _mm256_cvtepi8_epi32(_mm_loadl_epi64(part.as_ptr().cast()));
                _mm256_cvtepi32_ps(ints)
            };
        }
        out
    }
    #[inline(always)]
    fn decode_bf16(self, bytes: &[u8]) -> [__m256; 4] {
        let bytes = &bytes[..8 * LANES];
        let mut out = [self.splat(0.0); 4];
        for (v, out) in out.iter_mut().enumerate() {
            let part = &bytes[v * 2 * LANES..(v + 1) * 2 * LANES];
            // SAFETY: see the top of this block.
            *out = unsafe {
                let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(part.as_ptr().cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits))
            };
        }
        out
    }
    #[inline(always)]
    fn decode_f16(self, bytes: &[u8]) -> [__m256; 4] {
        let bytes = &bytes[..8 * LANES];
        let mut out = [self.splat(0.0); 4];
        for (v, out) in out.iter_mut().enumerate() {
            let part = &bytes[v * 2 * LANES..(v + 1) * 2 * LANES];
            // SAFETY: see the top of this block.
            *out = unsafe { _mm256_cvtph_ps(_mm_loadu_si128(part.as_ptr().cast())) };
        }
        out
    }
    #[inline(always)]
    fn encode_bf16(self, v: [__m256; 4], out: &mut [bf16]) {
        let out = &mut out[..4 * LANES];
        for (pair, out) in v.chunks_exact(2).zip(out.chunks_exact_mut(2 * LANES)) {
            // SAFETY: see the top of this block.
            unsafe {
                let packed = _mm256_packus_epi32(bf16_bits(pair[0]), bf16_bits(pair[1]));
                let ordered = _mm256_permute4x64_epi64::<0b11_01_10_00>(packed);
                _mm256_storeu_si256(out.as_mut_ptr().cast(), ordered);
            }
        }
    }
    #[inline(always)]
    fn encode_f16(self, v: [__m256; 4], out: &mut [f16]) {
        let out = &mut out[..4 * LANES];
        for (v, out) in v.into_iter().zip(out.chunks_exact_mut(LANES)) {
            // SAFETY: see the top of this block.
            unsafe {
                let half = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v);
                _mm_storeu_si128(out.as_mut_ptr().cast(), half);
            }
        }
    }

    /// The two bytes of each entry, a plane each.
    type Nibbles16 = [__m256i; 2];
    /// Even weights of bytes 0..8 and 16..24, of bytes 8..16 and 24..32, then the odd ones: the
    /// low half of each register holds weights below 32, the high half those from 32.
    type Step = [__m256i; 4];
    type Scales = __m256;
    #[inline(always)]
    fn nibbles16(self, table: &[i16; 16]) -> [__m256i; 2] {
        let bytes = table.map(i16::to_le_bytes);
        std::array::from_fn(|i| plane(bytes, i))
    }
    #[inline(always)]
    fn decode_step<const LOW_FIRST: bool>(
        self,
        table: &[__m256i; 2],
        codes: &[u8],
    ) -> [__m256i; 4] {
        let codes = &codes[..STEP16 / 2];
        // SAFETY: see the top of this block.
        unsafe {
            let bytes = _mm256_loadu_si256(codes.as_ptr().cast());
            let mask = _mm256_set1_epi8(15);
            let low = _mm256_and_si256(bytes, mask);
            let high = _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), mask);
            let (even, odd) = if LOW_FIRST { (low, high) } else { (high, low) };
            let [e0, e1] = table.map(|plane| _mm256_shuffle_epi8(plane, even));
            let [o0, o1] = table.map(|plane| _mm256_shuffle_epi8(plane, odd));
            [
                _mm256_unpacklo_epi8(e0, e1),
                _mm256_unpackhi_epi8(e0, e1),
                _mm256_unpacklo_epi8(o0, o1),
                _mm256_unpackhi_epi8(o0, o1),
            ]
        }
    }
    #[inline(always)]
    fn load_step(self, w: &[i16]) -> [__m256i; 4] {
        let w: [&[i16]; 4] = [&w[..16], &w[16..32], &w[32..48], &w[48..64]];
        // SAFETY: see the top of this block.
        unsafe {
            [
                _mm256_loadu_si256(w[0].as_ptr().cast()),
                _mm256_loadu_si256(w[1].as_ptr().cast()),
                _mm256_loadu_si256(w[2].as_ptr().cast()),
                _mm256_loadu_si256(w[3].as_ptr().cast()),
            ]
        }
    }
    #[inline(always)]
    fn store_step(self, w: [__m256i; 4], out: &mut [i16]) {
        for (w, out) in w.into_iter().zip(out[..STEP16].chunks_exact_mut(16)) {
            // SAFETY: see the top of this block.
            unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), w) }
        }
    }
    #[inline(always)]
    fn encode_step(self, x: &[f32], factor: f32, out: &mut [i16]) {
        let (x, out) = (&x[..STEP16], &mut out[..STEP16]);
        // SAFETY: see the top of this block.
        unsafe {
            let factor = _mm256_set1_ps(factor);
            for half in 0..2 {
                // 16 weights of either half, their even ones in the low words of pairs.
                let low = _mm256_packs_epi32(
                    ints(&x[16 * half..], factor),
                    ints(&x[16 * half + 8..], factor),
                );
                let high = _mm256_packs_epi32(
                    ints(&x[32 + 16 * half..], factor),
                    ints(&x[40 + 16 * half..], factor),
                );
                let low = _mm256_permute4x64_epi64::<0b11_01_10_00>(low);
                let high = _mm256_permute4x64_epi64::<0b11_01_10_00>(high);
                let split = _mm256_setr_epi8(
                    0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15, 0, 1, 4, 5, 8, 9, 12, 13,
                    2, 3, 6, 7, 10, 11, 14, 15,
                );
                // Quarters: evens 0..8, odds 0..8, evens 8..16, odds 8..16; then evens together.
                let low = _mm256_shuffle_epi8(low, split);
                let high = _mm256_shuffle_epi8(high, split);
                let low = _mm256_permute4x64_epi64::<0b11_01_10_00>(low);
                let high = _mm256_permute4x64_epi64::<0b11_01_10_00>(high);
                let even = _mm256_permute2x128_si256::<0x20>(low, high);
                let odd = _mm256_permute2x128_si256::<0x31>(low, high);
                _mm256_storeu_si256(out[16 * half..16 * half + 16].as_mut_ptr().cast(), even);
                _mm256_storeu_si256(out[32 + 16 * half..48 + 16 * half].as_mut_ptr().cast(), odd);
            }
        }
    }
    #[inline(always)]
    fn scales(self, first: f32, second: f32) -> __m256 {
        // SAFETY: see the top of this block.
        unsafe { _mm256_set_m128(_mm_set1_ps(second), _mm_set1_ps(first)) }
    }
    #[inline(always)]
    fn scale(self, both: f32) -> __m256 {
        self.splat(both)
    }
    #[inline(always)]
    fn dot_step(self, acc: __m256, w: [__m256i; 4], x: &[i16], scales: __m256) -> __m256 {
        let x = &x[..STEP16];
        // SAFETY: see the top of this block.
        unsafe {
            let [a, b, c, d] = w;
            let ab = _mm256_add_epi32(products(a, &x[..16]), products(b, &x[16..]));
            let cd = _mm256_add_epi32(products(c, &x[32..]), products(d, &x[48..]));
            _mm256_fmadd_ps(_mm256_cvtepi32_ps(_mm256_add_epi32(ab, cd)), scales, acc)
        }
    }

    type Sums = __m256i;
    const PAIRS_FROM: usize = 13;
    #[inline(always)]
    fn no_sums(self) -> __m256i {
        // SAFETY: see the top of this block.
        unsafe { _mm256_setzero_si256() }
    }
    #[inline(always)]
    fn splat_pair(self, pair: i32) -> __m256i {
        // SAFETY: see the top of this block.
        unsafe { _mm256_set1_epi32(pair) }
    }
    #[inline(always)]
    fn load_pairs(self, pairs: &[i32]) -> __m256i {
        let pairs = &pairs[..LANES];
        // SAFETY: see the top of this block.
        unsafe { _mm256_loadu_si256(pairs.as_ptr().cast()) }
    }
    #[inline(always)]
    fn dot_pairs(self, sums: __m256i, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: see the top of this block.
        unsafe { _mm256_add_epi32(sums, _mm256_madd_epi16(a, b)) }
    }
    #[inline(always)]
    fn dot_bytes(self, sums: __m256i, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: see the top of this block. Two products of 128 by 128 fit.
        unsafe {
            let twos = _mm256_maddubs_epi16(a, b);
            _mm256_add_epi32(sums, _mm256_madd_epi16(twos, _mm256_set1_epi16(1)))
        }
    }
    #[inline(always)]
    fn sums_to_f32(self, sums: __m256i) -> __m256 {
        // SAFETY: see the top of this block.
        unsafe { _mm256_cvtepi32_ps(sums) }
    }

    #[inline(always)]
    fn round_pairs(self, a: __m256, b: __m256) -> __m256i {
        // SAFETY: see the top of this block.
        unsafe {
            let (a, b) = (_mm256_cvtps_epi32(a), _mm256_cvtps_epi32(b));
            _mm256_blend_epi16::<0b1010_1010>(a, _mm256_slli_epi32::<16>(b))
        }
    }
    #[inline(always)]
    fn store_pairs(self, pairs: __m256i, out: &mut [i32]) {
        let out = &mut out[..LANES];
        // SAFETY: see the top of this block.
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), pairs) }
    }

    type Int = i16;
    const OFFSET: i32 = 0;
    const SIXTEEN_SUMS: bool = false;
    #[inline(always)]
    fn int(x: i8) -> i16 {
        i16::from(x)
    }
    #[inline(always)]
    fn dot_ints<const C: usize, const R: usize>(
        self,
        w: [&[i8]; C],
        x: [&[i16]; R],
    ) -> [[i32; R]; C] {
        let len = x[0].len();
        let (w, x) = (w.map(|w| &w[..len]), x.map(|x| &x[..len]));
        let whole = len / 16 * 16;
        let mut sums = [[0; R]; C];
        // SAFETY: see the top of this block.
        unsafe {
            let mut acc = [[_mm256_setzero_si256(); R]; C];
            for at in (0..whole).step_by(16) {
                for c in 0..C {
                    let w = _mm_loadu_si128(w[c][at..at + 16].as_ptr().cast());
                    let w = _mm256_cvtepi8_epi16(w);
                    for r in 0..R {
                        acc[c][r] = _mm256_add_epi32(acc[c][r], products(w, &x[r][at..at + 16]));
                    }
                }
            }
            for (sums, acc) in sums.iter_mut().zip(acc) {
                for (sum, acc) in sums.iter_mut().zip(acc) {
                    let four = _mm_add_epi32(
                        _mm256_castsi256_si128(acc),
                        _mm256_extracti128_si256::<1>(acc),
                    );
                    let two = _mm_add_epi32(four, _mm_shuffle_epi32::<0b01_00_11_10>(four));
                    let one = _mm_add_epi32(two, _mm_shuffle_epi32::<0b10_11_00_01>(two));
                    *sum = _mm_cvtsi128_si32(one);
                }
            }
        }
        dot_ints_scalar(w, x, whole, &mut sums);
        sums
    }

    type Ranks = nibbles::Ranks;
    #[inline(always)]
    fn ranks(self, ups: &[f32; 15], codes: &[u8; 16], signed: bool) -> nibbles::Ranks {
        nibbles::Ranks::new(self, ups, codes, signed)
    }
    #[inline(always)]
    fn encode_nibbles<const LOW_FIRST: bool>(
        self,
        ranks: &nibbles::Ranks,
        x: &[f32],
        factor: f32,
        out: &mut [u8],
    ) {
        nibbles::encode::<LOW_FIRST>(ranks, x, factor, out);
    }
    #[inline(always)]
    fn encode_ints(self, x: &[f32], factor: f32, peak: f32, out: &mut [u8]) {
        let (x, out) = (&x[..4 * LANES], &mut out[..4 * LANES]);
        // SAFETY: see the top of this block.
        unsafe {
            let (factor, bottom) = (_mm256_set1_ps(factor), _mm256_set1_epi8(-(peak as i8)));
            let low = _mm256_packs_epi32(ints(x, factor), ints(&x[LANES..], factor));
            let high =
                _mm256_packs_epi32(ints(&x[2 * LANES..], factor), ints(&x[3 * LANES..], factor));
            let mixed = _mm256_packs_epi16(low, high);
            let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
            let ordered = _mm256_permutevar8x32_epi32(mixed, order);
            let top = _mm256_set1_epi8(peak as i8);
            let kept = _mm256_max_epi8(_mm256_min_epi8(ordered, top), bottom);
            _mm256_storeu_si256(out.as_mut_ptr().cast(), kept);
        }
    }
    #[inline(always)]
    fn encode_cells(self, cells: &Cells, x: &[f32], factor: f32, out: &mut [u8]) {
        cells::encode(self, cells, x, factor, out);
    }
    #[inline(always)]
    fn max_magnitude_bits(self, x: &[f32]) -> u32 {
        let chunks = x.chunks_exact(LANES);
        let rest = max_magnitude_bits_scalar(chunks.remainder());
        // SAFETY: see the top of this block.
        unsafe {
            let mask = _mm256_set1_epi32(0x7fff_ffff);
            let mut max = _mm256_setzero_si256();
            for chunk in chunks {
                let bits = _mm256_loadu_si256(chunk.as_ptr().cast());
                max = _mm256_max_epi32(max, _mm256_and_si256(bits, mask));
            }
            let mut lanes = [0u32; LANES];
            _mm256_storeu_si256(lanes.as_mut_ptr().cast(), max);
            lanes.into_iter().fold(rest, u32::max)
        }
    }
}

/// Products of sixteen integers, neighbours added.
#[inline(always)]
fn products(w: __m256i, x: &[i16]) -> __m256i {
    let x = &x[..16];
    // SAFETY: only reached from methods of `Avx2`, which proves the feature; 32 bytes are read.
    unsafe { _mm256_madd_epi16(w, _mm256_loadu_si256(x.as_ptr().cast())) }
}

/// Upper halves after rounding to nearest even, in 32-bit lanes; NaN stays NaN.
#[inline(always)]
fn bf16_bits(v: __m256) -> __m256i {
    // SAFETY: only reached from methods of `Avx2`, which proves the feature.
    unsafe {
        let bits = _mm256_castps_si256(v);
        let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
        let bias = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
        let rounded = _mm256_srli_epi32::<16>(_mm256_add_epi32(bits, bias));
        let quiet = _mm256_or_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(0x40));
        let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(v, v));
        _mm256_blendv_epi8(rounded, quiet, nan)
    }
}

/// `table[code]` of the four codes in a word.
#[inline(always)]
fn four_of(table: &[i32; 256], codes: u32) -> __m128i {
    let [a, b, c, d] = codes.to_le_bytes().map(|code| table[usize::from(code)]);
    // SAFETY: only reached from methods of `Avx2`, which proves the feature.
    unsafe { _mm_setr_epi32(a, b, c, d) }
}

/// Eight numbers times a factor, rounded to integers.
#[inline(always)]
fn ints(x: &[f32], factor: __m256) -> __m256i {
    let x = &x[..LANES];
    // SAFETY: only reached from methods of `Avx2`, which proves the feature; 8 numbers are read.
    unsafe { _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x.as_ptr()), factor)) }
}
