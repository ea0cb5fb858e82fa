//! What this machine can do: memory bandwidth and multiply-add rate, measured in the same run.

use lowbit::cpu::measure::{multiply_add_rate, read_bandwidth};
use lowbit::{Cpu, DType};
use rayon::prelude::*;

use crate::machine;

/// The limits that a kernel cannot pass.
pub struct Limits {
    buffer: Vec<u64>,
    /// Multiply-adds a second on f32 numbers.
    f32_rate: f64,
    /// The same of 16-bit products.
    rate_16_bit: f64,
}

/// The smallest working set that no cache holds, in bytes.
const COLD_BYTES: usize = 300_000_000;
/// Looks at a rate, of which the best counts.
const LOOKS: usize = 20;

/// Bytes to rotate through so that nothing is left in the last-level cache when its turn comes.
pub fn cold_bytes() -> usize {
    COLD_BYTES.max(4 * machine::last_level_cache())
}

impl Limits {
    /// Takes a moment.
    pub fn measure() -> Self {
        let isa = Cpu::best().isa();
        Limits {
            // Written by all threads, so that every page is there.
            buffer: (0..cold_bytes() / 8).into_par_iter().map(|i| i as u64).collect(),
            f32_rate: best(LOOKS, || multiply_add_rate(isa, DType::F32)),
            rate_16_bit: best(LOOKS, || multiply_add_rate(isa, DType::BF16)),
        }
    }

    /// Floating-point operations a second of all threads together, a multiply-add counting as two,
    /// for activations of that type.
    pub fn flops(&self, dtype: DType) -> f64 {
        match dtype {
            DType::F32 => 2.0 * self.f32_rate,
            // Where 16-bit products are the slower ones, f32 serves 16-bit activations as well.
            DType::F16 | DType::BF16 => 2.0 * self.rate_16_bit.max(self.f32_rate),
        }
    }

    /// Bytes a second that all threads together read from memory. Taken again for every case, since
    /// machines change their pace.
    pub fn bandwidth(&self) -> f64 {
        best(3, || read_bandwidth(&self.buffer))
    }
}

fn best(looks: usize, look: impl Fn() -> f64) -> f64 {
    (0..looks).map(|_| look()).fold(0.0, f64::max)
}
