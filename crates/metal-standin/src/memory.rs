//! Buffers whose end no kernel can cross unnoticed.

use std::sync::{Mutex, MutexGuard, PoisonError};

use region::{Allocation, Protection};

/// Memory that kernels read and write.
///
/// It ends where a region of addresses begins that may not be touched, at least as long as an index
/// of 32 bits reaches in elements of 4 bytes.
pub struct Buffer {
    /// Keeps the pages, those that may not be touched included.
    _pages: Allocation,
    start: *mut u8,
    len: usize,
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffer of {} bytes", self.len)
    }
}

// SAFETY: the memory belongs to the buffer alone, and everything that reads or writes it, kernels
// included, holds the lock of `access`.
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}

/// How far the addresses after a buffer are kept free.
const GUARD: usize = 1 << 34;
/// Buffers begin at a multiple of this, the alignment of the largest vector.
const ALIGN: usize = 16;

/// Whoever holds this is the only one to touch any buffer.
pub(crate) fn access() -> MutexGuard<'static, ()> {
    static ACCESS: Mutex<()> = Mutex::new(());
    ACCESS.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Buffer {
    /// That many zeros.
    ///
    /// # Panics
    /// If there is no memory.
    pub fn zeros(len: usize) -> Self {
        let page = region::page::size();
        let used = len.next_multiple_of(ALIGN).next_multiple_of(page);
        let mut pages =
            region::alloc(used + GUARD, Protection::NONE).expect("there are addresses enough");
        let base: *mut u8 = pages.as_mut_ptr();
        if used > 0 {
            // SAFETY: these pages were allocated above, and nothing else knows them.
            unsafe { region::protect(base, used, Protection::READ_WRITE) }
                .expect("there is memory enough");
        }
        let start = base.wrapping_add(used - len.next_multiple_of(ALIGN));
        Buffer { _pages: pages, start, len }
    }

    /// A copy of those bytes.
    ///
    /// # Panics
    /// If there is no memory.
    pub fn from_bytes(content: &[u8]) -> Self {
        let buffer = Buffer::zeros(content.len());
        // SAFETY: the buffer is as long, and nobody else knows it yet.
        unsafe { std::ptr::copy_nonoverlapping(content.as_ptr(), buffer.start, content.len()) };
        buffer
    }

    /// Its first `len` bytes, or all of them if it has fewer.
    pub fn read(&self, len: usize) -> Vec<u8> {
        let _guard = access();
        let len = len.min(self.len);
        // SAFETY: these bytes were allocated with the buffer, and nothing writes them meanwhile.
        unsafe { std::slice::from_raw_parts(self.start, len) }.to_vec()
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn start(&self) -> *mut u8 {
        self.start
    }
}
