//! Withdrawn ranges whose flush is put off.

use core::fmt;

use crate::invalidation::deferred::{Deferred, NotDeferred, Release};
use crate::invalidation::{Flushed, Invalidate, SyncError};
use crate::iova::allocation::{Kept, WithdrawnIova};

/// A range in a [`Deferred`], with what else becomes free along with it.
///
/// Only [`WithdrawnIova::defer`] makes one, and nobody but the queue gets hold of it, which releases it with
/// the proof of its own removal. Dropping it leaks the range.
pub struct DeferredIova<'s, R> {
    kept: Kept<'s>,
    then: R,
}

impl<R: Release> Release for DeferredIova<'_, R> {
    fn release(self, flushed: Flushed) {
        self.kept.free(&flushed);
        self.then.release(flushed);
    }
}

impl<R> fmt::Debug for DeferredIova<'_, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeferredIova")
            .field("range", &self.kept.range())
            .finish_non_exhaustive()
    }
}

/// A range that was not taken, since flushes fail.
#[derive(thiserror::Error)]
#[error("a flush of what is deferred failed: {error}")]
pub struct NotDeferredIova<'s, R> {
    /// The range.
    pub withdrawn: WithdrawnIova<'s>,
    /// What must not be used until it is flushed.
    pub then: R,
    /// Why.
    #[source]
    pub error: SyncError,
}

impl<R> fmt::Debug for NotDeferredIova<'_, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NotDeferredIova")
            .field("withdrawn", &self.withdrawn)
            .field("error", &self.error)
            .finish_non_exhaustive()
    }
}

impl<'s> WithdrawnIova<'s> {
    /// Leaves the flush to `deferred`, after which the range is free again and `then` is released: the memory
    /// that was mapped, say. Until then devices may still reach that memory; [`deferred`] says what
    /// this gives up.
    ///
    /// # Errors
    ///
    /// [`NotDeferredIova`] gives the range back if there is no room because flushes fail.
    ///
    /// [`deferred`]: crate::invalidation::deferred
    pub fn defer<I: Invalidate, R: Release>(
        self,
        deferred: &Deferred<I, DeferredIova<'s, R>>,
        then: R,
    ) -> Result<(), NotDeferredIova<'s, R>> {
        let (kept, gather) = self.into_parts();
        let result = deferred.defer(gather, DeferredIova { kept, then });
        result.map_err(|refused| {
            let NotDeferred {
                gather,
                release: DeferredIova { kept, then },
                error,
            } = refused;
            NotDeferredIova {
                withdrawn: Self::from_parts(kept, gather),
                then,
                error,
            }
        })
    }
}
