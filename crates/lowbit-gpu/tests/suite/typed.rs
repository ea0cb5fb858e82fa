//! Numbers of a type.

use half::{bf16, f16};
use lowbit::{DType, Element};

/// Numbers of a type, as bytes.
pub struct Typed {
    pub dtype: DType,
    pub bytes: Vec<u8>,
}

impl Typed {
    /// Rounded to that type.
    pub fn new(dtype: DType, numbers: &[f32]) -> Self {
        let bytes = match dtype {
            DType::F32 => bytemuck::cast_slice(numbers).to_vec(),
            DType::F16 => numbers.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
            DType::BF16 => numbers.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
        };
        Typed { dtype, bytes }
    }

    /// As f32.
    pub fn numbers(&self) -> Vec<f32> {
        fn wide<T: Element>(bytes: &[u8]) -> Vec<f32> {
            bytemuck::pod_collect_to_vec::<u8, T>(bytes).iter().map(|v| v.to_f32()).collect()
        }
        match self.dtype {
            DType::F32 => wide::<f32>(&self.bytes),
            DType::F16 => wide::<f16>(&self.bytes),
            DType::BF16 => wide::<bf16>(&self.bytes),
        }
    }
}
