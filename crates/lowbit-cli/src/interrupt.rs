//! Ctrl-C: the first asks the work to stop, so that it can put things away; a second one ends the
//! program on the spot.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use crate::failure::{Failure, Result};

/// Status of a program that Ctrl-C ended.
const STATUS: i32 = 130;

/// A switch that Ctrl-C turns on.
#[derive(Debug, Clone, Default)]
pub struct Interrupt {
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    presses: AtomicUsize,
    idle: AtomicBool,
}

impl Interrupt {
    /// Listens from now on. Every call returns the same switch.
    ///
    /// # Errors
    /// If the system refuses the handler.
    pub fn listen() -> Result<Self> {
        static ONE: OnceLock<Interrupt> = OnceLock::new();
        let mut first = false;
        let interrupt = ONE.get_or_init(|| {
            first = true;
            Interrupt::default()
        });
        if first {
            let state = Arc::clone(&interrupt.state);
            ctrlc::set_handler(move || {
                let again = state.presses.fetch_add(1, Ordering::SeqCst) > 0;
                if again || state.idle.load(Ordering::SeqCst) {
                    std::process::exit(STATUS);
                }
            })
            .map_err(|error| Failure::failed(format!("could not watch for Ctrl-C: {error}")))?;
        }
        Ok(interrupt.clone())
    }

    /// Whether Ctrl-C was pressed since the last [`reset`](Self::reset).
    pub fn pressed(&self) -> bool {
        self.state.presses.load(Ordering::SeqCst) > 0
    }

    /// Forgets earlier presses.
    pub fn reset(&self) {
        self.state.presses.store(0, Ordering::SeqCst);
    }

    /// While `wait` runs (a prompt, say), Ctrl-C ends the program.
    pub fn idle<T>(&self, wait: impl FnOnce() -> T) -> T {
        self.state.idle.store(true, Ordering::SeqCst);
        let answer = wait();
        self.state.idle.store(false, Ordering::SeqCst);
        answer
    }
}
