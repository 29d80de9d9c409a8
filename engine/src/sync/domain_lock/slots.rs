//! The slots in which readers say which locks they hold.
//!
//! One table serves all locks of the process. Each living thread has a row of it to itself, by its
//! [`thread_index`], as large as two cache lines, because processors fetch lines in pairs. A lock
//! has a number, never used twice, and may stand in [`PROBES`] slots of a row.
//!
//! # Invariants
//!
//! - **S1** (owner): a slot that is zero is stored to only by the thread that has the row's index.
//! - **S2** (guard): a slot that is not zero belongs to one guard, and only that guard stores to
//!   it. It may outlive the thread's index: whoever gets that next finds the slot taken.
//! - **S3** (trace): every store to a slot releases, and who finds a slot zero to use it acquires.
//!   So a writer that loads anything but its lock's number, even another lock's, has acquired
//!   whatever earlier readers of its lock did while they stood there.

use crate::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use crate::sync::backend::{Deadline, Left, pause};
use crate::sync::domain_lock::barrier::Barrier;
use crate::sync::thread::{MAX_THREADS, thread_index, thread_index_limit};

/// Slots of a row: two lines of words.
const SLOTS: usize = if cfg!(loom) { 1 } else { 16 };
/// Slots of a row in which one lock may stand.
const PROBES: usize = if cfg!(loom) { 1 } else { 2 };

const _: () = assert!(SLOTS.is_power_of_two() && PROBES <= 2);

#[repr(align(128))]
struct Row([AtomicUsize; SLOTS]);

struct Table([Row; MAX_THREADS]);

#[cfg(not(loom))]
static TABLE: Table = Table([const { Row([const { AtomicUsize::new(0) }; SLOTS]) }; MAX_THREADS]);

#[cfg(loom)]
loom::lazy_static! {
    /// One of each execution of a model.
    static ref TABLE: Table = Table(core::array::from_fn(|_| {
        Row(core::array::from_fn(|_| AtomicUsize::new(0)))
    }));
}

/// To be called before threads are: what is made on demand would give them an order.
#[cfg(all(test, loom))]
pub(in crate::sync) fn start_model() {
    let _ = &*TABLE;
}

/// The right to stand in a slot.
#[derive(Debug)]
pub(super) struct Slot(&'static AtomicUsize);

impl Slot {
    /// Puts `lock` into a slot of this thread, if one is free and `bias` still holds afterwards.
    #[inline]
    pub(super) fn enter(lock: usize, bias: &AtomicBool, barrier: Barrier) -> Option<Self> {
        Self::enter_row(thread_index(), lock, bias, barrier)
    }

    #[inline]
    pub(super) fn enter_row(
        index: usize,
        lock: usize,
        bias: &AtomicBool,
        barrier: Barrier,
    ) -> Option<Self> {
        let row = TABLE.0.get(index)?;
        for probe in 0..PROBES {
            let slot = row.slot(lock, probe);
            if slot.load(Ordering::Acquire) == 0 {
                if barrier.store_then_load(slot, lock, bias) {
                    return Some(Self(slot));
                }
                slot.store(0, Ordering::Release);
                return None;
            }
        }
        None
    }
}

impl Drop for Slot {
    #[inline]
    fn drop(&mut self) {
        self.0.store(0, Ordering::Release);
    }
}

impl Row {
    #[inline]
    fn slot(&self, lock: usize, probe: usize) -> &AtomicUsize {
        &self.0[(lock ^ (probe * (SLOTS / 2))) & (SLOTS - 1)]
    }
}

/// Waits until `lock` stands in no slot. Returns whether that came before `deadline`.
///
/// The bias is off, and a barrier lies between that and this call, so that whoever stores a slot
/// too late to be seen here finds the bias off. The limit of thread numbers is no exception: a
/// thread that got its number too late to be counted got it before it stored its slot.
pub(super) fn wait_until_left(lock: usize, deadline: &mut Deadline) -> bool {
    for row in TABLE.0.iter().take(thread_index_limit()) {
        for probe in 0..PROBES {
            let slot = row.slot(lock, probe);
            let mut turn = 0;
            while slot.load(Ordering::Acquire) == lock {
                if deadline.left() == Left::Nothing {
                    return false;
                }
                pause(turn);
                turn = turn.saturating_add(1);
            }
        }
    }
    true
}
