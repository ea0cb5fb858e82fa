//! Weights to codes and scales, on all threads.

use std::sync::atomic::{AtomicBool, Ordering};

use super::check_len;
use super::convert;
use super::dispatch::Isa;
use super::reference::{Scaling, assemble, check_quantize, encoder_of, finish};
use super::simd::{MOST_LANES, Simd, Task};
use crate::format::{Encoder, Layout, Packing, ScaleKind, Values, absmean};
use crate::tensor::Geometry;
use crate::{DType, Element, Error, Format, QTensor, Result, Scales, pack, threads};

/// Weights of a piece of work.
const PIECE: usize = 1 << 16;
/// Weights of 16 bits that are widened at a time, about.
const WIDENED: usize = 1024;

/// [`reference::quantize`](super::reference::quantize), fast: the same bytes.
pub(crate) fn quantize<T: Element>(
    isa: Isa,
    format: &'static Format,
    w: &[T],
    shape: &[usize],
    block_size: Option<usize>,
) -> Result<QTensor> {
    let g = check_quantize(format, w.len(), shape, block_size)?;
    let mut codes = vec![0u8; g.code_bytes];
    let scales = quantize_into(isa, format, w, shape, block_size, &mut codes)?;
    assemble(format, shape, &g, codes, scales)
}

/// The same, with the codes written to `codes`, whatever they were before.
pub(crate) fn quantize_into<T: Element>(
    isa: Isa,
    format: &'static Format,
    w: &[T],
    shape: &[usize],
    block_size: Option<usize>,
    codes: &mut [u8],
) -> Result<Scales> {
    let g = check_quantize(format, w.len(), shape, block_size)?;
    check_len("quantize", "bytes of codes", g.code_bytes, codes.len())?;
    let coder = Coder::new(format, encoder_of(format)?, w.len());
    let mut absmax = vec![0.0f32; g.blocks];
    if let Some((rows, _)) = g.stacked {
        stacked(format, w, rows, codes, &mut absmax)?;
    } else if !w.is_empty() {
        // Pieces of whole blocks, of whole rows where rows lie apart.
        let (weights, blocks, bytes) = match g.row_bytes {
            None => {
                let blocks = PIECE.div_ceil(g.block_size);
                let bits = blocks * g.block_size * format.code_bits as usize;
                (blocks * g.block_size, blocks, bits / 8)
            }
            Some(row_bytes) => {
                let rows = PIECE.div_ceil(g.k);
                (rows * g.k, rows * g.k.div_ceil(g.block_size), rows * row_bytes)
            }
        };
        let task = |((w, absmax), codes): ((&[T], &mut [f32]), &mut [u8])| {
            isa.run(Piece { format, g: &g, coder: &coder, w, absmax, codes })
        };
        let parts = w.chunks(weights).zip(absmax.chunks_mut(blocks)).zip(codes.chunks_mut(bytes));
        let finite = AtomicBool::new(true);
        let task = |part| {
            if !task(part) {
                finite.store(false, Ordering::Relaxed);
            }
        };
        if w.len() <= PIECE {
            parts.for_each(task)
        } else {
            threads::for_each(parts, task)
        }
        if !finite.into_inner() {
            return Err(not_finite(w));
        }
    }
    Ok(finish(format, &g, codes, &absmax))
}

/// The first number that is not finite.
fn not_finite<T: Element>(w: &[T]) -> Error {
    let found = w.iter().map(|v| v.to_f32()).enumerate().find(|(_, v)| !v.is_finite());
    let (index, value) = found.unwrap_or((0, f32::NAN));
    Error::NotFinite { op: "quantize", index, value }
}

/// A tensor of one block, whose bytes hold the codes of rows `r`, `r + rows`, `r + 2 rows`, ..
fn stacked<T: Element>(
    format: &'static Format,
    w: &[T],
    rows: usize,
    codes: &mut [u8],
    scale: &mut [f32],
) -> Result<()> {
    let [scale] = scale else { return Ok(()) };
    let wide: Vec<f32> = w.iter().map(|v| v.to_f32()).collect();
    if !wide.iter().all(|v| v.is_finite()) {
        return Err(not_finite(w));
    }
    let encoder = encoder_of(format)?;
    *scale = absmean(&wide);
    let scaling = Scaling::new(format, *scale);
    let k = codes.len() / rows;
    threads::for_each(codes.chunks_mut(k).enumerate(), |(row, codes)| {
        codes.fill(0);
        for (i, w) in wide.chunks_exact(k).skip(row).step_by(rows).enumerate() {
            for (byte, w) in codes.iter_mut().zip(w) {
                let code = encoder.encode(scaling.apply(*w)).into();
                pack::set(format.packing, format.code_bits, std::slice::from_mut(byte), i, code);
            }
        }
    });
    Ok(())
}

/// How a format's codes are found fast.
enum Coder {
    /// At most 16 codes of four bits.
    Nibbles { ups: [f32; 15], codes: [u8; 16], signed: bool, low_first: bool },
    /// The nearest integer.
    Ints,
    /// A byte a code, by table.
    Bytes(RankTable),
    /// Anything else, as the specification does it.
    Other,
}

impl Coder {
    fn new(format: &Format, encoder: &'static Encoder, weights: usize) -> Self {
        let plain = format.weights_per_code == 1;
        let low_first = format.packing == Packing::LowFirst;
        let signed = encoder.sign_bit != 0;
        match (format.code_bits, format.values, format.packing) {
            (8, Values::Integer(_), Packing::HighFirst) if plain => Coder::Ints,
            (8, _, Packing::HighFirst) if plain && weights >= PIECE / 2 => {
                Coder::Bytes(RankTable::new(encoder))
            }
            (4, _, Packing::HighFirst | Packing::LowFirst)
                if plain && encoder.codes.len() <= if signed { 8 } else { 16 } =>
            {
                let up = |i: usize| encoder.ups.get(i).copied().unwrap_or(f32::INFINITY);
                let code = |i: usize| encoder.codes.get(i).copied().unwrap_or(0);
                let codes = if signed {
                    std::array::from_fn(|i| code(i % 8) | if i < 8 { 0 } else { encoder.sign_bit })
                } else {
                    std::array::from_fn(code)
                };
                Coder::Nibbles { ups: std::array::from_fn(up), codes, signed, low_first }
            }
            _ => Coder::Other,
        }
    }
}

/// Ranks by the upper bits of a number: sign, exponent and five bits of the mantissa choose a
/// cell, and a few comparisons finish.
struct RankTable {
    encoder: &'static Encoder,
    /// Rank of the smallest number of each cell.
    base: Vec<u8>,
    ups: Vec<f32>,
    steps: usize,
}

const CELL_BITS: u32 = 18;

impl RankTable {
    fn new(encoder: &'static Encoder) -> Self {
        let cells = 1usize << (32 - CELL_BITS);
        let mut base = vec![0u8; cells];
        let mut steps = 0;
        // In the order of the numbers: negative cells from the largest magnitude, then positive.
        let order = (cells / 2..cells).rev().chain(0..cells / 2);
        let mut rank = 0;
        let advance = |mut rank: usize, x: f32| {
            while encoder.ups.get(rank).is_some_and(|up| *up <= x) {
                rank += 1;
            }
            rank
        };
        for cell in order {
            let near = (cell as u32) << CELL_BITS;
            let far = near | ((1 << CELL_BITS) - 1);
            let (lowest, highest) = if cell < cells / 2 { (near, far) } else { (far, near) };
            rank = advance(rank, f32::from_bits(lowest));
            base[cell] = rank as u8;
            steps = steps.max(advance(rank, f32::from_bits(highest)) - rank);
        }
        let mut ups = encoder.ups.to_vec();
        ups.resize(encoder.ups.len() + steps + 1, f32::INFINITY);
        RankTable { encoder, base, ups, steps }
    }

    /// Not compiled into the kernels: vectors only get in the way of table look-ups.
    #[inline(never)]
    fn encode(&self, w: &[f32], scaling: Scaling, out: &mut [u8]) {
        for (w, out) in w.iter().zip(out) {
            *out = self.code(scaling.apply(*w));
        }
    }

    #[inline(always)]
    fn code(&self, x: f32) -> u8 {
        let sign = if x < 0.0 { self.encoder.sign_bit } else { 0 };
        let magnitude = if self.encoder.sign_bit == 0 { x } else { x.abs() };
        let mut rank = usize::from(self.base[(magnitude.to_bits() >> CELL_BITS) as usize]);
        for _ in 0..self.steps {
            rank += usize::from(self.ups[rank] <= magnitude);
        }
        self.encoder.codes[rank] | sign
    }
}

struct Piece<'a, T> {
    format: &'static Format,
    g: &'a Geometry,
    coder: &'a Coder,
    w: &'a [T],
    absmax: &'a mut [f32],
    codes: &'a mut [u8],
}

impl<T: Element> Task for Piece<'_, T> {
    /// Whether all numbers were finite.
    type Output = bool;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> bool {
        let Piece { format, g, coder, w, absmax, codes } = self;
        let encode = Encode { s, format, coder, vectors: Vectors::new(s, coder) };
        let mut buffer = Vec::new();
        codes.fill(0);
        // A flat piece is one run; rows that lie apart are a run each.
        let (run, run_blocks, run_bytes) = match g.row_bytes {
            None => (w.len(), absmax.len(), codes.len()),
            Some(bytes) => (g.k, g.k.div_ceil(g.block_size), bytes),
        };
        // Blocks that fill no vectors by themselves are encoded several at a time.
        let few = (4 * S::LANES / g.block_size).max(1);
        let together = few * g.block_size;
        // Numbers are widened further ahead than stores take.
        let ahead = (WIDENED / together).max(1) * few;
        let mut scaled = [0.0; 4 * MOST_LANES];
        let runs = w.chunks(run).zip(absmax.chunks_mut(run_blocks));
        for ((w, absmax), codes) in runs.zip(codes.chunks_mut(run_bytes)) {
            let parts = w.chunks(ahead * g.block_size).zip(absmax.chunks_mut(ahead)).enumerate();
            for (part, (w, absmax)) in parts {
                let w = widen(s, w, &mut buffer);
                for (i, (w, absmax)) in w.chunks(together).zip(absmax.chunks_mut(few)).enumerate() {
                    let at = part * ahead * g.block_size + i * together;
                    if few == 1 {
                        let Some(scaling) = encode.scaling(w, &mut absmax[0]) else {
                            return false;
                        };
                        encode.block(w, scaling, codes, at);
                        continue;
                    }
                    let scaled = &mut scaled[..w.len()];
                    let blocks = w.chunks(g.block_size).zip(scaled.chunks_mut(g.block_size));
                    for ((w, scaled), absmax) in blocks.zip(absmax) {
                        let Some(scaling) = encode.scaling(w, absmax) else { return false };
                        for (w, scaled) in w.iter().zip(scaled) {
                            *scaled = scaling.apply(*w);
                        }
                    }
                    encode.block(scaled, Scaling::ONE, codes, at);
                }
            }
            if let Layout::Rows { pad, .. } = format.layout {
                encode.pad(codes, run, run.next_multiple_of(pad));
            }
        }
        true
    }
}

/// Numbers in f32; f32 itself is not copied.
#[inline(always)]
fn widen<'a, S: Simd, T: Element>(s: S, w: &'a [T], buffer: &'a mut Vec<f32>) -> &'a [f32] {
    if T::DTYPE == DType::F32 {
        return bytemuck::cast_slice(w);
    }
    buffer.resize(w.len(), 0.0);
    convert::widen(s, w, buffer);
    buffer
}

/// What a coder keeps in registers.
enum Vectors<S: Simd> {
    Nibbles(S::Ranks),
    None,
}

impl<S: Simd> Vectors<S> {
    #[inline(always)]
    fn new(s: S, coder: &Coder) -> Self {
        match coder {
            Coder::Nibbles { ups, codes, signed, .. } => {
                Vectors::Nibbles(s.ranks(ups, codes, *signed))
            }
            _ => Vectors::None,
        }
    }
}

struct Encode<'a, S: Simd> {
    s: S,
    format: &'static Format,
    coder: &'a Coder,
    vectors: Vectors<S>,
}

impl<S: Simd> Encode<'_, S> {
    /// Writes a block's absmax; nothing for a block with numbers that are not finite.
    #[inline(always)]
    fn scaling(&self, w: &[f32], absmax: &mut f32) -> Option<Scaling> {
        let bits = self.s.max_magnitude_bits(w);
        if bits >= f32::INFINITY.to_bits() {
            return None;
        }
        *absmax = match self.format.scale {
            ScaleKind::Absmean => absmean(w),
            _ => f32::from_bits(bits),
        };
        Some(Scaling::new(self.format, *absmax))
    }

    /// Codes of a block that begins at weight `at` of the run whose bytes are `codes`.
    #[inline(always)]
    fn block(&self, w: &[f32], scaling: Scaling, codes: &mut [u8], at: usize) {
        let step = 4 * S::LANES;
        let whole = if scaling.is_one_product() { w.len() / step * step } else { 0 };
        let chunks = w[..whole].chunks_exact(step);
        let factor = scaling.factor;
        let done = match (self.coder, &self.vectors) {
            (Coder::Nibbles { low_first, .. }, Vectors::Nibbles(ranks)) => {
                for (w, out) in chunks.zip(codes[at / 2..].chunks_exact_mut(step / 2)) {
                    if *low_first {
                        self.s.encode_nibbles::<true>(ranks, w, factor, out);
                    } else {
                        self.s.encode_nibbles::<false>(ranks, w, factor, out);
                    }
                }
                whole
            }
            (Coder::Ints, _) => {
                for (w, out) in chunks.zip(codes[at..].chunks_exact_mut(step)) {
                    self.s.encode_ints(w, factor, self.format.peak, out);
                }
                whole
            }
            (Coder::Bytes(table), _) => {
                table.encode(w, scaling, &mut codes[at..]);
                w.len()
            }
            _ => 0,
        };
        for (i, w) in w.iter().enumerate().skip(done) {
            self.set(codes, at + i, scaling.apply(*w));
        }
    }

    /// The code of zero from `from` to `to`.
    #[inline(always)]
    fn pad(&self, codes: &mut [u8], from: usize, to: usize) {
        for i in from..to {
            self.set(codes, i, 0.0);
        }
    }

    fn set(&self, codes: &mut [u8], at: usize, x: f32) {
        if let Some(encoder) = self.format.encoder {
            let code = usize::from(encoder.encode(x));
            pack::set(self.format.packing, self.format.code_bits, codes, at, code);
        }
    }
}
