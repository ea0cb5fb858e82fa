//! Numbers of a type as bytes, and back.

use half::{bf16, f16};
use lowbit::DType;

/// The bytes of numbers, rounded to a type.
pub(crate) fn to_bytes(numbers: &[f32], dtype: DType) -> Vec<u8> {
    let halves = |bits: fn(f32) -> u16| -> Vec<u8> {
        numbers.iter().flat_map(|x| bits(*x).to_le_bytes()).collect()
    };
    match dtype {
        DType::F32 => bytemuck::cast_slice(numbers).to_vec(),
        DType::F16 => halves(|x| f16::from_f32(x).to_bits()),
        DType::BF16 => halves(|x| bf16::from_f32(x).to_bits()),
    }
}

/// The numbers that bytes stand for.
pub(crate) fn from_bytes(bytes: &[u8], dtype: DType) -> Vec<f32> {
    let halves = |value: fn(u16) -> f32| -> Vec<f32> {
        bytes.chunks_exact(2).map(|b| value(u16::from_le_bytes([b[0], b[1]]))).collect()
    };
    match dtype {
        DType::F32 => bytemuck::pod_collect_to_vec(bytes),
        DType::F16 => halves(|b| f16::from_bits(b).to_f32()),
        DType::BF16 => halves(|b| bf16::from_bits(b).to_f32()),
    }
}
