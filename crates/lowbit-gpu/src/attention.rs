//! Attention with a cache of keys and values.
//!
//! One position, a step of decoding, is one kernel: it turns the query and the key, appends to the
//! cache and attends. More positions are appended first, then attend in tiles. Where there are many
//! positions and few heads, each kernel splits them into parts, which are merged afterwards.

use lowbit::device::{Attention, CacheShape};
use lowbit::{DType, Result};

use crate::elementwise::{GROUP, bytes, flat};
use crate::kernel::{Access, Builder, Kernel};
use crate::memo::Memo;
use crate::queue::{Queue, count, cover};
use crate::rope::rope;

const SHARED: &str = include_str!("kernels/attention.wgsl");
const CACHE: &str = include_str!("kernels/attention_cache.wgsl");
const APPEND: &str = include_str!("kernels/attention_append.wgsl");
const DECODE: &str = include_str!("kernels/attention_decode.wgsl");
const TILE: &str = include_str!("kernels/attention_tile.wgsl");
const MERGE: &str = include_str!("kernels/attention_merge.wgsl");
const WHOLE: &str = include_str!("kernels/attention_whole.wgsl");
const PART: &str = include_str!("kernels/attention_part.wgsl");

/// Threads of a group of `attention_tile.wgsl`, and rows of its tiles.
const TILE_GROUP: u32 = 128;
const TILE_ROWS: u32 = 32;
/// Lanes of a team in `attention_decode.wgsl`.
const TEAM: u32 = 8;
/// f32 numbers of workgroup memory that its teams may fill, and vectors of sums in a thread.
const TEAM_NUMBERS: u32 = 4096;
const TEAM_SUMS: u32 = 16;
/// A part has so many positions at least, and no more than so many groups of threads are made.
const PART_POSITIONS: u32 = 512;
const GROUPS: u32 = 256;

/// Keys and values of a layer: `[kv_heads, capacity, stride]` each, of the type of activations,
/// where `stride` is `head_dim` in whole fours.
#[derive(Debug, Clone)]
pub struct Layer<B> {
    keys: B,
    values: B,
}

impl<B> Layer<B> {
    /// A layer of which nothing has been written.
    ///
    /// # Errors
    /// As [`Queue::scratch`].
    pub fn new<Q: Queue<Buffer = B>>(queue: &Q, shape: CacheShape, dtype: DType) -> Result<Self> {
        let bytes = Self::bytes(shape, dtype) / 2;
        Ok(Layer { keys: queue.scratch(bytes)?, values: queue.scratch(bytes)? })
    }

    /// Bytes of a layer.
    pub fn bytes(shape: CacheShape, dtype: DType) -> u64 {
        let padded = shape.head_dim.checked_next_multiple_of(4).unwrap_or(usize::MAX);
        CacheShape { layers: 1, head_dim: padded, ..shape }.bytes(dtype.size())
    }
}

/// Queries, keys and values of new positions.
#[derive(Debug)]
pub struct Heads<'a, B> {
    /// `[T, heads * head_dim]`.
    pub q: &'a B,
    /// `[T, kv_heads * head_dim]`.
    pub k: &'a B,
    /// `[T, kv_heads * head_dim]`.
    pub v: &'a B,
    /// `T`.
    pub rows: usize,
    /// Angles by which queries and keys are to be turned, and the row of the first position.
    pub turns: Option<(&'a B, u32)>,
}

/// What the text of the kernels depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Kind {
    entry: &'static str,
    dtype: DType,
    head_dim: u32,
    kv_heads: u32,
    /// Heads of queries that share one of keys, and how many of them a group of threads takes.
    shared: u32,
    heads: u32,
    turn: bool,
    parts: bool,
    group: u32,
}

static KERNELS: Memo<Kind> = Memo::new();

/// Appends keys and values to a layer that has `past` of `capacity` positions, and attends:
/// `[T, heads * head_dim]`. The shapes fit each other, and there is room.
///
/// # Errors
/// As [`Queue::dispatch`].
pub fn attention<Q: Queue>(
    queue: &Q,
    dtype: DType,
    new: Heads<'_, Q::Buffer>,
    layer: &Layer<Q::Buffer>,
    [past, capacity]: [usize; 2],
    attention: &Attention,
) -> Result<Q::Buffer> {
    const OP: &str = "attention";
    let Attention { heads, kv_heads, head_dim, scale, window } = *attention;
    let numbers = new.rows * heads * head_dim;
    if numbers == 0 {
        return queue.zeros(0);
    }
    let rows = count(OP, new.rows)?;
    let kind = Kind {
        entry: "attention_append",
        dtype,
        head_dim: count(OP, head_dim)?,
        kv_heads: count(OP, kv_heads)?,
        shared: count(OP, heads / kv_heads)?,
        heads: 1,
        turn: new.turns.is_some(),
        parts: false,
        group: GROUP,
    };
    let call = Call {
        queue,
        kind,
        new,
        layer,
        rows,
        past: count(OP, past)?,
        capacity: count(OP, capacity)?,
        scale: scale.to_bits(),
        window: window.map_or(u32::MAX, |w| u32::try_from(w).unwrap_or(u32::MAX)),
    };
    count(OP, kv_heads * capacity * head_dim.next_multiple_of(4))?;
    count(OP, numbers)?;
    if call.decodes() {
        return call.decode();
    }
    call.append()?;
    match window {
        // Nothing is seen.
        Some(0) => queue.zeros(bytes(numbers, dtype)),
        _ => call.tile(),
    }
}

/// One attention, in the numbers of its kernels.
struct Call<'a, Q: Queue> {
    queue: &'a Q,
    kind: Kind,
    new: Heads<'a, Q::Buffer>,
    layer: &'a Layer<Q::Buffer>,
    rows: u32,
    past: u32,
    capacity: u32,
    scale: u32,
    window: u32,
}

impl<Q: Queue> Call<'_, Q> {
    fn stride(&self) -> u32 {
        self.kind.head_dim.next_multiple_of(4)
    }

    /// Threads of a group for which the sums of all teams fit.
    fn decode_group(&self) -> u32 {
        1 << (TEAM * TEAM_NUMBERS / self.stride()).clamp(1, GROUP).ilog2()
    }

    /// Whether it is for `attention_decode.wgsl`.
    fn decodes(&self) -> bool {
        let limits = self.queue.limits();
        self.rows == 1
            && self.window > 0
            && limits.subgroups
            && limits.subgroup.0 >= TEAM
            && self.decode_group() >= limits.subgroup.1
    }

    /// The first position that the first row sees.
    fn first(&self) -> u32 {
        (self.past + 1).saturating_sub(self.window)
    }

    /// Into how many parts to split positions that so many groups of threads share, and positions
    /// in each.
    fn parts(&self, groups: u32) -> (u32, u32) {
        let positions = self.past + self.rows - self.first();
        let most = (GROUPS / groups.max(1)).max(1);
        let parts = (positions / PART_POSITIONS).clamp(1, most);
        (parts, positions.div_ceil(parts))
    }

    fn append(&self) -> Result<()> {
        let kernel = KERNELS.get(self.kind, kernel);
        let fours = u64::from(self.rows * self.kind.kv_heads) * u64::from(self.stride() / 4);
        let (turns, first) = self.new.turns.unzip();
        let buffers: Vec<&Q::Buffer> = [self.new.k, self.new.v]
            .into_iter()
            .chain(turns)
            .chain([&self.layer.keys, &self.layer.values])
            .collect();
        let params = [self.past, self.capacity, first.unwrap_or(0), self.rows];
        self.queue.dispatch(&kernel, &buffers, &params, cover(fours, GROUP, self.queue.limits()))
    }

    fn decode(&self) -> Result<Q::Buffer> {
        let Kind { kv_heads, shared, .. } = self.kind;
        let own = (self.stride() / 4).div_ceil(TEAM);
        let positions = self.past + 1 - self.first();
        // Few positions are soon read; many are read once for several heads.
        let most = if positions > 2 * PART_POSITIONS { (TEAM_SUMS / own).max(1) } else { 1 };
        let chunks = shared.div_ceil(most);
        let (parts, span) = self.parts(kv_heads * chunks);
        let kind = Kind {
            entry: "attention_decode",
            heads: shared.div_ceil(chunks),
            parts: parts > 1 || self.kind.head_dim % 2 == 1,
            group: self.decode_group(),
            ..self.kind
        };
        let (turns, first) = self.new.turns.unzip();
        let inputs = [self.new.q, self.new.k, self.new.v].into_iter().chain(turns);
        let inputs = inputs.chain([&self.layer.keys, &self.layer.values]);
        let first = first.unwrap_or(0);
        let params = [self.past, self.capacity, first, self.first(), span, self.scale];
        self.give(kind, inputs.collect(), &params, [kv_heads * chunks, parts, 1], parts)
    }

    fn tile(&self) -> Result<Q::Buffer> {
        let Kind { kv_heads, shared, head_dim, .. } = self.kind;
        let turned = match self.new.turns {
            None => None,
            Some((turns, first)) => {
                let shape = [self.new.rows, (kv_heads * shared * head_dim) as usize];
                let head_dim = head_dim as usize;
                Some(rope(self.queue, self.kind.dtype, self.new.q, shape, head_dim, turns, first)?)
            }
        };
        let q = turned.as_ref().unwrap_or(self.new.q);
        let tiles = (self.rows * shared).div_ceil(TILE_ROWS);
        let (parts, span) = self.parts(tiles.saturating_mul(kv_heads));
        let parts_or_odd = parts > 1 || head_dim % 2 == 1;
        let kind = Kind {
            entry: "attention_tile",
            turn: false,
            parts: parts_or_odd,
            group: TILE_GROUP,
            ..self.kind
        };
        let params = [self.past, self.capacity, self.rows, span, self.scale, self.window];
        let inputs = vec![q, &self.layer.keys, &self.layer.values];
        self.give(kind, inputs, &params, [tiles, kv_heads, parts], parts)
    }

    /// Runs a kernel that attends, and merges its parts.
    fn give(
        &self,
        kind: Kind,
        inputs: Vec<&Q::Buffer>,
        params: &[u32],
        groups: [u32; 3],
        parts: u32,
    ) -> Result<Q::Buffer> {
        let Kind { dtype, head_dim, .. } = kind;
        let heads = self.rows * kind.kv_heads * kind.shared;
        let numbers = (heads * head_dim) as usize;
        let y = if kind.parts {
            let numbers = u64::from(heads) * u64::from(parts) * u64::from(head_dim + 2);
            count(kind.entry, usize::try_from(numbers).unwrap_or(usize::MAX))?;
            self.queue.scratch(4 * numbers)?
        } else {
            self.queue.scratch(bytes(numbers, dtype))?
        };
        let buffers = [inputs, vec![&y]].concat();
        self.queue.dispatch(&KERNELS.get(kind, kernel), &buffers, params, groups)?;
        if !kind.parts {
            return Ok(y);
        }
        let merge = KERNELS.get(Kind { entry: "attention_merge", group: GROUP, ..kind }, kernel);
        flat(self.queue, &merge, dtype, &[&y], &[heads, parts], numbers)
    }
}

fn kernel(kind: &Kind) -> Kernel {
    let Kind { entry, dtype, kv_heads, shared, heads, turn, parts, group, .. } = *kind;
    let builder = Builder::new(entry)
        .types()
        .activations("X", dtype)
        .head(kind.head_dim)
        .constant("STRIDE", kind.head_dim.next_multiple_of(4))
        .text(SHARED);
    if entry == "attention_merge" {
        return builder
            .bind("x", Access::Read, "array<f32>")
            .bind("y", Access::ReadWrite, "array<X2>")
            .build(&["pairs", "heads", "parts"], entry, group, MERGE);
    }
    let builder = builder
        .tag(format!("{kv_heads}x{shared}"))
        .constant("KV_HEADS", kv_heads)
        .constant("SHARED", shared);
    let read = |builder: Builder, name| builder.bind(name, Access::Read, "array<X2>");
    let turns = |builder: Builder| match turn {
        true => builder.tag("turn").bind("turns", Access::Read, "array<vec2<f32>>"),
        false => builder,
    };
    let cache = |builder: Builder, access| {
        builder.bind("keys", access, "array<X4>").bind("values", access, "array<X4>")
    };
    let give = |builder: Builder| match parts {
        true => builder.tag("part").bind("y", Access::ReadWrite, "array<f32>").text(PART),
        false => builder.bind("y", Access::ReadWrite, "array<X2>").text(WHOLE),
    };
    match entry {
        "attention_append" => {
            let builder = turns(read(read(builder, "k"), "v"));
            cache(builder, Access::ReadWrite).turned("k", turn).at("v").text(CACHE).build(
                &["past", "capacity", "turn", "rows"],
                entry,
                group,
                APPEND,
            )
        }
        "attention_decode" => {
            let builder = turns(read(read(read(builder, "q"), "k"), "v"));
            give(cache(builder, Access::ReadWrite))
                .tag(heads)
                .constant("HEADS", heads)
                .turned("q", turn)
                .turned("k", turn)
                .at("v")
                .text(CACHE)
                .subgroups()
                .build(
                    &["past", "capacity", "turn", "start", "span", "scale"],
                    entry,
                    group,
                    DECODE,
                )
        }
        _ => give(cache(read(builder, "q"), Access::Read)).at("q").build(
            &["past", "capacity", "rows", "span", "scale", "window"],
            entry,
            group,
            TILE,
        ),
    }
}
