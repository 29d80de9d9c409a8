//! One arena, many threads.

use std::thread;

use super::*;
use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

const SMALL: PageSize = PageSize::KIB_4;

/// Waits until `count` threads have come.
fn meet(arrived: &AtomicUsize, count: usize) {
    arrived.fetch_add(1, Ordering::AcqRel);
    while arrived.load(Ordering::Acquire) < count {
        thread::yield_now();
    }
}

#[test]
fn threads_that_swap_pages_never_share_one_and_lose_none() {
    let len = 8 << 20;
    let round_count = if cfg!(miri) { 40 } else { 20_000 };
    let arena = Arena::new(len).unwrap();
    // Pages on their way from one thread to another, by address; 0 for none.
    let slots = [const { AtomicU64::new(0) }; 32];
    thread::scope(|scope| {
        for seed in 1..=4_u64 {
            let (arena, slots) = (&arena, &slots);
            scope.spawn(move || {
                let mut state = seed;
                for _ in 0..round_count {
                    state = state
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1);
                    let size = if state >> 60 == 0 {
                        PageSize::KIB_16
                    } else {
                        SMALL
                    };
                    let Some(page) = Taken::new(arena, size, 9) else {
                        continue;
                    };
                    if size != SMALL {
                        page.give(arena, 9);
                        continue;
                    }
                    let slot = &slots[(state >> 33) as usize % slots.len()];
                    let old = Oa::new(slot.swap(page.oa.get(), Ordering::AcqRel));
                    if old.get() != 0 {
                        Taken { oa: old, size }.give(arena, 9);
                    }
                }
            });
        }
    });
    for slot in slots {
        let oa = Oa::new(slot.into_inner());
        if oa.get() != 0 {
            Taken { oa, size: SMALL }.give(&arena, 9);
        }
    }
    assert_eq!(arena.usage().used_len, 0);
    let whole = core::iter::from_fn(|| Taken::new(&arena, LARGEST, 1));
    assert_eq!(whole.count(), len >> 20);
}

#[test]
fn pages_in_magazines_of_other_threads_are_found_when_nothing_else_is_left() {
    let (len, thread_count) = (16 << 20, 6);
    let arena = Arena::new(len).unwrap();
    let arrived = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..thread_count {
            scope.spawn(|| {
                arena.alloc(SMALL).unwrap();
                // All threads live at once, so that each has a number of its own.
                meet(&arrived, thread_count);
            });
        }
    });
    let usage = arena.usage();
    assert_eq!(usage.used_len, thread_count as u64 * SMALL.bytes());
    assert_eq!(usage.held_len + usage.used_len, usage.reached_len);
    assert!(usage.reached_len > 2 << 20, "more than one thread at work");
    // Large pages first, which do not fit everywhere; then all that is left.
    let size = PageSize::KIB_64;
    let mut left = len as u64 - usage.used_len;
    for size in [size, SMALL] {
        let count = core::iter::from_fn(|| arena.alloc(size).ok()).count();
        left -= count as u64 * size.bytes();
    }
    assert_eq!(left, 0);
    assert_eq!(arena.usage().used_len, len as u64);
    assert_eq!(arena.usage().held_len, 0);
}

#[test]
fn threads_that_run_out_together_find_every_page() {
    let len = 2 << 20;
    let page_count = len / SMALL.bytes() as usize;
    for _ in 0..if cfg!(miri) { 1 } else { 20 } {
        // Chunks for two magazines, one of them short.
        let arena = Arena::new(len + 0x2000).unwrap();
        let (taken, arrived) = (AtomicUsize::new(0), AtomicUsize::new(0));
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    meet(&arrived, 3);
                    let count = core::iter::from_fn(|| arena.alloc(SMALL).ok()).count();
                    taken.fetch_add(count, Ordering::Relaxed);
                });
            }
        });
        assert_eq!(taken.into_inner(), page_count + 2);
    }
}

#[test]
fn a_page_may_be_freed_by_another_thread() {
    let arena = Arena::new(if cfg!(miri) { 4 } else { 32 } << 20).unwrap();
    let pages: Vec<_> = (0..if cfg!(miri) { 4 } else { 600 })
        .map(|_| Taken::new(&arena, SMALL, 5).unwrap())
        .collect();
    let first = pages[0].oa;
    thread::scope(|scope| {
        scope.spawn(|| {
            // So that the thread has a number, and a magazine, of its own.
            Taken::new(&arena, SMALL, 6).unwrap().give(&arena, 6);
            for page in pages {
                page.give(&arena, 5);
            }
        });
    });
    assert_eq!(arena.usage().used_len, 0);
    let lowest = (0..arena.usage().len / SMALL.bytes())
        .map_while(|_| arena.alloc(SMALL).ok())
        .min();
    assert_eq!(lowest, Some(first));
}
