//! Software that is asked to let go: what it may do then, and what is noticed.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::thread;

use iopt::ioas::{
    Access, AccessError, AccessHandle, AccessOps, DestroyError, Ioas, LetGoError, UnmapError,
};
use iopt::sync::{Class, lockdep};
use iopt_formats::IovaRange;

use crate::fixture::{
    BASE, Deaf, Driver, Fixture, PAGE, PAGE_COUNT, Runs, at, memory, range, slice,
};

fn fixture(domain_count: usize) -> Fixture {
    Fixture::new(memory(PAGE_COUNT, Runs::Single), domain_count)
}

/// Calls a function, and lets go of one range if that says so.
struct Calls<F>(F);

impl<F: Fn(&AccessHandle, IovaRange) + Send + Sync> AccessOps for Calls<F> {
    fn unmap(&self, access: &AccessHandle, range: IovaRange) {
        (self.0)(access, range);
    }
}

/// The orders are found with one thread and the first time, where a deadlock needs two and luck.
#[test]
fn a_lock_of_the_callback_held_over_the_destruction_is_reported_at_once() {
    static DRIVER: Class = Class::unranked("driver lock of the kernel matrix");
    let fixture = fixture(1);
    fixture.map(BASE, 0, PAGE);
    let page = range(BASE, PAGE);
    let access = fixture.ioas.access(Calls(move |access: &AccessHandle, _| {
        let _held = DRIVER.holding();
        access.unpin(page).expect("it is pinned");
    }));
    access.pin(page, true).expect("it is mapped");
    fixture.unmap(page).expect("the driver lets go");
    let destroyed = catch_unwind(AssertUnwindSafe(|| {
        let _held = DRIVER.holding();
        access.destroy().is_ok()
    }));
    assert_eq!(destroyed.is_err(), lockdep::IS_CHECKED);
}

#[test]
fn software_that_never_lets_go_is_given_up_after_a_hundred_calls() {
    let fixture = fixture(1);
    fixture.map(BASE, 0, 2 * PAGE);
    fixture.map(BASE + 2 * PAGE, 2 * PAGE, PAGE);
    let call_count = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&call_count);
    let access = fixture.ioas.access(Calls(move |_: &AccessHandle, _| {
        count.fetch_add(1, Ordering::Relaxed);
    }));
    let page = range(BASE + PAGE, PAGE);
    access.pin(page, true).expect("it is mapped");
    let stuck = fixture.ioas.unmap_all();
    assert!(matches!(stuck, Err(UnmapError::Deadlock { area }) if area == range(BASE, 2 * PAGE)));
    assert_eq!(call_count.load(Ordering::Relaxed), 100);
    // All or none: nothing has happened to the other area, either, and both are as usable as before.
    assert_eq!(fixture.ioas.area_count(), 2);
    fixture.check_map(range(BASE, 3 * PAGE), 0);
    access.pin(page, false).expect("it is mapped");
    access.unpin(page).expect("it is pinned");

    // Neither does it leave the space; it is bound to it as before.
    assert_eq!(access.detach(), Err(LetGoError));
    assert_eq!(call_count.load(Ordering::Relaxed), 200);
    assert_eq!(access.pin_count(), 1);
    access.unpin(page).expect("it is pinned");
    access.detach().expect("nothing is pinned");
    assert_eq!(
        fixture.ioas.unmap_all().expect("nothing is pinned"),
        3 * PAGE
    );
    access.destroy().expect("no callback runs");
}

#[test]
fn a_callback_that_destroys_its_access_is_told_instead_of_waiting_for_itself() {
    type Own = Arc<Mutex<Option<Access>>>;
    let fixture = fixture(1);
    fixture.map(BASE, 0, PAGE);
    let page = range(BASE, PAGE);
    let (own, was_told): (Own, _) = (Own::default(), Arc::new(AtomicBool::new(false)));
    let (inside, told) = (Arc::clone(&own), Arc::clone(&was_told));
    let access = fixture.ioas.access(Calls(move |handle: &AccessHandle, _| {
        let access = inside.lock().expect("nobody panics").take();
        if let Some(access) = access {
            let refused = access.destroy();
            if let Err(DestroyError::InsideCallback { access }) = refused {
                told.store(true, Ordering::Relaxed);
                *inside.lock().expect("nobody panics") = Some(access);
            }
        }
        handle.unpin(page).expect("it is as it was");
    }));
    access.pin(page, true).expect("it is mapped");
    *own.lock().expect("nobody panics") = Some(access);
    assert_eq!(fixture.unmap(page).expect("it lets go"), PAGE);
    assert!(was_told.load(Ordering::Relaxed));
    let access = own.lock().expect("nobody panics").take();
    let access = access.expect("it came back");
    access.destroy().expect("no callback runs");
}

#[test]
fn a_callback_that_pins_again_is_refused_and_ends_the_unmap() {
    let fixture = fixture(1);
    fixture.map(BASE, 0, 4 * PAGE);
    fixture.map(BASE + 4 * PAGE, 4 * PAGE, PAGE);
    let page = range(BASE, PAGE);
    let refused_count = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&refused_count);
    let access = fixture.ioas.access(Calls(move |access: &AccessHandle, _| {
        access.unpin(page).expect("it is pinned");
        for again in [
            page,
            range(BASE + 2 * PAGE, PAGE),
            range(BASE + 3 * PAGE, 2 * PAGE),
        ] {
            let refused = access.pin(again, true);
            if matches!(refused, Err(AccessError::Hole { .. })) {
                count.fetch_add(1, Ordering::Relaxed);
            }
        }
        // What stays mapped can be used.
        let other = range(BASE + 4 * PAGE, PAGE);
        access.pin(other, true).expect("nobody unmaps it");
        access.unpin(other).expect("it is pinned");
    }));
    access.pin(page, true).expect("it is mapped");
    assert_eq!(
        fixture.unmap(range(BASE, 4 * PAGE)).expect("it ends"),
        4 * PAGE
    );
    assert_eq!(
        (refused_count.load(Ordering::Relaxed), access.pin_count()),
        (3, 0)
    );
    fixture.check_pinned(4 * PAGE, PAGE);
    access.destroy().expect("no callback runs");
}

/// One lets go at once, the other when it is told by hand: neither keeps the space, nor each other.
#[test]
fn two_who_use_one_area_leave_nothing_behind() {
    let fixture = fixture(2);
    fixture.map(BASE, 0, 4 * PAGE);
    let driver = Driver::default();
    let quick = fixture.ioas.access(driver.clone());
    let deaf = fixture.ioas.access(Deaf);
    driver.pin(&quick, range(BASE, 2 * PAGE));
    deaf.pin(range(BASE + PAGE, 2 * PAGE), true)
        .expect("it is mapped");
    let stuck = fixture.unmap(range(BASE, 4 * PAGE));
    assert!(matches!(stuck, Err(UnmapError::Deadlock { .. })));
    assert_eq!((driver.call_count(), quick.pin_count()), (1, 0));
    // Dropping one gives its pins up.
    drop(deaf);
    assert_eq!(
        fixture
            .unmap(range(BASE, 4 * PAGE))
            .expect("nobody is left"),
        4 * PAGE
    );
    assert_eq!(driver.call_count(), 1, "it had nothing pinned any more");
    fixture.check_unpinned();
    quick.destroy().expect("no callback runs");
}

/// Pins, unmaps, changes of the space and the end of the access, all at once.
#[test]
fn no_pin_is_left_whoever_is_faster() {
    const TURNS: usize = if cfg!(miri) { 3 } else { 200 };
    for turn in 0..TURNS {
        let fixture = fixture(1);
        let other = Arc::new(Ioas::new());
        let page = range(BASE, PAGE);
        fixture.map(BASE, 0, PAGE);
        let access = fixture.ioas.access(Calls(move |access: &AccessHandle, _| {
            // Whoever unpins first, all pins of it go.
            while access.unpin(page).is_ok() {}
        }));
        let start = Barrier::new(3);
        thread::scope(|scope| {
            scope.spawn(|| {
                start.wait();
                for _ in 0..20 {
                    if access.pin(page, true).is_ok() {
                        // A callback may have been here before.
                        let _ = access.unpin(page);
                    }
                }
            });
            scope.spawn(|| {
                start.wait();
                if turn % 2 == 0 {
                    access.detach().expect("the callback lets go");
                } else {
                    access.replace(&other).expect("the callback lets go");
                }
            });
            scope.spawn(|| {
                start.wait();
                assert_eq!(fixture.unmap(page).expect("the callback lets go"), PAGE);
            });
        });
        assert_eq!(access.pin_count(), 0);
        fixture.check_unpinned();
        access.destroy().expect("no callback runs");
    }
}

/// A callback runs in one thread while another ends the access: the end waits, and none runs afterwards.
#[test]
fn an_access_that_is_destroyed_is_never_called_again() {
    const TURNS: usize = if cfg!(miri) { 3 } else { 200 };
    for _ in 0..TURNS {
        let fixture = fixture(1);
        fixture.map(BASE, 0, PAGE);
        let page = range(BASE, PAGE);
        let is_over = Arc::new(AtomicBool::new(false));
        let is_late = Arc::new(AtomicBool::new(false));
        let (over, late) = (Arc::clone(&is_over), Arc::clone(&is_late));
        let access = fixture.ioas.access(Calls(move |access: &AccessHandle, _| {
            thread::yield_now();
            late.fetch_or(over.load(Ordering::SeqCst), Ordering::SeqCst);
            let _ = access.unpin(page);
        }));
        access.pin(page, true).expect("it is mapped");
        let start = Barrier::new(2);
        thread::scope(|scope| {
            scope.spawn(|| {
                start.wait();
                assert_eq!(fixture.unmap(page).expect("somebody lets go"), PAGE);
            });
            scope.spawn(|| {
                start.wait();
                access.destroy().expect("callbacks end");
                is_over.store(true, Ordering::SeqCst);
            });
        });
        assert!(!is_late.load(Ordering::SeqCst));
        fixture.check_unpinned();
    }
}

/// Two bind one access at the same time, one of them while the other waits for the callback: it is bound to
/// one space in the end, and only that one asks it for anything.
#[test]
fn a_binding_that_overtakes_another_leaves_the_access_in_one_space() {
    let fixture = fixture(0);
    fixture.map(BASE, 0, PAGE);
    let page = range(BASE, PAGE);
    let spaces = [0, 1].map(|_| {
        let ioas = Arc::new(Ioas::new());
        let mapped = ioas.map(slice(&fixture.pages, PAGE, PAGE, at(BASE)));
        mapped.expect("it is free");
        ioas
    });
    let [slow, quick] = &spaces;
    let call_count = Arc::new(AtomicUsize::new(0));
    let own: Arc<Mutex<Option<Arc<Access>>>> = Arc::default();
    let (count, inside, other) = (Arc::clone(&call_count), Arc::clone(&own), Arc::clone(quick));
    let access = Arc::new(fixture.ioas.access(Calls(move |handle: &AccessHandle, _| {
        count.fetch_add(1, Ordering::Relaxed);
        handle.unpin(page).expect("it is pinned");
        let access = inside.lock().expect("nobody panics").take();
        if let Some(access) = access {
            access.replace(&other).expect("nothing is pinned");
            access.pin(page, true).expect("it is mapped there, too");
        }
    })));
    *own.lock().expect("nobody panics") = Some(Arc::clone(&access));
    access.pin(page, true).expect("it is mapped");
    access.replace(slow).expect("the callback lets go");
    // Twice: of what it had pinned first, and of what it pinned in between.
    assert_eq!(
        (call_count.load(Ordering::Relaxed), access.pin_count()),
        (2, 0)
    );
    fixture.check_unpinned();

    access.pin(page, true).expect("it is mapped there, too");
    // Somebody else, who does not let go, pins the same address in the space that was left.
    let stranger = quick.access(Deaf);
    stranger.pin(page, true).expect("it is mapped");
    assert!(matches!(
        quick.unmap_all(),
        Err(UnmapError::Deadlock { .. })
    ));
    assert_eq!(
        call_count.load(Ordering::Relaxed),
        2,
        "that is no business of the access"
    );
    assert_eq!(access.pin_count(), 1);
    assert_eq!(slow.unmap_all().expect("the callback lets go"), PAGE);
    assert_eq!(call_count.load(Ordering::Relaxed), 3);
    stranger.destroy().expect("no callback runs");
    let access = Arc::into_inner(access).expect("nobody else has it");
    access.destroy().expect("no callback runs");
    drop(spaces);
}
