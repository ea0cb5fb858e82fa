//! AVX-512 (F, BW, DQ, VL) with VNNI.

mod byte_values;
mod cells;
mod nibbles;

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::amx::Amx;
use super::bytes::Bytes;
use super::{ByteValues, Cells, STEP16, Simd, Task, max_magnitude_bits_scalar};

/// Proof that the machine has these features.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx512 {
    vbmi: bool,
    matrix: Option<Amx>,
}

const LANES: usize = 16;

/// Where `pshufb` finds the byte that holds the nibble of each lane.
const SPREAD: [u32; LANES] = [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7];

impl Avx512 {
    /// The proof, if it has.
    pub fn detect() -> Option<Self> {
        let has = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni")
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        has.then(|| Avx512 { vbmi: is_x86_feature_detected!("avx512vbmi"), matrix: None })
    }

    /// The same with AMX beside it, if the machine has that.
    pub fn with_matrices(self) -> Option<Self> {
        Amx::detect().map(|amx| Avx512 { matrix: Some(amx), ..self })
    }

    /// Whether AMX is beside it.
    pub fn has_matrices(self) -> bool {
        self.matrix.is_some()
    }

    /// Whether it looks bytes up in vectors: AVX-512 VBMI.
    #[inline(always)]
    pub fn has_vbmi(self) -> bool {
        self.vbmi
    }

    /// Runs a task compiled for this instruction set.
    #[inline(always)]
    pub fn run<T: Task>(self, task: T) -> T::Output {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
        fn with_features<T: Task>(s: Avx512, task: T) -> T::Output {
            task.run(s)
        }
        // SAFETY: `self` exists only where `detect` found the features.
        unsafe { with_features(self, task) }
    }
}

impl Simd for Avx512 {
    type F = __m512;
    const LANES: usize = LANES;
    const ROWS16: usize = 12;
    const SPLITS_F32: bool = false;
    const MANY_REGISTERS: bool = true;
    type Matrix = Amx;

    #[inline(always)]
    fn matrix(self) -> Option<Amx> {
        self.matrix
    }

    // SAFETY of this whole block: a value of `Avx512` proves the features that the intrinsics
    // need, and every access through a pointer is preceded by a slice of the length it touches.

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        // SAFETY: see the top of this block.
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    fn load(self, x: &[f32]) -> __m512 {
        let x = &x[..LANES];
        // SAFETY: see the top of this block.
        unsafe { _mm512_loadu_ps(x.as_ptr()) }
    }
    #[inline(always)]
    fn store(self, v: __m512, out: &mut [f32]) {
        let out = &mut out[..LANES];
        // SAFETY: see the top of this block.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), v) }
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the top of this block.
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the top of this block.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: see the top of this block.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the top of this block.
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    fn sqrt(self, v: __m512) -> __m512 {
        // SAFETY: see the top of this block.
        unsafe { _mm512_sqrt_ps(v) }
    }
    #[inline(always)]
    fn sign(self, v: __m512) -> __m512 {
        // SAFETY: see the top of this block.
        unsafe {
            let zero = _mm512_setzero_ps();
            let above = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(v, zero);
            let below = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(v, zero);
            let one = _mm512_maskz_mov_ps(above, _mm512_set1_ps(1.0));
            _mm512_mask_mov_ps(one, below, _mm512_set1_ps(-1.0))
        }
    }
    #[inline(always)]
    fn if_finite(self, test: __m512, then: __m512, otherwise: __m512) -> __m512 {
        // SAFETY: see the top of this block.
        unsafe {
            let infinity = _mm512_set1_ps(f32::INFINITY);
            let finite = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(_mm512_abs_ps(test), infinity);
            _mm512_mask_mov_ps(otherwise, finite, then)
        }
    }
    #[inline(always)]
    fn all_finite(self, v: __m512) -> bool {
        const NAN_OR_INFINITE: i32 = 0x01 | 0x08 | 0x10 | 0x80;
        // SAFETY: see the top of this block.
        unsafe { _mm512_fpclass_ps_mask::<NAN_OR_INFINITE>(v) == 0 }
    }
    #[inline(always)]
    fn max_magnitude(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the top of this block.
        unsafe {
            let b = _mm512_castps_si512(_mm512_abs_ps(b));
            _mm512_castsi512_ps(_mm512_max_epi32(_mm512_castps_si512(a), b))
        }
    }
    #[inline(always)]
    fn sum(self, v: __m512) -> f32 {
        // SAFETY: see the top of this block.
        unsafe { _mm512_reduce_add_ps(v) }
    }

    type Nibbles = __m512;
    #[inline(always)]
    fn nibbles(self, table: &[f32; 16]) -> __m512 {
        self.load(table)
    }
    #[inline(always)]
    fn decode_nibbles<const LOW_FIRST: bool>(self, table: &__m512, codes: &[u8]) -> [__m512; 4] {
        let codes = &codes[..2 * LANES];
        // SAFETY: see the top of this block.
        unsafe {
            // Byte i / 2 of eight in lane i; `vpermps` ignores all but the low four bits.
            let spread = _mm512_loadu_si512(SPREAD.as_ptr().cast());
            let shift = if LOW_FIRST {
                _mm512_set1_epi64(0x0000_0004_0000_0000)
            } else {
                _mm512_set1_epi64(0x0000_0000_0000_0004)
            };
            let mut out = [_mm512_setzero_ps(); 4];
            for (out, eight) in out.iter_mut().zip(codes.chunks_exact(8)) {
                let all = _mm512_broadcastq_epi64(_mm_loadl_epi64(eight.as_ptr().cast()));
                let bytes = _mm512_shuffle_epi8(all, spread);
                *out = _mm512_permutexvar_ps(_mm512_srlv_epi32(bytes, shift), *table);
            }
            out
        }
    }
    #[inline(always)]
    fn decode_bytes(self, table: &ByteValues, codes: &[u8]) -> [__m512; 4] {
        byte_values::decode(self, table, codes)
    }
    #[inline(always)]
    fn decode_ints(self, codes: &[u8]) -> [__m512; 4] {
        let codes = &codes[..4 * LANES];
        let mut out = [self.splat(0.0); 4];
        for (v, out) in out.iter_mut().enumerate() {
            let part = &codes[v * LANES..(v + 1) * LANES];
            // SAFETY: see the top of this block.
            *out = unsafe {
                let ints = _mm512_cvtepi8_epi32(_mm_loadu_si128(part.as_ptr().cast()));
                _mm512_cvtepi32_ps(ints)
            };
        }
        out
    }
    #[inline(always)]
    fn decode_bf16(self, bytes: &[u8]) -> [__m512; 4] {
        let bytes = &bytes[..8 * LANES];
        let mut out = [self.splat(0.0); 4];
        for (v, out) in out.iter_mut().enumerate() {
            let part = &bytes[v * 2 * LANES..(v + 1) * 2 * LANES];
            // SAFETY: see the top of this block.
            *out = unsafe {
                let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(part.as_ptr().cast()));
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
            };
        }
        out
    }
    #[inline(always)]
    fn decode_f16(self, bytes: &[u8]) -> [__m512; 4] {
        let bytes = &bytes[..8 * LANES];
        let mut out = [self.splat(0.0); 4];
        for (v, out) in out.iter_mut().enumerate() {
            let part = &bytes[v * 2 * LANES..(v + 1) * 2 * LANES];
            // SAFETY: see the top of this block.
            *out = unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(part.as_ptr().cast())) };
        }
        out
    }
    #[inline(always)]
    fn encode_bf16(self, v: [__m512; 4], out: &mut [bf16]) {
        let out = &mut out[..4 * LANES];
        for (v, out) in v.into_iter().zip(out.chunks_exact_mut(LANES)) {
            // SAFETY: see the top of this block.
            unsafe {
                let bits = _mm512_castps_si512(v);
                let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
                let bias = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
                let rounded = _mm512_srli_epi32::<16>(_mm512_add_epi32(bits, bias));
                let quiet = _mm512_or_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(0x40));
                let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v);
                let half = _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(rounded, nan, quiet));
                _mm256_storeu_si256(out.as_mut_ptr().cast(), half);
            }
        }
    }
    #[inline(always)]
    fn encode_f16(self, v: [__m512; 4], out: &mut [f16]) {
        let out = &mut out[..4 * LANES];
        for (v, out) in v.into_iter().zip(out.chunks_exact_mut(LANES)) {
            // SAFETY: see the top of this block.
            unsafe {
                let half = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v);
                _mm256_storeu_si256(out.as_mut_ptr().cast(), half);
            }
        }
    }

    /// The table twice: `vpermw` ignores all but the low five bits of an index.
    type Nibbles16 = __m512i;
    /// Even weights, then odd ones: the low half of each register holds weights below 32.
    type Step = [__m512i; 2];
    type Scales = __m512;
    #[inline(always)]
    fn nibbles16(self, table: &[i16; 16]) -> __m512i {
        // SAFETY: see the top of this block; 32 bytes are read from 16 numbers.
        unsafe { _mm512_broadcast_i64x4(_mm256_loadu_si256(table.as_ptr().cast())) }
    }
    #[inline(always)]
    fn decode_step<const LOW_FIRST: bool>(self, table: &__m512i, codes: &[u8]) -> [__m512i; 2] {
        let codes = &codes[..STEP16 / 2];
        // SAFETY: see the top of this block.
        unsafe {
            let wide = _mm512_cvtepu8_epi16(_mm256_loadu_si256(codes.as_ptr().cast()));
            let low = _mm512_permutexvar_epi16(wide, *table);
            let high = _mm512_permutexvar_epi16(_mm512_srli_epi16::<4>(wide), *table);
            if LOW_FIRST { [low, high] } else { [high, low] }
        }
    }
    #[inline(always)]
    fn load_step(self, w: &[i16]) -> [__m512i; 2] {
        let (even, odd) = (&w[..32], &w[32..64]);
        // SAFETY: see the top of this block.
        unsafe {
            [_mm512_loadu_si512(even.as_ptr().cast()), _mm512_loadu_si512(odd.as_ptr().cast())]
        }
    }
    #[inline(always)]
    fn store_step(self, w: [__m512i; 2], out: &mut [i16]) {
        for (w, out) in w.into_iter().zip(out[..STEP16].chunks_exact_mut(32)) {
            // SAFETY: see the top of this block.
            unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), w) }
        }
    }
    #[inline(always)]
    fn encode_step(self, x: &[f32], factor: f32, out: &mut [i16]) {
        let (x, out) = (&x[..STEP16], &mut out[..STEP16]);
        // SAFETY: see the top of this block.
        unsafe {
            let factor = _mm512_set1_ps(factor);
            let even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
            let odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
            for half in 0..2 {
                let a = ints(&x[32 * half..], factor);
                let b = ints(&x[32 * half + 16..], factor);
                for (order, at) in [(even, 16 * half), (odd, 32 + 16 * half)] {
                    let v = _mm512_cvtepi32_epi16(_mm512_permutex2var_epi32(a, order, b));
                    _mm256_storeu_si256(out[at..at + 16].as_mut_ptr().cast(), v);
                }
            }
        }
    }
    #[inline(always)]
    fn scales(self, first: f32, second: f32) -> __m512 {
        // SAFETY: see the top of this block.
        unsafe { _mm512_mask_blend_ps(0xff00, _mm512_set1_ps(first), _mm512_set1_ps(second)) }
    }
    #[inline(always)]
    fn scale(self, both: f32) -> __m512 {
        self.splat(both)
    }
    #[inline(always)]
    fn dot_step(self, acc: __m512, w: [__m512i; 2], x: &[i16], scales: __m512) -> __m512 {
        let x = &x[..STEP16];
        // SAFETY: see the top of this block.
        unsafe {
            let even = _mm512_loadu_si512(x.as_ptr().cast());
            let odd = _mm512_loadu_si512(x[32..].as_ptr().cast());
            let sum = _mm512_dpwssd_epi32(_mm512_setzero_si512(), w[0], even);
            let sum = _mm512_dpwssd_epi32(sum, w[1], odd);
            _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scales, acc)
        }
    }

    type Sums = __m512i;
    const PAIRS_FROM: usize = 13;
    #[inline(always)]
    fn no_sums(self) -> __m512i {
        // SAFETY: see the top of this block.
        unsafe { _mm512_setzero_si512() }
    }
    #[inline(always)]
    fn splat_pair(self, pair: i32) -> __m512i {
        // SAFETY: see the top of this block.
        unsafe { _mm512_set1_epi32(pair) }
    }
    #[inline(always)]
    fn load_pairs(self, pairs: &[i32]) -> __m512i {
        let pairs = &pairs[..LANES];
        // SAFETY: see the top of this block.
        unsafe { _mm512_loadu_si512(pairs.as_ptr().cast()) }
    }
    #[inline(always)]
    fn dot_pairs(self, sums: __m512i, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: see the top of this block.
        unsafe { _mm512_dpwssd_epi32(sums, a, b) }
    }
    #[inline(always)]
    fn dot_bytes(self, sums: __m512i, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: see the top of this block.
        unsafe { _mm512_dpbusd_epi32(sums, a, b) }
    }
    #[inline(always)]
    fn sums_to_f32(self, sums: __m512i) -> __m512 {
        // SAFETY: see the top of this block.
        unsafe { _mm512_cvtepi32_ps(sums) }
    }

    #[inline(always)]
    fn round_pairs(self, a: __m512, b: __m512) -> __m512i {
        // SAFETY: see the top of this block.
        unsafe {
            let (a, b) = (_mm512_cvtps_epi32(a), _mm512_cvtps_epi32(b));
            _mm512_mask_blend_epi16(0xaaaa_aaaa, a, _mm512_slli_epi32::<16>(b))
        }
    }
    #[inline(always)]
    fn store_pairs(self, pairs: __m512i, out: &mut [i32]) {
        let out = &mut out[..LANES];
        // SAFETY: see the top of this block.
        unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), pairs) }
    }

    /// Signed; `vpdpbusd` takes the other factor, weights, without a sign.
    type Int = i8;
    const OFFSET: i32 = 128;
    const SIXTEEN_SUMS: bool = true;
    #[inline(always)]
    fn int(x: i8) -> i8 {
        x
    }
    #[inline(always)]
    fn dot_ints<const C: usize, const R: usize>(
        self,
        w: [&[i8]; C],
        x: [&[i8]; R],
    ) -> [[i32; R]; C] {
        let len = x[0].len();
        let (w, x) = (w.map(|w| &w[..len]), x.map(|x| &x[..len]));
        let whole = len / 64 * 64;
        let mut sums = [[0; R]; C];
        // SAFETY: see the top of this block; masked loads read only what their mask names.
        unsafe {
            let mut acc = [[_mm512_setzero_si512(); R]; C];
            let offset = _mm512_set1_epi8(i8::MIN);
            for at in (0..whole).step_by(64) {
                let mut ints = [_mm512_setzero_si512(); R];
                for (ints, x) in ints.iter_mut().zip(x) {
                    *ints = _mm512_loadu_si512(x[at..at + 64].as_ptr().cast());
                }
                for (acc, w) in acc.iter_mut().zip(w) {
                    let w = &w[at..at + 64];
                    self.prefetch(bytemuck::cast_slice(w), C * len);
                    let w = _mm512_xor_si512(_mm512_loadu_si512(w.as_ptr().cast()), offset);
                    for (acc, ints) in acc.iter_mut().zip(ints) {
                        *acc = _mm512_dpbusd_epi32(*acc, w, ints);
                    }
                }
            }
            if whole < len {
                let rest = !0 >> (64 - (len - whole));
                for (acc, w) in acc.iter_mut().zip(w) {
                    let w = _mm512_maskz_loadu_epi8(rest, w[whole..].as_ptr());
                    let w = _mm512_xor_si512(w, offset);
                    for (acc, x) in acc.iter_mut().zip(x) {
                        let ints = _mm512_maskz_loadu_epi8(rest, x[whole..].as_ptr().cast());
                        *acc = _mm512_dpbusd_epi32(*acc, w, ints);
                    }
                }
            }
            for (sums, acc) in sums.iter_mut().zip(acc) {
                for (sum, acc) in sums.iter_mut().zip(acc) {
                    *sum = _mm512_reduce_add_epi32(acc);
                }
            }
        }
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
        for (x, out) in x.chunks_exact(LANES).zip(out.chunks_exact_mut(LANES)) {
            // SAFETY: see the top of this block.
            unsafe {
                let x = _mm512_mul_ps(_mm512_loadu_ps(x.as_ptr()), _mm512_set1_ps(factor));
                let x = _mm512_min_ps(x, _mm512_set1_ps(peak));
                let x = _mm512_max_ps(x, _mm512_set1_ps(-peak));
                let bytes = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x));
                _mm_storeu_si128(out.as_mut_ptr().cast(), bytes);
            }
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
            let mask = _mm512_set1_epi32(0x7fff_ffff);
            let mut max = _mm512_setzero_si512();
            for chunk in chunks {
                let bits = _mm512_loadu_si512(chunk.as_ptr().cast());
                max = _mm512_max_epi32(max, _mm512_and_si512(bits, mask));
            }
            rest.max(_mm512_reduce_max_epi32(max) as u32)
        }
    }
}

/// Sixteen numbers times a factor, rounded to integers.
#[inline(always)]
fn ints(x: &[f32], factor: __m512) -> __m512i {
    let x = &x[..LANES];
    // SAFETY: only reached from methods of `Avx512`, which proves the features; 16 are read.
    unsafe { _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x.as_ptr()), factor)) }
}
