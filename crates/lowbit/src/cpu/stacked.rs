//! A few rows of activations and weights of which a byte has a code of two bits of each of four rows, by products
//! of bytes.
//!
//! A weight is `first + step * code`. A mask leaves the codes of one row, where they stand, to be multiplied by
//! activations in bytes (see [`dots`](super::dots)): two bytes keep 16 bits of the largest of 16-bit
//! activations, three keep 24 for f32.

use super::buffer::Buffer;
use super::dispatch::Isa;
use super::dots::{Integers, ToIntegers, Vector, bytes_of};
use super::gemv::AHEAD;
use super::integer_tables::runs;
use super::linear::Pool;
use super::simd::{Simd, Task};
use super::view::{Codes, View};
use crate::unrolled::unrolled;

/// Rows of weights that share a byte.
const ROWS: usize = 4;
/// Bits of a code.
const BITS: usize = 2;
/// Most rows of activations for which this is worth it: each of them looks at all codes.
const MOST: usize = 16;
/// Longest rows: sums of more might leave an i32.
const MOST_COLUMNS: usize = 1 << 20;
/// Rows of bytes that a thread takes at once.
const ROWS_OF_THREAD: usize = 32;

/// A row of activations in bytes, and the weight that it is multiplied by.
pub(crate) struct Stacked<'a> {
    bytes: &'a [u8],
    k: usize,
    planes: usize,
    /// `[vectors, planes, bytes of a vector]`.
    x: Buffer<u8>,
    /// What an integer times a code stands for.
    unit: f32,
    /// What `first` of all weights of a row adds.
    offset: f32,
}

/// Brings the activations `x: [M, K]` to bytes; `None` if bytes hold anything else, or an activation is not finite.
/// With `exact`, f32 accuracy.
pub(crate) fn prepare<'a>(
    isa: Isa,
    view: &View<'a>,
    x: &[f32],
    exact: bool,
) -> Option<Vec<Stacked<'a>>> {
    if x.is_empty() || x.len() > MOST * view.k || view.k > MOST_COLUMNS {
        return None;
    }
    x.chunks_exact(view.k).map(|x| Stacked::new(isa, view, x, exact)).collect()
}

/// `yᵀ = w xᵀ`: `yt: [N, M]`, `x: [M]`.
pub(crate) fn multiply(isa: Isa, x: &[Stacked<'_>], yt: &mut [f32], pool: &Pool) {
    let m = x.len();
    // By bytes: `[N / ROWS, ROWS]`.
    let mut by_bytes = vec![0.0; yt.len() / m];
    let rows = by_bytes.len() / ROWS;
    for (i, p) in x.iter().enumerate() {
        pool.rows(&mut by_bytes, ROWS, ROWS_OF_THREAD, |first, y| isa.run(Rows { p, first, y }));
        for (place, yt) in yt.chunks_exact_mut(rows * m).enumerate() {
            for (y, of_byte) in yt[i..].iter_mut().step_by(m).zip(by_bytes.chunks_exact(ROWS)) {
                *y = of_byte[place];
            }
        }
    }
}

impl<'a> Stacked<'a> {
    /// Of `x: [K]`.
    fn new(isa: Isa, view: &View<'a>, x: &[f32], exact: bool) -> Option<Self> {
        let (Codes::Apart { first, step, bits: BITS }, Some(blocks)) = (&view.codes, &view.blocks)
        else {
            return None;
        };
        if blocks.geometry.stride() != ROWS || blocks.geometry.blocks != 1 || blocks.means.is_some()
        {
            return None;
        }
        let planes = if exact { 3 } else { 2 };
        let Integers { numbers, unit } = isa.run(ToIntegers { x, bytes: planes })?;
        let vector = isa.run(Vector);
        let mut bytes = Buffer::new(x.len().div_ceil(vector) * planes * vector, 0);
        for (numbers, bytes) in numbers.chunks(vector).zip(bytes.chunks_exact_mut(planes * vector))
        {
            for (i, number) in numbers.iter().enumerate() {
                for (plane, byte) in bytes_of(*number, planes).enumerate() {
                    bytes[plane * vector + i] = byte;
                }
            }
        }
        let sum: i64 = numbers.iter().map(|number| i64::from(*number)).sum();
        let unit = unit * blocks.scales.get(0) * blocks.unit;
        Some(Stacked {
            bytes: view.bytes,
            k: view.k,
            planes,
            x: bytes,
            unit: step * unit,
            offset: first * sum as f32 * unit,
        })
    }
}

/// Rows of bytes from `first` on: `y: [rows, ROWS]`.
struct Rows<'a> {
    p: &'a Stacked<'a>,
    first: usize,
    y: &'a mut [f32],
}

impl Task for Rows<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.p.planes {
            3 => self.with::<S, 3>(s),
            _ => self.with::<S, 2>(s),
        }
    }
}

impl Rows<'_> {
    #[inline(always)]
    fn with<S: Simd, const P: usize>(self, s: S) {
        let Rows { p, first, y } = self;
        let vector = 16 * S::PARTS;
        let len = p.k.next_multiple_of(vector);
        let mut ends = Vec::new();
        for (row, y) in y.chunks_exact_mut(ROWS).enumerate() {
            let place = (first + row) * p.k;
            let [codes] = runs(p.bytes, std::iter::once(place), len, &mut ends);
            let mut sums = [[s.no_sums(); P]; ROWS];
            let vectors = codes[..len].chunks_exact(vector).zip(p.x.chunks_exact(P * vector));
            for (codes, x) in vectors {
                s.prefetch(codes, AHEAD);
                let codes = s.load_bytes(codes);
                // Bytes of at most twelve: one instruction for pairs of products could not hold more than 128.
                let halves = [codes, s.shifted_by_four(codes)];
                unrolled!(place of ROWS in 0, 1, 2, 3 => {
                    let digits = s.masked(halves[place / 2], 3 << (BITS * (place % 2)));
                    unrolled!(plane of P in 0, 1, 2 => {
                        let x = s.load_bytes(&x[plane * vector..]);
                        sums[place][plane] = s.dot_bytes(sums[place][plane], digits, x);
                    });
                });
            }
            for (place, (y, sums)) in y.iter_mut().zip(sums).enumerate() {
                // A code counts as where it stands says.
                let mut weight = if place % 2 == 0 { 1.0 } else { 0.25 };
                let mut total = s.splat(0.0);
                for sum in sums {
                    total = s.fma(s.sums_to_f32(sum), s.splat(weight), total);
                    weight *= 256.0;
                }
                *y = s.sum(total) * p.unit + p.offset;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::Rng;
    use crate::cpu::reference;
    use crate::{Cpu, Weight, formats};

    #[test]
    fn agree_with_the_specification() {
        let mut rng = Rng(4);
        let bitlinear = formats::by_name("bitlinear").unwrap();
        for (m, n, k) in [(1, 4, 1), (1, 200, 700), (3, 12, 64), (16, 8, 33)] {
            let numbers: Vec<f32> = (0..n * k).map(|_| rng.normal()).collect();
            let x: Vec<f32> = (0..m * k).map(|_| rng.normal()).collect();
            let q = Cpu::best().quantize(bitlinear, &numbers, &[n, k], None).unwrap();
            let expected = reference::linear(&q, &x, None);
            let weight = Weight::Quantized(q);
            let view = View::of(&weight);
            for (isa, exact) in
                Isa::available().into_iter().flat_map(|isa| [(isa, true), (isa, false)])
            {
                let p = prepare(isa, &view, &x, exact).unwrap();
                let mut yt = vec![0.0; m * n];
                multiply(isa, &p, &mut yt, &Pool::for_work(usize::MAX));
                for (i, expected) in expected.iter().enumerate() {
                    let error = (f64::from(yt[i % n * m + i / n]) - expected).abs();
                    let most = if exact { 1e-6 } else { 1e-4 };
                    assert!(error <= most * k as f64, "{isa:?} {exact} {k}: {error}");
                }
            }
            assert!(prepare(Isa::best(), &view, &vec![f32::INFINITY; k], true).is_none());
        }
    }
}
