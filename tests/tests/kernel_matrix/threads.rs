//! Everything at once: whoever is faster, the ledgers agree at the end and in between.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;

use iopt::ioas::{DirtyBitmap, Forget, Holes, Ioas, Place};
use iopt_formats::{Iova, PageSize, Prot};
use iopt_tests::sink::ModelSink;

use crate::fixture::{
    BASE, Driver, Fixture, PAGE, PAGE_COUNT, Runs, at, dynamic, memory, range, slice,
};

/// Repetitions of each thread.
const TURNS: u64 = if cfg!(miri) { 3 } else { 300 };

/// Runs threads that begin at the same time.
fn together(works: &[&(dyn Fn() + Sync)]) {
    let start = Barrier::new(works.len());
    thread::scope(|scope| {
        for work in works {
            scope.spawn(|| {
                start.wait();
                work();
            });
        }
    });
}

fn fixture(domain_count: usize, runs: Runs) -> Fixture {
    Fixture::new(memory(PAGE_COUNT, runs), domain_count)
}

/// Two map the same pages at their own places, while domains come and go.
#[test]
fn maps_and_unmaps_go_on_while_domains_come_and_go() {
    for (domain_count, runs) in [(0, Runs::Single), (1, Runs::Single), (1, Runs::Huge)] {
        let fixture = fixture(domain_count, runs);
        let mapper = |place: u64| {
            for turn in 0..TURNS {
                let len = (turn % 7 + 1) * 16 * PAGE;
                let start = BASE + place * 0x100_0000;
                fixture.map(start, turn % 3 * PAGE, len);
                fixture.map(start + len, 0, PAGE);
                let bytes = fixture.unmap(range(start, len + PAGE));
                assert_eq!(bytes.expect("both are mapped"), len + PAGE);
            }
        };
        let attacher = || {
            for _ in 0..TURNS / 4 {
                let sink = fixture.attach();
                thread::yield_now();
                fixture.detach(&sink);
            }
        };
        together(&[&|| mapper(0), &|| mapper(1), &attacher, &attacher]);
    }
}

/// Unmaps of one area and of many, while the domain leaves that maps them.
#[test]
fn unmaps_and_the_domain_that_leaves_remove_each_area_once() {
    const AREA_COUNT: u64 = 400;
    for _ in 0..TURNS / 20 {
        let mut fixture = fixture(2, Runs::Single);
        let start = |place| BASE + place * 2 * PAGE;
        for place in 0..AREA_COUNT {
            fixture.map(start(place), place * PAGE, PAGE);
        }
        let leaving = fixture.sinks.remove(0);
        let one_by_one = || {
            for place in (0..AREA_COUNT / 2).rev() {
                let unmapped = fixture.unmap(range(start(place), PAGE));
                assert_eq!(unmapped.expect("it is mapped"), PAGE);
            }
        };
        let many = || {
            let half = range(start(AREA_COUNT / 2), AREA_COUNT * PAGE);
            let unmapped = fixture.ioas.unmap(half, Holes::Tolerated);
            assert_eq!(unmapped.expect("they are mapped"), AREA_COUNT / 2 * PAGE);
        };
        together(&[&one_by_one, &many, &|| fixture.detach(&leaving)]);
        fixture.check_unpinned();
    }
}

/// One area is mapped, unmapped, copied, divided, protected, pinned and read all the time.
#[test]
fn who_is_late_gets_an_error_and_nothing_is_left() {
    let fixture = fixture(2, Runs::Single);
    let other = Arc::new(Ioas::new());
    let sink = fixture.watch(ModelSink::small());
    other.attach(dynamic(&sink)).expect("nothing is mapped");
    let area = range(BASE, 32 * PAGE);
    let ioas = &fixture.ioas;
    let domain = dynamic(&fixture.sinks[0]);
    ioas.set_page_by_page(true).expect("nothing is mapped");
    ioas.set_dirty_tracking(&domain, true).expect("it can");
    let left = AtomicUsize::new(4);
    // Repeats a step until it was done often enough, or never.
    let repeat = |step: &dyn Fn(u64) -> bool| {
        let mut done_count = 0;
        for turn in 0..1000 * TURNS {
            done_count += u64::from(step(turn));
            if done_count == TURNS / 3 {
                break;
            }
        }
        left.fetch_sub(1, Ordering::Relaxed);
        assert!(cfg!(miri) || done_count == TURNS / 3, "it got through");
    };
    let mapper = || {
        while left.load(Ordering::Relaxed) > 0 {
            let _ = ioas.map(slice(&fixture.pages, 0, 32 * PAGE, at(BASE)));
            (0..20).for_each(|_| thread::yield_now());
            let _ = ioas.unmap(area, Holes::Tolerated);
        }
    };
    let copier = || {
        repeat(&|turn| {
            let part = range(BASE + turn % 8 * PAGE, 16 * PAGE);
            let copied = other.copy(ioas, part, Place::Anywhere, Prot::RW);
            if let Ok(copied) = &copied {
                other.unmap(*copied, Holes::Refused).expect("it is mapped");
            }
            copied.is_ok()
        });
    };
    let divider = || {
        repeat(&|turn| {
            let is_divided = ioas.split(Iova::new(BASE + (turn % 31 + 1) * PAGE));
            let prot = if turn % 2 == 0 { Prot::R } else { Prot::RW };
            ioas.protect(area, prot).is_ok() && is_divided.is_ok()
        });
    };
    let user = || {
        let access = ioas.access(Driver::default());
        repeat(&|turn| {
            let part = range(BASE + turn % 8 * PAGE, 8 * PAGE);
            let is_pinned = access.pin(part, false).is_ok();
            if is_pinned {
                let mut byte = [0];
                let _ = access.read(part.start(), &mut byte);
                access.unpin(part).expect("nobody else unpins it");
            }
            is_pinned
        });
        access.destroy().expect("callbacks end");
    };
    let reader = || {
        repeat(&|turn| {
            let mut bits = [0; 4];
            let mut bitmap = DirtyBitmap::new(Iova::new(BASE), PageSize::KIB_4, &mut bits);
            fixture.sinks[0].write(Iova::new(BASE + turn % 32 * PAGE));
            let read = ioas.read_dirty(&domain, area, Holes::Tolerated, Forget::Yes, &mut bitmap);
            read.expect("it is tracked");
            bitmap.count() > 0
        });
    };
    together(&[&mapper, &mapper, &copier, &divider, &user, &reader]);
    other.detach(&domain).expect_err("it is another space's");
    drop(other);
    sink.assert_clean();
    ioas.unmap_all().expect("nothing is in the way");
    ioas.set_page_by_page(false).expect("nothing is mapped");
}
