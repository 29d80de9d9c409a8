//! Locks, atomics and grace periods: the only module that names `std::sync`, `parking_lot`, `spin`,
//! `loom` or `crossbeam`.
//!
//! The same code runs on several backends: the standard library (feature `std`), `parking_lot`
//! (feature `parking_lot`), spinning (neither), and `loom`, which tries every interleaving
//! (`--cfg loom`).

mod backend;
pub(crate) mod epoch;
mod lockdep;
#[cfg(all(test, loom))]
pub(crate) mod models;
mod mutex;
mod ranks;
mod thread;

#[cfg(not(loom))]
pub(crate) use core::sync::atomic;
#[cfg(loom)]
pub(crate) use loom::sync::atomic;

/// Atomics that order nothing: counters and names that no model need know.
pub(crate) use core::sync::atomic as unmodelled;

#[cfg(loom)]
pub(crate) use crate::sync::backend::CachePadded;
#[cfg(not(loom))]
pub(crate) use crossbeam_utils::CachePadded;

pub(crate) use crate::sync::mutex::Mutex;
pub(crate) use crate::sync::thread::{MAX_THREADS, thread_index};

pub use crate::sync::lockdep::Class;
pub use crate::sync::ranks::*;

/// Runs `test` in every interleaving of its threads.
#[cfg(all(test, loom))]
pub(crate) fn model(test: impl Fn() + Sync + Send + 'static) {
    loom::model(move || {
        thread::start_model();
        test();
    });
}
