//! What moves the queue on: telling hardware of what is written, looking how far it is, and getting it over
//! errors.

use crate::invalidation::SyncError;
use crate::invalidation::queue::{Completion, Device, Fault, Queue};
use crate::sync::atomic::{Ordering, fence};

/// Rounds of an owner. One that others keep busy has callers of its own to serve.
const ROUND_LIMIT: u32 = 16;

impl<D: Device> Queue<D> {
    /// Sees to it that hardware is told of everything that is written.
    #[inline]
    pub(super) fn publish(&self) {
        // Somebody else is the owner, who sees this ask before it stops (K4).
        if self.told.asks.fetch_add(1, Ordering::AcqRel) == 0 {
            self.own();
        }
    }

    /// Tells hardware, as the owner, until nobody asks any more.
    #[inline]
    fn own(&self) {
        for _ in 0..ROUND_LIMIT {
            let seen = self.told.asks.load(Ordering::Acquire);
            self.tell();
            let stop =
                self.told
                    .asks
                    .compare_exchange(seen, 0, Ordering::AcqRel, Ordering::Relaxed);
            if stop.is_ok() {
                return;
            }
        }
        self.told.asks.store(0, Ordering::Release);
    }

    /// Writes the tail register if there is something new. The caller is the owner.
    #[inline]
    fn tell(&self) {
        let start = self.told.published.load(Ordering::Relaxed);
        let end = self.marks.end(start);
        if end != start {
            // Before the tail, so that hardware fetches nothing that is not counted here.
            self.told.published.store(end, Ordering::Relaxed);
            // Behind the look at the marks and before the tail: entries, and whatever was stored before they
            // were written.
            fence(Ordering::SeqCst);
            let more_bits = u32::from(self.shape.has_wrap_bit);
            self.device.write_tail(self.index(end, more_bits));
        }
    }

    /// Looks what hardware has completed, and gets it over an error.
    pub(super) fn poll(&self) {
        self.publish_rest();
        // What is waited for is complete then, mostly, and to read a register takes longer than all the rest.
        if !self.look_at_status() {
            self.poll_head();
        }
    }

    /// As [`poll`](Self::poll), and how far hardware has consumed the queue in any case.
    pub(super) fn poll_for_room(&self) {
        self.publish_rest();
        self.look_at_status();
        self.poll_head();
    }

    /// Tells hardware what an owner has left that stopped early, or that does not run.
    fn publish_rest(&self) {
        let published = self.told.published.load(Ordering::Relaxed);
        if published != self.taken.reserved.load(Ordering::Relaxed) {
            self.publish();
        }
    }

    fn poll_head(&self) {
        let (_, fault) = self.look_at_head();
        if fault.is_some() {
            self.recover();
        }
    }

    /// Reads how far hardware has consumed the queue, and what stops it there.
    fn look_at_head(&self) -> (u64, Option<Fault>) {
        // Before the register is read (K1).
        let known = self.done.consumed.load(Ordering::Acquire);
        let head = self.device.head();
        fence(Ordering::Acquire);
        let more_bits = u32::from(self.shape.has_wrap_bit);
        let (index, last) = (
            u64::from(head.index),
            u64::from(self.index(u64::MAX, more_bits)),
        );
        let position = known + (index.wrapping_sub(known) & last);
        // What no ring of ours can say comes from hardware that is gone.
        if index > last || position > self.taken.reserved.load(Ordering::Relaxed) {
            return (known, None);
        }
        if position > known {
            self.done.consumed.fetch_max(position, Ordering::Release);
        }
        (position, head.fault)
    }

    /// Reads how far hardware has answered, where it does so in a status word. Returns whether it has
    /// since it was known last.
    fn look_at_status(&self) -> bool {
        if self.shape.completion != Completion::Status {
            return false;
        }
        // Before the word is read (K1).
        let known = self.done.answered.load(Ordering::Acquire);
        let number = self.device.status();
        fence(Ordering::Acquire);
        // Negative if two SYNCs wrote in the other order.
        let ahead = number.wrapping_sub(self.number(known)).cast_signed();
        let position = known.saturating_add_signed(i64::from(ahead));
        let is_news = position > known && position <= self.taken.reserved.load(Ordering::Relaxed);
        if is_news {
            self.done.answered.fetch_max(position, Ordering::Release);
        }
        is_news
    }

    /// Gets hardware over an error, if there still is one.
    #[cold]
    pub(super) fn recover(&self) {
        let mut errors = self.failures.lock();
        // Again, now that nobody else does the same.
        self.look_at_status();
        let (_, seen) = self.look_at_head();
        // The first look may have begun laps ago, but shows that hardware stands still: the second one is exact.
        // If it shows something else, whoever looks next deals with that.
        let (position, Some(fault)) = self.look_at_head() else {
            return;
        };
        if seen != Some(fault) {
            return;
        }
        match fault {
            Fault::Illegal => {
                // Hardware stands still there (K2), unless it makes it up, or was stopped where it had nothing to do.
                if position < self.taken.reserved.load(Ordering::Relaxed) {
                    errors.record(position, position, SyncError::Refused);
                    let sync = self.device.sync_entry(self.number(position + 1));
                    self.write(position, &sync);
                }
            }
            Fault::Fetch => {}
            Fault::Timeout => errors.record(position, position, SyncError::DeviceTimedOut),
            Fault::Dropped => {
                let first = self.complete().load(Ordering::Acquire);
                // Where the head says what is complete, there is the entry that it stands at.
                let last = match self.shape.completion {
                    Completion::Head => position,
                    Completion::Status => position.saturating_sub(1),
                };
                if first <= last {
                    errors.record(first, last, SyncError::DeviceTimedOut);
                }
            }
            Fault::Unanswered => {
                // Hardware goes on, and what it fetched since the first look may be laps.
                let first = self.complete().load(Ordering::Acquire);
                let end = self.told.published.load(Ordering::Relaxed);
                if first < end {
                    errors.record(first, end - 1, SyncError::DeviceTimedOut);
                }
            }
        }
        // The failure and the entry before hardware goes on (K7).
        fence(Ordering::SeqCst);
        self.device.acknowledge(fault);
    }
}
