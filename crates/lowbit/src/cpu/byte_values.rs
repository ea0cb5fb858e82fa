//! What the 256 codes of a byte stand for, as kernels look it up.

/// A table of f32 and the same in planes of bytes.
#[derive(Debug, Clone)]
#[repr(C, align(64))]
pub(crate) struct ByteValues {
    /// Byte `i` of each value, for machines that look up many bytes at once.
    pub planes: [[u8; 256]; 4],
    pub values: [f32; 256],
}

impl ByteValues {
    /// `values[code]` of each code.
    pub const fn new(values: &[f32; 256]) -> Self {
        let mut planes = [[0; 256]; 4];
        let mut code = 0;
        while code < 256 {
            let [a, b, c, d] = values[code].to_bits().to_le_bytes();
            (planes[0][code], planes[1][code]) = (a, b);
            (planes[2][code], planes[3][code]) = (c, d);
            code += 1;
        }
        ByteValues { planes, values: *values }
    }
}
