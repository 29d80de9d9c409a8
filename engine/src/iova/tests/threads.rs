//! One space, many threads.

use std::thread;

use super::*;
use crate::intervals::random::Random;
use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Ranges of a space that are in use, by the chunk-sized part of the 64-bit space that they begin in.
struct Owners(Vec<AtomicU64>);

impl Owners {
    fn new(len: u64) -> Self {
        let count = len / PAGE;
        Self((0..count).map(|_| AtomicU64::new(0)).collect())
    }

    fn pages(&self, range: IovaRange) -> &[AtomicU64] {
        let (first, last) = (range.start().get() / PAGE, range.last().get() / PAGE);
        &self.0[first as usize..=last as usize]
    }

    fn own(&self, range: IovaRange, owner: u64) {
        for page in self.pages(range) {
            assert_eq!(
                page.swap(owner, Ordering::Relaxed),
                0,
                "{range} has an owner"
            );
        }
    }

    fn disown(&self, range: IovaRange, owner: u64) {
        for page in self.pages(range) {
            assert_eq!(
                page.swap(0, Ordering::Relaxed),
                owner,
                "{range} has another owner"
            );
        }
    }
}

#[test]
fn threads_that_free_what_others_allocated_never_share_a_page_and_lose_none() {
    let len = if cfg!(miri) { 2 * CHUNK } else { 64 * CHUNK };
    let space = space(range(0, len - 1));
    let owners = Owners::new(len);
    // Allocations on their way from one thread to another.
    let slots: Vec<_> = (0..64)
        .map(|_| crate::sync::Mutex::new(&crate::sync::LEFTOVERS, None))
        .collect();
    let refused_count = AtomicUsize::new(0);
    thread::scope(|scope| {
        for seed in 1..=4 {
            let (space, owners, slots) = (&space, &owners, &slots);
            let refused_count = &refused_count;
            scope.spawn(move || {
                let mut random = Random::new(seed);
                for _ in 0..if cfg!(miri) { 12 } else { 30_000 } {
                    let page_count = match random.below(20) {
                        0..15 => 1 + random.below(4),
                        15..18 => 1 + random.below(200),
                        18 => 512 + random.below(600),
                        _ => 32,
                    };
                    let fresh = space.alloc(&IovaRequest::new(page_count * PAGE)).ok();
                    match &fresh {
                        Some(fresh) => owners.own(fresh.range(), seed),
                        None => _ = refused_count.fetch_add(1, Ordering::Relaxed),
                    }
                    let fresh = fresh.map(|fresh| (fresh, seed));
                    let slot = &slots[random.index(slots.len())];
                    let old = core::mem::replace(&mut *slot.lock(), fresh);
                    if let Some((fresh, owner)) = old {
                        owners.disown(fresh.range(), owner);
                        fresh.cancel();
                    }
                    if random.one_in(1000) {
                        space.leave_chunks();
                    }
                }
            });
        }
    });
    for slot in slots {
        drop(slot.lock().take());
    }
    assert_eq!(space.statistics().used_len, 0);
    space.space.check_at_rest();
    // What threads that are gone kept to is found all the same.
    let whole = space.alloc(&IovaRequest::new(len).with_alignment(PageSize::KIB_4));
    assert_eq!(whole.expect("all of it").range(), range(0, len - 1));
}

#[test]
fn threads_have_chunks_of_their_own_until_nothing_else_is_left() {
    let thread_count = 3;
    let space = space(range(0, thread_count * CHUNK - 1));
    let arrived = AtomicUsize::new(0);
    let meet = |count: u64| {
        arrived.fetch_add(1, Ordering::AcqRel);
        while arrived.load(Ordering::Acquire) < count as usize {
            thread::yield_now();
        }
    };
    let count = thread::scope(|scope| {
        let threads: Vec<_> = (0..thread_count)
            .map(|_| {
                scope.spawn(|| {
                    let first = space.alloc(&IovaRequest::new(PAGE)).expect("room");
                    let second = space.alloc(&IovaRequest::new(PAGE)).expect("room");
                    assert_eq!(second.range().start().get(), first.range().last().get() + 1);
                    meet(thread_count);
                    assert_eq!(space.statistics().held_chunk_count as u64, thread_count);
                    meet(2 * thread_count);
                    let mine = core::iter::from_fn(|| space.alloc(&IovaRequest::new(PAGE)).ok());
                    let mine: Vec<_> = mine.collect();
                    meet(3 * thread_count);
                    mine.len() + 2
                })
            })
            .collect();
        let counts = threads
            .into_iter()
            .map(|thread| thread.join().expect("no panic"));
        counts.sum::<usize>()
    });
    assert_eq!(count as u64, thread_count * 512);
}
