//! All weights of a tensor, on all threads.

use super::convert::narrow;
use super::dispatch::Isa;
use super::linear::Pool;
use super::scales;
use super::simd::{Simd, Task};
use super::view::{View, has_rows};
use crate::{DType, Element, QTensor, threads};

/// Weights of a piece of work; also what a thread keeps in its first-level cache.
const PIECE: usize = 1 << 16;
const PART: usize = 1024;

/// Writes all weights to `out`, which has their number.
pub(crate) fn dequantize<T: Element>(isa: Isa, q: &QTensor, out: &mut [T]) {
    let mut view = View::quantized(q);
    if !has_rows(q) {
        // A flat tensor is one long row.
        (view.n, view.k) = (1, q.numel());
        if let Some(blocks) = &mut view.blocks {
            (blocks.geometry.n, blocks.geometry.k) = (1, q.numel());
        }
    }
    if view.k == 0 {
        return;
    }
    // Pieces begin at even weights, so that none begins in the middle of a byte.
    let piece = if has_rows(q) { PIECE.div_ceil(view.k) * view.k } else { PIECE };
    let pool = Pool::for_work(out.len());
    scales::restored(isa, &view, &pool, |view| {
        let task = |i: usize, out: &mut [T]| isa.run(Piece { view, first: i * piece, out });
        if out.len() <= PIECE {
            out.chunks_mut(piece).enumerate().for_each(|(i, out)| task(i, out));
        } else {
            threads::for_each(out.chunks_mut(piece).enumerate(), |(i, out)| task(i, out));
        }
    });
}

struct Piece<'a, T> {
    view: &'a View<'a>,
    first: usize,
    out: &'a mut [T],
}

impl<T: Element> Task for Piece<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Piece { view, first, out } = self;
        let mut at = first;
        let mut rest = out;
        let mut buffer = [0.0f32; PART];
        while !rest.is_empty() {
            let (row, col) = (at / view.k, at % view.k);
            let len = PART.min(view.k - col).min(rest.len());
            let (part, after) = rest.split_at_mut(len);
            if T::DTYPE == DType::F32 {
                view.decode(s, row, col, bytemuck::cast_slice_mut(part));
            } else {
                view.decode(s, row, col, &mut buffer[..len]);
                narrow(s, &buffer[..len], part);
            }
            at += len;
            rest = after;
        }
    }
}
