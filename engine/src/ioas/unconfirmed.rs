//! What was removed from a domain, and its hardware did not confirm.
//!
//! Mostly there is nothing: an unmap removes its areas and syncs, and nobody else need know. What is put
//! down here is what a sync failed for, what an unmap of many areas removed so far, and all that is
//! removed from a domain that leaves: so that a domain that leaves has flushed everything, whoever
//! removed it.
//!
//! - **U1** (nothing slips): what is here goes out only under the lock, in a flush that is confirmed under
//!   it, or put back. So who finds nothing to flush knows that all that he put down is confirmed.

use alloc::sync::Arc;
use core::mem;

use iopt_formats::Iova;

use crate::domain::{Domain, DomainError, Flush};
use crate::sync::unmodelled::{AtomicUsize, Ordering};
use crate::sync::{self, Mutex, MutexGuard, pause};

/// Turns that others get who wait for the lock.
const TURN_COUNT: u32 = if cfg!(loom) { 1 } else { 96 };

/// What is to be flushed of one domain, from when it comes until it is gone.
pub(super) struct Unconfirmed {
    removed: Mutex<Removed>,
    /// Unmaps that want the lock or have it: a lock by itself may go to one thread over and over. Orders
    /// nothing.
    unmap_count: AtomicUsize,
}

/// What the lock guards.
pub(super) struct Removed {
    /// What was removed and not flushed.
    pub(super) flush: Flush,
    /// The lowest address that may translate in a domain that leaves; none after the last.
    pub(super) next: Option<Iova>,
}

impl Unconfirmed {
    /// Creates it with nothing to flush.
    pub(super) fn new() -> Arc<Self> {
        let removed = Removed {
            flush: Flush::new(),
            next: Some(Iova::new(0)),
        };
        Arc::new(Self {
            removed: Mutex::new(&sync::UNCONFIRMED, removed),
            unmap_count: AtomicUsize::new(0),
        })
    }

    /// Puts down what was removed.
    pub(super) fn put(&self, flush: Flush) {
        if !flush.is_empty() {
            self.removed.lock().flush.append(flush);
        }
    }

    /// Takes the lock.
    pub(super) fn lock(&self) -> MutexGuard<'_, Removed> {
        self.removed.lock()
    }

    /// Takes the lock for an unmap, for the time of `work`.
    pub(super) fn lock_first<R>(&self, work: impl FnOnce(&mut Removed) -> R) -> R {
        let _turn = Turn::new(&self.unmap_count);
        work(&mut self.removed.lock())
    }

    /// Takes the lock when no unmap wants it, or it has had its turns.
    pub(super) fn lock_last(&self) -> MutexGuard<'_, Removed> {
        let mut turn = 0;
        while self.unmap_count.load(Ordering::Relaxed) > 0 && turn < TURN_COUNT {
            pause(turn);
            turn += 1;
        }
        self.removed.lock()
    }
}

/// An unmap that wants the lock or has it; a domain may panic.
struct Turn<'a>(&'a AtomicUsize);

impl<'a> Turn<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Removed {
    /// Flushes everything that is here; it stays if that fails (U1).
    pub(super) fn sync(&mut self, domain: &dyn Domain) -> Result<(), DomainError> {
        domain.sync(mem::take(&mut self.flush)).map_err(|failed| {
            self.flush = failed.flush;
            DomainError::Sync(failed.error)
        })
    }
}
