//! Reservations, and waiting for room.

use core::convert::Infallible;

use crate::invalidation::SyncError;
use crate::invalidation::queue::patience::Patience;
use crate::invalidation::queue::{Device, Queue};
use crate::sync::atomic::Ordering;

impl<D: Device> Queue<D> {
    /// Reserves `count` entries, at most the capacity, one after the other, and returns the first.
    #[inline]
    pub(super) fn reserve(&self, count: u64, patience: &mut Patience) -> Result<u64, SyncError> {
        match self.reserve_unless(count, patience, || None::<Infallible>)? {
            Ok(start) => Ok(start),
            Err(never) => match never {},
        }
    }

    /// As [`reserve`](Self::reserve), but gives up with what `instead` returns while there is no room.
    #[inline]
    pub(super) fn reserve_unless<T>(
        &self,
        count: u64,
        patience: &mut Patience,
        instead: impl Fn() -> Option<T>,
    ) -> Result<Result<u64, T>, SyncError> {
        match self.take_if_first(count) {
            Some(start) => Ok(Ok(start)),
            None => self.wait_for_room(count, patience, instead),
        }
    }

    /// Reserves entries if there is room and nobody waits for it (K6).
    #[inline]
    pub(super) fn take_if_first(&self, count: u64) -> Option<u64> {
        self.done
            .line
            .is_empty()
            .then(|| self.take(count))
            .flatten()
    }

    /// Reserves entries if there is room.
    #[inline]
    fn take(&self, count: u64) -> Option<u64> {
        let mut start = self.taken.reserved.load(Ordering::Relaxed);
        loop {
            // Acquires that hardware has read the entries which are written over (K2).
            let consumed = self.done.consumed.load(Ordering::Acquire);
            if start + count > consumed + self.capacity {
                return None;
            }
            match self.taken.reserved.compare_exchange_weak(
                start,
                start + count,
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Some(start),
                Err(now) => start = now,
            }
        }
    }

    #[cold]
    fn wait_for_room<T>(
        &self,
        count: u64,
        patience: &mut Patience,
        instead: impl Fn() -> Option<T>,
    ) -> Result<Result<u64, T>, SyncError> {
        // Mostly there is room that nobody has noticed yet.
        self.poll_for_room();
        if let Some(start) = self.take_if_first(count) {
            return Ok(Ok(start));
        }
        let deadline = patience.deadline(&self.device);
        loop {
            // The clock first, so that the last look is at the end of the time, and not before.
            let now = self.device.now_ns();
            let is_first = self.done.line.enter(deadline, now);
            self.poll_for_room();
            let start = is_first.then(|| self.take(count)).flatten();
            let place = start.map(Ok).or_else(|| instead().map(Err));
            if place.is_some() || now >= deadline {
                self.done.line.leave(deadline);
                return place.ok_or(SyncError::QueueFull);
            }
            patience.pause(&self.device);
        }
    }
}
