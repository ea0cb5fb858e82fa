//! A GPU that counts the kernels it runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use lowbit::Result;
use lowbit_gpu::{Buffer, Fetch, Gpu, Kernel, Limits, Queue};

/// Passes everything on.
pub struct Counting {
    pub gpu: Gpu,
    pub kernels: Arc<AtomicUsize>,
}

impl Queue for Counting {
    type Buffer = Buffer;

    fn limits(&self) -> &Limits {
        self.gpu.limits()
    }

    fn zeros(&self, bytes: u64) -> Result<Buffer> {
        self.gpu.zeros(bytes)
    }

    fn scratch(&self, bytes: u64) -> Result<Buffer> {
        self.gpu.scratch(bytes)
    }

    fn upload(&self, content: &[u8]) -> Result<Buffer> {
        self.gpu.upload(content)
    }

    fn dispatch(
        &self,
        kernel: &Kernel,
        buffers: &[&Buffer],
        params: &[u32],
        groups: [u32; 3],
    ) -> Result<()> {
        self.kernels.fetch_add(1, Ordering::Relaxed);
        self.gpu.dispatch(kernel, buffers, params, groups)
    }

    fn read(&self, buffer: &Buffer, bytes: u64) -> Result<Vec<u8>> {
        self.gpu.read(buffer, bytes)
    }

    fn fetch(&self, buffer: &Buffer, bytes: u64) -> Result<Fetch> {
        self.gpu.fetch(buffer, bytes)
    }

    fn slice(&self, buffer: &Buffer, offset: u64, bytes: u64) -> Option<Buffer> {
        self.gpu.slice(buffer, offset, bytes)
    }
}
