//! The life of one allocation, a type for each state.

use core::{fmt, mem};

use iopt_formats::{Format, IovaRange, Level, PageSize};

use crate::invalidation::{
    Changes, Flushed, Gather, Invalidate, Kind, Pending, Quarantined, SyncError,
};
use crate::iova::IovaSpace;
use crate::mem::TableMemory;
use crate::radix::{Mapper, MapperError, Table, UnmapError, UnmapPolicy};
use crate::reclaim::Operation;
use crate::sync::atomic::AtomicU64;

/// Pages that were taken together and are somebody's (W2).
#[derive(Clone, Copy)]
struct Part<'s> {
    space: &'s IovaSpace,
    page: usize,
    count: usize,
    /// The word that has the bits of all pages, if it was at hand: a short free needs no look-up.
    word: Option<&'s AtomicU64>,
}

impl Part<'_> {
    #[inline]
    fn range(&self) -> IovaRange {
        self.space.range_of(self.page, self.count)
    }

    #[inline]
    fn free(&self) {
        match self.word {
            Some(word) => self.space.space.put_in_word(self.page, self.count, word),
            None => self.space.space.put(self.page, self.count),
        }
    }
}

/// A part that hardware may know: freed with a proof, or never.
pub(super) struct Kept<'s>(Part<'s>);

impl Kept<'_> {
    pub(super) fn range(&self) -> IovaRange {
        self.0.range()
    }

    /// Frees the part, of which `flushed` is the proof (W4).
    pub(super) fn free(self, flushed: &Flushed) {
        debug_assert!(flushed.spans(self.range()), "the gather has all of it");
        debug_assert_eq!(flushed.table(), self.0.space.table, "W3");
        self.0.free();
        mem::forget(self);
    }
}

impl Drop for Kept<'_> {
    fn drop(&mut self) {
        self.0.space.leak(self.0.count);
    }
}

/// A range that no mapper was ever given: dropping it makes it free again.
#[must_use = "the range is free again when it is dropped"]
pub struct FreshIova<'s>(Part<'s>);

impl<'s> FreshIova<'s> {
    #[inline]
    pub(super) const fn new(
        space: &'s IovaSpace,
        page: usize,
        count: usize,
        word: Option<&'s AtomicU64>,
    ) -> Self {
        Self(Part {
            space,
            page,
            count,
            word,
        })
    }

    /// Returns the range.
    #[inline]
    pub fn range(&self) -> IovaRange {
        self.0.range()
    }

    /// Makes it one that can be mapped, and is free again only once the hardware was told.
    #[inline]
    pub fn into_allocation(self) -> IovaAllocation<'s> {
        let part = self.0;
        mem::forget(self);
        IovaAllocation { kept: Kept(part) }
    }

    /// Makes the range free again. Cannot fail, and needs no memory.
    #[inline]
    pub fn cancel(self) {
        drop(self);
    }
}

impl Drop for FreshIova<'_> {
    #[inline]
    fn drop(&mut self) {
        self.0.free();
    }
}

/// The exclusive right to change the translations of a range.
///
/// Dropping it leaks the range: hardware may know it, so it is never given out again, and
/// [`IovaStatistics`](crate::iova::IovaStatistics) counts it.
#[must_use = "the range leaks if it is dropped"]
pub struct IovaAllocation<'s> {
    kept: Kept<'s>,
}

impl<'s> IovaAllocation<'s> {
    /// Returns the range.
    pub fn range(&self) -> IovaRange {
        self.kept.range()
    }

    /// Returns a handle that changes the translations of the range; without a look at any claim.
    ///
    /// # Errors
    ///
    /// [`WrongTable`] unless `table` is that of the space.
    #[inline]
    pub fn mapper<'t, F: Format, M: TableMemory>(
        &'t mut self,
        table: &'t Table<F, M>,
    ) -> Result<Mapper<'t, F, M>, WrongTable> {
        let part = &self.kept.0;
        if table.id() != part.space.table {
            return Err(WrongTable);
        }
        // T3: nobody has a claim on the range but the space (W1), which the allocation borrows; no other
        // allocation shares an address with this one (W2), which the mapper borrows.
        let mapper = table.mapper_of_part(part.range());
        // The space asked the table whether it decodes its windows.
        mapper.map_err(|_: MapperError| WrongTable)
    }

    /// Unmaps whatever the range holds, for good.
    ///
    /// The hardware is told of all of the range: it may have held leaves of every size, and ways to tables
    /// that are unlinked and that nobody proved to be forgotten. So gathers of earlier unmaps may have been
    /// lost; only their tables are freed by them alone.
    ///
    /// # Errors
    ///
    /// [`WithdrawError`] gives the allocation back, as it was.
    pub fn withdraw<F: Format, M: TableMemory>(
        mut self,
        table: &Table<F, M>,
    ) -> Result<WithdrawnIova<'s>, WithdrawError<'s>> {
        let range = self.range();
        let unmapped = match self.mapper(table) {
            Ok(mut mapper) => mapper.unmap(range, UnmapPolicy::Sparse),
            Err(WrongTable) => return Err(WithdrawError::WrongTable { allocation: self }),
        };
        let mut gather = match unmapped {
            Ok(unmapped) => unmapped.gather,
            Err(error) => {
                let allocation = self;
                return Err(WithdrawError::Unmap { allocation, error });
            }
        };
        // What earlier mappers unmapped, and perhaps nobody synced, is gone from the table.
        let whole = whole(table, range);
        let joined = gather.join(Gather::new(whole, table.id(), Operation::NONE));
        debug_assert!(joined.is_ok(), "of the same table, and nothing retired");
        let kept = self.kept;
        Ok(WithdrawnIova { kept, gather })
    }
}

/// Returns the changes of a range that may have held leaves of any size, and tables if any wait to be freed.
fn whole<F: Format, M: TableMemory>(table: &Table<F, M>, range: IovaRange) -> Changes {
    let largest = range.len().map_or(63, u64::ilog2);
    let format = table.format();
    let sizes = format.sizes().up_to(PageSize::from_lg2(largest as u8));
    let mut changes = Changes::leaves(range, sizes, Kind::Removed);
    let levels = (1..=format.geometry().max_top.0).map(Level);
    let mut levels = levels.take_while(|&level| u32::from(F::item_lg2(level)) <= largest);
    if let Some(lowest) = levels.next()
        && table.quarantined_count() > 0
    {
        changes.add_table(range, lowest);
        levels.for_each(|level| changes.add_table(range, level));
    }
    changes
}

/// A range that translates nothing any more, of which the hardware has yet to be told.
///
/// Dropping it leaks the range.
#[must_use = "the hardware may still use the range until it is synced"]
pub struct WithdrawnIova<'s> {
    kept: Kept<'s>,
    gather: Gather,
}

impl<'s> WithdrawnIova<'s> {
    /// Returns the range.
    pub fn range(&self) -> IovaRange {
        self.kept.range()
    }

    /// Returns what the hardware will be told.
    pub const fn changes(&self) -> &Changes {
        self.gather.changes()
    }

    /// Tells the hardware and waits for it; then the range is free again. The result lets the memory be
    /// reused that was mapped, and [tables](Table::reclaim) that were unlinked.
    ///
    /// # Errors
    ///
    /// [`QuarantinedIova`], which stays allocated, if the hardware fails or does not answer.
    pub fn sync<I: Invalidate>(self, hardware: &I) -> Result<Flushed, QuarantinedIova<'s>> {
        let Self { kept, gather } = self;
        settle(kept, gather.sync(hardware))
    }

    /// Queues the invalidation without waiting for it, so that work can overlap with it.
    pub fn submit<I: Invalidate>(self, hardware: &I) -> PendingIova<'s, '_, I> {
        let Self { kept, gather } = self;
        let pending = gather.submit(hardware);
        PendingIova { kept, pending }
    }

    pub(super) fn into_parts(self) -> (Kept<'s>, Gather) {
        (self.kept, self.gather)
    }

    pub(super) const fn from_parts(kept: Kept<'s>, gather: Gather) -> Self {
        Self { kept, gather }
    }
}

fn settle(
    kept: Kept<'_>,
    result: Result<Flushed, Quarantined>,
) -> Result<Flushed, QuarantinedIova<'_>> {
    match result {
        Ok(flushed) => {
            kept.free(&flushed);
            Ok(flushed)
        }
        Err(quarantined) => Err(QuarantinedIova { kept, quarantined }),
    }
}

/// A range whose invalidation is queued. Dropping it leaks the range.
#[must_use = "the hardware may still use the range until the wait succeeds"]
pub struct PendingIova<'s, 'h, I: Invalidate> {
    kept: Kept<'s>,
    pending: Pending<'h, I>,
}

impl<'s, I: Invalidate> PendingIova<'s, '_, I> {
    /// Returns the range.
    pub fn range(&self) -> IovaRange {
        self.kept.range()
    }

    /// Returns whether [`wait`](Self::wait) would return at once, as [`Pending::is_done`].
    pub fn is_done(&mut self) -> bool {
        self.pending.is_done()
    }

    /// Waits until the hardware holds nothing of the range any more; then it is free again.
    ///
    /// # Errors
    ///
    /// As for [`WithdrawnIova::sync`].
    pub fn wait(self) -> Result<Flushed, QuarantinedIova<'s>> {
        let Self { kept, pending } = self;
        settle(kept, pending.wait())
    }
}

/// A range that the hardware may hold on to for ever: it stays allocated. Dropping it leaks the range.
#[derive(thiserror::Error)]
#[error("the hardware may still use {}: {}", .kept.range(), .quarantined.error())]
pub struct QuarantinedIova<'s> {
    kept: Kept<'s>,
    quarantined: Quarantined,
}

impl<'s> QuarantinedIova<'s> {
    /// Returns the range.
    pub fn range(&self) -> IovaRange {
        self.kept.range()
    }

    /// Returns why.
    pub const fn error(&self) -> SyncError {
        self.quarantined.error()
    }

    /// Gives the range back, to try again or to sync once the device is blocked or reset.
    pub fn into_withdrawn(self) -> WithdrawnIova<'s> {
        let Self { kept, quarantined } = self;
        let gather = quarantined.into_gather();
        WithdrawnIova { kept, gather }
    }
}

/// The table is not that of the space.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the IOVA was allocated for another table")]
pub struct WrongTable;

/// Why an allocation is not withdrawn. Holds it, as it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WithdrawError<'s> {
    /// The table is not that of the space.
    #[error("{} was allocated for another table", .allocation.range())]
    WrongTable {
        /// The allocation.
        allocation: IovaAllocation<'s>,
    },
    /// It cannot be unmapped.
    #[error("{} cannot be unmapped: {error}", .allocation.range())]
    Unmap {
        /// The allocation.
        allocation: IovaAllocation<'s>,
        /// Why.
        error: UnmapError,
    },
}

impl<'s> WithdrawError<'s> {
    /// Returns the allocation.
    pub fn into_allocation(self) -> IovaAllocation<'s> {
        let (Self::WrongTable { allocation } | Self::Unmap { allocation, .. }) = self;
        allocation
    }
}

macro_rules! debug_range {
    ($($name:ident),+) => {$(
        impl fmt::Debug for $name<'_> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($name))
                    .field("range", &self.range())
                    .finish_non_exhaustive()
            }
        }
    )+};
}

debug_range!(FreshIova, IovaAllocation, WithdrawnIova, QuarantinedIova);

impl<I: Invalidate> fmt::Debug for PendingIova<'_, '_, I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PendingIova")
            .field("range", &self.range())
            .finish_non_exhaustive()
    }
}
