//! Which kernel a product takes: the one place that weighs them against each other.

use lowbit::DType;

use crate::matrix::{Schedule, Tiles};
use crate::product::TILE;
use crate::weight::{Kind, TABLE};
use crate::{Kernel, Limits};

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
    /// Tiles of results on matrix hardware.
    Matrix { tiles: Tiles, schedule: Schedule },
    /// The same as `Gemm` for the product with the weight as it lies, not transposed.
    Transposed,
}

impl Product {
    /// Groups of threads along the rows of a weight.
    pub fn groups(self, rows: u32, kernel: &Kernel, limits: &Limits) -> u32 {
        let (_, widest) = limits.subgroup;
        match self {
            Product::Gemv { rows: each, .. } | Product::GemvPairs { rows: each, .. } => {
                let per_group = each * (kernel.workgroup[0] / widest).max(1);
                rows.div_ceil(per_group).min(limits.groups)
            }
            Product::Matrix { tiles, .. } => rows.div_ceil(tiles.n),
            Product::Gemm | Product::Transposed => rows.div_ceil(TILE),
        }
    }

    /// Rows of activations that a dispatch takes, unless it takes all.
    pub fn batch(self) -> Option<usize> {
        match self {
            Product::Gemv { batch, .. } | Product::GemvPairs { batch, .. } => Some(batch as usize),
            _ => None,
        }
    }
}

/// Most rows of activations for a subgroup's sums.
const MOST_BATCH: usize = 16;
/// Most rows of activations that are multiplied by subgroups, several times over.
const MOST_ROWS: usize = 64;
/// Groups that a dispatch should have at least.
const GROUPS: u32 = 128;
/// Bytes of a table of pairs.
const PAIRS: u32 = 256 * 8;

/// The kernel for `x: [M, K]` of that type and `w: [N, K]`.
pub(crate) fn product(
    [m, n, k]: [usize; 3],
    kind: &Kind,
    dtype: DType,
    limits: &Limits,
) -> Product {
    if limits.subgroup == (32, 32)
        && limits.f16
        && dtype != DType::F32
        && let Some(product) = matrices(m, k, limits)
    {
        return product;
    }
    if m > MOST_ROWS || !kind.vectors || !limits.subgroups {
        return Product::Gemm;
    }
    let batch = m.min(MOST_BATCH).next_power_of_two() as u32;
    let room = limits.workgroup_memory;
    if !kind.is_nibble_table() || room < 8 * PAIRS {
        return Product::Gemv { rows: 2, batch };
    }
    if batch >= 8 {
        let (group, replicas) = (limits.threads.min(256), 8.min(room / PAIRS / 2).max(4));
        return Product::GemvPairs { rows: 2, batch, group, replicas };
    }
    // Sixteen tables leave no two lanes on one bank; where memory is short, as many as half of it holds.
    let replicas = if room >= 48 << 10 { 16 } else { 8.min(room / PAIRS / 2).max(4) };
    let rows = if batch == 1 && n >= 8192 { 4 } else { 2 };
    // Large groups share a table, but a large GPU has more than a hundred cores to fill.
    let subgroups = (n as u32 / rows / GROUPS).next_power_of_two().clamp(4, 32);
    let group = (subgroups * limits.subgroup.1).min(limits.threads);
    Product::GemvPairs { rows, batch, group, replicas }
}

/// The kernel for one row of activations and a gate with what it multiplies under it, `w: [N, K]`, which
/// takes rows of both; `None` if no subgroups multiply.
pub(crate) fn gated(
    [n, k]: [usize; 2],
    kind: &Kind,
    dtype: DType,
    limits: &Limits,
) -> Option<Product> {
    match product([1, n, k], kind, dtype, limits) {
        Product::Gemv { batch, .. } => Some(Product::Gemv { rows: 4, batch }),
        Product::GemvPairs { rows: 2, batch, group, replicas } => {
            // Twice the rows in half the subgroups.
            let group = (group / 2).max(limits.subgroup.1);
            Some(Product::GemvPairs { rows: 4, batch, group, replicas })
        }
        pairs @ Product::GemvPairs { .. } => Some(pairs),
        _ => None,
    }
}

/// Places for each expert up to which each is multiplied by itself, though its expert is then read again
/// for each.
const PLACES: usize = 2;
/// Places up to which that pays however few the experts are.
const FEW_PLACES: usize = 32;

/// The kernel for so many places of `[_, K]`, each with `N` rows of one of `experts`: one for a single row
/// of activations, or tiles.
pub(crate) fn experts(
    [places, n, k]: [usize; 3],
    experts: usize,
    kind: &Kind,
    dtype: DType,
    limits: &Limits,
) -> Product {
    if places > FEW_PLACES.max(PLACES * experts) {
        return Product::Gemm;
    }
    product([1, n, k], kind, dtype, limits)
}

/// Whether a kernel for one row of activations has room to norm it first; `eps` becomes a part of its text.
pub(crate) fn can_norm(
    product: Product,
    k: usize,
    eps: f32,
    dtype: DType,
    limits: &Limits,
) -> bool {
    let (tables, group) = match product {
        Product::Gemv { .. } => (4 * TABLE as u32, 128),
        Product::GemvPairs { group, replicas, .. } => (PAIRS * replicas, group),
        _ => return false,
    };
    let room = limits.workgroup_memory.saturating_sub(tables + group);
    eps.is_finite() && k % 8 == 0 && k * dtype.size() <= room as usize
}

/// The kernel on matrix hardware, from as many rows of activations on as it is faster.
fn matrices(m: usize, k: usize, limits: &Limits) -> Option<Product> {
    let side = limits.matrix?;
    let vectors = limits.vector_tiles;
    // Rows of both in a tile, subgroups across, threads, terms.
    let (tile, across, group, depth, schedule) = match m {
        _ if !vectors && m > MOST_ROWS => ([64, 64], 2, 256, 32, Schedule::Whole),
        _ if !vectors || m <= 8 => return None,
        9..=16 => ([16, 64], 4, 128, 128, Schedule::Stream(132)),
        17..=32 => ([32, 32], 2, 64, 64, Schedule::Stream(528)),
        33..=64 => ([64, 64], 4, 256, 64, Schedule::Stream(264)),
        65..=256 => ([64, 64], 2, 128, 64, Schedule::Whole),
        _ => ([128, 128], 2, 256, 32, Schedule::Whole),
    };
    let ([m, n], cut) = (tile, schedule != Schedule::Whole);
    let tiles = Tiles { side, m, n, across, group, depth, cut, vectors };
    (k.is_multiple_of(depth as usize) && m % side == 0)
        .then_some(Product::Matrix { tiles, schedule })
}

/// The kernel that [`product`] takes where that is one on matrix hardware, with another schedule.
pub(crate) fn scheduled(product: Product, schedule: Schedule) -> Option<Product> {
    match product {
        Product::Matrix { tiles, .. } => {
            let tiles = Tiles { cut: schedule != Schedule::Whole, ..tiles };
            Some(Product::Matrix { tiles, schedule })
        }
        _ => None,
    }
}
