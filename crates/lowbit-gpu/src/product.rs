//! Products with a weight: `y = x wᵀ + bias` and `dx = dy w`, and all weights as numbers.

use lowbit::{DType, Result};

use crate::kernel::{Access, Builder, Kernel};
use crate::queue::{Queue, count, cover};
use crate::weight::{GpuWeight, Kind, PARAMS};

const GEMV: &str = include_str!("kernels/gemv.wgsl");
const GEMM: &str = include_str!("kernels/gemm.wgsl");
const DEQUANTIZE: &str = include_str!("kernels/dequantize.wgsl");
const CONVERT: &str = include_str!("kernels/convert.wgsl");

/// Threads of a group of every kernel here but gemv.
const GROUP: u32 = 256;
/// Side of a tile of results in `gemm.wgsl`.
const TILE: u32 = 64;

/// Rows of w that a subgroup takes in `gemv.wgsl`.
const GEMV_ROWS: u32 = 2;

/// The kernels that a product can take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Product {
    /// A subgroup for a few rows of weights, at most so many rows of activations.
    Gemv(u32),
    /// Tiles.
    Gemm,
}

/// Which kernel up to how many rows of activations, for weights in vectors: the one place that
/// weighs the kernels against each other.
const CHOICES: [(usize, Product); 5] = [
    (1, Product::Gemv(1)),
    (2, Product::Gemv(2)),
    (4, Product::Gemv(4)),
    (8, Product::Gemv(8)),
    (16, Product::Gemv(16)),
];

/// How results are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
    let choice = CHOICES.iter().find(|(rows, _)| m <= *rows && w.kind().vectors);
    let subgroups = queue.limits().subgroups;
    let product = choice.filter(|_| subgroups).map_or(Product::Gemm, |(_, product)| *product);
    let kernel = match product {
        Product::Gemv(batch) => gemv_kernel(w.kind(), dtype, output, bias.is_some(), batch),
        Product::Gemm => gemm_kernel(w.kind(), dtype, output, bias.is_some(), false),
    };
    for part in w.parts() {
        let rows = part.rows.len() as u32;
        let groups = match product {
            Product::Gemv(_) => {
                let (_, widest) = queue.limits().subgroup;
                let per_group = GEMV_ROWS * (kernel.workgroup[0] / widest).max(1);
                [rows.div_ceil(per_group).min(queue.limits().groups), 1, 1]
            }
            Product::Gemm => [rows.div_ceil(TILE), count("linear", m)?.div_ceil(TILE), 1],
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
    let kernel = gemm_kernel(w.kind(), dtype, output, false, true);
    let groups = [count("linear_transposed", k)?.div_ceil(TILE), (m as u32).div_ceil(TILE), 1];
    let mut sums = dx.clone();
    for (i, part) in parts.iter().enumerate() {
        let params = part.params([m as u32, n as u32, part.rows.start as u32, k as u32, 0]);
        let target = if i == 0 { dx.clone() } else { scratch(queue, output, m * k)? };
        let buffers: Vec<&Q::Buffer> = part.buffers().chain([dy, &target]).collect();
        queue.dispatch(&kernel, &buffers, &params, groups)?;
        if i > 0 {
            sums = add(queue, &sums, &target, output, m * k)?;
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
    let kernel = store(Builder::new("dequantize").types().weight(w.kind(), false), output)
        .build(PARAMS, "dequantize", GROUP, DEQUANTIZE);
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

fn gemv_kernel(kind: &Kind, dtype: DType, output: Output, bias: bool, batch: u32) -> Kernel {
    let rows = GEMV_ROWS;
    let builder = Builder::new("gemv").types().weight(kind, true).activations("X", dtype);
    let builder = builder.bind("x", Access::Read, "array<X4>");
    store(with_bias(builder, bias), output)
        .tag(format!("{rows}x{batch}"))
        .constant("ROWS", rows)
        .constant("BATCH", batch)
        .subgroups()
        .build(PARAMS, "gemv", 128, GEMV)
}

fn gemm_kernel(kind: &Kind, dtype: DType, output: Output, bias: bool, transposed: bool) -> Kernel {
    let name = if transposed { "gemm_transposed" } else { "gemm" };
    let builder = Builder::new(name).types().weight(kind, false).activations("X", dtype);
    let builder = builder.bind("x", Access::Read, "array<X2>");
    store(with_bias(builder, bias), output)
        .flag("TRANSPOSED", transposed)
        .build(PARAMS, "gemm", GROUP, GEMM)
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
    let kernel = Builder::new("convert")
        .types()
        .bind("x", Access::Read, "array<f32>")
        .activations("X", dtype)
        .bind("y", Access::ReadWrite, "array<X2>")
        .build(&["pairs"], "convert", GROUP, CONVERT);
    let out = queue.scratch((len.next_multiple_of(2) * dtype.size()) as u64)?;
    let pairs = count("convert", len.div_ceil(2))?;
    let groups = cover(pairs.into(), GROUP, queue.limits());
    queue.dispatch(&kernel, &[&y, &out], &[pairs], groups)?;
    Ok(out)
}

/// `a + b` of partial sums.
fn add<Q: Queue>(
    queue: &Q,
    a: &Q::Buffer,
    b: &Q::Buffer,
    output: Output,
    len: usize,
) -> Result<Q::Buffer> {
    let dtype = match output {
        Output::F32 => DType::F32,
        Output::Pairs(dtype) => dtype,
    };
    let kernel = Builder::new("add_parts")
        .types()
        .activations("X", dtype)
        .bind("a", Access::Read, "array<X2>")
        .bind("b", Access::Read, "array<X2>")
        .bind("y", Access::ReadWrite, "array<X2>")
        .build(&["pairs"], "add", GROUP, include_str!("kernels/add_parts.wgsl"));
    let y = scratch(queue, output, len)?;
    let pairs = count("add", len.div_ceil(2))?;
    let groups = cover(pairs.into(), GROUP, queue.limits());
    queue.dispatch(&kernel, &[a, b, &y], &[pairs], groups)?;
    Ok(y)
}
