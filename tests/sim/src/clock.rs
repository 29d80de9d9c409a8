//! Virtual time, shared by everything that is simulated.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Something that goes on when time passes.
pub(crate) trait Timed: Send + Sync {
    /// Does what is due.
    fn run(&self);
}

/// A clock in nanoseconds that only those who wait advance.
pub struct Clock {
    now: AtomicU64,
    step: u64,
    listeners: Mutex<Vec<Weak<dyn Timed>>>,
}

impl Clock {
    /// Creates a clock at 0 that each poll advances by `step` nanoseconds.
    pub fn new(step: u64) -> Arc<Self> {
        Arc::new(Self {
            now: AtomicU64::new(0),
            step,
            listeners: Mutex::default(),
        })
    }

    /// Returns the nanoseconds since the clock was made.
    pub fn now(&self) -> u64 {
        self.now.load(Ordering::Acquire)
    }

    /// Lets time pass, and the IOMMUs do what is due: to be called by whoever waits for one.
    pub fn poll(&self) {
        self.advance(self.step);
        let listeners = self.listeners().clone();
        for listener in listeners.iter().filter_map(Weak::upgrade) {
            listener.run();
        }
    }

    /// Lets `nanoseconds` pass that something took.
    pub(crate) fn advance(&self, nanoseconds: u64) {
        self.now.fetch_add(nanoseconds, Ordering::AcqRel);
    }

    pub(crate) fn listen(&self, listener: Weak<dyn Timed>) {
        self.listeners().push(listener);
    }

    fn listeners(&self) -> std::sync::MutexGuard<'_, Vec<Weak<dyn Timed>>> {
        self.listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clock")
            .field("now", &self.now())
            .field("step", &self.step)
            .finish_non_exhaustive()
    }
}

/// How long hardware takes, in nanoseconds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Latencies {
    /// A fresh walk.
    pub walk: u64,
    /// A sync, from its command being consumed to its completion.
    pub sync: u64,
}

impl Latencies {
    /// Everything happens at once: a sync is complete when the tail has been written.
    pub const NONE: Self = Self { walk: 0, sync: 0 };
}

impl Default for Latencies {
    fn default() -> Self {
        Self {
            walk: 300,
            sync: 1000,
        }
    }
}
