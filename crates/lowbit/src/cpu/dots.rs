//! A few rows of 16-bit activations and weights of five trits a byte, by products of bytes.
//!
//! A weight is `first + step * digit`, where the digit has two bits: tables have those of a code, four and one. A
//! mask leaves one digit of each of 64 codes, where it stands, and one instruction multiplies these by
//! activations and adds four by four. Activations are integers of two bytes, which keeps 16 bits of the largest;
//! sums of integers are exact.

use std::ops::Range;

use super::buffer::Buffer;
use super::dispatch::Isa;
use super::groups::Fields;
use super::integer_tables::{add_means, runs};
use super::lookup::block_sums;
use super::simd::{Simd, Task};
use super::view::{Blocks, Codes, View};
use crate::unrolled::unrolled;

/// Rows of weights that share a look at the activations.
const ROWS: usize = 4;
/// Rows of weights that a thread takes at once.
pub(crate) const ROWS_OF_THREAD: usize = 256;
/// Weights of a code.
const LENGTH: usize = 5;
/// Bits of a digit.
const BITS: usize = 2;
/// Digits of a table.
const PER_TABLE: usize = 4;
/// Bytes of an activation.
const PLANES: usize = 2;
/// Sums of a plane: digits of upper nibbles are brought to where those of lower ones stand, and added to them.
const PLACES: usize = PER_TABLE / 2;

/// Most rows of activations for which this is worth it: each of them looks at all codes.
const MOST: usize = 8;

/// Activations in bytes, and the weight that they are multiplied by.
pub(crate) struct Dots<'a> {
    fields: &'a Fields,
    blocks: &'a Blocks<'a>,
    bytes: &'a [u8],
    row_bytes: usize,
    /// Vectors of a block.
    run: usize,
    n: usize,
    /// `[M]`.
    x: Vec<Row>,
    /// Sums of the activations of each block, for means: `[M, blocks]`.
    sums: Vec<f32>,
}

/// A row of activations.
struct Row {
    /// `[vectors of a row, LENGTH, PLANES, bytes of a vector]`.
    bytes: Buffer<u8>,
    /// What `first` of all weights of a lane adds: `[blocks, LANES]`.
    offsets: Vec<f32>,
    /// What the integers stand for.
    unit: f32,
}

/// Brings the activations `x: [M, K]` to bytes; `None` if the weight has no such digits, or blocks that do not end
/// with a vector, or an activation is not finite.
pub(crate) fn prepare<'a>(isa: Isa, view: &'a View<'a>, x: &[f32]) -> Option<Dots<'a>> {
    let (Codes::Groups(groups), Some(blocks)) = (&view.codes, &view.blocks) else { return None };
    let (fields, g) = (groups.fields.as_deref()?, &blocks.geometry);
    let vector = isa.run(Vector);
    if x.is_empty() || x.len() > MOST * g.k || (groups.length, fields.bits) != (LENGTH, BITS) {
        return None;
    }
    let vectors = g.k.div_ceil(LENGTH).div_ceil(vector);
    let run = if g.block_size >= g.k { vectors } else { g.block_size / LENGTH / vector };
    if run == 0 || (run < vectors && g.block_size % (LENGTH * vector) != 0) {
        return None;
    }
    let mut p = Dots {
        fields,
        blocks,
        bytes: view.bytes,
        row_bytes: g.row_bytes?,
        run,
        n: view.n,
        x: Vec::new(),
        sums: block_sums(x, blocks),
    };
    p.x = x.chunks_exact(g.k).map(|x| isa.run(ToBytes { p: &p, x })).collect::<Option<_>>()?;
    Some(p)
}

/// Bytes of a vector.
pub(super) struct Vector;

impl Task for Vector {
    type Output = usize;
    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> usize {
        16 * S::PARTS
    }
}

/// Activations as integers of so many bytes.
pub(super) struct Integers {
    pub numbers: Vec<i32>,
    /// What 1 stands for.
    pub unit: f32,
}

/// Makes them, of up to three bytes; `None` if a number is not finite, or all are too small for it.
pub(super) struct ToIntegers<'x> {
    pub x: &'x [f32],
    pub bytes: usize,
}

impl Task for ToIntegers<'_> {
    type Output = Option<Integers>;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Option<Integers> {
        let ToIntegers { x, bytes } = self;
        // The last byte has no room for more, the others have some for what rounding adds to that.
        let peak = (127u32 << (8 * (bytes - 1))) as f32;
        let largest = f32::from_bits(s.max_magnitude_bits(x));
        let factor = if largest > 0.0 { peak / largest } else { 0.0 };
        if !largest.is_finite() || !factor.is_finite() {
            return None;
        }
        let mut numbers = vec![0; x.len()];
        for (number, x) in numbers.iter_mut().zip(x) {
            *number = (x * factor).round_ties_even() as i32;
        }
        Some(Integers { numbers, unit: largest / peak })
    }
}

/// The bytes of such an integer, all with a sign, the lowest first.
#[inline(always)]
pub(super) fn bytes_of(integer: i32, bytes: usize) -> impl Iterator<Item = u8> {
    let mut rest = integer;
    (0..bytes).map(move |_| {
        let low = rest as i8;
        rest = (rest - i32::from(low)) >> 8;
        low as u8
    })
}

/// Brings a row of activations to bytes.
struct ToBytes<'a, 'x> {
    p: &'a Dots<'a>,
    x: &'x [f32],
}

impl Task for ToBytes<'_, '_> {
    type Output = Option<Row>;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Option<Row> {
        let ToBytes { p, x } = self;
        let vector = 16 * S::PARTS;
        let Integers { numbers: mut integers, unit } = ToIntegers { x, bytes: PLANES }.run(s)?;
        integers.resize(x.len().next_multiple_of(LENGTH * vector), 0);
        let mut bytes = Buffer::new(PLANES * integers.len(), 0u8);
        let mut offsets = vec![0.0; p.blocks.of_row() * S::LANES];
        let vectors = integers.chunks_exact(LENGTH * vector);
        let vectors = vectors.zip(bytes.chunks_exact_mut(LENGTH * PLANES * vector));
        for (v, (integers, bytes)) in vectors.enumerate() {
            for (i, of_code) in integers.chunks_exact(LENGTH).enumerate() {
                for (place, integer) in of_code.iter().enumerate() {
                    for (plane, byte) in bytes_of(*integer, PLANES).enumerate() {
                        bytes[(place * PLANES + plane) * vector + i] = byte;
                    }
                }
            }
            let offsets = &mut offsets[v / p.run * S::LANES..][..S::LANES];
            for (offset, integers) in offsets.iter_mut().zip(integers.chunks_exact(4 * LENGTH)) {
                *offset += integers.iter().sum::<i32>() as f32 * p.fields.first;
            }
        }
        Some(Row { bytes, offsets, unit })
    }
}

/// Rows `first..` of `yᵀ = w xᵀ`: `y: [rows, M]`.
pub(crate) struct DotRows<'a> {
    pub p: &'a Dots<'a>,
    pub first: usize,
    pub y: &'a mut [f32],
}

impl Task for DotRows<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let DotRows { p, first, y } = self;
        let (vector, m) = (16 * S::PARTS, p.x.len());
        let len = p.row_bytes.next_multiple_of(vector);
        let scales = p.blocks.scales_of::<S, ROWS>(s, first, y.len() / m);
        let mut ends = Vec::new();
        // All rows of w for a row of x, which stays in a first-level cache, before the next one.
        for (i, x) in p.x.iter().enumerate() {
            let groups = y.chunks_mut(ROWS * m).zip(scales.chunks_exact(p.blocks.of_row()));
            for (group, (y, scales)) in groups.enumerate() {
                let first = first + group * ROWS;
                let rows = (first..first + ROWS).map(|row| row.min(p.n - 1) * p.row_bytes);
                let codes: [&[u8]; ROWS] = runs(p.bytes, rows, len, &mut ends);
                let mut totals = [s.splat(0.0); ROWS];
                for (block, scales) in scales.iter().enumerate() {
                    let from = block * p.run;
                    let vectors = from..(from + p.run).min(len / vector);
                    let sums = sum(s, p, x, codes, vectors);
                    let offset = s.load(&x.offsets[block * S::LANES..]);
                    unrolled!(row of ROWS in 0, 1, 2, 3 => {
                        let sum = s.add(sums[row], offset);
                        totals[row] = s.fma(sum, s.splat(scales[row]), totals[row]);
                    });
                }
                for (y, total) in y.chunks_exact_mut(m).zip(totals) {
                    y[i] = s.sum(total) * x.unit;
                }
            }
        }
        add_means(s, p.blocks, first, &p.sums, m, y);
    }
}

/// What digits times `step` of some vectors of rows of codes add up to, by lanes.
#[inline(always)]
fn sum<S: Simd>(
    s: S,
    p: &Dots<'_>,
    x: &Row,
    rows: [&[u8]; ROWS],
    vectors: Range<usize>,
) -> [S::F; ROWS] {
    let vector = 16 * S::PARTS;
    let mut sums = [[[s.no_sums(); PLANES]; PLACES]; ROWS];
    let x = &x.bytes[vectors.start * LENGTH * PLANES * vector..];
    let x = x.chunks_exact(LENGTH * PLANES * vector);
    let rows = rows.map(|row| &row[..vectors.end * vector]);
    let [first, second] = &p.fields.tables[..] else { return [s.splat(0.0); ROWS] };
    for (v, x) in vectors.zip(x) {
        let mut codes = [s.zeros(); ROWS];
        unrolled!(row of ROWS in 0, 1, 2, 3 => {
            // Of the rows that come next.
            s.prefetch(&rows[row][v * vector..], ROWS * p.row_bytes);
            codes[row] = s.load_bytes(&rows[row][v * vector..]);
        });
        let mut found = s.look_up_codes(&first.0, codes);
        unrolled!(i of LENGTH in 0, 1, 2, 3, 4 => {
            if i == PLACES {
                found = found.map(|found| s.shifted_by_four(found));
            } else if i == PER_TABLE {
                found = s.look_up_codes(&second.0, codes);
            }
            let place = i % PLACES;
            let digits = found.map(|found| s.masked(found, 3 << (BITS * place)));
            unrolled!(plane of PLANES in 0, 1 => {
                let x = s.load_bytes(&x[(i * PLANES + plane) * vector..]);
                unrolled!(row of ROWS in 0, 1, 2, 3 => {
                    sums[row][place][plane] = s.dot_bytes(sums[row][place][plane], digits[row], x);
                });
            });
        });
    }
    // Digits of the second place count four times what they are.
    let mut totals = [s.splat(0.0); ROWS];
    unrolled!(row of ROWS in 0, 1, 2, 3 => {
        unrolled!(plane of PLANES in 0, 1 => {
            let weight = if plane == 0 { p.fields.step } else { 256.0 * p.fields.step };
            let [first, second] = sums[row];
            let (first, second) = (s.sums_to_f32(first[plane]), s.sums_to_f32(second[plane]));
            let sum = s.fma(second, s.splat(0.25), first);
            totals[row] = s.fma(sum, s.splat(weight), totals[row]);
        });
    });
    totals
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::Rng;
    use crate::cpu::reference;
    use crate::{Cpu, Weight, formats};

    /// The largest numbers, too, of which one is rounded up.
    #[test]
    fn bytes_of_integers_are_their_digits() {
        for bytes in [2, 3] {
            for largest in (1..2000).map(|i| i as f32 * 1.2345e-3) {
                let x = [largest, -largest, 0.3 * largest, 0.0];
                let Integers { numbers, unit } =
                    Isa::best().run(ToIntegers { x: &x, bytes }).unwrap();
                for (x, number) in x.iter().zip(numbers) {
                    let digits = bytes_of(number, bytes).enumerate();
                    let sum: i32 = digits.map(|(i, byte)| i32::from(byte as i8) << (8 * i)).sum();
                    assert_eq!(sum, number, "{largest} {bytes}");
                    assert!((number as f32 * unit - x).abs() <= unit, "{largest} {bytes}");
                }
            }
        }
    }

    /// On machines that have no such instructions as well: then they are loops.
    #[test]
    fn agree_with_the_specification() {
        let mut rng = Rng(3);
        let t158 = formats::by_name("t158").unwrap();
        for (m, n, k, block_size) in [
            (1, 530, 700, None),
            (1, 6, 960, Some(320)),
            (3, 3, 33, None),
            (1, 9, 1600, Some(160)),
            (8, 11, 960, Some(320)),
        ] {
            let numbers: Vec<f32> = (0..n * k).map(|_| rng.normal()).collect();
            // One of them is far larger than the others.
            let x: Vec<f32> =
                (0..m * k).map(|i| rng.normal() * if i % k == 7 { 30.0 } else { 1.0 }).collect();
            let q = Cpu::best().quantize(t158, &numbers, &[n, k], block_size).unwrap();
            let expected = reference::linear(&q, &x, None);
            let weight = Weight::Quantized(q);
            let view = View::of(&weight);
            for isa in Isa::available() {
                let Some(p) = prepare(isa, &view, &x) else {
                    // Blocks of 32 bytes do not end with longer vectors.
                    assert!(block_size == Some(160) && isa.run(Vector) > 32, "{isa:?}");
                    continue;
                };
                let mut yt = vec![0.0; m * n];
                isa.run(DotRows { p: &p, first: 0, y: &mut yt });
                for (i, expected) in expected.iter().enumerate() {
                    let error = (f64::from(yt[i % n * m + i / n]) - expected).abs();
                    assert!(error < 1e-4 * (k as f64).sqrt() * 30.0, "{isa:?} {k}: {error}");
                }
            }
            assert!(prepare(Isa::best(), &view, &vec![f32::NAN; m * k]).is_none());
        }
    }
}
