//! Rows of a table of embeddings.

use lowbit::{DType, Result};

use crate::elementwise::{GROUP, bytes};
use crate::kernel::{Access, Builder};
use crate::memo::Memo;
use crate::queue::{Queue, count, cover};
use crate::weight::{GpuWeight, Kind, PARAMS, Reads};

const EMBED: &str = include_str!("kernels/embed.wgsl");

/// How ids are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ids {
    /// As integers.
    U32,
    /// As [`argmax`](crate::argmax) gives them.
    F32,
}

/// Rows `ids` of `table: [V, C]`, `count` of them, all below `V`: `[count, C]`.
///
/// # Errors
/// As [`Queue::dispatch`].
pub fn embed<Q: Queue>(
    queue: &Q,
    dtype: DType,
    table: &GpuWeight<Q::Buffer>,
    ids: &Q::Buffer,
    stored: Ids,
    rows: usize,
) -> Result<Q::Buffer> {
    const OP: &str = "embed";
    static KERNELS: Memo<(DType, Ids, Kind)> = Memo::new();
    let (_, cols) = table.rows_cols();
    let y = queue.scratch(bytes(rows * cols, dtype))?;
    if rows * cols == 0 {
        return Ok(y);
    }
    let kernel = KERNELS.get((dtype, stored, *table.kind()), |(dtype, stored, kind)| {
        let (tag, ty) = match stored {
            Ids::U32 => ("u32", "array<u32>"),
            Ids::F32 => ("f32", "array<f32>"),
        };
        Builder::new("embed")
            .types()
            .weight(kind, Reads::Words)
            .activations("X", *dtype)
            .tag(tag)
            .bind("ids", Access::Read, ty)
            .bind("y", Access::ReadWrite, "array<X2>")
            .build(PARAMS, "embed", GROUP, EMBED)
    });
    let pairs = count(OP, rows * cols)?.div_ceil(2);
    let groups = cover(pairs.into(), GROUP, queue.limits());
    for part in table.parts() {
        let params = part.params([count(OP, rows)?, 0, count(OP, part.rows.start)?, 0, 0]);
        let buffers: Vec<&Q::Buffer> = part.buffers().chain([ids, &y]).collect();
        queue.dispatch(&kernel, &buffers, &params, groups)?;
    }
    Ok(y)
}
