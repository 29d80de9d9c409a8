//! Tables that were unlinked and may not be freed yet.
//!
//! An unlinked table can still be met by two kinds of walkers: hardware, through its walk caches,
//! until an invalidation that covers the table is done; and readers of this program that found it
//! before, until a grace period is over. The quarantine keeps it until both are gone:
//!
//! ```text
//!   unlinked ---settle---> settled ---collect---> leaving ---collect---> freed
//!            hardware has           grace period           it is over
//!            forgotten it           starts
//! ```
//!
//! - **R1** (once): a page enters after its one link is gone, and leaves once.
//! - **R2** (hardware): a page is settled only on proof that hardware walks it no more.
//! - **R3** (readers): the grace period of a page starts after the page was unlinked, and the page
//!   is freed after that period, or under `&mut`, where no reader is left.
//! - **R4** (bounded): no more pages are held than the limit allows. An operation asks for room
//!   before it unlinks anything; where there is none it keeps its tables, so a reader that never
//!   leaves costs memory up to the limit and delays nobody.
//!
//! The list of pages grows when room is asked for, which may fail; adding to it cannot.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::mem;

use iopt_formats::Oa;

use crate::sync::epoch::Grace;
use crate::sync::unmodelled::{AtomicBool, Ordering};
use crate::sync::{self, Mutex};

#[cfg(not(loom))]
#[cfg(test)]
mod tests;

/// Numbers the operation that retired tables, per table; 0 for one that retired none.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Operation(u64);

impl Operation {
    pub(crate) const NONE: Self = Self(0);
}

/// The unlinked pages of one table.
#[derive(Debug)]
pub(crate) struct Quarantine {
    state: Mutex<State>,
    /// Whether pages may be settled or leaving; changes under the lock.
    has_settled: AtomicBool,
    /// Pages that may be held at one time.
    limit: usize,
}

#[derive(Debug, Default)]
struct State {
    /// Number of the last operation that retired tables.
    last: u64,
    /// Pages that are held, and those that running operations asked room for.
    held_count: usize,
    /// Running operations; `waiting` has room for a batch of each.
    running_count: usize,
    /// Hardware may walk these; in the order of their numbers.
    waiting: VecDeque<(Operation, Batch)>,
    /// Only readers may.
    settled: Vec<Batch>,
    /// The same, by the grace period that has started, in order.
    leaving: VecDeque<(Grace, Vec<Batch>)>,
}

impl State {
    /// Numbers an operation that unlinked pages. Callers made room for it.
    fn add(&mut self, batch: Batch) -> Operation {
        self.last += 1;
        let operation = Operation(self.last);
        self.waiting.push_back((operation, batch));
        operation
    }
}

/// The pages that one operation unlinked. Most unlink one, which needs no memory.
#[derive(Debug, Default)]
struct Batch {
    first: Option<Oa>,
    rest: Vec<Oa>,
}

impl Batch {
    fn count(&self) -> usize {
        usize::from(self.first.is_some()) + self.rest.len()
    }

    fn pages(self) -> impl Iterator<Item = Oa> {
        self.first.into_iter().chain(self.rest)
    }
}

impl Quarantine {
    /// Creates a quarantine that holds at most `limit` pages.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            state: Mutex::new(&sync::QUARANTINE, State::default()),
            has_settled: AtomicBool::new(false),
            limit,
        }
    }

    /// Returns the number of pages that it may hold.
    pub(crate) const fn limit(&self) -> usize {
        self.limit
    }

    /// Returns the number of pages that it holds, those included that operations asked room for.
    pub(crate) fn held_count(&self) -> usize {
        self.state.lock().held_count
    }

    /// Starts an operation that may unlink tables; it has room for none yet.
    pub(crate) fn begin(&self) -> Retiring<'_> {
        Retiring {
            quarantine: self,
            batch: Batch::default(),
            room: 0,
        }
    }

    /// As an operation of its own that unlinks one page: calls `unlink`, which takes no lock, if there
    /// is room for it, or says why there is none (R4).
    pub(crate) fn retire(&self, page: Oa, unlink: impl FnOnce()) -> Result<Operation, NoRoom> {
        let mut state = self.state.lock();
        if state.held_count >= self.limit {
            return Err(NoRoom::Limit);
        }
        let batch_count = state.running_count + 1;
        state
            .waiting
            .try_reserve(batch_count)
            .map_err(|_| NoRoom::Memory)?;
        unlink();
        state.held_count += 1;
        let batch = Batch {
            first: Some(page),
            rest: Vec::new(),
        };
        Ok(state.add(batch))
    }

    /// Takes note that hardware walks the pages of an operation no more (R2).
    pub(crate) fn settle(&self, operation: Operation) {
        if operation == Operation::NONE {
            return;
        }
        let mut state = self.state.lock();
        let place = state
            .waiting
            .binary_search_by_key(&operation, |(by, _)| *by);
        // Proofs come in nearly the order of the operations, so this moves few.
        if let Some((_, batch)) = place.ok().and_then(|place| state.waiting.remove(place)) {
            state.settled.push(batch);
            self.has_settled.store(true, Ordering::Relaxed);
        }
    }

    /// Calls `free` with every page that nobody can meet any more, with no lock held.
    pub(crate) fn collect(&self, mut free: impl FnMut(Oa)) {
        // Mostly there is nothing, and no lock to be shared. Who settled something sees that.
        if !self.has_settled.load(Ordering::Relaxed) {
            return;
        }
        let settled = mem::take(&mut self.state.lock().settled);
        if !settled.is_empty() {
            // R3: they were unlinked before they came here.
            let grace = Grace::start();
            let mut state = self.state.lock();
            state.leaving.push_back((grace, settled));
            self.has_settled.store(true, Ordering::Relaxed);
        }
        while let Some(batches) = self.next_free() {
            batches
                .into_iter()
                .flat_map(Batch::pages)
                .for_each(&mut free);
        }
    }

    /// Takes the oldest pages out if their grace period is over.
    fn next_free(&self) -> Option<Vec<Batch>> {
        if self.state.lock().leaving.is_empty() {
            return None;
        }
        Grace::advance();
        let mut state = self.state.lock();
        let (grace, _) = state.leaving.front()?;
        if !grace.is_over() {
            return None;
        }
        let (_, batches) = state.leaving.pop_front()?;
        let has_settled = !state.leaving.is_empty() || !state.settled.is_empty();
        self.has_settled.store(has_settled, Ordering::Relaxed);
        let count: usize = batches.iter().map(Batch::count).sum();
        state.held_count -= count;
        Some(batches)
    }

    /// As [`collect`](Self::collect), where `&mut` shows that no reader is left (R3).
    pub(crate) fn collect_exclusively(&mut self, mut free: impl FnMut(Oa)) {
        let state = self.state.get_mut();
        let leaving = mem::take(&mut state.leaving);
        let leaving = leaving.into_iter().flat_map(|(_, batches)| batches);
        for batch in leaving.chain(mem::take(&mut state.settled)) {
            state.held_count -= batch.count();
            batch.pages().for_each(&mut free);
        }
    }

    /// Calls `free` with every page, for an owner that nothing walks any more.
    pub(crate) fn drain(&mut self, free: impl FnMut(Oa)) {
        let State {
            waiting,
            settled,
            leaving,
            ..
        } = mem::take(self.state.get_mut());
        let leaving = leaving.into_iter().flat_map(|(_, batches)| batches);
        let waiting = waiting.into_iter().map(|(_, batch)| batch);
        let batches = waiting.chain(settled).chain(leaving);
        batches.flat_map(Batch::pages).for_each(free);
    }
}

/// An operation that unlinks tables. What it unlinked joins the quarantine when it ends, however
/// that comes about.
#[derive(Debug)]
pub(crate) struct Retiring<'q> {
    quarantine: &'q Quarantine,
    batch: Batch,
    /// Pages that it asked room for, those of `batch` included.
    room: usize,
}

impl Retiring<'_> {
    /// Makes room for `count` pages more, or says why there is none (R4).
    pub(crate) fn reserve(&mut self, count: usize) -> Result<(), NoRoom> {
        let needed = self.batch.count().saturating_add(count);
        let Some(more) = needed.checked_sub(self.room).filter(|&more| more > 0) else {
            return Ok(());
        };
        self.batch
            .rest
            .try_reserve(needed.saturating_sub(1) - self.batch.rest.len())
            .map_err(|_| NoRoom::Memory)?;
        let mut state = self.quarantine.state.lock();
        if more > self.quarantine.limit.saturating_sub(state.held_count) {
            return Err(NoRoom::Limit);
        }
        if self.room == 0 {
            let batch_count = state.running_count + 1;
            state
                .waiting
                .try_reserve(batch_count)
                .map_err(|_| NoRoom::Memory)?;
            state.running_count += 1;
        }
        state.held_count += more;
        self.room = needed;
        Ok(())
    }

    /// Adds a page that was unlinked (R1) and that room was made for.
    pub(crate) fn push(&mut self, page: Oa) {
        debug_assert!(self.batch.count() < self.room, "room is asked for first");
        if self.batch.first.is_none() {
            self.batch.first = Some(page);
        } else {
            self.batch.rest.push(page);
        }
    }

    /// Returns whether nothing was unlinked.
    pub(crate) const fn is_empty(&self) -> bool {
        self.batch.first.is_none()
    }

    /// Hands the pages over; the result names them to [`Quarantine::settle`].
    pub(crate) fn finish(mut self) -> Operation {
        self.hand_over()
    }

    fn hand_over(&mut self) -> Operation {
        if self.room == 0 {
            return Operation::NONE;
        }
        let batch = mem::take(&mut self.batch);
        let mut state = self.quarantine.state.lock();
        state.running_count -= 1;
        state.held_count -= mem::take(&mut self.room) - batch.count();
        if batch.first.is_none() {
            return Operation::NONE;
        }
        state.add(batch)
    }
}

impl Drop for Retiring<'_> {
    fn drop(&mut self) {
        self.hand_over();
    }
}

/// Why no table can be unlinked now.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum NoRoom {
    /// The quarantine holds as much as it may.
    Limit,
    /// The list of pages cannot grow.
    Memory,
}
