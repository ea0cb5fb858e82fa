//! The operations of [`lowbit`] on any GPU: WGSL kernels through wgpu (Metal, Vulkan, DX12), and the
//! same kernels as Metal text for hosts that compile their own.

#[cfg(feature = "wgpu")]
mod adapter;
mod argmax;
mod attention;
pub mod choices;
mod choose;
mod description;
mod device;
mod elementwise;
mod embed;
pub mod experts;
#[cfg(feature = "wgpu")]
mod gpu;
mod int8;
mod kernel;
mod matrix;
#[cfg(feature = "wgpu")]
pub mod measure;
mod memo;
pub mod msl;
mod numbers;
pub mod optim;
pub mod plan;
mod prelude;
mod product;
mod quantize;
mod queue;
mod ranks;
mod rms_norm;
mod rope;
mod stack;
mod subject;
#[cfg(feature = "wgpu")]
pub mod tune;
mod unroll;
mod weight;

#[cfg(feature = "wgpu")]
pub use adapter::{Adapter, Kind};
pub use argmax::argmax;
pub use attention::{Heads, Layer, attention};
pub use choices::Choices;
pub use description::Description;
pub use device::GpuDevice;
pub use elementwise::{add, columns, rows, silu_mul};
pub use embed::{Ids, embed};
#[cfg(feature = "wgpu")]
pub use gpu::{Buffer, Gpu};
pub use int8::{int8_linear, int8_matmul, int8_rescale};
pub use kernel::{Access, Binding, Kernel, Needs};
pub use matrix::Schedule;
pub use product::{
    Around, dequantize, gated, linear, linear_around, linear_scheduled, linear_transposed,
};
pub use quantize::{Quantized, Quantizer, double_quantize, quantize};
pub use queue::{Fetch, Limits, Queue};
pub use rms_norm::rms_norm;
pub use rope::{Turns, rope};
pub use subject::OnGpu;
pub use weight::GpuWeight;
