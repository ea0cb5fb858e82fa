//! Ctrl-C: the first press asks the work to stop, so that it can put things away; the second, or one
//! while the program only waits, ends it on the spot.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::failure::{Failure, Result};

/// Status of a program that Ctrl-C ended.
const STATUS: i32 = 130;

static LISTENING: AtomicBool = AtomicBool::new(false);
static PRESSES: AtomicUsize = AtomicUsize::new(0);
static IDLE: AtomicBool = AtomicBool::new(false);
/// What to remove before the program ends.
static LITTER: Mutex<Option<PathBuf>> = Mutex::new(None);

/// The proof that Ctrl-C is listened to.
#[derive(Debug, Clone, Copy)]
pub struct Interrupt(());

impl Interrupt {
    /// Listens from now on.
    ///
    /// # Errors
    /// If the system refuses the handler.
    pub fn listen() -> Result<Self> {
        if !LISTENING.swap(true, Ordering::SeqCst) {
            ctrlc::set_handler(on_press)
                .map_err(|error| Failure::failed(format!("could not watch for Ctrl-C: {error}")))?;
        }
        Ok(Interrupt(()))
    }

    /// Whether Ctrl-C was pressed since the last [`reset`](Self::reset).
    pub fn pressed(self) -> bool {
        PRESSES.load(Ordering::SeqCst) > 0
    }

    /// Forgets earlier presses.
    pub fn reset(self) {
        PRESSES.store(0, Ordering::SeqCst);
    }

    /// While `wait` runs (a prompt, say), Ctrl-C ends the program.
    pub fn idle<T>(self, wait: impl FnOnce() -> T) -> T {
        IDLE.store(true, Ordering::SeqCst);
        let answer = wait();
        IDLE.store(false, Ordering::SeqCst);
        answer
    }

    /// As [`idle`](Self::idle), and Ctrl-C removes a temporary directory before.
    pub fn idle_removing<T>(self, directory: &Path, work: impl FnOnce() -> T) -> T {
        set_litter(Some(directory.to_owned()));
        let answer = self.idle(work);
        set_litter(None);
        answer
    }
}

fn set_litter(directory: Option<PathBuf>) {
    *LITTER.lock().unwrap_or_else(PoisonError::into_inner) = directory;
}

fn on_press() {
    let again = PRESSES.fetch_add(1, Ordering::SeqCst) > 0;
    if again || IDLE.load(Ordering::SeqCst) {
        let litter = LITTER.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(directory) = litter.as_deref() {
            // The system clears temporary directories some day, should this fail.
            let _ = std::fs::remove_dir_all(directory);
        }
        if std::io::stderr().is_terminal() {
            // The shell's prompt goes on a line of its own, not after the terminal's ^C.
            let _ = writeln!(std::io::stderr());
        }
        std::process::exit(STATUS);
    }
}
