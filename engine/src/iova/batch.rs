//! Many ranges, one sync.

use alloc::vec::Vec;
use core::{fmt, mem};

use crate::invalidation::{Flushed, Gather, Invalidate, SyncError};
use crate::iova::allocation::{Kept, WithdrawnIova};

/// Withdrawn ranges that wait for one sync together: those of one scatter list, say. Who puts flushes off for
/// longer leaves them to a [`Deferred`](crate::invalidation::deferred::Deferred).
///
/// The hardware is told of one range that holds all of them. Dropping a batch leaks what it holds.
#[must_use = "the hardware may still use the ranges until the batch is synced"]
pub struct IovaBatch<'s> {
    kept: Vec<Kept<'s>>,
    limit: usize,
    gather: Option<Gather>,
}

/// A range that a batch cannot take.
#[derive(Debug, thiserror::Error)]
#[error("the batch is full, or both unlinked tables, or it is for another table: {}", .withdrawn.range())]
pub struct BatchError<'s> {
    /// The range.
    pub withdrawn: WithdrawnIova<'s>,
}

impl<'s> IovaBatch<'s> {
    /// Returns an empty batch for up to `limit` ranges, or `None` if there is no memory for them.
    pub fn with_limit(limit: usize) -> Option<Self> {
        let mut kept = Vec::new();
        kept.try_reserve_exact(limit).ok()?;
        Some(Self {
            kept,
            limit,
            gather: None,
        })
    }

    /// Returns the number of ranges.
    pub const fn len(&self) -> usize {
        self.kept.len()
    }

    /// Returns whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// Adds a range. Needs no memory.
    ///
    /// # Errors
    ///
    /// [`BatchError`] gives it back: sync the batch, or the range by itself.
    pub fn add(&mut self, withdrawn: WithdrawnIova<'s>) -> Result<(), BatchError<'s>> {
        if self.kept.len() == self.limit {
            return Err(BatchError { withdrawn });
        }
        let (kept, gather) = withdrawn.into_parts();
        match &mut self.gather {
            Some(all) => {
                if let Err(refused) = all.join(gather) {
                    let withdrawn = WithdrawnIova::from_parts(kept, refused.gather);
                    return Err(BatchError { withdrawn });
                }
            }
            none => *none = Some(gather),
        }
        self.kept.push(kept);
        Ok(())
    }

    /// Tells the hardware and waits for it; then all ranges are free again, and the batch is empty. Needs
    /// no memory. The result is `None` if the batch was empty.
    ///
    /// # Errors
    ///
    /// [`SyncError`]; the batch keeps the ranges, for another try.
    pub fn sync<I: Invalidate>(&mut self, hardware: &I) -> Result<Option<Flushed>, SyncError> {
        let Some(gather) = self.gather.take() else {
            return Ok(None);
        };
        // Hardware that panics must not leave ranges behind that a later gather seems to prove.
        let mut kept = mem::take(&mut self.kept);
        let result = match gather.sync(hardware) {
            Ok(flushed) => {
                kept.drain(..).for_each(|kept| kept.free(&flushed));
                Ok(Some(flushed))
            }
            Err(quarantined) => {
                let error = quarantined.error();
                self.gather = Some(quarantined.into_gather());
                Err(error)
            }
        };
        self.kept = kept;
        result
    }
}

impl fmt::Debug for IovaBatch<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IovaBatch")
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}
