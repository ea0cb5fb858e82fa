//! What this machine could do at best: the yardstick of the benches.

use std::hint::black_box;
use std::time::Instant;

use half::bf16;
use rayon::prelude::*;

use super::buffer::Buffer;
use super::dispatch::Isa;
use super::gemm_matrix;
use super::simd::matrix::{BLOCK, Blocks, FACTOR, Matrix, Parts, Sums, TERMS};
use super::simd::{STEP16, Simd, Task};
use crate::DType;

/// Bytes read per second by all threads from a buffer far larger than any cache.
///
/// `buffer` is read once per call; keep it and call again for the best of several.
pub fn read_bandwidth(buffer: &[u64]) -> f64 {
    let start = Instant::now();
    let sum = buffer
        .par_chunks(1 << 17)
        .map(|part| part.iter().fold(0u64, |sum, v| sum.wrapping_add(*v)))
        .reduce(|| 0, u64::wrapping_add);
    black_box(sum);
    size_of_val(buffer) as f64 / start.elapsed().as_secs_f64()
}

/// Multiply-adds per second of all threads together on numbers in the first-level cache: f32 ones,
/// or those of the 16-bit integer products; or, where that is faster, those of matrices of all parts of such
/// activations and of weights.
pub fn multiply_add_rate(isa: Isa, precision: DType) -> f64 {
    let start = Instant::now();
    let threads = rayon::current_num_threads();
    let done: usize = (0..threads)
        .into_par_iter()
        .map(|_| match precision {
            DType::F32 => isa.run(Rate32),
            DType::F16 | DType::BF16 => isa.run(Rate16),
        })
        .sum();
    let vectors = done as f64 / start.elapsed().as_secs_f64();
    let start = Instant::now();
    let done: usize =
        (0..threads).into_par_iter().map(|_| isa.run(RateOfMatrices(precision))).sum();
    vectors.max(done as f64 / start.elapsed().as_secs_f64())
}

const ROUNDS: usize = 100_000;

struct Rate32;

impl Task for Rate32 {
    type Output = usize;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> usize {
        let (a, b) = (s.splat(black_box(0.999)), s.splat(black_box(0.001)));
        let mut sums = [s.splat(1.0); 10];
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = s.fma(*sum, a, b);
            }
        }
        for sum in sums {
            black_box(s.sum(sum));
        }
        ROUNDS * 10 * S::LANES
    }
}

struct Rate16;

impl Task for Rate16 {
    type Output = usize;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> usize {
        const SUMS: usize = 4;
        let x = black_box([3i16; SUMS * STEP16]);
        let w = s.load_step(&black_box([5i16; STEP16]));
        let scales = s.scales(black_box(0.5), black_box(0.25));
        let mut sums = [s.splat(0.0); SUMS];
        for _ in 0..ROUNDS / SUMS {
            for (sum, x) in sums.iter_mut().zip(black_box(&x).chunks_exact(STEP16)) {
                *sum = s.dot_step(*sum, w, x, scales);
            }
        }
        for sum in sums {
            black_box(s.sum(sum));
        }
        ROUNDS / SUMS * SUMS * STEP16
    }
}

struct RateOfMatrices(DType);

impl Task for RateOfMatrices {
    type Output = usize;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> usize {
        const STEPS: usize = 4;
        let Some(matrix) = s.matrix() else { return 0 };
        let [b, a] = gemm_matrix::parts(self.0, 3);
        let parts = Parts { a, b };
        let factors = |parts| Buffer::new(STEPS * parts * 2 * FACTOR, bf16::ONE);
        let (a, b) = (factors(parts.a), factors(parts.b));
        let mut sums = Buffer::new(BLOCK * BLOCK, 0.0f32);
        let rounds = ROUNDS / 100;
        for _ in 0..rounds {
            let b = Blocks { factors: &b, stride: 0, count: 1 };
            let sums = Sums { numbers: &mut sums, stride: BLOCK, adds: false };
            matrix.multiply(black_box(&a), b, parts, STEPS, sums);
        }
        black_box(sums[0]);
        rounds * STEPS * TERMS * BLOCK * BLOCK
    }
}
