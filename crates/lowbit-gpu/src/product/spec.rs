//! The kernels of products: what their text depends on, and how it is put together.

use std::sync::Arc;

use lowbit::DType;

use super::{Around, GROUP};
use crate::choose::{self, Halves, Product};
use crate::kernel::{Access, Builder, Kernel, Needs};
use crate::matrix::Tiles;
use crate::memo::Memo;
use crate::unroll::unroll;
use crate::weight::{GpuWeight, Kind, PARAMS, Reads};

const GEMV_PAIRS: &str = include_str!("../kernels/gemv_pairs.wgsl");
const GEMV_HALVES: &str = include_str!("../kernels/gemv_halves.wgsl");
const GEMV_REGISTERS: &str = include_str!("../kernels/gemv_registers.wgsl");
const PAIRS_OF_HALVES: &str = include_str!("../kernels/pairs_of_halves.wgsl");
const EXPONENTS_OF_BLOCKS: &str = include_str!("../kernels/exponents_of_blocks.wgsl");
const EXPONENTS_OF_ROW: &str = include_str!("../kernels/exponents_of_row.wgsl");
const GEMV_SPANS: &str = include_str!("../kernels/gemv_spans.wgsl");
const SPAN_BYTES: &str = include_str!("../kernels/span_bytes.wgsl");
const SPAN_OCTET: &str = include_str!("../kernels/span_octet.wgsl");
const GEMV: &str = include_str!("../kernels/gemv.wgsl");
const GEMV_PUT: &str = include_str!("../kernels/gemv_put.wgsl");
const GEMV_NORM: &str = include_str!("../kernels/gemv_norm.wgsl");
const NORM_FACTOR: &str = include_str!("../kernels/norm_factor.wgsl");
const GEMM: &str = include_str!("../kernels/gemm.wgsl");
const ROWS_ALL: &str = include_str!("../kernels/rows_all.wgsl");
const ROWS_OF_EXPERT: &str = include_str!("../kernels/rows_of_expert.wgsl");
const TILES_ALL: &str = include_str!("../kernels/tiles_all.wgsl");
const TILES_OF_EXPERT: &str = include_str!("../kernels/tiles_of_expert.wgsl");

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

/// What `gemv_halves.wgsl` does to x before it keeps it: a norm, whose factor comes later, or nothing.
const NORMED: &str = "\
fn square_of(v: X8) -> f32 { return unit_square(v); }
fn factors_of(i: u32) -> mat2x4<f32> { return mat2x4<f32>(factors[2u * i], factors[2u * i + 1u]); }";
const NOT_NORMED: &str = "\
fn square_of(v: X8) -> f32 { return 0.0; }
fn factors_of(i: u32) -> vec2<f32> { return vec2<f32>(1.0); }
fn note_squares(own: f32, lane: u32, subgroup: u32) {}
fn norm_factor(lane: u32, width: u32, subgroups: u32) -> f32 { return 1.0; }";

/// How a table of pairs lies in workgroup memory. Which of them costs fewer instructions is not the same for
/// all kernels (an H200's compiler: 3 % of `gemv_halves.wgsl` for the first, of `gemv_registers.wgsl` for the
/// second).
const PAIRS_IN_ONE: &str = "\
var<workgroup> pairs: array<vec2<f16>, 256u * REPLICAS>;
fn pair_at(byte: u32, i: u32) -> vec2<f16> { return pairs[byte * REPLICAS + i]; }
fn keep_pair(byte: u32, i: u32, pair: vec2<f16>) { pairs[byte * REPLICAS + i] = pair; }";
const PAIRS_BY_BYTE: &str = "\
var<workgroup> pairs: array<array<vec2<f16>, REPLICAS>, 256>;
fn pair_at(byte: u32, i: u32) -> vec2<f16> { return pairs[byte][i]; }
fn keep_pair(byte: u32, i: u32, pair: vec2<f16>) { pairs[byte][i] = pair; }";

/// How results are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Output {
    /// Rows of any length.
    F32,
    /// Two by two, in that type.
    Pairs(DType),
}

impl Output {
    pub fn dtype(self) -> DType {
        match self {
            Output::F32 => DType::F32,
            Output::Pairs(dtype) => dtype,
        }
    }
}

/// How `m` rows of `n` results of a type are written: 16-bit rows of odd length would share words.
pub(crate) fn output(dtype: DType, m: usize, n: usize) -> Output {
    match dtype {
        DType::F16 | DType::BF16 if m <= 1 || n % 2 == 0 => Output::Pairs(dtype),
        _ => Output::F32,
    }
}

/// What the text of a product depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Spec {
    pub kind: Kind,
    pub dtype: DType,
    pub output: Output,
    pub product: Product,
    pub bias: bool,
    /// Whether something is added in the end.
    pub to: bool,
    /// Whether the result is `silu` of the first half of its columns times the second: `[1, N / 2]`.
    pub gated: bool,
    /// Bits of eps, and K, where x is normed.
    pub norm: Option<(u32, u32)>,
    /// Rows of w that an expert has, and places that read a row of x, where rows choose experts.
    pub experts: Option<[u32; 2]>,
    /// K, where x is kept as half floats.
    pub kept: Option<u32>,
}

impl Spec {
    pub fn new<B: Clone>(
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
            experts: None,
            norm: around.norm.map(|(_, eps)| (eps.to_bits(), k as u32)),
            kept: product.keeps_halves().then_some(k as u32),
        }
    }

    /// Its kernel.
    pub fn kernel(self) -> Arc<Kernel> {
        static KERNELS: Memo<Spec> = Memo::new();
        KERNELS.get(self, Spec::build)
    }

    /// What adds the pieces in which a product on matrix hardware left tiles.
    pub fn merge(self, tiles: Tiles) -> Arc<Kernel> {
        static KERNELS: Memo<Spec> = Memo::new();
        KERNELS.get(self, |spec| {
            let builder = Builder::new("gemm_merge").types().activations("X", spec.dtype);
            tiles.merge(builder, |builder| spec.output(builder))
        })
    }

    fn build(&self) -> Kernel {
        let Spec { kind, dtype, product, .. } = *self;
        let builder = |name| Builder::new(name).types();
        let read = |builder: Builder, ty| builder.bind("x", Access::Read, ty);
        match product {
            Product::Gemv { rows, batch } => {
                let builder = builder("gemv").weight(&kind, Reads::Vectors).activations("X", dtype);
                let builder =
                    read(builder, "array<X4>").constant("CHUNK_BITS", kind.bits().min(4) * 32);
                self.gemv(builder, [rows, batch, 128], 4, GEMV)
            }
            Product::GemvSpans { rows, batch } => {
                let builder =
                    builder("gemv_spans").weight(&kind, Reads::Words).activations("X", dtype);
                let builder = read(builder, "array<X4>");
                let builder = match kind.span {
                    Some([bytes, weights]) => builder
                        .constant("SPAN", weights)
                        .constant("PER_BYTE", weights / bytes)
                        .text(SPAN_BYTES),
                    None => {
                        builder.tag("octets").constant("SPAN", 8u32).octets(&kind).text(SPAN_OCTET)
                    }
                };
                self.gemv(builder, [rows, batch, 128], 4, GEMV_SPANS)
            }
            Product::GemvPairs { rows, batch, group, replicas } => {
                let builder =
                    builder("gemv_pairs").weight(&kind, Reads::Words).activations("X", dtype);
                let builder = read(builder, "array<X8>")
                    .tag(replicas)
                    .constant("REPLICAS", replicas)
                    .constant("PAIRS", 256 * replicas);
                self.gemv(builder, [rows, batch, group], 8, GEMV_PAIRS)
            }
            Product::GemvHalves { rows, batch, group, halves } => {
                let k = self.kept.unwrap_or_default();
                let Halves { replicas, ahead, one_exponent } = halves;
                let builder =
                    builder("gemv_halves").weight(&kind, Reads::Vectors).activations("X", dtype);
                let builder = read(builder, "array<X8>")
                    .tag(format!("{replicas}x{ahead}x{k}"))
                    .tag(if one_exponent { "row" } else { "blocks" })
                    .constant("REPLICAS", replicas)
                    .constant("AHEAD", ahead)
                    .constant("K", k)
                    .text(PAIRS_IN_ONE)
                    .text(PAIRS_OF_HALVES)
                    .text(if one_exponent { EXPONENTS_OF_ROW } else { EXPONENTS_OF_BLOCKS })
                    .needs(Needs { f16: true, ..Needs::default() });
                self.gemv(builder, [rows, batch, group], 8, GEMV_HALVES)
            }
            Product::GemvRegisters { rows, batch, group, replicas, pieces } => {
                self.registers([rows, batch, group, replicas, pieces])
            }
            Product::Matrix { tiles, .. } => {
                let reads = if kind.has_nibble_vectors() { Reads::Vectors } else { Reads::Words };
                let inputs = builder("gemm_matrix").weight(&kind, reads).activations("X", dtype);
                tiles.kernel(inputs, &kind, |builder| self.output(builder))
            }
            Product::Gemm | Product::Transposed => {
                let transposed = product == Product::Transposed;
                let name = if transposed { "gemm_transposed" } else { "gemm" };
                let builder = builder(name).weight(&kind, Reads::Words).activations("X", dtype);
                let builder =
                    self.output(read(builder, "array<X2>").flag("TRANSPOSED", transposed));
                let builder = match self.experts {
                    None => builder.text(TILES_ALL),
                    Some(_) => builder
                        .bind("order", Access::Read, "array<u32>")
                        .bind("tiles", Access::Read, "array<u32>")
                        .text(TILES_OF_EXPERT),
                };
                self.expert_sizes(builder).build(PARAMS, "gemm", GROUP, GEMM)
            }
        }
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
        let (kept, halves) = match self.product {
            Product::GemvHalves { halves, .. } => (self.kept.unwrap_or_default(), Some(halves)),
            _ => (0, None),
        };
        let builder = match self.norm {
            None if halves.is_some() => builder.text(NOT_NORMED),
            None => builder.text(&format!(
                "fn x_load(i: u32) -> X{unit} {{ return x[i]; }}\n\
                 fn prepare(thread: u32, lane: u32, width: u32, subgroup: u32, subgroups: u32) {{}}"
            )),
            Some((eps, k)) => {
                let builder = builder
                    .tag(format!("norm{k}_{eps:x}"))
                    .bind("factors", Access::Read, "array<vec4<f32>>")
                    .text(&format!("const EPS = {:?}f;", f32::from_bits(eps)))
                    .text(if unit == 4 { UNIT_4 } else { UNIT_8 })
                    .text(NORM_FACTOR);
                match halves {
                    Some(_) => builder.text(NORMED),
                    None => builder
                        .constant("K", k)
                        .constant("UNITS", k / unit)
                        .text(&format!("alias XUNIT = X{unit};"))
                        .text(GEMV_NORM),
                }
            }
        };
        // Of four rows, two are the upper ones; of a gated product they belong together.
        let plain = |there: bool| if there && !self.gated { batch } else { 0 };
        let counts = [
            ("ROWS", rows),
            ("BATCH", batch),
            ("LOWER", plain(true)),
            ("UPPER", plain(rows == 4)),
            ("GATED", u32::from(self.gated)),
            // Of each thread: octets of x to keep, and fours of pairs to fill in.
            ("OWN", (batch * kept / 8).div_ceil(group)),
            ("FILLS", halves.map_or(0, |h| (64 * h.replicas).div_ceil(group))),
            ("AHEAD", halves.map_or(0, |h| h.ahead)),
        ];
        let builder = if self.gated { builder.tag("gated") } else { builder };
        let entry = match self.product {
            Product::GemvPairs { .. } => "gemv_pairs",
            Product::GemvHalves { .. } => "gemv_halves",
            Product::GemvSpans { .. } => "gemv_spans",
            _ => "gemv",
        };
        let builder = match self.experts {
            None => self.output(builder).text(ROWS_ALL),
            Some(_) => {
                self.output(builder).bind("ids", Access::Read, "array<f32>").text(ROWS_OF_EXPERT)
            }
        };
        self.expert_sizes(builder)
            .tag(format!("{rows}x{batch}x{group}"))
            .constant("ROWS", rows)
            .constant("BATCH", batch)
            .flag("IS_GATED", self.gated)
            .text(GEMV_PUT)
            .subgroups()
            .build(PARAMS, entry, group, &unroll(body, &counts))
    }

    /// A kernel whose lanes keep `batch` rows of x, for `rows` rows of w a group.
    fn registers(&self, [rows, batch, group, replicas, pieces]: [u32; 5]) -> Kernel {
        let k = self.kept.unwrap_or_default();
        let chunks = choose::pieces(k as usize, batch as usize).div_ceil(pieces as usize) as u32;
        let (four, wide) = (batch == 4, self.kind.double_vectors);
        let reads = if four { Reads::Vectors } else { Reads::Pairs };
        let counts = [
            ("PAIRS_OF_ROWS", batch / 2),
            ("OCTETS", 16 / batch),
            ("TURN_ROWS", 32 / batch),
            ("FOUR", u32::from(four)),
            ("EIGHT", u32::from(!four)),
            // Whether 64 columns share a scale, or no more than 32.
            ("WIDE_FOUR", u32::from(wide && four)),
            ("WIDE_EIGHT", u32::from(wide && !four)),
            ("NARROW_FOUR", u32::from(!wide && four)),
            ("NARROW_EIGHT", u32::from(!wide && !four)),
            ("FILLS", (64 * replicas).div_ceil(group)),
        ];
        let builder = Builder::new("gemv_registers")
            .types()
            .weight(&self.kind, reads)
            .activations("X", self.dtype)
            .bind("x", Access::Read, "array<X8>")
            .tag(format!("{rows}x{batch}x{group}x{replicas}x{pieces}x{k}"))
            .tag(if wide { "wide" } else { "narrow" })
            .constant("REPLICAS", replicas)
            .constant("K", k)
            .constant("BATCH", batch)
            .constant("GROUP_ROWS", rows)
            .constant("TURN_ROWS", 32 / batch)
            .constant("SUBGROUPS", group / 32)
            .constant("PIECES", pieces)
            .constant("CHUNKS", chunks)
            .constant("OCTETS", 16 / batch)
            .flag("IS_GATED", false)
            .text(PAIRS_BY_BYTE)
            .text(PAIRS_OF_HALVES)
            .needs(Needs { f16: true, ..Needs::default() })
            .subgroups();
        self.output(builder).text(ROWS_ALL).text(GEMV_PUT).build(
            PARAMS,
            "gemv_registers",
            group,
            &unroll(GEMV_REGISTERS, &counts),
        )
    }

    fn expert_sizes(&self, builder: Builder) -> Builder {
        match self.experts {
            None => builder,
            Some([each, readers]) => builder
                .tag(format!("experts{each}x{readers}"))
                .constant("EACH", each)
                .constant("READERS", readers),
        }
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
/// `to`, added to what is bound there. It is `y_added`, which reads that, and `y_put`, which writes the sum.
pub(super) fn store(builder: Builder, output: Output, to: bool) -> Builder {
    let (builder, ty) = match output {
        Output::F32 => (builder.tag("to_f32"), "array<f32>"),
        Output::Pairs(dtype) => (builder.tag("to").activations("Y", dtype), "array<Y2>"),
    };
    let builder = match to {
        true => builder.tag("add").bind("added_to", Access::Read, ty),
        false => builder,
    };
    let added = match (output, to) {
        (_, false) => "vec2<f32>()",
        (Output::F32, true) => "vec2<f32>(added_to[i], added_to[select(i, i + 1u, second)])",
        (Output::Pairs(_), true) => "y_unpack(added_to[i >> 1u])",
    };
    let put = match (output, to) {
        (Output::F32, true) => {
            "y[i] = v.x + more.x;\n    if (second) {\n        y[i + 1u] = v.y + more.y;\n    }"
        }
        (Output::F32, false) => "y[i] = v.x;\n    if (second) {\n        y[i + 1u] = v.y;\n    }",
        // A sum of what would have been stored.
        (Output::Pairs(_), true) => "y[i >> 1u] = y_pack(y_unpack(y_pack(v)) + more);",
        (Output::Pairs(_), false) => "y[i >> 1u] = y_pack(v);",
    };
    builder.bind("y", Access::ReadWrite, ty).text(&format!(
        "fn y_added(i: u32, second: bool) -> vec2<f32> {{ return {added}; }}\n\
         fn y_put(i: u32, v: vec2<f32>, more: vec2<f32>, second: bool) {{\n    {put}\n}}\n\
         fn y_store(i: u32, v: vec2<f32>, second: bool) {{ y_put(i, v, y_added(i, second), second); }}"
    ))
}
