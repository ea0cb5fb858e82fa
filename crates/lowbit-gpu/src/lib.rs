//! The operations of [`lowbit`] on any GPU: WGSL kernels through wgpu (Metal, Vulkan, DX12), and the
//! same kernels as Metal text for hosts that compile their own.

mod adapter;
mod gpu;
mod kernel;
mod prelude;
mod product;
mod quantize;
mod queue;
mod subject;
mod weight;

pub use adapter::{Adapter, Kind};
pub use gpu::{Buffer, Gpu};
pub use quantize::{Quantized, double_quantize, quantize};
pub use product::{dequantize, linear, linear_transposed};
pub use subject::OnGpu;
pub use weight::GpuWeight;
pub use kernel::{Access, Binding, Kernel, Needs};
pub use queue::{Limits, Queue};
