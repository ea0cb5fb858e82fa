//! Products with a weight: `y = x wᵀ + bias` and `dx = dy w`, and all weights as numbers.

mod spec;

use lowbit::{DType, Result};

use crate::choose::{self, Product};
use crate::elementwise;
use crate::kernel::{Access, Builder};
use crate::matrix::{Schedule, Tiles};
use crate::memo::Memo;
use crate::queue::{Queue, count, cover};
use crate::rms_norm::rms_norm;
use crate::weight::{GpuWeight, Kind, Octets, PARAMS, Reads};
use spec::store;
pub(crate) use spec::{Output, Spec, output};

const DEQUANTIZE: &str = include_str!("kernels/dequantize.wgsl");
const DEQUANTIZE_VECTORS: &str = include_str!("kernels/dequantize_vectors.wgsl");
const VECTOR_4: &str = "\
fn vector(row: u32, col: u32) -> vec4<f32> { return exact4(row, col); }";
const HALF_OF_8: &str = "\
fn vector(row: u32, col: u32) -> vec4<f32> {
    let w = octet_exact(octet(row, col & ~7u));
    return select(w[0], w[1], (col & 4u) != 0u);
}";
const VECTOR_8: &str = "\
fn vector(row: u32, col: u32) -> Y8 {
    let w = octet_exact(octet(row, col));
    return y_eight(w[0], w[1]);
}";
const CONVERT: &str = include_str!("kernels/convert.wgsl");

/// Threads of a group of every kernel here but gemv.
const GROUP: u32 = 256;
/// Side of a tile of results in `gemm.wgsl`.
pub(crate) const TILE: u32 = 64;

/// What a product does besides multiplying.
#[derive(Debug)]
pub struct Around<'a, B> {
    /// Factors and eps of a norm of x before: `[K]` in f32.
    pub norm: Option<(&'a B, f32)>,
    /// What is added: `[N]`, of the type of activations.
    pub bias: Option<&'a B>,
    /// What is added after that: `[M, N]`.
    pub to: Option<&'a B>,
}

impl<B> Default for Around<'_, B> {
    fn default() -> Self {
        Around { norm: None, bias: None, to: None }
    }
}

/// `y = x wᵀ + bias`: `x: [M, K]`, `w: [N, K]`, `bias: [N]`, `y: [M, N]`, all of that type.
///
/// # Errors
/// As [`Queue::dispatch`].
pub fn linear<Q: Queue>(
    queue: &Q,
    x: &Q::Buffer,
    m: usize,
    w: &GpuWeight<Q::Buffer>,
    bias: Option<&Q::Buffer>,
    dtype: DType,
) -> Result<Q::Buffer> {
    linear_around(queue, x, m, w, Around { bias, ..Around::default() }, dtype)
}

/// [`linear`] without a bias, its work dealt as `schedule` says; `None` where it takes no matrix
/// hardware.
///
/// # Errors
/// As [`Queue::dispatch`].
pub fn linear_scheduled<Q: Queue>(
    queue: &Q,
    x: &Q::Buffer,
    m: usize,
    w: &GpuWeight<Q::Buffer>,
    schedule: Schedule,
    dtype: DType,
) -> Result<Option<Q::Buffer>> {
    let (n, k) = w.rows_cols();
    let product = choose::product([m, n, k], w.kind(), dtype, queue);
    let product = choose::scheduled(product, schedule);
    product.map(|product| linear_by(queue, x, m, w, product, dtype)).transpose()
}

/// [`linear`] by that kernel, without a bias.
pub(crate) fn linear_by<Q: Queue>(
    queue: &Q,
    x: &Q::Buffer,
    m: usize,
    w: &GpuWeight<Q::Buffer>,
    product: Product,
    dtype: DType,
) -> Result<Q::Buffer> {
    let (n, _) = w.rows_cols();
    let (output, around) = (output(dtype, m, n), Around::default());
    let y = scratch(queue, output, m * n)?;
    multiply(queue, x, m, w, &around, Spec::new(w, dtype, output, product, &around), &y)?;
    converted(queue, y, output, m * n, dtype)
}

/// [`linear`], with more before and after, in one kernel where there is one.
///
/// # Errors
/// As [`Queue::dispatch`].
pub fn linear_around<Q: Queue>(
    queue: &Q,
    x: &Q::Buffer,
    m: usize,
    w: &GpuWeight<Q::Buffer>,
    around: Around<'_, Q::Buffer>,
    dtype: DType,
) -> Result<Q::Buffer> {
    let (n, k) = w.rows_cols();
    if m == 0 || n == 0 || k == 0 {
        let y = queue.zeros(elementwise::bytes(m * n, dtype))?;
        // A norm of nothing changes nothing, but what is added is there.
        return around.to.map_or(Ok(y.clone()), |to| elementwise::add(queue, dtype, to, &y, m * n));
    }
    let output = output(dtype, m, n);
    let product = choose::product([m, n, k], w.kind(), dtype, queue);
    if let Some((factors, eps)) = around.norm
        && (m > 1 || !choose::can_norm(product, k, w.kind(), eps, dtype, queue.limits()))
    {
        let x = rms_norm(queue, dtype, x, m * k, factors, k, eps)?;
        return linear_around(queue, &x, m, w, Around { norm: None, ..around }, dtype);
    }
    if let Some(to) = around.to
        && output.dtype() != dtype
    {
        let y = linear_around(queue, x, m, w, Around { to: None, ..around }, dtype)?;
        return elementwise::add(queue, dtype, to, &y, m * n);
    }
    let y = scratch(queue, output, m * n)?;
    let spec = Spec::new(w, dtype, output, product, &around);
    multiply(queue, x, m, w, &around, spec, &y)?;
    converted(queue, y, output, m * n, dtype)
}

/// `silu(x gateᵀ) * (x upᵀ)` for one row of `x` and a weight that is the gate with the other under it,
/// after a norm if there is one: `[1, N / 2]`. `None` where there is no kernel for it.
///
/// # Errors
/// As [`Queue::dispatch`].
pub fn gated<Q: Queue>(
    queue: &Q,
    x: &Q::Buffer,
    w: &GpuWeight<Q::Buffer>,
    around: Around<'_, Q::Buffer>,
    dtype: DType,
) -> Result<Option<Q::Buffer>> {
    let (n, k) = w.rows_cols();
    let product = choose::gated([n, k], w.kind(), dtype, queue);
    let Some(product) = product.filter(|_| w.parts().len() == 1 && n % 4 == 0) else {
        return Ok(None);
    };
    if let Some((factors, eps)) = around.norm
        && !choose::can_norm(product, k, w.kind(), eps, dtype, queue.limits())
    {
        let x = rms_norm(queue, dtype, x, k, factors, k, eps)?;
        return gated(queue, &x, w, Around { norm: None, ..around }, dtype);
    }
    let output = output(dtype, 1, n / 2);
    let y = scratch(queue, output, n / 2)?;
    let spec = Spec { gated: true, ..Spec::new(w, dtype, output, product, &around) };
    multiply(queue, x, 1, w, &around, spec, &y)?;
    Ok(Some(y))
}

/// Runs the kernel over all parts of a weight.
fn multiply<Q: Queue>(
    queue: &Q,
    x: &Q::Buffer,
    m: usize,
    w: &GpuWeight<Q::Buffer>,
    around: &Around<'_, Q::Buffer>,
    spec: Spec,
    y: &Q::Buffer,
) -> Result<()> {
    let (n, k) = w.rows_cols();
    let product = spec.product;
    if let Product::Matrix { tiles, schedule } = product {
        return matrices(queue, [x, y], m, w, around, spec, (tiles, schedule));
    }
    let kernel = spec.kernel();
    let factors = around.norm.map(|(factors, _)| factors);
    let inputs = [x].into_iter().chain(factors).chain(around.bias).chain(around.to);
    for part in w.parts() {
        let rows = part.rows.len() as u32;
        let limits = queue.limits();
        let across = product.groups(rows, &kernel, limits);
        let buffers: Vec<&Q::Buffer> = part.buffers().chain(inputs.clone()).chain([y]).collect();
        // Of activations, as many rows as a group keeps sums for, or as a tile has.
        let (batch, most) = match product.batch() {
            Some(batch) => (batch, batch * limits.groups as usize),
            None => (TILE as usize, m),
        };
        for first in (0..m).step_by(most) {
            let down = count("linear", (m - first).min(most).div_ceil(batch))?;
            let start = part.rows.start as u32;
            let params = part.params([m as u32, k as u32, first as u32, n as u32, start]);
            queue.dispatch(&kernel, &buffers, &params, [across, down, 1])?;
        }
    }
    Ok(())
}

/// Runs the kernels for matrix hardware, which wants half floats, over all parts of a weight.
fn matrices<Q: Queue>(
    queue: &Q,
    [x, y]: [&Q::Buffer; 2],
    m: usize,
    w: &GpuWeight<Q::Buffer>,
    around: &Around<'_, Q::Buffer>,
    spec: Spec,
    (tiles, schedule): (Tiles, Schedule),
) -> Result<()> {
    let (n, k) = w.rows_cols();
    let [x, ups] = tiles.halves(queue, x, m, k, spec.dtype)?;
    let kernel = spec.kernel();
    let output = || around.bias.into_iter().chain(around.to).chain([y]);
    for part in w.parts() {
        let deal = tiles.deal([m, part.rows.len(), k], schedule, queue.limits())?;
        let partials = match tiles.cut {
            true => Some(queue.scratch(4 * tiles.pieces(&deal))?),
            false => None,
        };
        let start = part.rows.start as u32;
        let params = part.params([m as u32, deal.share, n as u32, start]);
        let inputs = part.buffers().chain([&x, &ups]).chain(&partials);
        let buffers: Vec<&Q::Buffer> = inputs.chain(output()).collect();
        queue.dispatch(&kernel, &buffers, &params, [deal.groups, 1, 1])?;
        if let Some(partials) = partials.filter(|_| deal.share % deal.steps != 0) {
            let merge = spec.merge(tiles);
            let buffers: Vec<&Q::Buffer> = [&ups, &partials].into_iter().chain(output()).collect();
            queue.dispatch(&merge, &buffers, &params, [deal.tiles, 1, 1])?;
        }
    }
    Ok(())
}

/// `dx = dy w`: `dy: [M, N]`, `w: [N, K]`, `dx: [M, K]`, all of that type.
///
/// # Errors
/// As [`Queue::dispatch`].
pub fn linear_transposed<Q: Queue>(
    queue: &Q,
    dy: &Q::Buffer,
    m: usize,
    w: &GpuWeight<Q::Buffer>,
    dtype: DType,
) -> Result<Q::Buffer> {
    let (n, k) = w.rows_cols();
    if m == 0 || n == 0 || k == 0 {
        return queue.zeros((m * k * dtype.size()) as u64);
    }
    let parts = w.parts();
    let output = output(dtype, m, k);
    let dx = scratch(queue, output, m * k)?;
    let spec = Spec::new(w, dtype, output, Product::Transposed, &Around::default());
    let kernel = spec.kernel();
    let groups = [count("linear_transposed", k)?.div_ceil(TILE), (m as u32).div_ceil(TILE), 1];
    let mut sums = dx.clone();
    for (i, part) in parts.iter().enumerate() {
        let params = part.params([m as u32, n as u32, part.rows.start as u32, k as u32, 0]);
        let target = if i == 0 { dx.clone() } else { scratch(queue, output, m * k)? };
        let buffers: Vec<&Q::Buffer> = part.buffers().chain([dy, &target]).collect();
        queue.dispatch(&kernel, &buffers, &params, groups)?;
        if i > 0 {
            sums = elementwise::add(queue, output.dtype(), &sums, &target, m * k)?;
        }
    }
    converted(queue, sums, output, m * k, dtype)
}

/// All weights, `[N, K]`, in that type.
///
/// # Errors
/// As [`Queue::dispatch`].
pub fn dequantize<Q: Queue>(
    queue: &Q,
    w: &GpuWeight<Q::Buffer>,
    dtype: DType,
) -> Result<Q::Buffer> {
    let (n, k) = w.rows_cols();
    let output = output(dtype, 1, n * k);
    let y = scratch(queue, output, n * k)?;
    if n * k == 0 {
        return Ok(y);
    }
    static KERNELS: Memo<(Kind, Output, Option<bool>)> = Memo::new();
    let octets = (w.kind().octets != Octets::OneByOne).then(|| w.is_line());
    let kernel = KERNELS.get((*w.kind(), output, octets), |(kind, output, octets)| {
        let builder = Builder::new("dequantize").types().weight(kind, Reads::Words);
        match octets {
            None => store(builder, *output, false).build(PARAMS, "dequantize", GROUP, DEQUANTIZE),
            Some(one_row) => {
                let (each, ty, vector) = match output.dtype() {
                    DType::F32 if kind.words() => (4u32, "array<vec4<f32>>", VECTOR_4),
                    DType::F32 => (4, "array<vec4<f32>>", HALF_OF_8),
                    _ => (8, "array<Y8>", VECTOR_8),
                };
                builder
                    .tag(if *one_row { "one_row_to" } else { "vectors_to" })
                    .activations("Y", output.dtype())
                    .flag("ONE_ROW", *one_row)
                    .constant("EACH", each)
                    .bind("y", Access::ReadWrite, ty)
                    .octets(kind)
                    .text(vector)
                    .build(PARAMS, "dequantize_vectors", GROUP, DEQUANTIZE_VECTORS)
            }
        }
    });
    for part in w.parts() {
        let weights = part.rows.len() * k;
        count("dequantize", weights)?;
        let first = count("dequantize", part.rows.start * k)?;
        let params = part.params([0, 0, 0, 0, first]);
        let each = match octets {
            // Two vectors of 16 bytes.
            Some(_) => 32 / output.dtype().size(),
            None if w.kind().words() => 4,
            None => 2,
        };
        let groups = cover(weights.div_ceil(each) as u64, GROUP, queue.limits());
        let buffers: Vec<&Q::Buffer> = part.buffers().chain([&y]).collect();
        queue.dispatch(&kernel, &buffers, &params, groups)?;
    }
    Ok(y)
}

pub(crate) fn scratch<Q: Queue>(queue: &Q, output: Output, len: usize) -> Result<Q::Buffer> {
    queue.scratch(elementwise::bytes(len, output.dtype()))
}

/// Results in the type that was asked for.
pub(crate) fn converted<Q: Queue>(
    queue: &Q,
    y: Q::Buffer,
    output: Output,
    len: usize,
    dtype: DType,
) -> Result<Q::Buffer> {
    if dtype == DType::F32 || output != Output::F32 {
        return Ok(y);
    }
    static KERNELS: Memo<DType> = Memo::new();
    let kernel = KERNELS.get(dtype, |dtype| {
        Builder::new("convert")
            .types()
            .bind("x", Access::Read, "array<f32>")
            .activations("X", *dtype)
            .bind("y", Access::ReadWrite, "array<X2>")
            .build(&["pairs"], "convert", GROUP, CONVERT)
    });
    let out = queue.scratch(elementwise::bytes(len, dtype))?;
    let pairs = count("convert", len.div_ceil(2))?;
    let groups = cover(pairs.into(), GROUP, queue.limits());
    queue.dispatch(&kernel, &[&y, &out], &[pairs], groups)?;
    Ok(out)
}
