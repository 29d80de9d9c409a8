//! A command queue that many threads fill without a lock, in memory that hardware reads.
//!
//! ```text
//!          consumed              published                    reserved
//!             |                      |                            |
//!   . . . . . c  c  c  SYNC  c  c  SYNC  c  c  (c) (c)  c  SYNC . . . . .
//!             `- hardware reads ----' `- written or being written '
//! ```
//!
//! [`submit`](Queue::submit) reserves room for a whole list with one compare-exchange, writes it, marks it as
//! written and sees to it that hardware is told; [`wait`](Queue::wait) returns when a SYNC behind the
//! list is complete. What the hardware is like, [`Device`] says; for [`smmuv3`], [`vtd`], [`amd`] and [`riscv`] it is
//! there, over a few registers and a [`Platform`].
//!
//! - **No thread waits for another to submit.** Whoever finishes a list becomes the owner of a run, if there
//!   is none, and tells hardware of everything that is written up to the first gap, with one store to the tail
//!   register; what others finish meanwhile belongs to the same run. Someone who is delayed between its
//!   reservation and its marks delays hardware, not the callers: what stands behind it is told of when the
//!   gap closes.
//! - **Group commit.** A ticket without a SYNC of its own joins the last one that anybody put behind its
//!   list, and sends one only if there is none.
//! - **Room.** A list that finds no room waits for as many entries as it needs, the caller with the earliest
//!   deadline first.
//! - **Errors** are dealt with by whoever meets them while it waits. All waits are bounded by the
//!   [limit](Queue::with_limit), and time-outs leave nothing to clean up: positions are never used again.
//!
//! # Invariants
//!
//! A *position* counts entries since the queue was made and never wraps (64 bits); its entry in the ring, its
//! index in registers and its number in a status word are remainders of it.
//!
//! - **K1** (order): `consumed <= published <= reserved <= consumed + capacity`, for the true place of
//!   hardware; the `consumed` that the queue knows is never beyond that place.
//! - **K2** (one writer): positions belong to who reserved them, until their marks are set. Then nobody
//!   writes them before hardware has consumed them, except for whoever replaces a refused entry, where
//!   hardware stands still.
//! - **K3** (no gap): `published` moves past an entry only when its mark says that it is written.
//! - **K4** (one owner): while `asks` is not zero, one thread alone writes `published` and the tail
//!   register. It stops only when no ask came since it looked, or after so many rounds that other callers
//!   surely are on their way, who look after what it leaves; so does everybody who waits.
//! - **K5** (a SYNC counts for what stands before it): a ticket joins SYNCs at or behind its end. It fails if
//!   any entry failed from its first to that SYNC; so a failed SYNC fails all that joined it or stood before it
//!   unconfirmed, and nothing that begins behind it.
//! - **K6** (first come): a caller takes room only if none with an earlier deadline, which is still to come,
//!   is known to wait for it.
//! - **K7** (failures first): a failure is recorded before hardware is told to go on. So whoever sees it beyond
//!   the failed entry sees the failure.
//!
//! # Memory orderings
//!
//! - Stores before a submission (tables), and its entries, come before hardware reads them: marks are set
//!   with release; the owner, whichever thread that is, reads them, then comes a full fence, then the store
//!   to the tail register. The fence acquires what was done before the marks were set, and is cumulative, so
//!   it covers all whose marks were seen. `asks` is changed with acquire and release, so each owner sees
//!   where the last one ended, and tails rise.
//! - What hardware did comes before what a caller does next (uses pages again, writes entries over): behind
//!   each read of the head or the status word stands an acquire fence, and what was read spreads by
//!   release on `consumed` and `answered` and acquire by their readers.
//! - `consumed` is loaded before the head register, which therefore is read not older: its distance from the
//!   known position, modulo the ring, never is too large. It may be too small by whole laps if hardware
//!   went around in between; that is a lower bound still (K1). The same holds for the status word.
//! - Where hardware stands still at an error, a second look is exact. The entry before was reserved when `consumed`
//!   was less than a ring behind it, and the look that showed the error acquired that through marks, tail and
//!   head.
//! - A failure is stored before the fence before the acknowledgement, and looked for after a completion was
//!   acquired (K7).
//! - `reserved`, `latest_sync` and the line of those that wait carry numbers only.

pub mod amd;
mod device;
mod failures;
mod marks;
#[cfg(all(test, loom))]
mod models;
mod patience;
mod platform;
mod progress;
pub mod riscv;
mod room;
pub mod smmuv3;
#[cfg(all(test, feature = "std", not(loom)))]
pub(super) mod tests;
mod ticket;
pub mod vtd;

use core::fmt;
use core::time::Duration;

use crate::invalidation::SyncError;
use crate::invalidation::queue::failures::Failures;
use crate::invalidation::queue::marks::Marks;
use crate::invalidation::queue::patience::{Line, Patience};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{CachePadded, SYNC};

pub use crate::invalidation::queue::device::{Completion, Device, Entry, Fault, Head, Shape};
pub use crate::invalidation::queue::platform::Platform;
pub use crate::invalidation::queue::ticket::Ticket;

/// Commands of a list that are reserved together.
pub(super) const LIST_LIMIT: usize = 64;

/// The time that hardware has if nobody says otherwise.
const LIMIT: Duration = Duration::from_secs(1);

/// Entries after which a list gets a SYNC unasked: numbers in a status word have 32 bits and must not move by
/// half of that at once.
const SYNC_DISTANCE: u64 = 1 << 30;

/// Logarithms of the number of entries that indices and numbers have room for.
const LG2_ENTRIES: core::ops::RangeInclusive<u8> = 1..=24;

/// Whether a list ends with a SYNC of its own.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum WithSync {
    /// It does: right for a caller that waits at once and is mostly alone.
    Now,
    /// Its ticket finds one that others sent, or sends one when it is waited for.
    Later,
    /// So does each part of a long list: a device may not answer, and nobody else's SYNC is to stand between the
    /// commands and the one that finds out.
    Each,
}

/// A command queue; see the [module](self).
pub struct Queue<D: Device> {
    device: D,
    shape: Shape,
    /// Entries that may be reserved and not consumed.
    capacity: u64,
    /// What is added to a position for its number in the status word.
    number_offset: u64,
    sync_distance: u64,
    limit_ns: u64,
    taken: CachePadded<Taken>,
    told: CachePadded<Told>,
    done: CachePadded<Done>,
    marks: Marks,
    failures: Failures,
}

// What is changed together has a cache line together, which comes over from another processor once; and none
// with what others change at another time, who would take it away in between.

/// What a reservation changes.
struct Taken {
    /// The first position that nobody has.
    reserved: AtomicU64,
    /// The position behind the last SYNC that is reserved.
    latest_sync: AtomicU64,
}

/// What an owner changes, and who finished a list.
struct Told {
    /// The end of what hardware was told of.
    published: AtomicU64,
    /// Lists that were finished since the owner began, it included; zero if there is no owner.
    asks: AtomicU64,
}

/// What those change who look at hardware, or wait for it.
struct Done {
    /// The end of what hardware is known to have consumed.
    consumed: AtomicU64,
    /// The end of what is known to be answered, where that shows in a status word.
    answered: AtomicU64,
    line: Line,
}

/// A shape or a memory that no queue can be made of.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ShapeError {
    /// The ring holds less than a command and its SYNC, or more than indices can count.
    #[error("a queue of 2^{lg2_entries} entries is too small or too large")]
    Entries {
        /// [`Shape::lg2_entries`].
        lg2_entries: u8,
    },
    /// The memory is smaller than the ring.
    #[error("the ring needs {needed} words of memory and has {given}")]
    Memory {
        /// Words of all entries.
        needed: usize,
        /// Words there are.
        given: usize,
    },
    /// The head register holds no index of the ring.
    #[error("the head register holds {index:#x}, which is no index of the ring")]
    Head {
        /// What it holds.
        index: u32,
    },
}

impl<D: Device> Queue<D> {
    /// Creates the queue of a device whose head and tail are equal and which nobody else writes to.
    ///
    /// # Errors
    ///
    /// [`ShapeError`] if the device contradicts itself.
    pub fn new(device: D) -> Result<Self, ShapeError> {
        let shape = device.shape();
        let lg2_entries = shape.lg2_entries;
        let entry_count = 1_u64.checked_shl(u32::from(lg2_entries)).unwrap_or(0);
        let capacity = entry_count.saturating_sub(u64::from(!shape.has_wrap_bit));
        let is_large_enough = lg2_entries >= shape.least_lg2_entries && capacity >= 2;
        if !LG2_ENTRIES.contains(&lg2_entries) || !is_large_enough {
            return Err(ShapeError::Entries { lg2_entries });
        }
        let (needed, given) = (entry_count as usize * D::Entry::WORDS, device.ring().len());
        if given < needed {
            return Err(ShapeError::Memory { needed, given });
        }
        let index = device.head().index;
        let start = u64::from(index);
        if start >= entry_count << u32::from(shape.has_wrap_bit) {
            return Err(ShapeError::Head { index });
        }
        let status = match shape.completion {
            Completion::Head => 0,
            Completion::Status => device.status(),
        };
        let at_start = || AtomicU64::new(start);
        Ok(Self {
            device,
            shape,
            capacity,
            number_offset: u64::from(status).wrapping_sub(start),
            sync_distance: SYNC_DISTANCE,
            limit_ns: nanoseconds(LIMIT),
            taken: CachePadded::new(Taken {
                reserved: at_start(),
                latest_sync: at_start(),
            }),
            told: CachePadded::new(Told {
                published: at_start(),
                asks: AtomicU64::new(0),
            }),
            done: CachePadded::new(Done {
                consumed: at_start(),
                answered: at_start(),
                line: Line::new(),
            }),
            marks: Marks::new(u32::from(lg2_entries), start),
            failures: Failures::new(),
        })
    }

    /// Gives hardware `limit` to make room, and as long to complete a SYNC, instead of one second.
    #[must_use]
    pub fn with_limit(mut self, limit: Duration) -> Self {
        self.limit_ns = nanoseconds(limit);
        self
    }

    /// Returns the device.
    pub const fn device(&self) -> &D {
        &self.device
    }

    /// Sends `commands` to hardware, in their order and one after the other if they are at most 64 (fewer in
    /// a ring of fewer entries); of longer lists, commands of others may stand between two parts.
    ///
    /// Returns at once if there is room. Otherwise it may wait for hardware, hence inside
    /// [`SYNC`], as [`Gather`](crate::invalidation::Gather) does it. Without commands there is nothing to
    /// wait for later: only [`WithSync::Later`] sends no SYNC then.
    ///
    /// # Errors
    ///
    /// [`SyncError::QueueFull`] if a part of the list finds no room within the limit; what is before it
    /// was sent.
    ///
    /// # Panics
    ///
    /// Panics if [`IS_CHECKED`](crate::sync::lockdep::IS_CHECKED) and the thread does not
    /// [wait](crate::sync::Class::waiting) in [`SYNC`].
    #[inline]
    pub fn submit(&self, commands: &[D::Entry], sync: WithSync) -> Result<Ticket, SyncError> {
        SYNC.assert_held();
        let list_limit = LIST_LIMIT.min((self.capacity - 1) as usize);
        let mut ticket = Ticket::NOTHING;
        let mut rest = commands;
        loop {
            let (list, left) = rest.split_at(rest.len().min(list_limit));
            let has_sync = match sync {
                WithSync::Now => left.is_empty(),
                WithSync::Later => false,
                WithSync::Each => true,
            };
            if list.is_empty() && !has_sync {
                return Ok(ticket);
            }
            ticket = ticket.and(self.send(list, has_sync)?);
            if left.is_empty() {
                return Ok(ticket);
            }
            rest = left;
        }
    }

    /// Sends one list, which is not empty unless it has a SYNC.
    #[inline]
    fn send(&self, list: &[D::Entry], has_sync: bool) -> Result<Ticket, SyncError> {
        let has_sync = has_sync || self.needs_sync();
        let count = list.len() as u64 + u64::from(has_sync);
        let mut patience = Patience::new(self.limit_ns);
        let start = self.reserve(count, &mut patience)?;
        self.fill(start, list, has_sync);
        Ok(Ticket::of_list(start, list.len() as u64, has_sync))
    }

    /// Writes a list into its reservation, and has hardware told.
    #[inline]
    fn fill(&self, start: u64, list: &[D::Entry], has_sync: bool) {
        let end = start + list.len() as u64;
        for (position, entry) in (start..end).zip(list) {
            self.write(position, entry);
        }
        let mut count = list.len() as u64;
        if has_sync {
            self.taken.latest_sync.fetch_max(end + 1, Ordering::Relaxed);
            self.write(end, &self.device.sync_entry(self.number(end + 1)));
            count += 1;
        }
        self.marks.set(start, count);
        self.publish();
    }

    /// Writes an entry that is the caller's alone (K2).
    #[inline]
    fn write(&self, position: u64, entry: &D::Entry) {
        let first = self.index(position, 0) as usize * D::Entry::WORDS;
        let room = self.device.ring().get(first..).unwrap_or_default();
        for (word, &value) in room.iter().zip(entry.words()) {
            word.store(value.to_le(), Ordering::Relaxed);
        }
    }

    /// Waits until hardware has done everything that `ticket`, of this queue, stands for, with what its device
    /// caches before being forgotten too. Must stand inside [`SYNC`], see [`submit`](Self::submit).
    ///
    /// # Errors
    ///
    /// - [`SyncError::Refused`], [`SyncError::DeviceTimedOut`] if hardware reported an error for the list, or for
    ///   what stands between it and the SYNC that the ticket joined.
    /// - [`SyncError::TimedOut`] if the SYNC is not complete within the limit.
    /// - [`SyncError::QueueFull`] if the list has no SYNC yet and there is no room for one within the
    ///   limit.
    ///
    /// # Panics
    ///
    /// As [`submit`](Self::submit).
    #[inline]
    pub fn wait(&self, ticket: Ticket) -> Result<(), SyncError> {
        SYNC.assert_held();
        if ticket.is_nothing() {
            return Ok(());
        }
        let sync = match ticket.own_sync() {
            Some(sync) => sync,
            None => self.join(ticket.end())?,
        };
        // As much time as there was to make room for the SYNC.
        let mut patience = Patience::new(self.limit_ns);
        let mut is_over = false;
        loop {
            if let Some(outcome) = self.outcome(ticket.first(), sync) {
                return outcome;
            }
            self.poll();
            if let Some(outcome) = self.outcome(ticket.first(), sync) {
                return outcome;
            }
            if is_over {
                return Err(SyncError::TimedOut);
            }
            // Behind the first look: who finds it done need not know the time. Before the last one, which is
            // at the end of the time.
            is_over = patience.is_over(&self.device);
            if !is_over {
                patience.pause(&self.device);
            }
        }
    }

    /// Returns whether [`wait`](Self::wait) would return at once. Sends the SYNC that the ticket lacks, if nobody
    /// else has and there is room, and never waits; so who looks now and then, and works in between, need not
    /// wait at all.
    #[inline]
    pub fn is_done(&self, ticket: &mut Ticket) -> bool {
        if ticket.is_nothing() {
            return true;
        }
        let sent = ticket
            .own_sync()
            .or_else(|| self.join_at_once(ticket.end()));
        let Some(sync) = sent else {
            self.poll();
            return false;
        };
        ticket.join(sync);
        if self.outcome(ticket.first(), sync).is_none() {
            self.poll();
        }
        self.outcome(ticket.first(), sync).is_some()
    }

    /// Returns what is known of a SYNC, for a ticket whose first entry is `first` (K5).
    #[inline]
    fn outcome(&self, first: u64, sync: u64) -> Option<Result<(), SyncError>> {
        // Acquires what hardware did, before the failures are looked at (K7).
        let is_complete = self.complete().load(Ordering::Acquire) > sync;
        match self.failures.among(first, sync) {
            Some(error) => Some(Err(error)),
            None => is_complete.then_some(Ok(())),
        }
    }

    /// Returns where the end is kept of what is complete.
    fn complete(&self) -> &AtomicU64 {
        match self.shape.completion {
            Completion::Head => &self.done.consumed,
            Completion::Status => &self.done.answered,
        }
    }

    /// Returns the position of a SYNC at or behind `end`, after sending one if there is none.
    fn join(&self, end: u64) -> Result<u64, SyncError> {
        let sent = || self.latest_sync(end);
        if let Some(sync) = sent() {
            return Ok(sync);
        }
        let mut patience = Patience::new(self.limit_ns);
        match self.reserve_unless(1, &mut patience, sent)? {
            Ok(start) => {
                self.fill(start, &[], true);
                Ok(start)
            }
            Err(sync) => Ok(sync),
        }
    }

    /// As [`join`](Self::join), if there is room.
    fn join_at_once(&self, end: u64) -> Option<u64> {
        self.latest_sync(end).or_else(|| {
            let start = self.take_if_first(1)?;
            self.fill(start, &[], true);
            Some(start)
        })
    }

    /// Returns the position of the last SYNC if that is at or behind `end`.
    fn latest_sync(&self, end: u64) -> Option<u64> {
        let latest = self.taken.latest_sync.load(Ordering::Relaxed);
        (latest > end).then(|| latest - 1)
    }

    /// Returns whether the numbers of a status word need a SYNC before long.
    fn needs_sync(&self) -> bool {
        let latest = self.taken.latest_sync.load(Ordering::Relaxed);
        let reserved = self.taken.reserved.load(Ordering::Relaxed);
        self.shape.completion == Completion::Status
            && reserved.saturating_sub(latest) >= self.sync_distance
    }

    /// Returns the index of a position in the ring, or, with one bit more, in registers.
    fn index(&self, position: u64, more_bits: u32) -> u32 {
        let bits = u32::from(self.shape.lg2_entries) + more_bits;
        (position & ((1 << bits) - 1)) as u32
    }

    /// Returns what a status word holds when everything before `position` is complete.
    fn number(&self, position: u64) -> u32 {
        position.wrapping_add(self.number_offset) as u32
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl<D: Device> fmt::Debug for Queue<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let positions = [
            &self.done.consumed,
            &self.told.published,
            &self.taken.reserved,
        ];
        let [consumed, published, reserved] = positions.map(|at| at.load(Ordering::Relaxed));
        f.debug_struct("Queue")
            .field("shape", &self.shape)
            .field("consumed", &consumed)
            .field("published", &published)
            .field("reserved", &reserved)
            .finish_non_exhaustive()
    }
}
