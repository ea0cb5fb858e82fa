//! Timing of single calls on data that no cache holds.

use std::time::{Duration, Instant};

use lowbit::Element;
use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;
use rand_distr::{Distribution, Normal};
use rayon::prelude::*;

use super::limits::{Limits, cold_bytes};
use crate::failure::{Failure, Result};

/// Times of single calls, and the memory bandwidth meanwhile.
#[derive(Debug, Default)]
pub struct Times {
    calls: Vec<f64>,
    /// Bytes a second: the best seen between the rounds.
    pub bandwidth: f64,
}

/// The time is spent in this many rounds, with a look at the memory's pace before each.
const ROUNDS: u32 = 4;
/// Calls in a round, however long they take.
const CALLS: usize = 3;

impl Times {
    /// Times `call(i)` for `i = 0, 1, ..` modulo `items`, for about `seconds`. The call returns what
    /// it made, which is put away outside the time.
    pub fn take<R>(
        limits: &Limits,
        seconds: f32,
        items: usize,
        mut call: impl FnMut(usize) -> Result<R>,
    ) -> Result<Self> {
        let mut times = Times::default();
        let mut turn = (0..items).cycle();
        let mut next = || turn.next().ok_or(Failure::failed("nothing to measure"));
        // The first call may pay for pages and threads.
        call(next()?)?;
        for _ in 0..ROUNDS {
            let bandwidth = limits.bandwidth();
            Self::rounds(seconds / ROUNDS as f32, || {
                let item = next()?;
                let start = Instant::now();
                let made = call(item)?;
                times.add(start.elapsed().as_secs_f64(), bandwidth);
                drop(made);
                Ok(())
            })?;
        }
        Ok(times)
    }

    /// Does `work` for about `seconds`, and a few times at least.
    pub fn rounds(seconds: f32, mut work: impl FnMut() -> Result) -> Result {
        let (start, mut done) = (Instant::now(), 0);
        while done < CALLS || start.elapsed() < Duration::from_secs_f32(seconds) {
            work()?;
            done += 1;
        }
        Ok(())
    }

    /// Adds a call that took so many seconds.
    pub fn add(&mut self, seconds: f64, bandwidth: f64) {
        let at = self.calls.partition_point(|other| *other < seconds);
        self.calls.insert(at, seconds);
        self.bandwidth = self.bandwidth.max(bandwidth);
    }

    /// Seconds of the fastest call.
    pub fn min(&self) -> f64 {
        self.calls.first().copied().unwrap_or(f64::NAN)
    }

    /// Seconds of the call in the middle.
    pub fn median(&self) -> f64 {
        self.calls.get(self.calls.len() / 2).copied().unwrap_or(f64::NAN)
    }
}

/// As many items of `bytes` each as it takes to leave no cache warm.
pub fn rotation<T>(bytes: usize, make: impl FnMut() -> Result<T>) -> Result<Vec<T>> {
    let items = cold_bytes().div_ceil(bytes.max(1)).clamp(2, 1 << 16);
    std::iter::repeat_with(make).take(items).collect()
}

/// `len` random numbers, normally distributed, always the same ones.
pub fn gaussian<T: Element>(len: usize, deviation: f32, seed: u64) -> Result<Vec<T>> {
    const CHUNK: usize = 1 << 14;
    let normal = Normal::new(0.0, deviation)
        .map_err(|error| Failure::failed(format!("random numbers: {error}")))?;
    let mut numbers = vec![T::default(); len];
    numbers.par_chunks_mut(CHUNK).enumerate().for_each(|(i, chunk)| {
        let mut random = Xoshiro256PlusPlus::seed_from_u64(seed ^ ((i as u64) << 20));
        for number in chunk {
            *number = T::from_f32(normal.sample(&mut random));
        }
    });
    Ok(numbers)
}

/// About `count` of the indices below `n`, evenly spread, the first and the last among them.
pub fn spread(n: usize, count: usize) -> Vec<usize> {
    let count = count.clamp(1, n.max(1));
    let mut chosen: Vec<_> =
        (0..count).map(|i| i * n.saturating_sub(1) / (count - 1).max(1)).collect();
    chosen.dedup();
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spread_has_both_ends() {
        assert_eq!(spread(10, 4), [0, 3, 6, 9]);
        assert_eq!(spread(2, 16), [0, 1]);
        assert_eq!(spread(1, 16), [0]);
    }

    #[test]
    fn random_numbers_are_the_same_every_time_and_normal() {
        let a: Vec<f32> = gaussian(100_000, 2.0, 7).expect("a deviation above 0");
        let b: Vec<f32> = gaussian(100_000, 2.0, 7).expect("a deviation above 0");
        assert_eq!(a, b);
        let mean = a.iter().sum::<f32>() / 1e5;
        let variance = a.iter().map(|x| x * x).sum::<f32>() / 1e5;
        assert!(mean.abs() < 0.05 && (variance - 4.0).abs() < 0.1, "{mean} {variance}");
    }
}
