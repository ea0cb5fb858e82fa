//! How kernels read a weight: what their texts declare.

use lowbit::DType;
use lowbit::format::Packing;

use super::{Codes, Coding, Kind, Octets, Reads, Stored, TABLE};
use crate::kernel::{Access, Builder};

const BLOCKS: &str = include_str!("../kernels/blocks.wgsl");
const WEIGHT: &str = include_str!("../kernels/weight.wgsl");
const OCTET: &str = include_str!("../kernels/octet.wgsl");

impl Builder {
    /// Binds a weight and declares how it is read: `block_of`, `scale_of`, `mean_of`, `value_at`,
    /// `load_table`, and where words are read `weight` and `weights4`.
    pub fn weight(self, kind: &Kind, reads: Reads) -> Self {
        let vectors = reads != Reads::Words;
        let no_coding = Coding {
            bits: 32,
            per_code: 1,
            packing: Packing::LowFirst,
            flat: false,
            stacked: 1,
            unit: 1f32.to_bits(),
            has_mean: false,
        };
        let (name, coding, dense) = match kind.codes {
            Codes::Dense(dtype) => {
                let coding = Coding { bits: 8 * dtype.size() as u32, ..no_coding };
                (dtype.to_string(), coding, Some(dtype))
            }
            Codes::Format(name, coding) => (name.to_owned(), coding, None),
        };
        let (radix, digits) = match coding.packing {
            Packing::Radix { base, per_byte } => (base, per_byte),
            _ => (1, 1),
        };
        let codes = match reads {
            Reads::Words => "array<u32>",
            Reads::Pairs => "array<vec2<u32>>",
            Reads::Vectors => "array<vec4<u32>>",
        };
        let mut this = self.tag(name).bind("codes", Access::Read, codes);
        this = match kind.scales {
            Stored::None => this,
            Stored::F32 => this.bind("scales", Access::Read, "array<f32>"),
            Stored::F16 => this.tag("f16").bind("scales", Access::Read, "array<u32>"),
            Stored::E8M0 => this.tag("e8m0").bind("scales", Access::Read, "array<u32>"),
            Stored::Nested => this
                .tag("nested")
                .bind("scales", Access::Read, "array<u32>")
                .bind("nested_absmax", Access::Read, "array<vec2<f32>>")
                .bind("nested_map", Access::Read, "array<f32>"),
        };
        if coding.has_mean {
            this = this.tag("mean").bind("means", Access::Read, "array<f32>");
        }
        if kind.table > 0 {
            this = this.tag(kind.table).bind("book", Access::Read, "array<f32>");
        }
        for (tag, on) in [("pow2", kind.power_of_two), ("words", kind.words && !vectors)] {
            if on {
                this = this.tag(tag);
            }
        }
        this.constant("BITS", coding.bits)
            .constant("MASK", u32::MAX >> (32 - coding.bits))
            .constant("PER_CODE", coding.per_code as u32)
            .constant("RADIX", radix)
            .constant("RADIX_DIGITS", digits)
            .flag("IS_RADIX", radix != 1)
            .flag("HIGH_FIRST", coding.packing == Packing::HighFirst)
            .constant("HIGH_SHIFT", 8u32.saturating_sub(coding.bits))
            .flag("FLAT", coding.flat)
            .constant("STACKED", coding.stacked)
            .flag("POW2", kind.power_of_two)
            .flag("WORDS", kind.words)
            .flag("DENSE", dense.is_some())
            .flag("HAS_MEAN", coding.has_mean)
            .flag("HAS_UNIT", coding.unit != 1f32.to_bits())
            .text(&format!("const UNIT = {:?}f;", f32::from_bits(coding.unit)))
            .text(BLOCKS)
            .text(&values(kind, coding.bits))
            .text(scales(kind.scales))
            .text("fn scale_of(block: u32) -> f32 { return scale_from(raw_scale(block), block); }")
            .text(match coding.has_mean {
                true => "fn mean_of(block: u32) -> f32 { return means[block]; }",
                false => "fn mean_of(block: u32) -> f32 { return 0.0; }",
            })
            .text(&dense_values(dense, vectors))
            .text(if vectors { "" } else { WEIGHT })
    }

    /// Declares how a weight, of which words are bound, is read eight at a time: `octet` and what it becomes.
    pub fn octets(self, kind: &Kind) -> Self {
        let (grouped, [weights, bits]) = match kind.octets {
            Octets::Grouped(group) => (true, group),
            _ => (false, [1, 8]),
        };
        self.flag("GROUPED", grouped)
            .constant("GROUP_WEIGHTS", weights)
            .constant("GROUP_BITS", bits)
            .constant("GROUP_MASK", u32::MAX >> (32 - bits))
            .text(OCTET)
    }
}

/// `load_table` and `value_at`.
fn values(kind: &Kind, bits: u32) -> String {
    match kind.table {
        0 => format!(
            "fn load_table(thread: u32) {{}}\n\
             fn value_at(code: u32, i: u32) -> f32 {{\n    \
             return f32(bitcast<i32>(code << {up}u) >> {up}u);\n}}",
            up = 32 - bits
        ),
        n if n <= TABLE => format!(
            "var<workgroup> table: array<f32, {n}>;\n\
             fn load_table(thread: u32) {{\n    \
             for (var i = thread; i < {n}u; i += GROUP) {{\n        table[i] = book[i];\n    }}\n    \
             workgroupBarrier();\n}}\n\
             fn value_at(code: u32, i: u32) -> f32 {{ return table[code * PER_CODE + i]; }}"
        ),
        _ => "fn load_table(thread: u32) {}\n\
              fn value_at(code: u32, i: u32) -> f32 { return book[code * PER_CODE + i]; }"
            .to_owned(),
    }
}

/// `raw_scale`, what memory has of a block's scale at once, and `scale_from`, the scale it stands for: loads
/// of the first can be on their way while something else is done.
fn scales(stored: Stored) -> &'static str {
    match stored {
        Stored::None => {
            "fn raw_scale(block: u32) -> f32 { return 1.0; }\n\
             fn scale_from(raw: f32, block: u32) -> f32 { return raw; }"
        }
        Stored::F32 => {
            "fn raw_scale(block: u32) -> f32 { return scales[block]; }\n\
             fn scale_from(raw: f32, block: u32) -> f32 { return raw; }"
        }
        Stored::F16 => {
            "fn raw_scale(block: u32) -> u32 { return scales[block >> 1u]; }\n\
             fn scale_from(raw: u32, block: u32) -> f32 {\n    \
             return f16_value((raw >> ((block & 1u) * 16u)) & 0xffffu);\n}"
        }
        Stored::E8M0 => {
            "fn raw_scale(block: u32) -> u32 { return scales[block >> 2u]; }\n\
             fn scale_from(raw: u32, block: u32) -> f32 {\n    \
             let e = (raw >> ((block & 3u) * 8u)) & 255u;\n    \
             let bits = select(select(e << 23u, 0x00400000u, e == 0u), 0x7fc00000u, e == 255u);\n    \
             return bitcast<f32>(bits);\n}"
        }
        Stored::Nested => {
            "fn raw_scale(block: u32) -> u32 { return scales[block >> 2u]; }\n\
             fn scale_from(raw: u32, block: u32) -> f32 {\n    \
             let code = (raw >> ((block & 3u) * 8u)) & 255u;\n    \
             let nested = nested_absmax[block / p.nested_size];\n    \
             return rounded(nested_map[code] * nested.x) + nested.y;\n}"
        }
    }
}

/// `dense_at` and `dense4`, or for vectors `dense_quad`.
fn dense_values(dense: Option<DType>, vectors: bool) -> String {
    let (two, four) = match dense {
        Some(DType::BF16) => (
            "bitcast<vec2<f32>>(vec2<u32>(w << 16u, w & 0xffff0000u))",
            "vec4<f32>(two(v.x), two(v.y))",
        ),
        Some(DType::F16) => (
            "vec2<f32>(f16_value(w & 0xffffu), f16_value(w >> 16u))",
            "vec4<f32>(two(v.x), two(v.y))",
        ),
        _ => ("vec2<f32>(bitcast<f32>(w), 0.0)", "vec4<f32>()"),
    };
    let short = matches!(dense, Some(DType::BF16 | DType::F16));
    let head = format!(
        "fn two(w: u32) -> vec2<f32> {{ return {two}; }}\n\
         fn four(v: vec2<u32>) -> vec4<f32> {{ return {four}; }}\n"
    );
    let body = match (dense.is_some(), vectors, short) {
        (false, true, _) => {
            "fn dense_quad(v: vec4<u32>, q: u32) -> vec4<f32> { return vec4<f32>(); }"
        }
        (true, true, false) => {
            "fn dense_quad(v: vec4<u32>, q: u32) -> vec4<f32> { return bitcast<vec4<f32>>(v); }"
        }
        (true, true, true) => {
            "fn dense_quad(v: vec4<u32>, q: u32) -> vec4<f32> {\n    \
             return four(select(v.xy, v.zw, q == 1u));\n}"
        }
        (false, false, _) => {
            "fn dense_at(i: u32) -> f32 { return 0.0; }\n\
             fn dense4(i: u32) -> vec4<f32> { return vec4<f32>(); }"
        }
        (true, false, false) => {
            "fn dense_at(i: u32) -> f32 { return two(codes[i]).x; }\n\
             fn dense4(i: u32) -> vec4<f32> {\n    \
             return bitcast<vec4<f32>>(vec4<u32>(codes[i], codes[i + 1u], codes[i + 2u], codes[i + 3u]));\n}"
        }
        (true, false, true) => {
            "fn dense_at(i: u32) -> f32 { return two(codes[i >> 1u])[i & 1u]; }\n\
             fn dense4(i: u32) -> vec4<f32> { return four(vec2<u32>(codes[i >> 1u], codes[(i >> 1u) + 1u])); }"
        }
    };
    head + body
}
