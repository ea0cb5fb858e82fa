//! Root mean square norm, alone or behind the sum that a model's layers end with.

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
    /// Whether what goes in is a sum.
    add: bool,
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
    run(queue, dtype, &[x], len, weight, length, eps)
}

/// `a + b`, and its [`rms_norm`].
///
/// # Errors
/// As [`Queue::dispatch`].
pub fn add_rms_norm<Q: Queue>(
    queue: &Q,
    dtype: DType,
    [a, b]: [&Q::Buffer; 2],
    len: usize,
    weight: &Q::Buffer,
    length: usize,
    eps: f32,
) -> Result<(Q::Buffer, Q::Buffer)> {
    let sum = queue.scratch(bytes(len, dtype))?;
    let y = run(queue, dtype, &[a, b, &sum], len, weight, length, eps)?;
    Ok((sum, y))
}

fn run<Q: Queue>(
    queue: &Q,
    dtype: DType,
    inputs: &[&Q::Buffer],
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
        add: inputs.len() > 1,
        runs: 1 + length % 2,
        // Every thread has a few pairs, if there are that many.
        group: (length / 4).next_power_of_two().clamp(32, 256),
    };
    let kernel = KERNELS.get(kind, kernel);
    let params = [count(OP, len)?.div_ceil(2), length, eps.to_bits()];
    let groups = (len as u64).div_ceil(u64::from(length * kind.runs));
    let buffers = [inputs, &[weight, &y]].concat();
    queue.dispatch(&kernel, &buffers, &params, cover(groups, 1, queue.limits()))?;
    Ok(y)
}

fn kernel(kind: &Kind) -> Kernel {
    let builder = Builder::new("rms_norm").types().activations("X", kind.dtype);
    let builder = match kind.add {
        false => builder
            .bind("x", Access::Read, "array<X2>")
            .text("fn input(i: u32) -> vec2<f32> { return x_unpack(x[i]); }"),
        true => builder
            .tag("add")
            .bind("a", Access::Read, "array<X2>")
            .bind("b", Access::Read, "array<X2>")
            .bind("sum", Access::ReadWrite, "array<X2>")
            .text(
                "fn input(i: u32) -> vec2<f32> {\n    \
                 let pair = x_pack(x_unpack(a[i]) + x_unpack(b[i]));\n    \
                 sum[i] = pair;\n    \
                 return x_unpack(pair);\n}",
            ),
    };
    builder
        .tag(kind.runs)
        .tag(kind.group)
        .bind("weight", Access::Read, "array<f32>")
        .bind("y", Access::ReadWrite, "array<X2>")
        .constant("RUNS", kind.runs)
        .build(&["pairs", "length", "eps"], "rms_norm", kind.group, RMS_NORM)
}
