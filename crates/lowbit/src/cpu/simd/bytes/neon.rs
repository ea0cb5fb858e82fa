//! One part: NEON.
#![allow(unused_unsafe)] // Most of these intrinsics are safe functions since Rust 1.87.

use std::arch::aarch64::*;

use super::super::neon::Neon;
use super::{Bytes, LOW_MIDDLE, LOW_VALUES};

/// Bytes of a vector.
const LEN: usize = 16;
/// `2^9 / 27`, rounded up: exact for bytes below 243.
const RECIPROCAL: u8 = 19;

impl Bytes for Neon {
    type Bytes = uint8x16_t;
    const PARTS: usize = LEN / 16;

    // SAFETY of this whole block: NEON is part of the target, and every access through a pointer
    // is preceded by a slice of the length it touches.

    #[inline(always)]
    fn zeros(self) -> uint8x16_t {
        // SAFETY: see the top of this block.
        unsafe { vdupq_n_u8(0) }
    }
    #[inline(always)]
    fn load_bytes(self, bytes: &[u8]) -> uint8x16_t {
        let bytes = &bytes[..LEN];
        // SAFETY: see the top of this block.
        unsafe { vld1q_u8(bytes.as_ptr()) }
    }
    #[inline(always)]
    fn store_bytes(self, v: uint8x16_t, out: &mut [u8]) {
        let out = &mut out[..LEN];
        // SAFETY: see the top of this block.
        unsafe { vst1q_u8(out.as_mut_ptr(), v) }
    }
    #[inline(always)]
    fn interleave(self, a: uint8x16_t, b: uint8x16_t) -> [uint8x16_t; 2] {
        // SAFETY: see the top of this block.
        unsafe { [vzip1q_u8(a, b), vzip2q_u8(a, b)] }
    }
    #[inline(always)]
    fn nibbles_of(self, v: uint8x16_t) -> [uint8x16_t; 2] {
        // SAFETY: see the top of this block.
        unsafe { [vandq_u8(v, vdupq_n_u8(15)), vshrq_n_u8::<4>(v)] }
    }
    #[inline(always)]
    fn trits_of(self, v: uint8x16_t) -> [uint8x16_t; 2] {
        // SAFETY: see the top of this block.
        unsafe {
            let by = vdupq_n_u8(RECIPROCAL);
            let low = vreinterpretq_u8_u16(vmull_u8(vget_low_u8(v), vget_low_u8(by)));
            let high = vreinterpretq_u8_u16(vmull_high_u8(v, by));
            // The upper bytes of the products, and one bit more off.
            let upper = vshrq_n_u8::<1>(vuzp2q_u8(low, high));
            let lower = vmlsq_u8(v, upper, vdupq_n_u8(LOW_VALUES));
            [vsubq_u8(lower, vdupq_n_u8(LOW_MIDDLE)), upper]
        }
    }
    #[inline(always)]
    fn magnitudes(self, v: uint8x16_t) -> uint8x16_t {
        // SAFETY: see the top of this block.
        unsafe { vreinterpretq_u8_s8(vabsq_s8(vreinterpretq_s8_u8(v))) }
    }
    #[inline(always)]
    fn with_sign(self, v: uint8x16_t, sign: uint8x16_t) -> uint8x16_t {
        // SAFETY: see the top of this block.
        unsafe {
            let negative = vcltzq_s8(vreinterpretq_s8_u8(sign));
            let turned = vreinterpretq_u8_s8(vnegq_s8(vreinterpretq_s8_u8(v)));
            vbslq_u8(negative, turned, v)
        }
    }
    #[inline(always)]
    fn look_up(self, table: uint8x16_t, index: uint8x16_t) -> uint8x16_t {
        // SAFETY: see the top of this block.
        unsafe { vqtbl1q_u8(table, index) }
    }
    #[inline(always)]
    fn add_bytes(self, a: uint8x16_t, b: uint8x16_t) -> uint8x16_t {
        // SAFETY: see the top of this block.
        unsafe { vaddq_u8(a, b) }
    }
    #[inline(always)]
    fn masked(self, v: uint8x16_t, mask: u8) -> uint8x16_t {
        // SAFETY: see the top of this block.
        unsafe { vandq_u8(v, vdupq_n_u8(mask)) }
    }
    #[inline(always)]
    fn shifted_by_four(self, v: uint8x16_t) -> uint8x16_t {
        // SAFETY: see the top of this block.
        unsafe { vshrq_n_u8::<4>(v) }
    }
    #[inline(always)]
    fn add_up(self, [pairs, odds]: [uint8x16_t; 2], v: uint8x16_t) -> [uint8x16_t; 2] {
        // SAFETY: see the top of this block.
        unsafe {
            let words = vreinterpretq_u16_u8(v);
            let pairs = vaddq_u16(vreinterpretq_u16_u8(pairs), words);
            let odds = vsraq_n_u16::<8>(vreinterpretq_u16_u8(odds), words);
            [vreinterpretq_u8_u16(pairs), vreinterpretq_u8_u16(odds)]
        }
    }
}
