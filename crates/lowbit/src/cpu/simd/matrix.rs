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
/// The most parts of a number.
pub(crate) const MOST_PARTS: usize = 3;

/// Parts of the numbers of both factors of a product.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Parts {
    pub a: usize,
    pub b: usize,
}

impl Parts {
    /// The parts of `a` and `b` whose products count: each part is 2^-8 of the one before it, and what
    /// is as small as the first part that is not there is left out.
    pub fn products(self) -> impl Iterator<Item = (usize, usize)> {
        let most = self.a.max(self.b);
        let all = (0..self.b).flat_map(move |j| (0..self.a).map(move |i| (i, j)));
        all.filter(move |(i, j)| i + j < most)
    }
}

/// A machine that multiplies matrices of bfloat16 and adds up in f32.
///
/// Factors of a block's product lie in memory by steps of [`TERMS`] terms, in each the parts, in each part
/// two matrices: `[steps, parts, 2, FACTOR]`. In those of `a` the terms of a row lie together,
/// `[SIDE, TERMS]`; in those of `b` pairs of terms, `[TERMS / 2, SIDE, 2]`.
pub(crate) trait Matrix: Copy {
    /// Splits rows of numbers, whole steps long, into parts: 32 numbers of `x` go to `out[step *
    /// stride..]`, and part `p` of them `p * part_stride` further on. Of numbers that are not finite
    /// all parts but the first are zero.
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

    /// Turns factors `[SIDE, TERMS]` into `[TERMS / 2, SIDE, 2]`, each in its place.
    fn transpose(self, factors: &mut [bf16]);

    /// Adds the product of a block to `c: [BLOCK, BLOCK]`, whose rows lie `stride` apart: the terms of
    /// `steps` steps.
    fn multiply(
        self,
        a: &[bf16],
        b: &[bf16],
        parts: Parts,
        steps: usize,
        c: &mut [f32],
        stride: usize,
    );
}

/// Part after part of a number.
pub(crate) fn part(rest: &mut f32) -> bf16 {
    let part = bf16::from_f32(*rest);
    *rest = if part.is_finite() { *rest - part.to_f32() } else { 0.0 };
    part
}

/// Such a machine in plain Rust: the specification of the others, for tests.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Model;

impl Matrix for Model {
    fn split(self, x: &[f32], parts: usize, out: &mut [bf16], stride: usize, part_stride: usize) {
        for (i, x) in x.iter().enumerate() {
            let mut rest = *x;
            for p in 0..parts {
                out[i / TERMS * stride + p * part_stride + i % TERMS] = part(&mut rest);
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
                let mut rest = *x;
                for p in 0..parts {
                    let at = i / SIDE * stride + p * part_stride;
                    out[at + 2 * (i % SIDE) + row] = part(&mut rest);
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

    fn multiply(
        self,
        a: &[bf16],
        b: &[bf16],
        parts: Parts,
        steps: usize,
        c: &mut [f32],
        stride: usize,
    ) {
        for (i, j) in parts.products() {
            for step in 0..steps {
                let a = &a[(step * parts.a + i) * 2 * FACTOR..][..2 * FACTOR];
                let b = &b[(step * parts.b + j) * 2 * FACTOR..][..2 * FACTOR];
                for (row, a) in a.chunks_exact(TERMS).enumerate() {
                    let c = &mut c[row * stride..][..BLOCK];
                    for (col, c) in c.iter_mut().enumerate() {
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

    fn multiply(self, _: &[bf16], _: &[bf16], _: Parts, _: usize, _: &mut [f32], _: usize) {
        match self {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_parts_are_the_number() {
        for x in [1.0f32, -0.1, 3.141_592_7, 1e-20, -7.7e30, 0.0, 123_456.79] {
            let mut rest = x;
            let sum: f32 = (0..3)
                .rev()
                .map(|_| part(&mut rest).to_f32())
                .collect::<Vec<_>>()
                .iter()
                .rev()
                .sum();
            assert_eq!((sum, rest), (x, 0.0));
        }
        let mut rest = f32::NEG_INFINITY;
        assert_eq!([0; 2].map(|_| part(&mut rest)), [bf16::NEG_INFINITY, bf16::ZERO]);
    }

    #[test]
    fn products_that_count() {
        let products = |a, b| Parts { a, b }.products().collect::<Vec<_>>();
        assert_eq!(products(2, 1), [(0, 0), (1, 0)]);
        assert_eq!(products(2, 2), [(0, 0), (1, 0), (0, 1)]);
        assert_eq!(products(3, 3).len(), 6);
    }
}
