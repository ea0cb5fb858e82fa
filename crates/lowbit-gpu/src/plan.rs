//! What an operation would run, written down: for hosts that run kernels themselves, such as PyTorch
//! with the kernels' [Metal text](crate::msl).
//!
//! A [`Planner`] is a [`Queue`] that runs nothing, so that the functions of this crate decide for such
//! a host as for any other: which kernels, in which order, with which parameters, and what memory they
//! need between them.
//!
//! ```
//! use lowbit_gpu::plan::{Content, Planner};
//! use lowbit_gpu::{Description, linear, msl};
//!
//! let planner = Planner::new(msl::APPLE);
//! let w = planner.weight(&Description {
//!     format: lowbit::formats::by_name("nf4")?,
//!     shape: &[32, 64],
//!     block_size: 64,
//!     nested_block_size: None,
//!     own_codebook: false,
//!     half_scales: false,
//!     has_mean: false,
//! })?;
//! let x = planner.input("x", 2 * 64 * 4);
//! let y = linear(&planner, &x, 2, &w, None, lowbit::DType::F32)?;
//! let plan = planner.finish(&[y]);
//! assert_eq!(plan.buffers[0], Content::Input { name: "codes", bytes: 1024 });
//! assert_eq!(plan.steps.len(), 1);
//! let msl = msl::translate(&plan.steps[0].kernel, msl::Bounds::Unchecked)?;
//! assert!(msl.source.contains("kernel void"));
//! # Ok::<(), lowbit::Error>(())
//! ```

use std::sync::{Mutex, MutexGuard, PoisonError};

use lowbit::{Error, Result};

use crate::{Description, GpuWeight, Kernel, Limits, Queue};

/// Kernels in their order, and the buffers they work on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Every buffer; steps and results say which by its place here. Each begins at a multiple of 16
    /// bytes and may be read up to one.
    pub buffers: Vec<Content>,
    /// What is run.
    pub steps: Vec<Step>,
    /// The buffers that are the results.
    pub results: Vec<usize>,
}

/// What a buffer holds before the first step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// What the caller has: the input of that name, of so many bytes. Codes may be followed by
    /// others.
    Input {
        /// The caller's name for it.
        name: &'static str,
        /// Its length.
        bytes: u64,
    },
    /// These bytes, the same for every call.
    Bytes(Vec<u8>),
    /// So many zeros.
    Zeros(u64),
    /// Room for so many bytes.
    Scratch(u64),
}

/// One kernel's run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// What is run.
    pub kernel: Kernel,
    /// The buffers of its bindings but the parameters.
    pub buffers: Vec<usize>,
    /// Its parameters.
    pub params: Vec<u32>,
    /// Groups of threads.
    pub groups: [u32; 3],
}

impl Step {
    /// Where in the parameters the two powers of two belong that the plan leaves at one, since it does
    /// not know the weight's numbers: bits of the f32 that brings the largest weight to about 1..2, and
    /// of its inverse. Only kernels that round weights to f16 need them.
    pub fn powers(&self) -> Option<[usize; 2]> {
        self.kernel.needs.matrix?;
        let at = |name| self.kernel.params.iter().position(|p| *p == name);
        Some([at("down")?, at("up")?])
    }
}

/// A queue that writes down what it is to do. Buffers are places in [`Plan::buffers`].
#[derive(Debug)]
pub struct Planner {
    limits: Limits,
    plan: Mutex<Plan>,
}

impl Planner {
    /// For a GPU that has what `limits` says.
    pub fn new(limits: Limits) -> Self {
        let plan = Plan { buffers: Vec::new(), steps: Vec::new(), results: Vec::new() };
        Planner { limits, plan: Mutex::new(plan) }
    }

    /// A buffer that the caller has.
    pub fn input(&self, name: &'static str, bytes: u64) -> usize {
        self.buffer(Content::Input { name, bytes })
    }

    /// A weight that the caller has. Its inputs are those that it needs of `codes`, `scales`,
    /// `nested_absmax` (each with the offset after it), `nested_map`, `means` and `codebook`, all f32 but
    /// codes and, where they are nested or E8M0, scales.
    ///
    /// # Errors
    /// As [`Description::geometry`]; and [`Error::Argument`] for more codes than a binding holds.
    pub fn weight(&self, description: &Description<'_>) -> Result<GpuWeight<usize>> {
        let own = description.own_codebook;
        GpuWeight::of_buffers(description, &self.limits, |name, bytes| {
            match (name, description.format.codebook()) {
                ("book", Some(values)) if !own => self.upload(bytemuck::cast_slice(values)),
                ("book", _) => Ok(self.input("codebook", bytes)),
                _ => Ok(self.input(name, bytes)),
            }
        })
    }

    /// The plan, with these results.
    pub fn finish(self, results: &[usize]) -> Plan {
        let plan = self.plan.into_inner().unwrap_or_else(PoisonError::into_inner);
        Plan { results: results.to_vec(), ..plan }
    }

    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn buffer(&self, content: Content) -> usize {
        let buffers = &mut self.plan().buffers;
        buffers.push(content);
        buffers.len() - 1
    }
}

impl Queue for Planner {
    type Buffer = usize;

    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn zeros(&self, bytes: u64) -> Result<usize> {
        Ok(self.buffer(Content::Zeros(bytes)))
    }

    fn scratch(&self, bytes: u64) -> Result<usize> {
        Ok(self.buffer(Content::Scratch(bytes)))
    }

    fn upload(&self, content: &[u8]) -> Result<usize> {
        Ok(self.buffer(Content::Bytes(content.to_vec())))
    }

    fn dispatch(
        &self,
        kernel: &Kernel,
        buffers: &[&usize],
        params: &[u32],
        groups: [u32; 3],
    ) -> Result<()> {
        let buffers = buffers.iter().map(|place| **place).collect();
        let step = Step { kernel: kernel.clone(), buffers, params: params.to_vec(), groups };
        self.plan().steps.push(step);
        Ok(())
    }

    /// Always refused: there is nothing yet to read.
    fn read(&self, _: &usize, _: u64) -> Result<Vec<u8>> {
        Err(Error::Device {
            op: "plan",
            reason: "nothing has run that could be read".into(),
            help: "plan operations that leave their results on the GPU".into(),
        })
    }
}
