//! Moments as the pass reads and writes them, one type for each way of keeping them.

use super::state::front;
use super::step::AHEAD;
use super::{BLOCK_SIZE, Map, Moment};
use crate::cpu::reference::Scaling;
use crate::cpu::simd::{MOST_LANES, Simd};

/// A block in f32, on its way to codes.
pub(super) type Block = [f32; BLOCK_SIZE];

/// A moment, or some blocks of it. Positions are within one block.
pub(super) trait Kept: Send + Sized {
    /// Whether a number that is not finite would spoil those beside it.
    const SHARES_SCALE: bool;
    /// Takes the first `len` numbers off, whole blocks or all.
    fn take_front(&mut self, len: usize) -> Self;
    /// `4 * LANES` numbers from `at` on; unless `WHOLE`, zeros past the end.
    fn load<S: Simd, const WHOLE: bool>(&self, s: S, at: usize) -> [S::F; 4];
    /// Keeps as many there, or in `block` if a scale is needed first; unless `WHOLE`, none past the end.
    fn store<S: Simd, const WHOLE: bool>(
        &mut self,
        s: S,
        at: usize,
        m: [S::F; 4],
        block: &mut Block,
    );
    /// What `store` kept, at that place.
    fn renewed<S: Simd, const WHOLE: bool>(&self, s: S, at: usize, block: &Block) -> [S::F; 4];
    /// A block that awaits its codes.
    type Pending;
    /// Takes note of the scale of a block, given the largest magnitudes in it.
    fn scaled<S: Simd>(self, s: S, largest: S::F) -> Self::Pending;
    /// Codes of `4 * LANES` of these from `at` on, or of as many as there are.
    fn encode<S: Simd>(s: S, pending: &mut Self::Pending, at: usize, block: &Block);
}

impl Kept for &mut [f32] {
    const SHARES_SCALE: bool = false;

    #[inline(always)]
    fn take_front(&mut self, len: usize) -> Self {
        front(self, len)
    }

    #[inline(always)]
    fn load<S: Simd, const WHOLE: bool>(&self, s: S, at: usize) -> [S::F; 4] {
        if WHOLE { load(s, &self[at..]) } else { load(s, &padded(&self[at..], 0.0)) }
    }

    #[inline(always)]
    fn store<S: Simd, const WHOLE: bool>(&mut self, s: S, at: usize, m: [S::F; 4], _: &mut Block) {
        let to = &mut self[at..];
        if WHOLE {
            return store(s, m, to);
        }
        let mut more = [0.0; 4 * MOST_LANES];
        store(s, m, &mut more);
        to.copy_from_slice(&more[..to.len()]);
    }

    #[inline(always)]
    fn renewed<S: Simd, const WHOLE: bool>(&self, s: S, at: usize, _: &Block) -> [S::F; 4] {
        self.load::<S, WHOLE>(s, at)
    }

    type Pending = ();
    #[inline(always)]
    fn scaled<S: Simd>(self, _: S, _: S::F) {}
    #[inline(always)]
    fn encode<S: Simd>(_: S, (): &mut (), _: usize, _: &Block) {}
}

/// A moment in 8 bits.
pub(super) struct Codes<'a> {
    codes: &'a mut [u8],
    absmax: &'a mut [f32],
    map: &'static Map,
}

/// A block of it whose codes are still to be found.
pub(super) struct Pending<'a> {
    codes: &'a mut [u8],
    map: &'static Map,
    scaling: Scaling,
}

impl<'a> Kept for Codes<'a> {
    const SHARES_SCALE: bool = true;

    #[inline(always)]
    fn take_front(&mut self, len: usize) -> Self {
        let absmax = front(&mut self.absmax, len.div_ceil(BLOCK_SIZE));
        Codes { codes: front(&mut self.codes, len), absmax, map: self.map }
    }

    #[inline(always)]
    fn load<S: Simd, const WHOLE: bool>(&self, s: S, at: usize) -> [S::F; 4] {
        let codes = &self.codes[at..];
        s.prefetch(codes, AHEAD);
        let mut m = if WHOLE {
            s.decode_bytes(&self.map.table, codes)
        } else {
            s.decode_bytes(&self.map.table, &padded(codes, self.map.encoder.encode(0.0)))
        };
        let scale = s.splat(self.absmax[0]);
        for m in &mut m {
            *m = s.mul(*m, scale);
        }
        m
    }

    #[inline(always)]
    fn store<S: Simd, const WHOLE: bool>(
        &mut self,
        s: S,
        at: usize,
        m: [S::F; 4],
        block: &mut Block,
    ) {
        store(s, m, &mut block[at..]);
    }

    #[inline(always)]
    fn renewed<S: Simd, const WHOLE: bool>(&self, s: S, at: usize, block: &Block) -> [S::F; 4] {
        load(s, &block[at..])
    }

    type Pending = Pending<'a>;
    #[inline(always)]
    fn scaled<S: Simd>(self, s: S, largest: S::F) -> Pending<'a> {
        let Codes { codes, absmax, map } = self;
        let mut lanes = [0.0; MOST_LANES];
        s.store(largest, &mut lanes);
        absmax[0] = f32::from_bits(s.max_magnitude_bits(&lanes));
        Pending { codes, map, scaling: Scaling::new(map.format(), absmax[0]) }
    }

    #[inline(always)]
    fn encode<S: Simd>(s: S, pending: &mut Pending<'a>, at: usize, block: &Block) {
        let Pending { codes, map, scaling } = pending;
        let end = codes.len().min(at + 4 * S::LANES);
        let Some(codes) = codes.get_mut(at..end) else { return };
        let m = &block[at..end];
        if codes.len() == 4 * S::LANES && scaling.is_one_product() {
            s.encode_cells(&map.cells, m, scaling.factor, codes);
        } else {
            for (m, code) in m.iter().zip(codes) {
                *code = map.encoder.encode(scaling.apply(*m));
            }
        }
    }
}

/// The moments of a rule, if all are f32.
pub(super) fn numbers<'m, const N: usize>(
    moments: &'m mut [Moment<'_>],
) -> Option<[&'m mut [f32]; N]> {
    let numbers = moments.iter_mut().filter_map(|moment| match moment {
        Moment::F32(numbers) => Some(&mut **numbers),
        Moment::Bits8 { .. } => None,
    });
    numbers.collect::<Vec<_>>().try_into().ok()
}

/// The moments of a rule, if all are in 8 bits, with these maps.
pub(super) fn codes<'m, const N: usize>(
    moments: &'m mut [Moment<'_>],
    maps: &[&'static Map],
) -> Option<[Codes<'m>; N]> {
    let codes = moments.iter_mut().zip(maps).filter_map(|(moment, map)| match moment {
        Moment::Bits8 { codes, absmax } => Some(Codes { codes, absmax, map }),
        Moment::F32(_) => None,
    });
    codes.collect::<Vec<_>>().try_into().ok()
}

/// Fewer numbers than `4 * LANES`, and more after them.
#[inline(always)]
fn padded<T: Copy>(few: &[T], more: T) -> [T; 4 * MOST_LANES] {
    let mut padded = [more; 4 * MOST_LANES];
    padded[..few.len()].copy_from_slice(few);
    padded
}

#[inline(always)]
fn load<S: Simd>(s: S, from: &[f32]) -> [S::F; 4] {
    let mut m = [s.splat(0.0); 4];
    for (m, from) in m.iter_mut().zip(from[..4 * S::LANES].chunks_exact(S::LANES)) {
        *m = s.load(from);
    }
    m
}

#[inline(always)]
pub(super) fn store<S: Simd>(s: S, m: [S::F; 4], to: &mut [f32]) {
    for (m, to) in m.into_iter().zip(to[..4 * S::LANES].chunks_exact_mut(S::LANES)) {
        s.store(m, to);
    }
}
