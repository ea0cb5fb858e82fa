//! What turns runs of codes into f32, by kind of code.

use super::byte_values::ByteValues;
use super::simd::{MOST_LANES, Simd};
use crate::format::Packing;
use crate::{QTensor, pack};

/// One way in which bytes stand for numbers.
pub(crate) trait Decode<S: Simd>: Copy {
    /// Bits of a code.
    const BITS: usize;
    /// `4 * LANES` values.
    fn four(self, s: S, bytes: &[u8]) -> [S::F; 4];
    /// Value `i`.
    fn one(self, bytes: &[u8], i: usize) -> f32;
    /// What gives values times `scale` times `unit`, where making it costs less than multiplying 64
    /// values.
    #[inline(always)]
    fn folded(self, _: S, _scale: f32, _unit: f32) -> Option<Self> {
        None
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Nibbles<'a, S: Simd, const LOW_FIRST: bool> {
    vector: S::Nibbles,
    /// For codes too few for a vector; never scaled.
    scalar: &'a [f32; 16],
}

impl<'a, S: Simd, const LOW_FIRST: bool> Nibbles<'a, S, LOW_FIRST> {
    #[inline(always)]
    pub fn new(s: S, table: &'a [f32; 16]) -> Self {
        Nibbles { vector: s.nibbles(table), scalar: table }
    }
}

impl<S: Simd, const LOW_FIRST: bool> Decode<S> for Nibbles<'_, S, LOW_FIRST> {
    const BITS: usize = 4;
    #[inline(always)]
    fn four(self, s: S, bytes: &[u8]) -> [S::F; 4] {
        s.decode_nibbles::<LOW_FIRST>(&self.vector, bytes)
    }
    #[inline(always)]
    fn one(self, bytes: &[u8], i: usize) -> f32 {
        let packing = if LOW_FIRST { Packing::LowFirst } else { Packing::HighFirst };
        self.scalar[pack::get(packing, 4, bytes, i)]
    }
    #[inline(always)]
    fn folded(self, s: S, scale: f32, unit: f32) -> Option<Self> {
        // Only where a vector holds a whole table.
        if S::LANES < self.scalar.len() {
            return None;
        }
        let mut table = *self.scalar;
        for v in &mut table {
            *v = *v * scale * unit;
        }
        Some(Nibbles { vector: s.nibbles(&table), ..self })
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Bytes<'a>(pub &'a ByteValues);

impl<S: Simd> Decode<S> for Bytes<'_> {
    const BITS: usize = 8;
    #[inline(always)]
    fn four(self, s: S, bytes: &[u8]) -> [S::F; 4] {
        s.decode_bytes(self.0, bytes)
    }
    #[inline(always)]
    fn one(self, bytes: &[u8], i: usize) -> f32 {
        self.0.values[usize::from(bytes[i])]
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Ints;

impl<S: Simd> Decode<S> for Ints {
    const BITS: usize = 8;
    #[inline(always)]
    fn four(self, s: S, bytes: &[u8]) -> [S::F; 4] {
        s.decode_ints(bytes)
    }
    #[inline(always)]
    fn one(self, bytes: &[u8], i: usize) -> f32 {
        f32::from(bytes[i] as i8)
    }
}

#[derive(Clone, Copy)]
pub(crate) struct F32;

impl<S: Simd> Decode<S> for F32 {
    const BITS: usize = 32;
    #[inline(always)]
    fn four(self, s: S, bytes: &[u8]) -> [S::F; 4] {
        // Checkpoints may hold f32 at any address; the copy is a load.
        std::array::from_fn(|v| {
            let mut lanes = [0.0f32; 16];
            let from = 4 * S::LANES * v;
            let to = bytemuck::cast_slice_mut(&mut lanes[..S::LANES]);
            to.copy_from_slice(&bytes[from..from + 4 * S::LANES]);
            s.load(&lanes)
        })
    }
    #[inline(always)]
    fn one(self, bytes: &[u8], i: usize) -> f32 {
        let mut four = [0; 4];
        four.copy_from_slice(&bytes[4 * i..4 * i + 4]);
        f32::from_le_bytes(four)
    }
}

#[derive(Clone, Copy)]
pub(crate) struct F16;

impl<S: Simd> Decode<S> for F16 {
    const BITS: usize = 16;
    #[inline(always)]
    fn four(self, s: S, bytes: &[u8]) -> [S::F; 4] {
        s.decode_f16(bytes)
    }
    #[inline(always)]
    fn one(self, bytes: &[u8], i: usize) -> f32 {
        half::f16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]).to_f32()
    }
}

#[derive(Clone, Copy)]
pub(crate) struct BF16;

impl<S: Simd> Decode<S> for BF16 {
    const BITS: usize = 16;
    #[inline(always)]
    fn four(self, s: S, bytes: &[u8]) -> [S::F; 4] {
        s.decode_bf16(bytes)
    }
    #[inline(always)]
    fn one(self, bytes: &[u8], i: usize) -> f32 {
        half::bf16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]).to_f32()
    }
}

/// Weights in a step of the widest vectors, and their bytes as f32.
const MOST: usize = 4 * MOST_LANES;
const MOST_BYTES: usize = 4 * MOST;

/// Values `at..at + out.len()` of a run, unscaled.
#[inline(always)]
pub(super) fn decode_run<S: Simd, D: Decode<S>>(
    s: S,
    d: D,
    bytes: &[u8],
    at: usize,
    out: &mut [f32],
) {
    // A run of nibbles may begin in the middle of a byte: that one is read alone.
    let head = usize::from(at * D::BITS % 8 != 0).min(out.len());
    if head == 1 {
        out[0] = d.one(bytes, at);
    }
    let bytes = &bytes[(at + head) * D::BITS / 8..];
    let out = &mut out[head..];
    let step = 4 * S::LANES;
    let whole = out.len() / step * step;
    let chunks = bytes.chunks_exact(step * D::BITS / 8);
    for (chunk, out) in chunks.zip(out[..whole].chunks_exact_mut(step)) {
        let four = d.four(s, chunk);
        for (v, out) in four.into_iter().zip(out.chunks_exact_mut(S::LANES)) {
            s.store(v, out);
        }
    }
    // Too few for a vector: decoded with zeros behind them.
    let (rest, bytes) = (&mut out[whole..], &bytes[whole * D::BITS / 8..]);
    if rest.is_empty() {
        return;
    }
    let mut padded = [0; MOST_BYTES];
    let len = (rest.len() * D::BITS).div_ceil(8);
    padded[..len].copy_from_slice(&bytes[..len]);
    let mut values = [0.0; MOST];
    for (v, out) in d.four(s, &padded).into_iter().zip(values.chunks_exact_mut(S::LANES)) {
        s.store(v, out);
    }
    rest.copy_from_slice(&values[..rest.len()]);
}

/// `first + step * (byte >> shift & mask)`.
#[inline(always)]
pub(super) fn decode_apart<S: Simd>(
    s: S,
    bytes: &[u8],
    shift: usize,
    mask: u8,
    [first, step]: [f32; 2],
    out: &mut [f32],
) {
    const MOST: usize = 64;
    let len = 4 * S::LANES;
    let mut codes = [0u8; MOST];
    for (bytes, out) in bytes.chunks(len).zip(out.chunks_mut(len)) {
        for (code, byte) in codes[..len].iter_mut().zip(bytes) {
            *code = byte >> shift & mask;
        }
        let values = s.decode_ints(&codes);
        if out.len() == len {
            for (v, out) in values.into_iter().zip(out.chunks_exact_mut(S::LANES)) {
                s.store(s.fma(v, s.splat(step), s.splat(first)), out);
            }
        } else {
            for (code, out) in codes.iter().zip(out) {
                *out = first + step * f32::from(*code);
            }
        }
    }
}

/// The same for any packing, for codes that stand for several weights, and for those that lie apart.
pub(super) fn decode_other(q: &QTensor, bytes: &[u8], at: usize, stride: usize, out: &mut [f32]) {
    let (format, book) = (q.format(), q.codebook());
    let per_code = format.weights_per_code;
    let width = format.code_bits as usize;
    if (format.packing, per_code) == (Packing::LowFirst, 1) && width < 8 && 8 % width == 0 {
        // Codes that lie within a byte: a power of two of them, so the divisions are shifts.
        let (per_byte, mask) = (8 / width, (1 << width) - 1);
        let shift = per_byte.trailing_zeros();
        for (i, o) in out.iter_mut().enumerate() {
            let index = at + i * stride;
            let code = bytes[index >> shift] >> ((index & (per_byte - 1)) * width);
            *o = book[usize::from(code & mask)];
        }
        return;
    }
    for (i, o) in out.iter_mut().enumerate() {
        let index = at + i * stride;
        let code = pack::get(format.packing, format.code_bits, bytes, index / per_code);
        *o = book[code * per_code + index % per_code];
    }
}
