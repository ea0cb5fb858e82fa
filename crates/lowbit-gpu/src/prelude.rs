//! What the kernels' bodies take for granted: types of activations and how they are read and written.
//!
//! Activations lie in buffers two by two, a *pair*: two f32, or two 16-bit numbers in a u32. A kernel
//! never writes half a pair, so that no two threads write to one word; rows of odd length are for
//! kernels that write f32, or that treat the tensor as flat.

use lowbit::DType;

use crate::kernel::{Builder, Needs};

/// Functions that every kernel may use.
const TYPES: &str = include_str!("kernels/types.wgsl");

impl Builder {
    /// `is_nan`, `bf16_bits`, `f16_bits`, `f16_value`.
    pub fn types(self) -> Self {
        self.text(TYPES)
    }

    /// The type `{prefix}2` of a pair of activations and of four, `{prefix}4`, with `{prefix}_unpack`,
    /// `{prefix}_unpack4` and `{prefix}_pack` (in lower case): to f32 and, rounded, back.
    ///
    /// With prefix `X`: `X2`, `X4`, `fn x_unpack(v: X2) -> vec2<f32>`,
    /// `fn x_unpack4(v: X4) -> vec4<f32>`, `fn x_pack(v: vec2<f32>) -> X2`; and eight, `X8`, with the halves
    /// `fn x_low(v: X8) -> vec4<f32>` and `x_high`, of which `x_eight` makes eight again.
    pub fn activations(self, prefix: &str, dtype: DType) -> Self {
        let low = prefix.to_lowercase();
        let (pair, four, unpack, pack) = match dtype {
            DType::F32 => ("vec2<f32>", "vec4<f32>", "v", "v"),
            DType::F16 => (
                "u32",
                "vec2<u32>",
                "vec2<f32>(f16_value(v & 0xffffu), f16_value(v >> 16u))",
                "f16_bits(v.x) | (f16_bits(v.y) << 16u)",
            ),
            DType::BF16 => (
                "u32",
                "vec2<u32>",
                "bitcast<vec2<f32>>(vec2<u32>(v << 16u, v & 0xffff0000u))",
                "bf16_bits(v.x) | (bf16_bits(v.y) << 16u)",
            ),
        };
        let unpack4 = match dtype {
            DType::F32 => "v".to_owned(),
            _ => format!("vec4<f32>({low}_unpack(v.x), {low}_unpack(v.y))"),
        };
        let eight = match dtype {
            DType::F32 => format!(
                "alias {prefix}8 = mat2x4<f32>;\n\
                 fn {low}_low(v: {prefix}8) -> vec4<f32> {{ return v[0]; }}\n\
                 fn {low}_high(v: {prefix}8) -> vec4<f32> {{ return v[1]; }}\n\
                 fn {low}_eight(a: vec4<f32>, b: vec4<f32>) -> {prefix}8 {{ return {prefix}8(a, b); }}"
            ),
            _ => {
                let packed = match dtype {
                    DType::BF16 => "bf16_eight(a, b)".to_owned(),
                    _ => format!(
                        "{prefix}8({low}_pack(a.xy), {low}_pack(a.zw), {low}_pack(b.xy), {low}_pack(b.zw))"
                    ),
                };
                format!(
                    "alias {prefix}8 = vec4<u32>;\n\
                     fn {low}_low(v: {prefix}8) -> vec4<f32> {{ return {low}_unpack4(v.xy); }}\n\
                     fn {low}_high(v: {prefix}8) -> vec4<f32> {{ return {low}_unpack4(v.zw); }}\n\
                     fn {low}_eight(a: vec4<f32>, b: vec4<f32>) -> {prefix}8 {{ return {packed}; }}"
                )
            }
        };
        let this = self.tag(dtype).text(&format!(
            "alias {prefix}2 = {pair};\n\
             alias {prefix}4 = {four};\n\
             fn {low}_unpack(v: {prefix}2) -> vec2<f32> {{ return {unpack}; }}\n\
             fn {low}_unpack4(v: {prefix}4) -> vec4<f32> {{ return {unpack4}; }}\n\
             fn {low}_pack(v: vec2<f32>) -> {prefix}2 {{ return {pack}; }}"
        ));
        this.text(&eight)
    }

    /// Subgroup operations.
    pub fn subgroups(self) -> Self {
        self.needs(Needs { subgroups: true, ..Needs::default() })
    }
}
