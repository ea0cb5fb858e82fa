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

/// Rows of `x: [M, K]`, padded with zeros to a multiple of `step`.
pub(crate) fn padded_rows(x: &[f32], m: usize, k: usize, step: usize) -> Buffer<f32> {
    let padded = k.next_multiple_of(step);
    let mut out = Buffer::new(m * padded, 0.0);
    if k > 0 {
        for (out, x) in out.chunks_exact_mut(padded).zip(x.chunks_exact(k)) {
            out[..k].copy_from_slice(x);
        }
    }
    out
}
