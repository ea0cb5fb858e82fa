//! A quantized weight in memory that Python owns.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use half::f16;
use lowbit::format::ScaleKind;
use lowbit::{Format, Geometry, Nested, Parts, QTensor, Scales};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::memory::{Region, Size, addresses, sizes};
use crate::to_python;

/// Bytes of the widest dtype that codes are stored as.
const WIDEST: usize = 8;

/// What Python passes of a weight: shape, block size, codes, scales, and where the weight has
/// them nested scales, a codebook of its own, and means.
#[derive(FromPyObject)]
pub struct PyWeight(
    pub Vec<Size>,
    pub Size,
    pub Region,
    pub PyScales,
    pub Option<PyNested>,
    pub Option<Region>,
    pub Option<Region>,
);

/// Scales, and whether they are f16.
#[derive(FromPyObject)]
pub struct PyScales(pub Region, pub bool);

/// Of scales that are quantized themselves: their absmax, map and offset, and the block size.
#[derive(FromPyObject)]
pub struct PyNested(pub Region, pub Region, pub Region, pub Size);

impl PyWeight {
    /// The weight, sharing Python's memory, and the addresses that it reads.
    ///
    /// # Errors
    /// `ValueError` for memory that no tensor can lie in, or parts that do not fit each other.
    ///
    /// # Safety
    /// The tensor is dropped before Python frees or writes any part.
    pub unsafe fn borrow(self, format: &'static Format) -> PyResult<(QTensor, [Range<usize>; 2])> {
        let PyWeight(shape, Size(block_size), codes, scales, nested, codebook, means) = self;
        let PyScales(scales, halves) = scales;
        if halves && (format.scale != ScaleKind::Absmean || nested.is_some()) {
            let text = format!(
                "scales: expected those of {}, got f16, which only mean magnitudes are; pass them as \
                 the format has them",
                format.name
            );
            return Err(PyValueError::new_err(text));
        }
        let shape = sizes(&shape);
        // SAFETY: the caller promises that the tensor, and so the slices in it, are dropped in time.
        let codes: &'static [u8] = unsafe { codes.read("codes")? };
        // Codes that are seen as a wider dtype may end in bytes that fill its last element.
        let geometry = Geometry::new(format, &shape, Some(block_size)).map_err(to_python)?;
        let spare = codes.len().saturating_sub(geometry.code_bytes);
        let codes = if spare < WIDEST { &codes[..codes.len() - spare] } else { codes };
        let read = match (&nested, format.scale) {
            (None, _) if halves => {
                // SAFETY: the same.
                let scales: &'static [f16] = unsafe { scales.read("scales")? };
                (Scales::F16(scales.into()), addresses(scales))
            }
            (None, ScaleKind::Absmax | ScaleKind::Step | ScaleKind::Absmean) => {
                // SAFETY: the same.
                let scales: &'static [f32] = unsafe { scales.read("scales")? };
                (Scales::F32(scales.into()), addresses(scales))
            }
            (None, ScaleKind::E8M0) => {
                // SAFETY: the same.
                let scales: &'static [u8] = unsafe { scales.read("scales")? };
                (Scales::E8M0(Bytes::from_static(scales)), addresses(scales))
            }
            (Some(PyNested(absmax, map, offset, Size(block_size))), _) => {
                // SAFETY: the same.
                let scales: &'static [u8] = unsafe { scales.read("scales")? };
                let nested = Nested {
                    codes: Bytes::from_static(scales),
                    absmax: copy(*absmax, "nested_absmax")?,
                    offset: match copy(*offset, "nested_offset")?.as_slice() {
                        [offset] => *offset,
                        other => {
                            let text =
                                format!("nested_offset: expected 1 number, got {}", other.len());
                            return Err(PyValueError::new_err(text));
                        }
                    },
                    block_size: *block_size,
                    map: Arc::from(copy(*map, "nested_map")?),
                };
                (Scales::Nested(nested), addresses(scales))
            }
        };
        let (scales, scale_addresses) = read;
        let tensor = QTensor::from_parts(Parts {
            format,
            shape,
            block_size: Some(block_size),
            codes: Bytes::from_static(codes),
            scales,
            means: means.map(|m| copy(m, "means")).transpose()?,
            codebook: codebook.map(|c| copy(c, "codebook")).transpose()?.map(Arc::from),
        });
        Ok((tensor.map_err(to_python)?, [addresses(codes), scale_addresses]))
    }
}

/// The numbers of a small region.
fn copy(region: Region, name: &str) -> PyResult<Vec<f32>> {
    // SAFETY: Python keeps the region while it waits for this call, and the slice ends here.
    Ok(unsafe { region.read::<f32>(name)? }.to_vec())
}
