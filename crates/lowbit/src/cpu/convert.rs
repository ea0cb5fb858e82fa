//! Numbers of any type to f32 and back, in vectors.

use half::{bf16, f16};

use super::simd::Simd;
use crate::{DType, Element};

/// Writes numbers in f32. `to` is as long or longer.
#[inline(always)]
pub(crate) fn widen<S: Simd, T: Element>(s: S, from: &[T], to: &mut [f32]) {
    if T::DTYPE == DType::F32 {
        return to[..from.len()].copy_from_slice(bytemuck::cast_slice(from));
    }
    let step = 4 * S::LANES;
    let whole = from.len() / step * step;
    for (from, to) in from[..whole].chunks_exact(step).zip(to.chunks_exact_mut(step)) {
        let bytes = bytemuck::cast_slice(from);
        let four = match T::DTYPE {
            DType::BF16 => s.decode_bf16(bytes),
            _ => s.decode_f16(bytes),
        };
        for (v, to) in four.into_iter().zip(to.chunks_exact_mut(S::LANES)) {
            s.store(v, to);
        }
    }
    for (from, to) in from[whole..].iter().zip(&mut to[whole..]) {
        *to = from.to_f32();
    }
}

/// Rounds numbers to a type. `from` is as long or longer.
#[inline(always)]
pub(crate) fn narrow<S: Simd, T: Element>(s: S, from: &[f32], to: &mut [T]) {
    let from = &from[..to.len()];
    if T::DTYPE == DType::F32 {
        return bytemuck::cast_slice_mut(to).copy_from_slice(from);
    }
    let step = 4 * S::LANES;
    let whole = from.len() / step * step;
    for (from, to) in from[..whole].chunks_exact(step).zip(to[..whole].chunks_exact_mut(step)) {
        let v = std::array::from_fn(|i| s.load(&from[i * S::LANES..]));
        match T::DTYPE {
            DType::BF16 => s.encode_bf16(v, bytemuck::cast_slice_mut::<T, bf16>(to)),
            _ => s.encode_f16(v, bytemuck::cast_slice_mut::<T, f16>(to)),
        }
    }
    for (from, to) in from[whole..].iter().zip(&mut to[whole..]) {
        *to = T::from_f32(*from);
    }
}
