//! AMX: Intel's tiles, eight registers of sixteen rows of 64 bytes, on Linux.
//!
//! Rust has no stable intrinsics for them, so products are written in assembly. A tile's shape and
//! contents last from the first to the last line of one `asm!` and no longer.

use std::arch::x86_64::*;
use std::sync::OnceLock;

use half::bf16;

use super::matrix::{BLOCK, FACTOR, FEW_ROWS, INT_FACTOR, MOST_PARTS, Matrix, Parts, SIDE, TERMS};

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

/// The product of a block in tiles, with that instruction for a product of two.
macro_rules! multiply_blocks {
    ($op:literal, $pairs:ident, $count:ident, $steps:ident, $a:expr, $b:expr, $c:ident) => {
        std::arch::asm!(
            "ldtilecfg [{n}]",
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "2:",
            "mov {pa}, [{pairs}]",
            "mov {pb}, [{pairs} + 8]",
            "mov {n}, {steps}",
            "3:",
            "tileloadd tmm4, [{pa} + {line} * 1]",
            "tileloadd tmm6, [{pb} + {line} * 1]",
            "tileloadd tmm7, [{pb} + {line} * 1 + 1024]",
            "tileloadd tmm5, [{pa} + {line} * 1 + 1024]",
            concat!($op, " tmm0, tmm4, tmm6"),
            concat!($op, " tmm1, tmm4, tmm7"),
            concat!($op, " tmm2, tmm5, tmm6"),
            concat!($op, " tmm3, tmm5, tmm7"),
            "add {pa}, {step_a}",
            "add {pb}, {step_b}",
            "dec {n}",
            "jnz 3b",
            "add {pairs}, 16",
            "dec {count}",
            "jnz 2b",
            "tilestored [{c} + {line} * 2], tmm0",
            "tilestored [{c} + {line} * 2 + 64], tmm1",
            "tilestored [{c} + {line} * 2 + 2048], tmm2",
            "tilestored [{c} + {line} * 2 + 2112], tmm3",
            "tilerelease",
            n = inout(reg) &SHAPES => _,
            c = in(reg) $c.as_mut_ptr(),
            pairs = inout(reg) $pairs.as_ptr() => _,
            count = inout(reg) $count => _,
            steps = in(reg) $steps,
            step_a = in(reg) 2 * $a * 2 * FACTOR,
            step_b = in(reg) 2 * $b * 2 * FACTOR,
            line = in(reg) 2 * TERMS,
            pa = out(reg) _,
            pb = out(reg) _,
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
    fn multiply(self, a: &[bf16], b: &[bf16], parts: Parts, steps: usize, c: &mut [f32]) {
        let b = &b[..steps * parts.b * 2 * FACTOR];
        let c = &mut c[..BLOCK * BLOCK];
        let Some((pairs, count)) = pairs(a, b, parts, steps) else { return c.fill(0.0) };
        // SAFETY: a value of `Amx` proves the features and the system's permission. Of each pair of
        // pointers `steps` times two factors are read, `parts * 2 * FACTOR` numbers apart, which the
        // slices hold; 32 rows of 32 numbers are written to `c`. All tiles are released at the end, and no
        // other register is changed than those named.
        unsafe { multiply_blocks!("tdpbf16ps", pairs, count, steps, parts.a, parts.b, c) }
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
        let a = &a[..steps * 2 * INT_FACTOR];
        let b = &b[..steps * 2 * INT_FACTOR];
        let c = &mut c[..BLOCK * BLOCK];
        if steps == 0 {
            return c.fill(0);
        }
        let (pairs, count) = ([[a.as_ptr(), b.as_ptr()]], 1usize);
        // SAFETY: as in `multiply`; factors of integers are as many bytes.
        unsafe { multiply_blocks!("tdpbssd", pairs, count, steps, 1, 1, c) }
    }

    #[inline(always)]
    fn multiply_narrow(
        self,
        a: &[bf16],
        a_stride: usize,
        b: &[bf16],
        parts: Parts,
        steps: usize,
        c: &mut [f32],
    ) {
        let _ = &a[a_stride..][..steps * parts.a * 2 * FACTOR];
        let b = &b[..steps * parts.b * 2 * FACTOR];
        let c = &mut c[..2 * BLOCK * SIDE];
        let Some((pairs, count)) = pairs(a, b, parts, steps) else { return c.fill(0.0) };
        // SAFETY: as in `multiply`; of `a` the factors `a_stride` further on are read as well, of `b` the first
        // of two, and 64 rows of 16 numbers are written.
        unsafe {
            std::arch::asm!(
                "ldtilecfg [{n}]",
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "2:",
                "mov {pa}, [{pairs}]",
                "lea {next}, [{pa} + {a_stride}]",
                "mov {pb}, [{pairs} + 8]",
                "mov {n}, {steps}",
                "3:",
                "tileloadd tmm4, [{pb} + {line} * 1]",
                "tileloadd tmm5, [{pa} + {line} * 1]",
                "tileloadd tmm6, [{pa} + {line} * 1 + 1024]",
                "tdpbf16ps tmm0, tmm5, tmm4",
                "tileloadd tmm7, [{next} + {line} * 1]",
                "tdpbf16ps tmm1, tmm6, tmm4",
                "tileloadd tmm5, [{next} + {line} * 1 + 1024]",
                "tdpbf16ps tmm2, tmm7, tmm4",
                "tdpbf16ps tmm3, tmm5, tmm4",
                "add {pa}, {step_a}",
                "add {next}, {step_a}",
                "add {pb}, {step_b}",
                "dec {n}",
                "jnz 3b",
                "add {pairs}, 16",
                "dec {count}",
                "jnz 2b",
                "tilestored [{c} + {line} * 1], tmm0",
                "tilestored [{c} + {line} * 1 + 1024], tmm1",
                "tilestored [{c} + {line} * 1 + 2048], tmm2",
                "tilestored [{c} + {line} * 1 + 3072], tmm3",
                "tilerelease",
                n = inout(reg) &SHAPES => _,
                c = in(reg) c.as_mut_ptr(),
                pairs = inout(reg) pairs.as_ptr() => _,
                count = inout(reg) count => _,
                steps = in(reg) steps,
                a_stride = in(reg) 2 * a_stride,
                step_a = in(reg) 2 * parts.a * 2 * FACTOR,
                step_b = in(reg) 2 * parts.b * 2 * FACTOR,
                line = in(reg) 2 * TERMS,
                pa = out(reg) _,
                pb = out(reg) _,
                next = out(reg) _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }
}

/// Pointers to two factors.
type Pair = [*const bf16; 2];

/// Where the parts of `a` and `b` begin whose products count, and how many these are; `None` if nothing is to be
/// added. All steps of both are there.
#[inline(always)]
fn pairs(
    a: &[bf16],
    b: &[bf16],
    parts: Parts,
    steps: usize,
) -> Option<([Pair; MOST_PARTS * MOST_PARTS], usize)> {
    let a = &a[..steps * parts.a * 2 * FACTOR];
    let mut pairs = [[a.as_ptr(), b.as_ptr()]; MOST_PARTS * MOST_PARTS];
    let mut count = 0;
    for (i, j) in parts.products() {
        pairs[count] = [a.get(i * 2 * FACTOR..)?.as_ptr(), b.get(j * 2 * FACTOR..)?.as_ptr()];
        count += 1;
    }
    (steps > 0 && count > 0).then_some((pairs, count))
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
            let (mut got, mut expected) = ([0.0; BLOCK * BLOCK], [1.0; BLOCK * BLOCK]);
            amx.multiply(&a, &b, parts, STEPS, &mut got);
            Model.multiply(&a, &b, parts, STEPS, &mut expected);
            assert!(got.iter().zip(&expected).all(close), "multiply {parts:?}");
            let few = numbers(FEW_ROWS * 2 * TERMS);
            let mut few_parts = vec![bf16::ZERO; parts.a * few.len()];
            Model.split(&few, parts.a, &mut few_parts, TERMS, few.len());
            let b_of_two = &b[..parts.b * 2 * FACTOR];
            let (mut of_few, mut of_model) = ([0.0; FEW_ROWS * SIDE], [1.0; FEW_ROWS * SIDE]);
            amx.multiply_few(&few_parts, b_of_two, parts, &mut of_few);
            Model.multiply_few(&few_parts, b_of_two, parts, &mut of_model);
            assert!(of_few.iter().zip(&of_model).all(close), "multiply_few {parts:?}");
            let two = [&a[..], &a[..]].concat();
            amx.multiply_narrow(&two, a.len(), &b, parts, STEPS, &mut got);
            Model.multiply_narrow(&two, a.len(), &b, parts, STEPS, &mut expected);
            assert!(got.iter().zip(&expected).all(close), "multiply_narrow {parts:?}");
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
