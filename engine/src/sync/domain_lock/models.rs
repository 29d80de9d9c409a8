//! Models: every interleaving of two or three threads. The value is one that reports an access
//! beside a write, or without an order to the last one.

#![expect(unsafe_code, reason = "the value that is watched is shared")]

use alloc::sync::Arc;
use core::time::Duration;

use loom::cell::Cell;

use super::barrier::Barrier;
use super::rwsem::Rwsem;
use super::slots::{self, Slot};
use super::{Deadline, DomainLock, ReadGuard, Shared};
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::model;
use crate::sync::models::thread;

/// A number that only the lock orders.
struct Value(Cell<u32>);

// SAFETY: accesses that nothing orders are what the models look for; `loom` reports them instead of
// letting them happen.
unsafe impl Sync for Value {}

impl Value {
    fn new() -> Self {
        Self(Cell::new(0))
    }

    fn get(&self) -> u32 {
        self.0.get()
    }

    fn set(&self, new: u32) {
        self.0.set(new);
    }
}

fn lock() -> Arc<DomainLock<Value>> {
    Arc::new(DomainLock::new(Value::new()))
}

/// The slot's store against the bias's: one of the two sees the other.
#[test]
fn a_reader_in_a_slot_and_a_writer_exclude_each_other() {
    model(|| {
        let lock = lock();
        let writer = {
            let lock = Arc::clone(&lock);
            thread::spawn(move || lock.write().set(1))
        };
        assert!(lock.read().get() <= 1);
        writer.join().unwrap();
        assert_eq!(lock.read().get(), 1);
    });
}

/// The bias goes off and on and off again.
#[test]
fn writers_come_back_after_the_bias_was_turned_on() {
    model(|| {
        let lock = lock();
        let writer = {
            let lock = Arc::clone(&lock);
            thread::spawn(move || {
                lock.write().set(1);
                lock.write().set(2);
            })
        };
        let first = lock.read().get();
        assert!(first <= lock.read().get());
        writer.join().unwrap();
        assert_eq!(lock.read().get(), 2);
    });
}

/// The one thread writes, and turns the bias on when it reads; what the other then sees of that it
/// knows by the bias alone.
#[test]
fn the_bias_carries_what_the_last_writer_did() {
    model(|| {
        let lock = lock();
        let writer = {
            let lock = Arc::clone(&lock);
            thread::spawn(move || {
                lock.write().set(1);
                drop(lock.read());
            })
        };
        if let Some(slot) = lock.enter() {
            let reader = Shared {
                lock: &lock,
                slot: Some(slot),
            };
            let held = lock.label.took(&*lock);
            assert!(
                ReadGuard {
                    shared: reader,
                    _held: held
                }
                .get()
                    <= 1
            );
        }
        writer.join().unwrap();
    });
}

/// The reader's next lock takes the slot of the last, before the writer looks.
#[test]
fn a_slot_with_another_lock_tells_that_the_reader_has_left() {
    model(|| {
        let (lock, other) = (lock(), lock());
        let reader = {
            let (lock, other) = (Arc::clone(&lock), Arc::clone(&other));
            thread::spawn(move || {
                assert!(lock.read().get() <= 1);
                let held = other.read();
                assert_eq!(held.get(), 0);
                drop(held);
            })
        };
        lock.write().set(1);
        reader.join().unwrap();
    });
}

/// A guard outlives its thread's index, and who gets the index next uses the slot when it is free.
#[test]
fn a_slot_keeps_its_trace_when_the_row_changes_hands() {
    const LOCK: usize = 1;
    const OTHER: usize = 2;
    model(|| {
        let bias = Arc::new((AtomicBool::new(true), AtomicBool::new(true)));
        let value = Arc::new(Value::new());
        let slot = Slot::enter_row(0, LOCK, &bias.0, Barrier::Symmetric).expect("it is free");
        let first = {
            let value = Arc::clone(&value);
            thread::spawn(move || {
                assert_eq!(value.get(), 0);
                drop(slot);
            })
        };
        let second = {
            let bias = Arc::clone(&bias);
            thread::spawn(move || {
                drop(Slot::enter_row(0, OTHER, &bias.1, Barrier::Symmetric));
            })
        };
        bias.0.store(false, Ordering::Relaxed);
        Barrier::Symmetric.between_store_and_loads();
        assert!(slots::wait_until_left(LOCK, &mut Deadline::Never));
        value.set(1);
        first.join().unwrap();
        second.join().unwrap();
    });
}

#[test]
fn a_try_to_write_leaves_readers_alone() {
    model(|| {
        let lock = lock();
        let writer = {
            let lock = Arc::clone(&lock);
            thread::spawn(move || {
                if let Some(value) = lock.try_write() {
                    value.set(1);
                }
            })
        };
        let value = lock.read();
        assert_eq!(value.get(), value.get());
        drop(value);
        writer.join().unwrap();
    });
}

/// Readers that ask later wait, so a writer waits for those inside only.
#[test]
fn a_writer_that_waits_goes_before_readers_that_come() {
    model(|| {
        let queue = Arc::new(Rwsem::new());
        assert!(queue.try_read());
        let writer = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || {
                assert!(queue.write(&mut Deadline::Never, || ()));
                queue.unlock_write();
            })
        };
        let is_waiting = queue.waiting_writers() == 1;
        let is_admitted = queue.try_read();
        assert!(!(is_waiting && is_admitted));
        if is_admitted {
            queue.unlock_read();
        }
        queue.unlock_read();
        writer.join().unwrap();
        assert!(queue.try_write());
    });
}

/// One reader came through the queue; the bias is on, as it turned it on.
#[test]
fn no_reader_enters_by_a_slot_once_a_writer_waits() {
    model(|| {
        let lock = lock();
        assert!(lock.queue.try_read());
        let writer = {
            let lock = Arc::clone(&lock);
            thread::spawn(move || lock.write().set(1))
        };
        let is_waiting = lock.queue.waiting_writers() == 1;
        let reader = lock.try_read();
        assert!(!(is_waiting && reader.is_some()));
        if let Some(value) = &reader {
            assert_eq!(value.get(), 0);
        }
        drop(reader);
        lock.queue.unlock_read();
        writer.join().unwrap();
        assert_eq!(lock.read().get(), 1);
    });
}

/// Two writers take turns with the readers.
#[test]
fn a_reader_that_waits_goes_before_the_next_writer() {
    model(|| {
        let queue = Arc::new(Rwsem::new());
        // Whether both wait, and whether the second writer has been inside.
        let seen = Arc::new((AtomicBool::new(false), AtomicBool::new(false)));
        assert!(queue.try_write());
        let reader = {
            let (queue, seen) = (Arc::clone(&queue), Arc::clone(&seen));
            thread::spawn(move || {
                assert!(queue.read(&mut Deadline::Never));
                let is_late = seen.1.load(Ordering::Relaxed);
                assert!(!(seen.0.load(Ordering::Relaxed) && is_late));
                queue.unlock_read();
            })
        };
        let writer = {
            let (queue, seen) = (Arc::clone(&queue), Arc::clone(&seen));
            thread::spawn(move || {
                assert!(queue.write(&mut Deadline::Never, || ()));
                seen.1.store(true, Ordering::Relaxed);
                queue.unlock_write();
            })
        };
        if queue.waiting_readers() == 1 && queue.waiting_writers() == 1 {
            seen.0.store(true, Ordering::Relaxed);
        }
        queue.unlock_write();
        reader.join().unwrap();
        writer.join().unwrap();
    });
}

#[test]
fn no_writer_comes_between_a_write_and_its_downgrade() {
    model(|| {
        let lock = lock();
        let writer = {
            let lock = Arc::clone(&lock);
            thread::spawn(move || lock.write().set(2))
        };
        let value = lock.write();
        value.set(1);
        let value = value.downgrade();
        assert_eq!(value.get(), 1);
        drop(value);
        writer.join().unwrap();
    });
}

/// The first reader stays until the second has been inside, so the writer has to give up.
#[test]
fn readers_go_on_when_the_writer_before_them_gives_up() {
    model(|| {
        let queue = Arc::new(Rwsem::new());
        assert!(queue.try_read());
        let writer = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || {
                if queue.write(&mut Deadline::after(Duration::from_millis(1)), || ()) {
                    queue.unlock_write();
                }
            })
        };
        assert!(queue.read(&mut Deadline::Never));
        queue.unlock_read();
        queue.unlock_read();
        writer.join().unwrap();
        assert!(queue.try_write());
    });
}

/// Whoever gives up is counted out, or keeps the lock it was given at the last moment.
#[test]
fn a_reader_that_gives_up_leaves_nothing_behind() {
    model(|| {
        let queue = Arc::new(Rwsem::new());
        assert!(queue.try_write());
        let reader = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || {
                if queue.read(&mut Deadline::after(Duration::ZERO)) {
                    queue.unlock_read();
                }
            })
        };
        queue.unlock_write();
        reader.join().unwrap();
        assert!(queue.try_write());
    });
}

#[test]
fn a_timed_writer_excludes_readers_or_gives_up() {
    model(|| {
        let lock = lock();
        let writer = {
            let lock = Arc::clone(&lock);
            thread::spawn(move || {
                if let Some(value) = lock.try_write_for(Duration::ZERO) {
                    value.set(1);
                }
            })
        };
        let value = lock.read();
        assert_eq!(value.get(), value.get());
        drop(value);
        writer.join().unwrap();
    });
}
