//! How long a call waits, and who of those that wait for room goes first.

use crate::invalidation::queue::Device;
use crate::sync::atomic::{AtomicU64, Ordering};

/// The end of one wait. The clock is read when it is first asked for, so that a call that need not wait
/// does not read it.
#[derive(Debug)]
pub(super) struct Patience {
    limit_ns: u64,
    deadline: Option<u64>,
    turn: u32,
}

impl Patience {
    pub(super) const fn new(limit_ns: u64) -> Self {
        Self {
            limit_ns,
            deadline: None,
            turn: 0,
        }
    }

    /// Returns the time to give up at, counted from the first call on.
    pub(super) fn deadline(&mut self, device: &impl Device) -> u64 {
        let limit_ns = self.limit_ns;
        let start = || device.now_ns().saturating_add(limit_ns).min(NOBODY - 1);
        *self.deadline.get_or_insert_with(start)
    }

    /// Returns whether it is time to give up.
    pub(super) fn is_over(&mut self, device: &impl Device) -> bool {
        let deadline = self.deadline(device);
        device.now_ns() >= deadline
    }

    /// Lets some time pass, more from call to call.
    pub(super) fn pause(&mut self, device: &impl Device) {
        device.pause(self.turn);
        self.turn = self.turn.saturating_add(1);
    }
}

/// Nobody waits for room.
const NOBODY: u64 = u64::MAX;

/// Who waits for room, oldest first: a call may take room only if none with an earlier deadline waits.
///
/// Without it, calls that need a few entries would take what a call that needs many waits for. The word holds
/// a deadline, not a place in a line: one who gives up or never runs again holds the others up no longer
/// than until then (K6).
#[derive(Debug)]
pub(super) struct Line(AtomicU64);

impl Line {
    pub(super) fn new() -> Self {
        Self(AtomicU64::new(NOBODY))
    }

    /// Returns whether nobody waits.
    pub(super) fn is_empty(&self) -> bool {
        self.0.load(Ordering::Relaxed) == NOBODY
    }

    /// Returns whether a call that gives up at `deadline` is first at the time `now`, and puts it there if
    /// nobody is before it.
    pub(super) fn enter(&self, deadline: u64, now: u64) -> bool {
        let oldest = self.0.load(Ordering::Relaxed);
        if oldest < deadline && now <= oldest {
            return false;
        }
        // Whoever else comes in between is seen the next time.
        oldest == deadline
            || self
                .0
                .compare_exchange(oldest, deadline, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }

    /// Lets others go first. They come back by themselves.
    pub(super) fn leave(&self, deadline: u64) {
        let _ = self
            .0
            .compare_exchange(deadline, NOBODY, Ordering::Relaxed, Ordering::Relaxed);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn who_gives_up_first_goes_first() {
        let line = Line::new();
        assert!(line.enter(50, 0));
        assert!(!line.is_empty());
        assert!(!line.enter(60, 10), "someone older waits");
        assert!(line.enter(40, 10), "older than who was there");
        assert!(!line.enter(50, 20));
        line.leave(50); // was never first since
        assert!(!line.enter(50, 20));
        line.leave(40);
        assert!(line.is_empty());
        assert!(line.enter(50, 20));
    }

    #[test]
    fn who_never_leaves_is_passed_after_its_deadline() {
        let line = Line::new();
        assert!(line.enter(50, 0));
        assert!(!line.enter(90, 50));
        assert!(line.enter(90, 51));
        line.leave(50);
        assert!(!line.is_empty());
    }
}
