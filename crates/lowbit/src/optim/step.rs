//! The one pass over parameter, gradient and moments, on all threads.

use std::marker::PhantomData;
use std::ops::Range;

use super::kept::{self, Block, Kept, store};
use super::kernels::{AdEmaMix, Adam, Kernel, Lion, Momentum, Squares, Vectors};
use super::state::front;
use super::{BLOCK_SIZE, Coefficients, Moment, Rule};
use crate::cpu::Isa;
use crate::cpu::convert::{narrow, widen};
use crate::cpu::simd::{Simd, Task};
use crate::unrolled::unrolled;
use crate::{DType, Element, threads};

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
            Rule::Adam => self.pass::<T, Adam, 2, NORMS>(p, g, moments),
            Rule::AdEmaMix => self.pass::<T, AdEmaMix, 3, NORMS>(p, g, moments),
            Rule::Lion => self.pass::<T, Lion, 1, NORMS>(p, g, moments),
            Rule::Momentum => self.pass::<T, Momentum, 1, NORMS>(p, g, moments),
            Rule::RmsProp | Rule::Adagrad => self.pass::<T, Squares, 1, NORMS>(p, g, moments),
        }
    }

    /// The pass, over moments of either width.
    fn pass<T: Element, K: Kernel<N>, const N: usize, const NORMS: bool>(
        &self,
        p: &mut [T],
        g: &[T],
        moments: &mut [Moment<'_>],
    ) -> [f64; 2] {
        if let Some(codes) = kept::codes::<N>(moments, self.rule.moments()) {
            self.pieces::<T, K, _, N, NORMS>(p, g, codes)
        } else if let Some(numbers) = kept::numbers::<N>(moments) {
            self.pieces::<T, K, _, N, NORMS>(p, g, numbers)
        } else {
            [0.0; 2] // `check` lets no others through.
        }
    }

    /// The sums of squares of direction and parameter, if these are asked for.
    fn pieces<T: Element, K: Kernel<N>, M: Kept, const N: usize, const NORMS: bool>(
        &self,
        p: &mut [T],
        g: &[T],
        mut moments: [M; N],
    ) -> [f64; 2] {
        let alone = p.len() <= PIECE;
        let mut p = p;
        let mut pieces = Vec::with_capacity(g.len().div_ceil(PIECE));
        for g in g.chunks(PIECE) {
            let moments = moments.each_mut().map(|moment| moment.take_front(g.len()));
            pieces.push(Piece { p: front(&mut p, g.len()), g, moments, c: self.c });
        }
        let task =
            |piece: Piece<'_, T, M, N>| self.isa.run(Run::<T, K, M, N, NORMS>(piece, PhantomData));
        // Added in order, so that the number of threads does not matter.
        let mut squares = vec![[0.0; 2]; pieces.len()];
        let pieces = pieces.into_iter().zip(&mut squares);
        let task = |(piece, squares): (_, &mut [f64; 2])| *squares = task(piece);
        if alone {
            pieces.for_each(task)
        } else {
            threads::for_each(pieces, task)
        }
        squares.iter().fold([0.0; 2], |sum, s| [sum[0] + s[0], sum[1] + s[1]])
    }
}

/// Some blocks of a parameter, with their gradient and moments.
struct Piece<'a, T, M, const N: usize> {
    p: &'a mut [T],
    g: &'a [T],
    moments: [M; N],
    c: &'a Coefficients,
}

struct Run<'a, T, K, M, const N: usize, const NORMS: bool>(Piece<'a, T, M, N>, PhantomData<K>);

/// Numbers that are asked for ahead: two blocks, since no prefetcher of a processor crosses pages.
pub(super) const AHEAD: usize = 2 * BLOCK_SIZE;

const ZEROS: Block = [0.0; BLOCK_SIZE];

impl<T: Element, K: Kernel<N>, M: Kept, const N: usize, const NORMS: bool> Task
    for Run<'_, T, K, M, N, NORMS>
{
    type Output = [f64; 2];
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> [f64; 2] {
        let Piece { p, g, mut moments, c } = self.0;
        let c = Vectors::new(s, c);
        let mut squares = [0.0; 2];
        let (mut wide_p, mut wide_g) = (ZEROS, ZEROS);
        // Moments of this block, and those of the one before, which get their codes beside this one's
        // step: divisions and roots leave time for it, but wait for each other within a block.
        let (mut blocks, mut before) = (&mut [ZEROS; N], &mut [ZEROS; N]);
        let mut pending = [const { None }; N];
        for (p, g) in p.chunks_mut(BLOCK_SIZE).zip(g.chunks(BLOCK_SIZE)) {
            let len = p.len();
            let mut moments = moments.each_mut().map(|moment| moment.take_front(len));
            let largest;
            if T::DTYPE == DType::F32 && len == BLOCK_SIZE && !NORMS {
                let (p, g) = (bytemuck::cast_slice_mut(p), bytemuck::cast_slice(g));
                // The constant leaves no code for what is less than four vectors.
                let kept = (&mut moments, &mut *blocks, &mut pending, &*before);
                largest = update::<S, K, M, N, NORMS>(s, &c, BLOCK_SIZE, p, g, kept);
            } else {
                if len < BLOCK_SIZE {
                    (wide_p, wide_g) = (ZEROS, ZEROS);
                }
                widen(s, p, &mut wide_p);
                widen(s, g, &mut wide_g);
                squares[1] += if NORMS { sum_of_squares(&wide_p) } else { 0.0 };
                let kept = (&mut moments, &mut *blocks, &mut pending, &*before);
                largest = update::<S, K, M, N, NORMS>(s, &c, len, &mut wide_p, &wide_g, kept);
                if NORMS {
                    // Zeros that pad may have a direction of 0 / 0.
                    wide_p[len..].fill(0.0);
                    squares[0] += sum_of_squares(&wide_p);
                    continue;
                }
                narrow(s, &wide_p, p);
            }
            (blocks, before) = (before, blocks);
            for ((pending, moment), largest) in pending.iter_mut().zip(moments).zip(largest) {
                *pending = Some(moment.scaled(s, largest));
            }
        }
        encode::<S, M, N>(s, 0..BLOCK_SIZE, &mut pending, before);
        squares
    }
}

/// The step of a block in f32; or, for norms, its direction in place of the parameter. `p` and `g`
/// may be longer than the moments, up to the next multiple of `4 * LANES`. Returns each moment's largest
/// magnitudes, if those share a scale.
#[inline(always)]
fn update<S: Simd, K: Kernel<N>, M: Kept, const N: usize, const NORMS: bool>(
    s: S,
    c: &Vectors<S>,
    len: usize,
    p: &mut [f32],
    g: &[f32],
    mut kept: Moments<'_, M, N>,
) -> [S::F; N] {
    let step = 4 * S::LANES;
    let whole = len / step * step;
    let mut largest = [s.splat(0.0); N];
    for at in (0..whole).step_by(step) {
        let (p, g) = (&mut p[at..at + step], &g[at..at + step]);
        four::<S, K, M, N, NORMS, true>(s, c, at, p, g, &mut kept, &mut largest);
    }
    let mut rest = whole;
    if whole < len {
        let (p, g) = (&mut p[whole..whole + step], &g[whole..whole + step]);
        four::<S, K, M, N, NORMS, false>(s, c, whole, p, g, &mut kept, &mut largest);
        rest += step;
    }
    let (_, _, pending, before) = kept;
    encode::<S, M, N>(s, rest..BLOCK_SIZE, pending, before);
    largest
}

/// Moments, what they become in this block, and what they became in the one before, which awaits codes.
type Moments<'a, M, const N: usize> =
    (&'a mut [M; N], &'a mut [Block; N], &'a mut Pending<M, N>, &'a [Block; N]);
type Pending<M, const N: usize> = [Option<<M as Kept>::Pending>; N];

/// Gives these numbers of a block their codes, a multiple of `4 * LANES`.
#[inline(always)]
fn encode<S: Simd, M: Kept, const N: usize>(
    s: S,
    range: Range<usize>,
    pending: &mut Pending<M, N>,
    blocks: &[Block; N],
) {
    for at in range.step_by(4 * S::LANES) {
        unrolled!(i of N in 0, 1, 2 => {
            if let Some(pending) = &mut pending[i] {
                M::encode(s, pending, at, &blocks[i]);
            }
        });
    }
}

/// The same of four vectors, at that place of the block. Moments are read and written where they
/// are kept: what decodes them then runs beside the divisions, and what they are in f32 need not
/// pass through memory.
#[inline(always)]
fn four<S: Simd, K: Kernel<N>, M: Kept, const N: usize, const NORMS: bool, const WHOLE: bool>(
    s: S,
    c: &Vectors<S>,
    at: usize,
    p: &mut [f32],
    g: &[f32],
    (moments, blocks, pending, before): &mut Moments<'_, M, N>,
    largest: &mut [S::F; N],
) {
    let zero = s.splat(0.0);
    let mut fours = [[zero; 4]; N];
    unrolled!(i of N in 0, 1, 2 => { fours[i] = moments[i].load::<S, WHOLE>(s, at) });
    let mut from = [zero; 4];
    for (v, (p, g)) in p.chunks_exact(S::LANES).zip(g.chunks_exact(S::LANES)).enumerate() {
        s.prefetch(bytemuck::cast_slice(p), AHEAD * size_of::<f32>());
        s.prefetch(bytemuck::cast_slice(g), AHEAD * size_of::<f32>());
        let g = s.add(s.mul(s.load(g), c.grad_scale), s.mul(s.load(p), c.l2));
        let mut m = [zero; N];
        unrolled!(i of N in 0, 1, 2 => { m[i] = fours[i][v] });
        from[v] = K::renew(s, c, g, &mut m);
        unrolled!(i of N in 0, 1, 2 => { fours[i][v] = m[i] });
    }
    if !NORMS {
        unrolled!(i of N in 0, 1, 2 => { moments[i].store::<S, WHOLE>(s, at, fours[i], &mut blocks[i]) });
        // Divisions wait for what was just worked out, and nothing of this does.
        encode::<S, M, N>(s, at..at + 4 * S::LANES, pending, before);
        // From memory, as no vector outlives what may be a call.
        unrolled!(i of N in 0, 1, 2 => { fours[i] = moments[i].renewed::<S, WHOLE>(s, at, &blocks[i]) });
    }
    let mut new = [zero; 4];
    for (v, p) in p.chunks_exact(S::LANES).enumerate() {
        let mut m = [zero; N];
        unrolled!(i of N in 0, 1, 2 => { m[i] = fours[i][v] });
        let direction = K::direction(s, c, from[v], &m);
        new[v] = if NORMS {
            direction
        } else {
            s.mul(s.add(s.mul(s.load(p), c.before), s.mul(direction, c.rate)), c.after)
        };
    }
    if M::SHARES_SCALE && !NORMS {
        let mut most = largest_of(s, &fours);
        let mut of_all = zero;
        unrolled!(i of N in 0, 1, 2 => { of_all = s.max_magnitude(of_all, most[i]) });
        // Four times what is larger than each of three moments: their sum is then finite.
        if !s.all_finite(s.mul(of_all, s.splat(4.0))) {
            // A number that would spoil those beside it is left out.
            for (v, old) in p.chunks_exact(S::LANES).enumerate() {
                let mut sum = fours[0][v];
                for four in &fours[1..] {
                    sum = s.add(sum, four[v]);
                }
                new[v] = s.if_finite(sum, new[v], s.load(old));
                for four in &mut fours {
                    four[v] = s.if_finite(sum, four[v], zero);
                }
            }
            unrolled!(i of N in 0, 1, 2 => {
                moments[i].store::<S, WHOLE>(s, at, fours[i], &mut blocks[i]);
            });
            most = largest_of(s, &fours);
        }
        unrolled!(i of N in 0, 1, 2 => { largest[i] = s.max_magnitude(largest[i], most[i]) });
    }
    store(s, new, p);
}

/// The largest magnitudes of each.
#[inline(always)]
fn largest_of<S: Simd, const N: usize>(s: S, fours: &[[S::F; 4]; N]) -> [S::F; N] {
    let mut largest = [s.splat(0.0); N];
    unrolled!(i of N in 0, 1, 2 => {
        for four in fours[i] {
            largest[i] = s.max_magnitude(largest[i], four);
        }
    });
    largest
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
