//! Optimizers on the GPU: the steps of [`lowbit::optim`], each one pass over parameter, gradient and
//! moments.
//!
//! Rules, settings and what moments are is said there, and a step here is what
//! [`reference`](lowbit::optim::reference) says, up to the last bits of a GPU's divisions and roots. What
//! does not pass through them is the same to the bit: which code is nearest to a number, the largest
//! magnitude of a block, the parameter's rounding. Numbers below the smallest normal one, 1.2e-38, may
//! count as zero.
//!
//! ```no_run
//! # fn main() -> lowbit::Result<()> {
//! use lowbit::DType;
//! use lowbit::optim::{Rule, Settings};
//! use lowbit_gpu::optim::{Optimizer, Parameter, State};
//! use lowbit_gpu::{Adapter, Gpu, Queue};
//!
//! let gpu = Gpu::open(&Adapter::find(None)?, false)?;
//! let optimizer = Optimizer::new(&gpu, Rule::Adam)?;
//! let mut state = State::new(&gpu, Rule::Adam, 8192)?;
//! let p = gpu.upload(&vec![0; 2 * 8192])?;
//! let g = gpu.upload(&vec![0; 2 * 8192])?;
//! let parameter = Parameter { dtype: DType::BF16, len: 8192, p: &p, g: &g };
//! optimizer.step(&gpu, &Settings::of(Rule::Adam), &parameter, &mut state)?;
//! # Ok(())
//! # }
//! ```

mod state;

pub use state::{Moment, State};

use lowbit::optim::{BLOCK_SIZE, Coefficients, Map, Rule, Settings};
use lowbit::{DType, Error, Result};

use crate::kernel::{Access, Builder, Kernel};
use crate::memo::Memo;
use crate::queue::{Queue, cover};
use crate::unroll::unroll;

const SHARED: &str = include_str!("kernels/optimizer.wgsl");
const STEP: &str = include_str!("kernels/optimizer_step.wgsl");
const NORMS: &str = include_str!("kernels/optimizer_norms.wgsl");
const LIMIT: &str = include_str!("kernels/optimizer_limit.wgsl");
const SUM_OF_GROUP: &str = include_str!("kernels/sum_of_group.wgsl");
const CODES: &str = include_str!("kernels/moments_codes.wgsl");
const KEEP_CODES: &str = include_str!("kernels/moments_keep_codes.wgsl");
const NUMBERS: &str = include_str!("kernels/moments_numbers.wgsl");
const KEEP_NUMBERS: &str = include_str!("kernels/moments_keep_numbers.wgsl");
const DIVIDE: &str = include_str!("kernels/divide.wgsl");

const OP: &str = "optimizer_update";
/// Threads of a group: a thread takes four numbers at a time, so that a group has whole blocks.
const GROUP: u32 = 256;
/// Groups of a step at most: each loads the maps once, and then takes its turns.
const STEP_GROUPS: u32 = 4096;
/// Groups whose sums make a norm at most.
const NORM_GROUPS: u32 = 1024;
/// Values and thresholds of a map.
const MAP_LEN: usize = 512;
/// Moments of a rule at most.
const MOST: usize = 3;

const PARAMS: &[&str] = &[
    "n",
    "fours",
    "grad_scale",
    "l2",
    "before",
    "rate",
    "after",
    "decay_0",
    "share_0",
    "decay_1",
    "share_1",
    "decay_2",
    "share_2",
    "mix_0",
    "mix_1",
    "root",
    "eps",
];
const CODE_NAMES: [&str; MOST] = ["codes_0", "codes_1", "codes_2"];
const ABSMAX_NAMES: [&str; MOST] = ["absmax_0", "absmax_1", "absmax_2"];
const NUMBER_NAMES: [&str; MOST] = ["numbers_0", "numbers_1", "numbers_2"];

/// A parameter and its gradient: `len` numbers each, of a type, in buffers that can be read up to a
/// multiple of 16 bytes.
#[derive(Debug)]
pub struct Parameter<'a, B> {
    /// Their type.
    pub dtype: DType,
    /// How many there are.
    pub len: usize,
    /// The parameter, which a step changes.
    pub p: &'a B,
    /// The gradient.
    pub g: &'a B,
}

/// A rule on a GPU, ready to take steps of any number of parameters.
#[derive(Debug)]
pub struct Optimizer<B> {
    rule: Rule,
    /// Values and thresholds of the rule's different maps.
    maps: B,
}

impl<B: Clone> Optimizer<B> {
    /// Uploads what the rule's codes stand for.
    ///
    /// # Errors
    /// As [`Queue::upload`].
    pub fn new<Q: Queue<Buffer = B>>(queue: &Q, rule: Rule) -> Result<Self> {
        let content: Vec<f32> = maps(rule).iter().flat_map(|map| table(map)).collect();
        Ok(Optimizer { rule, maps: queue.upload(bytemuck::cast_slice(&content))? })
    }

    /// Its rule.
    pub fn rule(&self) -> Rule {
        self.rule
    }

    /// Queues one step, which `state` counts. See [`update`](Self::update).
    ///
    /// # Errors
    /// [`Error::Argument`] if `state` is that of another rule or of another number of parameters; and as
    /// [`update`](Self::update).
    pub fn step<Q: Queue<Buffer = B>>(
        &self,
        queue: &Q,
        settings: &Settings,
        parameter: &Parameter<'_, B>,
        state: &mut State<B>,
    ) -> Result<()> {
        let expected = (self.rule.name(), parameter.len);
        let got = (state.rule().name(), state.len());
        if expected != got {
            return Err(Error::argument(
                OP,
                format!("the state of {} numbers under {}", expected.1, expected.0),
                format!("that of {} under {}", got.1, got.0),
                "pass one parameter, its gradient and its own state",
            ));
        }
        let step = state.step() + 1;
        self.update(queue, settings, step, parameter, state.moments())?;
        state.set_step(step);
        Ok(())
    }

    /// Queues step number `step`, from 1 on, of a parameter with the moments that [`Rule::moments`]
    /// names, each of as many numbers, in f32 arithmetic whatever the type of the parameter.
    ///
    /// What is not finite goes as with [`Cpu::optimizer_update`](lowbit::Cpu::optimizer_update). With
    /// [`Settings::max_update_norm`] the norms are taken first, by two more kernels; sums of squares
    /// are f32 here, and norms for which these are too large limit nothing.
    ///
    /// # Errors
    /// [`Error::Argument`] if the moments are not those of the rule, a setting is out of its range, or
    /// the parameter takes more than one binding; and as [`Queue::dispatch`].
    pub fn update<Q: Queue<Buffer = B>>(
        &self,
        queue: &Q,
        settings: &Settings,
        step: u64,
        parameter: &Parameter<'_, B>,
        moments: &[Moment<B>],
    ) -> Result<()> {
        let Some(task) = self.task(queue, settings, step, parameter, moments)? else {
            return Ok(());
        };
        let limited = match settings.max_update_norm > 0.0 {
            false => None,
            true => Some(task.limit(queue, settings)?),
        };
        let Task { kind, fours, params, mut buffers, .. } = task;
        buffers.extend(&limited);
        static KERNELS: Memo<(Kind, bool)> = Memo::new();
        let key = (kind, limited.is_some());
        let kernel = KERNELS.get(key, |(kind, is_limited)| step_kernel(*kind, *is_limited));
        queue.dispatch(&kernel, &buffers, &params, groups(queue, fours, STEP_GROUPS))
    }

    /// Queues what the step would move the parameter by, and moves nothing: one f32, the norm of the
    /// update before a limit and before the learning rate.
    ///
    /// # Errors
    /// As [`update`](Self::update).
    pub fn update_norm<Q: Queue<Buffer = B>>(
        &self,
        queue: &Q,
        settings: &Settings,
        step: u64,
        parameter: &Parameter<'_, B>,
        moments: &[Moment<B>],
    ) -> Result<B> {
        match self.task(queue, settings, step, parameter, moments)? {
            None => queue.zeros(4),
            Some(task) => task.limit(queue, settings),
        }
    }

    /// What the kernels of a step have in common; `None` where there are no numbers.
    fn task<'a, Q: Queue<Buffer = B>>(
        &'a self,
        queue: &Q,
        settings: &Settings,
        step: u64,
        parameter: &Parameter<'a, B>,
        moments: &'a [Moment<B>],
    ) -> Result<Option<Task<'a, B>>> {
        let c = Coefficients::of(self.rule, settings, step)?;
        let in_codes = self.check(queue, parameter, moments)?;
        if parameter.len == 0 {
            return Ok(None);
        }
        let kind = Kind { rule: self.rule, dtype: parameter.dtype, in_codes };
        let mut buffers = vec![parameter.p, parameter.g];
        for moment in moments {
            match moment {
                Moment::F32(numbers) => buffers.push(numbers),
                Moment::Bits8 { codes, absmax } => buffers.extend([codes, absmax]),
            }
        }
        if in_codes {
            buffers.push(&self.maps);
        }
        let n = parameter.len as u32;
        let fours = n.div_ceil(4);
        Ok(Some(Task { kind, fours, params: params(n, fours, &c), buffers, c }))
    }

    /// Whether the moments are codes.
    fn check<Q: Queue<Buffer = B>>(
        &self,
        queue: &Q,
        parameter: &Parameter<'_, B>,
        moments: &[Moment<B>],
    ) -> Result<bool> {
        let refuse = |expected: String, got: String, help: &str| {
            Err(Error::argument(OP, expected, got, help))
        };
        let wanted = self.rule.moments().len();
        if moments.len() != wanted {
            let expected = format!("{wanted} moments for {}", self.rule.name());
            return refuse(expected, moments.len().to_string(), "pass the parameter's own state");
        }
        let in_codes = matches!(moments.first(), Some(Moment::Bits8 { .. }));
        if moments.iter().any(|moment| matches!(moment, Moment::Bits8 { .. }) != in_codes) {
            let got = "f32 and 8-bit ones".to_owned();
            return refuse("moments of one width".into(), got, "pass the parameter's own state");
        }
        let each = if in_codes { parameter.dtype.size() } else { 4 };
        let most = (queue.limits().binding / each as u64).min(1 << 31);
        if parameter.len as u64 > most {
            let expected = format!("at most {most} numbers, what one binding holds here");
            return refuse(expected, parameter.len.to_string(), "split the parameter");
        }
        Ok(in_codes)
    }
}

/// What the text of a step depends on, besides a limit of its norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Kind {
    rule: Rule,
    dtype: DType,
    in_codes: bool,
}

/// How a rule goes, in WGSL: `m` are moments, `g` the gradient, `d_i` and `s_i` the decay of moment `i`
/// and the share of what is new; `towards` is to become the direction. As `optim/reference.rs`.
fn formula(rule: Rule) -> &'static str {
    match rule {
        Rule::Adam => {
            "(*m)[0] = (*m)[0] * d_0 + s_0 * g;
             (*m)[1] = (*m)[1] * d_1 + (s_1 * g) * g;
             towards = (*m)[0] / (sqrt((*m)[1]) + eps);"
        }
        Rule::AdEmaMix => {
            "(*m)[0] = (*m)[0] * d_0 + s_0 * g;
             (*m)[1] = (*m)[1] * d_1 + s_1 * g;
             (*m)[2] = (*m)[2] * d_2 + (s_2 * g) * g;
             towards = ((*m)[0] * mix_0 + (*m)[1] * mix_1) / (sqrt((*m)[2]) * root + eps);"
        }
        // The sign is read off the bits: of NaN it is none.
        Rule::Lion => {
            "let bits = bitcast<vec4<u32>>((*m)[0] * mix_0 + mix_1 * g);
             (*m)[0] = (*m)[0] * d_0 + s_0 * g;
             let size = bits & vec4<u32>(0x7fffffffu);
             let one = (bits & vec4<u32>(0x80000000u)) | vec4<u32>(0x3f800000u);
             let signed = size - vec4<u32>(1u) < vec4<u32>(0x7f800000u);
             towards = select(vec4<f32>(), bitcast<vec4<f32>>(one), signed);"
        }
        Rule::Momentum => {
            "(*m)[0] = (*m)[0] * d_0 + s_0 * g;
             towards = (*m)[0] * mix_0 + mix_1 * g;"
        }
        Rule::RmsProp | Rule::Adagrad => {
            "(*m)[0] = (*m)[0] * d_0 + s_0 * (g * g);
             towards = g / (sqrt((*m)[0]) + eps);"
        }
    }
}

/// The different maps of a rule's moments.
fn maps(rule: Rule) -> Vec<&'static Map> {
    let mut maps: Vec<&'static Map> = Vec::new();
    for map in rule.moments() {
        if place(&maps, map).is_none() {
            maps.push(map);
        }
    }
    maps
}

fn place(maps: &[&'static Map], map: &'static Map) -> Option<usize> {
    maps.iter().position(|known| std::ptr::eq(*known, map))
}

/// The values of a map's codes, then the thresholds between them as a search meets them: node `i` of a
/// level is in the middle of an equal part of the ranks. Node 0 is none.
fn table(map: &Map) -> Vec<f32> {
    let (values, thresholds) = (map.format().codebook().unwrap_or(&[]), map.thresholds());
    let node = |i: usize| {
        let level = i.checked_ilog2().unwrap_or(0);
        let part = 256 >> level;
        let rank = (i.max(1) - (1 << level)) * part + part / 2 - 1;
        thresholds.get(rank).copied().unwrap_or(f32::MAX)
    };
    let mut table: Vec<f32> = values.iter().copied().chain((0..256).map(node)).collect();
    table.resize(MAP_LEN, f32::MAX);
    table
}

fn params(n: u32, fours: u32, c: &Coefficients) -> Vec<u32> {
    let numbers = [c.grad_scale, c.l2, c.before, c.rate, c.after];
    let rest = [c.mix[0], c.mix[1], c.root, c.eps];
    let numbers = numbers.into_iter().chain(c.decay.into_iter().flatten()).chain(rest);
    [n, fours].into_iter().chain(numbers.map(f32::to_bits)).collect()
}

fn groups<Q: Queue>(queue: &Q, fours: u32, most: u32) -> [u32; 3] {
    cover(fours.div_ceil(GROUP).min(most).into(), 1, queue.limits())
}

/// A step, put together.
struct Task<'a, B> {
    kind: Kind,
    c: Coefficients,
    /// Numbers of the parameter, in fours.
    fours: u32,
    params: Vec<u32>,
    buffers: Vec<&'a B>,
}

impl<B: Clone> Task<'_, B> {
    /// Queues the norms of direction and parameter: two f32, the norm of the update, and the rate that
    /// keeps it within the limit.
    fn limit<Q: Queue<Buffer = B>>(&self, queue: &Q, settings: &Settings) -> Result<B> {
        let groups = groups(queue, self.fours, NORM_GROUPS);
        let count = groups.iter().product::<u32>();
        let parts = queue.scratch(8 * u64::from(count))?;
        static NORM_KERNELS: Memo<Kind> = Memo::new();
        let kernel = NORM_KERNELS.get(self.kind, |kind| norms_kernel(*kind));
        let buffers = [&self.buffers[..], &[&parts]].concat();
        queue.dispatch(&kernel, &buffers, &self.params, groups)?;
        let limited = queue.scratch(8)?;
        static LIMIT_KERNEL: Memo<()> = Memo::new();
        let kernel = LIMIT_KERNEL.get((), |()| {
            Builder::new("optimizer_limit")
                .bind("parts", Access::Read, "array<vec2<f32>>")
                .bind("limited", Access::ReadWrite, "array<f32>")
                .text(SUM_OF_GROUP)
                .build(&["parts", "rate", "gain", "most"], "optimizer_limit", GROUP, LIMIT)
        });
        let numbers = [self.c.rate, self.c.gain as f32, settings.max_update_norm as f32];
        let params = [&[count], &numbers.map(f32::to_bits)[..]].concat();
        queue.dispatch(&kernel, &[&parts, &limited], &params, [1, 1, 1])?;
        Ok(limited)
    }
}

/// Everything but what keeps a step's results.
fn builder(name: &str, kind: Kind, access: Access) -> Builder {
    let count = kind.rule.moments().len();
    let counts = [("MOMENTS", count as u32)];
    let mut builder = Builder::new(name)
        .tag(kind.rule.name())
        .tag(if kind.in_codes { "codes" } else { "numbers" })
        .types()
        .activations("X", kind.dtype)
        .constant("MOMENTS", count as u32)
        .text("alias Moments = array<vec4<f32>, MOMENTS>;")
        .bind("parameter", access, "array<X4>")
        .bind("gradient", Access::Read, "array<X4>");
    let known = maps(kind.rule);
    for (i, map) in kind.rule.moments().iter().enumerate() {
        builder = if kind.in_codes {
            let at = place(&known, map).unwrap_or(0) * MAP_LEN;
            builder
                .bind(CODE_NAMES[i], access, "array<u32>")
                .bind(ABSMAX_NAMES[i], access, "array<f32>")
                .constant(&format!("MAP_{i}"), at as u32)
        } else {
            builder.bind(NUMBER_NAMES[i], access, "array<vec4<f32>>")
        };
    }
    if kind.in_codes {
        builder = builder
            .bind("maps", Access::Read, "array<f32>")
            .constant("TABLES", (known.len() * MAP_LEN) as u32)
            .constant("BLOCK", BLOCK_SIZE as u32);
    }
    let moments = unroll(if kind.in_codes { CODES } else { NUMBERS }, &counts);
    builder.text(SHARED).text(&moments).text(&direction(kind.rule))
}

/// `direction`, which renews moments, and `sum_of` them.
fn direction(rule: Rule) -> String {
    let count = rule.moments().len();
    let decays = (0..count).map(|i| {
        format!("let d_{i} = number(p.decay_{i});\n    let s_{i} = number(p.share_{i});\n    ")
    });
    let formula: Vec<&str> = formula(rule).lines().map(str::trim).collect();
    let sum: Vec<String> = (0..count).map(|i| format!("m[{i}]")).collect();
    format!(
        "fn direction(g: vec4<f32>, m: ptr<function, Moments>) -> vec4<f32> {{\n    \
         {}let mix_0 = number(p.mix_0);\n    let mix_1 = number(p.mix_1);\n    \
         let root = number(p.root);\n    let eps = number(p.eps);\n    \
         var towards: vec4<f32>;\n    {}\n    return towards;\n}}\n\
         fn sum_of(m: Moments) -> vec4<f32> {{\n    return {};\n}}",
        decays.collect::<String>(),
        formula.join("\n    "),
        sum.join(" + "),
    )
}

/// `put`, which writes so many of four numbers of the parameter. What follows the last of them may be
/// another tensor's.
fn put(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => {
            "fn put(i: u32, v: vec4<f32>, count: u32) {
    if (count == 4u) {
        parameter[i] = v;
        return;
    }
    for (var c = 0u; c < count; c++) {
        parameter[i][c] = v[c];
    }
}"
        }
        DType::F16 | DType::BF16 => {
            "fn put(i: u32, v: vec4<f32>, count: u32) {
    let packed = X4(x_pack(v.xy), x_pack(v.zw));
    if (count == 4u) {
        parameter[i] = packed;
        return;
    }
    for (var w = 0u; 2u * w < count; w++) {
        let half = (packed[w] & 0xffffu) | (parameter[i][w] & 0xffff0000u);
        parameter[i][w] = select(half, packed[w], 2u * w + 1u < count);
    }
}"
        }
    }
}

fn step_kernel(kind: Kind, is_limited: bool) -> Kernel {
    let counts = [("MOMENTS", kind.rule.moments().len() as u32)];
    let mut builder = builder("optimizer_step", kind, Access::ReadWrite)
        .flag("SHARED", kind.in_codes)
        .text(put(kind.dtype));
    builder = if is_limited {
        let builder = builder.tag("limited").bind("limited", Access::Read, "array<f32>");
        builder.text("fn rate() -> f32 { return limited[1]; }")
    } else {
        builder.text("fn rate() -> f32 { return number(p.rate); }")
    };
    builder = if kind.in_codes {
        builder.text(DIVIDE).text(&unroll(KEEP_CODES, &counts))
    } else {
        builder.text(&unroll(KEEP_NUMBERS, &counts))
    };
    builder.build(PARAMS, "optimizer_step", GROUP, STEP)
}

fn norms_kernel(kind: Kind) -> Kernel {
    builder("optimizer_norms", kind, Access::Read)
        .bind("parts", Access::ReadWrite, "array<vec2<f32>>")
        .text(SUM_OF_GROUP)
        .build(PARAMS, "optimizer_norms", GROUP, NORMS)
}
