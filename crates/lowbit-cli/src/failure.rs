//! What ends a command early: one line on stderr and an exit status.

use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use anstyle::AnsiColor;

/// Why a command did not succeed.
#[derive(Debug)]
pub enum Failure {
    /// The command line asks for something that cannot be: status 2.
    Usage(String),
    /// The work failed: status 1.
    Failed(String),
    /// Ctrl-C: status 130.
    Interrupted,
    /// The reader of our output has left (`| head`): nothing to say, status 0.
    Closed,
    /// clap has an answer of its own, a help text or the version.
    Clap(clap::Error),
}

/// What a command returns.
pub type Result<T = ()> = std::result::Result<T, Failure>;

impl Failure {
    /// The work failed, for this reason.
    pub fn failed(message: impl Into<String>) -> Self {
        Failure::Failed(message.into())
    }

    /// The command line is wrong, for this reason.
    pub fn usage(message: impl Into<String>) -> Self {
        Failure::Usage(message.into())
    }

    /// What it says, on one line.
    pub fn message(&self) -> String {
        match self {
            Failure::Usage(message) | Failure::Failed(message) => one_line(message),
            Failure::Interrupted => "interrupted".into(),
            Failure::Closed => "the output was closed".into(),
            Failure::Clap(text) => one_line(&text.to_string()),
        }
    }

    /// Says it, and gives the exit status.
    pub fn report(self) -> ExitCode {
        match self {
            Failure::Usage(message) => say(&message, 2),
            Failure::Failed(message) => say(&message, 1),
            Failure::Interrupted => ExitCode::from(130),
            Failure::Closed => ExitCode::SUCCESS,
            Failure::Clap(text) => {
                // A help text that cannot be written has no one to read it.
                let _ = text.print();
                ExitCode::from(if text.use_stderr() { 2 } else { 0 })
            }
        }
    }
}

fn say(message: &str, status: u8) -> ExitCode {
    let style = AnsiColor::Red.on_default().bold();
    // With stderr gone, the status still tells.
    let _ = writeln!(anstream::stderr(), "{style}error:{style:#} {}", one_line(message));
    ExitCode::from(status)
}

/// The message with control characters spelled out: names from hostile files and paths may hold
/// line breaks and terminal escapes.
fn one_line(message: &str) -> String {
    let spell = |c: char| if c.is_control() { c.escape_default().collect() } else { c.to_string() };
    message.trim().chars().map(spell).collect()
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            ErrorKind::BrokenPipe => Failure::Closed,
            _ => Failure::Failed(format!("could not write the output: {error}")),
        }
    }
}

impl From<lowbit::Error> for Failure {
    fn from(error: lowbit::Error) -> Self {
        Failure::Failed(error.to_string())
    }
}

impl From<lowbit_llm::Error> for Failure {
    fn from(error: lowbit_llm::Error) -> Self {
        match error {
            lowbit_llm::Error::Cancelled => Failure::Interrupted,
            error => Failure::Failed(error.to_string()),
        }
    }
}

impl From<clap::Error> for Failure {
    /// clap's errors take several lines; ours take one.
    fn from(error: clap::Error) -> Self {
        use clap::error::ErrorKind::{
            DisplayHelp, DisplayHelpOnMissingArgumentOrSubcommand, DisplayVersion,
        };
        if matches!(
            error.kind(),
            DisplayHelp | DisplayHelpOnMissingArgumentOrSubcommand | DisplayVersion
        ) {
            return Failure::Clap(error);
        }
        let text = error.render().to_string();
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let told = lines
            .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"))
            .map(|line| if line.starts_with("tip:") { format!(";{line}") } else { line.into() })
            .collect::<Vec<String>>()
            .join(" ")
            .replace(" ;tip:", "; tip:");
        Failure::Usage(format!("{} (--help tells more)", told.trim_start_matches("error: ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_stays_on_one_line_and_off_the_terminals_controls() {
        assert_eq!(one_line("no \"a\nb\u{1b}[31m\"\n"), "no \"a\\nb\\u{1b}[31m\"");
    }

    #[test]
    fn a_closed_pipe_is_not_a_failure_but_a_full_disk_is() {
        let closed = Failure::from(std::io::Error::from(ErrorKind::BrokenPipe));
        assert!(matches!(closed, Failure::Closed));
        let full = Failure::from(std::io::Error::from(ErrorKind::StorageFull));
        assert!(matches!(full, Failure::Failed(text) if text.contains("could not write")));
    }
}
