//! Quantizing on the GPU, to the bit as the reference does it.

use bytes::Bytes;
use lowbit::format::{Encoder, Layout, Packing, ScaleKind, f16_scale};
use lowbit::{DType, Error, Format, Geometry, Parts, QTensor, Result, Scales, formats};

use crate::kernel::{Access, Builder, Kernel};
use crate::memo::Memo;
use crate::queue::{Queue, count, cover};
use crate::ranks::tables;
use crate::unroll::unroll;

const DIVIDE: &str = include_str!("kernels/divide.wgsl");
const ABSMAX: &str = include_str!("kernels/absmax.wgsl");
const ENCODE: &str = include_str!("kernels/encode.wgsl");
const QUANTIZE_BLOCKS: &str = include_str!("kernels/quantize_blocks.wgsl");
const QUANTIZE_EIGHT: &str = include_str!("kernels/quantize_eight.wgsl");
const QUANTIZE_LARGE: &str = include_str!("kernels/quantize_large.wgsl");
const SCALED: &str = include_str!("kernels/scaled.wgsl");
const SCALE: &str = include_str!("kernels/scale.wgsl");

const GROUP: u32 = 256;
const PARAMS: &[&str] = &["n", "k", "block_size", "blocks_per_row", "blocks", "row_bytes", "words"];

/// A tensor that was quantized on the GPU and is still there.
#[derive(Debug)]
pub struct Quantized<B> {
    format: &'static Format,
    shape: Vec<usize>,
    geometry: Geometry,
    /// Packed codes.
    pub codes: B,
    /// One f32 a block, which [`read`](Self::read) rounds where the format stores less; where its
    /// scales are E8M0, the byte in the low bits of a u32. That of a block with a number that is not
    /// finite is not finite either, or 255, E8M0's NaN: so nothing else need be cleared before calls or
    /// shared between them, which would keep one from starting while the one before runs.
    pub scales: B,
}

/// A format's thresholds and codes on the GPU, ready to quantize any number of tensors.
#[derive(Debug)]
pub struct Quantizer<B> {
    format: &'static Format,
    encoder: &'static Encoder,
    ups: B,
    ranked: B,
}

impl<B: Clone> Quantizer<B> {
    /// Uploads what the format needs.
    ///
    /// # Errors
    /// [`Error::Argument`] for a format that the GPU cannot quantize; and as [`Queue::upload`].
    pub fn new<Q: Queue<Buffer = B>>(queue: &Q, format: &'static Format) -> Result<Self> {
        let encoder = encoder(format)?;
        let (ups, ranked) = tables(encoder);
        let ups = queue.upload(bytemuck::cast_slice(&ups))?;
        let ranked = queue.upload(bytemuck::cast_slice(&ranked))?;
        Ok(Quantizer { format, encoder, ups, ranked })
    }

    /// Queues the quantization of `w`, row-major of that shape, in pairs of that type.
    ///
    /// # Errors
    /// [`Error::Argument`] for a shape or block size that the format cannot have; and as
    /// [`Queue::dispatch`].
    pub fn quantize<Q: Queue<Buffer = B>>(
        &self,
        queue: &Q,
        w: &B,
        dtype: DType,
        shape: &[usize],
        block_size: Option<usize>,
    ) -> Result<Quantized<B>> {
        const OP: &str = "quantize";
        let format = self.format;
        let g = Geometry::new(format, shape, block_size)?;
        count(OP, g.n.saturating_mul(g.k))?;
        let codes = queue.scratch((g.code_bytes.next_multiple_of(4)) as u64)?;
        let scales = queue.scratch(4 * g.blocks as u64)?;
        if self.is_line(&g) && g.blocks > 0 {
            let size = g.block_size;
            // What a group holds at a time; larger blocks, or other sizes, it reads twice.
            let held = size.is_power_of_two() && size <= 8 * GROUP as usize;
            let held = held.then_some(size as u32 / 8);
            static KERNELS: Memo<(&str, DType, Option<u32>)> = Memo::new();
            let kernel = KERNELS.get((format.name, dtype, held), |_| {
                blocks_kernel(format, self.encoder, dtype, held)
            });
            let eights = count(OP, g.n * g.k / 8)?;
            let groups = match held {
                Some(_) => cover(eights.into(), GROUP, queue.limits()),
                None => cover(g.blocks as u64, 1, queue.limits()),
            };
            let buffers = [w, &scales, &self.ups, &self.ranked, &codes];
            let params = [eights, count(OP, g.blocks)?, count(OP, size.div_ceil(8))?];
            queue.dispatch(&kernel, &buffers, &params, groups)?;
        } else {
            self.in_two_passes(queue, [w, &scales, &codes], dtype, &g)?;
        }
        Ok(Quantized { format, shape: shape.to_vec(), geometry: g, codes, scales })
    }

    /// Whether blocks and codes lie one after the other, as numbers do, in eights.
    fn is_line(&self, g: &Geometry) -> bool {
        let format = self.format;
        let row_bits = g.k * format.code_bits as usize;
        let in_line = g.row_bytes.is_none_or(|bytes| 8 * bytes == row_bits)
            && (!format.in_rows() || g.k % g.block_size == 0);
        let plain = !matches!(format.packing, Packing::Radix { .. })
            && !matches!(format.layout, Layout::Stacked { .. })
            && matches!(format.code_bits, 4 | 8)
            && format.scale != ScaleKind::Absmean;
        plain && in_line && (g.n * g.k).is_multiple_of(8) && g.block_size.is_multiple_of(8)
    }

    /// Scales first, then codes.
    fn in_two_passes<Q: Queue<Buffer = B>>(
        &self,
        queue: &Q,
        [w, scales, codes]: [&B; 3],
        dtype: DType,
        g: &Geometry,
    ) -> Result<()> {
        const OP: &str = "quantize";
        let format = self.format;
        let factors = queue.scratch(4 * g.blocks as u64)?;
        let words = count(OP, g.code_bytes.div_ceil(4))?;
        let params = [
            g.n as u32,
            g.k as u32,
            count(OP, g.block_size)?,
            g.k.div_ceil(g.block_size) as u32,
            count(OP, g.blocks)?,
            g.row_bytes.unwrap_or(0) as u32,
            words,
        ];
        static ABSMAX_KERNELS: Memo<(&str, DType)> = Memo::new();
        static ENCODE_KERNELS: Memo<(&str, DType)> = Memo::new();
        let key = (format.name, dtype);
        if g.blocks > 0 {
            let groups = cover(g.blocks as u64, GROUP / 32, queue.limits());
            let kernel = ABSMAX_KERNELS.get(key, |_| absmax_kernel(format, dtype));
            queue.dispatch(&kernel, &[w, scales, &factors], &params, groups)?;
        }
        if words > 0 {
            let groups = cover(words.into(), GROUP, queue.limits());
            let kernel = ENCODE_KERNELS.get(key, |_| encode_kernel(format, self.encoder, dtype));
            let buffers = [w, scales, &factors, &self.ups, &self.ranked, codes];
            queue.dispatch(&kernel, &buffers, &params, groups)?;
        }
        Ok(())
    }
}

/// Queues the quantization of one tensor: see [`Quantizer::quantize`].
///
/// # Errors
/// As [`Quantizer::new`] and [`Quantizer::quantize`].
pub fn quantize<Q: Queue>(
    queue: &Q,
    format: &'static Format,
    w: &Q::Buffer,
    dtype: DType,
    shape: &[usize],
    block_size: Option<usize>,
) -> Result<Quantized<Q::Buffer>> {
    Quantizer::new(queue, format)?.quantize(queue, w, dtype, shape, block_size)
}

/// Double quantization of f32 scales: signed dynamic map, blocks of 256, their mean taken off.
///
/// The mean is summed in f64, which no GPU has, so the scales pass through the processor.
///
/// # Errors
/// As [`quantize`].
pub fn double_quantize<Q: Queue>(queue: &Q, scales: &[f32]) -> Result<Scales> {
    let sum: f64 = scales.iter().map(|s| f64::from(*s)).sum();
    let offset = if scales.is_empty() { 0.0 } else { (sum / scales.len() as f64) as f32 };
    let centred: Vec<f32> = scales.iter().map(|s| s - offset).collect();
    let w = queue.upload(bytemuck::cast_slice(&centred))?;
    let map = formats::nested();
    let size = Some(lowbit::NESTED_BLOCK_SIZE);
    let q = quantize(queue, map, &w, DType::F32, &[scales.len()], size)?.read(queue, &centred)?;
    Ok(Scales::Nested(lowbit::Nested {
        codes: q.codes().clone(),
        absmax: q.scales().to_f32(),
        offset,
        block_size: lowbit::NESTED_BLOCK_SIZE,
        map: lowbit::Nested::default_map(),
    }))
}

impl<B: Clone> Quantized<B> {
    /// Waits for it and copies it out. `w` are the numbers that were quantized, in which one that is not
    /// finite is looked for if there is one.
    ///
    /// # Errors
    /// [`Error::NotFinite`], and as [`Queue::read`].
    pub fn read<Q: Queue<Buffer = B>>(self, queue: &Q, w: &[f32]) -> Result<QTensor> {
        let g = &self.geometry;
        let codes = queue.read(&self.codes, g.code_bytes as u64)?;
        let stored = queue.read(&self.scales, 4 * g.blocks as u64)?;
        let stored: Vec<f32> = bytemuck::pod_collect_to_vec(&stored);
        let finite = |scale: &f32| match self.format.scale {
            ScaleKind::E8M0 => scale.to_bits() < 255,
            _ => scale.is_finite(),
        };
        if !stored.iter().all(finite) {
            let index = w.iter().position(|w| !w.is_finite()).unwrap_or(0);
            let value = w.get(index).copied().unwrap_or(f32::NAN);
            return Err(Error::NotFinite { op: "quantize", index, value });
        }
        let scales = match self.format.scale {
            ScaleKind::E8M0 => Scales::E8M0(stored.iter().map(|s| s.to_bits() as u8).collect()),
            ScaleKind::Absmean => Scales::F16(stored.into_iter().map(f16_scale).collect()),
            _ => Scales::F32(stored.into()),
        };
        QTensor::from_parts(Parts {
            format: self.format,
            shape: self.shape,
            block_size: Some(g.block_size),
            codes: Bytes::from(codes),
            scales,
            means: None,
            codebook: None,
        })
    }
}

/// The encoder of a format whose codes are whole fractions of a byte, one weight each.
fn encoder(format: &'static Format) -> Result<&'static Encoder> {
    let bytes = match format.packing {
        Packing::Radix { .. } => true,
        _ => format.code_bits <= 8 && 8 % format.code_bits == 0,
    };
    format.encoder.filter(|_| bytes && format.weights_per_code == 1).ok_or_else(|| {
        Error::argument(
            "quantize",
            "a format with an encoder",
            format.name,
            "quantize it on the CPU, or choose another format",
        )
    })
}

fn builder(name: &str, format: &Format, dtype: DType, unit: &str) -> Builder {
    Builder::new(name)
        .tag(format.name)
        .types()
        .activations("X", dtype)
        .flag("FLAT", !format.in_rows())
        .flag("MEAN", format.scale == ScaleKind::Absmean)
        .flag("STEP", format.scale == ScaleKind::Step)
        .flag("E8M0", format.scale == ScaleKind::E8M0)
        .text(&format!("const PEAK = {:?}f;", format.peak))
        .text(DIVIDE)
        .bind("w", Access::Read, unit)
}

/// `encode` and `scaled`, and what they read.
fn with_ranks(builder: Builder, format: &Format, encoder: &Encoder) -> Builder {
    builder
        .bind("ups", Access::Read, "array<f32>")
        .bind("ranked", Access::Read, "array<u32>")
        .bind("codes", Access::ReadWrite, "array<u32>")
        .constant("BITS", format.code_bits)
        .flag("HIGH_FIRST", format.packing == Packing::HighFirst)
        .ranks(encoder)
        .text(SCALED)
}

/// Of blocks of so many eights, which a group holds, or of larger ones.
fn blocks_kernel(format: &Format, encoder: &Encoder, dtype: DType, held: Option<u32>) -> Kernel {
    let counts = [("WORDS", format.code_bits / 4), ("EACH_WORD", 32 / format.code_bits)];
    let name = if held.is_some() { "quantize_blocks" } else { "quantize_large" };
    let builder =
        builder(name, format, dtype, "array<X8>").bind("scales", Access::ReadWrite, "array<f32>");
    let builder =
        with_ranks(builder, format, encoder).text(SCALE).text(&unroll(QUANTIZE_EIGHT, &counts));
    let (builder, body) = match held {
        Some(each) => (builder.tag(8 * each).constant("EACH", each), QUANTIZE_BLOCKS),
        None => (builder, QUANTIZE_LARGE),
    };
    builder.build(&["eights", "blocks", "each"], name, GROUP, body)
}

fn absmax_kernel(format: &Format, dtype: DType) -> Kernel {
    builder("absmax", format, dtype, "array<X2>")
        .bind("scales", Access::ReadWrite, "array<f32>")
        .bind("factors", Access::ReadWrite, "array<f32>")
        .text(SCALE)
        .build(PARAMS, "absmax", GROUP, ABSMAX)
}

fn encode_kernel(format: &Format, encoder: &Encoder, dtype: DType) -> Kernel {
    let (radix, per_byte) = match format.packing {
        Packing::Radix { base, per_byte } => (u32::from(base), u32::from(per_byte)),
        _ => (1, 8 / format.code_bits),
    };
    let stacked = match format.layout {
        Layout::Stacked { rows } => rows as u32,
        _ => 1,
    };
    let builder = builder("encode", format, dtype, "array<X2>")
        .bind("scales", Access::Read, "array<f32>")
        .bind("factors", Access::Read, "array<f32>");
    with_ranks(builder, format, encoder)
        .constant("STACKED", stacked)
        .constant("PER_BYTE", per_byte)
        .constant("RADIX", radix)
        .flag("IS_RADIX", radix != 1)
        .build(PARAMS, "encode_all", GROUP, ENCODE)
}
