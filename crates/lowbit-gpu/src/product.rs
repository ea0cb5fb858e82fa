//! Products with a weight: `y = x wᵀ + bias` and `dx = dy w`, and all weights as numbers.

use lowbit::{DType, Result};

use crate::elementwise;
use crate::choose::{self, Product};
use crate::kernel::{Access, Builder, Kernel};
use crate::memo::Memo;
use crate::queue::{Queue, count, cover};
use crate::weight::{GpuWeight, Kind, PARAMS};

const GEMV_PAIRS: &str = include_str!("kernels/gemv_pairs.wgsl");
const GEMV: &str = include_str!("kernels/gemv.wgsl");
const GEMM: &str = include_str!("kernels/gemm.wgsl");
const DEQUANTIZE: &str = include_str!("kernels/dequantize.wgsl");
const CONVERT: &str = include_str!("kernels/convert.wgsl");

/// Threads of a group of every kernel here but gemv.
const GROUP: u32 = 256;
/// Side of a tile of results in `gemm.wgsl`.
const TILE: u32 = 64;

/// How results are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Output {
    /// Rows of any length.
    F32,
    /// Two by two, in that type.
    Pairs(DType),
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
    let (n, k) = w.rows_cols();
    if m == 0 || n == 0 || k == 0 {
        return queue.zeros((m * n * dtype.size()) as u64);
    }
    let output = output(dtype, m, n);
    let y = scratch(queue, output, m * n)?;
    let product = choose::product(m, n, k, w.kind(), queue.limits());
    let spec = Spec { kind: *w.kind(), dtype, output, bias: bias.is_some(), product };
    let kernel = KERNELS.get(spec, Spec::kernel);
    for part in w.parts() {
        let rows = part.rows.len() as u32;
        let (_, widest) = queue.limits().subgroup;
        let groups = match product {
            Product::Gemv { rows: each, .. } | Product::GemvPairs { rows: each, .. } => {
                let per_group = each * (kernel.workgroup[0] / widest).max(1);
                let most = product.most_groups().min(queue.limits().groups);
                [rows.div_ceil(per_group).min(most), 1, 1]
            }
            Product::Gemm | Product::Transposed => [rows.div_ceil(TILE), count("linear", m)?.div_ceil(TILE), 1],
        };
        let params = part.params([m as u32, k as u32, 0, n as u32, part.rows.start as u32]);
        let buffers: Vec<&Q::Buffer> = part.buffers().chain([x]).chain(bias).chain([&y]).collect();
        queue.dispatch(&kernel, &buffers, &params, groups)?;
    }
    converted(queue, y, output, m * n, dtype)
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
    let spec = Spec { kind: *w.kind(), dtype, output, bias: false, product: Product::Transposed };
    let kernel = KERNELS.get(spec, Spec::kernel);
    let groups = [count("linear_transposed", k)?.div_ceil(TILE), (m as u32).div_ceil(TILE), 1];
    let mut sums = dx.clone();
    for (i, part) in parts.iter().enumerate() {
        let params = part.params([m as u32, n as u32, part.rows.start as u32, k as u32, 0]);
        let target = if i == 0 { dx.clone() } else { scratch(queue, output, m * k)? };
        let buffers: Vec<&Q::Buffer> = part.buffers().chain([dy, &target]).collect();
        queue.dispatch(&kernel, &buffers, &params, groups)?;
        if i > 0 {
            let of = match output {
                Output::F32 => DType::F32,
                Output::Pairs(dtype) => dtype,
            };
            sums = elementwise::add(queue, of, &sums, &target, m * k)?;
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
        store(Builder::new("dequantize").types().weight(kind, false), *output)
            .build(PARAMS, "dequantize", GROUP, DEQUANTIZE)
    });
    for part in w.parts() {
        let weights = part.rows.len() * k;
        count("dequantize", weights)?;
        let first = count("dequantize", part.rows.start * k)?;
        let params = part.params([0, 0, 0, 0, first]);
        let groups = cover(weights.div_ceil(2) as u64, GROUP, queue.limits());
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
    bias: bool,
    product: Product,
}

static KERNELS: Memo<Spec> = Memo::new();

impl Spec {
    fn kernel(&self) -> Kernel {
        let Spec { kind, dtype, output, bias, product } = *self;
        let (name, body, group) = match product {
            Product::Gemv { .. } => ("gemv", GEMV, 128),
            Product::GemvPairs { group, .. } => ("gemv_pairs", GEMV_PAIRS, group),
            Product::Gemm => ("gemm", GEMM, GROUP),
            Product::Transposed => ("gemm_transposed", GEMM, GROUP),
        };
        let vectors = matches!(product, Product::Gemv { .. } | Product::GemvPairs { .. });
        let x = if vectors { "array<X4>" } else { "array<X2>" };
        let builder = Builder::new(name).types().weight(&kind, vectors).activations("X", dtype);
        let mut builder = store(with_bias(builder.bind("x", Access::Read, x), bias), output);
        builder = match product {
            Product::Gemv { rows, batch } => builder
                .tag(format!("{rows}x{batch}"))
                .constant("ROWS", rows)
                .constant("BATCH", batch)
                .subgroups(),
            Product::GemvPairs { rows, batch, replicas, .. } => builder
                .tag(format!("{rows}x{batch}x{group}x{replicas}"))
                .constant("ROWS", rows)
                .constant("BATCH", batch)
                .constant("REPLICAS", replicas)
                .constant("PAIRS", 256 * replicas)
                .subgroups(),
            Product::Gemm => builder.flag("TRANSPOSED", false),
            Product::Transposed => builder.flag("TRANSPOSED", true),
        };
        let entry = if vectors { name } else { "gemm" };
        builder.build(PARAMS, entry, group, body)
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

/// Binds `y` and declares `y_store`, which writes number `i` and, where `second` says so, the next.
fn store(builder: Builder, output: Output) -> Builder {
    match output {
        Output::F32 => builder.tag("to_f32").bind("y", Access::ReadWrite, "array<f32>").text(
            "fn y_store(i: u32, v: vec2<f32>, second: bool) {\n    \
             y[i] = v.x;\n    if (second) {\n        y[i + 1u] = v.y;\n    }\n}",
        ),
        Output::Pairs(dtype) => builder
            .tag("to")
            .activations("Y", dtype)
            .bind("y", Access::ReadWrite, "array<Y2>")
            .text("fn y_store(i: u32, v: vec2<f32>, second: bool) { y[i >> 1u] = y_pack(v); }"),
    }
}

/// How `m` rows of `n` results of a type are written: 16-bit rows of odd length would share words.
fn output(dtype: DType, m: usize, n: usize) -> Output {
    match dtype {
        DType::F16 | DType::BF16 if m <= 1 || n % 2 == 0 => Output::Pairs(dtype),
        _ => Output::F32,
    }
}

fn scratch<Q: Queue>(queue: &Q, output: Output, len: usize) -> Result<Q::Buffer> {
    let size = match output {
        Output::F32 => 4,
        Output::Pairs(dtype) => dtype.size(),
    };
    // Kernels write whole pairs.
    queue.scratch((len.next_multiple_of(2) * size) as u64)
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
    let out = queue.scratch((len.next_multiple_of(2) * dtype.size()) as u64)?;
    let pairs = count("convert", len.div_ceil(2))?;
    let groups = cover(pairs.into(), GROUP, queue.limits());
    queue.dispatch(&kernel, &[&y, &out], &[pairs], groups)?;
    Ok(out)
}
