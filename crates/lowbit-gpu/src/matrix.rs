//! Products on matrix hardware: how they are cut into tiles, and the text of their kernels.

use lowbit::{DType, Result};
use serde::{Deserialize, Serialize};

use crate::kernel::{Access, Builder, Kernel, Needs};
use crate::memo::Memo;
use crate::queue::{Limits, Queue, count};
use crate::unroll::unroll;
use crate::weight::{Kind, params};

const MATRIX: &str = include_str!("kernels/gemm_matrix.wgsl");
const MERGE: &str = include_str!("kernels/gemm_merge.wgsl");
const PUT: &str = include_str!("kernels/gemm_put.wgsl");
const CHUNK_OCTET: &str = include_str!("kernels/chunk_octet.wgsl");
const CHUNK_NIBBLES: &str = include_str!("kernels/chunk_nibbles.wgsl");
const HALVES: &str = include_str!("kernels/halves.wgsl");

const PARAMS: &[&str] = params!("m", "share", "row_y", "first_y");

/// Leaves two sums of a tile that is in pieces.
const LEAVE: &str = "\
fn leave(i: u32, v: vec2<f32>) {
    partials[i] = v.x;
    partials[i + 1u] = v.y;
}";

/// Subgroups that leave results in workgroup memory at a time, unless parts of them add theirs.
const SLOTS: u32 = 4;
/// Threads of a group of the kernels beside the product.
const GROUP: u32 = 256;

/// How results are cut into tiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Tiles {
    /// Side of the adapter's matrices.
    pub side: u32,
    /// Rows of activations in a tile.
    pub m: u32,
    /// Rows of weights in a tile.
    pub n: u32,
    /// Subgroups of 32 side by side over those.
    pub across: u32,
    /// Threads of a group.
    pub group: u32,
    /// Parts of those, each of which takes other terms of a step.
    pub slices: u32,
    /// Terms of a step for each part.
    pub depth: u32,
    /// Steps whose weights are on their way.
    pub ahead: u32,
    /// Tables of pairs of four-bit codes: more of them mean fewer conflicts of banks, and less memory.
    pub replicas: u32,
    /// Whether tiles may be in pieces.
    pub cut: bool,
    /// Whether matrices can be loaded from memory that is declared as vectors.
    pub vectors: bool,
}

/// How the work of a product on matrix hardware is dealt to groups of threads. Whatever is chosen, each
/// sum is taken in one order, so that results are the same in every run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// A tile of results to a group.
    Whole,
    /// A tile to at most so many groups, each of which takes as many of its terms (split-K).
    Split(u32),
    /// The terms of all tiles, one line, in equal parts to about so many groups (stream-K).
    Stream(u32),
}

/// What is dealt.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deal {
    /// Tiles.
    pub tiles: u32,
    /// Steps of a tile.
    pub steps: u32,
    /// Steps that a group takes.
    pub share: u32,
    /// Groups.
    pub groups: u32,
}

impl Tiles {
    /// For `m` rows of activations and `n` of weights of length `k`.
    ///
    /// # Errors
    /// [`lowbit::Error::Argument`] for sizes beyond 32 bits.
    pub fn deal(&self, [m, n, k]: [usize; 3], schedule: Schedule, limits: &Limits) -> Result<Deal> {
        let tiles = m.div_ceil(self.m as usize) * n.div_ceil(self.n as usize);
        let steps = k / self.terms() as usize;
        let all = tiles * steps;
        let most = limits.groups.max(1) as usize;
        let share = match schedule {
            Schedule::Stream(groups) if self.cut => all.div_ceil(most.min(groups.max(1) as usize)),
            Schedule::Split(parts) if self.cut => {
                let parts = (1..=parts.max(1) as usize).rev().find(|p| steps.is_multiple_of(*p));
                (steps / parts.unwrap_or(1)).max(all.div_ceil(most))
            }
            _ => steps * tiles.div_ceil(most),
        };
        const OP: &str = "linear";
        count(OP, all)?;
        Ok(Deal {
            tiles: count(OP, tiles)?,
            steps: count(OP, steps)?,
            share: count(OP, share)?,
            groups: count(OP, all.div_ceil(share))?,
        })
    }

    /// Terms of a step.
    pub fn terms(&self) -> u32 {
        self.slices * self.depth
    }

    /// Weights of two steps, padded against conflicts of banks.
    fn numbers(&self) -> u32 {
        2 * self.slices * self.n * (self.depth + 8)
    }

    /// Subgroups that leave results in workgroup memory at a time.
    fn slots(&self) -> u32 {
        let subgroups = self.group / 32;
        if self.slices == 1 { subgroups.min(SLOTS) } else { subgroups }
    }

    /// Numbers of the results that leave at a time.
    fn results(&self) -> u32 {
        self.slots() * self.side * self.side
    }

    /// Workgroup memory that a group takes for weights of that kind.
    pub fn workgroup_bytes(&self, kind: &Kind) -> u32 {
        let table = match kind.has_nibble_vectors() {
            true => 4 * 256 * self.replicas,
            false => kind.table_bytes(),
        };
        table + 2 * self.numbers() + 4 * (self.results() + self.m)
    }

    /// Whether loads of weights are kept from being moved to where they are decoded. That takes registers,
    /// of which codes of bits leave few: with them, it pays in large tiles alone.
    fn keeps_loads(&self, kind: &Kind) -> bool {
        kind.is_light() || self.m >= 256
    }

    /// Numbers of all pieces of tiles: at most two a group.
    pub fn pieces(&self, deal: &Deal) -> u64 {
        match self.cut {
            true => 2 * u64::from(deal.groups) * u64::from(self.m * self.n),
            false => 0,
        }
    }

    /// The product, where `inputs` declares the weight and activations `X`, and `output` what becomes
    /// of results.
    pub fn kernel(
        &self,
        inputs: Builder,
        kind: &Kind,
        output: impl Fn(Builder) -> Builder,
    ) -> Kernel {
        let Tiles { side, m, n, across, group, slices, depth, ahead, replicas, cut, vectors } =
            *self;
        let team = group / slices;
        let down = team / 32 / across;
        let (rows, cols) = (m / down / side, n / across / side);
        let (chunks, chunk) = match kind.has_nibble_vectors() {
            true => (CHUNK_NIBBLES, 32),
            false => (CHUNK_OCTET, 8),
        };
        let slots = self.slots();
        let halves = if vectors { "array<vec4<f16>>" } else { "array<f16>" };
        let mut builder =
            inputs.bind("x", Access::Read, halves).bind("ups", Access::Read, "array<f32>");
        if cut {
            builder = builder.bind("partials", Access::ReadWrite, "array<f32>").text(LEAVE);
        } else {
            builder = builder.text("fn leave(i: u32, v: vec2<f32>) {}");
        }
        let counts = [
            ("ROWS", rows),
            ("COLS", cols),
            ("TERMS", depth / side),
            ("AHEAD", ahead),
            ("WS", (n * depth / chunk).div_ceil(team)),
            ("TURNS", group / 32 / slots),
            ("PAIRS", side * side / 64),
        ];
        let body = unroll(MATRIX, &counts)
            .replace("MATRIX", &format!("coop_mat{side}x{side}"))
            .replace("LAST", &ahead.to_string());
        let builder = match kind.has_nibble_vectors() {
            true => builder
                .tag(replicas)
                .constant("REPLICAS", replicas)
                .constant("PAIRS_OF_CODES", 256 * replicas)
                .text(chunks),
            false => builder.octets(kind).text(chunks),
        };
        self.constants(output(builder), group)
            .constant("SIDE", side)
            .constant("ACROSS", across)
            .constant("ROWS", rows)
            .constant("COLS", cols)
            .constant("TERMS", depth / side)
            .constant("AHEAD", ahead)
            .flag("KEEP_LOADS", self.keeps_loads(kind))
            .constant("SLOTS", slots)
            .text(&format!("var<workgroup> results: array<f32, {}>;", self.results()))
            .text(&tile(self.numbers(), vectors))
            .needs(Needs { f16: true, subgroups: true, matrix: Some(side) })
            .build(PARAMS, "gemm_matrix", group, &body)
    }

    /// What adds the pieces of tiles.
    pub fn merge(&self, builder: Builder, output: impl Fn(Builder) -> Builder) -> Kernel {
        let builder = builder.bind("ups", Access::Read, "array<f32>").bind(
            "partials",
            Access::Read,
            "array<f32>",
        );
        self.constants(output(builder), GROUP).build(PARAMS, "gemm_merge", GROUP, MERGE)
    }

    /// Rows of `x: [M, K]` as half floats, padded to whole tiles, and the power of two of each.
    ///
    /// # Errors
    /// As [`Queue::dispatch`].
    pub fn halves<Q: Queue>(
        &self,
        queue: &Q,
        x: &Q::Buffer,
        m: usize,
        k: usize,
        dtype: DType,
    ) -> Result<[Q::Buffer; 2]> {
        static KERNELS: Memo<(DType, u32)> = Memo::new();
        let kernel = KERNELS.get((dtype, self.side), |(dtype, side)| {
            Builder::new("halves")
                .tag(side)
                .types()
                .activations("X", *dtype)
                .bind("x", Access::Read, "array<X8>")
                .bind("halves_of_x", Access::ReadWrite, "array<vec4<f16>>")
                .bind("ups", Access::ReadWrite, "array<f32>")
                .constant("SIDE", *side)
                .needs(Needs { f16: true, ..Needs::default() })
                .build(&["m", "k"], "halves", GROUP, HALVES)
        });
        let rows = m.next_multiple_of(self.m as usize);
        let out = [queue.scratch(2 * (rows * k) as u64)?, queue.scratch(4 * rows as u64)?];
        let params = [count("linear", m)?, count("linear", k)?];
        queue.dispatch(&kernel, &[x, &out[0], &out[1]], &params, [count("linear", rows)?, 1, 1])?;
        Ok(out)
    }

    fn constants(&self, builder: Builder, group: u32) -> Builder {
        let Tiles { side, m, n, across, slices, depth, ahead, cut, vectors, .. } = *self;
        let how = if vectors { "v" } else { "" };
        builder
            .tag(format!("{side}x{m}x{n}x{across}x{group}x{slices}x{depth}x{ahead}{how}"))
            .tag(if cut { "cut" } else { "whole" })
            .constant("TILE_M", m)
            .constant("TILE_N", n)
            .constant("DEPTH", depth)
            .constant("SLICES", slices)
            .flag("CUT", cut)
            .text(PUT)
    }
}

/// Tiles in workgroup memory: in vectors, or in numbers of their own type, which every host takes.
fn tile(numbers: u32, vectors: bool) -> String {
    let (unit, ty, len) = if vectors { (2, "vec4<f16>", numbers / 4) } else { (8, "f16", numbers) };
    let stores: String = match vectors {
        true => "    tile[2u * at] = v.low;\n    tile[2u * at + 1u] = v.high;\n".into(),
        false => (0..8)
            .map(|i| {
                let (half, lane) = (["low", "high"][i / 4], ["x", "y", "z", "w"][i % 4]);
                format!("    tile[8u * at + {i}u] = v.{half}.{lane};\n")
            })
            .collect(),
    };
    format!(
        "const TILE_UNIT = {unit}u;\nvar<workgroup> tile: array<{ty}, {len}>;\n\
         fn put_octet(at: u32, v: Halves) {{\n{stores}}}"
    )
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use lowbit::{Cpu, DType, DenseTensor, Result, Weight, formats};

    use crate::{GpuWeight, Kernel, Limits, Queue, linear};

    /// Takes kernels down.
    struct Recorder {
        limits: Limits,
        kernels: Mutex<Vec<Kernel>>,
    }

    impl Queue for Recorder {
        type Buffer = ();
        fn limits(&self) -> &Limits {
            &self.limits
        }
        fn zeros(&self, _: u64) -> Result<()> {
            Ok(())
        }
        fn scratch(&self, _: u64) -> Result<()> {
            Ok(())
        }
        fn upload(&self, _: &[u8]) -> Result<()> {
            Ok(())
        }
        fn dispatch(&self, kernel: &Kernel, _: &[&()], _: &[u32], _: [u32; 3]) -> Result<()> {
            self.kernels.lock().unwrap().push(kernel.clone());
            Ok(())
        }
        fn read(&self, (): &(), bytes: u64) -> Result<Vec<u8>> {
            Ok(vec![0; bytes as usize])
        }
    }

    fn recorder(vector_tiles: bool) -> Recorder {
        let limits = Limits {
            subgroup: (32, 32),
            f16: true,
            subgroups: true,
            matrix: Some(16),
            vector_tiles,
            binding: 1 << 31,
            threads: 1024,
            workgroup_memory: 48 << 10,
            groups: 65535,
        };
        Recorder { limits, kernels: Mutex::default() }
    }

    /// No test machine loads matrices from vectors, but their text is checked and becomes SPIR-V.
    #[test]
    fn kernels_for_matrix_hardware_are_valid() {
        let numbers: Vec<f32> = (0..96 * 128).map(|i| (i as f32).sin()).collect();
        let dense = |dtype: DType| {
            let bytes = vec![0u8; 96 * 128 * dtype.size()];
            DenseTensor::new(dtype, vec![96, 128], bytes.into()).unwrap().into()
        };
        let mut weights: Vec<Weight> = [DType::F32, DType::F16, DType::BF16].map(dense).into();
        for format in formats::ALL.iter().filter(|f| f.encoder.is_some()) {
            let q = Cpu::best().quantize(format, &numbers, &[96, 128], None).unwrap();
            weights.push(q.into());
        }
        for (weight, vectors) in weights.iter().flat_map(|w| [(w, true), (w, false)]) {
            let queue = recorder(vectors);
            let w = GpuWeight::upload(&queue, weight).unwrap();
            for m in [8, 16, 32, 64, 65, 128, 256, 512, 4096] {
                linear(&queue, &(), m, &w, None, DType::BF16).unwrap();
            }
            let kernels = queue.kernels.into_inner().unwrap();
            assert!(kernels.iter().any(|k| k.entry == "gemm_matrix"));
            for kernel in kernels {
                if let Err(e) = to_spirv(&kernel) {
                    panic!("{}: {e}\n{}", kernel.name, kernel.source);
                }
            }
        }
    }

    fn to_spirv(kernel: &Kernel) -> std::result::Result<(), String> {
        let module = naga::front::wgsl::parse_str(&kernel.source)
            .map_err(|e| e.emit_to_string(&kernel.source))?;
        let mut validator = naga::valid::Validator::new(
            naga::valid::ValidationFlags::all(),
            naga::valid::Capabilities::all(),
        );
        let info = validator.validate(&module).map_err(|e| e.emit_to_string(&kernel.source))?;
        let options = naga::back::spv::Options { lang_version: (1, 4), ..Default::default() };
        naga::back::spv::write_vec(&module, &info, &options, None).map_err(|e| e.to_string())?;
        Ok(())
    }
}
