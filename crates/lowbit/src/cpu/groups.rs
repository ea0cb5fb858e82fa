//! Codes that stand for groups of weights of a row: a byte of bits or trits, or a pattern.

use std::sync::{Arc, Mutex, PoisonError};

use super::simd::bytes::{LOW_MIDDLE, LOW_TRITS, LOW_VALUES};
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
}

/// Tables of formats, by the address of the format, which lives as long as the program.
static OF_FORMATS: Mutex<Vec<(usize, Groups)>> = Mutex::new(Vec::new());

impl Groups {
    /// The groups of a tensor whose codes lie in rows, if there are few enough of them.
    pub fn of(q: &QTensor) -> Option<Self> {
        let format = q.format();
        let own = q.has_own_codebook();
        let key = std::ptr::from_ref(format).addr();
        if !own {
            let known = OF_FORMATS.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((_, groups)) = known.iter().find(|(k, _)| *k == key) {
                return Some(groups.clone());
            }
        }
        let groups = Self::new(format, q.codebook())?;
        if !own {
            let mut known = OF_FORMATS.lock().unwrap_or_else(PoisonError::into_inner);
            if known.iter().all(|(k, _)| *k != key) {
                known.push((key, groups.clone()));
            }
        }
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
            // Tables of the tensor, so this is done for every product.
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
        Some(Groups { length, bits, digits, values: values.into(), columns: columns.into() })
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
