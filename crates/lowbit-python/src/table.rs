//! The table of formats, as data for the Python half.

use lowbit::conformance::Size;
use lowbit::cpu::Isa;
use lowbit::format::{Keys, Layout, Packing, ScaleKind, Values};
use lowbit::{Cpu, Format};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::{threads, to_python};

/// Every format: a dict of its fields, by the names of `lowbit.formats.Format`.
#[pyfunction]
pub fn formats<'py>(py: Python<'py>) -> PyResult<Vec<Bound<'py, PyDict>>> {
    lowbit::formats::ALL.iter().map(|format| describe(py, format)).collect()
}

/// The format of that name, which may be a variant of one of [`formats`].
#[pyfunction]
pub fn format_by_name<'py>(py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyDict>> {
    describe(py, lowbit::formats::by_name(name).map_err(to_python)?)
}

fn describe<'py>(py: Python<'py>, format: &Format) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("name", format.name)?;
    dict.set_item("about", format.about)?;
    dict.set_item("code_bits", format.code_bits)?;
    dict.set_item("weights_per_code", format.weights_per_code)?;
    dict.set_item(
        "packing",
        match format.packing {
            Packing::HighFirst => "high_first",
            Packing::LowFirst => "low_first",
            Packing::Radix { .. } => "radix",
        },
    )?;
    let radix = match format.packing {
        Packing::Radix { base, per_byte } => Some((base, per_byte)),
        _ => None,
    };
    dict.set_item("radix", radix)?;
    dict.set_item("in_rows", format.in_rows())?;
    let (padding, stacked) = match format.layout {
        Layout::Rows { pad, .. } => (pad, 1),
        Layout::Flat { .. } => (1, 1),
        Layout::Stacked { rows } => (1, rows),
    };
    dict.set_item("row_padding", padding)?;
    dict.set_item("stacked_rows", stacked)?;
    dict.set_item("block_sizes", format.block_sizes())?;
    dict.set_item("default_block_size", format.default_block_size())?;
    dict.set_item("scales_are_bytes", format.scale == ScaleKind::E8M0)?;
    dict.set_item("scales_are_means", format.scale == ScaleKind::Absmean)?;
    dict.set_item("scale_is_step", format.scale == ScaleKind::Step)?;
    dict.set_item("can_double_quantize", format.can_double_quantize())?;
    dict.set_item("peak", format.peak)?;
    dict.set_item("unit", format.unit)?;
    dict.set_item("has_mean", format.has_mean)?;
    dict.set_item("codes_are_integers", matches!(format.values, Values::Integer(_)))?;
    dict.set_item("codebook", format.codebook())?;
    dict.set_item("codebook_is_signs", matches!(format.values, Values::Patterns { .. }))?;
    let encoder = format.encoder.map(|e| (e.ups.to_vec(), e.codes.to_vec(), e.sign_bit));
    dict.set_item("encoder", encoder)?;
    dict.set_item(
        "library",
        match format.keys {
            Keys::QuantState { library } => Some(library),
            Keys::RowStats => None,
            // As transformers calls what has such keys.
            Keys::TensorScale => Some("bitnet"),
        },
    )?;
    Ok(dict)
}

/// Holds every instruction set of this machine to the scalar reference: its name, the number of
/// comparisons, and a line for each that failed.
#[pyfunction]
pub fn conformance(py: Python<'_>, full: bool) -> Vec<(&'static str, usize, Vec<String>)> {
    let size = if full { Size::Full } else { Size::Quick };
    let run = |isa: Isa| {
        let report = threads::run(|| lowbit::conformance::run(&Cpu::with(isa), size));
        (isa.name(), report.cases, report.failures)
    };
    py.detach(|| Isa::available().into_iter().map(run).collect())
}

/// The instruction set that the kernels use on this machine.
#[pyfunction]
pub fn instruction_set() -> &'static str {
    Isa::best().name()
}
