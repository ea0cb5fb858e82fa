//! 16 or 32 bit to a format.

use std::collections::HashMap;
use std::path::Path;

use bytes::Bytes;
use lowbit::format::ScaleKind;
use lowbit::quantizers::Inputs;
use lowbit::{Cpu, DType, Element, Format, QTensor, quantizers};
use regex::Regex;

use super::calibrate::{self, Calibration};

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
    /// Formats of tensors whose names these find, the first that does; [`format`](Self::format) is for
    /// the others.
    pub map: Vec<(Regex, &'static Format)>,
    /// How codes and scales are searched for.
    pub search: quantizers::Options,
    /// Whether to write under the keys of MLX's affine quantization, which one-bit formats can have.
    pub mlx: bool,
    /// The text that a model is calibrated with: its linear layers are quantized with error feedback.
    pub calibration: Option<Calibration>,
    /// How the output is written.
    pub write: WriteOptions,
}

impl QuantizeOptions {
    /// The format of the tensor of that name, if it is quantized.
    fn format_of(&self, name: &str) -> &'static Format {
        let mapped = self.map.iter().find(|(pattern, _)| pattern.is_match(name));
        mapped.map_or(self.format, |(_, format)| format)
    }

    /// A format and its defaults.
    pub fn new(format: &'static Format) -> Self {
        QuantizeOptions {
            format,
            block_size: None,
            double_quant: false,
            skip: Vec::new(),
            include: Vec::new(),
            map: Vec::new(),
            search: quantizers::Options::default(),
            mlx: false,
            calibration: None,
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
/// [`Error::File`] if the input is quantized already or the output cannot take its place, or if it is
/// to be calibrated and is no model; [`Error::Weight`] for NaN or infinity in a weight and for a shape or a block size that the format
/// cannot have; [`Error::Argument`] for double quantization of a format that cannot have it and for a
/// calibration text that is too short; [`Error::Io`] if the system refuses; [`Error::Cancelled`].
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
    let plans = checkpoint.entries().iter().map(|entry| plan(&checkpoint, entry, options));
    let plans: Vec<Plan<'_>> = plans.collect::<Result<_>>()?;
    if let Some(method) = checkpoint.config().and_then(config::method) {
        return Err(already_quantized(input, format!("a model quantized by {method}")));
    }
    if checkpoint.directory().is_some() && plans.iter().all(|plan| plan.target.is_err()) {
        return Err(Error::file(
            input,
            "a linear layer to quantize",
            "none that is not skipped",
            "skip less, or include by name what is left by default",
        ));
    }
    let made = calibrated(&checkpoint, &plans, options, progress)?;
    let jobs = plans.into_iter().map(|plan| job(plan, options, &made));
    let jobs: Vec<Job<'_>> = jobs.collect::<Result<_>>()?;
    let config = checkpoint.config().map(|old| {
        let skip_modules = skip_modules(&jobs);
        let first = jobs.iter().find(|job| job.left.is_none());
        let dtype = first.and_then(|job| weight_dtype(job.entry.dtype));
        if let (true, Some(group_size)) = (options.mlx, options.block_size) {
            return config::mlx(old, group_size);
        }
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
    block_size.or(format.default_block_size())
}

fn already_quantized(path: &Path, got: String) -> Error {
    let help = "dequantize it first, or start from the original";
    Error::file(path, "weights that are not quantized", got, help)
}

/// What becomes of a tensor.
struct Plan<'a> {
    entry: &'a Entry,
    data: &'a Bytes,
    /// What it is quantized to, or why it is not.
    target: std::result::Result<Target, Reason>,
}

fn plan<'a>(
    checkpoint: &Checkpoint,
    entry: &'a Entry,
    options: &QuantizeOptions,
) -> Result<Plan<'a>> {
    let Some(data) = entry.dense_bytes() else {
        let got = format!("{} for {:?}", entry.format_name(), entry.name);
        return Err(already_quantized(entry.file(), got));
    };
    let format = options.format_of(&entry.name);
    let selection = Selection {
        format,
        skip: &options.skip,
        include: &options.include,
        is_model: checkpoint.directory().is_some(),
    };
    let dtype = match (selection.left(entry), weight_dtype(entry.dtype)) {
        (None, Some(dtype)) => dtype,
        (reason, _) => {
            let reason = reason.unwrap_or(Reason::NotFloat(entry.dtype));
            return Ok(Plan { entry, data, target: Err(reason) });
        }
    };
    // Block size and double quantization were asked for the format that is no exception.
    let is_usual = std::ptr::eq(format, options.format);
    let target = Target {
        name: entry.name.clone(),
        format,
        shape: entry.shape.clone(),
        block_size: options.block_size.filter(|_| is_usual),
        double_quant: options.double_quant && is_usual,
        dtype,
        means: options.search.gives_means(format),
        mlx: options.mlx,
    };
    Ok(Plan { entry, data, target: Ok(target) })
}

/// The linear layers that a calibration has quantized.
fn calibrated(
    checkpoint: &Checkpoint,
    plans: &[Plan<'_>],
    options: &QuantizeOptions,
    progress: &dyn Progress,
) -> Result<HashMap<String, QTensor>> {
    let Some(calibration) = &options.calibration else { return Ok(HashMap::new()) };
    let targets: HashMap<&str, (&Target, &Plan<'_>)> = plans
        .iter()
        .filter_map(|plan| Some((plan.entry.name.as_str(), (plan.target.as_ref().ok()?, plan))))
        .collect();
    let make = |name: &str, inputs: &Inputs<'_>| {
        let (target, plan) = targets.get(name).ok_or_else(|| {
            Error::argument("calibrate", "a layer to quantize", name, "report it")
        })?;
        let w = numbers(target.dtype, plan.data);
        let q = search(target, &w, Some(inputs), options);
        q.map_err(Error::weight(plan.entry.file(), name))
    };
    let wanted = |name: &str| targets.contains_key(name);
    let run = || calibrate::quantize(checkpoint, calibration, &wanted, &make, progress);
    super::run::pool(&options.write)?.install(run)
}

fn job<'a>(
    plan: Plan<'a>,
    options: &'a QuantizeOptions,
    made: &'a HashMap<String, QTensor>,
) -> Result<Job<'a>> {
    let Plan { entry, data, target } = plan;
    let target = match target {
        Ok(target) => target,
        Err(reason) => return Ok(Job::copy(entry, data, reason)),
    };
    let slots = target.slots().map_err(|error| match error {
        Error::Core(source) => Error::weight(entry.file(), &entry.name)(source),
        other => other,
    })?;
    let make = move || {
        let q = match (made.get(&target.name), target.dtype) {
            (Some(made), _) => return target.parts(made),
            (None, dtype) if needs_search(&target, options) => {
                search(&target, &numbers(dtype, data), None, options)
            }
            (None, DType::F32) => quantize_as::<f32>(&target, data),
            (None, DType::F16) => quantize_as::<half::f16>(&target, data),
            (None, DType::BF16) => quantize_as::<half::bf16>(&target, data),
        };
        target.parts(&q.map_err(Error::weight(entry.file(), &entry.name))?)
    };
    Ok(Job { entry, left: None, slots, make: Box::new(make) })
}

/// Whether codes or scales come from more than the format's encoder.
fn needs_search(target: &Target, options: &QuantizeOptions) -> bool {
    let format = target.format;
    format.encoder.is_none() || (options.search.fit && format.scale == ScaleKind::Absmean)
}

/// Quantizes by the best way that is open.
fn search(
    target: &Target,
    w: &[f32],
    inputs: Option<&Inputs<'_>>,
    options: &QuantizeOptions,
) -> lowbit::Result<QTensor> {
    let Target { format, shape, block_size, double_quant, .. } = target;
    let isa = Cpu::best().isa();
    let q = quantizers::quantize(isa, format, w, shape, *block_size, inputs, &options.search)?;
    if *double_quant { lowbit::double_quantize(q) } else { Ok(q) }
}

/// The numbers of a tensor.
fn numbers(dtype: DType, data: &[u8]) -> Vec<f32> {
    fn wide<T: Element>(data: &[u8]) -> Vec<f32> {
        let numbers: Vec<T> = bytemuck::pod_collect_to_vec(data);
        numbers.into_iter().map(T::to_f32).collect()
    }
    match dtype {
        DType::F32 => wide::<f32>(data),
        DType::F16 => wide::<half::f16>(data),
        DType::BF16 => wide::<half::bf16>(data),
    }
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
