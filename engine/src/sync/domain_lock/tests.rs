//! What the lock promises, on the machine's own threads.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier as Meeting, LazyLock};
use std::thread;
use std::time::Duration;

use super::barrier::Barrier;
use super::{DomainLock, ReadGuard, WriteGuard};
use crate::sync::DOMAIN;
use crate::sync::lockdep::Class;
use crate::sync::thread::MAX_THREADS;

/// Locks of tests that hold two at once.
static OTHER: Class = Class::unranked("other lock of a test");

const TURNS: usize = if cfg!(miri) { 20 } else { 3000 };

/// A lock with each barrier that this machine has.
fn locks<T: Clone>(value: &T) -> Vec<DomainLock<T>> {
    let mut locks = vec![DomainLock::with_barrier(
        &DOMAIN,
        Barrier::Symmetric,
        value.clone(),
    )];
    if Barrier::best() != Barrier::Symmetric {
        locks.push(DomainLock::new(value.clone()));
    }
    locks
}

/// A lock whose readers go through the queue.
fn without_bias<T>(value: T) -> DomainLock<T> {
    let lock = DomainLock::new(value);
    lock.bias.store(false, Ordering::Relaxed);
    lock.bias_from.store(u64::MAX, Ordering::Relaxed);
    lock
}

fn is_biased<T>(lock: &DomainLock<T>) -> bool {
    lock.bias.load(Ordering::Relaxed)
}

fn until(mut is_true: impl FnMut() -> bool) {
    while !is_true() {
        thread::yield_now();
    }
}

/// Runs `act` on a thread of its own.
fn elsewhere<R: Send>(act: impl FnOnce() -> R + Send) -> R {
    thread::scope(|scope| scope.spawn(act).join()).expect("it does not panic")
}

#[test]
fn readers_share_and_a_writer_is_alone() {
    for lock in [DomainLock::new(1), without_bias(1)] {
        let reader = lock.read();
        elsewhere(|| {
            assert_eq!(lock.try_read().map(|value| *value), Some(1));
            assert!(lock.try_write().is_none());
            // A try that fails leaves the readers where they are.
            assert_eq!(lock.try_read().map(|value| *value), Some(1));
        });
        drop(reader);
        let mut writer = lock.write();
        *writer = 2;
        elsewhere(|| assert!(lock.try_read().is_none() && lock.try_write().is_none()));
        drop(writer);
        assert_eq!(lock.try_write().map(|value| *value), Some(2));
        assert_eq!(lock.into_inner(), 2);
    }
}

#[test]
fn threads_see_whole_writes_only() {
    for lock in locks(&[0_usize; 2]) {
        let lock = &lock;
        thread::scope(|scope| {
            scope.spawn(move || {
                for _ in 0..TURNS {
                    let mut value = lock.write();
                    value[0] += 1;
                    value[1] += 1;
                }
            });
            for turn in 0..2 {
                scope.spawn(move || {
                    let mut last = 0;
                    while last < TURNS {
                        let value = lock.read();
                        assert_eq!(value[0], value[1]);
                        assert!(value[0] >= last);
                        last = value[0];
                        drop(value);
                        if turn == 0 {
                            thread::yield_now();
                        }
                    }
                });
            }
        });
    }
}

#[test]
fn writers_of_all_kinds_lose_no_step() {
    for lock in locks(&0) {
        let lock = &lock;
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(move || {
                    for turn in 0..TURNS {
                        let mut value = match turn % 3 {
                            0 => Some(lock.write()),
                            1 => lock.try_write(),
                            _ => lock.try_write_for(Duration::from_micros(5)),
                        };
                        let Some(value) = &mut value else { continue };
                        **value += 1;
                    }
                });
            }
            scope.spawn(move || {
                for turn in 0..TURNS {
                    let before = if turn % 2 == 0 {
                        *lock.read()
                    } else {
                        lock.try_read_for(Duration::from_micros(5))
                            .map_or(0, |value| *value)
                    };
                    assert!(before <= *lock.read());
                }
            });
        });
        let done = *lock.read();
        assert!(done >= 2 * TURNS.div_ceil(3) && done <= 2 * TURNS);
    }
}

#[test]
fn a_writer_turns_the_bias_off_and_a_reader_on_again() {
    let lock = DomainLock::new(());
    assert!(is_biased(&lock));
    drop(lock.read());
    assert!(is_biased(&lock));
    drop(lock.write());
    assert!(!is_biased(&lock));
    // Not before it pays.
    lock.bias_from.store(u64::MAX, Ordering::Relaxed);
    drop(lock.read());
    assert!(!is_biased(&lock));
    lock.bias_from.store(0, Ordering::Relaxed);
    drop(lock.read());
    assert!(is_biased(&lock));
    // A try that fails need not pay.
    let reader = lock.read();
    elsewhere(|| assert!(lock.try_write().is_none()));
    drop(reader);
    drop(lock.read());
    assert!(is_biased(&lock));
}

#[test]
fn the_bias_comes_back_after_a_multiple_of_what_it_took() {
    let lock = DomainLock::new(());
    drop(lock.write());
    until(|| {
        drop(lock.read());
        is_biased(&lock)
    });
}

#[test]
fn a_writer_that_waits_goes_before_readers_that_come() {
    for lock in [DomainLock::new(0), without_bias(0)] {
        let reader = lock.read();
        thread::scope(|scope| {
            let writer = scope.spawn(|| *lock.write() += 1);
            // From some moment on nobody comes in any more.
            until(|| lock.try_read().is_none());
            let late = scope.spawn(|| *lock.read());
            until(|| lock.queue.waiting_readers() == 1);
            drop(reader);
            writer.join().expect("it does not panic");
            assert_eq!(late.join().expect("it does not panic"), 1);
        });
    }
}

#[test]
fn a_reader_waits_for_one_writer_not_for_all() {
    let lock = without_bias(0);
    let mut writer = lock.write();
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let value = lock.read();
            // The other writer, which waited too, comes after.
            until(|| lock.queue.waiting_writers() == 1);
            *value
        });
        let next = scope.spawn(|| *lock.write() += 1);
        until(|| lock.queue.waiting_readers() == 1 && lock.queue.waiting_writers() == 1);
        *writer += 1;
        drop(writer);
        assert_eq!(reader.join().expect("it does not panic"), 1);
        next.join().expect("it does not panic");
    });
    assert_eq!(lock.into_inner(), 2);
}

#[test]
fn timed_waits_end_without_the_lock() {
    for lock in [DomainLock::new(()), without_bias(())] {
        let short = Duration::from_millis(1);
        let reader = lock.read();
        elsewhere(|| {
            assert!(lock.try_write_for(Duration::ZERO).is_none());
            assert!(lock.try_write_for(short).is_none());
            assert!(lock.try_read_for(Duration::ZERO).is_some());
        });
        drop(reader);
        let writer = lock.write();
        elsewhere(|| {
            assert!(lock.try_read_for(Duration::ZERO).is_none());
            assert!(lock.try_read_for(short).is_none());
            assert!(lock.try_write_for(short).is_none());
        });
        drop(writer);
        // A time that no clock reaches is no limit.
        assert!(lock.try_read_for(Duration::MAX).is_some());
        assert!(lock.try_write_for(Duration::MAX).is_some());
    }
}

#[test]
fn readers_go_on_when_the_writer_before_them_gives_up() {
    let lock = without_bias(());
    let has_given_up = AtomicBool::new(false);
    let reader = lock.read();
    thread::scope(|scope| {
        scope.spawn(|| {
            assert!(lock.try_write_for(Duration::from_millis(20)).is_none());
            has_given_up.store(true, Ordering::Relaxed);
        });
        until(|| lock.queue.waiting_writers() == 1 || has_given_up.load(Ordering::Relaxed));
        // The first reader stays.
        elsewhere(|| drop(lock.read()));
    });
    drop(reader);
}

#[test]
fn a_downgraded_writer_lets_readers_in_and_writers_not() {
    for lock in [DomainLock::new(0), without_bias(0)] {
        let mut writer = lock.write();
        *writer = 1;
        thread::scope(|scope| {
            let late = scope.spawn(|| *lock.read());
            until(|| lock.queue.waiting_readers() == 1);
            let reader = writer.downgrade();
            assert_eq!(late.join().expect("it does not panic"), 1);
            elsewhere(|| assert!(lock.try_write().is_none()));
            assert_eq!(*reader, 1);
            drop(reader);
        });
        assert!(lock.try_write().is_some());
    }
}

/// The slot stays taken for ever, after its thread too; other locks go round it.
#[test]
fn a_forgotten_guard_keeps_its_lock_only() {
    let forgotten = DomainLock::with_class(&OTHER, ());
    // All that may stand in the same slots.
    let mut others: Vec<_> = (0..64).map(|_| DomainLock::new(0)).collect();
    for _ in 0..3 {
        elsewhere(|| {
            core::mem::forget(forgotten.read());
            for other in &others {
                assert_eq!(*other.read(), 0);
                elsewhere(|| assert_eq!(*other.read(), 0));
            }
        });
    }
    for other in &mut others {
        *other.write() += 1;
        elsewhere(|| assert_eq!(*other.read(), 1));
    }
    assert!(forgotten.try_write().is_none());
    assert!(forgotten.try_write_for(Duration::from_millis(1)).is_none());
    assert!(forgotten.try_read().is_some());
}

#[test]
fn a_thread_reads_more_locks_than_it_has_slots() {
    let locks: Vec<_> = (0..64)
        .map(|_| DomainLock::with_class(&OTHER, ()))
        .collect();
    let guards: Vec<_> = locks.iter().filter_map(DomainLock::try_read).collect();
    assert_eq!(guards.len(), locks.len());
    let in_slots = guards.iter().filter(|guard| guard.shared.slot.is_some());
    assert!((1..=16).contains(&in_slots.count()));
    elsewhere(|| assert!(locks.iter().all(|lock| lock.try_write().is_none())));
    drop(guards);
    elsewhere(|| assert!(locks.iter().all(|lock| lock.try_write().is_some())));
}

/// The guard goes after its thread has given its number back.
#[test]
fn a_guard_may_outlive_its_thread_index() {
    static LOCK: LazyLock<DomainLock<u32>> = LazyLock::new(|| DomainLock::new(0));
    thread_local! {
        static GUARD: RefCell<Option<ReadGuard<'static, u32>>> = const { RefCell::new(None) };
    }
    for turn in 0..10 {
        elsewhere(|| {
            // What is made first is dropped last: here the thread's number, there the guard.
            let early = (turn % 2 == 0).then(|| LOCK.read());
            GUARD.with(|guard| *guard.borrow_mut() = early.or_else(|| Some(LOCK.read())));
        });
        *LOCK.write() += 1;
    }
    assert_eq!(*LOCK.read(), 10);
}

#[test]
#[cfg_attr(miri, ignore = "hundreds of threads")]
fn threads_beyond_the_table_take_the_lock_too() {
    let lock = DomainLock::new(());
    let count = MAX_THREADS + 8;
    let meeting = Meeting::new(count);
    let in_slots = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..count {
            scope.spawn(|| {
                let guard = lock.read();
                let is_in_slot = guard.shared.slot.is_some();
                in_slots.fetch_add(usize::from(is_in_slot), Ordering::Relaxed);
                meeting.wait();
                assert!(lock.try_write().is_none());
                meeting.wait();
            });
        }
    });
    let in_slots = in_slots.into_inner();
    assert!(in_slots > 0 && in_slots <= MAX_THREADS, "{in_slots}");
    assert!(lock.try_write().is_some());
}

#[test]
fn a_panic_inside_unlocks_and_poisons_nothing() {
    let lock = DomainLock::new(0);
    let result = catch_unwind(AssertUnwindSafe(|| {
        *lock.write() = 1;
        let _value = lock.read();
        panic!("inside");
    }));
    assert!(result.is_err());
    assert_eq!(lock.try_write().map(|value| *value), Some(1));
    let result = catch_unwind(AssertUnwindSafe(|| {
        let mut value = lock.write();
        *value = 2;
        panic!("inside");
    }));
    assert!(result.is_err());
    assert_eq!(*lock.read(), 2);
}

#[test]
fn a_lock_is_small() {
    assert!(size_of::<DomainLock<()>>() <= 128);
}

/// Compiles only while the guards stay on their threads.
#[test]
fn guards_stay_on_their_threads() {
    trait Ambiguous<A> {
        fn check() {}
    }
    struct IfSend;
    impl<T: ?Sized> Ambiguous<()> for T {}
    impl<T: ?Sized + Send> Ambiguous<IfSend> for T {}
    <ReadGuard<'static, ()> as Ambiguous<_>>::check();
    <WriteGuard<'static, ()> as Ambiguous<_>>::check();
    <crate::sync::lockdep::Held as Ambiguous<_>>::check();
}

/// Store, barrier, load on both sides, over and over: some barrier is needed on any machine with a
/// store buffer, and each of ours suffices.
#[test]
#[cfg_attr(miri, ignore = "it looks for what the processor does")]
fn litmus_one_of_two_stores_is_seen() {
    const ROUNDS: usize = 10_000;
    let barriers = [Barrier::Symmetric, Barrier::best()];
    for barrier in barriers {
        let shared = Arc::new((
            AtomicUsize::new(0),
            AtomicUsize::new(0),
            AtomicBool::new(true),
            AtomicBool::new(false),
        ));
        let reader = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                let (round, slot, flag, was_on) = &*shared;
                for turn in 1..=ROUNDS {
                    until_spun(|| round.load(Ordering::Acquire) == 2 * turn - 1);
                    for _ in 0..turn % 64 {
                        core::hint::spin_loop();
                    }
                    let is_on = barrier.store_then_load(slot, 1, flag);
                    was_on.store(is_on, Ordering::Relaxed);
                    round.store(2 * turn, Ordering::Release);
                }
            })
        };
        let (round, slot, flag, was_on) = &*shared;
        for turn in 1..=ROUNDS {
            slot.store(0, Ordering::Relaxed);
            flag.store(true, Ordering::Relaxed);
            round.store(2 * turn - 1, Ordering::Release);
            for _ in 0..turn / 64 % 64 {
                core::hint::spin_loop();
            }
            flag.store(false, Ordering::Relaxed);
            barrier.between_store_and_loads();
            let is_empty = slot.load(Ordering::Acquire) == 0;
            until_spun(|| round.load(Ordering::Acquire) == 2 * turn);
            let missed_both = is_empty && was_on.load(Ordering::Relaxed);
            assert!(!missed_both, "{barrier:?}, round {turn}");
        }
        reader.join().expect("it does not panic");
    }
}

/// Waits with both threads on their processors as long as that may help.
fn until_spun(mut is_true: impl FnMut() -> bool) {
    let mut turn = 0_u32;
    while !is_true() {
        turn += 1;
        if turn.is_multiple_of(1 << 12) {
            thread::yield_now();
        }
        core::hint::spin_loop();
    }
}
