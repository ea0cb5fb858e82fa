//! What the 256 codes of a byte stand for, as kernels look it up.

/// A table of f32, and the same as bytes.
#[derive(Debug, Clone)]
#[repr(C, align(64))]
pub(crate) struct ByteValues {
    /// Byte `i` of each value, for machines that look up many bytes at once.
    #[cfg(target_arch = "x86_64")]
    pub planes: [[u8; 256]; 4],
    pub values: [f32; 256],
    /// Whether the lower two bytes of each are zero.
    #[cfg(target_arch = "x86_64")]
    pub are_bf16: bool,
}

impl ByteValues {
    /// `values[code]` of each code.
    pub const fn new(values: &[f32; 256]) -> Self {
        ByteValues {
            #[cfg(target_arch = "x86_64")]
            planes: planes(values),
            values: *values,
            #[cfg(target_arch = "x86_64")]
            are_bf16: are_bf16(values),
        }
    }
}

#[cfg(target_arch = "x86_64")]
const fn are_bf16(values: &[f32; 256]) -> bool {
    let mut code = 0;
    while code < 256 && values[code].to_bits() & 0xffff == 0 {
        code += 1;
    }
    code == 256
}

#[cfg(target_arch = "x86_64")]
const fn planes(values: &[f32; 256]) -> [[u8; 256]; 4] {
    let mut planes = [[0; 256]; 4];
    let mut code = 0;
    while code < 256 {
        let bytes = values[code].to_bits().to_le_bytes();
        let mut i = 0;
        while i < 4 {
            planes[i][code] = bytes[i];
            i += 1;
        }
        code += 1;
    }
    planes
}
