//! Root mean square norm.

use lowbit::{DType, Result};

use crate::elementwise::bytes;
use crate::kernel::{Access, Builder, Kernel};
use crate::memo::Memo;
use crate::queue::{Queue, count, cover};

const RMS_NORM: &str = include_str!("kernels/rms_norm.wgsl");

/// What the text depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Kind {
    dtype: DType,
    /// Runs of numbers that a group of threads takes.
    runs: u32,
    group: u32,
}

static KERNELS: Memo<Kind> = Memo::new();

/// `x / sqrt(mean(x²) + eps) * weight` over runs of `length` numbers: `len` numbers of a type,
/// `weight: [length]` in f32. `length` is not 0 and divides `len`.
///
/// # Errors
/// As [`Queue::dispatch`].
pub fn rms_norm<Q: Queue>(
    queue: &Q,
    dtype: DType,
    x: &Q::Buffer,
    len: usize,
    weight: &Q::Buffer,
    length: usize,
    eps: f32,
) -> Result<Q::Buffer> {
    const OP: &str = "rms_norm";
    let y = queue.scratch(bytes(len, dtype))?;
    if len == 0 {
        return Ok(y);
    }
    let length = count(OP, length)?;
    let kind = Kind {
        dtype,
        runs: 1 + length % 2,
        // Every thread has a few pairs, if there are that many.
        group: (length / 4).next_power_of_two().clamp(32, 256),
    };
    let kernel = KERNELS.get(kind, kernel);
    let params = [count(OP, len)?.div_ceil(2), length, eps.to_bits()];
    let groups = (len as u64).div_ceil(u64::from(length * kind.runs));
    queue.dispatch(&kernel, &[x, weight, &y], &params, cover(groups, 1, queue.limits()))?;
    Ok(y)
}

fn kernel(kind: &Kind) -> Kernel {
    Builder::new("rms_norm")
        .types()
        .activations("X", kind.dtype)
        .tag(kind.runs)
        .tag(kind.group)
        .bind("x", Access::Read, "array<X2>")
        .bind("weight", Access::Read, "array<f32>")
        .bind("y", Access::ReadWrite, "array<X2>")
        .constant("RUNS", kind.runs)
        .build(&["pairs", "length", "eps"], "rms_norm", kind.group, RMS_NORM)
}
