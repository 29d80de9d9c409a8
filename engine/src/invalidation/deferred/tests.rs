use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cell::RefCell;
use std::panic;
use std::rc::Rc;
use std::thread;

use iopt_formats::{Iova, IovaRange, PageSize, PageSizes};

use super::*;
use crate::invalidation::{Kind, TableId};
use crate::reclaim::Operation;
use crate::sync::lockdep;
use crate::sync::unmodelled::{AtomicBool, AtomicUsize};

const SMALL: Window = Window {
    queue_count: 1,
    capacity: 4,
    age: Duration::MAX,
};

/// Counts what it is told, and refuses it on demand.
#[derive(Default)]
struct Hardware {
    flush_count: AtomicUsize,
    fails: AtomicBool,
}

impl Hardware {
    fn flush_count(&self) -> usize {
        self.flush_count.load(Ordering::Relaxed)
    }

    fn set_failing(&self, fails: bool) {
        self.fails.store(fails, Ordering::Relaxed);
    }
}

impl Invalidate for Hardware {
    type Ticket = ();

    fn submit(&self, _: &Changes) -> Result<(), SyncError> {
        self.flush_count.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn wait(&self, (): ()) -> Result<(), SyncError> {
        if self.fails.load(Ordering::Relaxed) {
            Err(SyncError::TimedOut)
        } else {
            Ok(())
        }
    }
}

fn page(number: u64) -> IovaRange {
    IovaRange::with_len(Iova::new(number << 12), 0x1000).expect("a page")
}

fn removal(number: u64) -> Gather {
    let sizes = PageSizes::from_bits(PageSize::KIB_4.bytes());
    let changes = Changes::leaves(page(number), sizes, Kind::Removed);
    Gather::new(changes, TableId::next(), Operation::NONE)
}

/// The numbers of the pages that were released, with the proof that covers them.
type Released = Rc<RefCell<Vec<u64>>>;

struct Note {
    number: u64,
    released: Released,
}

impl Release for Note {
    fn release(self, flushed: Flushed) {
        lockdep::assert_none_held();
        assert!(flushed.covers(page(self.number)), "the proof is its own");
        self.released.borrow_mut().push(self.number);
    }
}

struct Scene {
    deferred: Deferred<Rc<Hardware>, Note>,
    hardware: Rc<Hardware>,
    released: Released,
}

impl Invalidate for Rc<Hardware> {
    type Ticket = ();

    fn submit(&self, changes: &Changes) -> Result<(), SyncError> {
        (**self).submit(changes)
    }

    fn wait(&self, ticket: ()) -> Result<(), SyncError> {
        (**self).wait(ticket)
    }
}

impl Scene {
    fn new(window: Window) -> Self {
        let hardware = Rc::new(Hardware::default());
        Self {
            deferred: Deferred::new(Rc::clone(&hardware), window),
            hardware,
            released: Released::default(),
        }
    }

    fn defer(&self, number: u64) -> Result<(), NotDeferred<Note>> {
        let released = Rc::clone(&self.released);
        let note = Note { number, released };
        self.deferred.defer(removal(number), note)
    }

    fn released(&self) -> Vec<u64> {
        self.released.borrow().clone()
    }
}

#[test]
fn nothing_is_released_before_its_flush() {
    let scene = Scene::new(SMALL);
    for number in 0..3 {
        scene.defer(number).expect("there is room");
    }
    assert_eq!(scene.released(), []);
    assert_eq!(scene.deferred.waiting_count(), 3);
    scene.deferred.flush().expect("the hardware works");
    assert_eq!(scene.released(), [0, 1, 2]);
    assert_eq!(scene.hardware.flush_count(), 1);
    assert_eq!(scene.deferred.waiting_count(), 0);
}

#[test]
fn a_full_queue_costs_one_flush() {
    let scene = Scene::new(SMALL);
    for number in 0..8 {
        scene.defer(number).expect("there is room");
    }
    assert_eq!(scene.hardware.flush_count(), 2);
    assert_eq!(scene.released(), [0, 1, 2, 3, 4, 5, 6, 7]);
}

#[test]
fn what_is_due_is_flushed_and_nothing_else() {
    let window = Window {
        age: Duration::ZERO,
        ..SMALL
    };
    let scene = Scene::new(window);
    scene.defer(7).expect("there is room");
    assert_eq!(scene.released(), [7]);

    let scene = Scene::new(SMALL);
    scene.defer(7).expect("there is room");
    scene.deferred.flush_due().expect("nothing is sent");
    assert_eq!(scene.hardware.flush_count(), 0);
    assert_eq!(scene.released(), []);
}

#[test]
fn what_changed_nothing_is_released_at_once() {
    let scene = Scene::new(SMALL);
    let gather = Gather::new(
        Changes::none(Kind::Removed),
        TableId::next(),
        Operation::NONE,
    );
    let is_released = Rc::new(RefCell::new(false));
    let flag = Rc::clone(&is_released);
    let deferred = Deferred::new(Rc::clone(&scene.hardware), SMALL);
    let defer = deferred.defer(gather, move |_: Flushed| *flag.borrow_mut() = true);
    defer.expect("nothing is queued");
    assert!(*is_released.borrow());
}

#[test]
fn a_failed_flush_releases_nothing_and_loses_nothing() {
    let scene = Scene::new(SMALL);
    scene.hardware.set_failing(true);
    for number in 0..8 {
        scene.defer(number).expect("there is room for it");
    }
    let refused = scene.defer(8).expect_err("there is no room");
    assert_eq!(refused.error, SyncError::TimedOut);
    assert_eq!(refused.gather.range(), Some(page(8)));
    assert_eq!(refused.release.number, 8);
    assert_eq!(scene.deferred.flush(), Err(SyncError::TimedOut));
    assert_eq!(scene.deferred.waiting_count(), 8);
    assert_eq!(scene.released(), []);

    scene.hardware.set_failing(false);
    scene.deferred.flush().expect("the hardware works again");
    assert_eq!(scene.released(), [0, 1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(scene.deferred.waiting_count(), 0);
}

#[test]
fn what_failed_is_due_until_it_is_flushed() {
    let scene = Scene::new(SMALL);
    scene.hardware.set_failing(true);
    for number in 0..4 {
        scene.defer(number).expect("there is room for it");
    }
    assert_eq!(scene.hardware.flush_count(), 1);
    assert_eq!(scene.deferred.flush_due(), Err(SyncError::TimedOut));
    assert_eq!(scene.hardware.flush_count(), 2);
    // Who defers does not wait for dead hardware each time.
    scene.defer(4).expect("there is room for it");
    assert_eq!(scene.hardware.flush_count(), 2);

    scene.hardware.set_failing(false);
    scene
        .deferred
        .flush_due()
        .expect("the hardware works again");
    assert_eq!(scene.released(), [0, 1, 2, 3, 4]);
    scene.deferred.flush_due().expect("nothing is sent");
    assert_eq!(scene.hardware.flush_count(), 3);
}

#[test]
fn hardware_that_fails_is_asked_once_for_all_queues() {
    let window = Window {
        queue_count: 3,
        ..SMALL
    };
    let scene = Scene::new(window);
    let push = |number: usize| {
        let released = Rc::clone(&scene.released);
        let number = number as u64;
        let queue = &scene.deferred.queues[number as usize % 3];
        let note = Note { number, released };
        assert!(scene.deferred.push(queue, removal(number), note).is_ok());
    };
    (0..3).for_each(push);
    scene.hardware.set_failing(true);
    assert_eq!(scene.deferred.flush(), Err(SyncError::TimedOut));
    assert_eq!(scene.hardware.flush_count(), 1);
    assert_eq!(scene.deferred.waiting_count(), 3);

    // The last queue is covered by a flush, and the first gets something new that no flush covers.
    scene.hardware.set_failing(false);
    let first = &scene.deferred.queues[1];
    scene.deferred.fly(first, |_| true).expect("it works");
    push(3);
    scene.hardware.set_failing(true);
    assert_eq!(scene.deferred.flush(), Err(SyncError::TimedOut));
    assert_eq!(scene.released(), [1, 0, 2]);
    assert_eq!(scene.hardware.flush_count(), 3);
}

#[test]
fn a_release_that_panics_keeps_nothing_else_waiting() {
    struct Fragile {
        panics: bool,
        count: Rc<RefCell<usize>>,
    }
    impl Release for Fragile {
        fn release(self, _: Flushed) {
            assert!(!self.panics, "this release panics");
            *self.count.borrow_mut() += 1;
        }
    }
    let count = Rc::new(RefCell::new(0));
    let hardware = Hardware::default();
    let deferred = Deferred::new(&hardware, SMALL);
    for number in 0..3 {
        let release = Fragile {
            panics: number == 1,
            count: Rc::clone(&count),
        };
        let taken = deferred.defer(removal(number), release);
        taken.expect("there is room");
    }
    let flush = panic::AssertUnwindSafe(|| deferred.flush());
    assert!(panic::catch_unwind(flush).is_err());
    assert_eq!((*count.borrow(), deferred.waiting_count()), (1, 1));
    deferred.flush_due().expect("nothing is sent");
    assert_eq!((*count.borrow(), deferred.waiting_count()), (2, 0));
    assert_eq!(hardware.flush_count(), 1);
}

#[test]
fn dropping_flushes() {
    let scene = Scene::new(SMALL);
    scene.defer(3).expect("there is room");
    drop(scene.deferred);
    assert_eq!(*scene.released.borrow(), [3]);
}

#[test]
fn one_flush_serves_the_queues_of_all_threads() {
    let window = Window {
        queue_count: 64,
        ..SMALL
    };
    let hardware = Arc::new(Hardware::default());
    let deferred = Deferred::new(&*hardware, window);
    let count = Arc::new(AtomicUsize::new(0));
    let release = || {
        let count = Arc::clone(&count);
        move |_: Flushed| {
            count.fetch_add(1, Ordering::Relaxed);
        }
    };
    deferred
        .defer(removal(0), release())
        .expect("there is room");
    thread::scope(|scope| {
        scope.spawn(|| {
            for number in 1..=4 {
                deferred.defer(removal(number), release()).expect("room");
            }
        });
    });
    assert_eq!(hardware.flush_count(), 1);
    deferred.flush_due().expect("nothing is sent");
    assert_eq!(hardware.flush_count(), 1, "the flush covered both queues");
    assert_eq!(count.load(Ordering::Relaxed), 5);
}

/// Ends only if the timer does its work.
#[test]
fn a_timer_flushes_for_threads_that_are_idle() {
    let window = Window {
        age: Duration::from_millis(1),
        ..SMALL
    };
    let deferred = Arc::new(Deferred::new(Hardware::default(), window));
    let is_released = Arc::new(AtomicBool::new(false));
    let timer = Timer::start(Arc::clone(&deferred)).expect("a thread");
    let flag = Arc::clone(&is_released);
    let release = move |_: Flushed| flag.store(true, Ordering::Relaxed);
    deferred.defer(removal(1), release).expect("there is room");
    while !is_released.load(Ordering::Relaxed) {
        thread::yield_now();
    }
    drop(timer);
    assert_eq!(Arc::strong_count(&deferred), 1, "the thread has ended");
}
