//! Runs Metal compute kernels where there is no Metal: for tests, on Linux and macOS.
//!
//! A kernel's text is compiled by clang, with headers of ours that give it Metal's types and functions
//! (`include/`). Every thread of a threadgroup has a stack of its own and runs until it has to wait
//! for the others, so that barriers, simdgroup operations and simdgroup matrices do what they do on a
//! GPU. On top of that it refuses what a GPU would not notice:
//!
//! - threads that do not all come to the same barrier, or to the same simdgroup operation;
//! - an access outside of a buffer, which ends the process and says which thread of which kernel did it;
//! - pointers into the wrong address space, which do not compile;
//! - results that depend on the order of threads between two barriers, if it is run in several
//!   [`Order`]s;
//! - what was never written to threadgroup memory, or comes from a lane that does not exist: it reads as
//!   NaN.
//!
//! ```no_run
//! use metal_standin::{Buffer, Launch, Library, Math};
//!
//! let text = "
//! #include <metal_stdlib>
//! kernel void twice(device float* x [[buffer(0)]], uint i [[thread_position_in_grid]]) {
//!     x[i] *= 2.0;
//! }";
//! let library = Library::compile(&[("twice.metal", text)], Math::Precise)?;
//! let x = Buffer::from_bytes(&1.5f32.to_ne_bytes().repeat(64));
//! library.run("twice.metal", "twice", &[&x], &Launch::groups([2, 1, 1], [32, 1, 1]))?;
//! assert_eq!(x.read(4), 3.0f32.to_ne_bytes());
//! # Ok::<(), metal_standin::Error>(())
//! ```
#![cfg(unix)]

mod compile;
mod fault;
pub mod ffi;
mod memory;
mod schedule;
mod text;

pub use compile::{Library, Math};
pub use memory::Buffer;
pub use schedule::{Launch, Order};

/// What any function of this crate returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a kernel was not compiled or not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No compiler.
    #[error(
        "no clang 16 or later: run scripts/gpu-setup and then `. ~/.cache/lowbit/gpu.env`, or set \
         LOWBIT_CLANG to one"
    )]
    NoClang,
    /// The text has something in it that is not understood here.
    #[error("{name}: {reason}")]
    Text {
        /// The text's name.
        name: String,
        /// What it is.
        reason: String,
    },
    /// The compiler's own words.
    #[error("clang: {0}")]
    Clang(String),
    /// No kernel of that name was compiled.
    #[error("no kernel {entry} in {name}")]
    NoKernel {
        /// The text's name.
        name: String,
        /// The kernel's.
        entry: String,
    },
    /// The kernel did what it must not do.
    #[error("kernel {entry} of {name}: {reason}")]
    Run {
        /// The text's name.
        name: String,
        /// The kernel's.
        entry: String,
        /// What it did.
        reason: String,
    },
    /// Files could not be written or loaded.
    #[error("metal-standin: {0}")]
    Io(String),
}

/// Whether the tests that need a GPU, or this, are to skip: `LOWBIT_SKIP_GPU` is set.
pub fn skipped() -> bool {
    std::env::var_os("LOWBIT_SKIP_GPU").is_some_and(|v| !v.is_empty() && v != "0")
}
