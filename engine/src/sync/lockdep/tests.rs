//! Every kind of mistake is reported the first time, and nothing else is.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;
use std::time::Duration;

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::sync::lockdep::{Class, assert_none_held};
use crate::sync::mutex::Mutex;
use crate::sync::{ACCESS_UNMAP, CLAIMS, DOMAIN, DomainLock, EPOCH, QUARANTINE, SYNC, TABLE_POOL};

/// Returns what `act` is reported for, with the numbers of the lines of this file.
fn report(act: impl FnOnce()) -> String {
    let payload = catch_unwind(AssertUnwindSafe(act)).expect_err("it is a mistake");
    let report = payload.downcast_ref::<String>().expect("reports are text");
    report.replace(concat!(file!(), ":"), "line ")
}

fn locks<const N: usize>(class: &'static Class) -> [Mutex<()>; N] {
    core::array::from_fn(|_| Mutex::new(class, ()))
}

#[test]
fn the_other_order_is_reported_the_first_time_with_all_sites() {
    static A: Class = Class::unranked("a");
    static B: Class = Class::unranked("b");
    // Different locks of the classes: no deadlock could come of it.
    let [a, other_a] = locks(&A);
    let [b, other_b] = locks(&B);
    {
        let _a = a.lock();
        let _b = b.lock();
    }
    let line = line!() - 2;
    let report = report(|| {
        let _b = other_b.lock();
        let _a = other_a.lock();
    });
    let expected = [
        format!("line {}:26 takes \"a\" under \"b\"", line + 5),
        format!("held since line {}:26,", line + 4),
        format!("line {line}:20 took \"b\" under \"a\""),
        format!("held since line {}:20", line - 1),
    ];
    for part in expected {
        assert!(report.contains(&part), "{part} in {report}");
    }
    // The report has left everything as it was.
    assert_none_held();
    let _a = other_a.lock();
    let _b = other_b.lock();
}

#[test]
fn a_circle_of_three_is_reported_with_every_step() {
    static CLASSES: [Class; 3] = [
        Class::unranked("first"),
        Class::unranked("second"),
        Class::unranked("third"),
    ];
    let step = |from: usize, to: usize| {
        let _from = CLASSES[from].holding();
        let _to = CLASSES[to].holding();
    };
    step(0, 1);
    // On another thread, as orders are the program's.
    thread::scope(|scope| {
        scope.spawn(|| step(1, 2));
    });
    let report = report(|| step(2, 0));
    for part in [
        "takes \"first\" under \"third\"",
        "took \"second\" under \"first\"",
        "took \"third\" under \"second\"",
    ] {
        assert!(report.contains(part), "{part} in {report}");
    }
    step(0, 2);
}

#[test]
fn a_lock_under_a_higher_rank_is_reported() {
    let [outer] = locks::<1>(&QUARANTINE);
    let [inner] = locks::<1>(&TABLE_POOL);
    let report = report(|| {
        let _inner = inner.lock();
        let _outer = outer.lock();
    });
    let part = "takes \"quarantine\" (rank 1500) under \"table pool\" (rank 1900)";
    assert!(report.contains(part), "{report}");
    let _outer = outer.lock();
    let _inner = inner.lock();
}

#[test]
fn the_same_lock_again_is_reported_also_if_shared() {
    let [lock] = locks::<1>(&QUARANTINE);
    let part = "takes the lock of \"quarantine\" (rank 1500) that this thread holds since line";
    let text = report(|| {
        let _first = lock.lock();
        let _second = lock.lock();
    });
    assert!(text.contains(part), "{text}");

    let lock = DomainLock::new(());
    let part = "takes the lock of \"domain\" (rank 800) that this thread holds since line";
    let mistakes: [&dyn Fn(); 6] = [
        &|| drop((lock.read(), lock.read())),
        &|| drop((lock.read(), lock.write())),
        &|| drop((lock.write(), lock.read())),
        &|| drop((lock.write().downgrade(), lock.read())),
        &|| drop((lock.try_read(), lock.read())),
        &|| drop((lock.try_write(), lock.try_read_for(Duration::ZERO))),
    ];
    for mistake in mistakes {
        let text = report(mistake);
        assert!(text.contains(part), "{text}");
        assert!(lock.try_write().is_some());
    }
}

#[test]
fn locks_of_a_class_nest_with_rising_numbers_only() {
    let stripes = locks::<3>(&CLAIMS);
    let held: Vec<_> = (0..3).map(|at| stripes[at].lock_nested(at)).collect();
    drop(held);
    for (first, second) in [(1, 0), (2, 2)] {
        let text = report(|| {
            let _first = stripes[0].lock_nested(first);
            let _second = stripes[1].lock_nested(second);
        });
        let part = format!("takes number {second} of \"claims\" (rank 1300) under number {first}");
        assert!(text.contains(&part), "{text}");
    }
    let text = report(|| {
        let _first = stripes[0].lock_nested(0);
        let _second = stripes[1].lock();
    });
    assert!(text.contains("takes a second lock of \"claims\""), "{text}");
    let [first, second] = locks(&QUARANTINE);
    let text = report(|| {
        let _first = first.lock_nested(0);
        let _second = second.lock_nested(1);
    });
    assert!(text.contains("has no order by index"), "{text}");
    let text = report(|| {
        let _first = first.lock();
        let _second = second.lock();
    });
    assert!(text.contains("takes a second lock of"), "{text}");
}

#[test]
fn a_callback_that_waits_for_its_own_end_is_reported() {
    let destroy = || drop(ACCESS_UNMAP.waiting());
    destroy();
    let text = report(|| {
        let _running = ACCESS_UNMAP.running();
        destroy();
    });
    let part = "waits for the end of \"access_unmap\" (rank 300), inside which it runs since line";
    assert!(text.contains(part), "{text}");
    let text = report(|| {
        let _waiting = ACCESS_UNMAP.waiting();
        destroy();
    });
    assert!(text.contains("inside a wait for it"), "{text}");
}

/// The callback takes the driver's lock; closing holds the lock and waits for callbacks.
#[test]
fn a_driver_lock_on_both_sides_of_a_callback_is_reported_on_the_first_run() {
    static DRIVER: Class = Class::unranked("driver");
    let unmap = || {
        let _running = ACCESS_UNMAP.running();
        let _held = DRIVER.holding();
    };
    let close = || {
        let _held = DRIVER.holding();
        let _waiting = ACCESS_UNMAP.waiting();
    };
    unmap();
    let text = report(close);
    for part in [
        "takes \"access_unmap\" (rank 300) under \"driver\"",
        "took \"driver\" under \"access_unmap\" (rank 300)",
    ] {
        assert!(text.contains(part), "{text}");
    }
    unmap();
}

/// As above, in the other sequence and through a lock of the engine.
#[test]
fn a_wait_under_a_lock_forbids_the_lock_inside() {
    static DRIVER: Class = Class::unranked("driver of another test");
    let lock = DomainLock::new(());
    {
        let _held = DRIVER.holding();
        let _waiting = SYNC.waiting();
    }
    let text = report(|| {
        let _running = SYNC.running();
        let _held = DRIVER.holding();
    });
    assert!(
        text.contains("took \"sync\" (rank 900) under \"driver"),
        "{text}"
    );

    let [inner] = locks::<1>(&CLAIMS);
    {
        let _domains = lock.read();
        let _waiting = SYNC.waiting();
    }
    let text = report(|| {
        let _inner = inner.lock();
        let _waiting = SYNC.waiting();
    });
    assert!(
        text.contains("takes \"sync\" (rank 900) under \"claims\""),
        "{text}"
    );
    let text = report(|| {
        let _running = SYNC.running();
        let _domains = lock.write();
    });
    assert!(
        text.contains("takes \"domain\" (rank 800) under \"sync\""),
        "{text}"
    );
}

#[test]
fn to_run_in_something_is_no_mistake() {
    let [pool] = locks::<1>(&TABLE_POOL);
    let _pool = pool.lock();
    let _outer = EPOCH.running();
    let _again = EPOCH.running();
    let _unmap = ACCESS_UNMAP.running();
    let _sync = SYNC.running();
}

/// Nobody waits for a lock that it only tries, but others may wait for what it got.
#[test]
fn a_try_gives_no_order_towards_a_lock_but_from_it() {
    static OWN: Class = Class::unranked("own");
    let domains = DomainLock::new(());
    let [pool] = locks::<1>(&TABLE_POOL);
    {
        let _inner = pool.lock();
        let _tried = domains.try_read().expect("it is free");
        let _tried = domains.try_read().expect("readers share it");
    }
    {
        let _tried = domains.try_write().expect("it is free");
        let _own = OWN.holding();
    }
    let text = report(|| {
        let _own = OWN.holding();
        let _domains = domains.read();
    });
    assert!(text.contains("took \"own\" under \"domain\""), "{text}");
}

/// Also those under something that gave no order itself.
#[test]
fn all_that_is_held_stands_before_what_is_taken() {
    static OUTER: Class = Class::unranked("outer");
    static MIDDLE: Class = Class::unranked("middle");
    static INNER: Class = Class::unranked("inner");
    {
        let _outer = OUTER.holding();
        let _middle = MIDDLE.running();
        let _inner = INNER.holding();
    }
    for (class, part) in [
        (&OUTER, "took \"inner\" under \"outer\""),
        (&MIDDLE, "took \"inner\" under \"middle\""),
    ] {
        let text = report(|| {
            let _inner = INNER.holding();
            let _class = class.waiting();
        });
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn locks_are_released_in_any_order() {
    static A: Class = Class::unranked("a");
    static B: Class = Class::unranked("b");
    static C: Class = Class::unranked("c");
    let a = A.holding();
    let b = B.holding();
    drop(a);
    assert!(catch_unwind(|| A.assert_held()).is_err());
    B.assert_held();
    drop(b);
    assert!(catch_unwind(|| B.assert_held()).is_err());
    // What is not held any more stands before nothing.
    let _c = C.holding();
    let _a = A.holding();
}

#[test]
fn strangers_are_called_without_locks_of_the_engine() {
    static OWN: Class = Class::unranked("own");
    assert_none_held();
    {
        let _own = OWN.holding();
        let _running = EPOCH.running();
        assert_none_held();
    }
    let lock = DomainLock::new(());
    let text = report(|| {
        let _domains = lock.read();
        DOMAIN.assert_held();
        assert_none_held();
    });
    assert!(
        text.contains("\"domain\" (rank 800) is held since line"),
        "{text}"
    );
    let [stripe] = locks::<1>(&CLAIMS);
    let text = report(|| {
        let _stripe = stripe.lock_nested(0);
        assert_none_held();
    });
    assert!(text.contains("\"claims\" (rank 1300) is held"), "{text}");
    let text = report(|| DOMAIN.assert_held());
    assert!(text.contains("\"domain\" (rank 800) is not held"), "{text}");
    // Another thread's locks are its own.
    let _domains = lock.read();
    thread::scope(|scope| {
        scope.spawn(assert_none_held);
    });
}

/// A second panic would end the program.
#[test]
fn a_mistake_while_a_panic_unwinds_is_not_reported() {
    struct TakesOnDrop<'a>(&'a Mutex<()>);
    impl Drop for TakesOnDrop<'_> {
        fn drop(&mut self) {
            drop(self.0.lock());
        }
    }
    let [outer] = locks::<1>(&QUARANTINE);
    let [inner] = locks::<1>(&TABLE_POOL);
    let result = catch_unwind(AssertUnwindSafe(|| {
        let _inner = inner.lock();
        let _takes = TakesOnDrop(&outer);
        panic!("first");
    }));
    let payload = result.expect_err("it panics");
    assert_eq!(payload.downcast_ref::<&str>(), Some(&"first"));
    assert_none_held();
}

#[test]
fn a_thread_that_ends_may_still_lock() {
    struct TakesOnDrop(Mutex<()>);
    impl Drop for TakesOnDrop {
        fn drop(&mut self) {
            drop(self.0.lock());
        }
    }
    thread_local! {
        static LAST: TakesOnDrop = const { TakesOnDrop(Mutex::new(&TABLE_POOL, ())) };
    }
    let ended = thread::spawn(|| {
        LAST.with(|last| drop(last.0.lock()));
    });
    ended.join().expect("it does not panic");
}
