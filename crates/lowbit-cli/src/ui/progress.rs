//! A progress bar for what takes over a second.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How long to wait before showing anything.
const PATIENCE: Duration = Duration::from_millis(700);

/// A bar on stderr that appears after a moment, vanishes when done, and stays silent where stderr
/// is not a terminal.
pub struct Progress {
    bar: ProgressBar,
    started: Instant,
    shown: AtomicBool,
}

impl Progress {
    /// A bar for work of an unknown length as yet.
    pub fn new(what: &'static str) -> Self {
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::hidden());
        let style =
            ProgressStyle::with_template("{prefix} {bar:30.cyan/dim} {percent:>3} %  {msg}");
        // The template is a constant; were it wrong, the plain bar would do.
        if let Ok(style) = style {
            bar.set_style(style.progress_chars("━━─"));
        }
        bar.set_prefix(what);
        Progress { bar, started: Instant::now(), shown: AtomicBool::new(false) }
    }

    /// `done` of `total` are done; `now` is what it is about. Any thread may call.
    pub fn update(&self, done: u64, total: u64, now: &str) {
        if self.started.elapsed() >= PATIENCE && !self.shown.swap(true, Ordering::Relaxed) {
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        self.bar.set_length(total);
        self.bar.set_position(done);
        self.bar.set_message(now.to_owned());
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
