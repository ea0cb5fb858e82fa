//! 16 or 32 bit to a format.

use std::path::Path;

use lowbit::{DType, Element, Format, QTensor};
use regex::Regex;

use super::config::{self, Quantization};
use super::run::{Job, run};
use super::select::{Reason, Selection, left_in_model, module};
use super::{Progress, Report, WriteOptions};
use crate::checkpoint::config_dtype;
use crate::checkpoint::encode::{Target, check_double_quant};
use crate::checkpoint::quant_state::weight_dtype;
use crate::{Checkpoint, Entry, Error, Result};

/// What to quantize, and to what.
#[derive(Debug, Clone)]
pub struct QuantizeOptions {
    /// The format.
    pub format: &'static Format,
    /// Weights that share a scale; `None` for the format's default.
    pub block_size: Option<usize>,
    /// Whether to quantize the scales as well.
    pub double_quant: bool,
    /// Leaves every tensor whose name one of these finds; it wins over `include`.
    pub skip: Vec<Regex>,
    /// Quantizes every floating-point tensor whose name one of these finds, even an embedding or
    /// the output head. transformers can load a quantized head, but not a quantized embedding.
    pub include: Vec<Regex>,
    /// How the output is written.
    pub write: WriteOptions,
}

impl QuantizeOptions {
    /// A format and its defaults.
    pub fn new(format: &'static Format) -> Self {
        QuantizeOptions {
            format,
            block_size: None,
            double_quant: false,
            skip: Vec::new(),
            include: Vec::new(),
            write: WriteOptions::default(),
        }
    }
}

/// Quantizes a model directory or a safetensors file.
///
/// Of a model, the weights of linear layers are quantized: matrices named `<layer>.weight` that are
/// no embedding, norm, output head or router of experts. Of a bare file, every floating-point tensor whose name ends in
/// `weight`. A format with a scale per row leaves what has no rows. The output is a directory or a
/// file, as the input is.
///
/// # Errors
/// [`Error::File`] if the input is quantized already or the output cannot take its place;
/// [`Error::Weight`] for NaN or infinity in a weight and for a shape or a block size that the format
/// cannot have; [`Error::Argument`] for double quantization of a format that cannot have it;
/// [`Error::Io`] if the system refuses; [`Error::Cancelled`].
pub fn quantize(
    input: &Path,
    output: &Path,
    options: &QuantizeOptions,
    progress: &dyn Progress,
) -> Result<Report> {
    if options.double_quant {
        check_double_quant(options.format)?;
    }
    let checkpoint = Checkpoint::open(input)?;
    let selection = Selection {
        format: options.format,
        skip: &options.skip,
        include: &options.include,
        is_model: checkpoint.directory().is_some(),
    };
    let jobs = checkpoint.entries().iter().map(|entry| job(entry, &selection, options));
    let jobs: Vec<Job<'_>> = jobs.collect::<Result<_>>()?;
    if let Some(method) = checkpoint.config().and_then(config::method) {
        return Err(already_quantized(input, format!("a model quantized by {method}")));
    }
    if checkpoint.directory().is_some() && jobs.iter().all(|job| job.left.is_some()) {
        return Err(Error::file(
            input,
            "a linear layer to quantize",
            "none that is not skipped",
            "skip less, or include by name what is left by default",
        ));
    }
    let config = checkpoint.config().map(|old| {
        let skip_modules = skip_modules(&jobs);
        let first = jobs.iter().find(|job| job.left.is_none());
        let dtype = first.and_then(|job| weight_dtype(job.entry.dtype));
        let how = Quantization {
            format: options.format,
            block_size: common_block_size(options),
            double_quant: options.double_quant,
            dtype: config_dtype(old).or(dtype).unwrap_or(DType::F32),
            skip_modules: skip_modules.as_deref(),
        };
        config::quantized(old, &how)
    });
    run(&checkpoint, output, &jobs, config.as_ref(), &options.write, progress)
}

/// The block size of all tensors; `None` where each row is a block.
fn common_block_size(options: &QuantizeOptions) -> Option<usize> {
    let QuantizeOptions { format, block_size, .. } = options;
    if format.block_sizes().is_empty() { None } else { format.block_size(*block_size, 1).ok() }
}

fn already_quantized(path: &Path, got: String) -> Error {
    let help = "dequantize it first, or start from the original";
    Error::file(path, "weights that are not quantized", got, help)
}

fn job<'a>(
    entry: &'a Entry,
    selection: &Selection<'_>,
    options: &'a QuantizeOptions,
) -> Result<Job<'a>> {
    let Some(data) = entry.dense_bytes() else {
        let got = format!("{} for {:?}", entry.format_name(), entry.name);
        return Err(already_quantized(entry.file(), got));
    };
    let dtype = match (selection.left(entry), weight_dtype(entry.dtype)) {
        (None, Some(dtype)) => dtype,
        (reason, _) => {
            let reason = reason.unwrap_or(Reason::NotFloat(entry.dtype));
            return Ok(Job::copy(entry, data, reason));
        }
    };
    let target = Target {
        name: entry.name.clone(),
        format: options.format,
        shape: entry.shape.clone(),
        block_size: options.block_size,
        double_quant: options.double_quant,
        dtype,
    };
    let slots = target.slots().map_err(|error| match error {
        Error::Core(source) => Error::weight(entry.file(), &entry.name)(source),
        other => other,
    })?;
    let make = move || {
        let q = match dtype {
            DType::F32 => quantize_as::<f32>(&target, data),
            DType::F16 => quantize_as::<half::f16>(&target, data),
            DType::BF16 => quantize_as::<half::bf16>(&target, data),
        };
        target.parts(&q.map_err(Error::weight(entry.file(), &entry.name))?)
    };
    Ok(Job { entry, left: None, slots, make: Box::new(make) })
}

fn quantize_as<T: Element>(target: &Target, data: &[u8]) -> lowbit::Result<QTensor> {
    let Target { format, shape, block_size, double_quant, .. } = target;
    let q = match bytemuck::try_cast_slice::<u8, T>(data) {
        Ok(weights) => lowbit::quantize(format, weights, shape, *block_size),
        // Some writers do not align tensors.
        Err(_) => {
            let weights: Vec<T> = bytemuck::pod_collect_to_vec(data);
            lowbit::quantize(format, &weights, shape, *block_size)
        }
    }?;
    if *double_quant { lowbit::double_quantize(q) } else { Ok(q) }
}

/// The linear layers that transformers must be told to leave in 16 bit; `None` if it is only the
/// output head, which it leaves by itself.
fn skip_modules(jobs: &[Job<'_>]) -> Option<Vec<String>> {
    let layers = |kind: Option<Reason>, is_left: bool| -> Vec<String> {
        let wanted =
            |job: &&Job<'_>| job.left.is_some() == is_left && left_in_model(job.entry) == kind;
        jobs.iter().filter(wanted).filter_map(|job| Some(module(&job.entry.name)?.into())).collect()
    };
    let mut skipped = layers(None, true);
    // Layers like all others to whoever loads the result.
    skipped.extend(layers(Some(Reason::Router), true));
    let is_head_quantized = !layers(Some(Reason::Head), false).is_empty();
    if skipped.is_empty() && !is_head_quantized {
        return None;
    }
    if !is_head_quantized {
        let heads = layers(Some(Reason::Head), true);
        // A tied head has no weight of its own, but is a layer all the same.
        skipped.extend(if heads.is_empty() { vec!["lm_head".into()] } else { heads });
    }
    Some(skipped)
}
