//! Codes that stand for groups of weights of a row: a byte of bits or trits, or a pattern.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::simd::bytes::{HALF_TABLE, LOW_MIDDLE, LOW_TRITS, LOW_VALUES, TABLE};
use crate::format::{Layout, Packing};
use crate::{Format, QTensor, pack};

/// Most codes of a table that is worth making for a product.
const MOST: usize = 512;

/// How a byte of codes of one weight each is two digits, each with at most sixteen magnitudes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Digits {
    /// Nibbles.
    Nibbles,
    /// Three trits and two. Values are symmetric, so of the three only the magnitude counts: of what is
    /// above [`LOW_MIDDLE`].
    Trits,
}

impl Digits {
    fn of(format: &Format, book: &[f32]) -> Option<Self> {
        match (format.packing, book) {
            _ if format.weights_per_code != 1 => None,
            (Packing::LowFirst, _) if format.code_bits < 4 && 8 % format.code_bits == 0 => {
                Some(Digits::Nibbles)
            }
            (Packing::Radix { base: 3, per_byte: 5 }, [low, middle, high]) => {
                (*middle == 0.0 && *low == -high).then_some(Digits::Trits)
            }
            _ => None,
        }
    }

    /// Weights of the lower digit, of `length` in a byte.
    pub fn split(self, length: usize) -> usize {
        match self {
            Digits::Nibbles => length / 2,
            Digits::Trits => LOW_TRITS,
        }
    }

    /// A byte whose lower digit, or upper one, is that of an entry of its table.
    pub fn code(self, upper: bool, entry: usize) -> usize {
        let (values, middle) = (usize::from(LOW_VALUES), usize::from(LOW_MIDDLE));
        match (self, upper) {
            (Digits::Nibbles, false) => entry,
            (Digits::Nibbles, true) => entry << 4,
            // Of the entries beyond the last only the upper tenth is looked up, for bytes that hold no
            // five trits: as if there were a sixth.
            (Digits::Trits, false) => middle + entry.min(middle),
            (Digits::Trits, true) => values * (entry % 9) + middle,
        }
    }
}

/// Codes of a byte whose weights, in two halves, are each one of a few patterns: what all of them contribute to
/// a sum is then soon worked out.
#[derive(Debug)]
pub(crate) struct Halves {
    /// Weights of the first half.
    pub split: usize,
    /// The value of each pattern in each place: `[length, patterns]`.
    pub values: Vec<[f32; HALF_TABLE]>,
    /// Which pattern each half of a code is.
    pub index: [[u16; TABLE]; 2],
}

impl Halves {
    /// Of `values: [TABLE, length]`, if there are few enough.
    fn of(values: &[f32], length: usize) -> Option<Self> {
        let split = length / 2;
        let mut halves =
            Halves { split, values: vec![[0.0; HALF_TABLE]; length], index: [[0; TABLE]; 2] };
        for (half, places) in [0..split, split..length].into_iter().enumerate() {
            let mut patterns: Vec<&[f32]> = Vec::with_capacity(HALF_TABLE);
            for (code, values) in values.chunks_exact(length).enumerate() {
                let pattern = &values[places.clone()];
                let known = patterns.iter().position(|other| *other == pattern);
                let number = known.unwrap_or(patterns.len());
                if number == HALF_TABLE {
                    return None;
                }
                if known.is_none() {
                    patterns.push(pattern);
                    for (place, value) in places.clone().zip(pattern) {
                        halves.values[place][number] = *value;
                    }
                }
                halves.index[half][code] = number as u16;
            }
        }
        Some(halves)
    }
}

/// Weights that are each `first + step * digit`, and where a byte has the digits.
#[derive(Debug)]
pub(crate) struct Fields {
    pub first: f32,
    pub step: f32,
    /// Bits of a digit.
    pub bits: usize,
    /// What have the digits of each code, the first in the lowest bits.
    pub tables: Vec<Table>,
}

/// A table that begins on a cache line.
#[derive(Debug, Clone)]
#[repr(align(64))]
pub(crate) struct Table(pub [u8; TABLE]);

impl Fields {
    /// Of `values: [TABLE, length]`, if there are few and at even distances.
    fn of(values: &[f32], length: usize) -> Option<Self> {
        let mut all = values.to_vec();
        all.sort_by(f32::total_cmp);
        all.dedup();
        let [first, second, ..] = all[..] else { return None };
        let step = second - first;
        let digits = all.iter().enumerate();
        let even = digits.clone().all(|(digit, value)| *value == first + step * digit as f32);
        if all.len() > 4 || !even {
            return None;
        }
        let bits = if all.len() == 2 { 1 } else { 2 };
        let per_table = 8 / bits;
        let mut tables = vec![Table([0; TABLE]); length.div_ceil(per_table)];
        for (code, values) in values.chunks_exact(length).enumerate() {
            for (place, value) in values.iter().enumerate() {
                let digit = all.partition_point(|other| other < value);
                tables[place / per_table].0[code] |= (digit << (place % per_table * bits)) as u8;
            }
        }
        Some(Fields { first, step, bits, tables })
    }
}

/// What each code of a row stands for: always as many weights.
#[derive(Debug, Clone)]
pub(crate) struct Groups {
    /// Weights of a code.
    pub length: usize,
    /// Bits of a code, which lie as a little-endian stream.
    bits: usize,
    /// How a byte is looked up in halves, if it can be.
    pub digits: Option<Digits>,
    /// `[codes, length]`.
    values: Arc<[f32]>,
    /// `[length, codes]`, with as many codes as a power of two.
    pub columns: Arc<[f32]>,
    /// The weights as digits, if codes are bytes and these are few.
    pub fields: Option<Arc<Fields>>,
    /// The same by halves, if codes are bytes and fit them.
    pub halves: Option<Arc<Halves>>,
}

/// Tables of formats, by the address of the format, which lives as long as the program.
static OF_FORMATS: Mutex<BTreeMap<usize, Groups>> = Mutex::new(BTreeMap::new());

/// The tables of a tensor with a codebook of its own, and that.
type OfBook = (Weak<[f32]>, Groups);

/// Those of tensors, by the addresses of format and codebook. No other codebook gets an address while something
/// points to it, if weakly.
static OF_BOOKS: Mutex<BTreeMap<[usize; 2], OfBook>> = Mutex::new(BTreeMap::new());

impl Groups {
    /// The groups of a tensor whose codes lie in rows, if there are few enough of them.
    pub fn of(q: &QTensor) -> Option<Self> {
        let format = q.format();
        let key = std::ptr::from_ref(format).addr();
        let Some(book) = q.own_codebook() else {
            let mut known = OF_FORMATS.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(groups) = known.get(&key) {
                return Some(groups.clone());
            }
            let groups = Self::new(format, q.codebook())?;
            known.insert(key, groups.clone());
            return Some(groups);
        };
        let key = [key, book.as_ptr().addr()];
        let mut known = OF_BOOKS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, groups)) = known.get(&key) {
            return Some(groups.clone());
        }
        let groups = Self::new(format, book)?;
        known.retain(|_, (book, _)| book.strong_count() > 0);
        known.insert(key, (Arc::downgrade(book), groups.clone()));
        Some(groups)
    }

    fn new(format: &Format, book: &[f32]) -> Option<Self> {
        let Layout::Rows { pad, .. } = format.layout else { return None };
        let width = format.code_bits as usize;
        let (length, bits) = match format.packing {
            Packing::LowFirst if format.weights_per_code > 1 => (format.weights_per_code, width),
            Packing::LowFirst if width < 4 && 8 % width == 0 => (8 / width, 8),
            Packing::Radix { per_byte, .. } if format.weights_per_code == 1 => (per_byte.into(), 8),
            _ => return None,
        };
        if 1 << bits > MOST || pad % length != 0 {
            return None;
        }
        let codes = 1usize << bits;
        let mut values = vec![0.0; codes * length];
        if format.weights_per_code == 1 {
            for (i, value) in values.iter_mut().enumerate() {
                let byte = [(i / length) as u8];
                let digit = pack::get(format.packing, format.code_bits, &byte, i % length);
                *value = book.get(digit).copied().unwrap_or(0.0);
            }
        } else {
            for (value, of_book) in values.iter_mut().zip(book) {
                *value = *of_book;
            }
        }
        let mut columns = vec![0.0; codes * length];
        for (i, column) in columns.chunks_exact_mut(codes).enumerate() {
            for (out, value) in column.iter_mut().zip(values[i..].iter().step_by(length)) {
                *out = *value;
            }
        }
        let digits = Digits::of(format, book);
        let halves = if codes == TABLE { Halves::of(&values, length).map(Arc::new) } else { None };
        let fields = if codes == TABLE { Fields::of(&values, length).map(Arc::new) } else { None };
        Some(Groups {
            length,
            bits,
            digits,
            values: values.into(),
            columns: columns.into(),
            fields,
            halves,
        })
    }

    /// Weight `i` of a code.
    pub fn value(&self, code: usize, i: usize) -> f32 {
        self.values[code * self.length + i]
    }

    /// The largest magnitude of all weights of codes.
    pub fn largest(&self) -> f32 {
        self.values.iter().fold(0.0, |most, v| most.max(v.abs()))
    }

    /// Number of codes.
    pub fn codes(&self) -> usize {
        1 << self.bits
    }

    /// Code `i` of a row.
    #[inline(always)]
    pub fn code(&self, row: &[u8], i: usize) -> usize {
        if self.bits == 8 {
            return row[i].into();
        }
        pack::get(Packing::LowFirst, self.bits as u32, row, i)
    }

    /// Whether a code is a byte.
    pub fn are_bytes(&self) -> bool {
        self.bits == 8
    }

    /// Weights from column `col` of a row, without scales.
    #[inline(always)]
    pub fn decode(&self, row: &[u8], col: usize, out: &mut [f32]) {
        match self.length {
            5 => self.decode_by::<5>(row, col, out),
            8 => self.decode_by::<8>(row, col, out),
            10 => self.decode_by::<10>(row, col, out),
            16 => self.decode_by::<16>(row, col, out),
            _ => self.decode_one_by_one(row, col, out),
        }
    }

    #[inline(always)]
    fn decode_by<const N: usize>(&self, row: &[u8], col: usize, out: &mut [f32]) {
        // A run may begin and end within a group.
        let head = (col.next_multiple_of(N) - col).min(out.len());
        self.decode_one_by_one(row, col, &mut out[..head]);
        let first = (col + head) / N;
        let (groups, tail) = out[head..].as_chunks_mut::<N>();
        let (values, _) = self.values.as_chunks::<N>();
        for (i, out) in groups.iter_mut().enumerate() {
            *out = values[self.code(row, first + i)];
        }
        let at = (first + groups.len()) * N;
        self.decode_one_by_one(row, at, tail);
    }

    #[inline(always)]
    fn decode_one_by_one(&self, row: &[u8], col: usize, out: &mut [f32]) {
        for (i, out) in out.iter_mut().enumerate() {
            let (group, within) = ((col + i) / self.length, (col + i) % self.length);
            *out = self.values[self.code(row, group) * self.length + within];
        }
    }
}
