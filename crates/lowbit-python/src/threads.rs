//! Which threads the kernels run on.

use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

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

/// Runs an operation on the pool that is wanted.
pub fn run<R: Send>(f: impl FnOnce() -> R + Send) -> R {
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

/// From the next operation on, use so many threads; 0 for as many as the machine has.
#[pyfunction]
pub fn set_threads(threads: usize) {
    WANTED.store(threads, Ordering::Release);
    STALE.store(true, Ordering::Release);
}

/// To be called in the child of a fork, which has none of its parent's threads.
#[pyfunction]
pub fn after_fork() {
    FIRST.store(false, Ordering::Release);
    STALE.store(true, Ordering::Release);
}
