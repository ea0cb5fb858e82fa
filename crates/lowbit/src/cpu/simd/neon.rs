//! NEON, which every 64-bit Arm has.
#![allow(unused_unsafe)] // Most of these intrinsics are safe functions since Rust 1.87.

use std::arch::aarch64::*;
use std::convert::Infallible;

use half::{bf16, f16};

use super::{ByteValues, Cells, STEP16, Simd, Task, dot_ints_scalar, max_magnitude_bits_scalar};

/// Proof that the machine is a 64-bit Arm.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Neon(());

const LANES: usize = 4;

impl Neon {
    /// The proof, if it has NEON.
    pub fn detect() -> Option<Self> {
        std::arch::is_aarch64_feature_detected!("neon").then_some(Neon(()))
    }

    /// Runs a task; NEON is enabled for every function of this target.
    #[inline(always)]
    pub fn run<T: Task>(self, task: T) -> T::Output {
        task.run(self)
    }
}

/// Byte `i` of sixteen entries, for `tbl`.
#[inline(always)]
fn plane<const N: usize>(bytes: [[u8; N]; 16], i: usize) -> uint8x16_t {
    let plane: [u8; 16] = std::array::from_fn(|entry| bytes[entry][i]);
    // SAFETY: 16 bytes are read from an array of 16.
    unsafe { vld1q_u8(plane.as_ptr()) }
}

#[derive(Clone, Copy)]
pub(crate) struct Ranks {
    ups: [f32; 15],
    codes: uint8x16_t,
    signed: bool,
}

impl Simd for Neon {
    type F = float32x4_t;
    const LANES: usize = LANES;
    const ROWS16: usize = usize::MAX;
    const SPLITS_F32: bool = false;
    const MANY_REGISTERS: bool = true;
    type Matrix = Infallible;

    // SAFETY of this whole block: NEON is part of the target, and every access through a pointer
    // is preceded by a slice of the length it touches.

    #[inline(always)]
    fn splat(self, x: f32) -> float32x4_t {
        // SAFETY: see the top of this block.
        unsafe { vdupq_n_f32(x) }
    }
    #[inline(always)]
    fn load(self, x: &[f32]) -> float32x4_t {
        let x = &x[..LANES];
        // SAFETY: see the top of this block.
        unsafe { vld1q_f32(x.as_ptr()) }
    }
    #[inline(always)]
    fn store(self, v: float32x4_t, out: &mut [f32]) {
        let out = &mut out[..LANES];
        // SAFETY: see the top of this block.
        unsafe { vst1q_f32(out.as_mut_ptr(), v) }
    }
    #[inline(always)]
    fn add(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: see the top of this block.
        unsafe { vaddq_f32(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: see the top of this block.
        unsafe { vmulq_f32(a, b) }
    }
    #[inline(always)]
    fn fma(self, a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        // SAFETY: see the top of this block.
        unsafe { vfmaq_f32(c, a, b) }
    }
    #[inline(always)]
    fn div(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: see the top of this block.
        unsafe { vdivq_f32(a, b) }
    }
    #[inline(always)]
    fn sqrt(self, v: float32x4_t) -> float32x4_t {
        // SAFETY: see the top of this block.
        unsafe { vsqrtq_f32(v) }
    }
    #[inline(always)]
    fn sign(self, v: float32x4_t) -> float32x4_t {
        // SAFETY: see the top of this block.
        unsafe {
            let one = vdupq_n_u32(1f32.to_bits());
            let above = vreinterpretq_f32_u32(vandq_u32(vcgtzq_f32(v), one));
            let below = vreinterpretq_f32_u32(vandq_u32(vcltzq_f32(v), one));
            vsubq_f32(above, below)
        }
    }
    #[inline(always)]
    fn if_finite(
        self,
        test: float32x4_t,
        then: float32x4_t,
        otherwise: float32x4_t,
    ) -> float32x4_t {
        // SAFETY: see the top of this block.
        unsafe { vbslq_f32(vcaltq_f32(test, vdupq_n_f32(f32::INFINITY)), then, otherwise) }
    }
    #[inline(always)]
    fn max_magnitude(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: see the top of this block.
        unsafe { vmaxq_f32(a, vabsq_f32(b)) } // Which is NaN if either is.
    }
    #[inline(always)]
    fn sum(self, v: float32x4_t) -> f32 {
        // SAFETY: see the top of this block.
        unsafe { vaddvq_f32(v) }
    }

    /// The four bytes of each entry, a plane each.
    type Nibbles = [uint8x16_t; 4];
    #[inline(always)]
    fn nibbles(self, table: &[f32; 16]) -> [uint8x16_t; 4] {
        let bytes = table.map(f32::to_le_bytes);
        std::array::from_fn(|i| plane(bytes, i))
    }
    #[inline(always)]
    fn decode_nibbles<const LOW_FIRST: bool>(
        self,
        table: &[uint8x16_t; 4],
        codes: &[u8],
    ) -> [float32x4_t; 4] {
        let codes = &codes[..2 * LANES];
        // SAFETY: see the top of this block.
        unsafe {
            let index = spread::<LOW_FIRST>(vld1_u8(codes.as_ptr()));
            let [b0, b1, b2, b3] = table.map(|plane| vqtbl1q_u8(plane, index));
            let low = [vzip1q_u8(b0, b1), vzip2q_u8(b0, b1)];
            let high = [vzip1q_u8(b2, b3), vzip2q_u8(b2, b3)];
            let words = |half: usize| {
                let low = vreinterpretq_u16_u8(low[half]);
                let high = vreinterpretq_u16_u8(high[half]);
                [vzip1q_u16(low, high), vzip2q_u16(low, high)]
            };
            let ([a, b], [c, d]) = (words(0), words(1));
            [a, b, c, d].map(|v| vreinterpretq_f32_u16(v))
        }
    }
    #[inline(always)]
    fn decode_bytes(self, table: &ByteValues, codes: &[u8]) -> [float32x4_t; 4] {
        let codes = &codes[..4 * LANES];
        std::array::from_fn(|v| {
            let four: [f32; LANES] =
                std::array::from_fn(|i| table.values[usize::from(codes[v * LANES + i])]);
            self.load(&four)
        })
    }
    #[inline(always)]
    fn decode_ints(self, codes: &[u8]) -> [float32x4_t; 4] {
        let codes = &codes[..4 * LANES];
        // SAFETY: see the top of this block.
        unsafe {
            let bytes = vreinterpretq_s8_u8(vld1q_u8(codes.as_ptr()));
            let halves = [vmovl_s8(vget_low_s8(bytes)), vmovl_s8(vget_high_s8(bytes))];
            std::array::from_fn(|i| {
                let half = halves[i / 2];
                let part = if i % 2 == 0 { vget_low_s16(half) } else { vget_high_s16(half) };
                vcvtq_f32_s32(vmovl_s16(part))
            })
        }
    }
    #[inline(always)]
    fn decode_bf16(self, bytes: &[u8]) -> [float32x4_t; 4] {
        let bytes = &bytes[..8 * LANES];
        std::array::from_fn(|v| {
            let part = &bytes[v * 2 * LANES..(v + 1) * 2 * LANES];
            // SAFETY: see the top of this block.
            unsafe {
                let bits = vreinterpret_u16_u8(vld1_u8(part.as_ptr()));
                vreinterpretq_f32_u32(vshll_n_u16::<16>(bits))
            }
        })
    }
    #[inline(always)]
    fn decode_f16(self, bytes: &[u8]) -> [float32x4_t; 4] {
        let bytes = &bytes[..8 * LANES];
        std::array::from_fn(|v| {
            let four: [f32; LANES] = std::array::from_fn(|i| {
                let at = 2 * (v * LANES + i);
                f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
            });
            self.load(&four)
        })
    }
    #[inline(always)]
    fn encode_bf16(self, v: [float32x4_t; 4], out: &mut [bf16]) {
        let out = &mut out[..4 * LANES];
        for (v, out) in v.into_iter().zip(out.chunks_exact_mut(LANES)) {
            // SAFETY: see the top of this block; a bf16 is two bytes, so 8 bytes are written.
            unsafe {
                let bits = vreinterpretq_u32_f32(v);
                let odd = vandq_u32(vshrq_n_u32::<16>(bits), vdupq_n_u32(1));
                let bias = vaddq_u32(odd, vdupq_n_u32(0x7fff));
                let rounded = vshrn_n_u32::<16>(vaddq_u32(bits, bias));
                let quiet = vorr_u16(vshrn_n_u32::<16>(bits), vdup_n_u16(0x40));
                let number = vmovn_u32(vceqq_f32(v, v));
                vst1_u16(out.as_mut_ptr().cast(), vbsl_u16(number, rounded, quiet));
            }
        }
    }
    #[inline(always)]
    fn encode_f16(self, v: [float32x4_t; 4], out: &mut [f16]) {
        let mut numbers = [0.0; 4 * LANES];
        for (v, numbers) in v.into_iter().zip(numbers.chunks_exact_mut(LANES)) {
            self.store(v, numbers);
        }
        for (o, x) in out[..4 * LANES].iter_mut().zip(numbers) {
            *o = f16::from_f32(x);
        }
    }

    /// The two bytes of each entry, a plane each.
    type Nibbles16 = [uint8x16_t; 2];
    /// In order: eight registers of eight.
    type Step = [int16x8_t; 8];
    type Scales = [float32x4_t; 2];
    #[inline(always)]
    fn nibbles16(self, table: &[i16; 16]) -> [uint8x16_t; 2] {
        let bytes = table.map(i16::to_le_bytes);
        std::array::from_fn(|i| plane(bytes, i))
    }
    #[inline(always)]
    fn decode_step<const LOW_FIRST: bool>(
        self,
        table: &[uint8x16_t; 2],
        codes: &[u8],
    ) -> [int16x8_t; 8] {
        let codes = &codes[..STEP16 / 2];
        // SAFETY: see the top of this block.
        unsafe {
            let parts: [[int16x8_t; 2]; 4] = std::array::from_fn(|i| {
                let index = spread::<LOW_FIRST>(vld1_u8(codes[8 * i..8 * i + 8].as_ptr()));
                let [b0, b1] = table.map(|plane| vqtbl1q_u8(plane, index));
                [vzip1q_u8(b0, b1), vzip2q_u8(b0, b1)].map(|v| vreinterpretq_s16_u8(v))
            });
            std::array::from_fn(|i| parts[i / 2][i % 2])
        }
    }
    #[inline(always)]
    fn load_step(self, w: &[i16]) -> [int16x8_t; 8] {
        let w = &w[..STEP16];
        // SAFETY: see the top of this block.
        std::array::from_fn(|i| unsafe { vld1q_s16(w[8 * i..8 * i + 8].as_ptr()) })
    }
    #[inline(always)]
    fn store_step(self, w: [int16x8_t; 8], out: &mut [i16]) {
        for (w, out) in w.into_iter().zip(out[..STEP16].chunks_exact_mut(8)) {
            // SAFETY: see the top of this block.
            unsafe { vst1q_s16(out.as_mut_ptr(), w) }
        }
    }
    #[inline(always)]
    fn encode_step(self, x: &[f32], factor: f32, out: &mut [i16]) {
        let (x, out) = (&x[..STEP16], &mut out[..STEP16]);
        for (x, out) in x.chunks_exact(LANES).zip(out.chunks_exact_mut(LANES)) {
            // SAFETY: see the top of this block.
            unsafe {
                let scaled = vmulq_f32(vld1q_f32(x.as_ptr()), vdupq_n_f32(factor));
                vst1_s16(out.as_mut_ptr(), vmovn_s32(vcvtnq_s32_f32(scaled)));
            }
        }
    }
    #[inline(always)]
    fn scales(self, first: f32, second: f32) -> [float32x4_t; 2] {
        [self.splat(first), self.splat(second)]
    }
    #[inline(always)]
    fn scale(self, both: f32) -> [float32x4_t; 2] {
        [self.splat(both); 2]
    }
    #[inline(always)]
    fn dot_step(
        self,
        acc: float32x4_t,
        w: [int16x8_t; 8],
        x: &[i16],
        scales: [float32x4_t; 2],
    ) -> float32x4_t {
        let x = &x[..STEP16];
        let mut acc = acc;
        for (half, scale) in scales.into_iter().enumerate() {
            // SAFETY: see the top of this block.
            unsafe {
                let mut sum = vdupq_n_s32(0);
                for i in 4 * half..4 * half + 4 {
                    let x = vld1q_s16(x[8 * i..8 * i + 8].as_ptr());
                    sum = vmlal_s16(sum, vget_low_s16(w[i]), vget_low_s16(x));
                    sum = vmlal_high_s16(sum, w[i], x);
                }
                acc = vfmaq_f32(acc, vcvtq_f32_s32(sum), scale);
            }
        }
        acc
    }

    type Sums = int32x4_t;
    // A product of 16 bits takes as long as one of f32.
    const PAIRS_FROM: usize = usize::MAX;
    #[inline(always)]
    fn no_sums(self) -> int32x4_t {
        self.splat_pair(0)
    }
    #[inline(always)]
    fn splat_pair(self, pair: i32) -> int32x4_t {
        // SAFETY: see the top of this block.
        unsafe { vdupq_n_s32(pair) }
    }
    #[inline(always)]
    fn load_pairs(self, pairs: &[i32]) -> int32x4_t {
        let pairs = &pairs[..LANES];
        // SAFETY: see the top of this block.
        unsafe { vld1q_s32(pairs.as_ptr()) }
    }
    #[inline(always)]
    fn dot_pairs(self, sums: int32x4_t, a: int32x4_t, b: int32x4_t) -> int32x4_t {
        // SAFETY: see the top of this block.
        unsafe {
            let (a, b) = (vreinterpretq_s16_s32(a), vreinterpretq_s16_s32(b));
            let low = vmull_s16(vget_low_s16(a), vget_low_s16(b));
            vaddq_s32(sums, vpaddq_s32(low, vmull_high_s16(a, b)))
        }
    }
    #[inline(always)]
    fn dot_bytes(self, sums: int32x4_t, a: uint8x16_t, b: uint8x16_t) -> int32x4_t {
        // SAFETY: see the top of this block.
        unsafe {
            let (a_low, a_high) = (vmovl_u8(vget_low_u8(a)), vmovl_high_u8(a));
            let b = vreinterpretq_s8_u8(b);
            let low = vmulq_s16(vreinterpretq_s16_u16(a_low), vmovl_s8(vget_low_s8(b)));
            let high = vmulq_s16(vreinterpretq_s16_u16(a_high), vmovl_high_s8(b));
            vaddq_s32(sums, vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)))
        }
    }
    #[inline(always)]
    fn sums_to_f32(self, sums: int32x4_t) -> float32x4_t {
        // SAFETY: see the top of this block.
        unsafe { vcvtq_f32_s32(sums) }
    }

    #[inline(always)]
    fn round_pairs(self, a: float32x4_t, b: float32x4_t) -> int32x4_t {
        // SAFETY: see the top of this block.
        unsafe {
            let low = vandq_s32(vcvtnq_s32_f32(a), vdupq_n_s32(0xffff));
            vorrq_s32(low, vshlq_n_s32::<16>(vcvtnq_s32_f32(b)))
        }
    }
    #[inline(always)]
    fn store_pairs(self, pairs: int32x4_t, out: &mut [i32]) {
        let out = &mut out[..LANES];
        // SAFETY: see the top of this block.
        unsafe { vst1q_s32(out.as_mut_ptr(), pairs) }
    }

    type Int = i16;
    const OFFSET: i32 = 0;
    const SIXTEEN_SUMS: bool = true;
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
        let whole = len / 8 * 8;
        let mut sums = [[0; R]; C];
        // SAFETY: see the top of this block.
        unsafe {
            let mut acc = [[vdupq_n_s32(0); R]; C];
            for at in (0..whole).step_by(8) {
                let ints = x.map(|x| vld1q_s16(x[at..at + 8].as_ptr()));
                for c in 0..C {
                    let w = vmovl_s8(vld1_s8(w[c][at..at + 8].as_ptr()));
                    for r in 0..R {
                        let (low, x) = (vget_low_s16(w), ints[r]);
                        acc[c][r] = vmlal_s16(acc[c][r], low, vget_low_s16(x));
                        acc[c][r] = vmlal_high_s16(acc[c][r], w, x);
                    }
                }
            }
            for (sums, acc) in sums.iter_mut().zip(acc) {
                for (sum, acc) in sums.iter_mut().zip(acc) {
                    *sum = vaddvq_s32(acc);
                }
            }
        }
        dot_ints_scalar(w, x, whole, &mut sums);
        sums
    }

    type Ranks = Ranks;
    #[inline(always)]
    fn ranks(self, ups: &[f32; 15], codes: &[u8; 16], signed: bool) -> Ranks {
        Ranks { ups: *ups, codes: plane(codes.map(|c| [c]), 0), signed }
    }
    #[inline(always)]
    fn encode_nibbles<const LOW_FIRST: bool>(
        self,
        ranks: &Ranks,
        x: &[f32],
        factor: f32,
        out: &mut [u8],
    ) {
        let (x, out) = (&x[..4 * LANES], &mut out[..2 * LANES]);
        // SAFETY: see the top of this block.
        unsafe {
            // A comparison yields -1 where it holds: subtracting counts.
            let rank = |v: usize| {
                let x = vmulq_f32(vld1q_f32(x[4 * v..4 * v + 4].as_ptr()), vdupq_n_f32(factor));
                let mut rank = vdupq_n_u32(0);
                let magnitude = if ranks.signed {
                    rank = vandq_u32(vcltzq_f32(x), vdupq_n_u32(8));
                    vabsq_f32(x)
                } else {
                    x
                };
                for up in ranks.ups {
                    rank = vsubq_u32(rank, vcgeq_f32(magnitude, vdupq_n_f32(up)));
                }
                vmovn_u32(rank)
            };
            let low = vmovn_u16(vcombine_u16(rank(0), rank(1)));
            let high = vmovn_u16(vcombine_u16(rank(2), rank(3)));
            let codes = vqtbl1q_u8(ranks.codes, vcombine_u8(low, high));
            let (first, second) = (vuzp1q_u8(codes, codes), vuzp2q_u8(codes, codes));
            let packed = if LOW_FIRST {
                vorrq_u8(first, vshlq_n_u8::<4>(second))
            } else {
                vorrq_u8(vshlq_n_u8::<4>(first), second)
            };
            vst1_u8(out.as_mut_ptr(), vget_low_u8(packed));
        }
    }
    #[inline(always)]
    fn encode_ints(self, x: &[f32], factor: f32, peak: f32, out: &mut [u8]) {
        let (x, out) = (&x[..4 * LANES], &mut out[..4 * LANES]);
        // SAFETY: see the top of this block.
        unsafe {
            let ints = |v: usize| {
                let x = vmulq_f32(vld1q_f32(x[4 * v..4 * v + 4].as_ptr()), vdupq_n_f32(factor));
                let x = vmaxq_f32(vminq_f32(x, vdupq_n_f32(peak)), vdupq_n_f32(-peak));
                vmovn_s32(vcvtnq_s32_f32(x))
            };
            let low = vmovn_s16(vcombine_s16(ints(0), ints(1)));
            let high = vmovn_s16(vcombine_s16(ints(2), ints(3)));
            vst1q_u8(out.as_mut_ptr(), vreinterpretq_u8_s8(vcombine_s8(low, high)));
        }
    }
    #[inline(always)]
    fn encode_cells(self, cells: &Cells, x: &[f32], factor: f32, out: &mut [u8]) {
        let (x, out) = (&x[..4 * LANES], &mut out[..4 * LANES]);
        // SAFETY: see the top of this block.
        unsafe {
            let falls = vdupq_n_s32(if cells.zero > 0 { -1 } else { 0 });
            let codes = |v: usize| {
                let x = vld1q_f32(x[4 * v..4 * v + 4].as_ptr());
                // Adding turns -0 to 0.
                let x = vaddq_f32(vmulq_f32(x, vdupq_n_f32(factor)), vdupq_n_f32(0.0));
                let bits = vreinterpretq_u32_f32(x);
                let mut upper = [0u16; LANES];
                vst1_u16(upper.as_mut_ptr(), vshrn_n_u32::<16>(bits));
                let entries = upper.map(|upper| cells.entry(upper));
                let low = vandq_u32(bits, vdupq_n_u32(0xffff));
                let sign = vshrq_n_s32::<31>(vreinterpretq_s32_u32(bits));
                let complement = vreinterpretq_u32_s32(vandq_s32(sign, falls));
                let sum = vaddq_u32(vld1q_u32(entries.as_ptr()), low);
                vmovn_u32(vshrq_n_u32::<24>(veorq_u32(sum, complement)))
            };
            let low = vmovn_u16(vcombine_u16(codes(0), codes(1)));
            let high = vmovn_u16(vcombine_u16(codes(2), codes(3)));
            vst1q_u8(out.as_mut_ptr(), vcombine_u8(low, high));
        }
    }
    #[inline(always)]
    fn max_magnitude_bits(self, x: &[f32]) -> u32 {
        let chunks = x.chunks_exact(LANES);
        let rest = max_magnitude_bits_scalar(chunks.remainder());
        // SAFETY: see the top of this block.
        unsafe {
            let mut max = vdupq_n_u32(0);
            for chunk in chunks {
                let bits = vreinterpretq_u32_f32(vld1q_f32(chunk.as_ptr()));
                max = vmaxq_u32(max, vandq_u32(bits, vdupq_n_u32(0x7fff_ffff)));
            }
            rest.max(vmaxvq_u32(max))
        }
    }
}

/// The sixteen nibbles of eight bytes, in order, one a byte.
#[inline(always)]
fn spread<const LOW_FIRST: bool>(bytes: uint8x8_t) -> uint8x16_t {
    // SAFETY: NEON is part of the target.
    unsafe {
        let (low, high) = (vand_u8(bytes, vdup_n_u8(15)), vshr_n_u8::<4>(bytes));
        let (first, second) = if LOW_FIRST { (low, high) } else { (high, low) };
        vcombine_u8(vzip1_u8(first, second), vzip2_u8(first, second))
    }
}
