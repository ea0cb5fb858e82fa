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
    /// How codes become half floats, if they can.
    #[cfg(target_arch = "x86_64")]
    pub small_floats: Option<SmallFloats>,
}

/// Codes that are floats of eight bits: a sign and the upper bits of an exponent and a mantissa.
#[cfg(target_arch = "x86_64")]
#[derive(Debug, Clone, Copy)]
pub(crate) struct SmallFloats {
    /// What brings a code's lower seven bits to where a half float has them.
    pub shift: u32,
    /// What the half float is to be multiplied by.
    pub factor: f32,
    /// The first magnitude whose code stands for something else.
    pub end: u8,
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
            #[cfg(target_arch = "x86_64")]
            small_floats: SmallFloats::of(values),
        }
    }
}

#[cfg(target_arch = "x86_64")]
impl SmallFloats {
    /// Exponents of four bits, or of five; the largest magnitudes may stand for what is not finite.
    const fn of(values: &[f32; 256]) -> Option<Self> {
        let mut shift = 7;
        while shift <= 8 {
            // Of the same code, so what differs is the bias.
            let factor = values[0x40] / half(0x40, shift);
            let mut end = 0;
            while end < 128
                && values[end].to_bits() == (half(end, shift) * factor).to_bits()
                && values[128 + end].to_bits() == (half(128 + end, shift) * factor).to_bits()
            {
                end += 1;
            }
            if end >= 120 {
                return Some(SmallFloats { shift, factor, end: end as u8 });
            }
            shift += 1;
        }
        None
    }
}

/// The half float whose upper bits are a code's.
#[cfg(target_arch = "x86_64")]
const fn half(code: usize, shift: u32) -> f32 {
    let bits = (code & 0x80) << 8 | (code & 0x7f) << shift;
    half::f16::from_bits(bits as u16).to_f32_const()
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

#[cfg(all(test, target_arch = "x86_64"))]
pub(crate) mod tests {
    use super::*;
    use crate::cpu::dispatch::Isa;
    use crate::cpu::simd::{Simd, Task};
    use crate::formats;

    fn table(of: impl Fn(usize) -> f32) -> ByteValues {
        ByteValues::new(&std::array::from_fn(of))
    }

    #[test]
    fn floats_of_eight_bits_are_known_by_their_values() {
        let fp8 = formats::by_name("fp8_e4m3").unwrap().codebook().unwrap();
        let floats = table(|code| fp8[code]).small_floats.unwrap();
        assert_eq!((floats.shift, floats.factor, floats.end), (7, 256.0, 127));
        // Five bits of exponent, and other biases.
        for scale in [1.0, 0.125] {
            let floats = table(|code| half(code, 8) * scale).small_floats.unwrap();
            assert_eq!((floats.shift, floats.factor), (8, scale));
        }
        let map = formats::by_name("dynamic8").unwrap().codebook().unwrap();
        assert!(table(|code| map[code]).small_floats.is_none());
        assert!(table(|code| if code == 200 { 0.1 } else { fp8[code] }).small_floats.is_none());
    }

    /// The values of codes.
    pub(crate) struct Decode<'a>(&'a ByteValues, &'a [u8]);

    impl Task for Decode<'_> {
        type Output = Vec<f32>;
        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> Vec<f32> {
            let mut out = vec![0.0; self.1.len()];
            let steps = out.chunks_exact_mut(4 * S::LANES).zip(self.1.chunks_exact(4 * S::LANES));
            for (out, codes) in steps {
                let vectors = s.decode_bytes(self.0, codes);
                for (v, out) in vectors.into_iter().zip(out.chunks_exact_mut(S::LANES)) {
                    s.store(v, out);
                }
            }
            out
        }
    }

    /// Holds what an instruction set decodes to the bits of any values, of bf16 ones, and of floats of eight
    /// bits, of which some are not finite.
    pub(crate) fn check_decoding(run: impl Fn(Decode<'_>) -> Vec<f32>) {
        let any: [f32; 256] = std::array::from_fn(|code| (code as f32 - 77.3) * 1.2345e-3);
        let upper_halves = any.map(|v| f32::from_bits(v.to_bits() & 0xffff_0000));
        let fp8 = formats::by_name("fp8_e4m3").unwrap().codebook().unwrap();
        let codes: Vec<u8> = (0..1024).map(|i| (i * 167 % 256) as u8).collect();
        for values in [&any, &upper_halves, fp8.try_into().unwrap()] {
            let found = run(Decode(&ByteValues::new(values), &codes));
            for (found, code) in found.iter().zip(&codes) {
                assert_eq!(found.to_bits(), values[usize::from(*code)].to_bits(), "{code}");
            }
        }
        let table = ByteValues::new(&upper_halves);
        assert!(table.are_bf16 && table.small_floats.is_none());
    }

    #[test]
    fn every_code_has_its_value() {
        for isa in Isa::available() {
            check_decoding(|decode| isa.run(decode));
        }
    }
}
