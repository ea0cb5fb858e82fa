//! Two parts, in plain Rust.

use super::super::portable::Portable;
use super::{Bytes, LOW_MIDDLE, LOW_VALUES};

/// Bytes of a vector.
const LEN: usize = 32;
type V = [u8; LEN];

#[inline(always)]
fn each(f: impl Fn(usize) -> u8) -> V {
    std::array::from_fn(f)
}

/// Little-endian pairs of bytes, `f(pair of a, pair of b)`.
#[inline(always)]
fn pairs(a: V, b: V, f: impl Fn(u16, u16) -> u16) -> V {
    let pair = |v: &V, i: usize| u16::from_le_bytes([v[i & !1], v[i | 1]]);
    each(|i| f(pair(&a, i), pair(&b, i)).to_le_bytes()[i & 1])
}

impl Bytes for Portable {
    type Bytes = V;
    const PARTS: usize = LEN / 16;

    #[inline(always)]
    fn zeros(self) -> V {
        [0; LEN]
    }
    #[inline(always)]
    fn load_bytes(self, bytes: &[u8]) -> V {
        let bytes = &bytes[..LEN];
        each(|i| bytes[i])
    }
    #[inline(always)]
    fn store_bytes(self, v: V, out: &mut [u8]) {
        out[..LEN].copy_from_slice(&v);
    }
    #[inline(always)]
    fn interleave(self, a: V, b: V) -> [V; 2] {
        let from = |upper: usize| {
            each(|i| {
                let at = (i & !15) + upper + (i & 15) / 2;
                if i & 1 == 0 { a[at] } else { b[at] }
            })
        };
        [from(0), from(8)]
    }
    #[inline(always)]
    fn nibbles_of(self, v: V) -> [V; 2] {
        [each(|i| v[i] & 15), each(|i| v[i] >> 4)]
    }
    #[inline(always)]
    fn trits_of(self, v: V) -> [V; 2] {
        let lower = |i: usize| (v[i] % LOW_VALUES).wrapping_sub(LOW_MIDDLE);
        [each(lower), each(|i| v[i] / LOW_VALUES)]
    }
    #[inline(always)]
    fn magnitudes(self, v: V) -> V {
        each(|i| (v[i] as i8).unsigned_abs())
    }
    #[inline(always)]
    fn with_sign(self, v: V, sign: V) -> V {
        each(|i| if (sign[i] as i8) < 0 { v[i].wrapping_neg() } else { v[i] })
    }
    #[inline(always)]
    fn look_up(self, table: V, index: V) -> V {
        each(|i| table[(i & !15) + usize::from(index[i] & 15)])
    }
    #[inline(always)]
    fn add_bytes(self, a: V, b: V) -> V {
        each(|i| a[i].wrapping_add(b[i]))
    }
    #[inline(always)]
    fn masked(self, v: V, mask: u8) -> V {
        each(|i| v[i] & mask)
    }
    #[inline(always)]
    fn shifted_by_four(self, v: V) -> V {
        each(|i| v[i] >> 4)
    }
    #[inline(always)]
    fn add_up(self, [sums, odds]: [V; 2], v: V) -> [V; 2] {
        [pairs(sums, v, |sum, v| sum.wrapping_add(v)), pairs(odds, v, |sum, v| sum + (v >> 8))]
    }
}
