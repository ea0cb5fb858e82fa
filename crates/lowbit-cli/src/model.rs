//! Opening a model to run it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use lowbit::DType;
use lowbit::device::Device;
use lowbit_llm::{Checkpoint, Config, Model, Tokenizer};

use crate::args::Threads;
use crate::device::DeviceArgs;
use crate::failure::Result;
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
    pub fn device(&self, activations: DType) -> Result<Arc<dyn Device>> {
        self.threads.apply()?;
        self.device.open(activations)
    }

    /// Opens the model directory `path` and its tokenizer. A model that was saved in 16 bit computes
    /// with 16-bit activations, any other with f32.
    pub fn open(&self, path: &Path) -> Result<Loaded> {
        let checkpoint = Checkpoint::open(path)?;
        let config = checkpoint.config().map(Config::parse).transpose()?;
        let activations = config.and_then(|config| config.dtype).unwrap_or(DType::F32);
        let device = self.device(activations)?;
        let model = load(&checkpoint, Arc::clone(&device))?;
        let directory = checkpoint.directory().unwrap_or(path).to_owned();
        Ok(Loaded {
            tokenizer: Tokenizer::open(&directory)?,
            model,
            device,
            activations,
            directory,
            checkpoint,
        })
    }
}

/// Moves the weights of a checkpoint to a device.
pub fn load(checkpoint: &Checkpoint, device: Arc<dyn Device>) -> Result<Model> {
    let progress = Progress::new("loading");
    Ok(Model::load(checkpoint, device, &mut |done, total| progress.update(done, total, ""))?)
}

/// A model that is ready to run.
pub struct Loaded {
    pub model: Model,
    pub tokenizer: Tokenizer,
    pub device: Arc<dyn Device>,
    /// Type of the activations.
    pub activations: DType,
    pub directory: PathBuf,
    pub checkpoint: Checkpoint,
}
