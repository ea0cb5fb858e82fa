//! Codes of a byte without a search: the upper half of a number chooses a cell, in which at most
//! one threshold lies.

#[cfg(target_arch = "x86_64")]
use super::lines::{Lines, Quads};
use crate::format::Encoder;

/// The sign, the exponent and seven bits of the mantissa.
const CELLS: usize = 1 << 16;

/// An [`Encoder`] whose codes rise with the numbers, from `zero`, the code of zero, to 255, and
/// below zero fall alike; or rise from 0 alone.
#[derive(Debug)]
pub(crate) struct Cells {
    /// An entry plus the lower half of the number has the code in its top byte: the number carries
    /// into it where it reaches the threshold. Of numbers below zero it is the complement of the
    /// code, unless codes begin at zero.
    table: Box<[u32; CELLS]>,
    /// The thresholds above zero as lines, which vectors take, and those as longer vectors do.
    #[cfg(target_arch = "x86_64")]
    pub lines: Lines,
    #[cfg(target_arch = "x86_64")]
    pub quads: Quads,
    /// The code of zero.
    pub zero: u8,
}

impl Cells {
    /// The cells of an encoder.
    pub fn new(encoder: &Encoder) -> Self {
        let zero = encoder.encode(0.0);
        let mut table = Box::new([0; CELLS]);
        for (cell, entry) in table.iter_mut().enumerate() {
            let complement = if zero > 0 && cell >= CELLS / 2 { 0xff } else { 0 };
            let start = (cell as u32) << 16;
            let code = |low: u32| encoder.encode(f32::from_bits(start | low)) ^ complement;
            let (first, last) = (code(0), code(0xffff));
            *entry = u32::from(first) << 24;
            if first != last {
                let mut threshold = [0, 0xffff];
                while threshold[0] + 1 < threshold[1] {
                    let middle = (threshold[0] + threshold[1]) / 2;
                    threshold[usize::from(code(middle) != first)] = middle;
                }
                *entry |= (1 << 24) - threshold[1];
            }
        }
        #[cfg(target_arch = "x86_64")]
        let lines = Lines::new(&encoder.ups[usize::from(zero)..]);
        Cells {
            table,
            #[cfg(target_arch = "x86_64")]
            quads: Quads::new(&lines),
            #[cfg(target_arch = "x86_64")]
            lines,
            zero,
        }
    }

    /// The entry of the number whose upper half this is.
    #[inline(always)]
    pub fn entry(&self, upper: u16) -> u32 {
        self.table[usize::from(upper)]
    }

    /// The code of a number; -0 is not taken for 0.
    #[inline(always)]
    pub fn code(&self, x: f32) -> u8 {
        let bits = x.to_bits();
        let sum = self.entry((bits >> 16) as u16).wrapping_add(bits & 0xffff);
        let complement = if self.zero > 0 { (bits as i32 >> 31) as u32 } else { 0 };
        ((sum ^ complement) >> 24) as u8
    }

    /// What a rank near a threshold asks for: in random numbers, one vector of 32 codes in 250.
    #[cold]
    #[cfg(target_arch = "x86_64")]
    pub fn encode_one_by_one(&self, x: &[f32], factor: f32, out: &mut [u8]) {
        for (x, code) in x.iter().zip(out) {
            // Adding turns -0 to 0.
            *code = self.code(x * factor + 0.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Isa;
    use crate::cpu::simd::{Simd, Task};
    use crate::formats::dynamic8::{MOMENT_ENCODER, UNSIGNED_ENCODER};

    struct Codes<'a>(&'a Cells, &'a [f32]);

    impl Task for Codes<'_> {
        type Output = Vec<u8>;
        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> Vec<u8> {
            let mut codes = vec![0; self.1.len()];
            let step = 4 * S::LANES;
            for (x, codes) in self.1.chunks_exact(step).zip(codes.chunks_exact_mut(step)) {
                s.encode_cells(self.0, x, 1.0, codes);
            }
            codes
        }
    }

    /// Every threshold and the numbers beside it, and numbers of every size. Within a segment lines
    /// never fall, so what holds beside the thresholds holds between them.
    #[test]
    fn agree_with_the_encoder() {
        for encoder in [&MOMENT_ENCODER, &UNSIGNED_ENCODER] {
            let cells = Cells::new(encoder);
            let near = encoder.ups.iter().flat_map(|up| [up.next_down(), *up, up.next_up()]);
            let largest = 1.0f32.next_up();
            let sizes = (0..=largest.to_bits()).step_by(997).map(f32::from_bits).chain([largest]);
            let signs = if cells.zero > 0 { [1.0, -1.0] } else { [1.0, 1.0] };
            let mut x: Vec<f32> = near.chain(sizes).flat_map(|x| signs.map(|s| x * s)).collect();
            x.retain(|x| x.to_bits() != 1 << 31 && (cells.zero > 0 || *x >= 0.0));
            x.resize(x.len().next_multiple_of(64), 0.5);
            for isa in Isa::available() {
                for (x, code) in x.iter().zip(isa.run(Codes(&cells, &x))) {
                    assert_eq!(code, encoder.encode(*x), "{} {x:e}", isa.name());
                }
            }
        }
    }
}
