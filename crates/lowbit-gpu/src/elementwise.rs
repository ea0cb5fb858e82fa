//! Operations on activations, number by number.

use lowbit::{DType, Result};

use crate::kernel::{Access, Builder, Kernel};
use crate::memo::Memo;
use crate::queue::{Queue, count, cover};

const ADD: &str = include_str!("kernels/add.wgsl");
const SILU_MUL: &str = include_str!("kernels/silu_mul.wgsl");
const ROWS: &str = include_str!("kernels/rows.wgsl");
const COLUMNS: &str = include_str!("kernels/columns.wgsl");

/// Threads of a group.
pub(crate) const GROUP: u32 = 256;

/// Bytes of `len` activations, in whole pairs.
pub(crate) fn bytes(len: usize, dtype: DType) -> u64 {
    (len.next_multiple_of(2) * dtype.size()) as u64
}

/// `a + b`, `len` numbers of a type each.
///
/// # Errors
/// As [`Queue::dispatch`].
pub fn add<Q: Queue>(
    queue: &Q,
    dtype: DType,
    a: &Q::Buffer,
    b: &Q::Buffer,
    len: usize,
) -> Result<Q::Buffer> {
    static KERNELS: Memo<DType> = Memo::new();
    let kernel = KERNELS.get(dtype, |_| of_two("add", dtype, ["a", "b", "sum"], ADD));
    flat(queue, &kernel, dtype, &[a, b], &[], len)
}

/// `silu(gate) * up`, `len` numbers of a type each; `silu(x) = x / (1 + exp(-x))`.
///
/// # Errors
/// As [`Queue::dispatch`].
pub fn silu_mul<Q: Queue>(
    queue: &Q,
    dtype: DType,
    gate: &Q::Buffer,
    up: &Q::Buffer,
    len: usize,
) -> Result<Q::Buffer> {
    static KERNELS: Memo<DType> = Memo::new();
    let kernel = KERNELS.get(dtype, |_| of_two("silu_mul", dtype, ["gate", "up", "y"], SILU_MUL));
    flat(queue, &kernel, dtype, &[gate, up], &[], len)
}

/// `len` numbers of `x` from number `start` on; `x` has at least `start + len`.
///
/// # Errors
/// As [`Queue::dispatch`].
pub fn rows<Q: Queue>(
    queue: &Q,
    dtype: DType,
    x: &Q::Buffer,
    start: usize,
    len: usize,
) -> Result<Q::Buffer> {
    static KERNELS: Memo<DType> = Memo::new();
    let kernel = KERNELS.get(dtype, |_| {
        Builder::new("rows")
            .types()
            .activations("X", dtype)
            .bind("x", Access::Read, "array<X2>")
            .bind("y", Access::ReadWrite, "array<X2>")
            .at("x")
            .build(&["pairs", "start", "last"], "rows", GROUP, ROWS)
    });
    let last = count("rows", start + len)?.saturating_sub(1);
    flat(queue, &kernel, dtype, &[x], &[count("rows", start)?, last], len)
}

/// Columns `start .. start + cols` of `x: [rows, all]`: `[rows, cols]`. Of a single row, a part of `x`
/// where it may be bound.
///
/// # Errors
/// As [`Queue::dispatch`].
pub fn columns<Q: Queue>(
    queue: &Q,
    dtype: DType,
    x: &Q::Buffer,
    [rows, all]: [usize; 2],
    start: usize,
    cols: usize,
) -> Result<Q::Buffer> {
    if rows == 1 {
        let (offset, bytes) = (start * dtype.size(), cols * dtype.size());
        return match queue.slice(x, offset as u64, bytes as u64) {
            Some(part) => Ok(part),
            None => self::rows(queue, dtype, x, start, cols),
        };
    }
    static KERNELS: Memo<DType> = Memo::new();
    let kernel = KERNELS.get(dtype, |_| {
        Builder::new("columns")
            .types()
            .activations("X", dtype)
            .bind("x", Access::Read, "array<X2>")
            .bind("y", Access::ReadWrite, "array<X2>")
            .at("x")
            .build(&["pairs", "start", "cols", "all", "last"], "columns", GROUP, COLUMNS)
    });
    const OP: &str = "columns";
    let last = count(OP, rows * all)?.saturating_sub(1);
    let params = [count(OP, start)?, count(OP, cols)?, count(OP, all)?, last];
    flat(queue, &kernel, dtype, &[x], &params, rows * cols)
}

/// A kernel of two inputs.
fn of_two(
    name: &'static str,
    dtype: DType,
    [a, b, y]: [&'static str; 3],
    body: &'static str,
) -> Kernel {
    Builder::new(name)
        .types()
        .activations("X", dtype)
        .bind(a, Access::Read, "array<X2>")
        .bind(b, Access::Read, "array<X2>")
        .bind(y, Access::ReadWrite, "array<X2>")
        .build(&["pairs"], name, GROUP, body)
}

/// Runs a kernel whose threads write a pair each, and whose first parameter is their number.
pub(crate) fn flat<Q: Queue>(
    queue: &Q,
    kernel: &Kernel,
    dtype: DType,
    inputs: &[&Q::Buffer],
    params: &[u32],
    len: usize,
) -> Result<Q::Buffer> {
    let y = queue.scratch(bytes(len, dtype))?;
    if len > 0 {
        let pairs = count(kernel.entry, len)?.div_ceil(2);
        let groups = cover(pairs.into(), GROUP, queue.limits());
        let buffers = [inputs, &[&y]].concat();
        queue.dispatch(kernel, &buffers, &[&[pairs], params].concat(), groups)?;
    }
    Ok(y)
}
