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
    Portable,
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
            all.extend(Avx512::detect().map(Kind::Avx512));
            all.extend(Avx2::detect().map(Kind::Avx2));
        }
        #[cfg(target_arch = "aarch64")]
        all.extend(Neon::detect().map(Kind::Neon));
        all.push(Kind::Portable);
        all.into_iter().map(Isa).collect()
    }

    /// The best that this machine has.
    pub fn best() -> Isa {
        Self::available()[0]
    }

    /// The instruction set of that name, if this machine has it.
    pub fn by_name(name: &str) -> Option<Isa> {
        Self::available().into_iter().find(|isa| isa.name() == name)
    }

    /// `avx512`, `avx2`, `neon` or `portable`.
    pub fn name(self) -> &'static str {
        match self.0 {
            Kind::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512(_) => "avx512",
            #[cfg(target_arch = "aarch64")]
            Kind::Neon(_) => "neon",
        }
    }

    /// Runs a kernel compiled for this instruction set.
    pub(crate) fn run<T: Task>(self, task: T) -> T::Output {
        match self.0 {
            Kind::Portable => task.run(Portable),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2(s) => s.run(task),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512(s) => s.run(task),
            #[cfg(target_arch = "aarch64")]
            Kind::Neon(s) => s.run(task),
        }
    }
}
