//! Quantizing a model layer by layer, with what a text makes of the inputs of each.
//!
//! A linear layer sees what those before it give after they were quantized, in its own block too, and
//! aims at what it gave in the original model, so that it makes up for what they lose. In memory are
//! one layer's weights, the inner products of its inputs, the activations of the windows in both
//! models, and what is quantized already.

use std::collections::HashMap;
use std::path::Path;

use lowbit::device::{Device, Tensor};
use lowbit::quantizers::Inputs;
use lowbit::{Cpu, CpuDevice, DType, DenseTensor, QTensor, Weight};

use super::Progress;
use crate::config::Config;
use crate::models::stages::{self, Layer};
use crate::models::{Source, Tap};
use crate::{Checkpoint, Error, Result};

/// The text that a model is calibrated with.
#[derive(Debug, Clone)]
pub struct Calibration {
    /// Its tokens.
    pub tokens: Vec<u32>,
    /// Windows of them to use; `None` for as many as there are, up to [`SAMPLES`].
    pub samples: Option<usize>,
    /// Tokens in a window.
    pub window: usize,
}

/// Windows of a calibration unless another number is asked for.
pub const SAMPLES: usize = 128;

impl Calibration {
    /// The first windows.
    fn windows(&self) -> Result<Vec<&[u32]>> {
        const OP: &str = "calibrate";
        let Calibration { tokens, samples, window } = self;
        let there = tokens.len().checked_div(*window).unwrap_or(0);
        let asked = samples.unwrap_or_else(|| there.clamp(1, SAMPLES));
        if asked == 0 || asked > there {
            return Err(Error::argument(
                OP,
                format!("{} tokens of text, {asked} windows of {window}", asked * window),
                format!("{}, calibration text too short", tokens.len()),
                "use a longer text, or ask for fewer samples",
            ));
        }
        Ok(tokens.chunks_exact(*window).take(asked).collect())
    }
}

/// Quantizes the tensors for which `make` gives something, and runs the model as it comes to be.
///
/// # Errors
/// Those of the configuration, of the model's tensors and of `make`; [`Error::Argument`] for a text
/// that is too short; [`Error::Cancelled`].
pub(super) fn quantize(
    checkpoint: &Checkpoint,
    calibration: &Calibration,
    wanted: &dyn Fn(&str) -> bool,
    make: &dyn Fn(&str, &Inputs<'_>) -> Result<QTensor>,
    progress: &dyn Progress,
) -> Result<HashMap<String, QTensor>> {
    let windows = calibration.windows()?;
    let json = checkpoint.config().ok_or_else(|| {
        let help = "pass a model directory: a bare file does not say how to run it";
        Error::file(checkpoint.path(), "a model with its config.json", "none", help)
    })?;
    let config = Config::parse(json)?;
    let device = CpuDevice::new(Cpu::best(), DType::F32);
    let mut source = Overlay { checkpoint, made: HashMap::new() };
    // What the original model and the one that comes to be give.
    let mut given = stages::embed(&config, checkpoint, &device, &windows)?;
    let mut seen = given.clone();
    let total: u64 = checkpoint.entries().iter().filter(|e| wanted(&e.name)).map(|e| e.bytes).sum();
    let mut done = 0;
    for layer in 0..config.num_hidden_layers {
        let original = Layer::load(&config, checkpoint, &device, layer)?;
        for stage in original.stages() {
            let wanted = |name: &str| stage.contains(&name) && wanted(name);
            if !stage.iter().any(|name| wanted(name)) {
                continue;
            }
            let made = Layer::load(&config, &source, &device, layer)?;
            let mut grams = Grams::new(&device, &wanted);
            for (given, seen) in given.iter().zip(&seen) {
                if progress.cancelled() {
                    return Err(Error::Cancelled);
                }
                grams.given.clear();
                grams.turn = Turn::Given;
                original.run(given, Some(&mut grams))?;
                grams.turn = Turn::Seen;
                made.run(seen, Some(&mut grams))?;
            }
            for (name, [gram, cross]) in grams.means() {
                if progress.cancelled() {
                    return Err(Error::Cancelled);
                }
                let made = make(&name, &Inputs { gram: &gram, cross: Some(&cross) })?;
                done += checkpoint.require(&name)?.bytes;
                source.made.insert(name.clone(), made);
                progress.update(done, total, &name);
            }
        }
        let made = Layer::load(&config, &source, &device, layer)?;
        for (given, seen) in given.iter_mut().zip(&mut seen) {
            *given = original.run(given, None)?;
            *seen = made.run(seen, None)?;
        }
    }
    Ok(source.made)
}

/// A checkpoint, with the weights that are quantized by now.
struct Overlay<'a> {
    checkpoint: &'a Checkpoint,
    made: HashMap<String, QTensor>,
}

impl Source for Overlay<'_> {
    fn name(&self) -> &Path {
        self.checkpoint.path()
    }

    fn bytes(&self) -> u64 {
        self.checkpoint.bytes()
    }

    fn size(&self, name: &str) -> Option<(u64, u64)> {
        Source::size(self.checkpoint, name)
    }

    fn weight(&self, name: &str, _: &[usize]) -> Result<Weight> {
        match self.made.get(name) {
            Some(made) => Ok(made.clone().into()),
            None => self.checkpoint.weight(name),
        }
    }
}

/// Sums of inner products of the inputs of linear layers.
struct Grams<'a> {
    device: &'a dyn Device,
    wanted: &'a dyn Fn(&str) -> bool,
    sums: Vec<Gram>,
    /// Which of them belongs to a layer: some have the same inputs.
    of: Vec<(String, usize)>,
    /// Whose inputs are shown now.
    turn: Turn,
    /// What the original model gave each layer in this window: `[T, K]`.
    given: HashMap<String, Vec<f32>>,
}

/// Which model runs.
enum Turn {
    /// The original.
    Given,
    /// The one that comes to be.
    Seen,
}

struct Gram {
    /// The first layer with these inputs.
    owner: String,
    /// Its inputs of the first window, by which others are known.
    first: Vec<f32>,
    /// `[K, K]`: `xᵀ x` of the inputs `x` that are seen, and `gᵀ x` with those that were given.
    sums: [Vec<f32>; 2],
    rows: usize,
}

impl<'a> Grams<'a> {
    fn new(device: &'a dyn Device, wanted: &'a dyn Fn(&str) -> bool) -> Self {
        let (turn, given) = (Turn::Given, HashMap::new());
        Grams { device, wanted, sums: Vec::new(), of: Vec::new(), turn, given }
    }

    /// The mean inner products of each layer's inputs, with themselves and with the original's.
    fn means(self) -> impl Iterator<Item = (String, [Vec<f32>; 2])> {
        let mean = |gram: &Gram| {
            let factor = 1.0 / gram.rows.max(1) as f32;
            gram.sums.each_ref().map(|sum| sum.iter().map(|v| v * factor).collect())
        };
        self.of.into_iter().map(move |(name, i)| (name, mean(&self.sums[i])))
    }
}

impl Tap for Grams<'_> {
    fn input(&mut self, weight: &str, x: &Tensor) -> Result<()> {
        if !(self.wanted)(weight) {
            return Ok(());
        }
        let known = self.of.iter().find(|(name, _)| name == weight).map(|(_, i)| *i);
        if known.is_some_and(|i| self.sums[i].owner != weight) {
            return Ok(());
        }
        let (rows, k) = x.rows_cols();
        let x = self.device.read(x)?;
        if matches!(self.turn, Turn::Given) {
            self.given.insert(weight.to_owned(), x);
            return Ok(());
        }
        // Layers of one module that read the same read the same always. Experts that were sent the same
        // may be sent something else next time.
        let same = |gram: &Gram| module(&gram.owner) == module(weight) && gram.first == x;
        let i = match known.or_else(|| self.sums.iter().position(same)) {
            Some(i) => i,
            None => {
                let (owner, sums) = (weight.to_owned(), [(); 2].map(|()| vec![0.0; k * k]));
                self.sums.push(Gram { owner, first: x.clone(), sums, rows: 0 });
                self.sums.len() - 1
            }
        };
        if known.is_none() {
            self.of.push((weight.to_owned(), i));
        }
        let gram = &mut self.sums[i];
        if gram.owner == weight {
            // An expert may be sent other rows than in the original model.
            let given = self.given.get(weight).filter(|given| given.len() == x.len());
            gram.add(&x, given.unwrap_or(&x), rows, k)?;
        }
        Ok(())
    }
}

/// What a layer belongs to, by the name of its weight: `<module>.<layer>.weight`.
fn module(weight: &str) -> Option<&str> {
    weight.rsplitn(3, '.').nth(2)
}

impl Gram {
    /// Adds `xᵀ x` and `gᵀ x`: `x: [T, K]`, `g: [T, K]`.
    fn add(&mut self, x: &[f32], given: &[f32], rows: usize, k: usize) -> Result<()> {
        let columns = |x: &[f32]| -> Vec<f32> {
            (0..k).flat_map(|col| (0..rows).map(move |row| x[row * k + col])).collect()
        };
        let seen = columns(x);
        let dense = DenseTensor::from_f32(vec![k, rows], &seen)?.into();
        let mut products = vec![0.0f32; k * k];
        for (sum, by) in self.sums.iter_mut().zip([seen, columns(given)]) {
            Cpu::best().linear_f32(&dense, &by, None, &mut products, DType::F32)?;
            for (sum, product) in sum.iter_mut().zip(&products) {
                *sum += product;
            }
        }
        self.rows += rows;
        Ok(())
    }
}
