//! A few rows of activations and weights of less than two bits, by tables of sixteen.
//!
//! A byte of a weight is two digits of at most sixteen values: nibbles of bits, or two trits and three
//! of which only the magnitude is looked up. What a digit contributes is worked out once for each row of
//! activations, as an integer in planes of seven bits, and then looked up for sixteen rows of weights at
//! a time, whose bytes are transposed for it. Sums of integers are exact; what is lost is the rounding of
//! the entries: three planes keep 21 bits, about what f32 sums keep, two keep 14, as the other kernels do
//! for 16-bit activations.

use super::buffer::Buffer;
use super::dispatch::Isa;
use super::groups::{Digits, Groups};
use super::integer_tables::{Cut, FillTile, HALF, STEP, Unit, add_means, integers, plane, runs};
use super::linear::Pool;
use super::lookup::block_sums;
use super::simd::{Simd, Task};
use super::view::{Blocks, Codes, View};

/// Rows of weights that share a look-up: bytes of a part.
const ROWS: usize = 16;
/// Rows of weights that a thread takes at once.
pub(crate) const ROWS_OF_THREAD: usize = 128;
/// Most rows of activations for which this is worth it.
const MOST: usize = 8;
/// Bytes of a row whose tables are used for all rows of weights of a thread before the next.
const TILE: usize = 512;
/// Columns whose bytes fit a 16-bit sum.
const COLUMNS: usize = 256;
/// Bytes of a cache line.
const LINE: usize = 64;
/// Entries of a table.
const ENTRIES: usize = 16;

/// Tables for some rows of activations, and the weight that looks up in them.
pub(crate) struct Planes<'a> {
    digits: Digits,
    blocks: &'a Blocks<'a>,
    bytes: &'a [u8],
    row_bytes: usize,
    /// Bytes of a block.
    block_bytes: usize,
    n: usize,
    m: usize,
    planes: usize,
    /// Bytes of a row in a tile.
    tile: usize,
    /// `[tiles, M, bytes of a row / parts, planes, digits, parts, ENTRIES]`.
    tables: Buffer<u8>,
    /// What the integers stand for: `[tiles, M]`.
    units: Vec<f32>,
    /// Sums of the activations of each block, for means: `[M, blocks]`.
    sums: Vec<f32>,
}

/// Makes the tables for `x: [M, K]`; `None` if the weight has no such digits, or a block does not end
/// with a part, or an activation is not finite. With `exact`, f32 accuracy.
pub(crate) fn prepare<'a>(
    isa: Isa,
    view: &'a View<'a>,
    x: &[f32],
    m: usize,
    exact: bool,
    pool: &Pool,
) -> Option<Planes<'a>> {
    let (Codes::Groups(groups), Some(blocks)) = (&view.codes, &view.blocks) else { return None };
    let g = &blocks.geometry;
    let (digits, row_bytes) = (groups.digits?, g.row_bytes?);
    let whole = g.block_size >= g.k;
    let block_bytes = if whole { row_bytes } else { g.block_size / groups.length };
    // Two columns are looked up at a time.
    let ends = block_bytes % ROWS == 0 || (ROWS % block_bytes == 0 && block_bytes % 2 == 0);
    let cut = !whole && (g.block_size % groups.length != 0 || !ends);
    if cut || m > MOST || view.n < ROWS || g.k == 0 {
        return None;
    }
    let planes = if exact { 3 } else { 2 };
    let tile = (TILE / m).next_multiple_of(STEP).min(row_bytes.next_multiple_of(STEP));
    let size = tile * planes * 2 * ENTRIES;
    let fill = Fill { groups, digits };
    let (tables, units) = fill.tables(
        isa,
        pool,
        x,
        Cut { m, k: g.k, planes, weights: tile * groups.length, bytes: size },
    )?;
    let sums = block_sums(x, blocks);
    let (bytes, n) = (view.bytes, view.n);
    Some(Planes {
        digits,
        blocks,
        bytes,
        row_bytes,
        block_bytes,
        n,
        m,
        planes,
        tile,
        tables,
        units,
        sums,
    })
}

/// What the tables of a tile hold.
struct Fill<'a> {
    groups: &'a Groups,
    digits: Digits,
}

impl FillTile for Fill<'_> {
    #[inline(always)]
    fn fill<S: Simd, const P: usize>(&self, s: S, x: &[f32], tables: &mut [u8]) -> f32 {
        let length = self.groups.length;
        // The values of each place of a byte, by the value of its digit.
        let mut values = vec![[0.0f32; ENTRIES]; length];
        let split = self.digits.split(length);
        for (place, values) in values.iter_mut().enumerate() {
            for (entry, value) in values.iter_mut().enumerate() {
                let code = self.digits.code(place >= split, entry);
                *value = self.groups.value(code, place);
            }
        }
        let largest = values.as_flattened().iter().fold(0.0f32, |most, v| most.max(v.abs()));
        let digits = x.chunks(length).flat_map(|x| {
            let (low, high) = x.split_at(split.min(x.len()));
            [low, high]
        });
        let unit = Unit::new::<S, P>(s, x, digits, largest);
        if !unit.value.is_finite() {
            return unit.value;
        }
        // What has a sign must not be shifted; the other digit makes up for it.
        let shifts = match self.digits {
            Digits::Nibbles => [0, 0],
            Digits::Trits => [-HALF, HALF],
        };
        let (low, high) = values.split_at(split);
        let columns = tables.chunks_exact_mut(P * 2 * ENTRIES * S::PARTS);
        for (column, tables) in columns.enumerate() {
            for part in 0..S::PARTS {
                let at = byte_of::<S>(column, part) * length;
                let tables = &mut tables[part * ENTRIES..];
                digit::<S, P, 0>(low, four(x, at), &unit, shifts[0], tables);
                digit::<S, P, 1>(high, four(x, at + split), &unit, shifts[1], tables);
            }
        }
        unit.value
    }
}

/// The planes of digit `D` of a byte: entry for entry the products of `x` with `values`, rounded, in
/// numbers from 0 to 127 and a shift.
#[inline(always)]
fn digit<S: Simd, const P: usize, const D: usize>(
    values: &[[f32; ENTRIES]],
    x: [f32; 4],
    unit: &Unit,
    shift: i32,
    tables: &mut [u8],
) {
    let products = match values.len() {
        4 => products::<4>(values, x),
        3 => products::<3>(values, x),
        _ => products::<2>(values, x),
    };
    let integers = products.map(|product| unit.integer(product));
    for i in 0..P {
        let at = (2 * i + D) * S::PARTS * ENTRIES;
        for (out, integer) in tables[at..at + ENTRIES].iter_mut().zip(integers) {
            *out = (plane(integer, i) + shift) as u8;
        }
    }
}

/// Numbers `at..at + 4`; zero where there are none.
#[inline(always)]
fn four(x: &[f32], at: usize) -> [f32; 4] {
    if let Some(four) = x.get(at..at + 4) {
        return [four[0], four[1], four[2], four[3]];
    }
    let mut four = [0.0; 4];
    for (four, x) in four.iter_mut().zip(x.get(at..).unwrap_or_default()) {
        *four = *x;
    }
    four
}

/// Of the first `N` numbers of `x` with as many places' values.
#[inline(always)]
fn products<const N: usize>(values: &[[f32; ENTRIES]], x: [f32; 4]) -> [f32; ENTRIES] {
    let mut products = [0.0f32; ENTRIES];
    for (values, x) in values[..N].iter().zip(x) {
        for (product, value) in products.iter_mut().zip(values) {
            *product += value * x;
        }
    }
    products
}

/// Rows `first..` of `yᵀ = w xᵀ`: `y: [rows, M]`.
pub(crate) struct LookUp<'a> {
    pub p: &'a Planes<'a>,
    pub first: usize,
    pub y: &'a mut [f32],
}

impl Task for LookUp<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match (self.p.planes, self.p.digits) {
            (3, Digits::Nibbles) => self.with::<S, 3, false>(s),
            (3, Digits::Trits) => self.with::<S, 3, true>(s),
            (_, Digits::Nibbles) => self.with::<S, 2, false>(s),
            (_, Digits::Trits) => self.with::<S, 2, true>(s),
        }
    }
}

impl LookUp<'_> {
    #[inline(always)]
    fn with<S: Simd, const P: usize, const TRITS: bool>(self, s: S) {
        let LookUp { p, first, y } = self;
        let m = p.m;
        let rows = y.len() / m;
        let scales = p.blocks.scales_of::<S, ROWS>(s, first, rows);
        let blocks = p.blocks.of_row();
        let mut codes = Buffer::new(ROWS * p.tile, 0u8);
        y.fill(0.0);
        for (t, tables) in p.tables.chunks_exact(m * p.tile * P * 2 * ENTRIES).enumerate() {
            let from = t * p.tile;
            let len = (p.row_bytes - from).min(p.tile).next_multiple_of(ROWS * S::PARTS);
            // Columns of a part from one look at the sums to the next.
            let columns = if blocks == 1 { COLUMNS } else { p.block_bytes.min(ROWS) };
            let groups = y.chunks_mut(ROWS * m).zip(scales.chunks_exact(blocks));
            for (group, (y, scales)) in groups.enumerate() {
                p.transpose(s, first + group * ROWS, from, &mut codes[..ROWS * len]);
                let mut ahead = Ahead::new(p, first + (group + 1) * ROWS, from, len);
                for (i, tables) in tables.chunks_exact(p.tile * P * 2 * ENTRIES).enumerate() {
                    let unit = p.units[t * m + i];
                    let codes = codes[..ROWS * len].chunks(columns * ROWS * S::PARTS);
                    let tables = tables.chunks(columns * P * 2 * ENTRIES * S::PARTS);
                    for (run, (codes, tables)) in codes.zip(tables).enumerate() {
                        let sums = sum::<S, P, TRITS>(s, codes, tables, &mut ahead);
                        let mut words = [[[0u8; STEP]; 2]; P];
                        for (words, sums) in words.iter_mut().zip(sums) {
                            for (words, sums) in words.iter_mut().zip(sums) {
                                s.store_bytes(sums, words);
                            }
                        }
                        // Two digits a byte.
                        let digits = 2 * codes.len() / (ROWS * S::PARTS);
                        let values = integers(&words, digits);
                        let mut products = [0.0f32; ROWS];
                        for (part, values) in values[..S::PARTS].iter().enumerate() {
                            let byte = byte_of::<S>(run * columns, part) + from;
                            let block = if blocks == 1 { 0 } else { byte / p.block_bytes };
                            // Beyond the row there is nothing.
                            let Some(scales) = scales.get(block) else { break };
                            for r in 0..ROWS {
                                products[r] += values[r] as f32 * scales[r];
                            }
                        }
                        for (y, product) in y.chunks_exact_mut(m).zip(products) {
                            y[i] += product * unit;
                        }
                    }
                }
            }
        }
        add_means(s, p.blocks, first, &p.sums, m, y);
    }
}

impl Planes<'_> {
    /// The bytes of sixteen rows from a byte of a row on, transposed but for a last step: in each part
    /// bytes of even rows and of odd ones, of two columns.
    #[inline(always)]
    fn transpose<S: Simd>(&self, s: S, first: usize, from: usize, codes: &mut [u8]) {
        let (step, len) = (ROWS * S::PARTS, codes.len() / ROWS);
        let rows = (first..first + ROWS).map(|row| row.min(self.n - 1) * self.row_bytes + from);
        let mut ends = Vec::new();
        let rows: [&[u8]; ROWS] = runs(self.bytes, rows, len, &mut ends);
        let rows = rows.map(|row| &row[..len]);
        for (i, codes) in codes.chunks_exact_mut(ROWS * step).enumerate() {
            for half in 0..2 {
                let mut v = [s.zeros(); ROWS / 2];
                for (r, v) in v.iter_mut().enumerate() {
                    *v = s.load_bytes(&rows[2 * r + half][i * step..]);
                }
                let v = s.interleave_eight(s.interleave_eight(s.interleave_eight(v)));
                for (r, v) in v.into_iter().enumerate() {
                    s.store_bytes(v, &mut codes[(2 * r + half) * step..]);
                }
            }
        }
    }
}

/// Cache lines of the next rows' tile, asked for one by one while this tile's codes are looked up: all
/// at once they would wait for each other, and everything for them.
struct Ahead<'a> {
    bytes: &'a [u8],
    row_bytes: usize,
    from: usize,
    next: usize,
    lines: usize,
}

impl<'a> Ahead<'a> {
    fn new(p: &Planes<'a>, first: usize, from: usize, len: usize) -> Self {
        let from = first * p.row_bytes + from;
        let lines = if first < p.n { len.div_ceil(LINE) * ROWS } else { 0 };
        Ahead { bytes: p.bytes, row_bytes: p.row_bytes, from, next: 0, lines }
    }

    /// Asks for some more.
    #[inline(always)]
    fn ask<S: Simd>(&mut self, s: S, lines: usize) {
        for _ in 0..lines.min(self.lines - self.next) {
            let (row, line) = (self.next % ROWS, self.next / ROWS);
            s.prefetch(self.bytes, self.from + row * self.row_bytes + line * LINE);
            self.next += 1;
        }
    }
}

/// The byte of a row, within its tile, that a column of a part is.
#[inline(always)]
fn byte_of<S: Simd>(column: usize, part: usize) -> usize {
    (column / ROWS * S::PARTS + part) * ROWS + column % ROWS
}

/// Sums, in each plane, of what some columns of codes find in their tables; meanwhile asks ahead.
#[inline(always)]
fn sum<S: Simd, const P: usize, const TRITS: bool>(
    s: S,
    codes: &[u8],
    tables: &[u8],
    ahead: &mut Ahead<'_>,
) -> [[S::Bytes; 2]; P] {
    let step = ROWS * S::PARTS;
    let mut sums = [[s.zeros(); 2]; P];
    for (codes, tables) in codes.chunks_exact(2 * step).zip(tables.chunks_exact(4 * P * step)) {
        ahead.ask(s, 2 * step / LINE);
        let pair = s.interleave(s.load_bytes(codes), s.load_bytes(&codes[step..]));
        for (v, tables) in pair.into_iter().zip(tables.chunks_exact(2 * P * step)) {
            let [low, high] = if TRITS { s.trits_of(v) } else { s.nibbles_of(v) };
            let index = if TRITS { s.magnitudes(low) } else { low };
            for (sums, tables) in sums.iter_mut().zip(tables.chunks_exact(2 * step)) {
                let mut of_low = s.look_up(s.load_bytes(tables), index);
                if TRITS {
                    of_low = s.with_sign(of_low, low);
                }
                let of_high = s.look_up(s.load_bytes(&tables[step..]), high);
                *sums = s.add_up(*sums, s.add_bytes(of_low, of_high));
            }
        }
    }
    sums
}
