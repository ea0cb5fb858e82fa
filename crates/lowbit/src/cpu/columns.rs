//! Results by columns: each thread owns some columns of all rows.

use super::convert::narrow;
use super::simd::Simd;
use crate::Element;

/// The most columns that a thread takes at once.
pub(crate) const MOST: usize = 128;

/// `y: [M, len]` by columns: the rows of the first `cols` columns, then those of the next.
pub(crate) fn cut<T>(y: &mut [T], len: usize, cols: usize) -> Vec<&mut [T]> {
    let mut rows: Vec<_> = y.chunks_exact_mut(len).map(|row| row.chunks_mut(cols)).collect();
    let parts = len.div_ceil(cols);
    let mut out = Vec::with_capacity(parts * rows.len());
    for _ in 0..parts {
        out.extend(rows.iter_mut().filter_map(Iterator::next));
    }
    out
}

/// Writes columns of `y` from sums whose rows lie `stride` apart, with the bias of these columns, if any.
#[inline(always)]
pub(crate) fn write<S: Simd, T: Element>(
    s: S,
    sums: &[f32],
    stride: usize,
    bias: Option<&[f32]>,
    y: &mut [&mut [T]],
) {
    let mut with_bias = [0.0; MOST];
    for (y, sums) in y.iter_mut().zip(sums.chunks_exact(stride)) {
        let Some(bias) = bias else {
            narrow(s, sums, y);
            continue;
        };
        for ((v, sum), b) in with_bias.iter_mut().zip(sums).zip(&bias[..y.len()]) {
            *v = sum + b;
        }
        narrow(s, &with_bias, y);
    }
}
