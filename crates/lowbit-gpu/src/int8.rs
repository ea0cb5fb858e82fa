//! Products of 8-bit integers on the GPU, and LLM.int8 (arXiv 2208.07339) on top of them: `dot4I8Packed` of
//! words of four. An integer product is exact; what it stands for is worked out in f32.
//!
//! As [`Cpu::int8_matmul`](lowbit::Cpu::int8_matmul), [`Cpu::int8_rescale`](lowbit::Cpu::int8_rescale) and
//! [`Cpu::int8_linear`](lowbit::Cpu::int8_linear), which say the formulas.

use lowbit::{DType, Error, Result};

use crate::elementwise::{self, flat};
use crate::kernel::{Access, Builder, Kernel};
use crate::memo::Memo;
use crate::product::{Output, converted, output, scratch};
use crate::queue::{Queue, count, cover};
use crate::unroll::unroll;
use crate::weight::{Codes, GpuWeight, Stored};

const WORDS: &str = include_str!("kernels/int8_words.wgsl");
const TILE: &str = include_str!("kernels/int8_tile.wgsl");
const FEW: &str = include_str!("kernels/int8_few.wgsl");
const FINISH: &str = include_str!("kernels/int8_finish.wgsl");
/// A function of its own: naga's Metal text of the built-in one declares its operands again each time that
/// a block uses them.
const DOT: &str = "fn dot4(a: u32, b: u32) -> i32 { return dot4I8Packed(a, b); }";
const OUTLIERS: &str = include_str!("kernels/int8_outliers.wgsl");
const NO_OUTLIERS: &str =
    "fn with_outliers(sum: f32, m: u32, n: u32, column: f32) -> f32 { return sum; }";
const SCALE: &str = include_str!("kernels/int8_scale.wgsl");
const ROWS: &str = include_str!("kernels/int8_rows.wgsl");
const ROWS_MARKED: &str = include_str!("kernels/int8_rows_marked.wgsl");
const ROWS_WHOLE: &str = include_str!("kernels/int8_rows_whole.wgsl");
const CODES: &str = include_str!("kernels/int8_codes.wgsl");
const COLUMNS: &str = include_str!("kernels/int8_columns.wgsl");
const RESCALE: &str = include_str!("kernels/int8_rescale.wgsl");
const DIVIDE: &str = include_str!("kernels/divide.wgsl");

const GROUP: u32 = 256;
/// Side of a tile of results in `int8_tile.wgsl`.
const SIDE: u32 = 64;
/// Rows of the weight that a group of threads takes in `int8_few.wgsl`.
const FEW_ROWS: u32 = 8;
/// Rows of activations from which on tiles are multiplied.
const TILES_FROM: usize = 17;
/// Largest K for which no sum can leave an i32: `K * 128 * 128 < 2^31`.
const MAX_K: usize = (1 << 17) - 1;
/// What an integer of LLM.int8 stands for is its row's absmax over this.
const PEAK: f32 = 127.0;

const PRODUCT: &[&str] = &["m", "n", "k", "words", "row_y", "first_y"];
const QUANTIZE: &[&str] = &["m", "k", "words", "threshold"];

/// What the text of a product depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Kind {
    /// For so many rows of `a` at a time; 0: in tiles.
    few: u32,
    /// Whether rows of `a`, and of `b`, begin with words.
    whole: [bool; 2],
    finish: Option<Finish>,
}

/// How sums become numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Finish {
    dtype: DType,
    output: Output,
    bias: bool,
    outliers: bool,
    /// Bits of the f32 that an integer of the weight is multiplied by, besides its row's scale.
    unit: u32,
}

/// `a bᵀ`, exact: `a: [M, K]` and `b: [N, K]` of i8, `[M, N]` of i32.
///
/// # Errors
/// [`Error::Argument`] for a K whose sums may not fit an i32; and as [`Queue::dispatch`].
pub fn int8_matmul<Q: Queue>(
    queue: &Q,
    a: &Q::Buffer,
    b: &Q::Buffer,
    [m, n, k]: [usize; 3],
) -> Result<Q::Buffer> {
    const OP: &str = "int8_matmul";
    check_k(OP, k)?;
    count(OP, m.saturating_mul(n))?;
    if m == 0 || n == 0 || k == 0 {
        return queue.zeros(4 * (m * n) as u64);
    }
    fits(OP, queue, m.saturating_mul(k).max(n.saturating_mul(k)).max(4 * m * n))?;
    let y = queue.scratch(4 * (m * n) as u64)?;
    let whole = k % 4 == 0;
    let kind = Kind { few: few(m), whole: [whole; 2], finish: None };
    let at = At { m, n, k, row_y: n, first_y: 0 };
    multiply(queue, kind, &[a, b, &y], at)?;
    Ok(y)
}

/// `sums * rows * columns / 127² + bias`: `sums: [M, N]` of i32, the absmax of the operands' rows
/// `rows: [M]` and `columns: [N]` in f32, `bias: [N]` and the result of that type.
///
/// # Errors
/// As [`Queue::dispatch`].
pub fn int8_rescale<Q: Queue>(
    queue: &Q,
    sums: &Q::Buffer,
    [rows, columns]: [&Q::Buffer; 2],
    bias: Option<&Q::Buffer>,
    [m, n]: [usize; 2],
    dtype: DType,
) -> Result<Q::Buffer> {
    const OP: &str = "int8_rescale";
    let len = m.saturating_mul(n);
    count(OP, len)?;
    fits(OP, queue, len.saturating_mul(4))?;
    static KERNELS: Memo<(DType, bool)> = Memo::new();
    let kernel = KERNELS.get((dtype, bias.is_some()), |(dtype, bias)| {
        let builder = Builder::new("int8_rescale")
            .types()
            .activations("X", *dtype)
            .text(&format!("const UNIT = {:?}f;", 1.0 / (PEAK * PEAK)))
            .bind("sums", Access::Read, "array<i32>")
            .bind("rows", Access::Read, "array<f32>")
            .bind("columns", Access::Read, "array<f32>");
        with_bias(builder, *bias).bind("y", Access::ReadWrite, "array<X2>").build(
            &["pairs", "n", "len"],
            "int8_rescale",
            GROUP,
            RESCALE,
        )
    });
    let inputs: Vec<&Q::Buffer> = [sums, rows, columns].into_iter().chain(bias).collect();
    flat(queue, &kernel, dtype, &inputs, &[n as u32, len as u32], len)
}

/// `x wᵀ + bias` with activations quantized by rows: `x: [M, K]`, `bias: [N]` and the result `[M, N]` of
/// that type, `w: [N, K]` in rows of 8-bit integers with a scale each.
///
/// Columns in which some `x` has the magnitude `threshold` are multiplied as they are, with f32 sums; a
/// threshold of 0 means no outliers. A row with a number that is not finite, where that is no outlier,
/// comes out as NaN. Nothing waits: which columns those are stays on the GPU.
///
/// # Errors
/// [`Error::Argument`] if `w` is of another kind, K may overflow a sum, or the threshold is negative or NaN;
/// and as [`Queue::dispatch`].
pub fn int8_linear<Q: Queue>(
    queue: &Q,
    x: &Q::Buffer,
    m: usize,
    w: &GpuWeight<Q::Buffer>,
    threshold: f32,
    bias: Option<&Q::Buffer>,
    dtype: DType,
) -> Result<Q::Buffer> {
    const OP: &str = "int8_linear";
    let unit = unit(OP, w)?;
    let (n, k) = w.rows_cols();
    check_k(OP, k)?;
    if threshold.is_nan() || threshold < 0.0 {
        let got = threshold.to_string();
        return Err(Error::argument(OP, "a threshold from 0", got, "choose one, 6.0 is usual"));
    }
    count(OP, m.saturating_mul(n.max(k)))?;
    if m == 0 || n == 0 {
        return queue.zeros(elementwise::bytes(m * n, dtype));
    }
    let output = output(dtype, m, n);
    fits(OP, queue, (m * k * dtype.size()).max(m * n * output.dtype().size()))?;
    let rows = Rows::quantize(queue, x, [m, k], threshold, dtype)?;
    let finish = Finish { dtype, output, bias: bias.is_some(), outliers: threshold > 0.0, unit };
    // What an integer of the activations stands for is in the scales of their rows.
    let kind = Kind { few: few(m), whole: [true, k % 4 == 0], finish: Some(finish) };
    let y = scratch(queue, output, m * n)?;
    for part in w.parts() {
        let own: Vec<&Q::Buffer> = part.buffers().collect();
        let [codes, scales] = own[..] else { return Err(kind_of(OP, w)) };
        let mut buffers = vec![&rows.codes, codes, &y, &rows.scales, scales];
        buffers.extend(rows.outliers.iter().flat_map(|outliers| [x, outliers]));
        buffers.extend(bias);
        let at = At { m, n: part.rows.len(), k, row_y: n, first_y: part.rows.start };
        multiply(queue, kind, &buffers, at)?;
    }
    converted(queue, y, output, m * n, dtype)
}

/// Activations in 8 bits.
struct Rows<B> {
    /// `[M, K]`, rows of whole words.
    codes: B,
    /// Factor of each row's integers.
    scales: B,
    /// Columns of outliers: how many, and which.
    outliers: Option<B>,
}

impl<B: Clone> Rows<B> {
    fn quantize<Q: Queue<Buffer = B>>(
        queue: &Q,
        x: &B,
        [m, k]: [usize; 2],
        threshold: f32,
        dtype: DType,
    ) -> Result<Self> {
        let words = k.div_ceil(4);
        let codes = queue.scratch(4 * (m * words) as u64)?;
        let scales = queue.scratch(4 * m as u64)?;
        let has_outliers = threshold > 0.0;
        static KERNELS: Memo<(DType, bool)> = Memo::new();
        let kernel = KERNELS.get((dtype, has_outliers), |key| rows_kernel(key.0, key.1));
        let params = [m as u32, k as u32, words as u32, threshold.to_bits()];
        let each_row = cover(m as u64, 1, queue.limits());
        if !has_outliers {
            queue.dispatch(&kernel, &[x, &scales, &codes], &params, each_row)?;
            return Ok(Rows { codes, scales, outliers: None });
        }
        let factors = queue.scratch(8 * m as u64)?;
        let marks = queue.zeros(4 * k as u64)?;
        queue.dispatch(&kernel, &[x, &scales, &factors, &marks], &params, each_row)?;
        let outliers = queue.scratch(4 + 4 * k as u64)?;
        static COLUMN_KERNEL: Memo<()> = Memo::new();
        let kernel = COLUMN_KERNEL.get((), |()| {
            Builder::new("int8_columns")
                .bind("marks", Access::Read, "array<u32>")
                .bind("outliers", Access::ReadWrite, "array<u32>")
                .build(QUANTIZE, "int8_columns", GROUP, COLUMNS)
        });
        queue.dispatch(&kernel, &[&marks, &outliers], &params, [1, 1, 1])?;
        if k > 0 {
            static CODE_KERNELS: Memo<DType> = Memo::new();
            let kernel = CODE_KERNELS.get(dtype, |dtype| codes_kernel(*dtype));
            let groups = cover((m * words) as u64, GROUP, queue.limits());
            queue.dispatch(&kernel, &[x, &factors, &marks, &codes], &params, groups)?;
        }
        Ok(Rows { codes, scales, outliers: Some(outliers) })
    }
}

/// Sizes of a product, and where its results lie.
#[derive(Clone, Copy)]
struct At {
    m: usize,
    n: usize,
    k: usize,
    row_y: usize,
    first_y: usize,
}

/// Rows of activations that are multiplied at a time, if there are few.
fn few(m: usize) -> u32 {
    match m {
        0..=1 => 1,
        2..=4 => 4,
        5..TILES_FROM => 8,
        _ => 0,
    }
}

fn multiply<Q: Queue>(queue: &Q, kind: Kind, buffers: &[&Q::Buffer], at: At) -> Result<()> {
    static KERNELS: Memo<Kind> = Memo::new();
    let kernel = KERNELS.get(kind, product_kernel);
    let At { m, n, k, row_y, first_y } = at;
    let sizes = [m, n, k, k.div_ceil(4), row_y, first_y].map(|size| size as u32);
    let groups = match kind.few {
        0 => [sizes[1].div_ceil(SIDE), sizes[0].div_ceil(SIDE), 1],
        few => {
            let [x, y, _] = cover(n as u64, FEW_ROWS, queue.limits());
            [x, y, sizes[0].div_ceil(few)]
        }
    };
    queue.dispatch(&kernel, buffers, &sizes, groups)
}

fn product_kernel(kind: &Kind) -> Kernel {
    let (name, body) = if kind.few > 0 { ("int8_few", FEW) } else { ("int8_tile", TILE) };
    let body = unroll(body, &[("FEW", kind.few)]);
    let mut builder = Builder::new(name)
        .types()
        .tag(kind.few)
        .constant("FEW", kind.few)
        .text(DOT)
        .bind("a", Access::Read, "array<u32>")
        .bind("b", Access::Read, "array<u32>");
    for (name, whole) in [("a", kind.whole[0]), ("b", kind.whole[1])] {
        builder = builder
            .tag(if whole { "words" } else { "bytes" })
            .flag(&format!("{name}_WHOLE"), whole)
            .text(&WORDS.replace("NAME", name));
    }
    let builder = match kind.finish {
        None => builder.bind("y", Access::ReadWrite, "array<i32>").text(&one_by_one("v.x", "v.y")),
        Some(finish) => finished(builder, finish),
    };
    builder.build(PRODUCT, name, GROUP, &body)
}

/// `put`, which writes a result, and the one beside it if there is a second.
const PUT: &str = "fn put(m: u32, n: u32, v: vec2<i32>, second: bool) {
    let i = m * p.row_y + p.first_y + n;";

fn one_by_one(first: &str, second: &str) -> String {
    format!(
        "{PUT}\n    y[i] = {first};\n    if (second) {{\n        y[i + 1u] = {second};\n    }}\n}}"
    )
}

/// What becomes of sums. All bindings come before the text that names them: in the order in which they are
/// first named, naga has their lengths.
fn finished(builder: Builder, finish: Finish) -> Builder {
    let builder = builder
        .activations("X", finish.dtype)
        .tag(finish.unit)
        .text(&format!("const UNIT = {:?}f;", f32::from_bits(finish.unit)));
    let [first, second] = ["finish(m, n, v.x)", "finish(m, n + 1u, v.y)"];
    let (builder, ty, put) = match finish.output {
        Output::F32 => (builder.tag("to_f32"), "array<f32>", one_by_one(first, second)),
        Output::Pairs(_) => {
            let put = format!(
                "{PUT}\n    var both = vec2<f32>({first}, 0.0);\n    if (second) {{\n        \
                 both.y = {second};\n    }}\n    y[i >> 1u] = x_pack(both);\n}}"
            );
            (builder, "array<X2>", put)
        }
    };
    let builder = builder
        .bind("y", Access::ReadWrite, ty)
        .bind("row_scales", Access::Read, "array<f32>")
        .bind("column_scales", Access::Read, "array<f32>");
    let builder = if finish.outliers {
        builder
            .tag("outliers")
            .bind("x", Access::Read, "array<X2>")
            .bind("outliers", Access::Read, "array<u32>")
            .at("x")
            .text(OUTLIERS)
    } else {
        builder.text(NO_OUTLIERS)
    };
    with_bias(builder, finish.bias).text(FINISH).text(&put)
}

fn codes_kernel(dtype: DType) -> Kernel {
    quantizing("int8_codes", dtype)
        .bind("factors", Access::Read, "array<vec2<f32>>")
        .bind("marks", Access::Read, "array<u32>")
        .bind("codes", Access::ReadWrite, "array<u32>")
        .build(QUANTIZE, "int8_codes", GROUP, CODES)
}

fn rows_kernel(dtype: DType, has_outliers: bool) -> Kernel {
    let builder = quantizing("int8_rows", dtype)
        .text(&format!("const UNIT = {:?}f;", 1.0 / PEAK))
        .bind("row_scales", Access::ReadWrite, "array<f32>");
    let builder = match has_outliers {
        true => builder
            .tag("marked")
            .bind("factors", Access::ReadWrite, "array<vec2<f32>>")
            .bind("marks", Access::ReadWrite, "array<atomic<u32>>")
            .text(ROWS_MARKED),
        false => builder.bind("codes", Access::ReadWrite, "array<u32>").text(ROWS_WHOLE),
    };
    builder.build(QUANTIZE, "int8_rows", GROUP, ROWS)
}

/// A kernel that reads activations and makes integers of them.
fn quantizing(name: &str, dtype: DType) -> Builder {
    Builder::new(name)
        .types()
        .activations("X", dtype)
        .text(&format!("const PEAK = {PEAK:?}f;"))
        .text(DIVIDE)
        .text(SCALE)
        .bind("x", Access::Read, "array<X2>")
        .at("x")
}

/// `with_bias`, which adds that of a column, or none.
fn with_bias(builder: Builder, bias: bool) -> Builder {
    let head = "fn with_bias(v: f32, n: u32) -> f32";
    match bias {
        true => builder
            .tag("bias")
            .bind("bias", Access::Read, "array<X2>")
            .at("bias")
            .text(&format!("{head} {{ return v + bias_at(n); }}")),
        false => builder.text(&format!("{head} {{ return v; }}")),
    }
}

/// Bits of the f32 that a weight's integers are multiplied by, besides the scales of their rows.
fn unit<B: Clone>(op: &'static str, w: &GpuWeight<B>) -> Result<u32> {
    let kind = w.kind();
    match kind.codes {
        Codes::Format(_, coding)
            if kind.table == 0
                && kind.scales == Stored::F32
                && w.has_whole_rows()
                && (coding.bits, coding.per_code, coding.stacked) == (8, 1, 1)
                && !coding.flat
                && !coding.has_mean =>
        {
            Ok(coding.unit)
        }
        _ => Err(kind_of(op, w)),
    }
}

fn kind_of<B: Clone>(op: &'static str, w: &GpuWeight<B>) -> Error {
    let got = match w.kind().codes {
        Codes::Format(name, _) => format!("{name} of {:?}", w.shape()),
        Codes::Dense(dtype) => format!("{dtype} of {:?}", w.shape()),
    };
    let help = "quantize the weight to int8, or use linear";
    Error::argument(op, "a weight of one 8-bit integer row per scale", got, help)
}

fn check_k(op: &'static str, k: usize) -> Result<()> {
    if k <= MAX_K {
        return Ok(());
    }
    let help = "split the rows and add the sums in 64 bits";
    Err(Error::argument(op, format!("a K of at most {MAX_K}"), k.to_string(), help))
}

/// Whether operands and results of that many bytes at most can be bound.
fn fits<Q: Queue>(op: &'static str, queue: &Q, bytes: usize) -> Result<()> {
    let most = queue.limits().binding;
    if bytes as u64 <= most {
        return Ok(());
    }
    let expected = format!("operands and results of at most {most} bytes each");
    Err(Error::argument(op, expected, bytes.to_string(), "split the rows"))
}
