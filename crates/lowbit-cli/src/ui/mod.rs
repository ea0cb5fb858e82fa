//! How things look: tables, progress, numbers with units.

mod progress;
mod table;
mod units;

pub use progress::Progress;
pub use table::{Align, Table};
pub use units::{bytes, count, duration};

use anstyle::{AnsiColor, Style};

/// Headings.
pub const HEADING: Style = Style::new().bold();
/// What matters most.
pub const ACCENT: Style = AnsiColor::Cyan.on_default().bold();
/// What matters least.
pub const DIM: Style = Style::new().dimmed();

/// Columns of the terminal; `None` where the output goes to a file or a pipe.
pub fn width() -> Option<u16> {
    terminal_size::terminal_size_of(std::io::stdout()).map(|(width, _)| width.0)
}

/// Text without control characters but line breaks and tabs: names in hostile files and the words
/// of a model must not steer the terminal.
pub fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).collect()
}
