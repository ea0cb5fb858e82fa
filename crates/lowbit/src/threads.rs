//! Whose threads the CPU's kernels run on: rayon's, or those of a program that has its own.
//!
//! Two pools in one process hinder each other, most of all where the threads of one wait for work in
//! a loop, as those of OpenMP do for milliseconds: they then hold the cores that the other needs. A
//! program that has such a pool gives it as a [`Team`].

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;

/// Threads that are not rayon's.
pub trait Team: Sync {
    /// How many of them [`run`](Self::run) uses.
    fn threads(&self) -> usize;

    /// Calls `work` on several threads at a time, this one among them, and returns when all calls
    /// have. They share what there is to do, so fewer threads than usual are no mistake. `work`
    /// does not unwind.
    fn run(&self, work: &(dyn Fn() + Sync));
}

thread_local! {
    static TEAM: Cell<Option<&'static dyn Team>> = const { Cell::new(None) };
}

/// Calls `op`, which runs this crate's kernels on `team` instead of rayon's threads. What searches for
/// codes (`lowbit::quantizers`) takes minutes and stays with rayon.
///
/// ```
/// use lowbit::threads::{self, Team};
///
/// /// Threads that are started for each piece of work.
/// struct Scoped(usize);
///
/// impl Team for Scoped {
///     fn threads(&self) -> usize {
///         self.0
///     }
///     fn run(&self, work: &(dyn Fn() + Sync)) {
///         std::thread::scope(|scope| {
///             (1..self.0).for_each(|_| drop(scope.spawn(work)));
///             work();
///         });
///     }
/// }
///
/// static TEAM: Scoped = Scoped(3);
/// let w = vec![0.5f32; 1 << 18];
/// let nf4 = lowbit::formats::by_name("nf4")?;
/// let q = threads::on(&TEAM, || lowbit::quantize(nf4, &w, &[512, 512], None))?;
/// # assert_eq!(q.codes(), lowbit::quantize(nf4, &w, &[512, 512], None)?.codes());
/// # Ok::<(), lowbit::Error>(())
/// ```
pub fn on<R>(team: &'static dyn Team, op: impl FnOnce() -> R) -> R {
    struct Restore(Option<&'static dyn Team>);
    impl Drop for Restore {
        fn drop(&mut self) {
            TEAM.set(self.0);
        }
    }
    let _restore = Restore(TEAM.replace(Some(team)));
    op()
}

/// How many threads [`for_each`] uses.
pub(crate) fn count() -> usize {
    TEAM.get().map_or_else(rayon::current_num_threads, Team::threads)
}

/// Runs all steps of an operation: one way into rayon's pool instead of one for each.
pub(crate) fn enter(steps: impl FnOnce() + Send) {
    match TEAM.get() {
        Some(_) => steps(),
        None => rayon::scope(|_| steps()),
    }
}

/// Calls `f` for every item, on all threads.
pub(crate) fn for_each<I>(items: I, f: impl Fn(I::Item) + Send + Sync)
where
    I: Iterator + Send,
    I::Item: Send,
{
    let Some(team) = TEAM.get() else {
        return items.collect::<Vec<_>>().into_par_iter().for_each(f);
    };
    let items = Mutex::new(items.fuse());
    let next = || items.lock().unwrap_or_else(PoisonError::into_inner).next();
    let panic: Mutex<Option<Box<dyn Any + Send>>> = Mutex::new(None);
    team.run(&|| {
        // A thread that is not Rust's cannot be unwound.
        let work = || {
            while let Some(item) = next() {
                f(item);
            }
        };
        if let Err(caught) = catch_unwind(AssertUnwindSafe(work)) {
            *panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(caught);
        }
    });
    if let Some(caught) = panic.into_inner().unwrap_or_else(PoisonError::into_inner) {
        resume_unwind(caught);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Scoped;

    impl Team for Scoped {
        fn threads(&self) -> usize {
            3
        }
        fn run(&self, work: &(dyn Fn() + Sync)) {
            std::thread::scope(|scope| {
                (1..3).for_each(|_| drop(scope.spawn(work)));
                work();
            });
        }
    }

    #[test]
    fn a_team_does_every_item_once_and_passes_a_panic_on() {
        let mut done = vec![0; 1000];
        on(&Scoped, || {
            assert_eq!(count(), 3);
            for_each(done.iter_mut().enumerate(), |(i, v)| *v += i);
        });
        assert!(done.iter().enumerate().all(|(i, v)| i == *v));
        let refuses = || on(&Scoped, || for_each(0..10, |i| assert_ne!(i, 7, "seven")));
        assert!(catch_unwind(refuses).is_err());
        assert!(TEAM.get().is_none(), "the panic left the team in place");
    }
}
