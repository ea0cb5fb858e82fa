//! A few rows of activations by tables: for each group of columns the products with all codes are worked
//! out once, and every row of weights then takes one look-up and one addition a code.

use super::buffer::Buffer;
use super::dispatch::Isa;
use super::groups::Groups;
use super::linear::Pool;
use super::simd::{Simd, Task};
use super::view::{Blocks, Codes, View};

/// Groups whose tables stay in a first-level cache while all rows look up in them.
const TILE: usize = 16;
/// Rows that a thread takes at once.
const ROWS: usize = 256;
/// Rows from which tables are worth making.
const LEAST_ROWS: usize = 256;
/// Most rows of activations: decoding the weights once for more of them is faster.
const MOST: usize = 3;

/// Activations, ready to be looked up.
pub(crate) struct Tables<'a> {
    groups: &'a Groups,
    blocks: &'a Blocks<'a>,
    bytes: &'a [u8],
    row_bytes: usize,
    /// `[M, groups of a row, codes]`.
    products: Buffer<f32>,
    /// Sum of the activations of each block, for means: `[M, blocks]`.
    sums: Vec<f32>,
    /// Groups of a block.
    per_block: usize,
    n: usize,
    m: usize,
}

/// Makes the tables for `x: [M, K]`; `None` if the weight has no groups, or blocks that cut them.
pub(crate) fn prepare<'a>(
    isa: Isa,
    view: &'a View<'a>,
    x: &[f32],
    m: usize,
    pool: &Pool,
) -> Option<Tables<'a>> {
    let (Codes::Groups(groups), Some(blocks)) = (&view.codes, &view.blocks) else { return None };
    let g = &blocks.geometry;
    let whole = g.block_size >= g.k;
    let fits = m <= MOST
        && view.n >= LEAST_ROWS
        && groups.are_bytes()
        && (whole || g.block_size % groups.length == 0);
    let row_bytes = g.row_bytes.filter(|_| fits)?;
    let per_row = g.k.div_ceil(groups.length);
    let codes = groups.codes();
    let mut products = Buffer::new(m * per_row * codes, 0.0f32);
    let rows = products.chunks_exact_mut((per_row * codes).max(1)).zip(x.chunks_exact(g.k.max(1)));
    for (products, x) in rows {
        pool.each(products, TILE * codes, view.n * view.k, |i, products| {
            let x = &x[i * TILE * groups.length..];
            isa.run(Products { groups, x, products });
        });
    }
    let sums = block_sums(x, blocks);
    let per_block = if whole { per_row } else { g.block_size / groups.length };
    Some(Tables {
        groups,
        blocks,
        bytes: view.bytes,
        row_bytes,
        products,
        sums,
        per_block,
        n: view.n,
        m,
    })
}

/// Products of some groups of activations with all codes.
struct Products<'a> {
    groups: &'a Groups,
    x: &'a [f32],
    products: &'a mut [f32],
}

impl Task for Products<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Products { groups, x, products } = self;
        let codes = groups.codes();
        for (x, products) in x.chunks(groups.length).zip(products.chunks_exact_mut(codes)) {
            products_of_group(s, groups, x, products);
        }
    }
}

/// Products of a group of activations with all codes.
#[inline(always)]
pub(crate) fn products_of_group<S: Simd>(s: S, groups: &Groups, x: &[f32], products: &mut [f32]) {
    // Eight vectors at a time stay in registers while the columns pass.
    for (at, products) in products.chunks_exact_mut(8 * S::LANES).enumerate() {
        let mut sums = [s.splat(0.0); 8];
        for (x, column) in x.iter().zip(groups.columns.chunks_exact(groups.codes())) {
            let x = s.splat(*x);
            let column = &column[at * 8 * S::LANES..][..8 * S::LANES];
            for (sum, column) in sums.iter_mut().zip(column.chunks_exact(S::LANES)) {
                *sum = s.fma(s.load(column), x, *sum);
            }
        }
        for (sum, products) in sums.into_iter().zip(products.chunks_exact_mut(S::LANES)) {
            s.store(sum, products);
        }
    }
}

/// Rows `first..` of `yᵀ = w xᵀ`: `y: [rows, M]`.
pub(crate) struct Sums<'a> {
    pub tables: &'a Tables<'a>,
    pub first: usize,
    pub y: &'a mut [f32],
}

impl Task for Sums<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Sums { tables, first, y } = self;
        for (i, y) in y.chunks_mut(ROWS * tables.m).enumerate() {
            for row_of_x in 0..tables.m {
                tables.multiply(s, first + i * ROWS, row_of_x, y);
            }
        }
    }
}

impl Tables<'_> {
    #[inline(always)]
    fn multiply<S: Simd>(&self, s: S, first: usize, row_of_x: usize, y: &mut [f32]) {
        let codes = self.groups.codes();
        let Blocks { geometry, scales, means, unit, .. } = self.blocks;
        let size = self.products.len() / self.m;
        let products = &self.products[row_of_x * size..][..size];
        let per_row = size / codes;
        let blocks = per_row.div_ceil(self.per_block);
        let rows = y.len() / self.m;
        let mut totals = [0.0f32; ROWS];
        for block in 0..blocks {
            let end = per_row.min((block + 1) * self.per_block);
            let mut partial = [0.0f32; ROWS];
            for from in (block * self.per_block..end).step_by(TILE) {
                let len = TILE.min(end - from);
                let tables = &products[from * codes..(from + len) * codes];
                for (i, partial) in partial[..rows].iter_mut().enumerate() {
                    let at = (first + i) * self.row_bytes + from;
                    // Rows lie apart, so nothing else would fetch the next ones ahead.
                    s.prefetch(self.bytes, at + ROWS * self.row_bytes);
                    let row = &self.bytes[at..][..len];
                    *partial += sum(tables, row);
                }
            }
            for (i, (total, partial)) in totals[..rows].iter_mut().zip(partial).enumerate() {
                let at = geometry.block(first + i, block * self.per_block * self.groups.length);
                *total += partial * (scales.get(at) * unit);
                if let Some(means) = means {
                    *total += means[at] * self.sums[row_of_x * blocks + block];
                }
            }
        }
        for (y, total) in y.chunks_exact_mut(self.m).zip(totals) {
            y[row_of_x] = total;
        }
    }

    /// Rows that a thread should take.
    pub fn rows(&self) -> usize {
        ROWS.min(self.n.div_ceil(4 * crate::threads::count()).max(1))
    }
}

/// Sums of the activations `x: [M, K]` in each block of a row, for its means: `[M, blocks]`; nothing where
/// blocks have none.
pub(crate) fn block_sums(x: &[f32], blocks: &Blocks<'_>) -> Vec<f32> {
    if blocks.means.is_none() {
        return Vec::new();
    }
    let g = &blocks.geometry;
    let rows = x.chunks_exact(g.k.max(1));
    rows.flat_map(|row| row.chunks(g.block_size).map(in_lanes)).collect()
}

/// The sum of numbers, sixteen sums side by side.
fn in_lanes(x: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 16];
    for x in x.chunks(lanes.len()) {
        for (lane, x) in lanes.iter_mut().zip(x) {
            *lane += x;
        }
    }
    lanes.iter().sum()
}

/// The sum of what the codes of some groups find in their tables of 256.
#[inline(always)]
fn sum(tables: &[f32], row: &[u8]) -> f32 {
    let (tables, _) = tables.as_chunks::<256>();
    let mut sums = [0.0f32; 4];
    let (eights, rest) = row.as_chunks::<8>();
    for (codes, tables) in eights.iter().zip(tables.chunks_exact(8)) {
        // One load for eight codes: loads are what this waits for.
        let codes = u64::from_le_bytes(*codes);
        for i in 0..8 {
            sums[i % 4] += tables[i][(codes >> (8 * i) & 255) as usize];
        }
    }
    let done = row.len() - rest.len();
    for (code, table) in rest.iter().zip(&tables[done..]) {
        sums[0] += table[usize::from(*code)];
    }
    (sums[0] + sums[1]) + (sums[2] + sums[3])
}
