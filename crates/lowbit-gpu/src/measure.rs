//! What a GPU could do at best, for benches.

use lowbit::Result;

use crate::kernel::{Access, Builder};
use crate::{Gpu, Queue};

/// Bytes that are read: more than any cache holds.
const BYTES: u64 = 1 << 30;

/// Bytes a second of reading, by the fastest of some kernels that do nothing else.
///
/// # Errors
/// As [`Queue::dispatch`].
pub fn read_bandwidth(gpu: &Gpu) -> Result<f64> {
    let bytes = BYTES.min(gpu.limits().binding);
    let kernel = Builder::new("read")
        .bind("data", Access::Read, "array<vec4<u32>>")
        .bind("y", Access::ReadWrite, "array<u32>")
        .build(&["vectors"], "read_all", 256, include_str!("kernels/read.wgsl"));
    let (data, y) = (gpu.zeros(bytes)?, gpu.zeros(4)?);
    let mut best = f64::INFINITY;
    for groups in [1 << 10, 1 << 12, 1 << 14] {
        for _ in 0..4 {
            let params = [(bytes / 16) as u32];
            let read = || gpu.dispatch(&kernel, &[&data, &y], &params, [groups, 1, 1]);
            best = best.min(gpu.timed(read)?.1);
        }
    }
    Ok(bytes as f64 / best)
}
