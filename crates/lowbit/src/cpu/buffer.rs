//! Memory for what kernels work with, which begins on a cache line, so that no vector load crosses two.

use std::any::Any;
use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

const LINE: usize = 64;
/// Buffers that a thread keeps, and bytes of the largest: more belongs to products beside which
/// clearing memory takes no time.
const KEPT: usize = 8;
const MOST_KEPT: usize = 1 << 20;

thread_local! {
    static SPARE: RefCell<Vec<Box<dyn Any>>> = const { RefCell::new(Vec::new()) };
}

/// Numbers from the start of a cache line on.
pub(crate) struct Buffer<T: 'static> {
    data: Vec<T>,
    start: usize,
    len: usize,
    is_scratch: bool,
}

impl<T: Copy> Buffer<T> {
    /// `len` times `value`.
    pub fn new(len: usize, value: T) -> Self {
        Self::within(vec![value; len + spare::<T>()], len, false)
    }

    /// `len` numbers that say nothing, for what is written before it is read: those that a buffer of this thread
    /// left, if there are so many, else `value`.
    pub fn scratch(len: usize, value: T) -> Self {
        let with_spare = len + spare::<T>();
        let kept = SPARE.with_borrow_mut(|all| {
            let fits =
                |v: &Box<dyn Any>| v.downcast_ref().is_some_and(|v: &Vec<T>| v.len() >= with_spare);
            let place = all.iter().rposition(fits)?;
            all.remove(place).downcast().ok()
        });
        let data = kept.map_or_else(|| vec![value; with_spare], |kept: Box<Vec<T>>| *kept);
        Self::within(data, len, true)
    }

    fn within(data: Vec<T>, len: usize, is_scratch: bool) -> Self {
        // Where an address cannot be aligned the buffer is slower, not wrong.
        let start = data.as_ptr().align_offset(LINE).min(spare::<T>());
        Buffer { data, start, len, is_scratch }
    }
}

/// Numbers more than are needed, so that a line begins among them.
fn spare<T>() -> usize {
    LINE / size_of::<T>().clamp(1, LINE)
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        if !self.is_scratch || self.data.len() * size_of::<T>() > MOST_KEPT {
            return;
        }
        let data = std::mem::take(&mut self.data);
        // A thread that ends has nowhere to keep it.
        let _ = SPARE.try_with(|all| {
            if let Ok(mut all) = all.try_borrow_mut() {
                if all.len() == KEPT {
                    all.remove(0);
                }
                all.push(Box::new(data));
            }
        });
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
