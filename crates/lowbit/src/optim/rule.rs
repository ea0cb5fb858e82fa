//! What distinguishes one optimizer from another.

use super::map::{self, Map};
use crate::{Error, Result};

/// How a step is taken. The formulas are those of [`reference`](super::reference::update).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rule {
    /// Adam and, with weight decay, AdamW (arXiv 1412.6980, 1711.05101); LAMB (arXiv 1904.00962)
    /// where the update's norm is limited.
    Adam,
    /// AdEMAMix (arXiv 2409.03137): Adam with a second, slow first moment.
    AdEmaMix,
    /// Lion (arXiv 2302.06675): the sign of a momentum.
    Lion,
    /// Stochastic gradient descent with momentum; LARS (arXiv 1708.03888) where the update's norm
    /// is limited.
    Momentum,
    /// RMSprop (Hinton, lecture 6e of Neural Networks for Machine Learning, 2012).
    RmsProp,
    /// Adagrad (Duchi, Hazan, Singer 2011).
    Adagrad,
}

impl Rule {
    /// Every one of them.
    pub const ALL: [Rule; 6] =
        [Rule::Adam, Rule::AdEmaMix, Rule::Lion, Rule::Momentum, Rule::RmsProp, Rule::Adagrad];

    /// bitsandbytes' name of it.
    pub fn name(self) -> &'static str {
        match self {
            Rule::Adam => "adam",
            Rule::AdEmaMix => "ademamix",
            Rule::Lion => "lion",
            Rule::Momentum => "momentum",
            Rule::RmsProp => "rmsprop",
            Rule::Adagrad => "adagrad",
        }
    }

    /// The rule of that name; `lamb` and `lars` are Adam and momentum.
    ///
    /// # Errors
    /// [`Error::Argument`], with the names there are.
    pub fn by_name(name: &str) -> Result<Rule> {
        let name = match name {
            "lamb" => "adam",
            "lars" => "momentum",
            name => name,
        };
        Self::ALL.into_iter().find(|rule| rule.name() == name).ok_or_else(|| {
            let known = Self::ALL.map(Rule::name).join(", ");
            Error::argument("optimizer", format!("one of {known}, lamb, lars"), name, "choose one")
        })
    }

    /// The moments it keeps of each parameter, and what their codes stand for in 8 bits.
    ///
    /// bitsandbytes' `state1` is all but the last of two or three, stacked; `state2` the last.
    pub fn moments(self) -> &'static [&'static Map] {
        match self {
            Rule::Adam => &map::TWO,
            Rule::AdEmaMix => &map::THREE,
            Rule::Lion | Rule::Momentum | Rule::RmsProp | Rule::Adagrad => &map::ONE,
        }
    }

    /// Whether a weight decay goes through the gradient; else it shrinks the parameter.
    pub fn decays_gradient(self) -> bool {
        matches!(self, Rule::Momentum | Rule::RmsProp | Rule::Adagrad)
    }

    /// Whether the parameter shrinks before the update, as with bitsandbytes' kernels, and not
    /// after it.
    pub fn decays_first(self) -> bool {
        self == Rule::Lion
    }
}

/// The numbers of a step; [`Settings::of`] has each rule's usual ones.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the first moment; of the only one; of Lion's direction.
    pub beta1: f64,
    /// Decay of the second moment; of Lion's momentum.
    pub beta2: f64,
    /// Decay of AdEMAMix's slow moment.
    pub beta3: f64,
    /// Weight of AdEMAMix's slow moment.
    pub alpha: f64,
    /// Added to a root before it divides.
    pub eps: f64,
    /// Share of a parameter that it loses per unit of the learning rate: directly with Adam,
    /// AdEMAMix and Lion, through the gradient with the others.
    pub weight_decay: f64,
    /// Share of the gradient that does not enter a momentum that has begun.
    pub dampening: f64,
    /// Whether momentum looks ahead.
    pub nesterov: bool,
    /// Factor of every gradient: what clipping by norm or a loss scale asks for.
    pub grad_scale: f64,
    /// Largest norm of an update, before the learning rate, in norms of the parameter, as LAMB and
    /// LARS have it; 0 for no limit. A parameter of norm 0 has none.
    pub max_update_norm: f64,
}

impl Settings {
    /// bitsandbytes' defaults.
    pub fn of(rule: Rule) -> Self {
        let (lr, beta1, beta2, eps) = match rule {
            Rule::Adam | Rule::AdEmaMix => (1e-3, 0.9, 0.999, 1e-8),
            Rule::Lion => (1e-4, 0.9, 0.99, 0.0),
            Rule::Momentum => (1e-3, 0.9, 0.0, 0.0),
            Rule::RmsProp => (1e-2, 0.99, 0.0, 1e-8),
            Rule::Adagrad => (1e-2, 0.0, 0.0, 1e-10),
        };
        Settings {
            lr,
            beta1,
            beta2,
            beta3: 0.9999,
            alpha: 5.0,
            eps,
            weight_decay: if rule == Rule::AdEmaMix { 1e-2 } else { 0.0 },
            dampening: 0.0,
            nesterov: false,
            grad_scale: 1.0,
            max_update_norm: 0.0,
        }
    }

    pub(super) fn check(&self, step: u64) -> Result<()> {
        let refuse = |expected: &str, got: String| {
            Err(Error::argument("optimizer_update", expected, got, "check the settings"))
        };
        if step == 0 {
            return refuse("steps counted from 1", "0".into());
        }
        let from_zero = [
            ("lr", self.lr),
            ("eps", self.eps),
            ("weight_decay", self.weight_decay),
            ("max_update_norm", self.max_update_norm),
        ];
        for (name, value) in from_zero {
            if !(value >= 0.0 && value.is_finite()) {
                return refuse(&format!("{name} from 0"), value.to_string());
            }
        }
        for (name, beta) in [("beta1", self.beta1), ("beta2", self.beta2), ("beta3", self.beta3)] {
            if !(0.0..1.0).contains(&beta) {
                return refuse(&format!("{name} from 0 to less than 1"), beta.to_string());
            }
        }
        let any =
            [("alpha", self.alpha), ("dampening", self.dampening), ("grad_scale", self.grad_scale)];
        for (name, value) in any {
            if !value.is_finite() {
                return refuse(&format!("a finite {name}"), value.to_string());
            }
        }
        Ok(())
    }
}

/// The f32 constants of one step: `g' = g * grad_scale + p * l2`, the moments and a direction from
/// `g'` by the rule, and `p' = (p * before + direction * rate) * after`; for kernels elsewhere that
/// take the same step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Coefficients {
    /// Factor of the gradient.
    pub grad_scale: f32,
    /// Share of the parameter that is added to the gradient.
    pub l2: f32,
    /// Factor of the parameter before the update.
    pub before: f32,
    /// Factor of the direction: negative.
    pub rate: f32,
    /// Factor of the parameter after the update.
    pub after: f32,
    /// Decay of each moment, and the share of what is new in it.
    pub decay: [[f32; 2]; 3],
    /// What Lion's direction takes of the old moment and of the gradient; what momentum's takes of
    /// the new one and of the gradient; what AdEMAMix's takes of its two first moments.
    pub mix: [f32; 2],
    /// Factor of the root that divides.
    pub root: f32,
    /// What is added to it.
    pub eps: f32,
    /// Norm of an update, before the learning rate, in norms of a direction.
    pub gain: f64,
}

impl Coefficients {
    /// Those of step number `step`, from 1 on, whose norm is not limited.
    ///
    /// # Errors
    /// [`Error::Argument`] if a setting is out of its range, or `step` is 0.
    pub fn of(rule: Rule, settings: &Settings, step: u64) -> Result<Self> {
        settings.check(step)?;
        Ok(Self::new(rule, settings, step))
    }

    pub(super) fn new(rule: Rule, settings: &Settings, step: u64) -> Self {
        let s = settings;
        // What is left of 1 is that of the f32 beta: then it and the corrections below agree.
        let beta = |beta: f64| [beta as f32, 1.0 - beta as f32];
        let correction = |beta: f64| 1.0 - f64::from(beta as f32).powf(step as f64);
        let (first, second) = (correction(s.beta1), correction(s.beta2).sqrt());
        let keep = (1.0 - s.lr * s.weight_decay) as f32;
        let mut c = Coefficients {
            grad_scale: s.grad_scale as f32,
            l2: 0.0,
            before: 1.0,
            rate: 0.0,
            after: 1.0,
            decay: [beta(s.beta1), beta(s.beta2), beta(s.beta3)],
            mix: [1.0, 0.0],
            root: 1.0,
            eps: s.eps as f32,
            gain: 1.0,
        };
        match rule {
            Rule::Adam => {
                // (m / first) / (sqrt(v) / second + eps), with one division.
                c.gain = second / first;
                c.eps = (second * s.eps) as f32;
            }
            Rule::AdEmaMix => {
                c.decay = [beta(s.beta1), beta(s.beta3), beta(s.beta2)];
                c.mix = [(1.0 / first) as f32, s.alpha as f32];
                c.root = (1.0 / second) as f32;
            }
            Rule::Lion => {
                c.decay[0] = beta(s.beta2);
                c.mix = beta(s.beta1);
            }
            Rule::Momentum => {
                // The first step starts the momentum with the gradient.
                let begun = [s.beta1 as f32, (1.0 - s.dampening) as f32];
                c.decay[0] = if step == 1 { [0.0, 1.0] } else { begun };
                if s.nesterov {
                    c.mix = [s.beta1 as f32, 1.0];
                }
            }
            Rule::RmsProp => {}
            Rule::Adagrad => c.decay[0] = [1.0, 1.0],
        }
        if rule.decays_gradient() {
            c.l2 = s.weight_decay as f32;
        } else if rule.decays_first() {
            c.before = keep;
        } else {
            c.after = keep;
        }
        c.rate = (-s.lr * c.gain) as f32;
        c
    }

    /// Shortens the step to `max_update_norm`, given the norms of direction and parameter.
    pub(super) fn limit(&mut self, settings: &Settings, [direction, parameter]: [f64; 2]) {
        let (update, most) = (direction * self.gain, settings.max_update_norm * parameter);
        if parameter > 0.0 && update > most {
            self.rate = (-settings.lr * self.gain * (most / update)) as f32;
        }
    }
}
