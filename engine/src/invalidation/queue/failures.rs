//! Which entries of a queue failed, for as long as somebody may ask.

use alloc::vec::Vec;

use crate::invalidation::SyncError;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{self, Mutex, MutexGuard};

/// Failures that are told apart; of more, the two oldest become one. It only grows what they span, so that a
/// list which stood between them and is not waited for yet fails too.
const LIMIT: usize = if cfg!(any(loom, miri)) { 32 } else { 256 };

/// The failures. An empty history, the usual one, costs one load.
#[derive(Debug)]
pub(super) struct Failures {
    /// The end of the last one.
    end: AtomicU64,
    list: Mutex<Vec<Failure>>,
}

#[derive(Clone, Copy, Debug)]
struct Failure {
    first: u64,
    last: u64,
    error: SyncError,
}

impl Failures {
    pub(super) fn new() -> Self {
        Self {
            end: AtomicU64::new(0),
            // Room for all, because whoever deals with an error cannot wait for memory.
            list: Mutex::new(&sync::QUEUE_ERRORS, Vec::with_capacity(LIMIT)),
        }
    }

    /// Returns an error of an entry from `first` to `last`, if there was one before what the caller acquired.
    pub(super) fn among(&self, first: u64, last: u64) -> Option<SyncError> {
        if self.end.load(Ordering::Acquire) <= first {
            return None;
        }
        let list = self.list.lock();
        let met = |failure: &&Failure| failure.first <= last && first <= failure.last;
        list.iter().find(met).map(|failure| failure.error)
    }

    /// Keeps others from dealing with an error.
    pub(super) fn lock(&self) -> Errors<'_> {
        Errors {
            failures: self,
            list: self.list.lock(),
        }
    }
}

/// The right to deal with an error.
pub(super) struct Errors<'a> {
    failures: &'a Failures,
    list: MutexGuard<'a, Vec<Failure>>,
}

impl Errors<'_> {
    /// Notes that the entries from `first` to `last` failed.
    pub(super) fn record(&mut self, first: u64, last: u64, error: SyncError) {
        // The same error once more, because it was still to be seen or came back.
        let is_known = |known: &Failure| known.first <= first && last <= known.last;
        if self.list.iter().any(is_known) {
            return;
        }
        if self.list.len() == LIMIT {
            let oldest = self.list.remove(0);
            let next = &mut self.list[0];
            next.first = next.first.min(oldest.first);
            next.last = next.last.max(oldest.last);
        }
        self.list.push(Failure { first, last, error });
        self.failures.end.fetch_max(last + 1, Ordering::Release);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_failure_meets_the_ranges_that_it_overlaps() {
        let failures = Failures::new();
        assert_eq!(failures.among(0, u64::MAX), None);
        failures.lock().record(10, 12, SyncError::Refused);
        failures.lock().record(20, 20, SyncError::TimedOut);
        for (first, last, error) in [
            (0, 9, None),
            (0, 10, Some(SyncError::Refused)),
            (12, 19, Some(SyncError::Refused)),
            (13, 19, None),
            (13, 20, Some(SyncError::TimedOut)),
            (20, 20, Some(SyncError::TimedOut)),
            (21, u64::MAX, None),
        ] {
            assert_eq!(failures.among(first, last), error, "{first} {last}");
        }
    }

    #[test]
    fn of_too_many_failures_the_oldest_are_told_apart_no_more() {
        let failures = Failures::new();
        for number in 0..2 * LIMIT as u64 {
            failures
                .lock()
                .record(10 * number, 10 * number, SyncError::Refused);
            // The same one again takes no room.
            failures
                .lock()
                .record(10 * number, 10 * number, SyncError::Refused);
        }
        let count = failures.lock().list.len();
        assert_eq!(count, LIMIT);
        for number in 0..2 * LIMIT as u64 {
            assert!(failures.among(10 * number, 10 * number).is_some());
            let is_between_found = failures.among(10 * number + 1, 10 * number + 9).is_some();
            assert_eq!(is_between_found, number < LIMIT as u64);
        }
    }
}
