//! Rotary position embedding. Sines and cosines are computed by the processor, as GPUs are not
//! exact far from 0, and kept for the positions to come.

use lowbit::device::Rope;
use lowbit::{DType, Result};

use crate::elementwise::{GROUP, flat};
use crate::kernel::{Access, Builder};
use crate::memo::Memo;
use crate::queue::{Queue, count};

const ROPE: &str = include_str!("kernels/rope.wgsl");
/// `{x}_turned` of a buffer of heads.
const TURN: &str = include_str!("kernels/turn.wgsl");
/// `{x}_at`: a number of a buffer of pairs.
const AT: &str = "\
fn {x}_at(i: u32) -> f32 {
    let pair = x_unpack({x}[i / 2u]);
    return select(pair.x, pair.y, (i & 1u) == 1u);
}";
/// `{x}_turned` where it does not turn.
const SAME: &str = "fn {x}_turned(i: u32, row: u32) -> f32 { return {x}_at(i); }";

/// Positions of a table at least: it is uploaded once in so many tokens.
const POSITIONS: usize = 1024;

/// Sines and cosines of a range of positions.
#[derive(Debug, Clone)]
pub struct Turns<B> {
    rope: Rope,
    start: usize,
    rows: usize,
    /// (sin, cos): `[rows, head_dim / 2]` of f32.
    pub(crate) buffer: B,
}

impl<B: Clone> Turns<B> {
    /// Those of `rows` positions from `start` on, and of some after them.
    ///
    /// # Errors
    /// As [`Queue::upload`].
    pub fn new<Q: Queue<Buffer = B>>(
        queue: &Q,
        rope: &Rope,
        start: usize,
        rows: usize,
    ) -> Result<Self> {
        let rows = rows.max(POSITIONS);
        let turns: Vec<[f32; 2]> = (start..start + rows)
            .flat_map(|p| rope.inv_freq.iter().map(move |f| (p as f32 * f).sin_cos()))
            .map(|(sin, cos)| [sin * rope.scale, cos * rope.scale])
            .collect();
        let buffer = queue.upload(bytemuck::cast_slice(&turns))?;
        Ok(Turns { rope: rope.clone(), start, rows, buffer })
    }

    /// The row of the table that has position `start`, if it has `rows` of that rope from there on.
    pub fn row(&self, rope: &Rope, start: usize, rows: usize) -> Option<u32> {
        let row = start.checked_sub(self.start)?;
        let has = row + rows <= self.rows && self.rope == *rope;
        if has { u32::try_from(row).ok() } else { None }
    }
}

/// Turns the heads of `x: [T, cols]`; row `t` by row `first + t` of `turns`, which has `head_dim / 2`
/// angles a row. `head_dim` divides `cols`.
///
/// # Errors
/// As [`Queue::dispatch`].
pub fn rope<Q: Queue>(
    queue: &Q,
    dtype: DType,
    x: &Q::Buffer,
    [rows, cols]: [usize; 2],
    head_dim: usize,
    turns: &Q::Buffer,
    first: u32,
) -> Result<Q::Buffer> {
    static KERNELS: Memo<(DType, u32)> = Memo::new();
    let kernel = KERNELS.get((dtype, count("rope", head_dim)?), |(_, d)| {
        Builder::new("rope")
            .types()
            .activations("X", dtype)
            .bind("x", Access::Read, "array<X2>")
            .bind("turns", Access::Read, "array<vec2<f32>>")
            .bind("y", Access::ReadWrite, "array<X2>")
            .head(*d)
            .turned("x", true)
            .build(&["pairs", "cols", "first"], "rope", GROUP, ROPE)
    });
    let params = [count("rope", cols)?, first];
    flat(queue, &kernel, dtype, &[x, turns], &params, rows * cols)
}

impl Builder {
    /// The constant `D`, length of a head.
    pub fn head(self, head_dim: u32) -> Self {
        self.tag(format!("d{head_dim}")).constant("D", head_dim)
    }

    /// `{x}_at` and `{x}_turned` of a buffer `x` of heads; the latter turns only where asked to, and
    /// then `turns` is bound.
    pub fn turned(self, x: &str, turn: bool) -> Self {
        let turned = if turn { TURN } else { SAME };
        self.at(x).text(&turned.replace("{x}", x))
    }

    /// `{x}_at` of a buffer `x` of pairs.
    pub fn at(self, x: &str) -> Self {
        self.text(&AT.replace("{x}", x))
    }
}
