//! Which kernel a product takes: the one place that weighs them against each other.

use lowbit::DType;

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
    /// Tiles of `m` x `n` results on matrix hardware, `across` subgroups side by side.
    Matrix { side: u32, m: u32, n: u32, across: u32 },
    /// The same as `Gemm` for the product with the weight as it lies, not transposed.
    Transposed,
}

/// Most rows of activations for a subgroup's sums.
const MOST_ROWS: usize = 16;
/// Bytes of a table of pairs.
const PAIRS: u32 = 256 * 8;

/// The kernel for `x: [M, K]` of that type and `w: [N, K]`.
pub(crate) fn product(m: usize, k: usize, kind: &Kind, dtype: DType, limits: &Limits) -> Product {
    if let Some(side) = limits.matrix
        && m > MOST_ROWS
        && limits.subgroup == (32, 32)
        && limits.f16
        && dtype != DType::F32
        && kind.words()
        && k % 32 == 0
    {
        let (m, n, across) = match m {
            0..=32 => (32, 64, 4),
            33..=256 => (64, 64, 2),
            _ => (128, 128, 4),
        };
        return Product::Matrix { side, m, n, across };
    }
    if m > MOST_ROWS || !kind.vectors || !limits.subgroups {
        return Product::Gemm;
    }
    let batch = (m as u32).next_power_of_two();
    // As many tables as half of a group's memory holds: more than that leaves one group at a time.
    let replicas = (limits.workgroup_memory / 2 / PAIRS).clamp(1, 16).next_power_of_two();
    let replicas = if limits.workgroup_memory >= 48 << 10 { 16 } else { replicas };
    if kind.is_nibble_table() && replicas >= 4 {
        let group = limits.threads.min(512);
        return Product::GemvPairs { rows: 4, batch, group, replicas };
    }
    Product::Gemv { rows: 2, batch }
}
