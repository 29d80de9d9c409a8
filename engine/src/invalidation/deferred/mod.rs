//! Flushing later and all at once, for whom a window of stale reach is worth the speed.
//!
//! **What it gives up**: between an unmap and its flush a device may still read and write the old pages
//! through what the hardware caches. Nothing else changes: until the flush is proven, memory is not unpinned
//! and IOVA and tables are not reused, so a device reaches memory that its driver lent to it before, and no
//! other. Who cannot trust a device with that for some milliseconds uses [`Gather::sync`] instead, which is
//! how everything in this crate works unless a [`Deferred`] is asked for.
//!
//! ```text
//!   thread 0  [gather, release][gather, release]..   full or old
//!   thread 1  [gather, release]..                   -------------> one flush of the domain
//!   ..                                                             every release gets its proof
//! ```
//!
//! Each thread adds to a queue of its own. Whoever finds one full, or its first entry too old, empties it and
//! flushes the domain once. A flush serves all queues: entries of others that it covers are released when
//! their queue is next looked at.
//!
//! # Invariants
//!
//! - **E1** (covered): `started` counts flushes before they are submitted, `finished` is the number of the
//!   last one that is proven. An entry notes `started` when it is added, after its stores and a full fence. So
//!   if `finished` is larger, a flush is proven that was submitted after the entry's stores were visible.
//! - **E2** (proof): an entry is released only with a [`Flushed`] made by E1.
//! - **E3** (bounded): a queue holds at most as many entries as its capacity says, twice if a flush is under
//!   way or has failed. Beyond that a removal is flushed by itself, at once.
//! - **E4** (strangers): releases run with no lock held.

#[cfg(all(test, loom))]
mod models;
#[cfg(not(loom))]
#[cfg(test)]
mod tests;
#[cfg(not(loom))]
mod timer;

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;
use core::mem;
use core::time::Duration;

use crate::invalidation::{Changes, Flushed, Gather, Invalidate, SyncError};
use crate::sync::atomic::{AtomicU64, Ordering, fence};
use crate::sync::{self, CachePadded, Mutex, now_ns, thread_index};

#[cfg(not(loom))]
pub use crate::invalidation::deferred::timer::Timer;

/// What becomes free when a removal is flushed: pins, an IOVA, a buffer.
///
/// Dropped without its proof it must stay unused for good, as the hardware may reach it.
pub trait Release {
    /// Lets it be used again. Runs with no lock of the engine held, on whichever thread flushed.
    ///
    /// If it panics, so does the call that flushed. What was flushed with it stays queued, and is released by the
    /// next call that flushes; the [`Timer`] thread ends.
    fn release(self, flushed: Flushed);
}

impl<F: FnOnce(Flushed)> Release for F {
    fn release(self, flushed: Flushed) {
        self(flushed);
    }
}

/// How long removals may wait.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Window {
    /// Queues that threads share out, at least one.
    pub queue_count: usize,
    /// Entries of a queue, at least one.
    pub capacity: usize,
    /// Age of the first entry at which a queue is flushed, by the next that adds to it or by a [`Timer`].
    pub age: Duration,
}

impl Window {
    /// One queue for each thread, 256 entries, 10 ms.
    pub const PER_THREAD: Self = Self {
        queue_count: 64,
        capacity: 256,
        age: Duration::from_millis(10),
    };

    /// One queue for all threads, 32768 entries, a second: for hardware where a flush is very dear.
    pub const SINGLE: Self = Self {
        queue_count: 1,
        capacity: 32768,
        age: Duration::from_secs(1),
    };
}

/// Removals of one domain that wait for a common flush.
///
/// Dropping it flushes once more; what that does not confirm is dropped without its proof.
pub struct Deferred<I: Invalidate, R: Release> {
    hardware: I,
    window: Window,
    queues: Box<[CachePadded<Mutex<Queue<R>>>]>,
    started: CachePadded<AtomicU64>,
    finished: AtomicU64,
}

struct Entry<R> {
    gather: Gather,
    release: R,
    /// `started` when it was added (E1).
    seen: u64,
}

struct Queue<R> {
    /// In the order of their `seen`.
    entries: Vec<Entry<R>>,
    /// When the first of `entries` came.
    since_ns: u64,
    flight: Flight<R>,
}

/// The entries that somebody took out to flush them.
enum Flight<R> {
    /// There are none; memory for the next.
    Landed(Vec<Entry<R>>),
    /// Somebody has them.
    Out,
    /// Their flush failed, or somebody panicked before they were released.
    Failed(Vec<Entry<R>>),
}

/// A removal that was not taken, since flushes fail.
#[derive(thiserror::Error)]
#[error("a flush of what is deferred failed: {error}")]
pub struct NotDeferred<R> {
    /// What was removed.
    pub gather: Gather,
    /// What must not be used until it is flushed.
    pub release: R,
    /// Why.
    #[source]
    pub error: SyncError,
}

impl<R> fmt::Debug for NotDeferred<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { gather, error, .. } = self;
        f.debug_struct("NotDeferred")
            .field("gather", gather)
            .field("error", error)
            .finish_non_exhaustive()
    }
}

impl<I: Invalidate, R: Release> Deferred<I, R> {
    /// Creates queues for the removals of a domain whose tables `hardware` walks.
    ///
    /// # Panics
    ///
    /// If the window has no queue or no capacity.
    pub fn new(hardware: I, window: Window) -> Self {
        assert!(window.queue_count > 0 && window.capacity > 0);
        let queue = || {
            let queue = Queue {
                entries: Vec::new(),
                since_ns: 0,
                flight: Flight::Landed(Vec::new()),
            };
            CachePadded::new(Mutex::new(&sync::DEFERRED, queue))
        };
        Self {
            hardware,
            window,
            queues: (0..window.queue_count).map(|_| queue()).collect(),
            started: CachePadded::new(AtomicU64::new(0)),
            finished: AtomicU64::new(0),
        }
    }

    /// Returns the hardware.
    pub const fn hardware(&self) -> &I {
        &self.hardware
    }

    /// Takes a removal, to release what belongs to it after a later flush.
    ///
    /// May flush, and may run releases of earlier removals. Where the queue has no memory or no room, it
    /// flushes this removal alone.
    ///
    /// # Errors
    ///
    /// [`NotDeferred`] gives the removal back if there is no room because flushes fail. What is queued stays
    /// so.
    pub fn defer(&self, gather: Gather, release: R) -> Result<(), NotDeferred<R>> {
        if gather.is_empty() {
            release.release(gather.flushed());
            return Ok(());
        }
        // E1: what was removed is visible before `started` is read.
        fence(Ordering::SeqCst);
        let queue = &self.queues[thread_index() % self.queues.len()];
        if let Err((gather, release)) = self.push(queue, gather, release) {
            // E3. Whose flush failed may succeed now.
            let _ = self.fly(queue, |_| true);
            if let Err((gather, release)) = self.push(queue, gather, release) {
                return self.flush_alone(gather, release);
            }
        }
        // What fails stays queued, this removal with it.
        let _ = self.fly(queue, |state| {
            let is_full = state.entries.len() >= self.window.capacity;
            is_full || self.is_covered(&state.entries) || self.is_old(state)
        });
        Ok(())
    }

    /// Flushes what is older than the window allows, or failed to be flushed before, and releases what other
    /// flushes covered.
    ///
    /// # Errors
    ///
    /// [`SyncError`]; what is not confirmed stays queued.
    pub fn flush_due(&self) -> Result<(), SyncError> {
        self.fly_all(|state| {
            let has_failed = matches!(state.flight, Flight::Failed(_));
            has_failed || self.is_covered(&state.entries) || self.is_old(state)
        })
    }

    /// Flushes everything that was deferred before the call, except what another thread is just flushing.
    ///
    /// # Errors
    ///
    /// [`SyncError`]; what is not confirmed stays queued.
    pub fn flush(&self) -> Result<(), SyncError> {
        self.fly_all(|_| true)
    }

    /// Returns how many removals wait.
    pub fn waiting_count(&self) -> usize {
        let count = |queue: &CachePadded<Mutex<Queue<R>>>| {
            let state = queue.lock();
            let failed = match &state.flight {
                Flight::Failed(batch) => batch.len(),
                Flight::Landed(_) | Flight::Out => 0,
            };
            state.entries.len() + failed
        };
        self.queues.iter().map(count).sum()
    }

    /// Returns how many flushes were sent for what was deferred.
    pub fn flush_count(&self) -> u64 {
        self.started.load(Ordering::Relaxed)
    }

    /// Adds an entry if there is room (E3).
    fn push(&self, queue: &Mutex<Queue<R>>, gather: Gather, release: R) -> Result<(), (Gather, R)> {
        let mut state = queue.lock();
        let has_room = state.entries.len() < self.window.capacity;
        if !has_room || state.entries.try_reserve(1).is_err() {
            return Err((gather, release));
        }
        if state.entries.is_empty() {
            state.since_ns = now_ns();
        }
        // E1: under the lock, so that entries stand in the order of what they saw.
        let seen = self.started.load(Ordering::Relaxed);
        state.entries.push(Entry {
            gather,
            release,
            seen,
        });
        Ok(())
    }

    /// Returns whether a flush since the last entry covers all (E1).
    fn is_covered(&self, entries: &[Entry<R>]) -> bool {
        let last = entries.last();
        last.is_some_and(|last| last.seen < self.finished.load(Ordering::Acquire))
    }

    fn is_old(&self, state: &Queue<R>) -> bool {
        let age = now_ns().saturating_sub(state.since_ns);
        !state.entries.is_empty() && u128::from(age) >= self.window.age.as_nanos()
    }

    /// As [`fly`](Self::fly) for all queues. Hardware that has failed once is not asked again, as each time may cost
    /// its limit; what needs no flush is released all the same.
    fn fly_all(&self, is_due: impl Fn(&Queue<R>) -> bool) -> Result<(), SyncError> {
        let mut result = Ok(());
        for queue in &self.queues {
            let has_failed = result.is_err();
            let flown = self.fly(queue, |state| {
                is_due(state) && (!has_failed || self.needs_no_flush(state))
            });
            result = result.and(flown);
        }
        result
    }

    /// Returns whether a flush covers what would be taken off next.
    fn needs_no_flush(&self, state: &Queue<R>) -> bool {
        match &state.flight {
            Flight::Failed(batch) => self.is_covered(batch),
            Flight::Landed(_) => self.is_covered(&state.entries),
            Flight::Out => false,
        }
    }

    /// Flushes and releases what failed before, and the entries if they are due; not while somebody else
    /// does.
    fn fly(
        &self,
        queue: &Mutex<Queue<R>>,
        is_due: impl Fn(&Queue<R>) -> bool,
    ) -> Result<(), SyncError> {
        loop {
            let mut state = queue.lock();
            if !is_due(&state) {
                return Ok(());
            }
            let has_more = matches!(state.flight, Flight::Failed(_));
            let Some(batch) = state.take_off() else {
                return Ok(());
            };
            drop(state);
            let out = Out { queue, batch };
            self.flush_batch(&out.batch)?;
            // E2: the batch was flushed. E4: no lock is held.
            out.release();
            if !has_more {
                return Ok(());
            }
        }
    }

    /// Makes the hardware forget what a batch removed, unless a flush since then did.
    fn flush_batch(&self, batch: &[Entry<R>]) -> Result<(), SyncError> {
        if batch.is_empty() || self.is_covered(batch) {
            return Ok(());
        }
        let number = self.started.fetch_add(1, Ordering::SeqCst) + 1;
        // Entries of other queues are among those that this covers, so everything is flushed.
        fence(Ordering::SeqCst);
        let _waiting = sync::SYNC.waiting();
        let ticket = self.hardware.submit(&Changes::everything())?;
        self.hardware.wait(ticket)?;
        self.finished.fetch_max(number, Ordering::AcqRel);
        Ok(())
    }

    fn flush_alone(&self, gather: Gather, release: R) -> Result<(), NotDeferred<R>> {
        match gather.sync(&self.hardware) {
            Ok(flushed) => {
                release.release(flushed);
                Ok(())
            }
            Err(quarantined) => {
                let error = quarantined.error();
                Err(NotDeferred {
                    gather: quarantined.into_gather(),
                    release,
                    error,
                })
            }
        }
    }
}

impl<R> Queue<R> {
    /// Takes out what failed before or, if there is nothing, the entries, unless somebody has done so.
    fn take_off(&mut self) -> Option<Vec<Entry<R>>> {
        match mem::replace(&mut self.flight, Flight::Out) {
            Flight::Failed(batch) => Some(batch),
            Flight::Landed(memory) => Some(mem::replace(&mut self.entries, memory)),
            Flight::Out => None,
        }
    }
}

/// What was taken off, until it is released. Whatever is left lands again, so that a panic of the hardware or
/// of a release does not keep the queue waiting for it.
struct Out<'a, R> {
    queue: &'a Mutex<Queue<R>>,
    /// In the order of their `seen`.
    batch: Vec<Entry<R>>,
}

impl<R: Release> Out<'_, R> {
    /// Releases the batch, which was flushed.
    fn release(mut self) {
        let rest = Reversed::new(&mut self.batch);
        while let Some(Entry {
            gather, release, ..
        }) = rest.0.pop()
        {
            release.release(gather.flushed());
        }
    }
}

impl<R> Drop for Out<'_, R> {
    fn drop(&mut self) {
        let batch = mem::take(&mut self.batch);
        self.queue.lock().flight = if batch.is_empty() {
            Flight::Landed(batch)
        } else {
            Flight::Failed(batch)
        };
    }
}

/// Entries with the first one last, where it is taken out without moving the others.
struct Reversed<'a, R>(&'a mut Vec<Entry<R>>);

impl<'a, R> Reversed<'a, R> {
    fn new(entries: &'a mut Vec<Entry<R>>) -> Self {
        entries.reverse();
        Self(entries)
    }
}

impl<R> Drop for Reversed<'_, R> {
    fn drop(&mut self) {
        self.0.reverse();
    }
}

impl<I: Invalidate, R: Release> Drop for Deferred<I, R> {
    fn drop(&mut self) {
        // Entries that this does not flush are dropped without their proof, and say so themselves.
        let _ = self.flush();
    }
}

impl<I: Invalidate, R: Release> fmt::Debug for Deferred<I, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Deferred")
            .field("window", &self.window)
            .field("started", &self.started)
            .field("finished", &self.finished)
            .finish_non_exhaustive()
    }
}
