//! One error type: where, what was expected, what came, what to do.

use std::path::{Path, PathBuf};

/// What any operation of this crate returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation of this crate failed. Each prints as one complete line.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused.
    #[error("could not {action} {}: {source}", path.display())]
    Io {
        /// What was attempted: "read", "write", ..
        action: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file does not hold what it must.
    #[error("{}: expected {expected}, got {got}; {help}", path.display())]
    File {
        /// The file or directory.
        path: PathBuf,
        /// What it must hold.
        expected: String,
        /// What it holds.
        got: String,
        /// What the caller can do.
        help: String,
    },
    /// A tensor of a file is not what it must be.
    #[error("{}: tensor {tensor:?}: expected {expected}, got {got}; {help}", path.display())]
    Tensor {
        /// The file or directory that holds it.
        path: PathBuf,
        /// Its name there.
        tensor: String,
        /// What it must be.
        expected: String,
        /// What it is.
        got: String,
        /// What the caller can do.
        help: String,
    },
    /// The formats' library refused a tensor of a file.
    #[error("{}: tensor {tensor:?}: {source}", path.display())]
    Weight {
        /// The file or directory that holds it.
        path: PathBuf,
        /// Its name there.
        tensor: String,
        /// Why.
        source: Box<lowbit::Error>,
    },
    /// An argument has the wrong kind or value.
    #[error("{op}: expected {expected}, got {got}; {help}")]
    Argument {
        /// The operation that refused.
        op: &'static str,
        /// What it takes.
        expected: String,
        /// What it was given.
        got: String,
        /// What the caller can do.
        help: String,
    },
    /// A model's settings are not those of a model that runs here.
    #[error("{file}: {field}: expected {expected}, got {got}; {help}")]
    Config {
        /// `config.json` or `generation_config.json`.
        file: &'static str,
        /// The field, with what it is inside of: `rope_scaling.rope_type`.
        field: String,
        /// What it must be.
        expected: String,
        /// What it is.
        got: String,
        /// What the caller can do.
        help: String,
    },
    /// The tokenizer failed on a text or on tokens.
    #[error("could not {action} with tokenizer.json: {reason}")]
    Tokenizer {
        /// What was attempted: "encode", "decode".
        action: &'static str,
        /// What it said.
        reason: String,
    },
    /// A chat template cannot be compiled, or refuses the conversation.
    #[error("chat template: {reason}")]
    Template {
        /// What it said.
        reason: String,
    },
    /// Whoever watched the progress asked to stop.
    #[error("stopped before it was done; nothing was written")]
    Cancelled,
    /// The formats' library refused.
    #[error(transparent)]
    Core(#[from] lowbit::Error),
}

impl Error {
    /// An [`Error::File`] from anything that prints.
    pub fn file(
        path: &Path,
        expected: impl Into<String>,
        got: impl Into<String>,
        help: impl Into<String>,
    ) -> Self {
        let (expected, got, help) = (expected.into(), got.into(), help.into());
        Error::File { path: path.into(), expected, got, help }
    }

    /// An [`Error::Tensor`] from anything that prints.
    pub fn tensor(
        path: &Path,
        tensor: &str,
        expected: impl Into<String>,
        got: impl Into<String>,
        help: impl Into<String>,
    ) -> Self {
        let (expected, got, help) = (expected.into(), got.into(), help.into());
        Error::Tensor { path: path.into(), tensor: tensor.into(), expected, got, help }
    }

    /// An [`Error::Argument`] from anything that prints.
    pub fn argument(
        op: &'static str,
        expected: impl Into<String>,
        got: impl Into<String>,
        help: impl Into<String>,
    ) -> Self {
        Error::Argument { op, expected: expected.into(), got: got.into(), help: help.into() }
    }

    /// For `map_err`: an [`Error::Io`] on a path.
    pub fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Error::Io { action, path: path.into(), source }
    }

    /// For `map_err`: an [`Error::Weight`] on a tensor.
    pub fn weight(path: &Path, tensor: &str) -> impl FnOnce(lowbit::Error) -> Self {
        move |source| Error::Weight {
            path: path.into(),
            tensor: tensor.into(),
            source: Box::new(source),
        }
    }
}
