//! Products with a weight: `y = x wᵀ + bias` and `dx = dy w`, and all weights as numbers.

use lowbit::{DType, Result};

use crate::choose::{self, Product};
use crate::elementwise;
use crate::kernel::{Access, Builder, Kernel};
use crate::matrix::{self, Schedule, Tiles};
use crate::memo::Memo;
use crate::queue::{Queue, count, cover};
use crate::rms_norm::rms_norm;
use crate::unroll::unroll;
use crate::weight::{GpuWeight, Kind, PARAMS};

const GEMV_PAIRS: &str = include_str!("kernels/gemv_pairs.wgsl");
const GEMV_SPANS: &str = include_str!("kernels/gemv_spans.wgsl");
const GEMV: &str = include_str!("kernels/gemv.wgsl");
const GEMV_PUT: &str = include_str!("kernels/gemv_put.wgsl");
const GEMV_NORM: &str = include_str!("kernels/gemv_norm.wgsl");
const GEMM: &str = include_str!("kernels/gemm.wgsl");
const DEQUANTIZE: &str = include_str!("kernels/dequantize.wgsl");
const CONVERT: &str = include_str!("kernels/convert.wgsl");

/// Threads of a group of every kernel here but gemv.
const GROUP: u32 = 256;
/// Side of a tile of results in `gemm.wgsl`.
const TILE: u32 = 64;

/// Four activations, or eight, as `gemv_norm.wgsl` norms them.
const UNIT_4: &str = "\
fn unit_square(v: X4) -> f32 {
    let x = x_unpack4(v);
    return dot(x, x);
}
fn unit_scaled(v: X4, i: u32, factor: f32) -> X4 {
    let x = x_unpack4(v) * (factor * factors[i]);
    return X4(x_pack(x.xy), x_pack(x.zw));
}";
const UNIT_8: &str = "\
fn unit_square(v: X8) -> f32 {
    let low = x_low(v);
    let high = x_high(v);
    return dot(low, low) + dot(high, high);
}
fn unit_scaled(v: X8, i: u32, factor: f32) -> X8 {
    return x_eight(x_low(v) * (factor * factors[2u * i]), x_high(v) * (factor * factors[2u * i + 1u]));
}";

/// How results are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Output {
    /// Rows of any length.
    F32,
    /// Two by two, in that type.
    Pairs(DType),
}

impl Output {
    fn dtype(self) -> DType {
        match self {
            Output::F32 => DType::F32,
            Output::Pairs(dtype) => dtype,
        }
    }
}

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
    let kernel = KERNELS.get(spec, Spec::kernel);
    let factors = around.norm.map(|(factors, _)| factors);
    let inputs = [x].into_iter().chain(factors).chain(around.bias).chain(around.to);
    for part in w.parts() {
        let rows = part.rows.len() as u32;
        let (_, widest) = queue.limits().subgroup;
        let groups = match product {
            Product::Gemv { rows: each, .. }
            | Product::GemvSpans { rows: each, .. }
            | Product::GemvPairs { rows: each, .. } => {
                let per_group = each * (kernel.workgroup[0] / widest).max(1);
                [rows.div_ceil(per_group).min(queue.limits().groups), 1, 1]
            }
            _ => [rows.div_ceil(TILE), count("linear", m)?.div_ceil(TILE), 1],
        };
        let buffers: Vec<&Q::Buffer> = part.buffers().chain(inputs.clone()).chain([y]).collect();
        // As many rows of activations at a time as a subgroup keeps sums for.
        for first in (0..m).step_by(product.batch().unwrap_or(m)) {
            let start = part.rows.start as u32;
            let params = part.params([m as u32, k as u32, first as u32, n as u32, start]);
            queue.dispatch(&kernel, &buffers, &params, groups)?;
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
    let [x, ups] = matrix::halves(queue, x, m, tiles.m, k, spec.dtype)?;
    let kernel = KERNELS.get(spec, Spec::kernel);
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
            let merge = MERGES.get(spec, Spec::merge);
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
    let kernel = KERNELS.get(spec, Spec::kernel);
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
    static KERNELS: Memo<(Kind, Output)> = Memo::new();
    let kernel = KERNELS.get((*w.kind(), output), |(kind, output)| {
        store(Builder::new("dequantize").types().weight(kind, false), *output, false).build(
            PARAMS,
            "dequantize",
            GROUP,
            DEQUANTIZE,
        )
    });
    for part in w.parts() {
        let weights = part.rows.len() * k;
        count("dequantize", weights)?;
        let first = count("dequantize", part.rows.start * k)?;
        let params = part.params([0, 0, 0, 0, first]);
        let each = if w.kind().words() { 4 } else { 2 };
        let groups = cover(weights.div_ceil(each) as u64, GROUP, queue.limits());
        let buffers: Vec<&Q::Buffer> = part.buffers().chain([&y]).collect();
        queue.dispatch(&kernel, &buffers, &params, groups)?;
    }
    Ok(y)
}

/// What the text of a product depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Spec {
    kind: Kind,
    dtype: DType,
    output: Output,
    product: Product,
    bias: bool,
    /// Whether something is added in the end.
    to: bool,
    /// Whether the result is `silu` of the first half of its columns times the second: `[1, N / 2]`.
    gated: bool,
    /// Bits of eps, and K, where x is normed.
    norm: Option<(u32, u32)>,
}

static KERNELS: Memo<Spec> = Memo::new();
static MERGES: Memo<Spec> = Memo::new();

impl Spec {
    fn new<B: Clone>(
        w: &GpuWeight<B>,
        dtype: DType,
        output: Output,
        product: Product,
        around: &Around<'_, B>,
    ) -> Self {
        let (_, k) = w.rows_cols();
        Spec {
            kind: *w.kind(),
            dtype,
            output,
            product,
            bias: around.bias.is_some(),
            to: around.to.is_some(),
            gated: false,
            norm: around.norm.map(|(_, eps)| (eps.to_bits(), k as u32)),
        }
    }

    fn kernel(&self) -> Kernel {
        let Spec { kind, dtype, product, .. } = *self;
        let builder = |name| Builder::new(name).types();
        let read = |builder: Builder, ty| builder.bind("x", Access::Read, ty);
        match product {
            Product::Gemv { rows, batch } => {
                let builder = builder("gemv").weight(&kind, true).activations("X", dtype);
                let builder =
                    read(builder, "array<X4>").constant("CHUNK_BITS", kind.bits().min(4) * 32);
                self.gemv(builder, [rows, batch, 128], 4, GEMV)
            }
            Product::GemvSpans { rows, batch } => {
                let builder = builder("gemv_spans").weight(&kind, false).activations("X", dtype);
                let [bytes, weights] = kind.span.unwrap_or([1, 4]);
                let builder = read(builder, "array<X4>")
                    .constant("SPAN", weights)
                    .constant("PER_BYTE", weights / bytes);
                self.gemv(builder, [rows, batch, 128], 4, GEMV_SPANS)
            }
            Product::GemvPairs { rows, batch, group, replicas } => {
                let builder = builder("gemv_pairs").weight(&kind, false).activations("X", dtype);
                let builder = read(builder, "array<X8>")
                    .tag(replicas)
                    .constant("REPLICAS", replicas)
                    .constant("PAIRS", 256 * replicas);
                self.gemv(builder, [rows, batch, group], 8, GEMV_PAIRS)
            }
            Product::Matrix { tiles, .. } => {
                let inputs = builder("gemm_matrix").weight(&kind, false).activations("X", dtype);
                tiles.kernel(inputs, |builder| self.output(builder))
            }
            Product::Gemm | Product::Transposed => {
                let transposed = product == Product::Transposed;
                let name = if transposed { "gemm_transposed" } else { "gemm" };
                let builder = builder(name).weight(&kind, false).activations("X", dtype);
                self.output(read(builder, "array<X2>"))
                    .flag("TRANSPOSED", transposed)
                    .build(PARAMS, "gemm", GROUP, GEMM)
            }
        }
    }

    /// What adds the pieces in which a product on matrix hardware left tiles.
    fn merge(&self) -> Kernel {
        let Product::Matrix { tiles, .. } = self.product else { return self.kernel() };
        let builder = Builder::new("gemm_merge").types().activations("X", self.dtype);
        tiles.merge(builder, |builder| self.output(builder))
    }

    /// A kernel of subgroups that each take `rows` rows of weights and `batch` of activations, of which
    /// it loads `unit` numbers at a time.
    fn gemv(
        &self,
        builder: Builder,
        [rows, batch, group]: [u32; 3],
        unit: u32,
        body: &str,
    ) -> Kernel {
        let builder = match self.norm {
            None => builder.text(&format!(
                "fn x_load(i: u32) -> X{unit} {{ return x[i]; }}\n\
                 fn prepare(thread: u32, lane: u32, subgroup: u32, subgroups: u32) {{}}"
            )),
            Some((eps, k)) => builder
                .tag(format!("norm{k}_{eps:x}"))
                .bind("factors", Access::Read, "array<vec4<f32>>")
                .constant("K", k)
                .constant("UNITS", k / unit)
                .text(&format!("const EPS = {:?}f;\nalias XUNIT = X{unit};", f32::from_bits(eps)))
                .text(if unit == 4 { UNIT_4 } else { UNIT_8 })
                .text(GEMV_NORM),
        };
        // Of four rows, two are the upper ones; of a gated product they belong together.
        let plain = |there: bool| if there && !self.gated { batch } else { 0 };
        let counts = [
            ("ROWS", rows),
            ("BATCH", batch),
            ("LOWER", plain(true)),
            ("UPPER", plain(rows == 4)),
            ("GATED", u32::from(self.gated)),
        ];
        let builder = if self.gated { builder.tag("gated") } else { builder };
        let entry = match self.product {
            Product::GemvPairs { .. } => "gemv_pairs",
            Product::GemvSpans { .. } => "gemv_spans",
            _ => "gemv",
        };
        self.output(builder)
            .tag(format!("{rows}x{batch}x{group}"))
            .constant("ROWS", rows)
            .constant("BATCH", batch)
            .flag("IS_GATED", self.gated)
            .text(GEMV_PUT)
            .subgroups()
            .build(PARAMS, entry, group, &unroll(body, &counts))
    }

    /// What is added, and where results go.
    fn output(&self, builder: Builder) -> Builder {
        store(with_bias(builder, self.bias), self.output, self.to)
    }
}

/// `with_bias`.
fn with_bias(builder: Builder, bias: bool) -> Builder {
    if !bias {
        let same = "fn with_bias(v: vec2<f32>, n: u32) -> vec2<f32> { return v; }";
        return builder.text(same);
    }
    builder.tag("bias").bind("bias", Access::Read, "array<X2>").text(
        "fn with_bias(v: vec2<f32>, n: u32) -> vec2<f32> {\n    \
         return v + x_unpack(bias[(p.first_y + n) >> 1u]);\n}",
    )
}

/// Binds `y` and declares `y_store`, which writes number `i` and, where `second` says so, the next; with
/// `to`, added to what is bound there.
fn store(builder: Builder, output: Output, to: bool) -> Builder {
    let (builder, ty) = match output {
        Output::F32 => (builder.tag("to_f32"), "array<f32>"),
        Output::Pairs(dtype) => (builder.tag("to").activations("Y", dtype), "array<Y2>"),
    };
    let builder = match to {
        true => builder.tag("add").bind("added_to", Access::Read, ty),
        false => builder,
    };
    let pair = match to {
        true => "y_pack(y_unpack(y_pack(v)) + y_unpack(added_to[i >> 1u]))",
        false => "y_pack(v)",
    };
    let [first, second] = match to {
        true => ["v.x + added_to[i]", "v.y + added_to[i + 1u]"],
        false => ["v.x", "v.y"],
    };
    let head = "fn y_store(i: u32, v: vec2<f32>, second: bool)";
    builder.bind("y", Access::ReadWrite, ty).text(&match output {
        Output::F32 => format!(
            "{head} {{\n    y[i] = {first};\n    if (second) {{\n        y[i + 1u] = {second};\n    }}\n}}"
        ),
        Output::Pairs(_) => format!("{head} {{ y[i >> 1u] = {pair}; }}"),
    })
}

/// How `m` rows of `n` results of a type are written: 16-bit rows of odd length would share words.
fn output(dtype: DType, m: usize, n: usize) -> Output {
    match dtype {
        DType::F16 | DType::BF16 if m <= 1 || n % 2 == 0 => Output::Pairs(dtype),
        _ => Output::F32,
    }
}

fn scratch<Q: Queue>(queue: &Q, output: Output, len: usize) -> Result<Q::Buffer> {
    queue.scratch(elementwise::bytes(len, output.dtype()))
}

/// Results in the type that was asked for.
fn converted<Q: Queue>(
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
