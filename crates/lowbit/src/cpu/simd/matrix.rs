//! Machines that multiply small matrices: what such a machine is, and one in plain Rust that shows
//! what they compute.
//!
//! They take bfloat16, eight significant bits. A number is so given as a sum of several, its
//! [parts](Matrix::split): two carry 16 bits, three all 24 of an f32. A product of sums needs only those
//! products of parts that are not smaller than what is left out anyway: [`Parts::products`].

use std::convert::Infallible;

use half::bf16;

/// Rows and columns of a matrix of sums.
pub(crate) const SIDE: usize = 16;
/// Terms of a sum that are added at once.
pub(crate) const TERMS: usize = 32;
/// Numbers of a factor: sixteen rows of `TERMS`, or as many pairs of terms for sixteen columns.
pub(crate) const FACTOR: usize = SIDE * TERMS;
/// Rows and columns of a block of results: two matrices each way, so that each factor is used twice.
pub(crate) const BLOCK: usize = 2 * SIDE;
/// Terms of a sum of products of 8-bit integers that are added at once.
pub(crate) const INT_TERMS: usize = 2 * TERMS;
/// Integers of a factor: as many bytes as those of numbers.
pub(crate) const INT_FACTOR: usize = 2 * FACTOR;
/// Rows of [`Matrix::multiply_few`].
pub(crate) const FEW_ROWS: usize = 4 * SIDE;
/// The most parts of a number.
pub(crate) const MOST_PARTS: usize = 3;

/// Parts of the numbers of both factors of a product.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Parts {
    pub a: usize,
    pub b: usize,
}

impl Parts {
    /// The parts of `a` and `b` whose products count: each part is at most 2^-8 of the one before it, and what
    /// is as small as the first part that is not there is left out. The smallest products come first.
    pub fn products(self) -> impl Iterator<Item = (usize, usize)> {
        let most = self.a.max(self.b);
        let of_sum = move |sum: usize| {
            (0..self.b.min(sum + 1)).map(move |j| (sum - j, j)).filter(move |(i, _)| *i < self.a)
        };
        (0..most).rev().flat_map(of_sum)
    }
}

/// Blocks of columns of a factor, some numbers apart.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Blocks<'a> {
    pub factors: &'a [bf16],
    pub stride: usize,
    pub count: usize,
}

/// Where rows of a product go, `stride` apart.
#[derive(Debug)]
pub(crate) struct Sums<'a> {
    pub numbers: &'a mut [f32],
    pub stride: usize,
    /// Whether it is added to what is there.
    pub adds: bool,
}

/// A machine that multiplies matrices of bfloat16 and adds up in f32.
///
/// Factors of a block's product lie in memory by steps of [`TERMS`] terms, in each the parts, in each part
/// two matrices: `[steps, parts, 2, FACTOR]`. In those of `a` the terms of a row lie together,
/// `[SIDE, TERMS]`; in those of `b` pairs of terms, `[TERMS / 2, SIDE, 2]`.
pub(crate) trait Matrix: Copy {
    /// Splits rows of numbers, whole steps long, into parts: 32 numbers of `x`, the first 16 and the last
    /// in turn, which is the order of terms of either factor, go to `out[step *
    /// stride..]`, and part `p` of them `p * part_stride` further on.
    fn split(self, x: &[f32], parts: usize, out: &mut [bf16], stride: usize, part_stride: usize);

    /// The same of two rows of numbers, whose numbers alternate: 16 of each go to `out[i * stride..]`.
    fn split_pair(
        self,
        x: [&[f32]; 2],
        parts: usize,
        out: &mut [bf16],
        stride: usize,
        part_stride: usize,
    );

    /// Turns factors `[SIDE, TERMS]` into `[TERMS / 2, SIDE, 2]`, each in its place; so those of integers,
    /// where fours of terms stay together.
    fn transpose(self, factors: &mut [bf16]);

    /// `c = a b` or `c += a b`, `c: [BLOCK, blocks * BLOCK]`: the terms of `steps` steps, the
    /// smallest products first, as each addition is rounded to what there is already.
    fn multiply(self, a: &[bf16], b: Blocks<'_>, parts: Parts, steps: usize, c: Sums<'_>);

    /// `c = a b`, `c: [FEW_ROWS, SIDE]`, of two steps: in `a: [parts, FEW_ROWS, 2 * TERMS]` rows lie as a
    /// whole, `b` is `[parts, 2, FACTOR]`.
    fn multiply_few(self, a: &[bf16], b: &[bf16], parts: Parts, c: &mut [f32]);

    /// The same for integers and one block: `a, b: [steps, 2, INT_FACTOR]`, `c: [BLOCK, BLOCK]`. Exact, modulo 2^32.
    fn multiply_ints(self, a: &[i8], b: &[i8], steps: usize, c: &mut [i32]);

    /// [`multiply`](Self::multiply) for the first `SIDE` rows of `a`: `c: [SIDE, blocks * BLOCK]`. Blocks are taken
    /// two at a time, so there is an even number of them.
    fn multiply_narrow(self, a: &[bf16], b: Blocks<'_>, parts: Parts, steps: usize, c: Sums<'_>);
}

/// The parts of a number: its upper 16 bits, then those of what is left, the last of them rounded.
/// Infinity and NaN leave NaN.
fn parts(x: f32, count: usize) -> [bf16; MOST_PARTS] {
    let (mut out, mut rest) = ([bf16::ZERO; MOST_PARTS], x);
    for (p, out) in out.iter_mut().enumerate().take(count) {
        let bits = rest.to_bits();
        let bits = if p + 1 < count { bits } else { bits.wrapping_add(0x8000) };
        *out = bf16::from_bits((bits >> 16) as u16);
        rest -= out.to_f32();
    }
    out
}

/// Such a machine in plain Rust: the specification of the others, for tests.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Model;

impl Matrix for Model {
    fn split(self, x: &[f32], parts: usize, out: &mut [bf16], stride: usize, part_stride: usize) {
        for (i, x) in x.iter().enumerate() {
            for (p, part) in self::parts(*x, parts).into_iter().enumerate().take(parts) {
                let at = i / TERMS * stride + p * part_stride;
                out[at + 2 * (i % SIDE) + i % TERMS / SIDE] = part;
            }
        }
    }

    fn split_pair(
        self,
        x: [&[f32]; 2],
        parts: usize,
        out: &mut [bf16],
        stride: usize,
        part_stride: usize,
    ) {
        for (row, x) in x.into_iter().enumerate() {
            for (i, x) in x.iter().enumerate() {
                for (p, part) in self::parts(*x, parts).into_iter().enumerate().take(parts) {
                    out[i / SIDE * stride + p * part_stride + 2 * (i % SIDE) + row] = part;
                }
            }
        }
    }

    fn transpose(self, factors: &mut [bf16]) {
        for factor in factors.chunks_exact_mut(FACTOR) {
            let rows = factor.to_vec();
            for (i, v) in rows.into_iter().enumerate() {
                let (row, term) = (i / TERMS, i % TERMS);
                factor[term / 2 * TERMS + 2 * row + term % 2] = v;
            }
        }
    }

    fn multiply(self, a: &[bf16], b: Blocks<'_>, parts: Parts, steps: usize, c: Sums<'_>) {
        self.multiply_rows(a, b, parts, steps, c, BLOCK);
    }

    fn multiply_few(self, a: &[bf16], b: &[bf16], parts: Parts, c: &mut [f32]) {
        c.fill(0.0);
        for (i, j) in parts.products() {
            let (a, b) = (&a[i * FEW_ROWS * 2 * TERMS..], &b[j * 2 * FACTOR..]);
            for (a, c) in a.chunks_exact(2 * TERMS).zip(c.chunks_exact_mut(SIDE)) {
                for (col, c) in c.iter_mut().enumerate() {
                    for (term, a) in a.iter().enumerate() {
                        *c += a.to_f32() * b[term / 2 * TERMS + 2 * col + term % 2].to_f32();
                    }
                }
            }
        }
    }

    fn multiply_ints(self, a: &[i8], b: &[i8], steps: usize, c: &mut [i32]) {
        c.fill(0);
        let steps = a.chunks(2 * INT_FACTOR).zip(b.chunks(2 * INT_FACTOR)).take(steps);
        for (a, b) in steps {
            for (a, c) in a.chunks_exact(INT_TERMS).zip(c.chunks_exact_mut(BLOCK)) {
                for (col, c) in c.iter_mut().enumerate() {
                    let b = &b[col / SIDE * INT_FACTOR + 4 * (col % SIDE)..];
                    for (term, a) in a.iter().enumerate() {
                        let b = b[term / 4 * INT_TERMS + term % 4];
                        *c = c.wrapping_add(i32::from(*a) * i32::from(b));
                    }
                }
            }
        }
    }

    fn multiply_narrow(self, a: &[bf16], b: Blocks<'_>, parts: Parts, steps: usize, c: Sums<'_>) {
        self.multiply_rows(a, b, parts, steps, c, SIDE);
    }
}

impl Model {
    fn multiply_rows(
        self,
        a: &[bf16],
        b: Blocks<'_>,
        parts: Parts,
        steps: usize,
        sums: Sums<'_>,
        rows: usize,
    ) {
        for (row, c) in sums.numbers.chunks_mut(sums.stride).take(rows).enumerate() {
            let c = &mut c[..b.count * BLOCK];
            if !sums.adds {
                c.fill(0.0);
            }
            for (i, j) in parts.products() {
                for step in 0..steps {
                    let a = &a[(step * parts.a + i) * 2 * FACTOR + row * TERMS..][..TERMS];
                    for (col, c) in c.iter_mut().enumerate() {
                        let b = &b.factors[col / BLOCK * b.stride..];
                        let b = &b[(step * parts.b + j) * 2 * FACTOR..][..2 * FACTOR];
                        let col = col % BLOCK;
                        let b = &b[col / SIDE * FACTOR + 2 * (col % SIDE)..];
                        for (term, a) in a.iter().enumerate() {
                            *c += a.to_f32() * b[term / 2 * TERMS + term % 2].to_f32();
                        }
                    }
                }
            }
        }
    }
}

/// Where there is no such machine.
impl Matrix for Infallible {
    fn split(self, _: &[f32], _: usize, _: &mut [bf16], _: usize, _: usize) {
        match self {}
    }

    fn split_pair(self, _: [&[f32]; 2], _: usize, _: &mut [bf16], _: usize, _: usize) {
        match self {}
    }

    fn transpose(self, _: &mut [bf16]) {
        match self {}
    }

    fn multiply(self, _: &[bf16], _: Blocks<'_>, _: Parts, _: usize, _: Sums<'_>) {
        match self {}
    }

    fn multiply_few(self, _: &[bf16], _: &[bf16], _: Parts, _: &mut [f32]) {
        match self {}
    }

    fn multiply_ints(self, _: &[i8], _: &[i8], _: usize, _: &mut [i32]) {
        match self {}
    }

    fn multiply_narrow(self, _: &[bf16], _: Blocks<'_>, _: Parts, _: usize, _: Sums<'_>) {
        match self {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_add_up() {
        for x in [1.0f32, -0.1, 0.577_215_7, 1e-20, -7.7e30, 0.0, 123_456.79] {
            let sum = |count| parts(x, count).iter().rev().map(|part| part.to_f32()).sum::<f32>();
            assert_eq!(sum(3), x);
            assert!((sum(2) - x).abs() <= x.abs() * 2f32.powi(-16), "{x}: {}", sum(2));
        }
        for x in [f32::INFINITY, f32::NAN] {
            assert!(parts(x, 2)[1].is_nan());
        }
    }

    #[test]
    fn products_that_count() {
        let products = |a, b| Parts { a, b }.products().collect::<Vec<_>>();
        assert_eq!(products(2, 1), [(1, 0), (0, 0)]);
        assert_eq!(products(2, 2), [(1, 0), (0, 1), (0, 0)]);
        assert_eq!(products(1, 3), [(0, 2), (0, 1), (0, 0)]);
        assert_eq!(products(3, 3).len(), 6);
    }
}
