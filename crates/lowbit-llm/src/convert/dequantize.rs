//! Back to 16 or 32 bit.

use std::path::Path;

use bytes::Bytes;
use lowbit::{DType, Element, Weight};

use super::run::{Job, Parts, run};
use super::{Progress, Reason, Report, WriteOptions, config};
use crate::checkpoint::quant_state::{header_dtype, weight_dtype};
use crate::checkpoint::write::Slot;
use crate::{Checkpoint, Entry, Error, Result};

/// How to dequantize.
#[derive(Debug, Clone, Default)]
pub struct DequantizeOptions {
    /// Type of all floating-point tensors of the output. `None` gives each quantized tensor the type
    /// that its file records, and leaves the others.
    pub dtype: Option<DType>,
    /// How the output is written.
    pub write: WriteOptions,
}

/// Writes a quantized model directory or safetensors file as a plain 16- or 32-bit one.
///
/// # Errors
/// [`Error::File`] if nothing in the input is quantized in a format of this library or the output
/// cannot take its place; [`Error::Tensor`] for a weight beyond the range of f16; [`Error::Io`] if
/// the system refuses; [`Error::Cancelled`].
pub fn dequantize(
    input: &Path,
    output: &Path,
    options: &DequantizeOptions,
    progress: &dyn Progress,
) -> Result<Report> {
    let checkpoint = Checkpoint::open(input)?;
    if checkpoint.entries().iter().all(|e| e.format.is_none()) {
        let got = match checkpoint.config().and_then(config::method) {
            Some(method) => format!("a model quantized by {method}"),
            None => "only dense tensors".into(),
        };
        let expected = "tensors in a format of this library";
        let help = "there is nothing here to dequantize";
        return Err(Error::file(input, expected, got, help));
    }
    let jobs = checkpoint.entries().iter().map(|entry| job(entry, options.dtype));
    let jobs: Vec<Job<'_>> = jobs.collect::<Result<_>>()?;
    let config = checkpoint.config().map(|old| config::dequantized(old, options.dtype));
    run(&checkpoint, output, &jobs, config.as_ref(), &options.write, progress)
}

fn job(entry: &Entry, asked: Option<DType>) -> Result<Job<'_>> {
    let before = weight_dtype(entry.dtype);
    let dtype = match (entry.dense_bytes(), before, asked) {
        (Some(data), None, _) => {
            return Ok(Job::copy(entry, data, Reason::NotFloat(entry.dtype)));
        }
        (Some(data), Some(before), asked) if asked.is_none_or(|asked| asked == before) => {
            return Ok(Job::copy(entry, data, Reason::NotQuantized));
        }
        _ => asked.or(before).unwrap_or(DType::F32),
    };
    let make = move || -> Result<Parts> {
        let data = match dtype {
            DType::F32 => numbers::<f32>(entry),
            DType::F16 => numbers::<half::f16>(entry),
            DType::BF16 => numbers::<half::bf16>(entry),
        };
        Ok(vec![(entry.name.clone(), data?)])
    };
    let slot = Slot::new(entry.name.clone(), header_dtype(dtype), entry.shape.clone());
    Ok(Job { entry, left: None, slots: vec![slot], make: Box::new(make) })
}

/// The weights of an entry as numbers of type `T`.
fn numbers<T: Element>(entry: &Entry) -> Result<Bytes> {
    let numbers: Vec<T> = match entry.weight()? {
        Weight::Dense(dense) => dense.to_f32().into_iter().map(T::from_f32).collect(),
        Weight::Quantized(q) => {
            let mut out = vec![T::default(); q.numel()];
            lowbit::dequantize(&q, &mut out).map_err(Error::weight(entry.file(), &entry.name))?;
            out
        }
    };
    if T::DTYPE == DType::F16
        && let Some(index) = numbers.iter().position(|v| v.to_f32().is_infinite())
    {
        return Err(Error::tensor(
            entry.file(),
            &entry.name,
            "weights within f16's 65504",
            format!("a larger one at index {index}"),
            "choose bf16 or f32",
        ));
    }
    Ok(Bytes::from_owner(Owner(numbers)))
}

/// Numbers that are handed on as bytes.
struct Owner<T>(Vec<T>);

impl<T: Element> AsRef<[u8]> for Owner<T> {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}
