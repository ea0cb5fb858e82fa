//! Kernels that were put together before: text is made once, not at every dispatch.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use crate::Kernel;

/// Kernels by what their text depends on.
pub(crate) struct Memo<K> {
    known: LazyLock<Mutex<HashMap<K, Arc<Kernel>>>>,
}

impl<K: Eq + Hash> Memo<K> {
    /// None yet.
    pub const fn new() -> Self {
        Memo { known: LazyLock::new(Mutex::default) }
    }

    /// The kernel of that key, made where it is not known.
    pub fn get(&self, key: K, make: impl FnOnce(&K) -> Kernel) -> Arc<Kernel> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kernel) = known.get(&key) {
            return Arc::clone(kernel);
        }
        let kernel = Arc::new(make(&key));
        known.insert(key, Arc::clone(&kernel));
        kernel
    }
}
