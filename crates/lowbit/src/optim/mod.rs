//! Optimizers whose states take a byte per parameter, as bitsandbytes keeps them (8-bit optimizers,
//! arXiv 2110.02861).
//!
//! A [`Rule`] says how a step is taken, [`Settings`] with which numbers, and each of the rule's
//! [`Moment`]s is either f32 or codes of the dynamic map in blocks of [`BLOCK_SIZE`] with an absmax
//! each: signed codes for a moment that may be negative, unsigned ones else. One pass over
//! parameter, gradient and moments does it all: dequantize, update, quantize.
//! [`reference`](mod@reference) is its specification, and every instruction set gives its bits.
//!
//! ```
//! use lowbit::{Cpu, optim::{Rule, Settings, State}};
//!
//! let mut parameter = vec![0.5f32; 8192];
//! let gradient = vec![1e-3f32; 8192];
//! let settings = Settings { lr: 1e-3, weight_decay: 1e-2, ..Settings::of(Rule::Adam) };
//! let mut state = State::new(Rule::Adam, parameter.len());
//! assert_eq!(state.bytes(), 2 * 8192 + 2 * 4 * 32);
//!
//! Cpu::best().optimizer_step(&settings, &mut state, &mut parameter, &gradient)?;
//! # Ok::<(), lowbit::Error>(())
//! ```

mod kept;
mod kernels;
mod map;
pub mod reference;
mod rule;
mod state;
mod step;

pub use map::Map;
pub use rule::{Coefficients, Rule, Settings};
pub use state::{Moment, Owned, State};

use crate::cpu::{Cpu, Isa};
use crate::{Element, Error, Result};
use step::Pass;

/// Parameters that share an absmax in an 8-bit moment.
pub const BLOCK_SIZE: usize = 256;

/// Parameters from which [`State::new`] keeps 8 bits; smaller tensors matter more and cost little.
pub const MIN_8BIT_SIZE: usize = 4096;

impl Cpu {
    /// Takes one step: `p` follows `g`, and `state` counts it. See [`optimizer_update`](
    /// Self::optimizer_update).
    ///
    /// # Errors
    /// [`Error::Argument`] if `p`, `g` and `state` differ in length.
    pub fn optimizer_step<T: Element>(
        &self,
        settings: &Settings,
        state: &mut State,
        p: &mut [T],
        g: &[T],
    ) -> Result<()> {
        let (rule, step) = (state.rule(), state.step() + 1);
        self.optimizer_update(rule, settings, step, p, g, &mut state.moments())?;
        state.set_step(step);
        Ok(())
    }

    /// Step number `step`, from 1 on, of a parameter `p` with gradient `g` and the moments that
    /// [`Rule::moments`] names, all of one length, in f32 arithmetic whatever the type of `p`.
    ///
    /// Where a new 8-bit moment would not be finite, because the gradient is not, the parameter
    /// stays and its moments become zero, so that no number spoils the block; f32 moments take
    /// what comes.
    ///
    /// # Errors
    /// [`Error::Argument`] if a length does not fit, the moments are not those of the rule, or a
    /// setting is out of its range.
    pub fn optimizer_update<T: Element>(
        &self,
        rule: Rule,
        settings: &Settings,
        step: u64,
        p: &mut [T],
        g: &[T],
        moments: &mut [Moment<'_>],
    ) -> Result<()> {
        T::optimizer_update(self, rule, settings, step, p, g, moments)
    }
}

/// [`Cpu::optimizer_update`].
pub(crate) fn update<T: Element>(
    isa: Isa,
    rule: Rule,
    settings: &Settings,
    step: u64,
    p: &mut [T],
    g: &[T],
    moments: &mut [Moment<'_>],
) -> Result<()> {
    check(rule, p.len(), g.len(), moments)?;
    settings.check(step)?;
    let mut c = Coefficients::new(rule, settings, step);
    if settings.max_update_norm > 0.0 {
        let pass = Pass { isa, rule, c: &c };
        let norms = pass.norms(p, g, moments);
        c.limit(settings, norms);
    }
    Pass { isa, rule, c: &c }.update(p, g, moments);
    Ok(())
}

fn check(rule: Rule, p: usize, g: usize, moments: &[Moment<'_>]) -> Result<()> {
    const OP: &str = "optimizer_update";
    let help = "pass one parameter, its gradient and its own state";
    let refuse = |expected: String, got: String| Err(Error::argument(OP, expected, got, help));
    if g != p {
        return refuse(format!("a gradient of {p} numbers"), g.to_string());
    }
    if moments.len() != rule.moments().len() {
        let expected = format!("{} moments for {}", rule.moments().len(), rule.name());
        return refuse(expected, moments.len().to_string());
    }
    for moment in moments {
        if !moment.fits(p) {
            return refuse(format!("moments of {p} numbers"), moment.to_string());
        }
        if moment.is_8bit() != moments[0].is_8bit() {
            return refuse("moments of one width".into(), "f32 and 8-bit ones".into());
        }
    }
    Ok(())
}
