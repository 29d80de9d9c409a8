//! A value that is read without a lock and replaced whole.

use alloc::sync::Arc;
use core::fmt;

use arc_swap::ArcSwap;

/// The latest of several values.
///
/// Writers order themselves. Models do not see reads: what is read must be as good if it is older, or be read
/// under the lock that the writers hold.
pub(crate) struct Latest<T>(ArcSwap<T>);

impl<T> Latest<T> {
    pub(crate) fn new(value: Arc<T>) -> Self {
        Self(ArcSwap::new(value))
    }

    /// Returns the value that was set last, or a later one than any that this thread saw before.
    pub(crate) fn get(&self) -> Arc<T> {
        self.0.load_full()
    }

    pub(crate) fn set(&self, value: Arc<T>) {
        self.0.store(value);
    }
}

impl<T: fmt::Debug> fmt::Debug for Latest<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}
