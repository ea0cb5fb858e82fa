//! Which kernel a product takes: the one place that weighs them against each other, unless someone has
//! [measured](crate::choices) them.

mod matrices;

use lowbit::DType;
use serde::{Deserialize, Serialize};

use crate::choices::Class;
use crate::matrix::{Schedule, Tiles};
use crate::product::TILE;
use crate::weight::{Kind, Octets};
use crate::{Kernel, Limits, Queue};

/// A kernel for a product, and how its work is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Product {
    /// A subgroup for `rows` rows of weights, at most `batch` rows of activations.
    Gemv { rows: u32, batch: u32 },
    /// The same for bytes that stand for several weights each.
    GemvSpans { rows: u32, batch: u32 },
    /// The same for codes of four bits, with a table of pairs that lies `replicas` times in the memory
    /// of each group of `group` threads.
    GemvPairs { rows: u32, batch: u32, group: u32, replicas: u32 },
    /// The same in half floats.
    GemvHalves { rows: u32, batch: u32, group: u32, halves: Halves },
    /// The same with `batch` rows of activations in the registers of a group, for `rows` rows of weights, of
    /// which `pieces` subgroups share each.
    GemvRegisters { rows: u32, batch: u32, group: u32, replicas: u32, pieces: u32 },
    /// Tiles of 64 x 64 results.
    Gemm,
    /// Tiles of results on matrix hardware.
    Matrix { tiles: Tiles, schedule: Schedule },
    /// The same as `Gemm` for the product with the weight as it lies, not transposed.
    Transposed,
}

/// What a group of threads that multiplies in half floats keeps in workgroup memory and in registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Halves {
    /// Tables of pairs of half floats.
    pub replicas: u32,
    /// Vectors of a row of weights that are on their way to a lane.
    pub ahead: u32,
    /// Whether all activations, a single row of them, share an exponent, for which there is always room:
    /// groups wait for each other twice more.
    pub one_exponent: bool,
}

impl Halves {
    /// Workgroup memory that a group takes: tables, `batch` rows of K half floats, and their exponents.
    fn workgroup_bytes(self, k: u32, batch: u32) -> u32 {
        let exponents = if self.one_exponent { 0 } else { batch * k / 16 };
        1024 * self.replicas + 2 * batch * k.next_multiple_of(1024) + exponents
    }
}

impl Product {
    /// Groups of threads along the rows of a weight.
    pub fn groups(self, rows: u32, kernel: &Kernel, limits: &Limits) -> u32 {
        let (_, widest) = limits.subgroup;
        match self {
            Product::Gemv { rows: each, .. }
            | Product::GemvSpans { rows: each, .. }
            | Product::GemvPairs { rows: each, .. }
            | Product::GemvHalves { rows: each, .. } => {
                let per_group = each * (kernel.workgroup[0] / widest).max(1);
                rows.div_ceil(per_group).min(limits.groups)
            }
            Product::GemvRegisters { rows: each, .. } => rows.div_ceil(each),
            Product::Matrix { tiles, .. } => rows.div_ceil(tiles.n),
            Product::Gemm | Product::Transposed => rows.div_ceil(TILE),
        }
    }

    /// Rows of activations that a dispatch takes, unless it takes all.
    pub fn batch(self) -> Option<usize> {
        match self {
            Product::Gemv { batch, .. }
            | Product::GemvSpans { batch, .. }
            | Product::GemvPairs { batch, .. }
            | Product::GemvHalves { batch, .. }
            | Product::GemvRegisters { batch, .. } => Some(batch as usize),
            _ => None,
        }
    }

    /// Whether it is accurate enough for activations of that type: half floats cost more than a rounding
    /// of half floats, but a fraction of one of bf16.
    pub fn is_for(self, dtype: DType) -> bool {
        dtype == DType::BF16 || !self.keeps_halves()
    }

    /// Whether it keeps activations as half floats.
    pub fn keeps_halves(self) -> bool {
        matches!(self, Product::GemvHalves { .. } | Product::GemvRegisters { .. })
    }

    /// Whether it can multiply weights of that kind, `[N, K]`.
    pub fn suits(self, [n, k]: [usize; 2], kind: &Kind, limits: &Limits) -> bool {
        match self {
            Product::Gemv { .. } => kind.vectors,
            Product::GemvSpans { .. } => kind.span.is_some() || kind.octets != Octets::OneByOne,
            Product::GemvPairs { .. } => kind.vectors && kind.is_nibble_table(),
            Product::GemvHalves { batch, halves, .. } => {
                let room = limits.workgroup_memory;
                // Eight lanes of a subgroup find the exponent of 64 activations.
                limits.f16
                    && limits.subgroup.0 >= 8
                    && kind.has_nibble_vectors()
                    && k.is_multiple_of(64)
                    && k <= room as usize
                    && (batch == 1 || !halves.one_exponent)
                    && halves.workgroup_bytes(k as u32, batch) <= room
            }
            Product::GemvRegisters { rows, batch, group, replicas, pieces } => {
                let (turns, teams) = (rows * batch / 32, group / 32 / pieces);
                // Tables, and sums of each piece.
                let bytes = 1024 * replicas + 4 * pieces * rows * batch;
                limits.f16
                    && limits.subgroup == (32, 32)
                    && kind.has_nibble_vectors()
                    && turns.is_multiple_of(teams)
                    && n.div_ceil(rows as usize) <= limits.groups as usize
                    && bytes <= limits.workgroup_memory
            }
            Product::Matrix { tiles, .. } => {
                k.is_multiple_of(tiles.terms() as usize)
                    && tiles.workgroup_bytes(kind) <= limits.workgroup_memory
            }
            Product::Gemm | Product::Transposed => true,
        }
    }
}

/// Most rows of activations for a subgroup's sums.
const MOST_BATCH: usize = 16;
/// Most rows of activations that subgroups may multiply, several times over.
const MOST_ROWS: usize = 64;
/// Most for which that is faster than tiles.
const SUBGROUP_ROWS: usize = 32;
/// Groups that a dispatch should have at least.
const GROUPS: u32 = 128;
/// Bytes of a table of pairs.
const PAIRS: u32 = 256 * 8;

/// The kernel for `x: [M, K]` of that type and `w: [N, K]`.
pub(crate) fn product<Q: Queue>(dims: [usize; 3], kind: &Kind, dtype: DType, queue: &Q) -> Product {
    let limits = queue.limits();
    let measured = queue.choices().and_then(|choices| choices.product(dims, kind, dtype));
    let measured =
        measured.filter(|p| p.suits([dims[1], dims[2]], kind, limits) && p.is_for(dtype));
    measured.unwrap_or_else(|| usual(dims, kind, dtype, limits))
}

/// The kernel that nobody has measured to be slower than another on this adapter.
pub(crate) fn usual([m, n, k]: [usize; 3], kind: &Kind, dtype: DType, limits: &Limits) -> Product {
    let registers = registers([m, n, k], kind, limits);
    if let Some(product) = registers.filter(|product| product.is_for(dtype)) {
        return product;
    }
    if has_matrices(dtype == DType::F32, limits)
        && let Some(product) = matrices::usual([m, n, k], kind, limits)
    {
        return product;
    }
    if m > SUBGROUP_ROWS || !limits.subgroups {
        return Product::Gemm;
    }
    let batch = m.min(MOST_BATCH).next_power_of_two() as u32;
    if !kind.vectors {
        let (rows, batch) = if batch > 8 { (4, 8) } else { (2, batch) };
        let spans = Product::GemvSpans { rows, batch };
        return if spans.suits([n, k], kind, limits) { spans } else { Product::Gemm };
    }
    let halves = halves([batch as usize, n, k], kind, limits);
    if let Some(product) = halves.filter(|product| product.is_for(dtype)) {
        return product;
    }
    let room = limits.workgroup_memory;
    if !kind.is_nibble_table() || room < 8 * PAIRS {
        // Four rows share what is read of the activations, if two are not needed to keep a GPU at work.
        let rows = if batch > 1 || (n >= 4096 && kind.bits() == 8) { 4 } else { 2 };
        return Product::Gemv { rows, batch };
    }
    if batch > 1 {
        let (group, replicas) = (limits.threads.min(256), 8.min(room / PAIRS / 2).max(4));
        // Sums of more rows of both are more than a thread has registers.
        let rows = if batch <= 8 { 4 } else { 2 };
        return Product::GemvPairs { rows, batch, group, replicas };
    }
    // Sixteen tables leave no two lanes on one bank; where memory is short, as many as half of it holds.
    let replicas = if room >= 48 << 10 { 16 } else { 8.min(room / PAIRS / 2).max(4) };
    let rows = if n >= 8192 { 4 } else { 2 };
    // Large groups share a table, but a large GPU has more than a hundred cores to fill.
    let subgroups = (n as u32 / rows / GROUPS).next_power_of_two().clamp(4, 32);
    let group = (subgroups * limits.subgroup.1).min(limits.threads);
    Product::GemvPairs { rows, batch, group, replicas }
}

/// The kernel that multiplies in half floats, if there is one for so many rows of activations.
fn halves([batch, n, k]: [usize; 3], kind: &Kind, limits: &Limits) -> Option<Product> {
    let widest = limits.subgroup.1;
    // Large groups share tables and activations, small ones are enough for all cores of a large GPU.
    let shared = |rows: usize, groups: usize| (n / rows / groups).next_power_of_two() as u32;
    let (rows, subgroups, most) = match batch {
        1 if n >= 8192 => (4, 32, 32),
        1 if n >= 4096 => (2, 32, 32),
        1 => (2, shared(2, 128).clamp(4, 16), 16),
        2..=4 => (4, shared(4, 64).clamp(4, 16), 16),
        _ => return None,
    };
    let group = (subgroups * widest).min(limits.threads);
    // Large groups have enough on their way with one vector a lane.
    let ahead = if subgroups > 8 || rows > 2 || k <= 1024 { 1 } else { 2 };
    // Thirty-two tables leave no two lanes on one bank; where memory is short, groups share it.
    let most = if limits.workgroup_memory < 48 << 10 { 8 } else { most };
    [32, 16, 8]
        .into_iter()
        .filter(|replicas| *replicas <= most)
        .flat_map(|replicas| [(replicas, false), (replicas, true)])
        .map(|(replicas, one_exponent)| {
            let halves = Halves { replicas, ahead, one_exponent };
            Product::GemvHalves { rows, batch: batch as u32, group, halves }
        })
        .find(|product| product.suits([n, k], kind, limits))
}

/// Numbers of all rows of activations that a subgroup keeps in registers.
const PIECE: usize = 4096;

/// Pieces of K columns of so many rows of activations, each of which a subgroup keeps in registers.
pub(crate) fn pieces(k: usize, batch: usize) -> usize {
    (k * batch).div_ceil(PIECE).max(1)
}

/// The kernel that keeps activations in registers, if there is one for so many rows.
fn registers([m, n, k]: [usize; 3], kind: &Kind, limits: &Limits) -> Option<Product> {
    let batch = match m {
        3..=4 => 4,
        5..=16 => 8,
        _ => return None,
    };
    let all = pieces(k, batch);
    // Where it has much to do, matrix hardware takes two batches in less time.
    if m > batch && (all > 16 || (all > 8 && n > 8192)) {
        return None;
    }
    // Rows that are longer than most groups are taken piece after piece, by as many subgroups as leave
    // few idle in the end.
    let most = 16.min(limits.threads as usize / 32);
    let pieces = if all <= most {
        all
    } else {
        (most * 3 / 4..=most).rev().min_by_key(|pieces| all.next_multiple_of(*pieces))?
    };
    // With fewer tables two groups have room in a core where sums are many.
    let replicas = if batch == 4 { 16 } else { 8 };
    // Many rows share tables and activations, with few there are enough groups for all cores of a large GPU:
    // of both batches, where a group fills a core.
    let batches = if pieces > 8 { m.div_ceil(batch) } else { 1 };
    let shared = (n * batches / GROUPS as usize).max(16);
    [64, 32, 16]
        .into_iter()
        .filter(|rows| *rows <= shared)
        .map(|rows| Product::GemvRegisters {
            rows: rows as u32,
            batch: batch as u32,
            group: (32 * pieces * (4 / pieces).clamp(1, rows * batch / 32)) as u32,
            replicas,
            pieces: pieces as u32,
        })
        .find(|product| product.suits([n, k], kind, limits))
}

/// The kernel for one row of activations and a gate with what it multiplies under it, `w: [N, K]`, which
/// takes rows of both; `None` if no subgroups multiply.
pub(crate) fn gated<Q: Queue>(
    [n, k]: [usize; 2],
    kind: &Kind,
    dtype: DType,
    queue: &Q,
) -> Option<Product> {
    match product([1, n, k], kind, dtype, queue) {
        Product::Gemv { batch, .. } => Some(Product::Gemv { rows: 4, batch }),
        Product::GemvSpans { batch, .. } => Some(Product::GemvSpans { rows: 4, batch }),
        Product::GemvPairs { rows: 2, batch, group, replicas } => {
            // Twice the rows in half the subgroups.
            let group = (group / 2).max(queue.limits().subgroup.1);
            Some(Product::GemvPairs { rows: 4, batch, group, replicas })
        }
        Product::GemvHalves { rows: 2, batch, group, halves } => {
            let group = (group / 2).max(queue.limits().subgroup.1);
            let halves = Halves { ahead: (halves.ahead / 2).max(1), ..halves };
            Some(Product::GemvHalves { rows: 4, batch, group, halves })
        }
        four @ (Product::GemvPairs { .. } | Product::GemvHalves { .. }) => Some(four),
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
pub(crate) fn experts<Q: Queue>(
    [places, n, k]: [usize; 3],
    experts: usize,
    kind: &Kind,
    dtype: DType,
    queue: &Q,
) -> Product {
    let is_few = places <= FEW_PLACES.max(PLACES * experts);
    let one = product([1, n, k], kind, dtype, queue);
    if is_few && one.batch().is_some() { one } else { Product::Gemm }
}

/// Whether a kernel for one row of activations has room to norm it first; `eps` becomes a part of its text.
pub(crate) fn can_norm(
    product: Product,
    k: usize,
    kind: &Kind,
    eps: f32,
    dtype: DType,
    limits: &Limits,
) -> bool {
    let normed = k * dtype.size();
    let (tables, group, normed) = match product {
        Product::Gemv { .. } | Product::GemvSpans { .. } => (kind.table_bytes(), 128, normed),
        Product::GemvPairs { group, replicas, .. } => (PAIRS * replicas, group, normed),
        // It keeps them anyway.
        Product::GemvHalves { group, batch, halves, .. } => {
            (halves.workgroup_bytes(k as u32, batch), group, 0)
        }
        _ => return false,
    };
    let room = limits.workgroup_memory.checked_sub(tables + group);
    eps.is_finite() && k % 8 == 0 && room.is_some_and(|room| normed <= room as usize)
}

/// Whether products of such activations can take matrix hardware.
fn has_matrices(f32: bool, limits: &Limits) -> bool {
    limits.subgroup == (32, 32) && limits.f16 && !f32 && limits.matrix.is_some()
}

/// Those in half floats: enough to fill each thread's registers, and not more.
fn halves_candidates(batch: u32, limits: &Limits) -> Vec<Product> {
    let mut all = Vec::new();
    for (rows, group, ahead) in [(2, 256, 2), (2, 512, 1), (2, 1024, 1), (4, 512, 1), (4, 1024, 1)]
    {
        for replicas in [8, 16, 32] {
            let halves = Halves { replicas, ahead, one_exponent: false };
            let one = Halves { one_exponent: true, ..halves };
            let ways = if group == 1024 { &[halves, one][..] } else { &[halves] };
            let product = |halves| Product::GemvHalves { rows, batch, group, halves };
            all.extend(ways.iter().map(|halves| product(*halves)));
        }
    }
    all.retain(
        |product| matches!(product, Product::GemvHalves { group, .. } if *group <= limits.threads),
    );
    all
}

/// Those that keep activations in registers.
fn register_candidates(m: usize, limits: &Limits) -> Vec<Product> {
    let (batch, replicas) = if m <= 4 { (4, 16) } else { (8, 8) };
    let mut all = Vec::new();
    for pieces in [1, 2, 4, 7, 8, 14, 16] {
        let group = 32 * pieces * (4 / pieces).max(1);
        if group <= limits.threads {
            let product = |rows| Product::GemvRegisters { rows, batch, group, replicas, pieces };
            all.extend([16, 32, 64].map(product));
        }
    }
    all
}

/// All kernels that can do products of `m` rows of such activations with such weights, for someone to
/// measure them.
pub(crate) fn candidates(m: usize, class: Class, limits: &Limits) -> Vec<Product> {
    let mut all = Vec::new();
    if m <= MOST_ROWS && limits.subgroups {
        let batch = m.min(MOST_BATCH).next_power_of_two() as u32;
        all.extend([2, 4].map(|rows| Product::Gemv { rows, batch }));
        all.extend([2, 4].map(|rows| Product::GemvSpans { rows, batch }));
        let groups = [64, 128, 256, 512, 1024];
        let groups = groups.into_iter().filter(|g| limits.subgroup.1 <= *g && *g <= limits.threads);
        let fits = |replicas: &u32| class.pairs && replicas * PAIRS <= limits.workgroup_memory;
        for group in groups {
            for replicas in [4, 8, 16].into_iter().filter(fits) {
                let rows = if batch > 8 { &[2][..] } else { &[2, 4] };
                let pairs = |rows: &u32| Product::GemvPairs { rows: *rows, batch, group, replicas };
                all.extend(rows.iter().map(pairs));
            }
        }
        if batch <= 4 && class.pairs && !class.f32 && limits.f16 {
            all.extend(halves_candidates(batch, limits));
        }
        if m > 2 && class.pairs && !class.f32 && limits.f16 && limits.subgroup == (32, 32) {
            all.extend(register_candidates(m, limits));
        }
    }
    if m > 1 || all.is_empty() {
        all.push(Product::Gemm);
    }
    if m > 1 && has_matrices(class.f32, limits) {
        all.extend(matrices::candidates(limits));
    }
    all
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
