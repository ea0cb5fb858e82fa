//! Opening a model to run it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use lowbit::DType;
use lowbit_llm::{Checkpoint, Config, Model, Tokenizer};

use crate::args::Threads;
use crate::device::{DeviceArgs, Place};
use crate::failure::{Failure, Result};
use crate::ui::Progress;

/// Where a model runs.
#[derive(Debug, clap::Args)]
pub struct RunArgs {
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    threads: Threads,
}

impl RunArgs {
    /// Makes the device ready.
    pub fn device(&self, activations: DType) -> Result<Place> {
        self.threads.apply()?;
        self.device.open(activations)
    }

    /// Opens the model directory `path`. A model that was saved in 16 bit computes
    /// with 16-bit activations, any other with f32.
    pub fn open(&self, path: &Path) -> Result<Loaded> {
        let checkpoint = Checkpoint::open(path)?;
        let activations = activations(&checkpoint)?;
        let place = self.device(activations)?;
        let model = load(&checkpoint, &place)?;
        let directory = checkpoint.directory().unwrap_or(path).to_owned();
        Ok(Loaded { model, place, activations, directory, checkpoint })
    }
}

/// What activations of a checkpoint are computed in.
pub fn activations(checkpoint: &Checkpoint) -> Result<DType> {
    let config = checkpoint.config().map(Config::parse).transpose()?;
    Ok(config.and_then(|config| config.dtype).unwrap_or(DType::F32))
}

/// Where the tokenizer is.
#[derive(Debug, clap::Args)]
pub struct TokenizerArgs {
    /// Take the tokenizer from this model directory [default: MODEL]
    #[arg(long, value_name = "DIR")]
    tokenizer: Option<PathBuf>,
}

impl TokenizerArgs {
    /// The directory asked for, or the first of `places` that has a tokenizer; and what it has.
    pub fn open<'a>(&'a self, places: &[&'a Path]) -> Result<(Tokenizer, &'a Path)> {
        let has_one = |place: &&Path| place.join("tokenizer.json").exists();
        let found = match &self.tokenizer {
            Some(directory) => Some(directory.as_path()),
            None => places.iter().copied().find(has_one),
        };
        let directory = found.ok_or_else(|| {
            let places: Vec<_> = places.iter().map(|place| place.display().to_string()).collect();
            Failure::failed(format!(
                "{}: expected a tokenizer.json, got none; copy it from the original model, or name \
                 that model's directory with --tokenizer",
                places.join(", ")
            ))
        })?;
        Ok((Tokenizer::open(directory)?, directory))
    }
}

/// Moves the weights of a checkpoint to a device.
pub fn load(checkpoint: &Checkpoint, place: &Place) -> Result<Model> {
    let progress = Progress::new("loading");
    Ok(Model::load(checkpoint, Arc::clone(&place.device), &mut |done, total| {
        progress.update(done, total, "")
    })?)
}

/// A model that is ready to run.
pub struct Loaded {
    pub model: Model,
    pub place: Place,
    /// Type of the activations.
    pub activations: DType,
    pub directory: PathBuf,
    pub checkpoint: Checkpoint,
}
