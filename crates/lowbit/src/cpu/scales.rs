//! Scales in f32: those that are quantized themselves, restored once for an operation, as its kernels come by
//! each of them many times, and not eight or sixteen at once; and those of some rows, as kernels by tables take them.

use super::byte_values::ByteValues;
use super::convert::widen;
use super::dispatch::Isa;
use super::linear::Pool;
use super::simd::{Simd, Task};
use super::view::{Blocks, View};
use crate::{Nested, Scales};

/// Nested blocks that a thread restores at a time.
const BLOCKS: usize = 16;

/// `f` of a weight whose scales are not quantized: of the same with its scales in f32, if they are.
pub(crate) fn restored<R>(
    isa: Isa,
    view: &View<'_>,
    pool: &Pool,
    f: impl FnOnce(&View<'_>) -> R,
) -> R {
    let Some(Blocks { scales: Scales::Nested(nested), .. }) = view.blocks else { return f(view) };
    let Ok(map) = nested.map.as_ref().try_into() else { return f(view) };
    let map = &ByteValues::new(map);
    let mut out = vec![0.0; nested.codes.len()];
    // A block may be said to be longer than all scales together, up to where sixteen of them overflow.
    let (len, work) = (BLOCKS * nested.block_size.min(out.len().max(1)), out.len());
    pool.each(&mut out, len, work, |i, out| {
        isa.run(Restore { nested, map, first: i * BLOCKS, out });
    });
    f(&view.with_scales(&Scales::F32(out.into())))
}

/// Scales from nested block `first` on.
struct Restore<'a> {
    nested: &'a Nested,
    map: &'a ByteValues,
    first: usize,
    out: &'a mut [f32],
}

impl Task for Restore<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Restore { nested, map, first, out } = self;
        let step = 4 * S::LANES;
        for (i, out) in out.chunks_mut(nested.block_size).enumerate() {
            let from = (first + i) * nested.block_size;
            let codes = &nested.codes[from..from + out.len()];
            let whole = out.len() / step * step;
            let (absmax, offset) = (s.splat(nested.absmax[first + i]), s.splat(nested.offset));
            let steps = out[..whole].chunks_exact_mut(step).zip(codes.chunks_exact(step));
            for (out, codes) in steps {
                let values = s.decode_bytes(map, codes);
                for (v, out) in values.into_iter().zip(out.chunks_exact_mut(S::LANES)) {
                    s.store(s.add(s.mul(v, absmax), offset), out);
                }
            }
            for (j, out) in out.iter_mut().enumerate().skip(whole) {
                *out = nested.get(from + j);
            }
        }
    }
}

impl Blocks<'_> {
    /// Scales of some rows with the format's unit, where blocks lie in rows: `[rows / R, blocks, R]`.
    #[inline(always)]
    pub fn scales_of<S: Simd, const R: usize>(
        &self,
        s: S,
        first: usize,
        rows: usize,
    ) -> Vec<[f32; R]> {
        let blocks = self.of_row();
        let mut out = vec![[0.0; R]; rows.div_ceil(R) * blocks];
        let mut flat = vec![0.0; rows * blocks];
        match self.scales {
            Scales::F16(scales) => widen(s, &scales[first * blocks..][..rows * blocks], &mut flat),
            scales => {
                for (flat, i) in flat.iter_mut().zip(first * blocks..) {
                    *flat = scales.get(i);
                }
            }
        }
        for (row, scales) in flat.chunks_exact(blocks).enumerate() {
            for (out, scale) in out[row / R * blocks..].iter_mut().zip(scales) {
                out[row % R] = scale * self.unit;
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::Rng;
    use crate::{Cpu, formats};

    #[test]
    fn restored_scales_are_those_of_the_tensor() {
        let mut rng = Rng(5);
        let nf4 = formats::by_name("nf4").unwrap();
        // Less than a vector, an end of one, and more than a thread takes at a time.
        for blocks in [3, 256 + 45, 3 * BLOCKS * 256 + 70] {
            let w: Vec<f32> = (0..32 * blocks).map(|_| rng.normal()).collect();
            let q = Cpu::best().quantize(nf4, &w, &[blocks, 32], Some(32)).unwrap();
            let q = Cpu::best().double_quantize(q).unwrap();
            let view = View::quantized(&q);
            for isa in Isa::available() {
                restored(isa, &view, &Pool::for_work(usize::MAX), |view| {
                    let scales = view.blocks.unwrap().scales;
                    assert!(matches!(scales, Scales::F32(_)));
                    assert_eq!(scales.to_f32(), q.scales().to_f32(), "{}", isa.name());
                });
            }
        }
    }
}
