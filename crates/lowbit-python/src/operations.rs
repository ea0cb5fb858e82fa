//! One function per operation of the crate `lowbit`.
//!
//! Each builds slices of the regions that it is given, for as long as the call lasts: Python holds
//! references to the tensors meanwhile. That is the argument of every `SAFETY` below.

use half::f16;
use lowbit::quantizers::{Search, patterns};
use lowbit::sparse::Coo;
use lowbit::{Cpu, Element, Format, Scales, formats};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::memory::{Region, Size, addresses, sizes};
use crate::threads;
use crate::to_python;
use crate::weight::PyWeight;

/// Calls the generic function for the type of that name: `f32`, `f16` or `bf16`.
macro_rules! typed {
    ($dtype:expr, $f:ident($($argument:expr),* $(,)?)) => {
        match $dtype {
            "f32" => $f::<f32>($($argument),*),
            "f16" => $f::<half::f16>($($argument),*),
            "bf16" => $f::<half::bf16>($($argument),*),
            other => Err(pyo3::exceptions::PyValueError::new_err(format!(
                "dtype: expected f32, f16 or bf16, got {other:?}; convert the tensor"
            ))),
        }
    };
}
pub(crate) use typed;

/// Quantizes `w` of that shape: writes the codes and the scales (f32, or f16 or bytes where the format's
/// scales are those).
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "as Python passes them")]
pub fn quantize(
    py: Python<'_>,
    format: &str,
    dtype: &str,
    w: Region,
    shape: Vec<Size>,
    block_size: Size,
    codes: Region,
    scales: Region,
) -> PyResult<()> {
    typed!(dtype, quantize_typed(py, format, w, &sizes(&shape), block_size.0, codes, scales))
}

fn quantize_typed<T: Element>(
    py: Python<'_>,
    format: &str,
    w: Region,
    shape: &[usize],
    block_size: usize,
    codes: Region,
    scales: Region,
) -> PyResult<()> {
    let format = formats::by_name(format).map_err(to_python)?;
    // SAFETY: see the module.
    let (w, codes) = unsafe {
        let w: &[T] = w.read("w")?;
        (w, codes.write::<u8>("codes", &[addresses(w)])?)
    };
    let taken = [addresses(w), addresses(codes)];
    let made = py
        .detach(|| {
            threads::run(|| Cpu::best().quantize_into(format, w, shape, Some(block_size), codes))
        })
        .map_err(to_python)?;
    match made {
        // SAFETY: see the module.
        Scales::F32(made) => fill(unsafe { scales.write("scales", &taken)? }, &made, "scales"),
        // SAFETY: see the module.
        Scales::F16(made) => fill(unsafe { scales.write("scales", &taken)? }, &made, "scales"),
        // SAFETY: see the module.
        Scales::E8M0(made) => fill(unsafe { scales.write("scales", &taken)? }, &made, "scales"),
        Scales::Nested(_) => Err(PyValueError::new_err("quantize: got scales that are nested")),
    }
}

/// Quantizes f32 `w: [N, K]` to a format whose codebook is made for each tensor: writes codes, scales and
/// codebook. `importance: [K]` are factors of the squared error in each column.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "as Python passes them")]
#[pyo3(signature = (format, w, shape, block_size, importance, seed, codes, scales, codebook))]
pub fn search(
    py: Python<'_>,
    format: &str,
    w: Region,
    shape: Vec<Size>,
    block_size: Size,
    importance: Option<Region>,
    seed: Size,
    codes: Region,
    scales: Region,
    codebook: Region,
) -> PyResult<()> {
    let format = formats::by_name(format).map_err(to_python)?;
    let (shape, search) = (sizes(&shape), Search { seed: seed.0 as u64, ..Search::default() });
    // SAFETY: see the module.
    let w: &[f32] = unsafe { w.read("w")? };
    // SAFETY: the same.
    let importance: Option<&[f32]> =
        importance.map(|h| unsafe { h.read("importance") }).transpose()?;
    let isa = Cpu::best().isa();
    let make =
        || patterns::quantize(isa, format, w, &shape, Some(block_size.0), importance, &search);
    let made = py.detach(|| threads::run(make)).map_err(to_python)?;
    let Scales::F16(made_scales) = made.scales() else {
        return Err(PyValueError::new_err("search: got scales that are not f16"));
    };
    let mut taken = vec![addresses(w), addresses(importance.unwrap_or_default())];
    // SAFETY: see the module; the outputs are kept apart from each other, too.
    unsafe {
        let codes: &mut [u8] = codes.write("codes", &taken)?;
        taken.push(addresses(codes));
        let scales: &mut [f16] = scales.write("scales", &taken)?;
        taken.push(addresses(scales));
        fill(codes, made.codes(), "codes")?;
        fill(scales, made_scales, "scales")?;
        fill(codebook.write("codebook", &taken)?, made.codebook(), "codebook")
    }
}

/// Quantizes f32 scales a second time: writes a code for each, an absmax for each 256, and the
/// offset.
#[pyfunction]
pub fn double_quantize(
    py: Python<'_>,
    scales: Region,
    codes: Region,
    absmax: Region,
    offset: Region,
) -> PyResult<()> {
    // SAFETY: see the module.
    let scales: &[f32] = unsafe { scales.read("scales")? };
    let nested = py
        .detach(|| threads::run(|| Cpu::best().double_quantize_scales(scales)))
        .map_err(to_python)?;
    let mut taken = vec![addresses(scales)];
    // SAFETY: see the module; the outputs are kept apart from each other, too.
    unsafe {
        let codes: &mut [u8] = codes.write("codes", &taken)?;
        taken.push(addresses(codes));
        let absmax: &mut [f32] = absmax.write("absmax", &taken)?;
        taken.push(addresses(absmax));
        let offset: &mut [f32] = offset.write("offset", &taken)?;
        fill(codes, &nested.codes, "codes")?;
        fill(absmax, &nested.absmax, "absmax")?;
        fill(offset, &[nested.offset], "offset")
    }
}

/// Writes all weights.
#[pyfunction]
pub fn dequantize(
    py: Python<'_>,
    format: &str,
    weight: PyWeight,
    dtype: &str,
    out: Region,
) -> PyResult<()> {
    typed!(dtype, dequantize_typed(py, format, weight, out))
}

fn dequantize_typed<T: Element>(
    py: Python<'_>,
    format: &str,
    weight: PyWeight,
    out: Region,
) -> PyResult<()> {
    let format = formats::by_name(format).map_err(to_python)?;
    // SAFETY: see the module; `weight` is dropped on return.
    let (weight, out) = unsafe {
        let (weight, taken) = weight.borrow(format)?;
        (weight, out.write::<T>("out", &taken)?)
    };
    py.detach(|| threads::run(|| Cpu::best().dequantize(&weight, out))).map_err(to_python)
}

/// `y = x wᵀ + bias`: `w: [N, K]`, `x: [.., K]`, `bias: [N]`, `y: [.., N]`.
#[pyfunction]
#[pyo3(signature = (format, weight, dtype, x, bias, y))]
pub fn linear(
    py: Python<'_>,
    format: &str,
    weight: PyWeight,
    dtype: &str,
    x: Region,
    bias: Option<Region>,
    y: Region,
) -> PyResult<()> {
    let format = formats::by_name(format).map_err(to_python)?;
    py.detach(|| typed!(dtype, linear_typed(format, weight, x, bias, y)))
}

/// [`linear`], for those who hold no lock of Python's.
pub(crate) fn linear_typed<T: Element>(
    format: &'static Format,
    weight: PyWeight,
    x: Region,
    bias: Option<Region>,
    y: Region,
) -> PyResult<()> {
    // SAFETY: see the module; `weight` is dropped on return.
    let (weight, x, bias, y) = unsafe {
        let (weight, [codes, scales]) = weight.borrow(format)?;
        let x: &[T] = x.read("x")?;
        let bias: Option<&[T]> = bias.map(|b| b.read("bias")).transpose()?;
        let taken = [codes, scales, addresses(x), addresses(bias.unwrap_or(&[]))];
        (weight, x, bias, y.write::<T>("y", &taken)?)
    };
    threads::run(|| Cpu::best().linear(&weight, x, bias, y)).map_err(to_python)
}

/// `dx = dy w`: `w: [N, K]`, `dy: [.., N]`, `dx: [.., K]`.
#[pyfunction]
pub fn linear_transposed(
    py: Python<'_>,
    format: &str,
    weight: PyWeight,
    dtype: &str,
    dy: Region,
    dx: Region,
) -> PyResult<()> {
    let format = formats::by_name(format).map_err(to_python)?;
    py.detach(|| typed!(dtype, transposed_typed(format, weight, dy, dx)))
}

/// [`linear_transposed`], for those who hold no lock of Python's.
pub(crate) fn transposed_typed<T: Element>(
    format: &'static Format,
    weight: PyWeight,
    dy: Region,
    dx: Region,
) -> PyResult<()> {
    // SAFETY: see the module; `weight` is dropped on return.
    let (weight, dy, dx) = unsafe {
        let (weight, [codes, scales]) = weight.borrow(format)?;
        let dy: &[T] = dy.read("dy")?;
        (weight, dy, dx.write::<T>("dx", &[codes, scales, addresses(dy)])?)
    };
    threads::run(|| Cpu::best().linear_transposed(&weight, dy, dx)).map_err(to_python)
}

/// `out = a bᵀ`, exact: `a: [M, k]`, `b: [N, k]` in i8, `out: [M, N]` in i32.
#[pyfunction]
pub fn int8_matmul(py: Python<'_>, a: Region, b: Region, k: Size, out: Region) -> PyResult<()> {
    // SAFETY: see the module.
    let (a, b, out) = unsafe {
        let (a, b): (&[i8], &[i8]) = (a.read("a")?, b.read("b")?);
        (a, b, out.write::<i32>("out", &[addresses(a), addresses(b)])?)
    };
    py.detach(|| threads::run(|| Cpu::best().int8_matmul(a, b, k.0, out))).map_err(to_python)
}

/// `out = sums * rows * columns / 127² + bias`: `sums, out: [M, N]`, `rows: [M]`,
/// `columns, bias: [N]`.
#[pyfunction]
#[pyo3(signature = (dtype, sums, rows, columns, bias, out))]
pub fn int8_rescale(
    py: Python<'_>,
    dtype: &str,
    sums: Region,
    rows: Region,
    columns: Region,
    bias: Option<Region>,
    out: Region,
) -> PyResult<()> {
    typed!(dtype, int8_rescale_typed(py, sums, rows, columns, bias, out))
}

fn int8_rescale_typed<T: Element>(
    py: Python<'_>,
    sums: Region,
    rows: Region,
    columns: Region,
    bias: Option<Region>,
    out: Region,
) -> PyResult<()> {
    // SAFETY: see the module.
    let (sums, rows, columns, bias, out) = unsafe {
        let sums: &[i32] = sums.read("sums")?;
        let (rows, columns): (&[f32], &[f32]) = (rows.read("rows")?, columns.read("columns")?);
        let bias: Option<&[T]> = bias.map(|b| b.read("bias")).transpose()?;
        let inputs = [addresses(sums), addresses(rows), addresses(columns)];
        let inputs = [&inputs[..], &[addresses(bias.unwrap_or(&[]))]].concat();
        (sums, rows, columns, bias, out.write::<T>("out", &inputs)?)
    };
    py.detach(|| threads::run(|| Cpu::best().int8_rescale(sums, rows, columns, bias, out)))
        .map_err(to_python)
}

/// `y = x wᵀ + bias` with activations quantized by rows, but for columns of outliers.
#[pyfunction]
#[pyo3(signature = (format, weight, dtype, x, threshold, bias, y))]
#[expect(clippy::too_many_arguments, reason = "as Python passes them")]
pub fn int8_linear(
    py: Python<'_>,
    format: &str,
    weight: PyWeight,
    dtype: &str,
    x: Region,
    threshold: f32,
    bias: Option<Region>,
    y: Region,
) -> PyResult<()> {
    typed!(dtype, int8_linear_typed(py, format, weight, x, threshold, bias, y))
}

fn int8_linear_typed<T: Element>(
    py: Python<'_>,
    format: &str,
    weight: PyWeight,
    x: Region,
    threshold: f32,
    bias: Option<Region>,
    y: Region,
) -> PyResult<()> {
    let format = formats::by_name(format).map_err(to_python)?;
    // SAFETY: see the module; `weight` is dropped on return.
    let (weight, x, bias, y) = unsafe {
        let (weight, [codes, scales]) = weight.borrow(format)?;
        let x: &[T] = x.read("x")?;
        let bias: Option<&[T]> = bias.map(|b| b.read("bias")).transpose()?;
        let taken = [codes, scales, addresses(x), addresses(bias.unwrap_or(&[]))];
        (weight, x, bias, y.write::<T>("y", &taken)?)
    };
    py.detach(|| threads::run(|| Cpu::best().int8_linear(&weight, x, threshold, bias, y)))
        .map_err(to_python)
}

/// `out[i] = w[ids[i]]`.
#[pyfunction]
pub fn embedding(
    py: Python<'_>,
    format: &str,
    weight: PyWeight,
    ids: Region,
    dtype: &str,
    out: Region,
) -> PyResult<()> {
    typed!(dtype, embedding_typed(py, format, weight, ids, out))
}

fn embedding_typed<T: Element>(
    py: Python<'_>,
    format: &str,
    weight: PyWeight,
    ids: Region,
    out: Region,
) -> PyResult<()> {
    let format = formats::by_name(format).map_err(to_python)?;
    // SAFETY: see the module; `weight` is dropped on return.
    let (weight, ids, out) = unsafe {
        let (weight, [codes, scales]) = weight.borrow(format)?;
        let ids: &[i64] = ids.read("ids")?;
        let taken = [codes, scales, addresses(ids)];
        (weight, ids, out.write::<T>("out", &taken)?)
    };
    py.detach(|| threads::run(|| Cpu::best().embedding(&weight, ids, out))).map_err(to_python)
}

/// `out = a dense`: `a: [shape]` in lists of places and values, of the type of `dense`, or i8 with
/// a scale.
#[pyfunction]
#[pyo3(signature = (dtype, shape, rows, columns, values, scale, dense, out))]
#[expect(clippy::too_many_arguments, reason = "as Python passes them")]
pub fn sparse_matmul(
    py: Python<'_>,
    dtype: &str,
    shape: [Size; 2],
    rows: Region,
    columns: Region,
    values: Region,
    scale: Option<f32>,
    dense: Region,
    out: Region,
) -> PyResult<()> {
    let places = (shape.map(|size| size.0), rows, columns);
    typed!(dtype, sparse_matmul_typed(py, places, values, scale, dense, out))
}

fn sparse_matmul_typed<T: Element>(
    py: Python<'_>,
    (shape, rows, columns): ([usize; 2], Region, Region),
    values: Region,
    scale: Option<f32>,
    dense: Region,
    out: Region,
) -> PyResult<()> {
    // SAFETY: see the module, for this and each below.
    let (rows, columns): (&[i64], &[i64]) =
        unsafe { (rows.read("rows")?, columns.read("columns")?) };
    // SAFETY: see above.
    let dense: &[T] = unsafe { dense.read("dense")? };
    let taken = [addresses(rows), addresses(columns), addresses(dense)];
    match scale {
        None => {
            // SAFETY: see above.
            let values: &[T] = unsafe { values.read("values")? };
            let taken = [&taken[..], &[addresses(values)]].concat();
            // SAFETY: see above.
            let out = unsafe { out.write("out", &taken)? };
            let a = Coo { shape, rows, columns, values };
            py.detach(|| threads::run(|| Cpu::best().sparse_matmul(&a, dense, out)))
        }
        Some(scale) => {
            // SAFETY: see above.
            let values: &[i8] = unsafe { values.read("values")? };
            let taken = [&taken[..], &[addresses(values)]].concat();
            // SAFETY: see above.
            let out = unsafe { out.write("out", &taken)? };
            let a = Coo { shape, rows, columns, values };
            py.detach(|| threads::run(|| Cpu::best().sparse_matmul_int8(&a, scale, dense, out)))
        }
    }
    .map_err(to_python)
}

/// Copies a result to where Python wants it.
fn fill<T: Copy>(out: &mut [T], made: &[T], name: &str) -> PyResult<()> {
    if out.len() != made.len() {
        return Err(PyValueError::new_err(format!(
            "{name}: expected room for {} elements, got {}; allocate as many as there are blocks",
            made.len(),
            out.len()
        )));
    }
    out.copy_from_slice(made);
    Ok(())
}
