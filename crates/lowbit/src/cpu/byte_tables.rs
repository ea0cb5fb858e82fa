//! A few rows of activations and codes of a byte that stand for a group of weights, where an instruction
//! set looks bytes up in tables of 256.
//!
//! A group of columns has one [table of integers](super::integer_tables) for all rows of weights, 256 of
//! which look up in it at a time. Every thread makes all tables for its own rows: those that another core has
//! written arrive no sooner than they are made. Codes lie by rows, and are looked up by columns: they are turned
//! for each product, unless the tensor keeps them so.

use super::buffer::Buffer;
use super::dispatch::Isa;
use super::groups::{Groups, Halves};
use super::integer_tables::{HALF, Unit, add_means, plane};
use super::lookup::{block_sums, products_of_group};
use super::simd::bytes::{Ahead, COLUMNS, HALF_TABLE, ROWS, SQUARE, TABLE};
use super::simd::{Simd, Task};
use super::view::{Blocks, Codes, View};
use crate::threads;

/// Most rows of activations for which this is worth it.
const MOST: usize = 8;
/// Bytes of a tile.
const TILE: usize = ROWS * COLUMNS;
/// Squares side by side in a tile.
const SQUARES: usize = COLUMNS / SQUARE;
/// Bytes of tables that are made at a time, unless one tile takes more: half of a second-level cache.
const MOST_BYTES: usize = 1 << 19;
/// Cache lines to ask for before sixteen rows are turned, before a column of squares is looked up, and while the
/// tables of a column are made: of a tile that makes 48 times, and its codes are 256 lines.
const LINES: usize = 6;
/// The same where nothing is turned: 32 times.
const LINES_TURNED: usize = 8;
/// Columns of all squares that are looked up at a time: their tables take half of a first-level cache.
const STEP: usize = SQUARE / 2;

/// Some rows of activations, and the weight that looks up in their tables.
pub(crate) struct ByteTables<'a> {
    groups: &'a Groups,
    blocks: &'a Blocks<'a>,
    bytes: &'a [u8],
    row_bytes: usize,
    /// Groups of a row.
    per_row: usize,
    /// Groups of a block.
    per_block: usize,
    n: usize,
    m: usize,
    exact: bool,
    /// `[M, K]`.
    x: &'a [f32],
    /// What the integers stand for: `[tiles, M]`.
    units: Vec<Unit>,
    /// Sums of the activations of each block, for means: `[M, blocks]`.
    sums: Vec<f32>,
    /// The codes as [`Bytes::turn`](super::simd::bytes::Bytes::turn) leaves them, if they are kept:
    /// `[groups of ROWS, tiles, TILE]`.
    turned: Option<&'a [u8]>,
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

/// Takes `x: [M, K]`; `None` if codes are no bytes of a table, blocks cut their groups, or an activation is not
/// finite. With `exact`, f32 accuracy.
pub(crate) fn prepare<'a>(
    isa: Isa,
    view: &'a View<'a>,
    x: &'a [f32],
    m: usize,
    exact: bool,
) -> Option<ByteTables<'a>> {
    let (Codes::Groups(groups), Some(blocks)) = (&view.codes, &view.blocks) else { return None };
    let g = &blocks.geometry;
    let whole = g.block_size >= g.k;
    let in_blocks = whole || g.block_size % (groups.length * SQUARE) == 0;
    if m > MOST || view.n < ROWS || g.k == 0 || groups.codes() != TABLE || !in_blocks {
        return None;
    }
    let per_row = g.k.div_ceil(groups.length);
    let p = ByteTables {
        groups,
        blocks,
        bytes: view.bytes,
        row_bytes: g.row_bytes?,
        per_row,
        per_block: if whole { per_row } else { g.block_size / groups.length },
        n: view.n,
        m,
        exact,
        x,
        units: Vec::new(),
        sums: block_sums(x, blocks),
        turned: None,
    };
    let turned = blocks.turned.get(|| isa.run(TurnAll(&p)));
    let units = isa.run(Units(&p));
    units.iter().all(|unit| unit.value.is_finite()).then_some(ByteTables { units, turned, ..p })
}

/// Turns all codes.
struct TurnAll<'a>(&'a ByteTables<'a>);

impl Task for TurnAll<'_> {
    type Output = Buffer<u8>;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Buffer<u8> {
        let TurnAll(p) = self;
        let tiles = p.tiles();
        let mut codes = Buffer::new(p.n.div_ceil(ROWS) * tiles * TILE, 0u8);
        let mut ends = Vec::new();
        for (i, codes) in codes.chunks_exact_mut(TILE).enumerate() {
            let (rows, stride) = p.rows(i / tiles * ROWS, i % tiles * COLUMNS, &mut ends);
            s.turn(rows, stride, codes, &mut Ahead::new(&[], 0, 0, 0));
        }
        codes
    }
}

/// What the integers of all tiles stand for.
struct Units<'a>(&'a ByteTables<'a>);

impl Task for Units<'_> {
    type Output = Vec<Unit>;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Vec<Unit> {
        let Units(p) = self;
        let largest = p.groups.largest();
        let mut units = Vec::with_capacity(p.tiles() * p.m);
        for i in 0..p.tiles() * p.m {
            let x = p.x_of(i);
            let groups = x.chunks(p.groups.length);
            units.push(match p.exact {
                true => Unit::new::<S, 3>(s, x, groups, largest),
                false => Unit::new::<S, 2>(s, x, groups, largest),
            });
        }
        units
    }
}

impl ByteTables<'_> {
    /// Rows that a thread should take.
    pub fn rows_of_thread(&self) -> usize {
        self.n.div_ceil(threads::count()).next_multiple_of(ROWS)
    }

    fn tiles(&self) -> usize {
        self.per_row.div_ceil(COLUMNS)
    }

    /// The activations of tile `i / M` of row `i % M`.
    fn x_of(&self, i: usize) -> &[f32] {
        let k = self.x.len() / self.m;
        let (row, from) =
            (&self.x[i % self.m * k..][..k], i / self.m * COLUMNS * self.groups.length);
        &row[from..k.min(from + COLUMNS * self.groups.length)]
    }

    /// The tables of those: in each plane `[SQUARE, SQUARES, TABLE]`.
    #[inline(always)]
    fn fill<S: Simd, const P: usize>(
        &self,
        s: S,
        i: usize,
        tables: &mut [u8],
        ahead: &mut Ahead<'_>,
    ) {
        let (length, unit) = (self.groups.length, &self.units[i]);
        let mut planes = tables.chunks_exact_mut(COLUMNS * TABLE);
        let mut planes: [&mut [u8]; P] = std::array::from_fn(|_| planes.next().unwrap_or_default());
        // Beyond the last column there is nothing: no product with anything.
        let groups = self.x_of(i).chunks(length).chain(std::iter::repeat(&[][..]));
        for (column, x) in groups.take(COLUMNS).enumerate() {
            ahead.ask(s);
            let at = column % SQUARE * SQUARES + column / SQUARE;
            let tables = planes.each_mut().map(|plane| &mut plane[at * TABLE..][..TABLE]);
            if let Some(halves) = &self.groups.halves {
                let products = products_of_halves(s, halves, x);
                s.planes_of_halves(&products, (unit.factor, unit.half), &halves.index, tables);
                continue;
            }
            let mut products = [0.0f32; TABLE];
            products_of_group(s, self.groups, x, &mut products);
            let integers = products.map(|product| unit.integer(product));
            for (number, table) in tables.into_iter().enumerate() {
                for (out, integer) in table.iter_mut().zip(integers) {
                    *out = plane(integer, number) as u8;
                }
            }
        }
    }

    /// The cache lines of [`ROWS`] rows.
    fn lines(&self, first: usize) -> Ahead<'_> {
        if let Some(turned) = self.turned {
            let at = first * self.tiles() * COLUMNS;
            return Ahead::new(turned, at, at + self.tiles() * TILE, LINES_TURNED);
        }
        let at = first * self.row_bytes;
        Ahead::new(self.bytes, at, at + ROWS * self.row_bytes, LINES)
    }

    /// [`COLUMNS`] bytes of [`ROWS`] rows, and how far apart they begin. Where the weight ends before, they are
    /// copied to `ends`.
    #[inline(always)]
    fn rows<'a>(&'a self, first: usize, from: usize, ends: &'a mut Vec<u8>) -> (&'a [u8], usize) {
        let end = (first + ROWS - 1) * self.row_bytes + from + COLUMNS;
        if end <= self.bytes.len() {
            return (&self.bytes[first * self.row_bytes + from..], self.row_bytes);
        }
        ends.resize(ROWS * COLUMNS, 0);
        for (row, end) in ends.chunks_exact_mut(COLUMNS).enumerate() {
            let row = (first + row).min(self.n - 1);
            let bytes = &self.bytes[row * self.row_bytes + from..];
            let there = COLUMNS.min(bytes.len());
            end[..there].copy_from_slice(&bytes[..there]);
        }
        (ends, COLUMNS)
    }
}

/// Products of a group of activations with the patterns of both halves.
#[inline(always)]
fn products_of_halves<S: Simd>(s: S, halves: &Halves, x: &[f32]) -> [[f32; HALF_TABLE]; 2] {
    let (low, high) = x.split_at(halves.split.min(x.len()));
    let (of_low, of_high) = halves.values.split_at(halves.split);
    let mut products = [[0.0; HALF_TABLE]; 2];
    for ((products, x), values) in products.iter_mut().zip([low, high]).zip([of_low, of_high]) {
        for (i, products) in products.chunks_exact_mut(S::LANES).enumerate() {
            let mut sum = s.splat(0.0);
            for (x, values) in x.iter().zip(values) {
                sum = s.fma(s.load(&values[i * S::LANES..]), s.splat(*x), sum);
            }
            s.store(sum, products);
        }
    }
    products
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
        match self.p.exact {
            true => self.with::<S, 3>(s),
            false => self.with::<S, 2>(s),
        }
    }
}

impl LookUp256<'_> {
    #[inline(always)]
    fn with<S: Simd, const P: usize>(self, s: S) {
        let LookUp256 { p, first, y } = self;
        let m = p.m;
        let blocks = p.blocks.of_row();
        let scales = p.blocks.scales_of::<S, ROWS>(s, first, y.len() / m);
        let size = P * COLUMNS * TABLE;
        // The tables of so many tiles as stay in a second-level cache: those of a whole row, if it is the only one.
        let batch = (MOST_BYTES / (m * size)).clamp(1, p.tiles());
        let mut tables = Buffer::new(batch * m * size, 0u8);
        let mut own = Buffer::new(if p.turned.is_some() { 0 } else { TILE }, 0u8);
        let mut ends = Vec::new();
        y.fill(0.0);
        let mut ahead = p.lines(first);
        for begin in (0..p.tiles()).step_by(batch) {
            let tiles = begin..p.tiles().min(begin + batch);
            for (i, tables) in tables.chunks_exact_mut(size).take(tiles.len() * m).enumerate() {
                p.fill::<S, P>(s, begin * m + i, tables, &mut ahead);
            }
            let groups = y.chunks_mut(ROWS * m).zip(scales.chunks_exact(blocks));
            for (group, (y, scales)) in groups.enumerate() {
                let first = first + group * ROWS;
                ahead = p.lines(first + ROWS);
                for (tile, tables) in tiles.clone().zip(tables.chunks_exact(m * size)) {
                    let codes = match p.turned {
                        Some(turned) => &turned[(first / ROWS * p.tiles() + tile) * TILE..][..TILE],
                        None => {
                            let (rows, stride) = p.rows(first, tile * COLUMNS, &mut ends);
                            s.turn(rows, stride, &mut own, &mut ahead);
                            &own
                        }
                    };
                    for (i, tables) in tables.chunks_exact(size).enumerate() {
                        let sums = Sums { p, tile, i, codes, tables };
                        sums.add_to::<S, P>(s, scales, y, &mut ahead);
                    }
                }
            }
        }
        add_means(s, p.blocks, first, &p.sums, m, y);
    }
}

/// What the turned codes of a tile find in the tables of a row of activations.
struct Sums<'a> {
    p: &'a ByteTables<'a>,
    tile: usize,
    i: usize,
    codes: &'a [u8],
    tables: &'a [u8],
}

impl Sums<'_> {
    /// Adds it up with the scales of all blocks, `[blocks, ROWS]`, to `y: [ROWS, M]`.
    #[inline(always)]
    fn add_to<S: Simd, const P: usize>(
        &self,
        s: S,
        scales: &[[f32; ROWS]],
        y: &mut [f32],
        ahead: &mut Ahead<'_>,
    ) {
        let (p, m) = (self.p, self.p.m);
        let unit = p.units[self.tile * m + self.i].value;
        // All squares at once, if they are of one block.
        let apart = scales.len() > 1 && p.per_block % COLUMNS != 0;
        for part in 0..if apart { SQUARES } else { 1 } {
            let block = (self.tile * COLUMNS + part * SQUARE) / p.per_block;
            // Beyond the row there is nothing.
            let Some(scales) = scales.get(block) else { break };
            let sums = self.of::<S, P>(s, apart.then_some(part), ahead);
            let mut products = [0.0f32; ROWS];
            for (product, (sum, scale)) in products.iter_mut().zip(sums.iter().zip(scales)) {
                *product = *sum as f32 * (scale * unit);
            }
            if let (1, Some(y)) = (m, y.first_chunk_mut::<ROWS>()) {
                for (y, product) in y.iter_mut().zip(products) {
                    *y += product;
                }
            } else {
                for (y, product) in y.chunks_exact_mut(m).zip(products) {
                    y[self.i] += product;
                }
            }
        }
    }

    /// The integers of all squares, or of one.
    #[inline(always)]
    fn of<S: Simd, const P: usize>(
        &self,
        s: S,
        square: Option<usize>,
        ahead: &mut Ahead<'_>,
    ) -> [i32; ROWS] {
        // What makes entries positive.
        let half: i32 = (0..P).map(|plane| HALF << (7 * plane)).sum();
        let looked_up = if square.is_some() { SQUARE } else { COLUMNS };
        let mut sums = [-half * looked_up as i32; ROWS];
        for (step, codes) in self.codes.chunks_exact(STEP * SQUARES * ROWS).enumerate() {
            let at = step * STEP * SQUARES * TABLE;
            let planes = std::array::from_fn(|plane| &self.tables[plane * COLUMNS * TABLE + at..]);
            s.sum_bytes::<P>(codes, square, planes, &mut sums, ahead);
        }
        sums
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Cpu, Weight, formats};

    /// On machines that have no such look-up as well: then it is a loop.
    #[test]
    fn agree_with_products_of_what_is_decoded() {
        for (name, n, k, block_size, m, exact) in [
            ("sub1", 256, 640, None, 1, true),
            ("sub1", 300, 1283, None, 3, false),
            ("sub1", 257, 960, Some(160), 2, true),
            ("sub1", 256, 1290, Some(640), 1, false),
            ("t158", 530, 700, None, 1, false),
            ("t158", 256, 480, Some(160), 2, true),
            ("bin1", 300, 1030, None, 8, false),
            ("bin1", 256, 1024, Some(128), 1, true),
        ] {
            let number = |i: usize| ((i * 2_654_435_761) % 1000) as f32 / 500.0 - 1.0;
            let numbers: Vec<f32> = (0..n * k).map(number).collect();
            let x: Vec<f32> = (0..m * k).map(|i| number(i + 7)).collect();
            let format = formats::by_name(name).unwrap();
            for isa in Isa::available() {
                let cpu = Cpu::with(isa);
                let q = cpu.quantize(format, &numbers, &[n, k], block_size).unwrap();
                let mut w = vec![0.0f32; n * k];
                cpu.dequantize(&q, &mut w).unwrap();
                let weight = Weight::Quantized(q);
                let view = View::of(&weight);
                // Codes are kept from the second product on.
                let [y, again] = [false, true].map(|kept| {
                    let p = prepare(isa, &view, &x, m, exact).unwrap();
                    assert_eq!(p.turned.is_some(), kept);
                    let mut y = vec![0.0; n * m];
                    isa.run(LookUp256 { p: &p, first: 0, y: &mut y });
                    y
                });
                assert_eq!(y, again, "{name} {isa:?}");
                for (row, y) in y.chunks_exact(m).enumerate() {
                    for (x, y) in x.chunks_exact(k).zip(y) {
                        let products = w[row * k..][..k].iter().zip(x).map(|(w, x)| w * x);
                        let (sum, size) = products.fold((0.0, 0.0), |(sum, size), p| {
                            (sum + f64::from(p), size + f64::from(p.abs()))
                        });
                        let most = if exact { 2e-6 } else { 1e-3 };
                        let error = (f64::from(*y) - sum).abs();
                        assert!(error <= most * size, "{name} {isa:?} {row}: {error}");
                    }
                }
            }
        }
    }

    /// A codebook of more patterns than halves hold.
    #[test]
    fn codebooks_without_halves_do_as_well() {
        let format = formats::by_name("sub1").unwrap();
        let (n, k) = (256, 320);
        let digit = |code: usize, place: u32| (code * 7 + 1) / 3usize.pow(place) % 3;
        let book: Vec<f32> =
            (0..2560).map(|i| digit(i / 10, (i % 10) as u32) as f32 - 1.0).collect();
        let q = crate::QTensor::from_parts(crate::Parts {
            format,
            shape: vec![n, k],
            block_size: None,
            codes: (0..n * k / 10).map(|i| (i * 37 + i / 256) as u8).collect::<Vec<_>>().into(),
            scales: crate::Scales::F16(vec![half::f16::ONE; n].into()),
            means: None,
            codebook: Some(book.into()),
        })
        .unwrap();
        let x: Vec<f32> = (0..k).map(|i| (i * 29 % 64) as f32 / 32.0 - 1.0).collect();
        let expected = crate::cpu::reference::linear(&q, &x, None);
        let weight = Weight::Quantized(q);
        let view = View::of(&weight);
        let Codes::Groups(groups) = &view.codes else { panic!("no groups") };
        assert!(groups.halves.is_none());
        for isa in Isa::available() {
            let p = prepare(isa, &view, &x, 1, true).unwrap();
            let mut y = vec![0.0; n];
            isa.run(LookUp256 { p: &p, first: 0, y: &mut y });
            for (y, expected) in y.iter().zip(&expected) {
                assert!((f64::from(*y) - expected).abs() < 1e-4, "{isa:?}: {y} {expected}");
            }
        }
    }
}
