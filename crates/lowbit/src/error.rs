//! One error type: what was attempted, what was expected, what came, what to do.

/// What any operation of this crate returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation of this crate was refused.
///
/// Every argument is checked once, at the door of the public function; nothing
/// in this crate panics on what a caller passes.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument has the wrong size, shape, kind or value.
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
    /// A value to be quantized is NaN or infinite.
    #[error(
        "{op}: expected finite values, got {value} at index {index}; \
         repair the tensor or leave it unquantized"
    )]
    NotFinite {
        /// The operation that refused.
        op: &'static str,
        /// Flat row-major index of the first such value.
        index: usize,
        /// The value.
        value: f32,
    },
    /// No format of that name is in the table.
    #[error("unknown format {name:?}; expected one of {known}")]
    UnknownFormat {
        /// The name asked for.
        name: String,
        /// The names in the table.
        known: String,
    },
    /// A buffer could not be allocated.
    #[error("{op}: could not allocate {bytes} bytes; {help}")]
    OutOfMemory {
        /// The operation that needed the buffer.
        op: &'static str,
        /// How much it needed.
        bytes: u64,
        /// What the caller can do.
        help: String,
    },
    /// A device failed, or was asked for something it cannot do.
    #[error("{op}: {reason}; {help}")]
    Device {
        /// The operation that failed.
        op: &'static str,
        /// What the device reported.
        reason: String,
        /// What the caller can do.
        help: String,
    },
}

impl Error {
    /// An [`Error::Argument`] from anything that prints.
    pub fn argument(
        op: &'static str,
        expected: impl Into<String>,
        got: impl Into<String>,
        help: impl Into<String>,
    ) -> Self {
        Error::Argument { op, expected: expected.into(), got: got.into(), help: help.into() }
    }
}
