//! The native half of the Python package `lowbit`: what needs Rust, and nothing else.
//!
//! Every function takes addresses and lengths of memory that Python allocated, checks what can be
//! checked of them, lets other Python threads run while it works, and keeps nothing. Devices, dtypes,
//! strides and gradients are the business of the Python half; but for products of tensors that are in
//! order, which torch calls without Python (`stable.rs`).

mod low_rank;
mod memory;
mod metal;
mod operations;
mod optimizer;
mod stable;
mod table;
mod threads;
mod weight;

use pyo3::prelude::*;

/// Kernels of lowbit on memory that the caller owns. Private to the package.
#[pymodule(gil_used = false)]
mod _native {
    #[pymodule_export]
    use crate::low_rank::{low_rank, low_rank_backward};
    #[pymodule_export]
    use crate::metal::{
        optimizer_params, plan_dequantize, plan_int8_linear, plan_int8_matmul, plan_int8_rescale,
        plan_linear, plan_linear_transposed, plan_optimizer_norm, plan_optimizer_update,
        plan_quantize,
    };
    #[pymodule_export]
    use crate::operations::{
        dequantize, double_quantize, embedding, int8_linear, int8_matmul, int8_rescale, linear,
        linear_transposed, quantize, search, sparse_matmul,
    };
    #[pymodule_export]
    use crate::optimizer::{optimizer_update, optimizers};
    #[pymodule_export]
    use crate::stable::{describe, register_stable, stable_symbols};
    #[pymodule_export]
    use crate::table::{conformance, format_by_name, formats, instruction_set};
    #[pymodule_export]
    use crate::threads::{after_fork, set_threads, use_openmp};
    use pyo3::prelude::*;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}

/// What Python sees of an error.
fn to_python(error: lowbit::Error) -> PyErr {
    use lowbit::Error;
    use pyo3::exceptions::{PyMemoryError, PyRuntimeError, PyValueError};
    let text = error.to_string();
    match error {
        Error::OutOfMemory { .. } => PyMemoryError::new_err(text),
        Error::Device { .. } => PyRuntimeError::new_err(text),
        _ => PyValueError::new_err(text),
    }
}
