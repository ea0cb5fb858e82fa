//! How the demo looks.

use std::io::Write;

use crate::failure::Result;
use crate::ui;

/// Columns of a full bar.
const BAR: u64 = 56;
/// Columns of one of two texts side by side.
const COLUMN: usize = 36;

/// A numbered step.
pub fn heading(number: usize, text: &str, out: &mut dyn Write) -> Result {
    let (accent, bold) = (ui::ACCENT, ui::HEADING);
    writeln!(out, "\n{accent}{number}{accent:#}  {bold}{text}{bold:#}")?;
    Ok(out.flush()?)
}

/// Two parts of a whole of `most` bytes as a bar, and their sum.
pub fn bar([first, second]: &[u64; 2], most: u64) -> String {
    let (accent, dim) = (ui::ACCENT, ui::DIM);
    let length = |bytes: u64| (bytes * BAR).div_ceil(most.max(1)) as usize;
    let (one, both) = (length(*first), length(first + second));
    format!(
        "{accent}{}{accent:#}{dim}{}{dim:#} {}",
        "█".repeat(one),
        "░".repeat(both - one),
        ui::bytes(first + second)
    )
}

/// A text under a title.
pub struct Column {
    pub title: String,
    pub text: String,
}

/// Writes two texts side by side.
pub fn columns([left, right]: [Column; 2], out: &mut dyn Write) -> Result {
    let bold = ui::HEADING;
    writeln!(out, "   {bold}{:COLUMN$}  {}{bold:#}", left.title, right.title)?;
    let (left, right) = (wrap(&left.text), wrap(&right.text));
    for i in 0..left.len().max(right.len()) {
        let line = |lines: &[String]| lines.get(i).cloned().unwrap_or_default();
        let both = format!("   {:COLUMN$}  {}", line(&left), line(&right));
        writeln!(out, "{}", both.trim_end())?;
    }
    writeln!(out)?;
    Ok(())
}

/// Lines of at most [`COLUMN`] characters, broken between words where there are any.
fn wrap(text: &str) -> Vec<String> {
    let mut lines = Vec::new();
    for line in ui::printable(text).trim_end().lines() {
        let mut current = String::new();
        for word in line.split_whitespace() {
            let is_full = current.chars().count() + 1 + word.chars().count() > COLUMN;
            if !current.is_empty() && is_full {
                lines.push(std::mem::take(&mut current));
            }
            if !current.is_empty() {
                current.push(' ');
            }
            current.extend(word.chars().take(COLUMN));
        }
        lines.push(current);
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_wrapped_between_words() {
        let text = "ROMEO:\nBut soft, what light through yonder window breaks?\n\nx\n\n";
        let expected = ["ROMEO:", "But soft, what light through yonder", "window breaks?", "", "x"];
        assert_eq!(wrap(text), expected);
        assert_eq!(wrap(&"a".repeat(99))[0].len(), COLUMN);
    }

    #[test]
    fn bars_are_in_proportion() {
        let whole = bar(&[750, 250], 1000);
        let count = |bar: &str| ['█', '░'].map(|part| bar.matches(part).count() as u64);
        assert_eq!(count(&whole), [BAR * 3 / 4, BAR / 4]);
        assert_eq!(count(&bar(&[250, 250], 1000)), [BAR / 4, BAR / 4]);
        assert!(whole.ends_with("1.00 kB"));
    }
}
