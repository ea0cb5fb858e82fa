//! What an optimizer remembers of a parameter.

use std::fmt;

use super::{BLOCK_SIZE, MIN_8BIT_SIZE, Rule};
use crate::{Error, Result};

/// One remembered number for each of a parameter's, in memory that the caller owns.
#[derive(Debug)]
pub enum Moment<'a> {
    /// As they are.
    F32(&'a mut [f32]),
    /// `map[code] * absmax[block]`, with the map of [`Rule::moments`].
    Bits8 {
        /// A byte for each.
        codes: &'a mut [u8],
        /// The largest magnitude of each [`BLOCK_SIZE`].
        absmax: &'a mut [f32],
    },
}

impl fmt::Display for Moment<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Moment::F32(numbers) => write!(f, "{} numbers", numbers.len()),
            Moment::Bits8 { codes, absmax } => {
                write!(f, "{} codes and {} absmax", codes.len(), absmax.len())
            }
        }
    }
}

impl Moment<'_> {
    pub(super) fn is_8bit(&self) -> bool {
        matches!(self, Moment::Bits8 { .. })
    }

    pub(super) fn fits(&self, len: usize) -> bool {
        match self {
            Moment::F32(numbers) => numbers.len() == len,
            Moment::Bits8 { codes, absmax } => {
                codes.len() == len && absmax.len() == len.div_ceil(BLOCK_SIZE)
            }
        }
    }
}

/// Takes the first `len` off a slice.
pub(super) fn front<'a, T>(slice: &mut &'a mut [T], len: usize) -> &'a mut [T] {
    let (front, rest) = std::mem::take(slice).split_at_mut(len);
    *slice = rest;
    front
}

/// Moments and steps taken, owned. What it is made of may be stored and put together again with
/// [`State::from_parts`]: training goes on to the bit.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    rule: Rule,
    step: u64,
    moments: Vec<Owned>,
}

/// A moment that is owned.
#[derive(Debug, Clone, PartialEq)]
pub enum Owned {
    /// As [`Moment::F32`].
    F32(Vec<f32>),
    /// As [`Moment::Bits8`].
    Bits8 {
        /// A byte for each number.
        codes: Vec<u8>,
        /// The largest magnitude of each block.
        absmax: Vec<f32>,
    },
}

impl Owned {
    fn borrow(&mut self) -> Moment<'_> {
        match self {
            Owned::F32(numbers) => Moment::F32(numbers),
            Owned::Bits8 { codes, absmax } => Moment::Bits8 { codes, absmax },
        }
    }
}

impl State {
    /// The state before the first step of a parameter of `len` numbers: in 8 bits from
    /// [`MIN_8BIT_SIZE`] on.
    pub fn new(rule: Rule, len: usize) -> Self {
        if len < MIN_8BIT_SIZE { Self::new_f32(rule, len) } else { Self::new_8bit(rule, len) }
    }

    /// The same in f32, whatever the length.
    pub fn new_f32(rule: Rule, len: usize) -> Self {
        let moments = rule.moments().iter().map(|_| Owned::F32(vec![0.0; len])).collect();
        State { rule, step: 0, moments }
    }

    /// The same in 8 bits, whatever the length.
    pub fn new_8bit(rule: Rule, len: usize) -> Self {
        let moment =
            || Owned::Bits8 { codes: vec![0; len], absmax: vec![0.0; len.div_ceil(BLOCK_SIZE)] };
        State { rule, step: 0, moments: rule.moments().iter().map(|_| moment()).collect() }
    }

    /// A state from what [`step`](Self::step) and [`parts`](Self::parts) gave.
    ///
    /// # Errors
    /// [`Error::Argument`] if these are not moments of one parameter under that rule.
    pub fn from_parts(rule: Rule, step: u64, mut parts: Vec<Owned>) -> Result<Self> {
        let borrowed: Vec<Moment<'_>> = parts.iter_mut().map(Owned::borrow).collect();
        let len = match borrowed.first() {
            Some(Moment::F32(numbers)) => numbers.len(),
            Some(Moment::Bits8 { codes, .. }) => codes.len(),
            None => 0,
        };
        super::check(rule, len, len, &borrowed)?;
        let strange = borrowed.iter().find_map(|moment| match moment {
            Moment::Bits8 { absmax, .. } => {
                absmax.iter().find(|a| !(a.is_finite() && **a >= 0.0)).copied()
            }
            Moment::F32(_) => None,
        });
        match strange {
            None => Ok(State { rule, step, moments: parts }),
            Some(absmax) => Err(Error::argument(
                "State::from_parts",
                "absmax that are finite and not negative",
                absmax.to_string(),
                "the state is damaged: start from another checkpoint",
            )),
        }
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

    /// Its moments, to be stored.
    pub fn parts(&self) -> &[Owned] {
        &self.moments
    }

    /// Its moments, for [`Cpu::optimizer_update`](crate::Cpu::optimizer_update).
    pub fn moments(&mut self) -> Vec<Moment<'_>> {
        self.moments.iter_mut().map(Owned::borrow).collect()
    }

    /// Bytes of memory that its moments take.
    pub fn bytes(&self) -> usize {
        let bytes = |moment: &Owned| match moment {
            Owned::F32(numbers) => size_of_val(&numbers[..]),
            Owned::Bits8 { codes, absmax } => codes.len() + size_of_val(&absmax[..]),
        };
        self.moments.iter().map(bytes).sum()
    }
}
