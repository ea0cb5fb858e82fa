//! A few rows of activations and codes of a byte that stand for a group of weights, where an instruction
//! set looks bytes up in tables of 256.
//!
//! A group of columns has one [table of integers](super::integer_tables) for all rows of weights, 64 of
//! which look up in it at a time.

use super::buffer::Buffer;
use super::dispatch::Isa;
use super::groups::Groups;
use super::integer_tables::{Cut, FillTile, Unit, add_means, integers, plane, runs};
use super::linear::Pool;
use super::lookup::{block_sums, products_of_group};
use super::simd::bytes::{ROWS, TABLE};
use super::simd::{Simd, Task};
use super::view::{Blocks, Codes, View};

/// Rows of weights that a thread takes at once.
pub(crate) const ROWS_OF_THREAD: usize = 4 * ROWS;
/// Most rows of activations for which this is worth it.
const MOST: usize = 8;
/// Groups whose tables are used for all rows of weights of a thread before the next.
const TILE: usize = 64;
/// Bytes of a cache line.
const LINE: usize = 64;
/// Bytes of a row that are transposed at a time.
const STEP: usize = 16;

/// Tables for some rows of activations, and the weight that looks up in them.
pub(crate) struct ByteTables<'a> {
    blocks: &'a Blocks<'a>,
    bytes: &'a [u8],
    row_bytes: usize,
    /// Groups of a row.
    per_row: usize,
    /// Groups of a block.
    per_block: usize,
    n: usize,
    m: usize,
    planes: usize,
    /// `[tiles, M, TILE, planes, TABLE]`.
    tables: Buffer<u8>,
    /// What the integers stand for: `[tiles, M]`.
    units: Vec<f32>,
    /// Sums of the activations of each block, for means: `[M, blocks]`.
    sums: Vec<f32>,
}

/// Whether an instruction set looks up in tables of 256 faster than one by one.
pub(crate) struct LooksUp;

impl Task for LooksUp {
    type Output = bool;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> bool {
        s.looks_up_bytes()
    }
}

/// Makes the tables for `x: [M, K]`; `None` if codes are no bytes of a table, blocks cut their groups, or
/// an activation is not finite. With `exact`, f32 accuracy.
pub(crate) fn prepare<'a>(
    isa: Isa,
    view: &'a View<'a>,
    x: &[f32],
    m: usize,
    exact: bool,
    pool: &Pool,
) -> Option<ByteTables<'a>> {
    let (Codes::Groups(groups), Some(blocks)) = (&view.codes, &view.blocks) else { return None };
    let g = &blocks.geometry;
    let whole = g.block_size >= g.k;
    let in_blocks = whole || g.block_size % groups.length == 0;
    if m > MOST || view.n < ROWS || g.k == 0 || groups.codes() != TABLE || !in_blocks {
        return None;
    }
    let row_bytes = g.row_bytes?;
    let planes = if exact { 3 } else { 2 };
    let per_row = g.k.div_ceil(groups.length);
    let fill = Fill { groups, largest: groups.largest() };
    let (tables, units) = fill.tables(
        isa,
        pool,
        x,
        Cut { m, k: g.k, planes, weights: TILE * groups.length, bytes: TILE * planes * TABLE },
    )?;
    let sums = block_sums(x, blocks);
    let per_block = if whole { per_row } else { g.block_size / groups.length };
    let (bytes, n) = (view.bytes, view.n);
    Some(ByteTables {
        blocks,
        bytes,
        row_bytes,
        per_row,
        per_block,
        n,
        m,
        planes,
        tables,
        units,
        sums,
    })
}

/// What the tables of a tile hold.
struct Fill<'a> {
    groups: &'a Groups,
    /// Of the groups' values.
    largest: f32,
}

impl FillTile for Fill<'_> {
    #[inline(always)]
    fn fill<S: Simd, const P: usize>(&self, s: S, x: &[f32], tables: &mut [u8]) -> f32 {
        let length = self.groups.length;
        let unit = Unit::new::<S, P>(s, x, x.chunks(length), self.largest);
        if !unit.value.is_finite() {
            return unit.value;
        }
        let mut products = [0.0f32; TABLE];
        for (x, tables) in x.chunks(length).zip(tables.chunks_exact_mut(P * TABLE)) {
            products_of_group(s, self.groups, x, &mut products);
            let mut integers = [0i32; TABLE];
            for (integer, product) in integers.iter_mut().zip(&products) {
                *integer = unit.integer(*product);
            }
            for (i, table) in tables.chunks_exact_mut(TABLE).enumerate() {
                for (out, integer) in table.iter_mut().zip(integers) {
                    *out = plane(integer, i) as u8;
                }
            }
        }
        unit.value
    }
}

/// Rows `first..` of `yᵀ = w xᵀ`: `y: [rows, M]`.
pub(crate) struct LookUp256<'a> {
    pub p: &'a ByteTables<'a>,
    pub first: usize,
    pub y: &'a mut [f32],
}

impl Task for LookUp256<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.p.planes {
            3 => self.with::<S, 3>(s),
            _ => self.with::<S, 2>(s),
        }
    }
}

impl LookUp256<'_> {
    #[inline(always)]
    fn with<S: Simd, const P: usize>(self, s: S) {
        let LookUp256 { p, first, y } = self;
        let m = p.m;
        let blocks = p.blocks.of_row();
        let rows = y.len() / m;
        let scales = p.blocks.scales_of::<ROWS>(first, rows);
        let groups = rows.div_ceil(ROWS);
        let len = p.per_row.next_multiple_of(STEP);
        let mut ends = vec![Vec::new(); groups];
        let mut groups_of_rows = Vec::with_capacity(groups);
        for (group, ends) in ends.iter_mut().enumerate() {
            let row = |i: usize| (first + group * ROWS + i).min(p.n - 1) * p.row_bytes;
            let rows: [&[u8]; ROWS] = runs(p.bytes, (0..ROWS).map(row), len, ends);
            groups_of_rows.push(rows.map(|row| row.as_chunks::<STEP>().0));
        }
        let mut codes = Buffer::new(TILE * ROWS, 0u8);
        let mut ahead = (first + rows) * p.row_bytes;
        let lines = (rows * p.row_bytes).div_ceil(LINE * p.units.len() * groups);
        y.fill(0.0);
        for (t, tables) in p.tables.chunks_exact(m * TILE * P * TABLE).enumerate() {
            let from = t * TILE;
            let len = (p.per_row - from).min(TILE);
            let groups = y.chunks_mut(ROWS * m).zip(scales.chunks_exact(blocks));
            for ((y, scales), rows) in groups.zip(&groups_of_rows) {
                let steps = codes.chunks_exact_mut(STEP * ROWS).take(len.div_ceil(STEP));
                for (i, codes) in steps.enumerate() {
                    transpose(s, rows, from / STEP + i, codes);
                }
                for (i, tables) in tables.chunks_exact(TILE * P * TABLE).enumerate() {
                    let unit = p.units[t * m + i];
                    // The next rows, a few lines at a time: all at once they would wait for each other.
                    for _ in 0..lines {
                        s.prefetch(p.bytes, ahead);
                        ahead += LINE;
                    }
                    let mut at = 0;
                    while at < len {
                        let block = (from + at) / p.per_block;
                        let end = ((block + 1) * p.per_block - from).min(len);
                        let codes = &codes[at * ROWS..end * ROWS];
                        let tables = &tables[at * P * TABLE..end * P * TABLE];
                        let values = integers(&s.sum_bytes::<P>(codes, tables), end - at);
                        let mut products = [0.0f32; ROWS];
                        let parts = values.as_flattened().iter().zip(&scales[block]);
                        for (product, (value, scale)) in products.iter_mut().zip(parts) {
                            *product = *value as f32 * (scale * unit);
                        }
                        if let (1, Some(y)) = (m, y.first_chunk_mut::<ROWS>()) {
                            for (y, product) in y.iter_mut().zip(products) {
                                *y += product;
                            }
                        } else {
                            for (y, product) in y.chunks_exact_mut(m).zip(products) {
                                y[i] += product;
                            }
                        }
                        at = end;
                    }
                }
            }
        }
        add_means(s, p.blocks, first, &p.sums, m, y);
    }
}

/// Step `i` of each row: `[STEP, ROWS]`.
#[inline(always)]
fn transpose<S: Simd>(s: S, rows: &[&[[u8; STEP]]; ROWS], i: usize, codes: &mut [u8]) {
    for part in (0..ROWS / STEP).step_by(S::PARTS) {
        let mut v = [[s.zeros(); STEP / 2]; 2];
        for (r, v) in v.as_flattened_mut().iter_mut().enumerate() {
            let mut of_parts = [&rows[part * STEP + r][i]; ROWS / STEP];
            for j in 1..S::PARTS {
                of_parts[j] = &rows[(part + j) * STEP + r][i];
            }
            *v = s.load_parts(of_parts);
        }
        let v = s.interleave_sixteen(s.interleave_sixteen(v));
        let v = s.interleave_sixteen(s.interleave_sixteen(v));
        for (v, codes) in v.as_flattened().iter().zip(codes.chunks_exact_mut(ROWS)) {
            s.store_bytes(*v, &mut codes[part * STEP..]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Cpu, Weight, formats};

    /// On machines that have no such look-up as well: then it is a loop.
    #[test]
    fn agree_with_products_of_what_is_decoded() {
        for (n, k, block_size, m, exact) in
            [(64, 640, None, 1, true), (100, 1283, None, 3, false), (130, 960, Some(160), 2, true)]
        {
            let number = |i: usize| ((i * 2_654_435_761) % 1000) as f32 / 500.0 - 1.0;
            let numbers: Vec<f32> = (0..n * k).map(number).collect();
            let x: Vec<f32> = (0..m * k).map(|i| number(i + 7)).collect();
            let format = formats::by_name("sub1").unwrap();
            for isa in Isa::available() {
                let cpu = Cpu::with(isa);
                let q = cpu.quantize(format, &numbers, &[n, k], block_size).unwrap();
                let mut w = vec![0.0f32; n * k];
                cpu.dequantize(&q, &mut w).unwrap();
                let weight = Weight::Quantized(q);
                let view = View::of(&weight);
                let p = prepare(isa, &view, &x, m, exact, &Pool::for_work(n * k)).unwrap();
                let mut y = vec![0.0; n * m];
                isa.run(LookUp256 { p: &p, first: 0, y: &mut y });
                for (row, y) in y.chunks_exact(m).enumerate() {
                    for (x, y) in x.chunks_exact(k).zip(y) {
                        let products = w[row * k..][..k].iter().zip(x).map(|(w, x)| w * x);
                        let (sum, size) = products.fold((0.0, 0.0), |(sum, size), p| {
                            (sum + f64::from(p), size + f64::from(p.abs()))
                        });
                        let most = if exact { 2e-6 } else { 1e-3 };
                        assert!((f64::from(*y) - sum).abs() <= most * size, "{isa:?} {row}");
                    }
                }
            }
        }
    }
}
