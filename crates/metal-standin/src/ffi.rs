//! The same for programs that load this crate as a shared library, such as Python's tests:
//!
//! ```python
//! standin = ctypes.CDLL("target/debug/libmetal_standin.so")  # cargo build -p metal-standin
//! standin.metal_standin_compile.restype = ctypes.c_void_p
//! message = ctypes.create_string_buffer(4096)
//! library = standin.metal_standin_compile(text.encode(), True, message, len(message))
//! buffers = (ctypes.c_void_p * 2)(x.data_ptr(), y.data_ptr())
//! start = Start(threads, group, 32, False)  # a ctypes.Structure like `Start` below
//! ok = standin.metal_standin_run(
//!     ctypes.c_void_p(library), b"gemv", buffers, ctypes.c_size_t(2), ctypes.byref(start),
//!     message, ctypes.c_size_t(len(message)),
//! )
//! ```

use std::ffi::{CStr, c_char, c_void};

use crate::{Launch, Library, Math, Order, Result};

/// The name under which a text is compiled here.
const NAME: &str = "kernels.metal";

/// How a kernel is started: [`Launch`] for other languages.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Start {
    /// Threads of the grid.
    pub threads: [u32; 3],
    /// Threads of a group.
    pub group: [u32; 3],
    /// Threads of a simdgroup.
    pub simd_width: u32,
    /// Whether the last thread goes first.
    pub backward: bool,
}

/// Compiles one text. Null if that fails, and `message` says why, in at most `length` bytes.
///
/// # Safety
/// `text` ends with a zero, and `message` has `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn metal_standin_compile(
    text: *const c_char,
    fast_math: bool,
    message: *mut c_char,
    length: usize,
) -> *mut Library {
    // SAFETY: the caller says so.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    let math = if fast_math { Math::Fast } else { Math::Precise };
    match Library::compile(&[(NAME, &text)], math) {
        Ok(library) => Box::into_raw(Box::new(library)),
        Err(error) => {
            // SAFETY: the caller says so.
            unsafe { tell(&error.to_string(), message, length) };
            std::ptr::null_mut()
        }
    }
}

/// The names of a library's kernels, one a line, in at most `length` bytes.
///
/// # Safety
/// `library` comes from [`metal_standin_compile`], and `names` has `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn metal_standin_kernels(
    library: *const Library,
    names: *mut c_char,
    length: usize,
) {
    // SAFETY: the caller says so.
    unsafe {
        let mut kernels: Vec<_> = (*library).kernels(NAME).collect();
        kernels.sort_unstable();
        tell(&kernels.join("\n"), names, length);
    }
}

/// Runs a kernel and waits for it. False if that fails, and `message` says why.
///
/// # Safety
/// `library` comes from [`metal_standin_compile`]; `entry` ends with a zero; `buffers` are `count`
/// pointers to what the kernel reads and writes; `message` has `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn metal_standin_run(
    library: *const Library,
    entry: *const c_char,
    buffers: *const *mut c_void,
    count: usize,
    start: *const Start,
    message: *mut c_char,
    length: usize,
) -> bool {
    let run = || -> Result<()> {
        // SAFETY: the caller says so.
        unsafe {
            let entry = CStr::from_ptr(entry).to_string_lossy();
            let buffers = if count == 0 { &[] } else { std::slice::from_raw_parts(buffers, count) };
            let Start { threads, group, simd_width, backward } = *start;
            let order = if backward { Order::Backward } else { Order::Forward };
            let launch = Launch { threads, group, simd_width, order };
            (*library).run_raw(NAME, &entry, buffers, &launch)
        }
    };
    match run() {
        Ok(()) => true,
        Err(error) => {
            // SAFETY: the caller says so.
            unsafe { tell(&error.to_string(), message, length) };
            false
        }
    }
}

/// Frees a library.
///
/// # Safety
/// `library` comes from [`metal_standin_compile`] and is not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn metal_standin_free(library: *mut Library) {
    // SAFETY: the caller says so.
    drop(unsafe { Box::from_raw(library) });
}

/// Copies text, cut to fit, and a zero.
///
/// # Safety
/// `target` has `length` bytes.
unsafe fn tell(text: &str, target: *mut c_char, length: usize) {
    let Some(room) = length.checked_sub(1) else { return };
    let count = text.len().min(room);
    // SAFETY: the caller says so.
    unsafe {
        std::ptr::copy_nonoverlapping(text.as_ptr(), target.cast(), count);
        target.add(count).write(0);
    }
}
