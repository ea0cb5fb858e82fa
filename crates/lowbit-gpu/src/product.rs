//! Products with a weight: `y = x wᵀ + bias` and `dx = dy w`, and all weights as numbers.

use lowbit::{DType, Result};

use crate::choose::{self, Product};
use crate::elementwise;
use crate::kernel::{Access, Builder, Kernel, Needs};
use crate::memo::Memo;
use crate::queue::{Queue, count, cover};
use crate::unroll::unroll;
use crate::weight::{GpuWeight, Kind, PARAMS};

const GEMV_PAIRS: &str = include_str!("kernels/gemv_pairs.wgsl");
const MATRIX: &str = include_str!("kernels/gemm_matrix.wgsl");
const HALVES: &str = include_str!("kernels/halves.wgsl");
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
    let product = choose::product([m, n, k], w.kind(), dtype, queue.limits());
    let spec = Spec { kind: *w.kind(), dtype, output, bias: bias.is_some(), product };
    let kernel = KERNELS.get(spec, Spec::kernel);
    // Matrix hardware wants half floats.
    let halves = match product {
        Product::Matrix { m: tile, .. } => Some(halves(queue, x, m, tile, k, dtype)?),
        _ => None,
    };
    let inputs: Vec<&Q::Buffer> = match &halves {
        Some([x, ups]) => vec![x, ups],
        None => vec![x],
    };
    for part in w.parts() {
        let rows = part.rows.len() as u32;
        let (_, widest) = queue.limits().subgroup;
        let groups = match product {
            Product::Gemv { rows: each, .. } | Product::GemvPairs { rows: each, .. } => {
                let per_group = each * (kernel.workgroup[0] / widest).max(1);
                [rows.div_ceil(per_group).min(queue.limits().groups), 1, 1]
            }
            Product::Matrix { m: tile_m, n: tile_n, .. } => {
                [rows.div_ceil(tile_n), count("linear", m)?.div_ceil(tile_m), 1]
            }
            Product::Gemm | Product::Transposed => {
                [rows.div_ceil(TILE), count("linear", m)?.div_ceil(TILE), 1]
            }
        };
        let x = inputs.iter().copied();
        let buffers: Vec<&Q::Buffer> = part.buffers().chain(x).chain(bias).chain([&y]).collect();
        // As many rows of activations at a time as a subgroup keeps sums for.
        for first in (0..m).step_by(product.batch().unwrap_or(m)) {
            let start = part.rows.start as u32;
            let params = part.params([m as u32, k as u32, first as u32, n as u32, start]);
            queue.dispatch(&kernel, &buffers, &params, groups)?;
        }
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
        store(Builder::new("dequantize").types().weight(kind, false), *output).build(
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
            Product::Matrix { .. } => return self.matrix_kernel(),
            Product::Gemm => ("gemm", GEMM, GROUP),
            Product::Transposed => ("gemm_transposed", GEMM, GROUP),
        };
        let vectors = matches!(product, Product::Gemv { .. });
        let x = match product {
            Product::Gemv { .. } => "array<X4>",
            Product::GemvPairs { .. } => "array<X8>",
            _ => "array<X2>",
        };
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
            Product::Matrix { .. } | Product::Gemm => builder.flag("TRANSPOSED", false),
            Product::Transposed => builder.flag("TRANSPOSED", true),
        };
        let entry = if body == GEMM { "gemm" } else { name };
        let body = match product {
            Product::GemvPairs { rows, batch, .. } => {
                // Rows 2 and 3, where a subgroup takes four.
                let upper = if rows == 4 { batch } else { 0 };
                unroll(body, &[("ROWS", rows), ("BATCH", batch), ("UPPER", upper)])
            }
            _ => body.to_owned(),
        };
        builder.build(PARAMS, entry, group, &body)
    }

    fn matrix_kernel(&self) -> Kernel {
        let Spec { kind, dtype, output, bias, product } = *self;
        let Product::Matrix { side, m, n, across } = product else {
            return Builder::new("none").build(PARAMS, "none", 1, "");
        };
        let subgroups = GROUP / 32;
        let down = subgroups / across;
        let (rows, cols) = (m / down / side, n / across / side);
        let builder = Builder::new("gemm_matrix").types().weight(&kind, false);
        let builder = builder.activations("X", dtype).bind("x", Access::Read, "array<f16>").bind(
            "ups",
            Access::Read,
            "array<f32>",
        );
        let body = unrolled(MATRIX, side, rows, cols);
        store(with_bias(builder, bias), output)
            .tag(format!("{side}x{m}x{n}x{across}"))
            .constant("SIDE", side)
            .constant("TILE_M", m)
            .constant("TILE_N", n)
            .constant("ACROSS", across)
            .constant("DOWN_MATRICES", rows)
            .constant("ACROSS_MATRICES", cols)
            .constant("SUBGROUPS", subgroups)
            .needs(Needs { f16: true, subgroups: true, matrix: Some(side) })
            .build(PARAMS, "gemm_matrix", GROUP, &body)
    }
}

/// The body with a variable for each of the `rows` x `cols` matrices of a subgroup: WGSL has no
/// arrays of them.
fn unrolled(body: &str, side: u32, rows: u32, cols: u32) -> String {
    let mat = |ty: &str, role: &str| format!("coop_mat{side}x{side}<{ty}, {role}>");
    let each = |f: &dyn Fn(u32, u32) -> String| -> String {
        (0..rows).flat_map(|r| (0..cols).map(move |c| (r, c))).map(|(r, c)| f(r, c)).collect()
    };
    let c_type = mat("f32", "C");
    let declare = each(&|r, c| format!("    var c_{r}_{c}: {c_type};\n"));
    let load_a: String = (0..rows)
        .map(|r| {
            format!(
                "            let a_{r} = coopLoadT<{}>(&x[at_x + {}u * p.k], stride_x);\n",
                mat("f16", "A"),
                r * side
            )
        })
        .collect();
    let load_b: String = (0..cols)
        .map(|c| {
            format!(
                "            let b_{c} = coopLoad<{}>(&w_tile[at_w + {}u * STRIDE], stride_w);\n",
                mat("f16", "B"),
                c * side
            )
        })
        .collect();
    let multiply = each(&|r, c| {
        format!("            c_{r}_{c} = coopMultiplyAdd(a_{r}, b_{c}, c_{r}_{c});\n")
    });
    let store = each(&|r, c| {
        format!(
            "    coopStoreT(c_{r}_{c}, &results[own], side);\n    workgroupBarrier();\n    \
             put(first_m + {}u, first_n + own_n + {}u, own, lane, width);\n    workgroupBarrier();\n",
            r * side,
            c * side
        )
    });
    body.replace("    //@ declare\n", &declare)
        .replace("            //@ multiply\n", &format!("{load_a}{load_b}{multiply}"))
        .replace("    //@ store\n", &store)
}

/// Rows of x as half floats, padded to whole tiles, and the power of two of each.
fn halves<Q: Queue>(
    queue: &Q,
    x: &Q::Buffer,
    m: usize,
    tile: u32,
    k: usize,
    dtype: DType,
) -> Result<[Q::Buffer; 2]> {
    static KERNELS: Memo<DType> = Memo::new();
    let kernel = KERNELS.get(dtype, |dtype| {
        Builder::new("halves")
            .types()
            .activations("X", *dtype)
            .bind("x", Access::Read, "array<X2>")
            .bind("halves_of_x", Access::ReadWrite, "array<u32>")
            .bind("ups", Access::ReadWrite, "array<f32>")
            .build(&["m", "k"], "halves", GROUP, HALVES)
    });
    let rows = m.next_multiple_of(tile as usize);
    let out = [queue.scratch(2 * (rows * k) as u64)?, queue.scratch(4 * rows as u64)?];
    let params = [count("linear", m)?, count("linear", k)?];
    queue.dispatch(&kernel, &[x, &out[0], &out[1]], &params, [count("linear", rows)?, 1, 1])?;
    Ok(out)
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
