//! Plain Rust over arrays of eight, which a compiler turns into whatever vectors there are.

use half::{bf16, f16};

use super::matrix::Model;
use super::{ByteValues, Cells, STEP16, Simd, dot_ints_scalar, max_magnitude_bits_scalar};

/// Runs everywhere.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Portable {
    /// Whether it has the model of a machine that multiplies matrices, which is slow.
    pub matrices: bool,
}

const LANES: usize = 8;
type F = [f32; LANES];

#[derive(Clone, Copy)]
pub(crate) struct Ranks {
    ups: [f32; 15],
    codes: [u8; 16],
    signed: bool,
}

#[inline(always)]
fn each(f: impl Fn(usize) -> f32) -> F {
    std::array::from_fn(f)
}

/// Four vectors of `f(0), f(1), ..`.
#[inline(always)]
fn four(f: impl Fn(usize) -> f32) -> [F; 4] {
    std::array::from_fn(|v| each(|i| f(v * LANES + i)))
}

/// Code `i` of a run of nibbles.
#[inline(always)]
fn nibble<const LOW_FIRST: bool>(codes: &[u8], i: usize) -> usize {
    let byte = codes[i / 2];
    usize::from(if (i % 2 == 0) == LOW_FIRST { byte & 15 } else { byte >> 4 })
}

impl Simd for Portable {
    type F = F;
    const LANES: usize = LANES;
    const ROWS16: usize = usize::MAX;
    const SPLITS_F32: bool = false;
    const MANY_REGISTERS: bool = false;
    type Matrix = Model;

    #[inline(always)]
    fn matrix(self) -> Option<Model> {
        self.matrices.then_some(Model)
    }

    #[inline(always)]
    fn splat(self, x: f32) -> F {
        [x; LANES]
    }
    #[inline(always)]
    fn load(self, x: &[f32]) -> F {
        let x = &x[..LANES];
        each(|i| x[i])
    }
    #[inline(always)]
    fn store(self, v: F, out: &mut [f32]) {
        out[..LANES].copy_from_slice(&v);
    }
    #[inline(always)]
    fn add(self, a: F, b: F) -> F {
        each(|i| a[i] + b[i])
    }
    #[inline(always)]
    fn mul(self, a: F, b: F) -> F {
        each(|i| a[i] * b[i])
    }
    #[inline(always)]
    fn fma(self, a: F, b: F, c: F) -> F {
        each(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    fn div(self, a: F, b: F) -> F {
        each(|i| a[i] / b[i])
    }
    #[inline(always)]
    fn sqrt(self, v: F) -> F {
        each(|i| v[i].sqrt())
    }
    #[inline(always)]
    fn sign(self, v: F) -> F {
        each(|i| f32::from(i8::from(v[i] > 0.0) - i8::from(v[i] < 0.0)))
    }
    #[inline(always)]
    fn if_finite(self, test: F, then: F, otherwise: F) -> F {
        each(|i| if test[i].is_finite() { then[i] } else { otherwise[i] })
    }
    #[inline(always)]
    fn max_magnitude(self, a: F, b: F) -> F {
        each(|i| f32::from_bits(a[i].to_bits().max(b[i].abs().to_bits())))
    }
    #[inline(always)]
    fn sum(self, v: F) -> f32 {
        ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]))
    }

    type Nibbles = [f32; 16];
    #[inline(always)]
    fn nibbles(self, table: &[f32; 16]) -> [f32; 16] {
        *table
    }
    #[inline(always)]
    fn decode_nibbles<const LOW_FIRST: bool>(self, table: &[f32; 16], codes: &[u8]) -> [F; 4] {
        let codes = &codes[..2 * LANES];
        four(|i| table[nibble::<LOW_FIRST>(codes, i)])
    }
    #[inline(always)]
    fn decode_bytes(self, table: &ByteValues, codes: &[u8]) -> [F; 4] {
        let codes = &codes[..4 * LANES];
        four(|i| table.values[usize::from(codes[i])])
    }
    #[inline(always)]
    fn decode_ints(self, codes: &[u8]) -> [F; 4] {
        let codes = &codes[..4 * LANES];
        four(|i| f32::from(codes[i] as i8))
    }
    #[inline(always)]
    fn decode_bf16(self, bytes: &[u8]) -> [F; 4] {
        let bytes = &bytes[..8 * LANES];
        four(|i| bf16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]).to_f32())
    }
    #[inline(always)]
    fn decode_f16(self, bytes: &[u8]) -> [F; 4] {
        let bytes = &bytes[..8 * LANES];
        four(|i| f16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]).to_f32())
    }
    #[inline(always)]
    fn encode_bf16(self, v: [F; 4], out: &mut [bf16]) {
        for (o, x) in out[..4 * LANES].iter_mut().zip(v.as_flattened()) {
            *o = bf16::from_f32(*x);
        }
    }
    #[inline(always)]
    fn encode_f16(self, v: [F; 4], out: &mut [f16]) {
        for (o, x) in out[..4 * LANES].iter_mut().zip(v.as_flattened()) {
            *o = f16::from_f32(*x);
        }
    }

    type Nibbles16 = [i16; 16];
    type Step = [i16; STEP16];
    type Scales = [f32; 2];
    #[inline(always)]
    fn nibbles16(self, table: &[i16; 16]) -> [i16; 16] {
        *table
    }
    #[inline(always)]
    fn decode_step<const LOW_FIRST: bool>(self, table: &[i16; 16], codes: &[u8]) -> Self::Step {
        let codes = &codes[..STEP16 / 2];
        std::array::from_fn(|i| table[nibble::<LOW_FIRST>(codes, i)])
    }
    #[inline(always)]
    fn load_step(self, w: &[i16]) -> Self::Step {
        let w = &w[..STEP16];
        std::array::from_fn(|i| w[i])
    }
    #[inline(always)]
    fn store_step(self, w: Self::Step, out: &mut [i16]) {
        out[..STEP16].copy_from_slice(&w);
    }
    #[inline(always)]
    fn encode_step(self, x: &[f32], factor: f32, out: &mut [i16]) {
        for (o, x) in out[..STEP16].iter_mut().zip(&x[..STEP16]) {
            *o = self.round(x * factor) as i16;
        }
    }
    #[inline(always)]
    fn scales(self, first: f32, second: f32) -> [f32; 2] {
        [first, second]
    }
    #[inline(always)]
    fn scale(self, both: f32) -> [f32; 2] {
        [both; 2]
    }
    #[inline(always)]
    fn dot_step(self, acc: F, w: Self::Step, x: &[i16], scales: [f32; 2]) -> F {
        let x = &x[..STEP16];
        let mut acc = acc;
        for (half, scale) in scales.into_iter().enumerate() {
            let mut sums = [0i32; 4];
            for i in 0..STEP16 / 2 {
                let at = half * STEP16 / 2 + i;
                sums[i % 4] += i32::from(w[at]) * i32::from(x[at]);
            }
            for (lane, sum) in sums.into_iter().enumerate() {
                acc[4 * half + lane] += sum as f32 * scale;
            }
        }
        acc
    }

    type Sums = [i32; LANES];
    // Not every machine has instructions for them.
    const PAIRS_FROM: usize = usize::MAX;
    #[inline(always)]
    fn no_sums(self) -> [i32; LANES] {
        [0; LANES]
    }
    #[inline(always)]
    fn splat_pair(self, pair: i32) -> [i32; LANES] {
        [pair; LANES]
    }
    #[inline(always)]
    fn load_pairs(self, pairs: &[i32]) -> [i32; LANES] {
        let pairs = &pairs[..LANES];
        std::array::from_fn(|i| pairs[i])
    }
    #[inline(always)]
    fn dot_pairs(self, sums: [i32; LANES], a: [i32; LANES], b: [i32; LANES]) -> [i32; LANES] {
        let (low, high) = (|v: i32| i32::from(v as i16), |v: i32| v >> 16);
        std::array::from_fn(|i| sums[i] + low(a[i]) * low(b[i]) + high(a[i]) * high(b[i]))
    }
    #[inline(always)]
    fn dot_bytes(self, sums: [i32; LANES], a: Self::Bytes, b: Self::Bytes) -> [i32; LANES] {
        let product = |i: usize| i32::from(a[i]) * i32::from(b[i] as i8);
        std::array::from_fn(|i| sums[i] + (4 * i..4 * i + 4).map(product).sum::<i32>())
    }
    #[inline(always)]
    fn sums_to_f32(self, sums: [i32; LANES]) -> F {
        each(|i| sums[i] as f32)
    }

    #[inline(always)]
    fn round_pairs(self, a: F, b: F) -> [i32; LANES] {
        let nearest = |v: f32| self.round(v) as i32;
        std::array::from_fn(|i| nearest(a[i]) & 0xffff | nearest(b[i]) << 16)
    }
    #[inline(always)]
    fn store_pairs(self, pairs: [i32; LANES], out: &mut [i32]) {
        out[..LANES].copy_from_slice(&pairs);
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
        let mut sums = [[0; R]; C];
        dot_ints_scalar(w, x, 0, &mut sums);
        sums
    }

    type Ranks = Ranks;
    #[inline(always)]
    fn ranks(self, ups: &[f32; 15], codes: &[u8; 16], signed: bool) -> Ranks {
        Ranks { ups: *ups, codes: *codes, signed }
    }
    #[inline(always)]
    fn encode_nibbles<const LOW_FIRST: bool>(
        self,
        ranks: &Ranks,
        x: &[f32],
        factor: f32,
        out: &mut [u8],
    ) {
        let x = &x[..4 * LANES];
        let code = |w: f32| {
            let x = w * factor;
            let magnitude = if ranks.signed { x.abs() } else { x };
            let mut rank = usize::from(ranks.signed && x < 0.0) * 8;
            for up in &ranks.ups {
                rank += usize::from(magnitude >= *up);
            }
            ranks.codes[rank & 15]
        };
        for (o, pair) in out[..2 * LANES].iter_mut().zip(x.chunks_exact(2)) {
            let (first, second) = (code(pair[0]), code(pair[1]));
            *o = if LOW_FIRST { first | second << 4 } else { first << 4 | second };
        }
    }
    #[inline(always)]
    fn encode_ints(self, x: &[f32], factor: f32, peak: f32, out: &mut [u8]) {
        for (o, x) in out[..4 * LANES].iter_mut().zip(&x[..4 * LANES]) {
            *o = self.round(x * factor).clamp(-peak, peak) as i32 as u8;
        }
    }
    #[inline(always)]
    fn encode_cells(self, cells: &Cells, x: &[f32], factor: f32, out: &mut [u8]) {
        for (o, x) in out[..4 * LANES].iter_mut().zip(&x[..4 * LANES]) {
            // Adding turns -0 to 0.
            *o = cells.code(x * factor + 0.0);
        }
    }
    #[inline(always)]
    fn max_magnitude_bits(self, x: &[f32]) -> u32 {
        max_magnitude_bits_scalar(x)
    }
}
