//! What this machine can do: memory bandwidth and multiply-add rate, measured in the same run.

use std::hint::black_box;
use std::time::{Duration, Instant};

use rayon::prelude::*;

use crate::machine;

/// The limits that a kernel cannot pass.
pub struct Limits {
    buffer: Vec<u64>,
    /// Floating-point operations a second, a multiply-add counting as two.
    pub flops: f64,
}

/// The smallest working set that no cache holds, in bytes.
const COLD_BYTES: usize = 300_000_000;

/// Bytes to rotate through so that nothing is left in the last-level cache when its turn comes.
pub fn cold_bytes() -> usize {
    COLD_BYTES.max(4 * machine::last_level_cache())
}

impl Limits {
    /// Takes a moment.
    pub fn measure() -> Self {
        // Written by all threads, so that every page is there.
        let buffer = (0..cold_bytes() / 8).into_par_iter().map(|i| i as u64).collect();
        Limits { buffer, flops: multiply_add_rate() }
    }

    /// Bytes a second that all threads together read: the best of a few passes over a buffer that no
    /// cache holds. Taken again for every case, since machines change their pace.
    pub fn bandwidth(&self) -> f64 {
        let bytes = (8 * self.buffer.len()) as f64;
        let pass = || {
            let start = Instant::now();
            let sum =
                self.buffer.par_chunks(1 << 16).map(sum_words).reduce(|| 0, u64::wrapping_add);
            black_box(sum);
            bytes / start.elapsed().as_secs_f64()
        };
        (0..3).map(|_| pass()).fold(0.0, f64::max)
    }
}

fn sum_words(words: &[u64]) -> u64 {
    words.iter().fold(0, |sum, word| sum.wrapping_add(*word))
}

/// Floating-point operations a second of all threads together.
fn multiply_add_rate() -> f64 {
    const TIME: Duration = Duration::from_millis(100);
    rayon::broadcast(|_| {
        let (start, mut done) = (Instant::now(), 0.0);
        while start.elapsed() < TIME {
            done += multiply_adds();
        }
        done / start.elapsed().as_secs_f64()
    })
    .iter()
    .sum()
}

/// Multiply-adds on numbers that stay in registers; how many operations they were.
fn multiply_adds() -> f64 {
    const LANES: usize = 64;
    const STEPS: usize = 4096;
    let mut sums = [0.5f32; LANES];
    let (a, b) = (black_box(0.999), black_box(0.001));
    for _ in 0..STEPS {
        for sum in &mut sums {
            *sum = *sum * a + b;
        }
    }
    black_box(sums);
    (2 * LANES * STEPS) as f64
}
