//! What runs on "mps": the kernels of an operation as Metal text, and the buffers that they work on.
//!
//! The plan is made here, by the same host code that drives any other GPU; Python compiles the text
//! with torch, binds tensors and starts the kernels.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use lowbit::optim::{Rule, Settings};
use lowbit::{DType, Format, Geometry, formats};
use lowbit_gpu::msl::{self, ArgumentKind, Bounds, Msl};
use lowbit_gpu::optim::{Moment, Optimizer, Parameter};
use lowbit_gpu::plan::{Content, Plan, Planner, Step};
use lowbit_gpu::{Description, Kernel};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::memory::{Size, sizes};
use crate::optimizer;
use crate::to_python;

/// A weight without its numbers: format, shape, block size, nested block size, and whether its
/// codebook is its own, its scales are f16, and it keeps means.
#[derive(FromPyObject)]
pub struct PyDescription(String, Vec<Size>, Size, Option<Size>, [bool; 3]);

/// [`Plan`] for Python: a dict.
#[derive(IntoPyObject)]
pub struct PyPlan {
    buffers: Vec<PyContent>,
    steps: Vec<PyStep>,
    results: Vec<usize>,
}

/// [`Content`]: an input has a name, what is the same for every call has its content, and all else
/// is room.
#[derive(IntoPyObject)]
struct PyContent {
    name: Option<&'static str>,
    content: Option<Vec<u8>>,
    bytes: u64,
    zeros: bool,
}

/// [`Step`]: the kernel, which buffer each argument is (`None`: the parameters), and its threads.
#[derive(IntoPyObject)]
struct PyStep {
    name: String,
    source: String,
    entry: String,
    arguments: Vec<Option<usize>>,
    params: Vec<i32>,
    powers: Option<[usize; 2]>,
    threads: [u32; 3],
    group: [u32; 3],
}

/// `w -> codes, scales`. Scales that are exponents take 32 bits each. Those of blocks with numbers that are not
/// finite are not finite, or 255.
#[pyfunction]
pub fn plan_quantize(
    format: &str,
    dtype: &str,
    shape: Vec<Size>,
    block_size: Size,
) -> PyResult<PyPlan> {
    let (format, dtype) = (known(format)?, self::dtype(dtype)?);
    planned(|planner| {
        let shape = sizes(&shape);
        let g = Geometry::new(format, &shape, Some(block_size.0))?;
        let w = planner.input("w", numbers(g.n, g.k, dtype));
        let q = lowbit_gpu::quantize(planner, format, &w, dtype, &shape, Some(block_size.0))?;
        Ok(vec![q.codes, q.scales])
    })
}

/// `weight -> [N, K]` of that type.
#[pyfunction]
pub fn plan_dequantize(weight: PyDescription, dtype: &str) -> PyResult<PyPlan> {
    let dtype = self::dtype(dtype)?;
    weight.planned(|planner, description| {
        let weight = planner.weight(description)?;
        Ok(vec![lowbit_gpu::dequantize(planner, &weight, dtype)?])
    })
}

/// `x, bias, weight -> x wᵀ + bias`, with `m` rows of that type.
#[pyfunction]
pub fn plan_linear(weight: PyDescription, dtype: &str, m: Size, bias: bool) -> PyResult<PyPlan> {
    let (dtype, m) = (self::dtype(dtype)?, rows(m)?);
    weight.planned(|planner, description| {
        let g = description.geometry()?;
        let x = planner.input("x", numbers(m, g.k, dtype));
        let bias = bias.then(|| planner.input("bias", numbers(1, g.n, dtype)));
        let weight = planner.weight(description)?;
        Ok(vec![lowbit_gpu::linear(planner, &x, m, &weight, bias.as_ref(), dtype)?])
    })
}

/// `dy, weight -> dy w`, with `m` rows of that type.
#[pyfunction]
pub fn plan_linear_transposed(weight: PyDescription, dtype: &str, m: Size) -> PyResult<PyPlan> {
    let (dtype, m) = (self::dtype(dtype)?, rows(m)?);
    weight.planned(|planner, description| {
        let g = description.geometry()?;
        let dy = planner.input("dy", numbers(m, g.n, dtype));
        let weight = planner.weight(description)?;
        Ok(vec![lowbit_gpu::linear_transposed(planner, &dy, m, &weight, dtype)?])
    })
}

/// `a, b -> a bᵀ` of integers: `m` and `n` rows of `k`.
#[pyfunction]
pub fn plan_int8_matmul(m: Size, n: Size, k: Size) -> PyResult<PyPlan> {
    let (m, n) = (rows(m)?, rows(n)?);
    planned(|planner| {
        let a = planner.input("a", m.saturating_mul(k.0) as u64);
        let b = planner.input("b", n.saturating_mul(k.0) as u64);
        Ok(vec![lowbit_gpu::int8_matmul(planner, &a, &b, [m, n, k.0])?])
    })
}

/// `sums, rows, columns, bias -> sums * rows * columns / 127² + bias` in that type.
#[pyfunction]
pub fn plan_int8_rescale(dtype: &str, m: Size, n: Size, bias: bool) -> PyResult<PyPlan> {
    let (dtype, m, n) = (self::dtype(dtype)?, rows(m)?, rows(n)?);
    planned(|planner| {
        let sums = planner.input("sums", numbers(m, n, DType::F32));
        let rows = planner.input("rows", numbers(m, 1, DType::F32));
        let columns = planner.input("columns", numbers(1, n, DType::F32));
        let bias = bias.then(|| planner.input("bias", numbers(1, n, dtype)));
        let scales = [&rows, &columns];
        let sizes = [m, n];
        Ok(vec![lowbit_gpu::int8_rescale(planner, &sums, scales, bias.as_ref(), sizes, dtype)?])
    })
}

/// `x, bias, weight -> x wᵀ + bias` as LLM.int8 computes it, with `m` rows of that type.
#[pyfunction]
pub fn plan_int8_linear(
    weight: PyDescription,
    dtype: &str,
    m: Size,
    bias: bool,
    threshold: f32,
) -> PyResult<PyPlan> {
    let (dtype, m) = (self::dtype(dtype)?, rows(m)?);
    weight.planned(|planner, description| {
        let g = description.geometry()?;
        let x = planner.input("x", numbers(m, g.k, dtype));
        let bias = bias.then(|| planner.input("bias", numbers(1, g.n, dtype)));
        let weight = planner.weight(description)?;
        let y = lowbit_gpu::int8_linear(planner, &x, m, &weight, threshold, bias.as_ref(), dtype)?;
        Ok(vec![y])
    })
}

/// `p, g, moments -> ` a step, which changes all but `g`; with numbers of its own only in the parameters
/// of its kernels, which [`optimizer_params`] tells.
#[pyfunction]
pub fn plan_optimizer_update(
    rule: &str,
    dtype: &str,
    len: Size,
    in_codes: bool,
    is_limited: bool,
) -> PyResult<PyPlan> {
    let step = OptimizerStep::new(rule, dtype, len, in_codes)?;
    let max_update_norm = f64::from(u8::from(is_limited));
    let settings = Settings { max_update_norm, ..Settings::of(step.rule) };
    planned(|planner| step.update(planner, &settings, 1).map(|()| Vec::new()))
}

/// `p, g, moments -> ` the norm of the update that a step would make.
#[pyfunction]
pub fn plan_optimizer_norm(rule: &str, dtype: &str, len: Size, in_codes: bool) -> PyResult<PyPlan> {
    let step = OptimizerStep::new(rule, dtype, len, in_codes)?;
    planned(|planner| Ok(vec![step.norm(planner, &Settings::of(step.rule), 1)?]))
}

/// The parameters of each kernel of [`plan_optimizer_update`], or of [`plan_optimizer_norm`], for step
/// number `step` with those settings.
#[pyfunction]
pub fn optimizer_params(
    rule: &str,
    settings: &Bound<'_, PyAny>,
    step: Size,
    dtype: &str,
    len: Size,
    in_codes: bool,
    of_norm: bool,
) -> PyResult<Vec<Vec<i32>>> {
    let (number, settings) = (step.0 as u64, optimizer::settings(settings)?);
    let step = OptimizerStep::new(rule, dtype, len, in_codes)?;
    let planner = Planner::new(msl::APPLE);
    match of_norm {
        true => step.norm(&planner, &settings, number).map(|_| ()),
        false => step.update(&planner, &settings, number),
    }
    .map_err(to_python)?;
    let steps = planner.finish(&[]).steps.into_iter();
    Ok(steps.map(|step| step.params.into_iter().map(u32::cast_signed).collect()).collect())
}

/// A step of an optimizer, of a parameter without its numbers.
struct OptimizerStep {
    rule: Rule,
    dtype: DType,
    len: usize,
    in_codes: bool,
}

impl OptimizerStep {
    fn new(rule: &str, dtype: &str, len: Size, in_codes: bool) -> PyResult<Self> {
        let rule = Rule::by_name(rule).map_err(to_python)?;
        Ok(OptimizerStep { rule, dtype: self::dtype(dtype)?, len: len.0, in_codes })
    }

    fn update(&self, planner: &Planner, settings: &Settings, step: u64) -> lowbit::Result<()> {
        self.with(planner, |optimizer, parameter, moments| {
            optimizer.update(planner, settings, step, parameter, moments)
        })
    }

    fn norm(&self, planner: &Planner, settings: &Settings, step: u64) -> lowbit::Result<usize> {
        self.with(planner, |optimizer, parameter, moments| {
            optimizer.update_norm(planner, settings, step, parameter, moments)
        })
    }

    fn with<T>(
        &self,
        planner: &Planner,
        operation: impl FnOnce(
            &Optimizer<usize>,
            &Parameter<'_, usize>,
            &[Moment<usize>],
        ) -> lowbit::Result<T>,
    ) -> lowbit::Result<T> {
        let bytes = numbers(1, self.len, self.dtype);
        let (p, g) = (planner.input("p", bytes), planner.input("g", bytes));
        let moments = Moment::inputs(planner, self.rule, self.len, self.in_codes);
        let parameter = Parameter { dtype: self.dtype, len: self.len, p: &p, g: &g };
        operation(&Optimizer::new(planner, self.rule)?, &parameter, &moments)
    }
}

impl PyDescription {
    fn planned(
        &self,
        operation: impl FnOnce(&Planner, &Description<'_>) -> lowbit::Result<Vec<usize>>,
    ) -> PyResult<PyPlan> {
        let PyDescription(format, shape, block_size, nested_block_size, flags) = self;
        let [own_codebook, half_scales, has_mean] = *flags;
        let description = Description {
            format: known(format)?,
            shape: &sizes(shape),
            block_size: block_size.0,
            nested_block_size: nested_block_size.map(|size| size.0),
            own_codebook,
            half_scales,
            has_mean,
        };
        planned(|planner| operation(planner, &description))
    }
}

/// What `operation` would run, with the buffers that it returns as results.
fn planned(operation: impl FnOnce(&Planner) -> lowbit::Result<Vec<usize>>) -> PyResult<PyPlan> {
    let planner = Planner::new(msl::APPLE);
    let results = operation(&planner).map_err(to_python)?;
    let Plan { buffers, steps, results } = planner.finish(&results);
    Ok(PyPlan {
        buffers: buffers.into_iter().map(PyContent::from).collect(),
        steps: steps.into_iter().map(PyStep::new).collect::<PyResult<_>>()?,
        results,
    })
}

impl From<Content> for PyContent {
    fn from(content: Content) -> Self {
        let room = |bytes| PyContent { name: None, content: None, bytes, zeros: false };
        match content {
            Content::Input { name, bytes } => PyContent { name: Some(name), ..room(bytes) },
            Content::Bytes(content) => {
                let bytes = content.len() as u64;
                PyContent { content: Some(content), ..room(bytes) }
            }
            Content::Zeros(bytes) => PyContent { zeros: true, ..room(bytes) },
            Content::Scratch(bytes) => room(bytes),
        }
    }
}

impl PyStep {
    fn new(step: Step) -> PyResult<Self> {
        let msl = translated(&step.kernel)?;
        let mut buffers = step.buffers.iter().copied();
        let arguments = msl.arguments.iter().map(|argument| match argument.kind {
            ArgumentKind::Read | ArgumentKind::ReadWrite => buffers.next(),
            ArgumentKind::Params | ArgumentKind::Lengths => None,
        });
        let arguments = arguments.collect();
        let group = msl.threads_per_group;
        Ok(PyStep {
            name: msl.name.clone(),
            source: msl.source.clone(),
            entry: msl.entry.clone(),
            arguments,
            powers: step.powers(),
            params: step.params.iter().map(|p| p.cast_signed()).collect(),
            threads: std::array::from_fn(|axis| step.groups[axis] * group[axis]),
            group,
        })
    }
}

/// A kernel's text, translated once.
fn translated(kernel: &Kernel) -> PyResult<Arc<Msl>> {
    static KNOWN: Mutex<Option<HashMap<String, Arc<Msl>>>> = Mutex::new(None);
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let known = known.get_or_insert_default();
    if let Some(msl) = known.get(&kernel.name) {
        return Ok(Arc::clone(msl));
    }
    let msl = Arc::new(msl::translate(kernel, Bounds::Unchecked).map_err(to_python)?);
    known.insert(kernel.name.clone(), Arc::clone(&msl));
    Ok(msl)
}

/// Bytes of so many numbers.
fn numbers(rows: usize, columns: usize, dtype: DType) -> u64 {
    rows.saturating_mul(columns).saturating_mul(dtype.size()) as u64
}

/// Rows of activations: kernels count them in 32 bits.
fn rows(m: Size) -> PyResult<usize> {
    u32::try_from(m.0).map(|m| m as usize).map_err(|_| {
        PyValueError::new_err(format!("x: expected fewer than 2^32 rows, got {}", m.0))
    })
}

fn known(format: &str) -> PyResult<&'static Format> {
    formats::by_name(format).map_err(to_python)
}

fn dtype(name: &str) -> PyResult<DType> {
    DType::ALL.into_iter().find(|dtype| dtype.to_string() == name).ok_or_else(|| {
        PyValueError::new_err(format!("dtype: expected f32, f16 or bf16, got {name:?}"))
    })
}
