//! Which kernel a product takes: the one place that weighs them against each other.

use crate::Limits;
use crate::weight::Kind;

/// A kernel for a product, and how its work is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Product {
    /// A subgroup for `rows` rows of weights, at most `batch` rows of activations.
    Gemv { rows: u32, batch: u32 },
    /// The same for codes of four bits, with a table of pairs that lies `replicas` times in the memory
    /// of each group of `group` threads.
    GemvPairs { rows: u32, batch: u32, group: u32, replicas: u32 },
    /// Tiles of 64 x 64 results.
    Gemm,
    /// The same for the product with the weight as it lies, not transposed.
    Transposed,
}

impl Product {
    /// More groups than that only repeat what each does first.
    pub fn most_groups(self) -> u32 {
        match self {
            Product::GemvPairs { .. } => env("LB_MOST", 528),
            _ => u32::MAX,
        }
    }
}

fn env(name: &str, or: u32) -> u32 {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(or)
}

/// Most rows of activations for a subgroup's sums.
const MOST_ROWS: usize = 16;

/// The kernel for `x: [M, K]` and `w: [N, K]`.
pub(crate) fn product(m: usize, _n: usize, _k: usize, kind: &Kind, limits: &Limits) -> Product {
    if m > MOST_ROWS || !kind.vectors || !limits.subgroups {
        return Product::Gemm;
    }
    let batch = (m as u32).next_power_of_two();
    let replicas = env("LB_REPLICAS", (limits.workgroup_memory / 2048 / 2).clamp(1, 16));
    let group = env("LB_GROUP", 256).min(limits.threads);
    if kind.is_nibble_table() && env("LB_PAIRS", 1) == 1 && replicas >= 4 {
        return Product::GemvPairs { rows: env("LB_ROWS", 4), batch, group, replicas };
    }
    Product::Gemv { rows: 2, batch }
}
