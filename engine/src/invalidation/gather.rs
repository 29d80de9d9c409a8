//! From "changed" to "flushed": tokens that cannot be forgotten and proofs that cannot be made up.

use iopt_formats::IovaRange;
use iopt_formats::walk::Root;

use crate::invalidation::{Changes, Invalidate, Kind, SyncError, TableId};
use crate::reclaim::Operation;
use crate::sync::SYNC;

/// What an operation removed and the hardware may still use.
///
/// Until [`sync`](Self::sync) or [`Pending::wait`] succeeds, devices may read and write the old
/// pages through stale translations.
#[derive(Debug)]
#[doc(alias = "iommu_iotlb_gather")]
#[must_use = "the hardware may still use what was removed until it is synced"]
pub struct Gather {
    changes: Changes,
    table: TableId,
    retired: Operation,
}

impl Gather {
    #[inline]
    pub(crate) const fn new(changes: Changes, table: TableId, retired: Operation) -> Self {
        Self {
            changes,
            table,
            retired,
        }
    }

    /// Returns what changed.
    pub const fn changes(&self) -> &Changes {
        &self.changes
    }

    /// Returns the range that holds every change, or `None` if nothing changed.
    pub const fn range(&self) -> Option<IovaRange> {
        self.changes.range()
    }

    /// Returns whether nothing changed.
    pub const fn is_empty(&self) -> bool {
        self.changes.range().is_none()
    }

    /// Adds `other`, so that one sync serves both.
    ///
    /// # Errors
    ///
    /// Gives `other` back if it belongs to another table, if both retired tables, or if hardware has to be told of
    /// them for different [reasons](Kind), unless these are [`Removed`](Kind::Removed) and
    /// [`Altered`](Kind::Altered).
    pub fn join(&mut self, other: Self) -> Result<(), JoinError> {
        let both_retired = self.retired != Operation::NONE && other.retired != Operation::NONE;
        if self.table != other.table || both_retired || !self.changes.join(&other.changes) {
            return Err(JoinError { gather: other });
        }
        if self.retired == Operation::NONE {
            self.retired = other.retired;
        }
        Ok(())
    }

    /// Queues the invalidation without waiting for it, so that work can overlap with it.
    #[inline]
    pub fn submit<I: Invalidate>(self, hardware: &I) -> Pending<'_, I> {
        let ticket = if self.is_empty() {
            Ok(None)
        } else {
            // For room in a queue.
            let _waiting = SYNC.waiting();
            hardware.submit(&self.changes).map(Some)
        };
        Pending {
            gather: self,
            ticket,
            hardware,
        }
    }

    /// Queues the invalidation and waits for it.
    ///
    /// # Errors
    ///
    /// [`Quarantined`] if the hardware fails or does not answer.
    #[inline]
    pub fn sync<I: Invalidate>(self, hardware: &I) -> Result<Flushed, Quarantined> {
        if self.is_empty() {
            return Ok(Flushed { gather: self });
        }
        // A copy, so that the gather itself need not be in memory.
        let changes = self.changes.copied();
        let _waiting = SYNC.waiting();
        let ticket = hardware.submit(&changes);
        match ticket.and_then(|ticket| hardware.wait(ticket)) {
            Ok(()) => Ok(Flushed { gather: self }),
            Err(error) => Err(self.quarantine(error)),
        }
    }

    /// Returns the proof, for who knows that a flush covered it.
    #[cfg(feature = "std")]
    pub(super) const fn flushed(self) -> Flushed {
        Flushed { gather: self }
    }

    #[cold]
    fn quarantine(self, error: SyncError) -> Quarantined {
        Quarantined {
            gather: self,
            error,
        }
    }
}

/// Two gathers that one sync cannot serve.
#[derive(Debug, thiserror::Error)]
#[error(
    "the gathers belong to different tables, changed them in different ways, or both retired tables"
)]
pub struct JoinError {
    /// The gather that was not added.
    pub gather: Gather,
}

/// An invalidation that is queued.
#[derive(Debug)]
#[must_use = "the hardware may still use what was removed until the wait succeeds"]
pub struct Pending<'a, I: Invalidate> {
    gather: Gather,
    ticket: Result<Option<I::Ticket>, SyncError>,
    hardware: &'a I,
}

impl<I: Invalidate> Pending<'_, I> {
    /// Returns whether [`wait`](Self::wait) would return at once. Helps the invalidation on, and waits for
    /// nothing but room in a queue: so who looks now and then, and works in between, need not wait at all.
    #[inline]
    pub fn is_done(&mut self) -> bool {
        let _waiting = SYNC.waiting();
        match &mut self.ticket {
            Ok(Some(ticket)) => self.hardware.is_done(ticket),
            Ok(None) | Err(_) => true,
        }
    }

    /// Waits until the hardware holds nothing of the changes any more.
    ///
    /// # Errors
    ///
    /// [`Quarantined`] if the hardware fails or does not answer.
    #[inline]
    pub fn wait(self) -> Result<Flushed, Quarantined> {
        let _waiting = SYNC.waiting();
        let done = match self.ticket {
            Ok(Some(ticket)) => self.hardware.wait(ticket),
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        };
        match done {
            Ok(()) => Ok(Flushed {
                gather: self.gather,
            }),
            Err(error) => Err(self.gather.quarantine(error)),
        }
    }
}

/// Proof that the hardware holds nothing of some changes any more.
#[derive(Debug)]
pub struct Flushed {
    gather: Gather,
}

impl Flushed {
    /// Returns what was flushed.
    pub const fn changes(&self) -> &Changes {
        &self.gather.changes
    }

    /// Returns whether nothing in `range` was mapped any more when it was flushed.
    ///
    /// False where something else happened to the range than an unmap, or where the proof is that of several
    /// [joined](Gather::join) operations and may have holes. Says nothing of what was mapped there afterwards, so
    /// use a proof up when acting on it.
    pub const fn covers(&self, range: IovaRange) -> bool {
        self.gather.changes.has_removed(range)
    }

    /// Returns whether `range` lies inside what was flushed, holes included: nothing of it is cached that was
    /// gone by then.
    pub(crate) const fn spans(&self, range: IovaRange) -> bool {
        self.gather.changes.spans(range)
    }

    /// Returns which table it was flushed for.
    pub const fn table(&self) -> TableId {
        self.gather.table
    }

    pub(crate) const fn retired(&self) -> Operation {
        self.gather.retired
    }
}

/// Changes that the hardware may hold on to for ever: pages, IOVA and tables of the range must not
/// be used for anything else until the device is blocked or reset.
#[derive(Debug, thiserror::Error)]
#[error("the hardware may still use the range: {error}")]
pub struct Quarantined {
    gather: Gather,
    #[source]
    error: SyncError,
}

impl Quarantined {
    /// Returns what the hardware may still use.
    pub const fn changes(&self) -> &Changes {
        &self.gather.changes
    }

    /// Gives the gather back, to try again or to sync once the device is blocked or reset.
    pub fn into_gather(self) -> Gather {
        self.gather
    }

    /// Returns why.
    pub const fn error(&self) -> SyncError {
        self.error
    }
}

/// What a map leaves to do before devices may use the range.
///
/// Empty on most hardware. Not empty where the hardware caches non-present entries (VT-d caching
/// mode, AMD `NpCache`) or reads through a write buffer, where a larger leaf took the place of an
/// empty table, and where the root of the table moved.
#[derive(Debug)]
#[doc(alias = "iotlb_sync_map")]
#[must_use = "the hardware may not see the mapping until it is synced"]
pub struct MapSync {
    table: TableId,
    work: Option<MapWork>,
}

#[derive(Debug)]
struct MapWork {
    changes: Changes,
    retired: Operation,
    new_root: Option<Root>,
}

impl MapSync {
    #[inline]
    pub(crate) const fn none(table: TableId) -> Self {
        Self { table, work: None }
    }

    pub(crate) const fn new(
        table: TableId,
        changes: Changes,
        retired: Operation,
        new_root: Option<Root>,
    ) -> Self {
        Self {
            table,
            work: Some(MapWork {
                changes,
                retired,
                new_root,
            }),
        }
    }

    /// Returns whether nothing is left to do.
    pub const fn is_empty(&self) -> bool {
        self.work.is_none()
    }

    /// Returns the root that devices need to reach the range, if the table grew: device contexts must
    /// point to it, or to a later one, before [`sync`](Self::sync).
    ///
    /// Where several threads map, store what [`Table::root`](crate::radix::Table::root) returns
    /// under the lock of the context, so that an old root never follows a new one.
    pub fn new_root(&self) -> Option<Root> {
        self.work.as_ref().and_then(|work| work.new_root)
    }

    /// Returns what the hardware has to be told, or `None` if there is nothing.
    pub fn changes(&self) -> Option<&Changes> {
        self.work.as_ref().map(|work| &work.changes)
    }

    /// Tells the hardware and waits for it.
    ///
    /// # Errors
    ///
    /// [`Quarantined`] if the hardware fails or does not answer.
    #[inline]
    pub fn sync<I: Invalidate>(self, hardware: &I) -> Result<Flushed, Quarantined> {
        let Some(work) = self.work else {
            let gather = Gather::new(Changes::none(Kind::Added), self.table, Operation::NONE);
            return Ok(Flushed { gather });
        };
        Gather::new(work.changes, self.table, work.retired).sync(hardware)
    }
}
