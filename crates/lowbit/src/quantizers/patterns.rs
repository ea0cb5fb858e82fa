//! A codebook of sign patterns for a tensor, and the nearest pattern of each vector.
//!
//! A vector `w` of `v` neighbouring weights is stored as `d c`: a pattern `c` of signs and the scale
//! `d` of its block. With an importance `h` for each column, the error is
//! `sum h (w - d c)^2 = const - 2 sum (h d w) c`, as `c^2 = 1`. So all that counts of a vector is
//! `a = h d w`: its pattern is the `c` with the largest `a c`, whatever `d`; the best pattern for
//! several vectors is the sign of the sum of their `a`; the best `d` is `sum h w c / sum h`.

use std::sync::Arc;

use bytes::Bytes;
use rayon::prelude::*;

use super::Search;
use crate::conformance::Rng;
use crate::cpu::Isa;
use crate::cpu::simd::{Simd, Task};
use crate::format::{Values, absmean, f16_scale};
use crate::tensor::Geometry;
use crate::{Error, Format, Parts, QTensor, Result, Scales, pack};

/// Vectors that are compared with the codebook side by side.
pub(super) const LANES: usize = 16;
/// Vectors that a thread takes at once.
const PIECE: usize = 1 << 12;

/// Quantizes `w: [N, K]` to a format whose codes are patterns. `importance: [K]` are factors of the
/// squared error in each column, none negative; `None` for ones.
///
/// # Errors
/// [`Error::Argument`] for a shape or block size that the format cannot have, an importance of
/// another length, or fewer vectors than the codebook has patterns; [`Error::NotFinite`].
pub fn quantize(
    isa: Isa,
    format: &'static Format,
    w: &[f32],
    shape: &[usize],
    block_size: Option<usize>,
    importance: Option<&[f32]>,
    search: &Search,
) -> Result<QTensor> {
    let coder = Coder::new(format, shape, block_size)?;
    coder.check(w, importance)?;
    let scales = coder.absmeans(w);
    let book = coder.codebook(isa, w, &scales, importance, search);
    let (codes, scales) = coder.code(isa, w, scales, importance, &book);
    QTensor::from_parts(Parts {
        format,
        shape: shape.to_vec(),
        block_size: Some(coder.g.block_size),
        codes: Bytes::from(codes),
        scales: Scales::F16(scales.into_iter().map(f16_scale).collect()),
        means: None,
        codebook: Some(signs(&book, coder.length)),
    })
}

/// The values of a codebook, -1 and 1.
pub(super) fn signs(book: &Book, length: usize) -> Arc<[f32]> {
    let sign = |pattern: u16, i: usize| if pattern >> i & 1 == 1 { 1.0 } else { -1.0 };
    book.iter().flat_map(|p| (0..length).map(move |i| sign(*p, i))).collect()
}

/// A codebook of patterns: bit `i` of an entry says that weight `i` is positive.
pub(super) type Book = Vec<u16>;

/// What follows from a format and a shape.
pub(super) struct Coder {
    format: &'static Format,
    pub g: Geometry,
    /// Weights in a pattern.
    pub length: usize,
    entries: usize,
    /// Vectors in a row, the last of them filled up.
    pub per_row: usize,
}

impl Coder {
    pub fn new(
        format: &'static Format,
        shape: &[usize],
        block_size: Option<usize>,
    ) -> Result<Self> {
        let Values::Patterns { entries } = format.values else {
            return Err(Error::argument(
                "quantize",
                "a format whose codes are patterns",
                format.name,
                "quantize it by its encoder",
            ));
        };
        let g = Geometry::new(format, shape, block_size)?;
        let (length, per_row) = (format.weights_per_code, g.k.div_ceil(format.weights_per_code));
        Ok(Coder { format, g, length, entries, per_row })
    }

    pub fn check(&self, w: &[f32], importance: Option<&[f32]>) -> Result<()> {
        const OP: &str = "quantize";
        let g = &self.g;
        crate::cpu::check_len(OP, "weights", g.n * g.k, w.len())?;
        if let Some(h) = importance {
            crate::cpu::check_len(OP, "numbers of importance, one a column", g.k, h.len())?;
            if let Some(index) = h.iter().position(|h| !h.is_finite() || *h < 0.0) {
                return Err(Error::NotFinite { op: "importance", index, value: h[index] });
            }
        }
        if let Some(index) = w.iter().position(|v| !v.is_finite()) {
            return Err(Error::NotFinite { op: OP, index, value: w[index] });
        }
        let vectors = g.n * self.per_row;
        if vectors < self.entries && !w.is_empty() {
            let length = self.length;
            return Err(Error::argument(
                OP,
                format!("{} vectors of {length} weights or more, as many as codes", self.entries),
                format!("{vectors} in [{}, {}]", g.n, g.k),
                "leave so small a tensor out, or choose a smaller codebook",
            ));
        }
        Ok(())
    }

    /// A first scale for each block.
    pub fn absmeans(&self, w: &[f32]) -> Vec<f32> {
        let blocks = |row: &[f32]| row.chunks(self.g.block_size).map(absmean).collect::<Vec<_>>();
        w.par_chunks(self.g.k.max(1)).flat_map_iter(blocks).collect()
    }

    /// `a` of all vectors of whole rows.
    fn vectors(&self, w: &[f32], scales: &[f32], importance: Option<&[f32]>) -> Vectors {
        let g = &self.g;
        let rows = w.len() / g.k;
        let mut vectors = Vectors::new(rows * self.per_row, self.length);
        for (row, w) in w.chunks_exact(g.k).enumerate() {
            let scales = &scales[row * g.k.div_ceil(g.block_size)..];
            for (col, w) in w.iter().enumerate() {
                let h = importance.map_or(1.0, |h| h[col]);
                let at = row * self.per_row + col / self.length;
                vectors.put(at, col % self.length, h * scales[col / g.block_size] * w);
            }
        }
        vectors
    }

    /// The codebook for a sample of all vectors.
    pub fn codebook(
        &self,
        isa: Isa,
        w: &[f32],
        scales: &[f32],
        importance: Option<&[f32]>,
        search: &Search,
    ) -> Book {
        let g = &self.g;
        let (total, blocks) = (g.n * self.per_row, g.k.div_ceil(g.block_size.max(1)));
        if total == 0 {
            return vec![0; self.entries];
        }
        let mut rng = Rng(search.seed);
        let size = total.min(search.sample.max(self.entries));
        let mut sample = Vectors::new(size, self.length);
        for i in 0..size {
            // One of each stretch of equal length.
            let (from, to) = (i * total / size, (i + 1) * total / size);
            let at = from + rng.below(to - from);
            let (row, first) = (at / self.per_row, at % self.per_row * self.length);
            for (j, col) in (first..g.k.min(first + self.length)).enumerate() {
                let h = importance.map_or(1.0, |h| h[col]);
                let scale = scales[row * blocks + col / g.block_size];
                sample.put(i, j, h * scale * w[row * g.k + col]);
            }
        }
        sample.codebook(isa, self.entries, search.rounds, &mut rng)
    }

    /// The scales of a row's blocks that fit best to its codes.
    fn refit(
        &self,
        w: &[f32],
        found: &[(u16, f32)],
        book: &Book,
        importance: Option<&[f32]>,
        scales: &mut [f32],
    ) {
        let size = self.g.block_size;
        for (block, (w, scale)) in w.chunks(size).zip(scales).enumerate() {
            let (mut along, mut total) = (0.0f64, 0.0f64);
            for (i, w) in w.iter().enumerate() {
                let col = block * size + i;
                let h = f64::from(importance.map_or(1.0, |h| h[col]));
                let pattern = book[usize::from(found[col / self.length].0)];
                let sign = if pattern >> (col % self.length) & 1 == 1 { 1.0 } else { -1.0 };
                along += h * sign * f64::from(*w);
                total += h;
            }
            if total > 0.0 {
                *scale = (along / total).max(0.0) as f32;
            }
        }
    }

    /// Packed codes of all weights, and the scales that fit best to them.
    pub fn code(
        &self,
        isa: Isa,
        w: &[f32],
        mut scales: Vec<f32>,
        importance: Option<&[f32]>,
        book: &Book,
    ) -> (Vec<u8>, Vec<f32>) {
        let (g, format) = (&self.g, self.format);
        let mut codes = vec![0u8; g.code_bytes];
        if w.is_empty() {
            return (codes, scales);
        }
        let (row_bytes, blocks) = (g.row_bytes.unwrap_or(1), g.k.div_ceil(g.block_size));
        let rows = PIECE.div_ceil(self.per_row);
        let pieces = w
            .par_chunks(rows * g.k)
            .zip(codes.par_chunks_mut(rows * row_bytes))
            .zip(scales.par_chunks_mut(rows * blocks));
        pieces.for_each(|((w, codes), scales)| {
            let vectors = self.vectors(w, scales, importance);
            let found = vectors.assign(isa, book);
            let rows = found.chunks_exact(self.per_row).zip(w.chunks_exact(g.k));
            let places = codes.chunks_exact_mut(row_bytes).zip(scales.chunks_exact_mut(blocks));
            for ((found, w), (codes, scales)) in rows.zip(places) {
                for (i, (code, _)) in found.iter().enumerate() {
                    let code = usize::from(*code);
                    pack::set(format.packing, format.code_bits, codes, i, code);
                }
                self.refit(w, found, book, importance, scales);
            }
        });
        (codes, scales)
    }
}

/// Vectors, [`LANES`] of them side by side.
pub(super) struct Vectors {
    /// `[ceil(len / LANES), length, LANES]`; what is missing is zero.
    numbers: Vec<[f32; LANES]>,
    len: usize,
    length: usize,
}

impl Vectors {
    pub fn new(len: usize, length: usize) -> Self {
        let numbers = vec![[0.0; LANES]; len.div_ceil(LANES) * length];
        Vectors { numbers, len, length }
    }

    #[inline(always)]
    pub fn put(&mut self, vector: usize, i: usize, a: f32) {
        self.numbers[vector / LANES * self.length + i][vector % LANES] = a;
    }

    #[inline(always)]
    fn get(&self, vector: usize, i: usize) -> f32 {
        self.numbers[vector / LANES * self.length + i][vector % LANES]
    }

    /// The signs of a vector.
    fn pattern(&self, vector: usize) -> u16 {
        (0..self.length).map(|i| u16::from(self.get(vector, i) >= 0.0) << i).sum()
    }

    /// k-means++ with a pattern's best vectors' signs, then rounds of assigning and updating. Patterns
    /// that no vector takes, or that come twice, begin anew where the loss is.
    fn codebook(&self, isa: Isa, entries: usize, rounds: usize, rng: &mut Rng) -> Book {
        let mut book = vec![self.pattern(rng.below(self.len))];
        let mut losses = self.losses(isa, &book);
        while book.len() < entries {
            // Several at a time: the losses need not be exact to be drawn from.
            let more = (book.len() / 4 + 1).min(entries - book.len());
            let drawn: Vec<u16> = draw(&losses, more, rng).map(|i| self.pattern(i)).collect();
            for (loss, new) in losses.iter_mut().zip(self.losses(isa, &drawn)) {
                *loss = loss.min(new);
            }
            book.extend(drawn);
        }
        let mut best = (f64::INFINITY, book.clone());
        for round in 0..=rounds {
            let found = self.assign(isa, &book);
            let losses: Vec<f32> =
                found.iter().enumerate().map(|(i, (_, a))| self.size(i) - a).collect();
            let loss: f64 = losses.iter().map(|l| f64::from(*l)).sum();
            if loss < best.0 {
                best = (loss, book.clone());
            }
            if round < rounds {
                self.update(&found, &losses, &mut book, rng);
            }
        }
        best.1
    }

    /// Patterns that fit best to the vectors that took them.
    fn update(&self, found: &[(u16, f32)], losses: &[f32], book: &mut Book, rng: &mut Rng) {
        let mut sums = vec![0.0f64; book.len() * self.length];
        let mut taken = vec![false; book.len()];
        for (vector, (code, _)) in found.iter().enumerate() {
            let code = usize::from(*code);
            taken[code] = true;
            for (i, sum) in sums[code * self.length..][..self.length].iter_mut().enumerate() {
                *sum += f64::from(self.get(vector, i));
            }
        }
        let mut seen = std::collections::HashSet::new();
        let mut idle = Vec::new();
        for (code, (pattern, sums)) in book.iter_mut().zip(sums.chunks(self.length)).enumerate() {
            *pattern = sums.iter().enumerate().map(|(i, s)| u16::from(*s >= 0.0) << i).sum();
            if !taken[code] || !seen.insert(*pattern) {
                idle.push(code);
            }
        }
        let fresh: Vec<usize> = draw(losses, idle.len(), rng).collect();
        for (code, vector) in idle.into_iter().zip(fresh) {
            book[code] = self.pattern(vector);
        }
    }

    /// The best pattern of each vector by `a c` alone, and that.
    fn assign(&self, isa: Isa, book: &[u16]) -> Vec<(u16, f32)> {
        let (length, costs) = (self.length, Costs::default());
        isa.run(Assign { book, length, vectors: self, costs })
    }

    /// What each vector loses with the best of these patterns against its own signs.
    fn losses(&self, isa: Isa, book: &[u16]) -> Vec<f32> {
        let found = self.assign(isa, book);
        found.iter().enumerate().map(|(i, (_, along))| self.size(i) - along).collect()
    }

    fn size(&self, vector: usize) -> f32 {
        (0..self.length).map(|i| self.get(vector, i).abs()).sum()
    }
}

/// `count` indices, drawn in proportion to their losses; the first ones where nothing is lost.
fn draw<'a>(
    losses: &[f32],
    count: usize,
    rng: &'a mut Rng,
) -> impl Iterator<Item = usize> + use<'a> {
    let mut sum = 0.0f64;
    let ends: Vec<f64> = losses
        .iter()
        .map(|loss| {
            sum += f64::from(loss.max(0.0));
            sum
        })
        .collect();
    (0..count).map(move |_| {
        let at = (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64 * sum;
        ends.partition_point(|end| *end <= at).min(ends.len() - 1)
    })
}

/// The best pattern of each vector, and `a c` less its cost; of equal ones the first.
pub(super) struct Assign<'a> {
    pub book: &'a [u16],
    pub length: usize,
    pub vectors: &'a Vectors,
    pub costs: Costs<'a>,
}

/// What patterns cost by themselves: a number of the vector times one of the code, 0 for those that
/// are left out.
#[derive(Clone, Copy, Default)]
pub(super) struct Costs<'a> {
    pub vectors: &'a [f32],
    pub codes: &'a [f32],
}

impl Task for Assign<'_> {
    type Output = Vec<(u16, f32)>;
    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> Vec<(u16, f32)> {
        let Assign { book, length, vectors, costs } = self;
        let mut found = Vec::with_capacity(vectors.len.next_multiple_of(LANES));
        // `a c` is looked up as the sum of two halves.
        let low = length / 2;
        let mut halves = [vec![[0.0f32; LANES]; 1 << low], vec![[0.0; LANES]; 1 << (length - low)]];
        for (at, a) in vectors.numbers.chunks_exact(length).enumerate() {
            for (half, a) in halves.iter_mut().zip([&a[..low], &a[low..]]) {
                all_sums(a, half);
            }
            let factors: [f32; LANES] =
                std::array::from_fn(|i| costs.vectors.get(at * LANES + i).copied().unwrap_or(0.0));
            let mut best = [f32::NEG_INFINITY; LANES];
            let mut codes = [0u32; LANES];
            for (code, pattern) in book.iter().enumerate() {
                let pattern = usize::from(*pattern);
                let cost = costs.codes.get(code).copied().unwrap_or(0.0);
                let (x, y) = (&halves[0][pattern & ((1 << low) - 1)], &halves[1][pattern >> low]);
                for i in 0..LANES {
                    let along = x[i] + y[i] - factors[i] * cost;
                    codes[i] = if along > best[i] { code as u32 } else { codes[i] };
                    best[i] = if along > best[i] { along } else { best[i] };
                }
            }
            found.extend(codes.iter().zip(best).map(|(code, along)| (*code as u16, along)));
        }
        found.truncate(vectors.len);
        found
    }
}

/// `sums[p]`: the sum of `a` with the signs of pattern `p`.
#[inline(always)]
fn all_sums(a: &[[f32; LANES]], sums: &mut [[f32; LANES]]) {
    sums[0] = [0.0; LANES];
    for a in a {
        for (sum, a) in sums[0].iter_mut().zip(a) {
            *sum -= a;
        }
    }
    for (bit, a) in a.iter().enumerate() {
        let (without, with) = sums.split_at_mut(1 << bit);
        for (without, with) in without.iter().zip(with) {
            for i in 0..LANES {
                with[i] = without[i] + 2.0 * a[i];
            }
        }
    }
}
