//! Which instruction set runs: the only feature detection of this crate.

use super::simd::Task;
#[cfg(target_arch = "aarch64")]
use super::simd::neon::Neon;
use super::simd::portable::Portable;
#[cfg(target_arch = "x86_64")]
use super::simd::{avx2::Avx2, avx512::Avx512};

/// An instruction set that this machine has. A value is the proof.
#[derive(Debug, Clone, Copy)]
pub struct Isa(Kind);

#[derive(Debug, Clone, Copy)]
enum Kind {
    Portable(Portable),
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
    #[cfg(target_arch = "aarch64")]
    Neon(Neon),
}

impl Isa {
    /// All that this machine has, the best first. `portable`, the last, is always there.
    pub fn available() -> Vec<Isa> {
        let mut all = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            let avx512 = Avx512::detect();
            all.extend(avx512.and_then(Avx512::with_matrices).map(Kind::Avx512));
            all.extend(avx512.map(Kind::Avx512));
            all.extend(Avx2::detect().map(Kind::Avx2));
        }
        #[cfg(target_arch = "aarch64")]
        all.extend(Neon::detect().map(Kind::Neon));
        all.push(Kind::Portable(Portable { matrices: false }));
        all.into_iter().map(Isa).collect()
    }

    /// Plain Rust with a model of a machine that multiplies matrices, to test without one what is
    /// written for it.
    #[doc(hidden)]
    pub fn modelled() -> Isa {
        Isa(Kind::Portable(Portable { matrices: true }))
    }

    /// The best that this machine has.
    pub fn best() -> Isa {
        Self::available()[0]
    }

    /// The instruction set of that name, if this machine has it.
    pub fn by_name(name: &str) -> Option<Isa> {
        Self::available().into_iter().find(|isa| isa.name() == name)
    }

    /// `amx` (which is AVX-512 and AMX), `avx512`, `avx2`, `neon` or `portable`.
    pub fn name(self) -> &'static str {
        match self.0 {
            Kind::Portable(s) if s.matrices => "portable with matrices",
            Kind::Portable(_) => "portable",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512(s) if s.has_matrices() => "amx",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512(_) => "avx512",
            #[cfg(target_arch = "aarch64")]
            Kind::Neon(_) => "neon",
        }
    }

    /// Runs a kernel compiled for this instruction set.
    pub(crate) fn run<T: Task>(self, task: T) -> T::Output {
        match self.0 {
            Kind::Portable(s) => task.run(s),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2(s) => s.run(task),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512(s) => s.run(task),
            #[cfg(target_arch = "aarch64")]
            Kind::Neon(s) => s.run(task),
        }
    }
}
