//! What an instruction set is: the few operations that the kernels are written in.
//!
//! A kernel is a [`Task`], written once over [`Simd`]; [`Isa::run`](super::dispatch::Isa) compiles
//! it into a function that has the instruction set's features. A value of a type that implements
//! [`Simd`] is the proof that the machine has them, so every method is safe to call; this folder
//! is the only place of this crate with unsafe code.
//!
//! Everything here and every kernel is `#[inline(always)]`: only what is inlined into the
//! function with the features is compiled with them. Closures are not, so none here holds an
//! intrinsic where it counts: on x86-64 it could become a function without the features, and the
//! intrinsic a call.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
pub(crate) mod bytes;
pub(crate) mod matrix;
#[cfg(target_arch = "aarch64")]
pub(crate) mod neon;
pub(crate) mod portable;

use super::byte_values::ByteValues;
#[cfg(target_arch = "x86_64")]
use super::byte_values::SmallFloats;
use super::cells::Cells;
use bytes::Bytes;
use matrix::Matrix;

/// Weights of one step of the 16-bit integer product.
pub(crate) const STEP16: usize = 64;

/// The most that [`Simd::LANES`] is.
pub(crate) const MOST_LANES: usize = 16;

/// A kernel, ready to run.
pub(crate) trait Task {
    /// What it returns.
    type Output;
    /// Runs it. Implementations are `#[inline(always)]`.
    fn run<S: Simd>(self, s: S) -> Self::Output;
}

/// An instruction set.
///
/// Slices may be longer than what a method reads or writes; shorter ones panic, which the kernels
/// rule out by construction.
pub(crate) trait Simd: Bytes + Copy + Send + Sync + 'static {
    /// A vector of `LANES` f32.
    type F: Copy;
    /// Most rows of 16-bit activations for which 16-bit integers are faster than f32.
    const ROWS16: usize;
    /// Whether three products of 16-bit integers are faster than one of decoded f32 weights.
    const SPLITS_F32: bool;
    /// Whether it has 32 vector registers, not 16.
    const MANY_REGISTERS: bool;
    /// Its length. Decoders yield `4 * LANES` weights at once.
    const LANES: usize;

    /// What multiplies matrices, where a machine can.
    type Matrix: Matrix;
    /// That, if this machine can.
    #[inline(always)]
    fn matrix(self) -> Option<Self::Matrix> {
        None
    }

    /// Every lane `x`.
    fn splat(self, x: f32) -> Self::F;
    /// `LANES` numbers.
    fn load(self, x: &[f32]) -> Self::F;
    /// The nearest integer of a number below 2^22, ties to even: adding 1.5 * 2^23 leaves no
    /// fraction.
    #[inline(always)]
    fn round(self, x: f32) -> f32 {
        const SHIFT: f32 = 12_582_912.0;
        (x + SHIFT) - SHIFT
    }
    /// Writes `LANES` numbers.
    fn store(self, v: Self::F, out: &mut [f32]);
    /// `a + b`.
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b`.
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once where the machine can.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `a / b`.
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// The square root, rounded correctly.
    fn sqrt(self, v: Self::F) -> Self::F;
    /// 1 above zero, -1 below, else 0; so of NaN.
    fn sign(self, v: Self::F) -> Self::F;
    /// `then` in the lanes where `test` is finite, `otherwise` in the others.
    fn if_finite(self, test: Self::F, then: Self::F, otherwise: Self::F) -> Self::F;
    /// `|b|` where that is above `a`, which has no sign, or not finite.
    fn max_magnitude(self, a: Self::F, b: Self::F) -> Self::F;
    /// Sum of the lanes.
    fn sum(self, v: Self::F) -> f32;
    /// Whether every lane is finite: others times zero are NaN.
    #[inline(always)]
    fn all_finite(self, v: Self::F) -> bool {
        self.sum(self.mul(v, self.splat(0.0))) == 0.0
    }

    /// Sixteen f32, ready to be looked up by nibbles.
    type Nibbles: Copy;
    /// Prepares a table.
    fn nibbles(self, table: &[f32; 16]) -> Self::Nibbles;
    /// `table[code]` of the codes in `2 * LANES` bytes, in order; the first code of a byte is its
    /// high nibble, or its low one.
    fn decode_nibbles<const LOW_FIRST: bool>(
        self,
        table: &Self::Nibbles,
        codes: &[u8],
    ) -> [Self::F; 4];
    /// `table[code]` of `4 * LANES` bytes.
    fn decode_bytes(self, table: &ByteValues, codes: &[u8]) -> [Self::F; 4];
    /// `4 * LANES` signed bytes.
    fn decode_ints(self, codes: &[u8]) -> [Self::F; 4];
    /// `4 * LANES` bfloat16, little-endian.
    fn decode_bf16(self, bytes: &[u8]) -> [Self::F; 4];
    /// `4 * LANES` half floats, little-endian.
    fn decode_f16(self, bytes: &[u8]) -> [Self::F; 4];
    /// Rounds `4 * LANES` numbers to bfloat16, ties to even.
    fn encode_bf16(self, v: [Self::F; 4], out: &mut [half::bf16]);
    /// Rounds `4 * LANES` numbers to half floats, ties to even.
    fn encode_f16(self, v: [Self::F; 4], out: &mut [half::f16]);

    /// Sixteen i16, ready to be looked up by nibbles.
    type Nibbles16: Copy;
    /// Sixty-four weights in i16, in an order of the machine's liking.
    type Step: Copy;
    /// Scales of the two halves of a step.
    type Scales: Copy;
    /// Prepares a table.
    fn nibbles16(self, table: &[i16; 16]) -> Self::Nibbles16;
    /// `table[code]` of the codes in 32 bytes.
    fn decode_step<const LOW_FIRST: bool>(
        self,
        table: &Self::Nibbles16,
        codes: &[u8],
    ) -> Self::Step;
    /// Reads a step from 64 numbers.
    fn load_step(self, w: &[i16]) -> Self::Step;
    /// Writes a step as 64 numbers.
    fn store_step(self, w: Self::Step, out: &mut [i16]);
    /// Rounds 64 numbers times `factor` to i16, in a step's order. They fit.
    fn encode_step(self, x: &[f32], factor: f32, out: &mut [i16]);
    /// Scale of weights 0..32 and of weights 32..64.
    fn scales(self, first: f32, second: f32) -> Self::Scales;
    /// One scale for both.
    fn scale(self, both: f32) -> Self::Scales;
    /// `acc + scale * sum(w x)`, spread over the lanes; `x` are 64 numbers in a step's order.
    fn dot_step(self, acc: Self::F, w: Self::Step, x: &[i16], scales: Self::Scales) -> Self::F;

    /// `LANES` i32, each a sum or a pair of i16.
    type Sums: Copy;
    /// Fewest rows of 16-bit activations for which pairs of 16-bit integers are faster than all else.
    const PAIRS_FROM: usize;
    /// Zeros.
    fn no_sums(self) -> Self::Sums;
    /// A pair in every lane.
    fn splat_pair(self, pair: i32) -> Self::Sums;
    /// `LANES` pairs.
    fn load_pairs(self, pairs: &[i32]) -> Self::Sums;
    /// Adds to each sum both products of two pairs; the result fits.
    fn dot_pairs(self, sums: Self::Sums, a: Self::Sums, b: Self::Sums) -> Self::Sums;
    /// Adds to each sum the products of four bytes, of which the first have no sign and are at most 128.
    fn dot_bytes(self, sums: Self::Sums, a: Self::Bytes, b: Self::Bytes) -> Self::Sums;
    /// The nearest f32.
    fn sums_to_f32(self, sums: Self::Sums) -> Self::F;
    /// The nearest integers as pairs; they fit.
    fn round_pairs(self, a: Self::F, b: Self::F) -> Self::Sums;
    /// Writes `LANES` pairs.
    fn store_pairs(self, pairs: Self::Sums, out: &mut [i32]);

    /// An 8-bit activation as the product of integers takes it.
    type Int: bytemuck::Pod + Send + Sync;
    /// What is added to every weight.
    const OFFSET: i32;
    /// Whether the sums of four rows of weights and four of activations fit into the registers.
    const SIXTEEN_SUMS: bool;
    /// Prepares an activation.
    fn int(x: i8) -> Self::Int;
    /// `sum((w + OFFSET) x)` for `C` rows `w` and `R` rows `x`, all of one length, modulo
    /// 2^32. The rows of `w` follow one another in memory; those after them are asked for.
    fn dot_ints<const C: usize, const R: usize>(
        self,
        w: [&[i8]; C],
        x: [&[Self::Int]; R],
    ) -> [[i32; R]; C];

    /// Thresholds and codes of a format with at most 16 codes.
    type Ranks: Copy;
    /// Prepares ascending `ups`, 15 of them (pad with infinity), and the code of each rank.
    /// With `signed`, ranks are of magnitudes and rank + 8 stands for a negative number.
    fn ranks(self, ups: &[f32; 15], codes: &[u8; 16], signed: bool) -> Self::Ranks;
    /// Codes of `4 * LANES` numbers times `factor`, packed into `2 * LANES` bytes.
    fn encode_nibbles<const LOW_FIRST: bool>(
        self,
        ranks: &Self::Ranks,
        x: &[f32],
        factor: f32,
        out: &mut [u8],
    );
    /// `x * factor` rounded to the nearest integer, ties to even, kept within `-peak..=peak`, of
    /// `4 * LANES` numbers.
    fn encode_ints(self, x: &[f32], factor: f32, peak: f32, out: &mut [u8]);
    /// Codes of `4 * LANES` numbers times `factor`, which are at most 1, or what rounding makes of it.
    fn encode_cells(self, cells: &Cells, x: &[f32], factor: f32, out: &mut [u8]);
    /// The largest magnitude as bits: at least `0x7f80_0000` if any number is not finite. Any
    /// length.
    fn max_magnitude_bits(self, x: &[f32]) -> u32;
}

/// Adds the products of the integers from `from` on, too few for a vector.
#[inline(always)]
fn dot_ints_scalar<const C: usize, const R: usize>(
    w: [&[i8]; C],
    x: [&[i16]; R],
    from: usize,
    sums: &mut [[i32; R]; C],
) {
    for (w, sums) in w.iter().zip(sums) {
        for (x, sum) in x.iter().zip(sums) {
            for (w, x) in w[from..].iter().zip(&x[from..]) {
                *sum += i32::from(*w) * i32::from(*x);
            }
        }
    }
}

/// The largest magnitude of numbers too few for a vector, as bits.
#[inline(always)]
fn max_magnitude_bits_scalar(x: &[f32]) -> u32 {
    let mut max = 0;
    for v in x {
        max = max.max(v.to_bits() & 0x7fff_ffff);
    }
    max
}
