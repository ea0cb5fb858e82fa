//! Where a bench runs, and what that place could do at best.

use lowbit::{Cpu, DType};

use super::gpu::Place;
use super::limits::Limits;
use crate::device::Chosen;
use crate::failure::Result;

/// Where it is measured.
pub enum On {
    Cpu(Limits),
    Gpu(Place),
}

impl On {
    /// Measures the limits of a device, which takes a moment. On a GPU, each call waits for the one
    /// before it if it is `serial`.
    pub fn new(chosen: Chosen, serial: bool) -> Result<Self> {
        match chosen {
            Chosen::Cpu => Ok(On::Cpu(Limits::measure())),
            Chosen::Gpu(gpu) => Ok(On::Gpu(Place::new(gpu, serial)?)),
        }
    }

    /// What `--device` calls it.
    pub fn device(&self) -> &'static str {
        match self {
            On::Cpu(_) => "cpu",
            On::Gpu(_) => "gpu",
        }
    }

    /// The instruction set whose kernels run, or the adapter.
    pub fn name(&self) -> String {
        match self {
            On::Cpu(_) => Cpu::best().isa().name().to_owned(),
            On::Gpu(place) => place.gpu.adapter().name(),
        }
    }

    /// Threads of the processor that compute.
    pub fn threads(&self) -> usize {
        match self {
            On::Cpu(_) => rayon::current_num_threads(),
            On::Gpu(_) => 0,
        }
    }

    /// Bytes a second that it reads from memory; a processor's is measured again at each call.
    pub fn bandwidth(&self) -> f64 {
        match self {
            On::Cpu(limits) => limits.bandwidth(),
            On::Gpu(place) => place.bandwidth,
        }
    }

    /// Seconds that so many floating-point operations take at least. How fast a GPU multiplies is not
    /// measured.
    pub fn arithmetic(&self, flops: f64, dtype: DType) -> f64 {
        match self {
            On::Cpu(limits) => flops / limits.flops(dtype),
            On::Gpu(_) => 0.0,
        }
    }
}
