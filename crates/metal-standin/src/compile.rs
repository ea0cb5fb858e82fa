//! Turns texts into a library, with clang.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use tempfile::TempDir;

use crate::schedule::{self, Entry};
use crate::{Buffer, Error, Launch, Result, text};

/// How exact floating-point arithmetic is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Math {
    /// Every operation is rounded as IEEE 754 has it, and none is merged with another.
    Precise,
    /// What Metal does unless it is told not to: no NaN or infinity is expected, sums and products
    /// may be regrouped, and numbers below the smallest normal one are zero.
    Fast,
}

/// Compiled texts.
#[derive(Debug)]
pub struct Library {
    kernels: HashMap<(String, String), (Entry, usize)>,
    math: Math,
    /// The code, which must stay while `kernels` points into it.
    _code: libloading::Library,
}

/// Files that the compiler reads, by their place in the folder that it is pointed to.
const HEADERS: [(&str, &str); 9] = [
    ("metal_stdlib", include_str!("../include/metal_stdlib")),
    ("simd/simd.h", include_str!("../include/simd/simd.h")),
    ("standin/vector.h", include_str!("../include/standin/vector.h")),
    ("standin/math.h", include_str!("../include/standin/math.h")),
    ("standin/integer.h", include_str!("../include/standin/integer.h")),
    ("standin/schedule.h", include_str!("../include/standin/schedule.h")),
    ("standin/simd.h", include_str!("../include/standin/simd.h")),
    ("standin/atomic.h", include_str!("../include/standin/atomic.h")),
    ("standin/matrix.h", include_str!("../include/standin/matrix.h")),
];

/// How many texts are compiled together: the headers are read once for all, and several units can
/// be compiled at a time.
const TEXTS_A_UNIT: usize = 8;
/// How anything is compiled.
const CODE: &str = "-O1 -fPIC -fvisibility=hidden";
/// How Metal text is: as C++ for OpenCL without its library, where literals are f32.
const DIALECT: &str = "-x clcpp -cl-std=clc++2021 -cl-no-stdinc -cl-single-precision-constant \
                       -fno-math-errno -Wno-everything -I.";

impl Library {
    /// Compiles texts, each of a name of its own. Several in one call take less time than one each.
    ///
    /// # Errors
    /// What a text or the compiler is not happy with.
    pub fn compile(sources: &[(&str, &str)], math: Math) -> Result<Self> {
        let clang = clang().ok_or(Error::NoClang)?;
        let dir = TempDir::new().map_err(io)?;
        for (name, content) in HEADERS {
            let file = dir.path().join(name);
            fs::create_dir_all(file.parent().unwrap_or(dir.path())).map_err(io)?;
            fs::write(file, content).map_err(io)?;
        }
        let mut calls = Vec::new();
        let mut units = Vec::new();
        for (i, sources) in sources.chunks(TEXTS_A_UNIT).enumerate() {
            let unit = unit(i * TEXTS_A_UNIT, sources, &mut calls)?;
            units.push((format!("unit{i}"), unit));
        }
        let path = build(clang, dir.path(), &units, math)?;
        // SAFETY: the library was just built from code that does nothing when it is loaded.
        let code = unsafe { libloading::Library::new(path) }.map_err(io)?;
        schedule::connect(&code).map_err(io)?;
        let mut kernels = HashMap::new();
        for (key, symbol, buffers) in calls {
            // SAFETY: the function was declared with this type above, and the library outlives the
            // pointer, for both are fields of one struct whose pointers are not handed out.
            let entry = *unsafe { code.get::<Entry>(&symbol) }.map_err(io)?;
            kernels.insert(key, (entry, buffers));
        }
        Ok(Library { kernels, math, _code: code })
    }

    /// Runs kernel `entry` of the text `name` and waits for it. `buffers` are in the order of their
    /// index; there may be more than it takes.
    ///
    /// # Errors
    /// If there is no such kernel, if it takes more buffers, or if its threads do what they must not
    /// do.
    pub fn run(&self, name: &str, entry: &str, buffers: &[&Buffer], launch: &Launch) -> Result<()> {
        let pointers: Vec<_> = buffers.iter().map(|b| b.start().cast()).collect();
        // SAFETY: the pointers are those of buffers, whose ends are guarded.
        unsafe { self.run_raw(name, entry, &pointers, launch) }
    }

    /// As [`run`](Self::run), on any memory.
    ///
    /// # Safety
    /// What the kernel reads or writes through the pointers must be there, and nobody else may use it
    /// meanwhile.
    pub(crate) unsafe fn run_raw(
        &self,
        name: &str,
        entry: &str,
        pointers: &[*mut std::ffi::c_void],
        launch: &Launch,
    ) -> Result<()> {
        let key = (name.to_owned(), entry.to_owned());
        let Some((function, buffers)) = self.kernels.get(&key) else {
            return Err(Error::NoKernel { name: key.0, entry: key.1 });
        };
        let outcome = if *buffers <= pointers.len() {
            schedule::run(*function, &format!("{entry} of {name}"), pointers, launch, self.math)
        } else {
            Err(format!("it takes {buffers} buffers, not {}", pointers.len()))
        };
        outcome.map_err(|reason| Error::Run { name: key.0, entry: key.1, reason })
    }

    /// The kernels of the text `name`.
    pub fn kernels<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.kernels.keys().filter(move |key| key.0 == name).map(|key| key.1.as_str())
    }
}

/// A kernel's text and name, the function that calls it, and how many buffers it takes.
type Call = ((String, String), String, usize);

/// One file with several texts, which may declare the same names; the first has number `first`.
fn unit(first: usize, sources: &[(&str, &str)], calls: &mut Vec<Call>) -> Result<String> {
    let mut unit = String::from("#include <metal_stdlib>\n");
    for (i, (name, source)) in (first..).zip(sources) {
        let refuse = |reason| Error::Text { name: (*name).to_owned(), reason };
        let source = text::without_comments(source);
        let kernels = text::kernels(&source).map_err(refuse)?;
        let source = text::with_shared_variables(&source).map_err(refuse)?;
        let source = text::with_aliases_made(&source);
        // The inner namespace says that nothing else uses what is in it, which spares compiling what
        // the kernels do not use.
        unit += &format!("namespace text{i} {{ namespace {{\n#line 1 {name:?}\n{source}\n");
        for kernel in kernels {
            let symbol = format!("standin_{i}_{}", kernel.name);
            unit += &format!(
                "}} extern \"C\" __attribute__((visibility(\"default\"))) void {symbol}(void* \
                 const* b, const standin_position* p) {{ {}; }} namespace {{\n",
                kernel.call()
            );
            calls.push((((*name).to_owned(), kernel.name.clone()), symbol, kernel.buffers()));
        }
        unit += "}}\n";
    }
    Ok(unit)
}

/// Compiles units, by their names, to a shared library in `dir`.
fn build(clang: &Path, dir: &Path, units: &[(String, String)], math: Math) -> Result<PathBuf> {
    let compile = |i: usize| {
        let mut command = Command::new(clang);
        command.args(CODE.split(' ')).current_dir(dir);
        let Some((name, text)) = i.checked_sub(1).map(|i| &units[i]) else {
            fs::write(dir.join("connect.c"), include_str!("../include/connect.c")).map_err(io)?;
            return run(command.args(["-c", "connect.c"]));
        };
        let file = format!("{name}.clcpp");
        fs::write(dir.join(&file), text).map_err(io)?;
        command.args(DIALECT.split(' ')).arg(match math {
            Math::Precise => "-ffp-contract=off",
            Math::Fast => "-ffast-math",
        });
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c") {
            command.args(["-mavx2", "-mfma", "-mf16c"]);
        }
        run(command.args(["-c", &file]))
    };
    in_parallel(units.len() + 1, compile)?;
    // On its own: with -ffast-math the linker would add code that changes how the process that loads
    // the library calculates.
    let mut link = Command::new(clang);
    link.args(["-shared", "-o", "kernels.so", "connect.o"]).current_dir(dir);
    run(link.args(units.iter().map(|(name, _)| format!("{name}.o"))).arg("-lm"))?;
    Ok(dir.join("kernels.so"))
}

/// Runs `job` for all numbers below `count`, several at a time; the first error.
fn in_parallel(count: usize, job: impl Fn(usize) -> Result<()> + Sync) -> Result<()> {
    let next = AtomicUsize::new(0);
    let work = || loop {
        match next.fetch_add(1, Ordering::Relaxed) {
            i if i < count => job(i)?,
            _ => return Ok(()),
        }
    };
    let workers = std::thread::available_parallelism().map_or(1, usize::from).min(count);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        let outcome = |worker: std::thread::ScopedJoinHandle<'_, Result<()>>| {
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        workers.into_iter().try_for_each(outcome)
    })
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output().map_err(io)?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::Clang(String::from_utf8_lossy(&output.stderr).into_owned()))
}

/// The compiler that scripts/gpu-setup found, or one of the usual name.
fn clang() -> Option<&'static Path> {
    static CLANG: OnceLock<Option<PathBuf>> = OnceLock::new();
    let find = || {
        let name = std::env::var_os("LOWBIT_CLANG").unwrap_or_else(|| "clang".into());
        let arguments = ["-dM", "-E", "-x", "c", "/dev/null"];
        let output = Command::new(&name).args(arguments).output().ok()?;
        let macros = String::from_utf8_lossy(&output.stdout).into_owned();
        let mut lines = macros.lines();
        let major = lines.find_map(|line| line.strip_prefix("#define __clang_major__ "))?;
        (major.trim().parse::<u32>().ok()? >= 16).then(|| name.into())
    };
    CLANG.get_or_init(find).as_deref()
}

fn io(error: impl std::fmt::Display) -> Error {
    Error::Io(error.to_string())
}
