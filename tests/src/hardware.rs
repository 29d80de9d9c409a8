//! Hardware that remembers what it was told.

use std::cell::RefCell;

use iopt::invalidation::{Changes, Invalidate, SyncError};

/// Takes every invalidation and keeps it, to be looked at.
#[derive(Debug, Default)]
pub struct Recorder {
    seen: RefCell<Vec<Changes>>,
}

impl Recorder {
    /// Returns what was submitted since the last call, in order.
    pub fn take(&self) -> Vec<Changes> {
        self.seen.take()
    }
}

impl Invalidate for Recorder {
    type Ticket = ();

    fn submit(&self, changes: &Changes) -> Result<(), SyncError> {
        self.seen.borrow_mut().push(*changes);
        Ok(())
    }

    fn wait(&self, (): ()) -> Result<(), SyncError> {
        Ok(())
    }
}
