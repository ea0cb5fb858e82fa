//! Codes of a byte as look-ups take them, kept with the tensor whose codes they are.

use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use super::buffer::Buffer;

/// The codes of a tensor once more, each column of some rows together, if it is multiplied by often.
#[derive(Default)]
pub(crate) struct Turned {
    asked: AtomicBool,
    codes: OnceLock<Buffer<u8>>,
}

impl Turned {
    /// What `turn` gives, from the second time on that someone asks: to turn codes takes longer than a product
    /// does, and they take as much memory again.
    pub fn get(&self, turn: impl FnOnce() -> Buffer<u8>) -> Option<&[u8]> {
        if self.codes.get().is_none() && !self.asked.swap(true, Ordering::Relaxed) {
            return None;
        }
        Some(self.codes.get_or_init(turn))
    }
}

impl fmt::Debug for Turned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.codes.get().map_or(0, |codes| codes.len());
        f.debug_struct("Turned").field("bytes", &bytes).finish()
    }
}
