//! Which threads the kernels run on.

use std::ffi::{c_uint, c_void};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

use lowbit::threads::{self, Team};
use pyo3::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};

/// How many threads are wanted; 0 for as many as the machine has.
static WANTED: AtomicUsize = AtomicUsize::new(0);
/// Whether [`POOL`] is to be made anew before the next operation.
static STALE: AtomicBool = AtomicBool::new(true);
/// Whether rayon's own pool may still be set up: it is the fastest to enter, and there is but one.
static FIRST: AtomicBool = AtomicBool::new(true);
/// Null for rayon's own pool. A pool that was replaced is not freed, for another thread may be in it.
static POOL: AtomicPtr<ThreadPool> = AtomicPtr::new(std::ptr::null_mut());
/// `GOMP_parallel` of the OpenMP that torch runs on; null where kernels run on rayon's threads.
static PARALLEL: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());

/// Runs an operation on the threads that are wanted.
pub fn run<R: Send>(f: impl FnOnce() -> R + Send) -> R {
    if !PARALLEL.load(Ordering::Acquire).is_null() {
        return threads::on(&OpenMp, f);
    }
    if STALE.swap(false, Ordering::AcqRel) {
        renew();
    }
    // SAFETY: null, or from `Box::leak` in `renew`.
    match unsafe { POOL.load(Ordering::Acquire).as_ref() } {
        None => f(),
        Some(pool) => pool.install(f),
    }
}

/// Makes the pool that is wanted. Where threads cannot be had, the one there is stays.
fn renew() {
    let builder = || ThreadPoolBuilder::new().num_threads(WANTED.load(Ordering::Acquire));
    if FIRST.swap(false, Ordering::AcqRel) && builder().build_global().is_ok() {
        return;
    }
    if let Ok(pool) = builder().build() {
        POOL.store(Box::leak(Box::new(pool)), Ordering::Release);
    }
}

/// The threads of OpenMP. After each piece of torch's work they wait for the next in a loop, for
/// milliseconds, on cores that threads of our own would have to share with them.
struct OpenMp;

/// `void GOMP_parallel(void (*fn)(void *), void *data, unsigned num_threads, unsigned flags)`: what
/// GCC compiles `#pragma omp parallel` to; LLVM's library has it too.
type Parallel = unsafe extern "C" fn(extern "C" fn(*mut c_void), *mut c_void, c_uint, c_uint);

impl Team for OpenMp {
    fn threads(&self) -> usize {
        WANTED.load(Ordering::Acquire).max(1)
    }

    fn run(&self, work: &(dyn Fn() + Sync)) {
        extern "C" fn call(data: *mut c_void) {
            // SAFETY: `data` is what `run` passes below, and `run` returns after all calls have.
            let work = unsafe { *data.cast::<&(dyn Fn() + Sync)>() };
            work();
        }
        let parallel = PARALLEL.load(Ordering::Acquire);
        if parallel.is_null() {
            return work(); // A fork took the threads away.
        }
        // SAFETY: `use_openmp` demands the address of such a function.
        let parallel = unsafe { std::mem::transmute::<*mut c_void, Parallel>(parallel) };
        let mut work = work;
        // SAFETY: `work` is shared by reference for as long as this call lasts, and may be called on
        // several threads.
        unsafe { parallel(call, (&raw mut work).cast(), self.threads() as c_uint, 0) }
    }
}

/// From the next operation on, use so many threads; 0 for as many as the machine has.
#[pyfunction]
pub fn set_threads(threads: usize) {
    WANTED.store(threads, Ordering::Release);
    STALE.store(true, Ordering::Release);
}

/// From the next operation on, use OpenMP's threads: `parallel` is the address of its
/// `GOMP_parallel`. 0 for threads of our own.
#[pyfunction]
pub fn use_openmp(parallel: usize) {
    PARALLEL.store(parallel as *mut c_void, Ordering::Release);
}

/// To be called in the child of a fork, which has none of its parent's threads.
#[pyfunction]
pub fn after_fork() {
    PARALLEL.store(std::ptr::null_mut(), Ordering::Release);
    FIRST.store(false, Ordering::Release);
    STALE.store(true, Ordering::Release);
}
