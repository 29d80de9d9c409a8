//! Locks, atomics and grace periods: the only module that names `std::sync`, `parking_lot`, `spin`,
//! `loom` or `crossbeam`.
//!
//! # Facade
//!
//! The same code runs on several backends: the standard library (feature `std`), `parking_lot`
//! (feature `parking_lot`), spinning (neither), and `loom`, which tries every interleaving
//! (`--cfg loom`).
//!
//! | part | for |
//! |---|---|
//! | `Mutex` | short critical sections inside the engine, with a class |
//! | [`DomainLock`] | many readers on many cores, now and then a writer |
//! | `epoch` | readers that take no lock at all: what they may see is freed later |
//! | `Latest`, `Growing` | a value that is read without a lock and replaced whole; a list that only grows |
//! | `atomic`, `CachePadded`, `thread_index` | what lock-free code needs |
//! | [`lockdep`] | the order of locks, checked in debug builds; also for locks of the engine's users |
//!
//! # Order of locks
//!
//! [`CLASSES`] is the table of all classes, outermost first. A thread takes locks in rising rank,
//! of several of one class in rising index. No lock of the engine is held while code of its users
//! runs ([`lockdep::assert_none_held`]). What is waited for, such as a callback, an invalidation or
//! a grace period, has a class too, so that a wait under a lock that the other side needs is
//! reported before anybody hangs.
//!
//! # Domain lock
//!
//! Readers say in a slot of their own thread that they are inside; a writer turns that way in off,
//! waits until the slots are empty, and everybody who comes meanwhile queues. The protocol, with
//! its invariants D1 to D5 and its memory orderings, is written at the head of `domain_lock`, that
//! of the queue (Q1 to Q4) and that of the slots (S1 to S3) at the head of their files, and models
//! in which every interleaving is tried stand beside them.

mod backend;
mod domain_lock;
pub(crate) mod epoch;
#[cfg(feature = "std")]
mod growing;
#[cfg(feature = "std")]
mod latest;
pub mod lockdep;
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

/// What is written once, under a lock that its readers have held since: no model need know it either.
#[cfg(feature = "std")]
pub(crate) use std::sync::OnceLock;

#[cfg(loom)]
pub(crate) use crate::sync::backend::CachePadded;
#[cfg(not(loom))]
pub(crate) use crossbeam_utils::CachePadded;

pub(crate) use crate::sync::backend::pause;
#[cfg(feature = "std")]
pub(crate) use crate::sync::backend::{Deadline, Left, now_ns};
#[cfg(feature = "std")]
pub(crate) use crate::sync::growing::Growing;
#[cfg(feature = "std")]
pub(crate) use crate::sync::latest::Latest;
pub(crate) use crate::sync::mutex::{Mutex, MutexGuard};
pub(crate) use crate::sync::thread::thread_index;

pub use crate::sync::domain_lock::{DomainLock, ReadGuard, WriteGuard};
pub use crate::sync::lockdep::Class;
pub use crate::sync::ranks::*;

/// Runs `test` in every interleaving of its threads.
#[cfg(all(test, loom))]
pub(crate) fn model(test: impl Fn() + Sync + Send + 'static) {
    check(&loom::model::Builder::new(), test);
}

/// As [`model`], but with at most `preemption_count` switches away from a thread that could go on:
/// for models of many steps. Few bugs need more than two.
#[cfg(all(test, loom))]
pub(crate) fn bounded_model(preemption_count: usize, test: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemption_count);
    check(&builder, test);
}

#[cfg(all(test, loom))]
fn check(builder: &loom::model::Builder, test: impl Fn() + Sync + Send + 'static) {
    builder.check(move || {
        thread::start_model();
        domain_lock::start_model();
        test();
    });
}
