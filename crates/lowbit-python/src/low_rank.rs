//! Adapters of low rank (LoRA). As in `operations`, slices of regions live as long as a call does, and Python holds
//! references to the tensors meanwhile: the argument of every `SAFETY` below.

use lowbit::{Cpu, Element, LowRank, LowRankGradients};
use pyo3::prelude::*;

use crate::memory::{Region, Size, addresses};
use crate::operations::typed;
use crate::{threads, to_python};

/// `a`, `b`, the rank and what products are scaled by.
type Adapter = (Region, Region, Size, f32);

/// `y += scale (x aᵀ) bᵀ`, `hidden = scale x aᵀ`: `x: [M, K]`, `y: [M, N]`, and in f32 `a: [rank, K]`,
/// `b: [N, rank]`, `hidden: [M, rank]`.
#[pyfunction]
pub fn low_rank(
    py: Python<'_>,
    dtype: &str,
    adapter: Adapter,
    x: Region,
    y: Region,
    hidden: Region,
) -> PyResult<()> {
    typed!(dtype, forward(py, adapter, x, y, hidden))
}

fn forward<T: Element>(
    py: Python<'_>,
    (a, b, rank, scale): Adapter,
    x: Region,
    y: Region,
    hidden: Region,
) -> PyResult<()> {
    // SAFETY: see the module.
    let (a, b, x, y, hidden) = unsafe {
        let (a, b): (&[f32], &[f32]) = (a.read("a")?, b.read("b")?);
        let x: &[T] = x.read("x")?;
        let taken = [addresses(a), addresses(b), addresses(x)];
        let y = y.write::<T>("y", &taken)?;
        let taken = [&taken[..], &[addresses(y)]].concat();
        (a, b, x, y, hidden.write("hidden", &taken)?)
    };
    let of = LowRank { a, b, rank: rank.0, scale };
    py.detach(|| threads::run(|| Cpu::best().low_rank(&of, x, y, hidden))).map_err(to_python)
}

/// Gradients of [`low_rank`]: `dy: [M, N]`; `dx: [M, K]`, which is added to; in f32 `da: [rank, K]`, `db: [N, rank]`.
#[pyfunction]
#[pyo3(signature = (dtype, adapter, x, hidden, dy, dx, da, db))]
#[expect(clippy::too_many_arguments, reason = "as Python passes them")]
pub fn low_rank_backward(
    py: Python<'_>,
    dtype: &str,
    adapter: Adapter,
    x: Region,
    hidden: Region,
    dy: Region,
    dx: Option<Region>,
    da: Region,
    db: Region,
) -> PyResult<()> {
    typed!(dtype, backward(py, adapter, x, hidden, dy, (dx, da, db)))
}

fn backward<T: Element>(
    py: Python<'_>,
    (a, b, rank, scale): Adapter,
    x: Region,
    hidden: Region,
    dy: Region,
    (dx, da, db): (Option<Region>, Region, Region),
) -> PyResult<()> {
    // SAFETY: see the module.
    let (a, b, x, hidden, dy, out) = unsafe {
        let (a, b): (&[f32], &[f32]) = (a.read("a")?, b.read("b")?);
        let (x, dy): (&[T], &[T]) = (x.read("x")?, dy.read("dy")?);
        let hidden: &[f32] = hidden.read("hidden")?;
        let inputs = [addresses(a), addresses(b), addresses(x), addresses(dy), addresses(hidden)];
        let mut taken = inputs.to_vec();
        let dx = dx.map(|dx| dx.write::<T>("dx", &taken)).transpose()?;
        taken.extend(dx.as_deref().map(addresses));
        let da = da.write("da", &taken)?;
        taken.push(addresses(da));
        let db = db.write("db", &taken)?;
        (a, b, x, hidden, dy, LowRankGradients { dx, da, db })
    };
    let of = LowRank { a, b, rank: rank.0, scale };
    py.detach(|| threads::run(|| Cpu::best().low_rank_backward(&of, x, hidden, dy, out)))
        .map_err(to_python)
}
