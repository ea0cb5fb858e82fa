//! The device that runs a model: the only place that knows which there are.

use std::io::Write;
use std::sync::Arc;

use lowbit::device::Device;
use lowbit::{Cpu, CpuDevice, DType};
use lowbit_gpu::{Adapter, Gpu, GpuDevice, Kind};

use crate::failure::Result;
use crate::{tuned, ui};

/// Where to run.
#[derive(Debug, clap::Args)]
pub struct DeviceArgs {
    /// Where to run: auto, cpu, gpu, or gpu:NAME for the one whose name contains NAME
    #[arg(long, value_name = "DEVICE", default_value = "auto", value_parser = choice)]
    device: Choice,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Choice {
    /// The fastest there is.
    Auto,
    /// The processor.
    Cpu,
    /// The best GPU, or the best of those whose name contains this.
    Gpu(Option<String>),
}

fn choice(text: &str) -> std::result::Result<Choice, String> {
    match text.split_once(':') {
        None if text == "auto" => Ok(Choice::Auto),
        None if text == "cpu" => Ok(Choice::Cpu),
        None if text == "gpu" => Ok(Choice::Gpu(None)),
        Some(("gpu", name)) if !name.is_empty() => Ok(Choice::Gpu(Some(name.into()))),
        _ => Err("expected auto, cpu, gpu or gpu:NAME; lowbit devices lists them".into()),
    }
}

/// A device that was chosen, and is open.
pub enum Chosen {
    Cpu,
    Gpu(Gpu),
}

impl DeviceArgs {
    /// Opens the device that was asked for.
    pub fn choose(&self) -> Result<Chosen> {
        match &self.device {
            Choice::Cpu => Ok(Chosen::Cpu),
            Choice::Gpu(name) => Ok(Chosen::Gpu(open(&Adapter::find(name.as_deref())?)??)),
            Choice::Auto => match best(&Adapter::all()).map(open).transpose()? {
                None => Ok(Chosen::Cpu),
                Some(Ok(gpu)) => Ok(Chosen::Gpu(gpu)),
                Some(Err(error)) => {
                    writeln!(anstream::stderr(), "note: using the CPU: {error}")?;
                    Ok(Chosen::Cpu)
                }
            },
        }
    }

    /// The device, for activations of that type.
    pub fn open(&self, activations: DType) -> Result<Place> {
        Ok(match self.choose()? {
            Chosen::Cpu => Place::cpu(activations),
            Chosen::Gpu(gpu) => {
                let adapter = gpu.adapter();
                let name = format!("{} ({})", adapter.name(), adapter.backend());
                let device = Arc::new(GpuDevice::new(gpu.clone(), name, activations));
                Place { device, gpu: Some(gpu) }
            }
        })
    }
}

/// Opens an adapter, to run the kernels that were measured to be its fastest. The outer error is that
/// of writing a note.
fn open(adapter: &Adapter) -> Result<lowbit::Result<Gpu>> {
    let gpu = Gpu::open(adapter, false);
    Ok(match tuned::load(adapter) {
        None => gpu,
        Some(Ok(choices)) => gpu.map(|gpu| gpu.with_choices(choices)),
        Some(Err(why)) => {
            writeln!(anstream::stderr(), "note: {}", ui::printable(&why))?;
            gpu
        }
    })
}

/// What `auto` takes of these, which are sorted: no software, for the CPU is faster, and nothing
/// that does not say what it is.
pub fn best(adapters: &[Adapter]) -> Option<&Adapter> {
    let known = |a: &&Adapter| matches!(a.kind(), Kind::Metal | Kind::Discrete | Kind::Integrated);
    adapters.iter().find(known)
}

/// An open device.
#[derive(Clone)]
pub struct Place {
    pub device: Arc<dyn Device>,
    /// The GPU, where it is one.
    pub gpu: Option<Gpu>,
}

impl Place {
    /// The processor.
    pub fn cpu(activations: DType) -> Self {
        let device = Arc::new(CpuDevice::new(Cpu::best(), activations));
        Place { device, gpu: None }
    }

    /// What was chosen.
    pub fn chosen(&self) -> Chosen {
        self.gpu.clone().map_or(Chosen::Cpu, Chosen::Gpu)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_have_names() {
        assert_eq!(choice("auto"), Ok(Choice::Auto));
        assert_eq!(choice("cpu"), Ok(Choice::Cpu));
        assert_eq!(choice("gpu"), Ok(Choice::Gpu(None)));
        assert_eq!(choice("gpu:Apple M2: x"), Ok(Choice::Gpu(Some("Apple M2: x".into()))));
        for bad in ["", "gpu:", "cpu:x", "GPU", "metal"] {
            assert!(choice(bad).is_err(), "{bad}");
        }
    }
}
