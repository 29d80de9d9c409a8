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
        // Somebody else is the owner, who sees this ask before it stops (Q4).
        if self.asks.fetch_add(1, Ordering::AcqRel) == 0 {
            self.own();
        }
    }

    /// Tells hardware, as the owner, until nobody asks any more.
    #[inline]
    fn own(&self) {
        for _ in 0..ROUND_LIMIT {
            let seen = self.asks.load(Ordering::Acquire);
            self.tell();
            let stop = self
                .asks
                .compare_exchange(seen, 0, Ordering::AcqRel, Ordering::Relaxed);
            if stop.is_ok() {
                return;
            }
        }
        self.asks.store(0, Ordering::Release);
    }

    /// Writes the tail register if there is something new. The caller is the owner.
    #[inline]
    fn tell(&self) {
        let start = self.published.load(Ordering::Relaxed);
        let end = self.marks.end(start);
        if end != start {
            // Behind the look at the marks and before the tail: entries, and whatever was stored before they
            // were written.
            fence(Ordering::SeqCst);
            let more_bits = u32::from(self.shape.has_wrap_bit);
            self.device.write_tail(self.index(end, more_bits));
            self.published.store(end, Ordering::Relaxed);
        }
    }

    /// Looks how far hardware is, and gets it over an error.
    pub(super) fn poll(&self) {
        // An owner that stopped early, or that does not run, leaves something.
        let published = self.published.load(Ordering::Relaxed);
        if published != self.reserved.load(Ordering::Relaxed) {
            self.publish();
        }
        self.look_at_status();
        let (_, fault) = self.look_at_head();
        if fault.is_some() {
            self.recover();
        }
    }

    /// Reads how far hardware has consumed the queue, and what stops it there.
    fn look_at_head(&self) -> (u64, Option<Fault>) {
        // Before the register is read (Q1).
        let known = self.consumed.load(Ordering::Acquire);
        let head = self.device.head();
        fence(Ordering::Acquire);
        let more_bits = u32::from(self.shape.has_wrap_bit);
        let (index, last) = (
            u64::from(head.index),
            u64::from(self.index(u64::MAX, more_bits)),
        );
        let position = known + (index.wrapping_sub(known) & last);
        // What no ring of ours can say comes from hardware that is gone.
        if index > last || position > self.reserved.load(Ordering::Relaxed) {
            return (known, None);
        }
        if position > known {
            self.consumed.fetch_max(position, Ordering::Release);
        }
        (position, head.fault)
    }

    /// Reads how far hardware has answered, where it does so in a status word.
    fn look_at_status(&self) {
        if self.shape.completion != Completion::Status {
            return;
        }
        // Before the word is read (Q1).
        let known = self.answered.load(Ordering::Acquire);
        let number = self.device.status();
        fence(Ordering::Acquire);
        // Negative if two SYNCs wrote in the other order.
        let ahead = number.wrapping_sub(self.number(known)).cast_signed();
        let position = known.saturating_add_signed(i64::from(ahead));
        if position > known && position <= self.reserved.load(Ordering::Relaxed) {
            self.answered.fetch_max(position, Ordering::Release);
        }
    }

    /// Gets hardware over an error, if there still is one.
    #[cold]
    fn recover(&self) {
        let mut errors = self.failures.lock();
        // Again, now that nobody else does the same.
        self.look_at_status();
        let (position, Some(fault)) = self.look_at_head() else {
            return;
        };
        match fault {
            Fault::Illegal => {
                errors.record(position, position, SyncError::Refused);
                // Hardware stands still there (Q2), unless it makes it up.
                if position < self.reserved.load(Ordering::Relaxed) {
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
        }
        // The failure and the entry before hardware goes on (Q7).
        fence(Ordering::SeqCst);
        self.device.acknowledge(fault);
    }
}
