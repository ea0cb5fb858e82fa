//! The one pass over parameter, gradient and moments, on all threads.

use std::marker::PhantomData;

use rayon::prelude::*;

use super::kernels::{AdEmaMix, Adam, Kernel, Lion, Momentum, Squares, Vectors};
use super::rule::Coefficients;
use super::state::front;
use super::{BLOCK_SIZE, Map, Moment, Rule};
use crate::cpu::Isa;
use crate::cpu::convert::{narrow, widen};
use crate::cpu::reference::Scaling;
use crate::cpu::simd::{Simd, Task};
use crate::{DType, Element};

/// Parameters of a piece of work: whole blocks, and long enough for the memory to run ahead.
const PIECE: usize = 1 << 16;

/// A step, or what is asked of one in advance; everything fits.
pub(super) struct Pass<'a> {
    pub isa: Isa,
    pub rule: Rule,
    pub c: &'a Coefficients,
}

impl Pass<'_> {
    /// Takes the step.
    pub fn update<T: Element>(&self, p: &mut [T], g: &[T], moments: &mut [Moment<'_>]) {
        self.run::<T, false>(p, g, moments);
    }

    /// The norms of direction and parameter before the step; nothing is changed.
    pub fn norms<T: Element>(&self, p: &mut [T], g: &[T], moments: &mut [Moment<'_>]) -> [f64; 2] {
        self.run::<T, true>(p, g, moments).map(f64::sqrt)
    }

    fn run<T: Element, const NORMS: bool>(
        &self,
        p: &mut [T],
        g: &[T],
        moments: &mut [Moment<'_>],
    ) -> [f64; 2] {
        match self.rule {
            Rule::Adam => self.pieces::<T, Adam, 2, NORMS>(p, g, moments),
            Rule::AdEmaMix => self.pieces::<T, AdEmaMix, 3, NORMS>(p, g, moments),
            Rule::Lion => self.pieces::<T, Lion, 1, NORMS>(p, g, moments),
            Rule::Momentum => self.pieces::<T, Momentum, 1, NORMS>(p, g, moments),
            Rule::RmsProp | Rule::Adagrad => self.pieces::<T, Squares, 1, NORMS>(p, g, moments),
        }
    }

    /// The pass; the sums of squares of direction and parameter, if these are asked for.
    fn pieces<T: Element, K: Kernel<N>, const N: usize, const NORMS: bool>(
        &self,
        p: &mut [T],
        g: &[T],
        moments: &mut [Moment<'_>],
    ) -> [f64; 2] {
        let alone = p.len() <= PIECE;
        let (mut p, mut moments) = (p, Vec::from_iter(moments.iter_mut().map(Moment::reborrow)));
        let mut pieces = Vec::with_capacity(g.len().div_ceil(PIECE));
        for g in g.chunks(PIECE) {
            let moments = std::array::from_fn(|i| moments[i].take_front(g.len()));
            let maps = std::array::from_fn(|i| self.rule.moments()[i]);
            pieces.push(Piece { p: front(&mut p, g.len()), g, moments, maps, c: self.c });
        }
        let task = |piece: Piece<'_, T, N>| self.isa.run(Run::<T, K, N, NORMS>(piece, PhantomData));
        // Added in order, so that the number of threads does not matter.
        let squares: Vec<[f64; 2]> = if alone {
            pieces.into_iter().map(task).collect()
        } else {
            pieces.into_par_iter().map(task).collect()
        };
        squares.iter().fold([0.0; 2], |sum, s| [sum[0] + s[0], sum[1] + s[1]])
    }
}

/// Some blocks of a parameter, with their gradient and moments.
struct Piece<'a, T, const N: usize> {
    p: &'a mut [T],
    g: &'a [T],
    moments: [Moment<'a>; N],
    maps: [&'static Map; N],
    c: &'a Coefficients,
}

struct Run<'a, T, K, const N: usize, const NORMS: bool>(Piece<'a, T, N>, PhantomData<K>);

/// A block of a moment in f32, padded with zeros.
#[derive(Clone, Copy)]
struct Numbers {
    m: [f32; BLOCK_SIZE],
    /// Factor of `m` that the update applies.
    scale: f32,
}

const ZEROS: Numbers = Numbers { m: [0.0; BLOCK_SIZE], scale: 0.0 };

impl<T: Element, K: Kernel<N>, const N: usize, const NORMS: bool> Task for Run<'_, T, K, N, NORMS> {
    type Output = [f64; 2];
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> [f64; 2] {
        let Piece { p, g, mut moments, maps, c } = self.0;
        let c = Vectors::new(s, c);
        let finite = moments.iter().all(Moment::is_8bit);
        let mut squares = [0.0; 2];
        let (mut wide_p, mut wide_g) = (ZEROS.m, ZEROS.m);
        let mut numbers = [ZEROS; N];
        for (p, g) in p.chunks_mut(BLOCK_SIZE).zip(g.chunks(BLOCK_SIZE)) {
            let len = p.len();
            if len < BLOCK_SIZE {
                (wide_p, wide_g, numbers) = (ZEROS.m, ZEROS.m, [ZEROS; N]);
            }
            let mut moments: [Moment<'_>; N] = std::array::from_fn(|i| moments[i].take_front(len));
            for ((numbers, moment), map) in numbers.iter_mut().zip(&moments).zip(maps) {
                numbers.load(s, moment, map);
            }
            if T::DTYPE == DType::F32 && len == BLOCK_SIZE && !NORMS {
                let (p, g) = (bytemuck::cast_slice_mut(p), bytemuck::cast_slice(g));
                update::<S, K, N, NORMS>(s, &c, finite, p, g, &mut numbers);
            } else {
                widen(s, p, &mut wide_p);
                widen(s, g, &mut wide_g);
                squares[1] += if NORMS { sum_of_squares(&wide_p) } else { 0.0 };
                update::<S, K, N, NORMS>(s, &c, finite, &mut wide_p, &wide_g, &mut numbers);
                if NORMS {
                    // Zeros that pad may have a direction of 0 / 0.
                    wide_p[len..].fill(0.0);
                    squares[0] += sum_of_squares(&wide_p);
                    continue;
                }
                narrow(s, &wide_p, p);
            }
            for ((numbers, moment), map) in numbers.iter_mut().zip(&mut moments).zip(maps) {
                numbers.store(s, moment, map);
            }
        }
        squares
    }
}

/// The step of a block in f32; or, for norms, its direction in place of the parameter. With
/// `finite`, numbers that spoil a moment are left out.
#[inline(always)]
fn update<S: Simd, K: Kernel<N>, const N: usize, const NORMS: bool>(
    s: S,
    c: &Vectors<S>,
    finite: bool,
    p: &mut [f32],
    g: &[f32],
    numbers: &mut [Numbers; N],
) {
    let (p, g) = (&mut p[..BLOCK_SIZE], &g[..BLOCK_SIZE]);
    for at in (0..BLOCK_SIZE).step_by(S::LANES) {
        let old = s.load(&p[at..]);
        let g = s.add(s.mul(s.load(&g[at..]), c.grad_scale), s.mul(old, c.l2));
        let mut m = [s.splat(0.0); N];
        for (m, from) in m.iter_mut().zip(&*numbers) {
            *m = s.mul(s.load(&from.m[at..]), s.splat(from.scale));
        }
        let direction = K::direction(s, c, g, &mut m);
        if NORMS {
            s.store(direction, &mut p[at..]);
            continue;
        }
        let mut new = s.mul(s.add(s.mul(old, c.before), s.mul(direction, c.rate)), c.after);
        if finite {
            let mut sum = m[0];
            for m in &m[1..] {
                sum = s.add(sum, *m);
            }
            new = s.if_finite(sum, new, old);
            for m in &mut m {
                *m = s.if_finite(sum, *m, s.splat(0.0));
            }
        }
        s.store(new, &mut p[at..]);
        for (m, to) in m.into_iter().zip(&mut *numbers) {
            s.store(m, &mut to.m[at..]);
        }
    }
}

impl Numbers {
    #[inline(always)]
    fn load<S: Simd>(&mut self, s: S, from: &Moment<'_>, map: &Map) {
        match from {
            Moment::F32(numbers) => {
                self.m[..numbers.len()].copy_from_slice(numbers);
                self.scale = 1.0;
            }
            Moment::Bits8 { codes, absmax } => {
                self.scale = absmax[0];
                let step = 4 * S::LANES;
                let whole = codes.len() / step * step;
                let chunks = codes[..whole].chunks_exact(step);
                for (codes, to) in chunks.zip(self.m.chunks_exact_mut(step)) {
                    let four = s.decode_bytes(map.values, codes);
                    for (v, to) in four.into_iter().zip(to.chunks_exact_mut(S::LANES)) {
                        s.store(v, to);
                    }
                }
                for (code, to) in codes[whole..].iter().zip(&mut self.m[whole..]) {
                    *to = map.values[usize::from(*code)];
                }
            }
        }
    }

    #[inline(always)]
    fn store<S: Simd>(&mut self, s: S, to: &mut Moment<'_>, map: &Map) {
        let m = &mut self.m;
        match to {
            Moment::F32(numbers) => numbers.copy_from_slice(&m[..numbers.len()]),
            Moment::Bits8 { codes, absmax } => {
                absmax[0] = f32::from_bits(s.max_magnitude_bits(m));
                let scaling = Scaling::new(map.format(), absmax[0]);
                let (len, step) = (codes.len(), 4 * S::LANES);
                let whole = if scaling.is_one_product() { len / step * step } else { 0 };
                for (m, code) in m[whole..].iter().zip(&mut codes[whole..]) {
                    *code = map.encoder.encode(scaling.apply(*m));
                }
                let (factor, zero) = (s.splat(scaling.factor), s.splat(0.0));
                let chunks = m[..whole].chunks_exact_mut(step);
                for (m, codes) in chunks.zip(codes.chunks_exact_mut(step)) {
                    for m in m.chunks_exact_mut(S::LANES) {
                        // Adding turns -0 to 0.
                        s.store(s.add(s.mul(s.load(m), factor), zero), m);
                    }
                    s.encode_cells(&map.cells, m, codes);
                }
            }
        }
    }
}

/// In f64, in an order that no instruction set changes.
fn sum_of_squares(numbers: &[f32; BLOCK_SIZE]) -> f64 {
    let mut sums = [0.0f64; 8];
    for eight in numbers.chunks_exact(8) {
        for (sum, v) in sums.iter_mut().zip(eight) {
            *sum += f64::from(*v) * f64::from(*v);
        }
    }
    sums.iter().sum()
}
