//! Conversions between checkpoints: 16 bit to a format, and back.
//!
//! Input and output are both a model directory or both a safetensors file. Tensors are converted a
//! few at a time and written as they are done, so memory is bounded by the largest tensor times
//! [`WriteOptions::threads`]. The output is built under a temporary name beside its place, synced,
//! read back and renamed: a run that fails or is killed leaves its input and any older output alone.
//!
//! ```
//! use lowbit_llm::convert::{QuantizeOptions, quantize};
//! # let dir = tempfile::tempdir()?;
//! # let (input, output) = ("../../golden/checkpoints/tiny-bf16", dir.path().join("nf4"));
//!
//! let mut options = QuantizeOptions::new(lowbit::formats::by_name("nf4")?);
//! options.double_quant = true;
//! let report = quantize(input.as_ref(), output.as_ref(), &options, &())?;
//! assert_eq!(report.converted.len(), 14);
//! assert!(report.bits_after < 8.0, "embeddings and the head stay in 16 bit");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod calibrate;
mod config;
mod dequantize;
mod quantize;
mod run;
mod select;
mod stage;

pub use calibrate::{Calibration, SAMPLES};
pub use dequantize::{DequantizeOptions, dequantize};
pub use quantize::{QuantizeOptions, quantize};
pub use select::Reason;

/// Where a shard ends unless another size is asked for, in bytes.
pub const MAX_SHARD_SIZE: u64 = 5_000_000_000;

/// How an output is written.
#[derive(Debug, Clone)]
pub struct WriteOptions {
    /// Tensors in flight and threads that work on them; `None` for one per processor.
    pub threads: Option<usize>,
    /// Whether to replace what is at the output path, once the new output is complete.
    pub force: bool,
    /// Bytes of tensors a file of a directory holds at most, unless one tensor alone is larger.
    pub max_shard_size: u64,
}

impl Default for WriteOptions {
    fn default() -> Self {
        WriteOptions { threads: None, force: false, max_shard_size: MAX_SHARD_SIZE }
    }
}

/// What a conversion tells of itself while it runs, from any of its threads.
pub trait Progress: Sync {
    /// `done` of `total` bytes of input are converted, `name` the last of them.
    fn update(&self, done: u64, total: u64, name: &str);

    /// Whether to stop. The conversion then fails with [`crate::Error::Cancelled`] and leaves nothing.
    fn cancelled(&self) -> bool {
        false
    }
}

/// No one watches.
impl Progress for () {
    fn update(&self, _done: u64, _total: u64, _name: &str) {}
}

/// What a conversion did.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Report {
    /// Tensors that are stored otherwise now.
    pub converted: Vec<Converted>,
    /// Tensors that were copied as they are, and why.
    pub left: Vec<Left>,
    /// Bytes of all tensors before, scales included.
    pub bytes_before: u64,
    /// Bytes of all tensors after.
    pub bytes_after: u64,
    /// Bits per weight of all tensors before.
    pub bits_before: f64,
    /// Bits per weight of all tensors after, scales included.
    pub bits_after: f64,
}

/// A tensor that is stored otherwise now.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Converted {
    /// Its name.
    pub name: String,
    /// Shape of the weights.
    pub shape: Vec<usize>,
    /// Format or type it had: `bf16`.
    pub from: String,
    /// Format or type it has: `nf4`.
    pub to: String,
    /// Stored bytes before.
    pub bytes_before: u64,
    /// Stored bytes after, scales included.
    pub bytes_after: u64,
}

/// A tensor that was copied as it is.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Left {
    /// Its name.
    pub name: String,
    /// Shape of the weights.
    pub shape: Vec<usize>,
    /// Why.
    pub reason: Reason,
}
