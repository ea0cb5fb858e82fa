//! One row of activations by tables: for each group of columns the products with all codes are worked
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

/// Activations, ready to be looked up.
pub(crate) struct Tables<'a> {
    groups: &'a Groups,
    blocks: &'a Blocks<'a>,
    bytes: &'a [u8],
    row_bytes: usize,
    /// `[groups of a row, codes]`.
    products: Buffer<f32>,
    /// Sum of the activations of each block, for means.
    sums: Vec<f32>,
    /// Groups of a block.
    per_block: usize,
    n: usize,
}

/// Makes the tables for `x: [K]`; `None` if the weight has no groups, or blocks that cut them.
pub(crate) fn prepare<'a>(
    isa: Isa,
    view: &'a View<'a>,
    x: &[f32],
    pool: &Pool,
) -> Option<Tables<'a>> {
    let (Codes::Groups(groups), Some(blocks)) = (&view.codes, &view.blocks) else { return None };
    let g = &blocks.geometry;
    let whole = g.block_size >= g.k;
    let fits =
        view.n >= LEAST_ROWS && groups.are_bytes() && (whole || g.block_size % groups.length == 0);
    let row_bytes = g.row_bytes.filter(|_| fits)?;
    let per_row = g.k.div_ceil(groups.length);
    let codes = groups.codes();
    let mut products = Buffer::new(per_row * codes, 0.0f32);
    pool.each(&mut products, TILE * codes, view.n * view.k, |i, products| {
        let x = &x[i * TILE * groups.length..];
        isa.run(Products { groups, x, products });
    });
    let sums = match blocks.means {
        Some(_) => x.chunks(g.block_size).map(|x| x.iter().sum()).collect(),
        None => Vec::new(),
    };
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
            // Four vectors at a time stay in registers while the columns pass.
            for at in (0..codes).step_by(4 * S::LANES) {
                let mut sums = [s.splat(0.0); 4];
                for (x, column) in x.iter().zip(groups.columns.chunks_exact(codes)) {
                    let x = s.splat(*x);
                    for (v, sum) in sums.iter_mut().enumerate() {
                        *sum = s.fma(s.load(&column[at + v * S::LANES..]), x, *sum);
                    }
                }
                for (v, sum) in sums.into_iter().enumerate() {
                    s.store(sum, &mut products[at + v * S::LANES..]);
                }
            }
        }
    }
}

impl Tables<'_> {
    /// Rows `first..first + y.len()` of the product.
    pub fn multiply(&self, first: usize, y: &mut [f32]) {
        for (i, y) in y.chunks_mut(ROWS).enumerate() {
            self.multiply_some(first + i * ROWS, y);
        }
    }

    fn multiply_some(&self, first: usize, y: &mut [f32]) {
        let codes = self.groups.codes();
        let Blocks { geometry, scales, means, unit } = self.blocks;
        let per_row = self.products.len() / codes;
        let blocks = per_row.div_ceil(self.per_block);
        y.fill(0.0);
        for block in 0..blocks {
            let end = per_row.min((block + 1) * self.per_block);
            let mut partial = [0.0f32; ROWS];
            for from in (block * self.per_block..end).step_by(TILE) {
                let len = TILE.min(end - from);
                let tables = &self.products[from * codes..(from + len) * codes];
                for (i, partial) in partial[..y.len()].iter_mut().enumerate() {
                    let row = &self.bytes[(first + i) * self.row_bytes + from..][..len];
                    *partial += sum(tables, row);
                }
            }
            for (i, (y, partial)) in y.iter_mut().zip(partial).enumerate() {
                let at = geometry.block(first + i, block * self.per_block * self.groups.length);
                *y += partial * (scales.get(at) * unit);
                if let Some(means) = means {
                    *y += means[at] * self.sums[block];
                }
            }
        }
    }

    /// Rows that a thread should take.
    pub fn rows(&self) -> usize {
        ROWS.min(self.n.div_ceil(4 * rayon::current_num_threads()).max(1))
    }
}

/// The sum of what the codes of some groups find in their tables of 256.
#[inline(always)]
fn sum(tables: &[f32], row: &[u8]) -> f32 {
    let (tables, _) = tables.as_chunks::<256>();
    let mut sums = [0.0f32; 4];
    let (fours, rest) = row.as_chunks::<4>();
    for (codes, tables) in fours.iter().zip(tables.chunks_exact(4)) {
        for i in 0..4 {
            sums[i] += tables[i][usize::from(codes[i])];
        }
    }
    let done = row.len() - rest.len();
    for (code, table) in rest.iter().zip(&tables[done..]) {
        sums[0] += table[usize::from(*code)];
    }
    (sums[0] + sums[1]) + (sums[2] + sums[3])
}
