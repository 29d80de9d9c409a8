//! A store of one thread before its load of something else, against the same in another thread.
//!
//! A reader stores its slot, then loads the bias; a writer stores the bias, then loads the slots.
//! Both may not miss the other's store, and only a full barrier between store and load, on both
//! sides, prevents that. Readers are many and writers few, so a barrier that costs the writers all
//! and the readers nothing is worth having:
//!
//! | | reader, between store and load | writer, between store and load |
//! |---|---|---|
//! | [`Symmetric`](Barrier::Symmetric) | sequentially consistent accesses: one locked instruction on x86-64, `stlr` and `ldar` on ARM | a fence |
//! | [`Asymmetric`](Barrier::Asymmetric) | the compiler is kept from reordering, nothing else | `membarrier(PRIVATE_EXPEDITED)`: Linux runs a fence on every processor that runs a thread of this process |
//!
//! The asymmetric barrier is no part of Rust's memory model: what a fence would order, the kernel
//! orders, wherever the reader stands between its two instructions. A litmus test runs it natively.
//! `loom` orders by fences only, so models put one into the symmetric reader.

use crate::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Barrier {
    /// Any system.
    Symmetric,
    /// Linux.
    Asymmetric,
}

impl Barrier {
    /// Returns the one that is cheapest for readers.
    pub(super) fn best() -> Self {
        if membarrier::is_available() {
            Self::Asymmetric
        } else {
            Self::Symmetric
        }
    }

    /// Stores `value` in `slot`, releasing what was done before, and then loads `flag`, acquiring.
    #[inline]
    pub(super) fn store_then_load(
        self,
        slot: &AtomicUsize,
        value: usize,
        flag: &AtomicBool,
    ) -> bool {
        match self {
            #[cfg(not(loom))]
            Self::Symmetric => {
                // With the writer's fence, sequential consistency of these two is enough.
                slot.store(value, Ordering::SeqCst);
                flag.load(Ordering::SeqCst)
            }
            #[cfg(loom)]
            Self::Symmetric => {
                slot.store(value, Ordering::Release);
                fence(Ordering::SeqCst);
                flag.load(Ordering::Acquire)
            }
            Self::Asymmetric => {
                slot.store(value, Ordering::Release);
                core::sync::atomic::compiler_fence(Ordering::SeqCst);
                flag.load(Ordering::Acquire)
            }
        }
    }

    /// Stands between the writer's store and its loads.
    pub(super) fn between_store_and_loads(self) {
        fence(Ordering::SeqCst);
        if self == Self::Asymmetric {
            membarrier::on_all_threads();
        }
    }
}

#[cfg(all(feature = "std", target_os = "linux", not(loom), not(miri)))]
mod membarrier {
    use std::sync::OnceLock;

    use rustix::thread::{MembarrierCommand, membarrier, membarrier_query};

    /// Returns whether the kernel offers it to this process. Asks once.
    pub(super) fn is_available() -> bool {
        static IS_AVAILABLE: OnceLock<bool> = OnceLock::new();
        *IS_AVAILABLE.get_or_init(|| {
            let offered = membarrier_query();
            offered.contains_command(MembarrierCommand::PrivateExpedited)
                && membarrier(MembarrierCommand::RegisterPrivateExpedited).is_ok()
                && membarrier(MembarrierCommand::PrivateExpedited).is_ok()
        })
    }

    /// Runs a fence on every thread of the process.
    ///
    /// # Panics
    ///
    /// Panics if the kernel takes back what it has granted and the slower ways fail too: readers
    /// rely on it, so a writer that went on would not exclude them.
    pub(super) fn on_all_threads() {
        let again = || {
            membarrier(MembarrierCommand::RegisterPrivateExpedited)
                .and_then(|()| membarrier(MembarrierCommand::PrivateExpedited))
        };
        membarrier(MembarrierCommand::PrivateExpedited)
            .or_else(|_| again())
            .or_else(|_| membarrier(MembarrierCommand::Global))
            .expect("a system call that was granted to the process stays so");
    }
}

#[cfg(not(all(feature = "std", target_os = "linux", not(loom), not(miri))))]
mod membarrier {
    pub(super) fn is_available() -> bool {
        false
    }

    /// Never called: no lock uses what is not available.
    pub(super) fn on_all_threads() {}
}
