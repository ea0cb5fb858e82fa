//! AMX: Intel's tiles, eight registers of sixteen rows of 64 bytes, on Linux.
//!
//! Rust has no stable intrinsics for them, so products are written in assembly. A tile's shape and
//! contents last from the first to the last line of one `asm!` and no longer.

use std::arch::x86_64::*;
use std::mem::offset_of;
use std::sync::OnceLock;

use half::bf16;

use super::matrix::{
    BLOCK, Blocks, FACTOR, FEW_ROWS, MOST_PARTS, Matrix, Parts, SIDE, Sums, TERMS,
};

/// Proof that the machine has AMX-BF16, AMX-INT8 and AVX-512 BW, and that the system lets this process use them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Amx(());

impl Amx {
    /// The proof, if it has.
    pub fn detect() -> Option<Self> {
        static ALLOWED: OnceLock<bool> = OnceLock::new();
        let allowed = || has_features() && is_permitted();
        ALLOWED.get_or_init(allowed).then_some(Amx(()))
    }
}

fn has_features() -> bool {
    const AMX_BF16: u32 = 1 << 22;
    const AMX_TILE: u32 = 1 << 24;
    const AMX_INT8: u32 = 1 << 25;
    const ALL: u32 = AMX_BF16 | AMX_TILE | AMX_INT8;
    let edx = __cpuid_count(7, 0).edx;
    edx & ALL == ALL && is_x86_feature_detected!("avx512bw")
}

/// Asks the system for the registers' state, 8 KB a thread, which it keeps only for those who do.
#[cfg(target_os = "linux")]
fn is_permitted() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
    const TILE_DATA: u64 = 18;
    let result: i64;
    // SAFETY: this system call reads and writes no memory of the process; the registers it changes are
    // named.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") ARCH_PRCTL => result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") TILE_DATA,
            out("rcx") _,
            out("r11") _,
            options(nostack),
        );
    }
    result == 0
}

#[cfg(not(target_os = "linux"))]
fn is_permitted() -> bool {
    false
}

/// What `ldtilecfg` reads: palette 1, all tiles of sixteen rows of 64 bytes.
#[repr(C, align(64))]
struct Shapes([u8; 64]);

const SHAPES: Shapes = {
    let mut bytes = [0; 64];
    bytes[0] = 1;
    let mut tile = 0;
    while tile < 8 {
        bytes[16 + 2 * tile] = 64;
        bytes[48 + tile] = SIDE as u8;
        tile += 1;
    }
    Shapes(bytes)
};

/// What a product reads while it runs, so that its registers are left to it.
#[repr(C)]
struct Plan {
    /// Where the parts of both factors begin whose products count.
    pairs: [[*const bf16; 2]; MOST_PARTS * MOST_PARTS],
    count: usize,
    steps: usize,
    /// Bytes from step to step of either factor.
    step_a: usize,
    step_b: usize,
    /// Bytes from block to block of the second.
    block_b: usize,
    /// 0 if sums begin at zero.
    adds: usize,
}

impl Plan {
    const EMPTY: Plan = Plan {
        pairs: [[std::ptr::null(); 2]; MOST_PARTS * MOST_PARTS],
        count: 0,
        steps: 0,
        step_a: 0,
        step_b: 0,
        block_b: 0,
        adds: 0,
    };

    /// Makes the plan where it is: a copy would wait until all that the product before it stored is in the cache.
    /// `false` if nothing is to be added; else all steps of `a` and of all blocks of `b` are there.
    #[inline(always)]
    fn set(&mut self, a: &[bf16], b: Blocks<'_>, parts: Parts, steps: usize) -> bool {
        let [len_a, len_b] = [parts.a, parts.b].map(|parts| steps * parts * 2 * FACTOR);
        let last = b.count.saturating_sub(1) * b.stride;
        let (a, b_all) = (&a[..len_a], &b.factors[..last + len_b]);
        self.count = 0;
        if steps == 0 {
            return false;
        }
        for (i, j) in parts.products() {
            let part = |factors: &[bf16], part: usize| factors[part * 2 * FACTOR..].as_ptr();
            self.pairs[self.count] = [part(a, i), part(b_all, j)];
            self.count += 1;
        }
        self.steps = steps;
        [self.step_a, self.step_b] = [parts.a, parts.b].map(|parts| 2 * parts * 2 * FACTOR);
        self.block_b = 2 * b.stride;
        self.count > 0
    }
}

/// The product of a block with some blocks, in tiles, with that instruction for a product of two and that one for loading
/// the second factor.
macro_rules! multiply_blocks {
    ($op:literal, $load_b:literal, $plan:ident, $blocks:expr, $c:ident, $stride:ident) => {
        std::arch::asm!(
            "ldtilecfg [{n}]",
            "4:",
            "cmp qword ptr [{plan} + {ADDS}], 0",
            "jne 5f",
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "jmp 6f",
            "5:",
            "mov {n}, {stride}",
            "shl {n}, 4",
            "add {n}, {c}",
            "tileloadd tmm0, [{c} + {stride} * 1]",
            "tileloadd tmm1, [{c} + {stride} * 1 + 64]",
            "tileloadd tmm2, [{n} + {stride} * 1]",
            "tileloadd tmm3, [{n} + {stride} * 1 + 64]",
            "6:",
            "mov {pairs}, {plan}",
            "mov {count}, [{plan} + {COUNT}]",
            "2:",
            "mov {pa}, [{pairs}]",
            "mov {pb}, [{pairs} + 8]",
            "add {pb}, {at}",
            "mov {n}, [{plan} + {STEPS}]",
            "3:",
            "tileloadd tmm4, [{pa} + {line} * 1]",
            concat!($load_b, " tmm6, [{pb} + {line} * 1]"),
            concat!($load_b, " tmm7, [{pb} + {line} * 1 + 1024]"),
            "tileloadd tmm5, [{pa} + {line} * 1 + 1024]",
            concat!($op, " tmm0, tmm4, tmm6"),
            concat!($op, " tmm1, tmm4, tmm7"),
            concat!($op, " tmm2, tmm5, tmm6"),
            concat!($op, " tmm3, tmm5, tmm7"),
            "add {pa}, [{plan} + {STEP_A}]",
            "add {pb}, [{plan} + {STEP_B}]",
            "dec {n}",
            "jnz 3b",
            "add {pairs}, 16",
            "dec {count}",
            "jnz 2b",
            "tilestored [{c} + {stride} * 1], tmm0",
            "tilestored [{c} + {stride} * 1 + 64], tmm1",
            "mov {n}, {stride}",
            "shl {n}, 4",
            "add {n}, {c}",
            "tilestored [{n} + {stride} * 1], tmm2",
            "tilestored [{n} + {stride} * 1 + 64], tmm3",
            "add {c}, 128",
            "add {at}, [{plan} + {BLOCK_B}]",
            "dec {blocks}",
            "jnz 4b",
            "tilerelease",
            n = inout(reg) &SHAPES => _,
            plan = in(reg) &raw const $plan,
            at = inout(reg) 0usize => _,
            blocks = inout(reg) $blocks => _,
            c = inout(reg) $c.as_mut_ptr() => _,
            stride = in(reg) size_of_val(&$c[0]) * $stride,
            line = in(reg) 2 * TERMS,
            pairs = out(reg) _,
            count = out(reg) _,
            pa = out(reg) _,
            pb = out(reg) _,
            COUNT = const offset_of!(Plan, count),
            STEPS = const offset_of!(Plan, steps),
            STEP_A = const offset_of!(Plan, step_a),
            STEP_B = const offset_of!(Plan, step_b),
            BLOCK_B = const offset_of!(Plan, block_b),
            ADDS = const offset_of!(Plan, adds),
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        )
    };
}

// SAFETY of this whole block: a value of `Amx` proves the features that the functions need.
impl Matrix for Amx {
    #[inline(always)]
    fn split(self, x: &[f32], parts: usize, out: &mut [bf16], stride: usize, part_stride: usize) {
        let x = [x, &x[SIDE.min(x.len())..]];
        // SAFETY: see the top of this block.
        unsafe {
            match parts {
                1 => split::<1>(x, TERMS, out, stride, part_stride),
                2 => split::<2>(x, TERMS, out, stride, part_stride),
                _ => split::<3>(x, TERMS, out, stride, part_stride),
            }
        }
    }

    #[inline(always)]
    fn split_pair(
        self,
        x: [&[f32]; 2],
        parts: usize,
        out: &mut [bf16],
        stride: usize,
        part_stride: usize,
    ) {
        // SAFETY: see the top of this block.
        unsafe {
            match parts {
                1 => split::<1>(x, SIDE, out, stride, part_stride),
                2 => split::<2>(x, SIDE, out, stride, part_stride),
                _ => split::<3>(x, SIDE, out, stride, part_stride),
            }
        }
    }

    #[inline(always)]
    fn transpose(self, factors: &mut [bf16]) {
        // SAFETY: see the top of this block.
        unsafe { transpose(factors) }
    }

    #[inline(always)]
    fn multiply(self, a: &[bf16], b: Blocks<'_>, parts: Parts, steps: usize, c: Sums<'_>) {
        let mut plan = Plan { adds: usize::from(c.adds), ..Plan::EMPTY };
        let (adds, stride) = (c.adds, c.stride);
        let Some(c) = result(c, b, BLOCK) else { return };
        if !plan.set(a, b, parts, steps) {
            return if !adds {
                c.fill(0.0)
            };
        }
        // From each pair of pointers on `steps` times two factors are read, as far apart as the parts of a number
        // make them, and for each further block of `b` those `stride` numbers further on.
        // SAFETY: a value of `Amx` proves the features and the system's permission. The slices hold what is read;
        // `BLOCK` rows of 32 numbers a block are read and written in `c`, which has them. All tiles are released
        // at the end, and no other register is changed than those named.
        unsafe { multiply_blocks!("tdpbf16ps", "tileloaddt1", plan, b.count, c, stride) }
    }

    #[inline(always)]
    fn multiply_few(self, a: &[bf16], b: &[bf16], parts: Parts, c: &mut [f32]) {
        let a = &a[..parts.a * FEW_ROWS * 2 * TERMS];
        let b = &b[..parts.b * 2 * FACTOR];
        let c = &mut c[..FEW_ROWS * SIDE];
        let mut pairs = [[a.as_ptr(), b.as_ptr()]; MOST_PARTS * MOST_PARTS];
        let mut count = 0;
        for (i, j) in parts.products() {
            pairs[count] = [a[i * FEW_ROWS * 2 * TERMS..].as_ptr(), b[j * 2 * FACTOR..].as_ptr()];
            count += 1;
        }
        if count == 0 {
            return c.fill(0.0);
        }
        // SAFETY: a value of `Amx` proves the features and the system's permission. From the first pointer of
        // each pair 64 rows of 128 bytes are read, from the second two factors, which the slices hold; 64
        // rows of 64 bytes are written to `c`. All tiles are released at the end, and no other register is
        // changed than those named.
        unsafe {
            std::arch::asm!(
                "ldtilecfg [{pa}]",
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "2:",
                "mov {pa}, [{pairs}]",
                "mov {pb}, [{pairs} + 8]",
                "tileloadd tmm4, [{pb} + {line} * 1]",
                "tileloadd tmm5, [{pb} + {line} * 1 + 1024]",
                "tileloadd tmm6, [{pa} + {line} * 2]",
                "tileloadd tmm7, [{pa} + {line} * 2 + 2048]",
                "tdpbf16ps tmm0, tmm6, tmm4",
                "tileloadd tmm6, [{pa} + {line} * 2 + 4096]",
                "tdpbf16ps tmm1, tmm7, tmm4",
                "tileloadd tmm7, [{pa} + {line} * 2 + 6144]",
                "tdpbf16ps tmm2, tmm6, tmm4",
                "tileloadd tmm6, [{pa} + {line} * 2 + 64]",
                "tdpbf16ps tmm3, tmm7, tmm4",
                "tileloadd tmm7, [{pa} + {line} * 2 + 2112]",
                "tdpbf16ps tmm0, tmm6, tmm5",
                "tileloadd tmm6, [{pa} + {line} * 2 + 4160]",
                "tdpbf16ps tmm1, tmm7, tmm5",
                "tileloadd tmm7, [{pa} + {line} * 2 + 6208]",
                "tdpbf16ps tmm2, tmm6, tmm5",
                "tdpbf16ps tmm3, tmm7, tmm5",
                "add {pairs}, 16",
                "dec {count}",
                "jnz 2b",
                "tilestored [{c} + {line} * 1], tmm0",
                "tilestored [{c} + {line} * 1 + 1024], tmm1",
                "tilestored [{c} + {line} * 1 + 2048], tmm2",
                "tilestored [{c} + {line} * 1 + 3072], tmm3",
                "tilerelease",
                pa = inout(reg) &SHAPES => _,
                pb = out(reg) _,
                c = in(reg) c.as_mut_ptr(),
                pairs = inout(reg) pairs.as_ptr() => _,
                count = inout(reg) count => _,
                line = in(reg) 2 * TERMS,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }

    #[inline(always)]
    fn multiply_ints(self, a: &[i8], b: &[i8], steps: usize, c: &mut [i32]) {
        let block =
            |factors| Blocks { factors: bytemuck::cast_slice(factors), stride: 0, count: 1 };
        let (a, b) = (block(a), block(b));
        let (mut plan, stride) = (Plan::EMPTY, BLOCK);
        let c = &mut c[..BLOCK * BLOCK];
        if !plan.set(a.factors, b, Parts { a: 1, b: 1 }, steps) {
            return c.fill(0);
        }
        // SAFETY: as in `multiply`; factors of integers are as many bytes.
        unsafe { multiply_blocks!("tdpbssd", "tileloadd", plan, 1usize, c, stride) }
    }

    #[inline(always)]
    fn multiply_narrow(self, a: &[bf16], b: Blocks<'_>, parts: Parts, steps: usize, c: Sums<'_>) {
        let b = Blocks { count: b.count.next_multiple_of(2), ..b };
        let mut plan = Plan { adds: usize::from(c.adds), ..Plan::EMPTY };
        let (adds, stride) = (c.adds, c.stride);
        let Some(c) = result(c, b, SIDE) else { return };
        if !plan.set(a, b, parts, steps) {
            return if !adds {
                c.fill(0.0)
            };
        }
        // SAFETY: as in `multiply`; of the first of two factors of `a`, with two blocks of `b` at a time.
        unsafe {
            std::arch::asm!(
                "ldtilecfg [{n}]",
                "4:",
                "cmp qword ptr [{plan} + {ADDS}], 0",
                "jne 5f",
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "jmp 6f",
                "5:",
                "tileloadd tmm0, [{c} + {stride} * 1]",
                "tileloadd tmm1, [{c} + {stride} * 1 + 64]",
                "tileloadd tmm2, [{c} + {stride} * 1 + 128]",
                "tileloadd tmm3, [{c} + {stride} * 1 + 192]",
                "6:",
                "mov {pairs}, {plan}",
                "mov {count}, [{plan} + {COUNT}]",
                "2:",
                "mov {pa}, [{pairs}]",
                "mov {pb}, [{pairs} + 8]",
                "add {pb}, {at}",
                "mov {next}, {pb}",
                "add {next}, [{plan} + {BLOCK_B}]",
                "mov {n}, [{plan} + {STEPS}]",
                "3:",
                "tileloadd tmm4, [{pa} + {line} * 1]",
                "tileloadd tmm5, [{pb} + {line} * 1]",
                "tileloadd tmm6, [{pb} + {line} * 1 + 1024]",
                "tdpbf16ps tmm0, tmm4, tmm5",
                "tileloadd tmm7, [{next} + {line} * 1]",
                "tdpbf16ps tmm1, tmm4, tmm6",
                "tileloadd tmm5, [{next} + {line} * 1 + 1024]",
                "tdpbf16ps tmm2, tmm4, tmm7",
                "tdpbf16ps tmm3, tmm4, tmm5",
                "add {pa}, [{plan} + {STEP_A}]",
                "add {pb}, [{plan} + {STEP_B}]",
                "add {next}, [{plan} + {STEP_B}]",
                "dec {n}",
                "jnz 3b",
                "add {pairs}, 16",
                "dec {count}",
                "jnz 2b",
                "tilestored [{c} + {stride} * 1], tmm0",
                "tilestored [{c} + {stride} * 1 + 64], tmm1",
                "tilestored [{c} + {stride} * 1 + 128], tmm2",
                "tilestored [{c} + {stride} * 1 + 192], tmm3",
                "add {c}, 256",
                "add {at}, [{plan} + {BLOCK_B}]",
                "add {at}, [{plan} + {BLOCK_B}]",
                "sub {blocks}, 2",
                "jnz 4b",
                "tilerelease",
                n = inout(reg) &SHAPES => _,
                plan = in(reg) &raw const plan,
                at = inout(reg) 0usize => _,
                blocks = inout(reg) b.count => _,
                c = inout(reg) c.as_mut_ptr() => _,
                stride = in(reg) size_of::<f32>() * stride,
                line = in(reg) 2 * TERMS,
                pairs = out(reg) _,
                count = out(reg) _,
                pa = out(reg) _,
                pb = out(reg) _,
                next = out(reg) _,
                COUNT = const offset_of!(Plan, count),
                STEPS = const offset_of!(Plan, steps),
                STEP_A = const offset_of!(Plan, step_a),
                STEP_B = const offset_of!(Plan, step_b),
                BLOCK_B = const offset_of!(Plan, block_b),
                ADDS = const offset_of!(Plan, adds),
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }
}

/// The numbers from the first to the last of `rows` rows of a product with those blocks; `None` if there are none.
#[inline(always)]
fn result<'a>(c: Sums<'a>, b: Blocks<'_>, rows: usize) -> Option<&'a mut [f32]> {
    let cols = b.count * BLOCK;
    assert!(cols <= c.stride, "rows of {cols} numbers, {} apart, lie one over the other", c.stride);
    (cols > 0).then(|| &mut c.numbers[..(rows - 1) * c.stride + cols])
}

/// Splits 16 numbers of either slice at a time, `step` numbers further in both for each 32 of `out`.
#[target_feature(enable = "avx512f")]
fn split<const PARTS: usize>(
    x: [&[f32]; 2],
    step: usize,
    out: &mut [bf16],
    stride: usize,
    part_stride: usize,
) {
    let (upper, half) = (_mm512_set1_epi32(!0xffff), _mm512_set1_epi32(0x8000));
    for (i, (a, b)) in x[0].chunks(step).zip(x[1].chunks(step)).enumerate() {
        let (a, b) = (&a[..SIDE], &b[..SIDE]);
        // SAFETY: 64 bytes are read from 16 numbers.
        let mut rest = unsafe { [_mm512_loadu_ps(a.as_ptr()), _mm512_loadu_ps(b.as_ptr())] };
        for p in 0..PARTS {
            let mut bits = rest.map(|rest| _mm512_castps_si512(rest));
            if p + 1 == PARTS {
                bits = bits.map(|bits| _mm512_add_epi32(bits, half));
            }
            let parts = bits.map(|bits| _mm512_and_si512(bits, upper));
            for (rest, part) in rest.iter_mut().zip(parts) {
                *rest = _mm512_sub_ps(*rest, _mm512_castsi512_ps(part));
            }
            let both = _mm512_or_si512(_mm512_srli_epi32::<16>(bits[0]), parts[1]);
            let out = &mut out[i * stride + p * part_stride..][..TERMS];
            // SAFETY: 64 bytes are written to 32 numbers of 16 bits.
            unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), both) };
        }
    }
}

/// Transposes matrices of 16 x 16 pairs of numbers.
#[target_feature(enable = "avx512f")]
fn transpose(factors: &mut [bf16]) {
    for factor in factors.chunks_exact_mut(FACTOR) {
        let mut rows = [_mm512_setzero_si512(); SIDE];
        for (row, from) in rows.iter_mut().zip(factor.chunks_exact(TERMS)) {
            // SAFETY: 64 bytes are read from 32 numbers of 16 bits.
            *row = unsafe { _mm512_loadu_si512(from.as_ptr().cast()) };
        }
        // Pairs, fours, eights and halves of rows change places.
        let mut next = rows;
        for i in 0..SIDE / 2 {
            next[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
            next[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
        }
        for i in 0..SIDE / 4 {
            for j in 0..2 {
                let (a, b) = (next[4 * i + j], next[4 * i + 2 + j]);
                rows[4 * i + 2 * j] = _mm512_unpacklo_epi64(a, b);
                rows[4 * i + 2 * j + 1] = _mm512_unpackhi_epi64(a, b);
            }
        }
        for i in 0..2 {
            for j in 0..4 {
                let (a, b) = (rows[8 * i + j], rows[8 * i + 4 + j]);
                next[8 * i + j] = _mm512_shuffle_i32x4::<0b10_00_10_00>(a, b);
                next[8 * i + 4 + j] = _mm512_shuffle_i32x4::<0b11_01_11_01>(a, b);
            }
        }
        for j in 0..8 {
            rows[j] = _mm512_shuffle_i32x4::<0b10_00_10_00>(next[j], next[8 + j]);
            rows[8 + j] = _mm512_shuffle_i32x4::<0b11_01_11_01>(next[j], next[8 + j]);
        }
        for (row, to) in rows.into_iter().zip(factor.chunks_exact_mut(TERMS)) {
            // SAFETY: 64 bytes are written to 32 numbers of 16 bits.
            unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), row) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::matrix::Model;
    use super::*;
    use crate::conformance::Rng;

    type Split<'a> = dyn Fn(&[f32], usize, &mut [bf16], usize, usize) + 'a;

    /// Every method against the model in plain Rust, where there is such a machine.
    #[test]
    fn computes_what_the_model_does() {
        let Some(amx) = Amx::detect() else { return };
        let mut rng = Rng(9);
        let mut numbers = |len: usize| -> Vec<f32> { (0..len).map(|_| rng.normal()).collect() };
        const STEPS: usize = 3;
        /// Two blocks and a gap.
        const COLS: usize = 3 * BLOCK;
        for (a, b) in [(1, 1), (2, 1), (1, 2), (2, 2), (3, 3)] {
            let parts = Parts { a, b };
            let rows = [numbers(BLOCK * STEPS * TERMS), numbers(BLOCK * STEPS * TERMS)];
            let by = |split: &Split<'_>| {
                [(&rows[0], a), (&rows[1], b)].map(|(rows, parts)| {
                    let mut out = vec![bf16::ZERO; STEPS * parts * 2 * FACTOR];
                    for (row, x) in rows.chunks_exact(STEPS * TERMS).enumerate() {
                        let out = &mut out[row * TERMS..];
                        split(x, parts, out, parts * 2 * FACTOR, 2 * FACTOR);
                    }
                    out
                })
            };
            let got = by(&|x, p, out, s, t| amx.split(x, p, out, s, t));
            let expected = by(&|x, p, out, s, t| Model.split(x, p, out, s, t));
            assert!(got == expected, "split {parts:?}");
            let [a, mut b] = got;
            let mut b_expected = b.clone();
            amx.transpose(&mut b);
            Model.transpose(&mut b_expected);
            assert!(b == b_expected, "transpose");
            let close = |(g, e): (&f32, &f32)| (g - e).abs() <= 1e-4;
            let other: Vec<_> = b.iter().chain(b.iter().rev()).copied().collect();
            let blocks = Blocks { factors: &other, stride: b.len(), count: 2 };
            // Set, then added to.
            let (mut got, mut expected) = ([0.0; BLOCK * COLS], [0.0; BLOCK * COLS]);
            for adds in [false, true] {
                let sums = |numbers| Sums { numbers, stride: COLS, adds };
                amx.multiply(&a, blocks, parts, STEPS, sums(&mut got));
                Model.multiply(&a, blocks, parts, STEPS, sums(&mut expected));
                assert!(got.iter().zip(&expected).all(close), "multiply {parts:?}");
            }
            for adds in [true, false] {
                let sums = |numbers| Sums { numbers, stride: COLS, adds };
                amx.multiply_narrow(&a, blocks, parts, STEPS, sums(&mut got));
                Model.multiply_narrow(&a, blocks, parts, STEPS, sums(&mut expected));
                assert!(got.iter().zip(&expected).all(close), "multiply_narrow {parts:?}");
            }
            let few = numbers(FEW_ROWS * 2 * TERMS);
            let mut few_parts = vec![bf16::ZERO; parts.a * few.len()];
            Model.split(&few, parts.a, &mut few_parts, TERMS, few.len());
            let b_of_two = &b[..parts.b * 2 * FACTOR];
            let (mut of_few, mut of_model) = ([0.0; FEW_ROWS * SIDE], [1.0; FEW_ROWS * SIDE]);
            amx.multiply_few(&few_parts, b_of_two, parts, &mut of_few);
            Model.multiply_few(&few_parts, b_of_two, parts, &mut of_model);
            assert!(of_few.iter().zip(&of_model).all(close), "multiply_few {parts:?}");
        }
        let x = [numbers(48), numbers(48)];
        let pairs = |m: &dyn Fn(&mut [bf16])| {
            let mut out = vec![bf16::ZERO; 9 * TERMS];
            m(&mut out);
            out
        };
        let got = pairs(&|out| amx.split_pair([&x[0], &x[1]], 3, out, 96, 32));
        let expected = pairs(&|out| Model.split_pair([&x[0], &x[1]], 3, out, 96, 32));
        assert!(got == expected, "split_pair");
    }
}
