//! What the host side of an operation needs of a GPU: buffers, and kernels that run in order.

use lowbit::{Error, Result};

use crate::{Choices, Kernel};

/// Something that runs kernels: wgpu, or in tests the stand-in for Metal.
///
/// Everything that is queued runs in order; only [`read`](Queue::read) waits.
pub trait Queue: Send + Sync {
    /// A buffer; cloning shares it.
    type Buffer: Clone + Send + Sync + 'static;

    /// What kernels may use.
    fn limits(&self) -> &Limits;

    /// Kernels that someone has measured to be the fastest here, if anyone has.
    fn choices(&self) -> Option<&Choices> {
        None
    }

    /// A buffer of zeros. Sizes are rounded up to 16 bytes, none is empty.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] if there is no room, [`Error::Device`] if the device fails; so for the
    /// others.
    fn zeros(&self, bytes: u64) -> Result<Self::Buffer>;

    /// A buffer with whatever was left in it, for a kernel that writes all of it.
    ///
    /// # Errors
    /// As [`zeros`](Queue::zeros).
    fn scratch(&self, bytes: u64) -> Result<Self::Buffer>;

    /// A buffer with that content, zeros after it.
    ///
    /// # Errors
    /// As [`zeros`](Queue::zeros).
    fn upload(&self, content: &[u8]) -> Result<Self::Buffer>;

    /// Queues a kernel: `buffers` in the order of its bindings without the parameters, `params` in
    /// the order of its parameters.
    ///
    /// # Errors
    /// As [`zeros`](Queue::zeros).
    fn dispatch(
        &self,
        kernel: &Kernel,
        buffers: &[&Self::Buffer],
        params: &[u32],
        groups: [u32; 3],
    ) -> Result<()>;

    /// Waits for all that is queued; the first `bytes` bytes of a buffer.
    ///
    /// # Errors
    /// As [`zeros`](Queue::zeros).
    fn read(&self, buffer: &Self::Buffer, bytes: u64) -> Result<Vec<u8>>;

    /// [`read`](Queue::read), later: what is queued after this call need not be waited for.
    ///
    /// # Errors
    /// As [`zeros`](Queue::zeros).
    fn fetch(&self, buffer: &Self::Buffer, bytes: u64) -> Result<Fetch> {
        let content = self.read(buffer, bytes)?;
        Ok(Box::new(move || Ok(content)))
    }

    /// A part of a buffer, sharing its memory; `None` where a kernel cannot be given it.
    fn slice(&self, _buffer: &Self::Buffer, _offset: u64, _bytes: u64) -> Option<Self::Buffer> {
        None
    }
}

/// Bytes on their way from a GPU: waits for them.
pub type Fetch = Box<dyn FnOnce() -> Result<Vec<u8>> + Send>;

/// What an adapter has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Smallest and largest number of threads of a subgroup.
    pub subgroup: (u32, u32),
    /// f16 arithmetic.
    pub f16: bool,
    /// Subgroup operations.
    pub subgroups: bool,
    /// Side of its cooperative matrices with f16 factors and f32 sums.
    pub matrix: Option<u32>,
    /// Whether those can be loaded from workgroup memory that is declared as vectors.
    pub vector_tiles: bool,
    /// Most bytes of one binding.
    pub binding: u64,
    /// Most threads of a group.
    pub threads: u32,
    /// Bytes of workgroup memory.
    pub workgroup_memory: u32,
    /// Most groups along one axis.
    pub groups: u32,
}

/// Groups for `count` threads, of which kernels count `(id.y * groups.x + id.x) * GROUP + thread`.
pub(crate) fn cover(count: u64, per_group: u32, limits: &Limits) -> [u32; 3] {
    let groups = count.div_ceil(u64::from(per_group)).max(1);
    let most = u64::from(limits.groups);
    let rows = groups.div_ceil(most);
    [groups.div_ceil(rows) as u32, rows as u32, 1]
}

/// A size that a kernel counts in u32.
pub(crate) fn count(op: &'static str, n: usize) -> Result<u32> {
    u32::try_from(n).map_err(|_| {
        Error::argument(op, "fewer than 2^32 numbers", n.to_string(), "split the tensor")
    })
}
