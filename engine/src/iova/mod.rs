//! Choosing IOVA for drivers.
//!
//! An [`IovaSpace`] claims what one table may translate of an aperture, and gives it out in parts. What it
//! gives is the exclusive right to a range, as a [`Claim`] is, but neither taking one nor giving it back
//! locks anything:
//!
//! ```text
//!            into_allocation            withdraw             sync
//! FreshIova ---------------> IovaAllocation -----> WithdrawnIova ----> free again, and Flushed
//!     | cancel, drop             | mapper     everything unmapped | `-> QuarantinedIova: try again
//!     v                                                           +-----> IovaBatch: one sync for many
//!   free again                                                    `-----> Deferred: a common flush, later
//! ```
//!
//! Nothing but a sync of the whole range that follows its last unmap makes a range free again that was
//! ever given to a mapper: the gather stays inside, so that no other proof can be taken for its own.
//!
//! ```
//! use iopt::invalidation::NoHardware;
//! use iopt::iova::{IovaConfig, IovaRequest, IovaSpace};
//! use iopt::mem::Heap;
//! use iopt::radix::Table;
//! use iopt_formats::vtd::SecondStage;
//! use iopt_formats::{Iova, IovaRange, Oa, Prot};
//!
//! let table = Table::new(SecondStage::new(48)?, Heap)?;
//! let aperture = IovaRange::new(Iova::new(0x1000), Iova::new(0xffff_ffff_ffff)).unwrap();
//! let space = IovaSpace::new(&table, IovaConfig::new(aperture))?;
//!
//! let mut buffer = space.alloc(&IovaRequest::new(0x3000))?.into_allocation();
//! let range = buffer.range();
//! buffer.mapper(&table)?.map(range, Oa::new(0x8000_0000), Prot::RW)?.sync(&NoHardware)?;
//!
//! let withdrawn = buffer.withdraw(&table).map_err(|error| error.to_string())?;
//! let flushed = withdrawn.sync(&NoHardware).map_err(|quarantined| quarantined.error())?;
//! assert!(flushed.covers(range)); // now, and not before, the pages may be reused
//! assert_eq!(space.statistics().used_len, 0);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Where a range lies
//!
//! As low as possible, so that few tables are needed: each thread keeps to one chunk, the span of one
//! leaf table (2 MiB for a granule of 4 KiB, 32 MiB for 16 KiB, 512 MiB for 64 KiB), and packs there what it
//! asks for, in the order in which it does. When that is full, it goes on in the lowest one that others left
//! and that has room. What is shorter than a chunk lies in one leaf table. What is
//! longer begins with a table of its own, or with a block of 512 of them, and shares its last one. A
//! driver may also ask for a whole chunk once, and divide it by itself for hours.
//!
//! # Threads
//!
//! Allocating and freeing are lock-free, and a thread meets others only if it frees what another one
//! allocated, if ranges are long, or if there is little left. Any thread may free.
//!
//! # Invariants
//!
//! - **W1** (claimed): the space holds claims over all its windows, of the registry of its table, from the
//!   beginning to the end of its life.
//! - **W2** (apart): no two allocations that live share an address, nor does one with a free range; each lies
//!   in one window. Nothing outside this module makes one, or changes its bounds.
//! - **W3** (one table): the mappers of an allocation are of the table of its space, and end before it is
//!   withdrawn.
//! - **W4** (told): a range that was given to a mapper is freed only after a sync that began behind the last
//!   change of its translations, told of every byte of it, and succeeded.

mod allocation;
mod batch;
mod bits;
mod block;
mod config;
#[cfg(feature = "std")]
mod deferral;
mod directory;
mod error;
mod layout;
mod marks;
mod room;
mod search;
mod slots;
mod space;
mod survey;

#[cfg(all(test, loom))]
mod models;
#[cfg(all(test, not(loom)))]
mod tests;

use alloc::vec::Vec;
use core::fmt;

use iopt_formats::{Format, IovaRange, PageSize};

use crate::claim::Claim;
use crate::invalidation::TableId;
use crate::iova::layout::{Layout, Run};
use crate::iova::search::{Reach, Refusal};
use crate::iova::space::Space;
use crate::mem::TableMemory;
use crate::radix::Table;
use crate::sync::CachePadded;
use crate::sync::unmodelled::{self, Ordering};

pub use crate::intervals::reservations::AllowError;
pub use crate::iova::allocation::{
    FreshIova, IovaAllocation, PendingIova, QuarantinedIova, WithdrawError, WithdrawnIova,
    WrongTable,
};
pub use crate::iova::batch::{BatchError, IovaBatch};
pub use crate::iova::config::{IovaConfig, IovaRequest};
#[cfg(feature = "std")]
pub use crate::iova::deferral::{DeferredIova, NotDeferredIova};
pub use crate::iova::error::{IovaConfigError, IovaError, IovaSpaceError};

/// The allocator of the IOVA of one table.
///
/// Dropping it gives its claims back, unless allocations leaked: then its windows stay claimed for ever.
#[doc(alias = "iova_domain")]
pub struct IovaSpace {
    space: Space,
    table: TableId,
    is_low_first: bool,
    total_len: u64,
    granule: PageSize,
    leaks: CachePadded<Leaks>,
    /// W1.
    claims: Vec<Claim>,
}

/// What was dropped without a proof.
#[derive(Debug, Default)]
struct Leaks {
    count: unmodelled::AtomicU64,
    len: unmodelled::AtomicU64,
}

/// What a space has given out, and what it has left. Exact while no thread allocates or frees.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct IovaStatistics {
    /// Bytes that may be given out in all.
    pub total_len: u64,
    /// Bytes that are given out, leaked ones included.
    pub used_len: u64,
    /// Bytes that are free.
    pub free_len: u64,
    /// Bytes of the longest run of free ones, whatever its alignment.
    pub largest_free_len: u64,
    /// Chunks of which parts are given out: leaf tables that small allocations use.
    pub open_chunk_count: usize,
    /// Those that threads keep to.
    pub held_chunk_count: usize,
    /// Those that are shared back, for any thread to keep to.
    pub shared_chunk_count: usize,
    /// Allocations that were dropped without a proof. Their addresses are never given out again.
    pub leaked_count: u64,
    /// Their bytes.
    pub leaked_len: u64,
}

impl IovaSpace {
    /// Creates the allocator of what `table` may translate of the aperture. Parts of pages are left out.
    ///
    /// # Errors
    ///
    /// [`IovaSpaceError`].
    pub fn new<F: Format, M: TableMemory>(
        table: &Table<F, M>,
        config: IovaConfig,
    ) -> Result<Self, IovaSpaceError> {
        let IovaConfig {
            aperture,
            reservations,
            is_low_first,
        } = config;
        let granule = F::GRANULE;
        let too_wide = IovaSpaceError::TooWide { aperture, granule };
        let layout = Layout::new(aperture, granule).ok_or(too_wide)?;
        let mut windows = Vec::new();
        let mut claims = Vec::new();
        for window in reservations.windows(aperture) {
            let Some(window) = window.intersection(aperture) else {
                continue;
            };
            let pages = layout.pages_in(window);
            if pages.is_empty() {
                continue;
            }
            let range = layout.range_of(pages.start, pages.len());
            table.mapper_of_part(range)?;
            let room = claims.try_reserve(1).and(windows.try_reserve(1));
            room.map_err(|_| IovaSpaceError::OutOfMemory)?;
            claims.push(table.claim(range)?);
            windows.push(pages);
        }
        let page_count = windows.iter().map(ExactSizeIterator::len).sum();
        if page_count == 0 {
            return Err(IovaSpaceError::Empty { aperture });
        }
        let space = Space::new(layout, windows.into_iter());
        Ok(Self {
            space: space.map_err(|_| IovaSpaceError::OutOfMemory)?,
            table: table.id(),
            // Where there is nothing on one side, the other one is the first.
            is_low_first: match layout.low_end() {
                0 => false,
                end => is_low_first || end == layout.page_count(),
            },
            total_len: layout.len_of(page_count),
            granule,
            leaks: CachePadded::default(),
            claims,
        })
    }

    /// Allocates a range. Mostly a few nanoseconds: see [the module](self).
    ///
    /// # Errors
    ///
    /// [`IovaError`]; then nothing has changed.
    #[doc(alias = "alloc_iova")]
    #[expect(
        clippy::inline_always,
        reason = "the result is wide: it stays in registers only where its user sees it made"
    )]
    #[inline(always)]
    pub fn alloc(&self, request: &IovaRequest) -> Result<FreshIova<'_>, IovaError> {
        if request.is_one(self.granule)
            && let Some((page, word)) = self.space.take_page(self.is_low_first, request.limit)
        {
            return Ok(FreshIova::new(self, page, 1, Some(word)));
        }
        let count = self.space.layout.pages_of(request.len);
        match self.take_more(request) {
            Ok(page) => Ok(FreshIova::new(self, page, count, None)),
            Err(Refusal::Empty) => Err(IovaError::Empty),
            Err(Refusal::NoMemory) => Err(IovaError::OutOfMemory),
            Err(Refusal::NoRoom) => {
                let [len, align, free_len, largest_len] = self.shortage(request);
                Err(IovaError::Exhausted {
                    len,
                    align,
                    limit: request.limit,
                    free_len,
                    largest_len,
                })
            }
        }
    }

    /// Takes what is not one page that is at hand.
    ///
    /// The result fits in registers, so that no allocation is ever built in memory: who reads it there in
    /// larger pieces than it was written in waits for the stores.
    #[inline(never)]
    fn take_more(&self, request: &IovaRequest) -> Result<usize, Refusal> {
        let run = self.run_of(request);
        if let Some((page, _)) = self.space.take_quick(run, self.is_low_first, request.limit) {
            return Ok(page);
        }
        let reach = Reach {
            end: self.space.layout.end_at(request.limit),
            is_low_first: self.is_low_first,
        };
        self.space.take_elsewhere(run, &reach)
    }

    fn run_of(&self, request: &IovaRequest) -> Run {
        let layout = &self.space.layout;
        let count = layout.pages_of(request.len);
        let align = match request.alignment {
            Some(alignment) => layout.pages_of(alignment.bytes()),
            None => count.next_power_of_two(),
        };
        Run { count, align }
    }

    /// Returns length and alignment of what was asked for, what is free, and its longest run.
    #[cold]
    fn shortage(&self, request: &IovaRequest) -> [u64; 4] {
        let layout = &self.space.layout;
        let Run { count, align } = self.run_of(request);
        let survey = self.space.survey(layout.end_at(request.limit));
        [count, align, survey.free_count, survey.largest_run].map(|count| layout.len_of(count))
    }

    /// Lets the chunks go that the calling thread keeps to: others fill them up, and those of which
    /// nothing is used are whole again. For threads that end, or allocate no more; if they do not call
    /// it, their chunks are used when nothing else is left.
    pub fn leave_chunks(&self) {
        self.space.leave_all();
    }

    /// Returns what is given out and what is left. Looks at every chunk: not for hot paths.
    pub fn statistics(&self) -> IovaStatistics {
        let layout = &self.space.layout;
        let survey = self.space.survey(layout.page_count());
        let free_len = layout.len_of(survey.free_count);
        IovaStatistics {
            total_len: self.total_len,
            used_len: self.total_len.saturating_sub(free_len),
            free_len,
            largest_free_len: layout.len_of(survey.largest_run),
            open_chunk_count: survey.open_count,
            held_chunk_count: survey.held_count,
            shared_chunk_count: survey.listed_count,
            leaked_count: self.leaks.count.load(Ordering::Relaxed),
            leaked_len: self.leaks.len.load(Ordering::Relaxed),
        }
    }

    /// Returns which table the allocations are for.
    pub const fn table(&self) -> TableId {
        self.table
    }

    /// Returns what every allocation's bounds are multiples of.
    pub const fn granule(&self) -> PageSize {
        self.granule
    }

    /// Returns the bytes of a chunk, what one leaf table translates.
    pub const fn chunk_len(&self) -> u64 {
        let layout = &self.space.layout;
        layout.len_of(layout.chunk_pages())
    }

    fn range_of(&self, page: usize, count: usize) -> IovaRange {
        self.space.layout.range_of(page, count)
    }

    #[cold]
    fn leak(&self, count: usize) {
        let len = self.space.layout.len_of(count);
        self.leaks.count.fetch_add(1, Ordering::Relaxed);
        self.leaks.len.fetch_add(len, Ordering::Relaxed);
    }
}

impl Drop for IovaSpace {
    fn drop(&mut self) {
        if self.statistics().used_len > 0 {
            // Hardware may know what is left (W4): nobody may ever claim it.
            self.claims.drain(..).for_each(core::mem::forget);
        }
    }
}

impl fmt::Debug for IovaSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IovaSpace")
            .field("table", &self.table)
            .field("total_len", &self.total_len)
            .finish_non_exhaustive()
    }
}
