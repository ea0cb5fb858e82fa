//! Mixtures of experts: rows that each go through a few of many weights, which lie in one.

use lowbit::device::Routing;
use lowbit::{DType, Result};

use crate::choose::{self, Product};
use crate::elementwise::{self, flat};
use crate::kernel::{Access, Builder};
use crate::memo::Memo;
use crate::product::{Around, Output, Spec, TILE, converted, output, scratch};
use crate::queue::{Queue, count, cover};
use crate::weight::GpuWeight;

const ROUTE: &str = include_str!("kernels/route.wgsl");
const ORDER: &str = include_str!("kernels/experts_order.wgsl");
const MIX: &str = include_str!("kernels/experts_mix.wgsl");

/// Threads of a group of the kernels here.
const GROUP: u32 = 256;

/// Which experts rows chose.
#[derive(Debug)]
pub struct Chosen<'a, B> {
    /// The expert of each place, in f32.
    pub ids: &'a B,
    /// How many places: some for each row.
    pub places: usize,
    /// How many of them read a row of x.
    pub readers: usize,
    /// How many experts there are.
    pub experts: usize,
}

/// Whether [`route`] can choose among so many experts.
pub fn can_route<Q: Queue>(queue: &Q, experts: usize, top: usize) -> bool {
    4 * (2 * experts + top) <= queue.limits().workgroup_memory as usize
}

/// The experts with the largest of `logits: [rows, experts]`, and their shares: `[rows, top]` in f32
/// each. `top` is not 0.
///
/// # Errors
/// As [`Queue::dispatch`].
pub fn route<Q: Queue>(
    queue: &Q,
    dtype: DType,
    logits: &Q::Buffer,
    [rows, experts]: [usize; 2],
    routing: Routing,
) -> Result<[Q::Buffer; 2]> {
    const OP: &str = "route";
    let bytes = 4 * (rows * routing.top) as u64;
    let out = [queue.scratch(bytes)?, queue.scratch(bytes)?];
    if rows == 0 {
        return Ok(out);
    }
    static KERNELS: Memo<(DType, u32, u32, bool)> = Memo::new();
    let key = (dtype, count(OP, experts)?, count(OP, routing.top)?, routing.normalize);
    let kernel = KERNELS.get(key, |(dtype, experts, top, normalize)| {
        Builder::new(OP)
            .types()
            .activations("X", *dtype)
            .tag(format!("{experts}x{top}{}", if *normalize { ".sum" } else { "" }))
            .bind("x", Access::Read, "array<X2>")
            .bind("ids", Access::ReadWrite, "array<f32>")
            .bind("shares", Access::ReadWrite, "array<f32>")
            .at("x")
            .constant("EXPERTS", *experts)
            .constant("TOP", *top)
            .flag("NORMALIZE", *normalize)
            .build(&["rows"], OP, GROUP, ROUTE)
    });
    count(OP, rows * experts)?;
    let groups = cover(rows as u64, 1, queue.limits());
    queue.dispatch(&kernel, &[logits, &out[0], &out[1]], &[count(OP, rows)?], groups)?;
    Ok(out)
}

/// `x wᵀ` for the rows of `w: [experts * N, K]` that belong to each place's expert: `[places, N]`; with
/// `gated`, `silu` of the first half of the columns times the second, where there is a kernel for it.
///
/// # Errors
/// As [`Queue::dispatch`].
pub fn linear<Q: Queue>(
    queue: &Q,
    x: &Q::Buffer,
    w: &GpuWeight<Q::Buffer>,
    chosen: &Chosen<'_, Q::Buffer>,
    dtype: DType,
) -> Result<Q::Buffer> {
    let (n, k) = w.rows_cols();
    let each = n / chosen.experts.max(1);
    let output = output(dtype, 2, each);
    let len = chosen.places * each;
    if len == 0 || k == 0 {
        return queue.zeros(elementwise::bytes(len, dtype));
    }
    let product = choose::experts([chosen.places, each, k], chosen.experts, w.kind(), dtype, queue);
    let y = scratch(queue, output, len)?;
    let spec = spec(w, chosen, each, dtype, output, product)?;
    match product {
        Product::Gemm => by_expert(queue, x, w, chosen, spec, &y)?,
        _ => by_place(queue, x, w, chosen, spec, &y)?,
    }
    converted(queue, y, output, len, dtype)
}

/// [`linear`] where the upper half of each expert's rows is gated by the lower: `silu(gate) * up`,
/// `[places, N / 2]`. `None` where there is no kernel for it.
///
/// # Errors
/// As [`Queue::dispatch`].
pub fn gated<Q: Queue>(
    queue: &Q,
    x: &Q::Buffer,
    w: &GpuWeight<Q::Buffer>,
    chosen: &Chosen<'_, Q::Buffer>,
    dtype: DType,
) -> Result<Option<Q::Buffer>> {
    let (n, k) = w.rows_cols();
    let each = n / chosen.experts.max(1);
    let shape = [chosen.places, each, k];
    if each % 4 != 0
        || w.parts().len() > 1
        || chosen.places == 0
        || choose::experts(shape, chosen.experts, w.kind(), dtype, queue) == Product::Gemm
    {
        return Ok(None);
    }
    let Some(product) = choose::gated([each, k], w.kind(), dtype, queue) else {
        return Ok(None);
    };
    let output = output(dtype, 2, each / 2);
    let y = scratch(queue, output, chosen.places * each / 2)?;
    let spec = Spec { gated: true, ..spec(w, chosen, each, dtype, output, product)? };
    by_place(queue, x, w, chosen, spec, &y)?;
    Ok(Some(y))
}

fn spec<B: Clone>(
    w: &GpuWeight<B>,
    chosen: &Chosen<'_, B>,
    each: usize,
    dtype: DType,
    output: Output,
    product: Product,
) -> Result<Spec> {
    const OP: &str = "linear_experts";
    count(OP, chosen.places * each)?;
    let experts = Some([count(OP, each)?, count(OP, chosen.readers)?]);
    Ok(Spec { experts, ..Spec::new(w, dtype, output, product, &Around::default()) })
}

/// Every place by itself: what few rows chose is read for each.
fn by_place<Q: Queue>(
    queue: &Q,
    x: &Q::Buffer,
    w: &GpuWeight<Q::Buffer>,
    chosen: &Chosen<'_, Q::Buffer>,
    spec: Spec,
    y: &Q::Buffer,
) -> Result<()> {
    let each = w.rows_cols().0 / chosen.experts;
    let kernel = spec.kernel();
    let groups = spec.product.groups(each as u32, &kernel, queue.limits());
    let places = count("linear_experts", chosen.places)?;
    run(queue, w, &kernel, &[x, y, chosen.ids], [groups, places, 1])
}

/// The places of each expert together, in tiles.
fn by_expert<Q: Queue>(
    queue: &Q,
    x: &Q::Buffer,
    w: &GpuWeight<Q::Buffer>,
    chosen: &Chosen<'_, Q::Buffer>,
    spec: Spec,
    y: &Q::Buffer,
) -> Result<()> {
    let each = w.rows_cols().0 / chosen.experts;
    let ([order, tiles], most) = order(queue, chosen)?;
    let groups = [(each as u32).div_ceil(TILE), most, 1];
    run(queue, w, &spec.kernel(), &[x, y, &order, &tiles], groups)
}

/// Runs a kernel over all parts of a weight.
fn run<Q: Queue>(
    queue: &Q,
    w: &GpuWeight<Q::Buffer>,
    kernel: &crate::Kernel,
    others: &[&Q::Buffer],
    groups: [u32; 3],
) -> Result<()> {
    let (_, k) = w.rows_cols();
    for part in w.parts() {
        let params = part.params([0, k as u32, 0, 0, part.rows.start as u32]);
        let buffers: Vec<&Q::Buffer> = part.buffers().chain(others.iter().copied()).collect();
        queue.dispatch(kernel, &buffers, &params, groups)?;
    }
    Ok(())
}

/// Places in the order of their experts, the expert of each tile of them, and how many tiles.
fn order<Q: Queue>(queue: &Q, chosen: &Chosen<'_, Q::Buffer>) -> Result<([Q::Buffer; 2], u32)> {
    const OP: &str = "experts_order";
    static KERNELS: Memo<u32> = Memo::new();
    let kernel = KERNELS.get(count(OP, chosen.experts)?, |experts| {
        Builder::new(OP)
            .tag(experts)
            .bind("ids", Access::Read, "array<f32>")
            .bind("order", Access::ReadWrite, "array<u32>")
            .bind("tiles", Access::ReadWrite, "array<u32>")
            .constant("ENDS", experts + 1)
            .constant("TILE", TILE)
            .build(&["places", "tiles"], OP, GROUP, ORDER)
    });
    let places = count(OP, chosen.places)?;
    // Each expert's last tile may have room left.
    let most = places / TILE + places.min(chosen.experts as u32);
    let out = [queue.scratch(u64::from(4 * TILE * most))?, queue.scratch(u64::from(4 * most))?];
    let buffers = [chosen.ids, &out[0], &out[1]];
    queue.dispatch(&kernel, &buffers, &[places, most], [1, 1, 1])?;
    Ok((out, most))
}

/// `to` and the shares of its `top` rows of `y` for each row: `y: [rows * top, cols]`, `to: [rows, cols]`.
///
/// # Errors
/// As [`Queue::dispatch`].
pub fn mix<Q: Queue>(
    queue: &Q,
    dtype: DType,
    y: &Q::Buffer,
    shares: &Q::Buffer,
    top: usize,
    to: &Q::Buffer,
    [rows, cols]: [usize; 2],
) -> Result<Q::Buffer> {
    const OP: &str = "experts_mix";
    static KERNELS: Memo<(DType, u32)> = Memo::new();
    let kernel = KERNELS.get((dtype, count(OP, top)?), |(dtype, top)| {
        Builder::new(OP)
            .types()
            .activations("X", *dtype)
            .tag(top)
            .bind("x", Access::Read, "array<X2>")
            .bind("shares", Access::Read, "array<f32>")
            .bind("added_to", Access::Read, "array<X2>")
            .bind("y", Access::ReadWrite, "array<X2>")
            .at("x")
            .constant("TOP", *top)
            .build(&["pairs", "rows", "cols"], OP, elementwise::GROUP, MIX)
    });
    count(OP, rows * top * cols)?;
    let params = [count(OP, rows)?, count(OP, cols)?];
    flat(queue, &kernel, dtype, &[y, shares, to], &params, rows * cols)
}
