//! The column of the largest number of each row.

use lowbit::{DType, Result};

use crate::kernel::{Access, Builder, Kernel};
use crate::memo::Memo;
use crate::queue::{Queue, count, cover};

const ARGMAX: &str = include_str!("kernels/argmax.wgsl");

const GROUP: u32 = 256;
/// Columns from which on a row is for several groups of threads, and how many each takes then.
const SPAN: u32 = 4096;

/// Where the candidates come from, and where the best goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Step {
    /// From numbers to columns.
    Whole(DType),
    /// From numbers to keys and columns of parts of a row.
    Parts(DType),
    /// From these to columns.
    Last,
}

/// Columns of the largest numbers of `x: [rows, cols]`, the first where several are: `[rows]` in
/// f32. A NaN is larger than nothing, but in column 0 nothing is larger than it.
///
/// # Errors
/// As [`Queue::dispatch`].
pub fn argmax<Q: Queue>(
    queue: &Q,
    dtype: DType,
    x: &Q::Buffer,
    [rows, cols]: [usize; 2],
) -> Result<Q::Buffer> {
    if rows * cols == 0 {
        return queue.zeros(4 * rows as u64);
    }
    // Neither is larger than their product.
    count("argmax", rows * cols)?;
    let [rows, cols] = [rows as u32, cols as u32];
    let parts = cols.div_ceil(SPAN);
    let y = queue.scratch(4 * u64::from(rows))?;
    if parts == 1 {
        step(queue, Step::Whole(dtype), x, &y, [rows, cols, cols, 1])?;
    } else {
        let best = queue.scratch(8 * u64::from(rows) * u64::from(parts))?;
        step(queue, Step::Parts(dtype), x, &best, [rows, cols, SPAN, parts])?;
        step(queue, Step::Last, &best, &y, [rows, parts, parts, 1])?;
    }
    Ok(y)
}

fn step<Q: Queue>(
    queue: &Q,
    step: Step,
    x: &Q::Buffer,
    y: &Q::Buffer,
    params: [u32; 4],
) -> Result<()> {
    static KERNELS: Memo<Step> = Memo::new();
    let kernel = KERNELS.get(step, kernel);
    let [rows, .., parts] = params;
    let groups = cover(u64::from(rows) * u64::from(parts), 1, queue.limits());
    queue.dispatch(&kernel, &[x, y], &params, groups)
}

fn kernel(step: &Step) -> Kernel {
    let builder = Builder::new("argmax").types();
    let builder = match step {
        Step::Whole(dtype) | Step::Parts(dtype) => {
            builder.activations("X", *dtype).bind("x", Access::Read, "array<X2>").at("x").text(
                "fn candidate(row: u32, i: u32) -> vec2<u32> {\n    \
                 return vec2<u32>(key(x_at(row * p.cols + i), i), i);\n}",
            )
        }
        Step::Last => builder
            .tag("last")
            .bind("x", Access::Read, "array<vec2<u32>>")
            .text("fn candidate(row: u32, i: u32) -> vec2<u32> { return x[row * p.cols + i]; }"),
    };
    let builder = match step {
        Step::Parts(_) => builder
            .tag("parts")
            .bind("y", Access::ReadWrite, "array<vec2<u32>>")
            .text("fn give(i: u32, best: vec2<u32>) { y[i] = best; }"),
        Step::Whole(_) | Step::Last => builder
            .bind("y", Access::ReadWrite, "array<f32>")
            .text("fn give(i: u32, best: vec2<u32>) { y[i] = f32(best.y); }"),
    };
    builder.build(&["rows", "cols", "span", "parts"], "argmax", GROUP, ARGMAX)
}
