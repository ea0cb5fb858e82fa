//! Scratch memory that begins on a cache line, so that no vector load crosses two.

use std::ops::{Deref, DerefMut};

const LINE: usize = 64;

/// Numbers from the start of a cache line on.
pub(crate) struct Buffer<T> {
    data: Vec<T>,
    start: usize,
    len: usize,
}

impl<T: Copy> Buffer<T> {
    /// `len` times `value`.
    pub fn new(len: usize, value: T) -> Self {
        let spare = LINE / size_of::<T>().clamp(1, LINE);
        let data = vec![value; len + spare];
        // Where an address cannot be aligned the buffer is slower, not wrong.
        let start = data.as_ptr().align_offset(LINE).min(spare);
        Buffer { data, start, len }
    }
}

impl<T> Deref for Buffer<T> {
    type Target = [T];
    #[inline(always)]
    fn deref(&self) -> &[T] {
        &self.data[self.start..self.start + self.len]
    }
}

impl<T> DerefMut for Buffer<T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.data[self.start..self.start + self.len]
    }
}

/// Distance of rows of `k` numbers of which `tile` are read at a time: an odd number of tiles. Rows
/// at a power of two would all fall on the same few lines of a cache and push each other out.
pub(crate) fn row_stride(k: usize, tile: usize) -> usize {
    if k <= tile { k } else { (k.div_ceil(tile) | 1) * tile }
}

/// Rows of `x: [M, K]`, padded with zeros to `stride`.
pub(crate) fn padded_rows(x: &[f32], m: usize, k: usize, stride: usize) -> Buffer<f32> {
    let mut out = Buffer::new(m * stride, 0.0);
    if k > 0 {
        for (out, x) in out.chunks_exact_mut(stride).zip(x.chunks_exact(k)) {
            out[..k].copy_from_slice(x);
        }
    }
    out
}
