//! A queue that runs kernels' Metal text on the processor.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use lowbit::{Error, Result};
use lowbit_gpu::msl::{self, ArgumentKind, Bounds, Msl};
use lowbit_gpu::{Kernel, Limits, Queue};
use metal_standin::{Buffer, Launch, Library, Math, Order};

/// How kernels are translated, compiled and run.
#[derive(Debug, Clone, Copy)]
pub struct Mode {
    pub math: Math,
    pub bounds: Bounds,
    pub simd_width: u32,
    /// Side of simdgroup matrices, if there are any.
    pub matrix: Option<u32>,
    pub order: Order,
}

impl Mode {
    /// Apple's GPUs, calculating exactly.
    pub const APPLE: Mode = Mode {
        math: Math::Precise,
        bounds: Bounds::Unchecked,
        simd_width: 32,
        matrix: Some(8),
        order: Order::Forward,
    };
    /// The same as Metal calculates by default; what should not depend on the order of threads is run
    /// in another.
    pub const FAST: Mode = Mode { math: Math::Fast, order: Order::Backward, ..Mode::APPLE };

    /// What such a device has.
    pub fn limits(self) -> Limits {
        let subgroup = (self.simd_width, self.simd_width);
        Limits { subgroup, matrix: self.matrix, ..msl::APPLE }
    }
}

/// Runs kernels at once, compiling those that it was not prepared for. Cloning shares it.
#[derive(Clone)]
pub struct StandIn {
    mode: Mode,
    limits: Limits,
    compiled: Arc<Mutex<HashMap<String, Arc<Compiled>>>>,
}

struct Compiled {
    wgsl: String,
    msl: Msl,
    library: Arc<Library>,
}

impl StandIn {
    pub fn new(mode: Mode) -> Self {
        let limits = mode.limits();
        StandIn { mode, limits, compiled: Arc::default() }
    }

    /// Compiles all kernels that `work` uses, which takes much less time than one after the other.
    pub fn prepare(&self, work: impl FnOnce(&Recorder)) -> Result<()> {
        let kernels = Recorder::kernels(self.limits, work);
        self.compile(&kernels.iter().collect::<Vec<_>>())
    }

    fn compile(&self, kernels: &[&Kernel]) -> Result<()> {
        let translate = |kernel: &&Kernel| msl::translate(kernel, self.mode.bounds);
        let texts = kernels.iter().map(translate).collect::<Result<Vec<_>>>()?;
        // Metal has no such types; the stand-in's headers do.
        let large =
            texts.iter().find(|t| t.source.contains("16x16") && self.mode.matrix != Some(16));
        assert!(large.is_none(), "{} is not for Metal", large.map_or("", |t| &t.name));
        let sources: Vec<_> = texts.iter().map(|t| (t.name.as_str(), t.source.as_str())).collect();
        let library = Arc::new(Library::compile(&sources, self.mode.math).map_err(failed)?);
        let mut compiled = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        for (kernel, msl) in kernels.iter().zip(texts) {
            let (wgsl, library) = (kernel.source.clone(), library.clone());
            compiled.insert(kernel.name.clone(), Arc::new(Compiled { wgsl, msl, library }));
        }
        Ok(())
    }

    fn compiled(&self, kernel: &Kernel) -> Result<Arc<Compiled>> {
        let known = || {
            let compiled = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
            compiled.get(&kernel.name).cloned()
        };
        if known().is_none() {
            self.compile(&[kernel])?;
        }
        let known = known().expect("it was just compiled");
        assert!(known.wgsl == kernel.source, "two kernels are called {}", kernel.name);
        Ok(known)
    }
}

/// Notes kernels instead of running them. Everything that it reads is zero. Cloning shares it.
#[derive(Clone)]
pub struct Recorder {
    limits: Limits,
    kernels: Arc<Mutex<BTreeMap<String, Kernel>>>,
}

impl Recorder {
    /// The kernels that `work` uses on a device with those limits.
    pub fn kernels(limits: Limits, work: impl FnOnce(&Recorder)) -> Vec<Kernel> {
        let recorder = Recorder { limits, kernels: Arc::default() };
        work(&recorder);
        let kernels = recorder.kernels.lock().unwrap_or_else(PoisonError::into_inner);
        kernels.values().cloned().collect()
    }
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
        let mut kernels = self.kernels.lock().unwrap_or_else(PoisonError::into_inner);
        kernels.entry(kernel.name.clone()).or_insert_with(|| kernel.clone());
        Ok(())
    }

    fn read(&self, (): &(), bytes: u64) -> Result<Vec<u8>> {
        Ok(vec![0; bytes as usize])
    }
}

fn failed(error: metal_standin::Error) -> Error {
    let help = "see what the stand-in for Metal says".to_owned();
    Error::Device { op: "metal", reason: error.to_string(), help }
}

fn size(bytes: u64) -> usize {
    bytes.next_multiple_of(16).max(16) as usize
}

fn bytes_of(words: impl IntoIterator<Item = u32>) -> Buffer {
    Buffer::from_bytes(&words.into_iter().flat_map(u32::to_ne_bytes).collect::<Vec<_>>())
}

impl Queue for StandIn {
    type Buffer = Arc<Buffer>;

    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn zeros(&self, bytes: u64) -> Result<Arc<Buffer>> {
        Ok(Arc::new(Buffer::zeros(size(bytes))))
    }

    /// Bits that read as NaN, so that nothing can rely on them.
    fn scratch(&self, bytes: u64) -> Result<Arc<Buffer>> {
        Ok(Arc::new(Buffer::from_bytes(&vec![0xff; size(bytes)])))
    }

    fn upload(&self, content: &[u8]) -> Result<Arc<Buffer>> {
        let mut content = content.to_vec();
        content.resize(size(content.len() as u64), 0);
        Ok(Arc::new(Buffer::from_bytes(&content)))
    }

    fn dispatch(
        &self,
        kernel: &Kernel,
        buffers: &[&Arc<Buffer>],
        params: &[u32],
        groups: [u32; 3],
    ) -> Result<()> {
        let compiled = self.compiled(kernel)?;
        let msl = &compiled.msl;
        let params = bytes_of(params.iter().copied());
        let lengths = bytes_of(buffers.iter().map(|b| b.len() as u32));
        let mut bound = buffers.iter().map(|b| &***b);
        let arguments: Vec<&Buffer> = msl
            .arguments
            .iter()
            .map(|argument| match argument.kind {
                ArgumentKind::Read | ArgumentKind::ReadWrite => {
                    bound.next().expect("a buffer each")
                }
                ArgumentKind::Params => &params,
                ArgumentKind::Lengths => &lengths,
            })
            .collect();
        assert!(bound.next().is_none(), "{} was given too many buffers", kernel.name);
        let Mode { simd_width, order, .. } = self.mode;
        let launch = Launch { simd_width, order, ..Launch::groups(groups, msl.threads_per_group) };
        compiled.library.run(&kernel.name, &msl.entry, &arguments, &launch).map_err(failed)
    }

    fn read(&self, buffer: &Arc<Buffer>, bytes: u64) -> Result<Vec<u8>> {
        Ok(buffer.read(bytes as usize))
    }
}
