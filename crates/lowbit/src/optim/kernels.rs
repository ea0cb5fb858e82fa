//! How each rule goes: a direction and new moments, in vectors; see [`reference`](super::reference).

use super::Coefficients;
use crate::cpu::simd::Simd;

/// A rule, in two parts: the second takes long, and something else may be done between.
pub(super) trait Kernel<const MOMENTS: usize> {
    /// Renews the moments by a gradient. Returns what the direction needs besides.
    fn renew<S: Simd>(s: S, c: &Vectors<S>, g: S::F, m: &mut [S::F; MOMENTS]) -> S::F;
    /// The direction, given what `renew` returned and the new moments.
    fn direction<S: Simd>(s: S, c: &Vectors<S>, from: S::F, m: &[S::F; MOMENTS]) -> S::F;
}

/// `m * decay + share * new`.
#[inline(always)]
fn decayed<S: Simd>(s: S, [decay, share]: [S::F; 2], m: S::F, new: S::F) -> S::F {
    s.add(s.mul(m, decay), s.mul(share, new))
}

/// `m * decay + (share * g) * g`.
#[inline(always)]
fn decayed_square<S: Simd>(s: S, [decay, share]: [S::F; 2], m: S::F, g: S::F) -> S::F {
    s.add(s.mul(m, decay), s.mul(s.mul(share, g), g))
}

pub(super) struct Adam;

impl Kernel<2> for Adam {
    #[inline(always)]
    fn renew<S: Simd>(s: S, c: &Vectors<S>, g: S::F, m: &mut [S::F; 2]) -> S::F {
        m[0] = decayed(s, c.decay[0], m[0], g);
        m[1] = decayed_square(s, c.decay[1], m[1], g);
        g
    }
    #[inline(always)]
    fn direction<S: Simd>(s: S, c: &Vectors<S>, _: S::F, m: &[S::F; 2]) -> S::F {
        s.div(m[0], s.add(s.sqrt(m[1]), c.eps))
    }
}

pub(super) struct AdEmaMix;

impl Kernel<3> for AdEmaMix {
    #[inline(always)]
    fn renew<S: Simd>(s: S, c: &Vectors<S>, g: S::F, m: &mut [S::F; 3]) -> S::F {
        m[0] = decayed(s, c.decay[0], m[0], g);
        m[1] = decayed(s, c.decay[1], m[1], g);
        m[2] = decayed_square(s, c.decay[2], m[2], g);
        g
    }
    #[inline(always)]
    fn direction<S: Simd>(s: S, c: &Vectors<S>, _: S::F, m: &[S::F; 3]) -> S::F {
        let both = s.add(s.mul(m[0], c.mix[0]), s.mul(m[1], c.mix[1]));
        s.div(both, s.add(s.mul(s.sqrt(m[2]), c.root), c.eps))
    }
}

pub(super) struct Lion;

impl Kernel<1> for Lion {
    #[inline(always)]
    fn renew<S: Simd>(s: S, c: &Vectors<S>, g: S::F, m: &mut [S::F; 1]) -> S::F {
        let towards = decayed(s, c.mix, m[0], g);
        m[0] = decayed(s, c.decay[0], m[0], g);
        s.sign(towards)
    }
    #[inline(always)]
    fn direction<S: Simd>(_: S, _: &Vectors<S>, sign: S::F, _: &[S::F; 1]) -> S::F {
        sign
    }
}

pub(super) struct Momentum;

impl Kernel<1> for Momentum {
    #[inline(always)]
    fn renew<S: Simd>(s: S, c: &Vectors<S>, g: S::F, m: &mut [S::F; 1]) -> S::F {
        m[0] = decayed(s, c.decay[0], m[0], g);
        g
    }
    #[inline(always)]
    fn direction<S: Simd>(s: S, c: &Vectors<S>, g: S::F, m: &[S::F; 1]) -> S::F {
        decayed(s, c.mix, m[0], g)
    }
}

/// RMSprop and Adagrad: the gradient by the root of the sum of its squares.
pub(super) struct Squares;

impl Kernel<1> for Squares {
    #[inline(always)]
    fn renew<S: Simd>(s: S, c: &Vectors<S>, g: S::F, m: &mut [S::F; 1]) -> S::F {
        m[0] = decayed(s, c.decay[0], m[0], s.mul(g, g));
        g
    }
    #[inline(always)]
    fn direction<S: Simd>(s: S, c: &Vectors<S>, g: S::F, m: &[S::F; 1]) -> S::F {
        s.div(g, s.add(s.sqrt(m[0]), c.eps))
    }
}

/// [`Coefficients`] in every lane.
pub(super) struct Vectors<S: Simd> {
    pub grad_scale: S::F,
    pub l2: S::F,
    pub before: S::F,
    pub rate: S::F,
    pub after: S::F,
    pub decay: [[S::F; 2]; 3],
    pub mix: [S::F; 2],
    pub root: S::F,
    pub eps: S::F,
}

impl<S: Simd> Vectors<S> {
    #[inline(always)]
    pub fn new(s: S, c: &Coefficients) -> Self {
        let two = |[a, b]: [f32; 2]| [s.splat(a), s.splat(b)];
        Vectors {
            grad_scale: s.splat(c.grad_scale),
            l2: s.splat(c.l2),
            before: s.splat(c.before),
            rate: s.splat(c.rate),
            after: s.splat(c.after),
            decay: [two(c.decay[0]), two(c.decay[1]), two(c.decay[2])],
            mix: two(c.mix),
            root: s.splat(c.root),
            eps: s.splat(c.eps),
        }
    }
}
