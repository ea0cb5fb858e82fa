//! The device that runs a model: the only place that knows which there are.

use std::sync::Arc;

use clap::ValueEnum;
use lowbit::device::Device;
use lowbit::{Cpu, CpuDevice, DType};

use crate::failure::{Failure, Result};

/// Where a model runs.
#[derive(Debug, clap::Args)]
pub struct DeviceArgs {
    /// Where to run
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    device: Choice,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Choice {
    /// The fastest there is
    Auto,
    /// The processor
    Cpu,
    /// The graphics card
    Gpu,
}

/// An open device.
#[derive(Clone)]
pub struct Place {
    /// What `--device` calls it.
    pub kind: &'static str,
    pub device: Arc<dyn Device>,
}

impl DeviceArgs {
    /// The device, for activations of that type.
    pub fn open(&self, activations: DType) -> Result<Place> {
        match self.device {
            Choice::Auto | Choice::Cpu => {
                let device = Arc::new(CpuDevice::new(Cpu::best(), activations));
                Ok(Place { kind: "cpu", device })
            }
            Choice::Gpu => Err(Failure::failed(
                "--device gpu: this build of lowbit has no GPU support; use --device cpu",
            )),
        }
    }
}
