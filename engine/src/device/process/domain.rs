//! What an architecture makes of a process.

use alloc::sync::Arc;

use iopt_formats::IovaRange;

use crate::device::Hwpt;
use crate::invalidation::SyncError;

/// A domain that leads to the tables of a process. It keeps the [`Process`](super::Process).
pub trait ProcessDomain: Hwpt {
    /// Makes hardware forget what it has of `range`, whose tables have changed. When this returns none of its
    /// users meets what was there.
    ///
    /// # Errors
    ///
    /// [`SyncError`] if hardware fails or does not answer.
    fn changed(&self, range: IovaRange) -> Result<(), SyncError>;

    /// Stops all walks of the tables, and makes hardware forget what it has of them. The attachments stay, and
    /// those to come lead nowhere.
    ///
    /// # Errors
    ///
    /// [`ExitError`].
    fn exit(self: Arc<Self>) -> Result<(), ExitError>;
}

/// Hardware did not confirm that it walks the tables of a process no more: they have to stay.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("hardware did not confirm that it walks the tables of the process no more")]
pub struct ExitError;
