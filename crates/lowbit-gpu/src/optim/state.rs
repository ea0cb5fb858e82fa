//! What an optimizer remembers of a parameter, on a GPU.

use lowbit::Result;
use lowbit::optim::{self, BLOCK_SIZE, MIN_8BIT_SIZE, Owned, Rule};

use super::{ABSMAX_NAMES, CODE_NAMES, NUMBER_NAMES};
use crate::Queue;
use crate::plan::Planner;

/// One remembered number for each of a parameter's, as [`lowbit::optim::Moment`], in buffers that can
/// be read up to a multiple of 16 bytes.
#[derive(Debug, Clone)]
pub enum Moment<B> {
    /// As they are, in f32.
    F32(B),
    /// `map[code] * absmax[block]`, with the map of [`Rule::moments`].
    Bits8 {
        /// A byte for each.
        codes: B,
        /// The largest magnitude of each [`BLOCK_SIZE`], in f32.
        absmax: B,
    },
}

impl Moment<usize> {
    /// The moments that the caller of a plan has, `len` numbers each: the inputs `codes_0` and `absmax_0`,
    /// or `numbers_0`, and so on.
    pub fn inputs(planner: &Planner, rule: Rule, len: usize, in_codes: bool) -> Vec<Self> {
        let moment = |i: usize| match in_codes {
            false => Moment::F32(planner.input(NUMBER_NAMES[i], (len as u64).saturating_mul(4))),
            true => Moment::Bits8 {
                codes: planner.input(CODE_NAMES[i], len as u64),
                absmax: planner.input(ABSMAX_NAMES[i], 4 * len.div_ceil(BLOCK_SIZE) as u64),
            },
        };
        (0..rule.moments().len()).map(moment).collect()
    }
}

/// Moments and steps taken, as [`lowbit::optim::State`].
#[derive(Debug)]
pub struct State<B> {
    rule: Rule,
    step: u64,
    len: usize,
    moments: Vec<Moment<B>>,
}

impl<B: Clone> State<B> {
    /// The state before the first step of a parameter of `len` numbers: in 8 bits from
    /// [`MIN_8BIT_SIZE`] on.
    ///
    /// # Errors
    /// As [`Queue::zeros`].
    pub fn new<Q: Queue<Buffer = B>>(queue: &Q, rule: Rule, len: usize) -> Result<Self> {
        let in_codes = len >= MIN_8BIT_SIZE;
        let numbers = 4 * len as u64;
        let absmax = 4 * len.div_ceil(BLOCK_SIZE) as u64;
        let moment = |_| match in_codes {
            false => queue.zeros(numbers).map(Moment::F32),
            true => {
                let (codes, absmax) = (queue.zeros(len as u64)?, queue.zeros(absmax)?);
                Ok(Moment::Bits8 { codes, absmax })
            }
        };
        let moments = rule.moments().iter().map(moment).collect::<Result<_>>()?;
        Ok(State { rule, step: 0, len, moments })
    }

    /// A state of the processor's, of either width, to go on from.
    ///
    /// # Errors
    /// As [`Queue::upload`].
    pub fn upload<Q: Queue<Buffer = B>>(queue: &Q, state: &optim::State) -> Result<Self> {
        let len = match state.parts().first() {
            Some(Owned::F32(numbers)) => numbers.len(),
            Some(Owned::Bits8 { codes, .. }) => codes.len(),
            None => 0,
        };
        let upload = |part: &Owned| match part {
            Owned::F32(numbers) => queue.upload(bytemuck::cast_slice(numbers)).map(Moment::F32),
            Owned::Bits8 { codes, absmax } => Ok(Moment::Bits8 {
                codes: queue.upload(codes)?,
                absmax: queue.upload(bytemuck::cast_slice(absmax))?,
            }),
        };
        let moments = state.parts().iter().map(upload).collect::<Result<_>>()?;
        Ok(State { rule: state.rule(), step: state.step(), len, moments })
    }

    /// Waits for it, and copies it out.
    ///
    /// # Errors
    /// As [`Queue::read`], and as [`optim::State::from_parts`].
    pub fn read<Q: Queue<Buffer = B>>(&self, queue: &Q) -> Result<optim::State> {
        let floats = |buffer: &B, count: usize| -> Result<Vec<f32>> {
            Ok(bytemuck::pod_collect_to_vec(&queue.read(buffer, 4 * count as u64)?))
        };
        let read = |moment: &Moment<B>| match moment {
            Moment::F32(numbers) => floats(numbers, self.len).map(Owned::F32),
            Moment::Bits8 { codes, absmax } => Ok(Owned::Bits8 {
                codes: queue.read(codes, self.len as u64)?,
                absmax: floats(absmax, self.len.div_ceil(BLOCK_SIZE))?,
            }),
        };
        let parts = self.moments.iter().map(read).collect::<Result<_>>()?;
        optim::State::from_parts(self.rule, self.step, parts)
    }

    /// Its rule.
    pub fn rule(&self) -> Rule {
        self.rule
    }

    /// Steps taken.
    pub fn step(&self) -> u64 {
        self.step
    }

    pub(super) fn set_step(&mut self, step: u64) {
        self.step = step;
    }

    /// Numbers of the parameter.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Its moments, for [`Optimizer::update`](super::Optimizer::update).
    pub fn moments(&self) -> &[Moment<B>] {
        &self.moments
    }
}
