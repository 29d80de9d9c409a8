//! A count that many threads change.

use crate::sync::unmodelled::{AtomicUsize, Ordering};
use crate::sync::{CachePadded, thread_index};

const STRIPE_COUNT: usize = 8;

/// Things counted, each thread on a cache line that it shares with few others. Models do not see it:
/// it orders nothing.
#[derive(Debug, Default)]
pub(super) struct Count([CachePadded<AtomicUsize>; STRIPE_COUNT]);

impl Count {
    fn own(&self) -> &AtomicUsize {
        &self.0[thread_index() % STRIPE_COUNT]
    }

    pub(super) fn add(&self, count: usize) {
        self.own().fetch_add(count, Ordering::Relaxed);
    }

    /// A stripe may pass 0; the sum does not.
    pub(super) fn sub(&self, count: usize) {
        self.own().fetch_sub(count, Ordering::Relaxed);
    }

    /// Returns the sum, exact while no thread changes it.
    pub(super) fn get(&self) -> usize {
        let stripes = self.0.iter().map(|stripe| stripe.load(Ordering::Relaxed));
        stripes.fold(0, usize::wrapping_add)
    }
}
