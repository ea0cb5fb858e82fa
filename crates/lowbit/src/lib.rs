//! Low-bit weights: formats, and CPU kernels that are right to the bit.
//!
//! Five calls cover most needs: [`quantize`], [`dequantize`], [`linear`], [`linear_transposed`] and
//! [`double_quantize`]. They run on the best instruction set of the machine; [`Cpu`] chooses
//! another one. [`device`] is what a model runner builds on.
//!
//! ```
//! use lowbit::{QTensor, formats};
//!
//! // w: [N, K] = [2, 64], quantized to NF4 in blocks of 64
//! let w: Vec<f32> = (0..128).map(|i| (i as f32 / 10.0).sin()).collect();
//! let q: QTensor = lowbit::quantize(formats::by_name("nf4")?, &w, &[2, 64], None)?;
//! assert_eq!(q.bits_per_weight(), 4.5);
//!
//! // y = x wᵀ: [M, N] = [3, 2]
//! let x = vec![0.5f32; 3 * 64];
//! let mut y = vec![0.0f32; 3 * 2];
//! lowbit::linear(&q, &x, None, &mut y)?;
//! # Ok::<(), lowbit::Error>(())
//! ```

pub mod conformance;
pub mod cpu;
pub mod device;
mod dtype;
mod error;
pub mod format;
pub mod formats;
pub mod optim;
pub mod pack;
pub mod quantizers;
pub mod sparse;
mod tensor;
pub mod threads;
mod unrolled;

pub use cpu::{
    Cpu, CpuDevice, LowRank, LowRankGradients, dequantize, double_quantize, gemm, gemv, linear,
    linear_transposed, quantize,
};
pub use dtype::{DType, Element};
pub use error::{Error, Result};
pub use format::Format;
pub use tensor::{
    DenseTensor, Geometry, NESTED_BLOCK_SIZE, Nested, Parts, QTensor, Scales, Weight, e8m0_to_f32,
};

/// Compiles the Rust code in README.md.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;

/// The suite among the unit tests: one program to compile instead of two and the library. scripts/test-neon
/// asks for it.
#[cfg(all(test, lowbit_one_program))]
#[path = "../tests/suite/main.rs"]
mod suite;
#[cfg(all(test, lowbit_one_program))]
extern crate self as lowbit;
