//! Steps of optimizers on parameters and states that Python owns.

use lowbit::optim::{BLOCK_SIZE, Moment, Rule, Settings};
use lowbit::{Cpu, Element};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::memory::{Region, Size, addresses};
use crate::operations::typed;
use crate::threads;
use crate::to_python;

/// The numbers of a step: `lowbit.rules.Settings`, by name.
#[derive(Debug, FromPyObject)]
pub struct PySettings {
    lr: f64,
    beta1: f64,
    beta2: f64,
    beta3: f64,
    alpha: f64,
    eps: f64,
    weight_decay: f64,
    dampening: f64,
    nesterov: bool,
    grad_scale: f64,
    max_update_norm: f64,
}

impl From<PySettings> for Settings {
    fn from(s: PySettings) -> Self {
        Settings {
            lr: s.lr,
            beta1: s.beta1,
            beta2: s.beta2,
            beta3: s.beta3,
            alpha: s.alpha,
            eps: s.eps,
            weight_decay: s.weight_decay,
            dampening: s.dampening,
            nesterov: s.nesterov,
            grad_scale: s.grad_scale,
            max_update_norm: s.max_update_norm,
        }
    }
}

/// Numbers, or codes with their absmax.
type PyMoment = (Region, Option<Region>);

/// Takes step number `step` of a parameter with those moments, which are all written.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "as Python passes them")]
pub fn optimizer_update(
    py: Python<'_>,
    rule: &str,
    settings: &Bound<'_, PyAny>,
    step: Size,
    dtype: &str,
    p: Region,
    g: Region,
    moments: Vec<PyMoment>,
) -> PyResult<()> {
    let settings = self::settings(settings)?;
    typed!(dtype, update_typed(py, rule, settings, step.0 as u64, p, g, moments))
}

/// `lowbit.rules.Settings`.
pub fn settings(given: &Bound<'_, PyAny>) -> PyResult<Settings> {
    let settings: PySettings = given.extract().map_err(|error| {
        PyTypeError::new_err(format!("settings: expected lowbit.rules.Settings: {error}"))
    })?;
    Ok(settings.into())
}

fn update_typed<T: Element>(
    py: Python<'_>,
    rule: &str,
    settings: Settings,
    step: u64,
    p: Region,
    g: Region,
    moments: Vec<PyMoment>,
) -> PyResult<()> {
    let rule = Rule::by_name(rule).map_err(to_python)?;
    let mut borrowed = Vec::with_capacity(moments.len());
    // SAFETY: Python holds references to the tensors for as long as the call lasts, and each is
    // kept apart from all before it.
    let (p, g) = unsafe {
        let g: &[T] = g.read("g")?;
        let mut taken = vec![addresses(g)];
        let p: &mut [T] = p.write("p", &taken)?;
        taken.push(addresses(p));
        for (numbers, absmax) in moments {
            borrowed.push(match absmax {
                None => Moment::F32(numbers.write("state", &taken)?),
                Some(absmax) => {
                    let codes: &mut [u8] = numbers.write("state", &taken)?;
                    taken.push(addresses(codes));
                    Moment::Bits8 { codes, absmax: absmax.write("absmax", &taken)? }
                }
            });
            taken.push(match &borrowed[borrowed.len() - 1] {
                Moment::F32(numbers) => addresses(numbers),
                Moment::Bits8 { absmax, .. } => addresses(absmax),
            });
        }
        (p, g)
    };
    let update = || {
        let cpu = Cpu::best();
        threads::run(|| cpu.optimizer_update(rule, &settings, step, p, g, &mut borrowed))
    };
    py.detach(update).map_err(to_python)
}

/// Every rule: a dict of its fields, by the names of `lowbit.rules.Rule`.
#[pyfunction]
pub fn optimizers<'py>(py: Python<'py>) -> PyResult<Vec<Bound<'py, PyDict>>> {
    let describe = |rule: Rule| {
        let dict = PyDict::new(py);
        dict.set_item("name", rule.name())?;
        let maps = rule.moments().iter();
        dict.set_item("moments", maps.clone().map(|map| map.format().name).collect::<Vec<_>>())?;
        dict.set_item("thresholds", maps.map(|map| map.thresholds().to_vec()).collect::<Vec<_>>())?;
        dict.set_item("block_size", BLOCK_SIZE)?;
        dict.set_item("decays_gradient", rule.decays_gradient())?;
        dict.set_item("decays_first", rule.decays_first())?;
        Ok(dict)
    };
    Rule::ALL.into_iter().map(describe).collect()
}
