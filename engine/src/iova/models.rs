//! Every interleaving of threads that take and free pages of a space of a few.
//!
//! A chunk has two words here, and a block two chunks.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;

use iopt_formats::Iova;

use super::*;
use crate::iova::bits;
use crate::iova::block::Block;
use crate::iova::directory::Directory;
use crate::sync::models::{UnsafeCell, thread};
use crate::sync::unmodelled::{AtomicBool, Ordering};
use crate::sync::{bounded_model, model};

const CHUNK: usize = 128;
const BLOCK: usize = 2 * CHUNK;

/// A space, what its pages hold, and whether somebody has them.
struct Modelled {
    space: Space,
    pages: Vec<(UnsafeCell<()>, AtomicBool)>,
}

impl Modelled {
    /// Returns a space of which the pages of one window are free.
    #[expect(
        clippy::arc_with_non_send_sync,
        reason = "threads of a model take turns"
    )]
    fn new(window: Range<usize>) -> Arc<Self> {
        let last = Iova::new((window.end as u64) << 12);
        let aperture = IovaRange::new(Iova::new(0), last).expect("it begins with address 0");
        let layout = Layout::new(aperture, PageSize::KIB_4).expect("few blocks");
        let page = |_| (UnsafeCell::new(()), AtomicBool::new(false));
        Arc::new(Self {
            pages: (0..window.end).map(page).collect(),
            space: Space::new(layout, core::iter::once(window)).expect("memory"),
        })
    }

    fn take(&self, count: usize) -> Option<usize> {
        let run = Run { count, align: 1 };
        let reach = Reach {
            end: self.space.layout.page_count(),
            is_low_first: true,
        };
        let start = self.space.take(run, &reach).ok()?;
        // The first and the last stand for all: each is one more thing for the model to follow.
        for page in [start, start + count - 1] {
            let (content, _) = &self.pages[page];
            // The model reports it if this does not happen after what the last owner did.
            content.with_mut(|_| ());
        }
        for page in start..start + count {
            let (_, is_owned) = &self.pages[page];
            assert!(!is_owned.swap(true, Ordering::Relaxed), "page {page} twice");
        }
        Some(start)
    }

    fn put(&self, start: usize, count: usize) {
        for page in start..start + count {
            self.pages[page].1.store(false, Ordering::Relaxed);
        }
        for page in [start, start + count - 1] {
            self.pages[page].0.with_mut(|_| ());
        }
        self.space.put(start, count);
    }

    /// Checks what holds at rest, and that `free_count` pages are free.
    fn is_at_rest(&self, free_count: usize) {
        self.space.check_at_rest();
        let survey = self.space.survey(self.space.layout.page_count());
        assert_eq!(survey.free_count, free_count);
    }
}

/// Runs `here` beside `there`.
fn beside(
    space: &Arc<Modelled>,
    there: impl FnOnce(&Modelled) + 'static,
    here: impl FnOnce(&Modelled),
) {
    let theirs = Arc::clone(space);
    let there = thread::spawn(move || there(&theirs));
    here(space);
    there.join().expect("the thread ends");
}

#[test]
fn of_two_threads_one_gets_the_only_page() {
    bounded_model(3, || {
        let space = Modelled::new(0..1);
        let is_theirs = Arc::new(AtomicBool::new(false));
        let theirs = Arc::clone(&is_theirs);
        let mut is_ours = false;
        beside(
            &space,
            move |space| theirs.store(space.take(1).is_some(), Ordering::Relaxed),
            |space| is_ours = space.take(1).is_some(),
        );
        assert!(is_ours != is_theirs.load(Ordering::Relaxed));
        space.is_at_rest(0);
    });
}

#[test]
fn pages_are_used_after_what_their_last_owner_did() {
    // One page is taken in another way than several.
    for count in [1, 2] {
        bounded_model(3, move || {
            let space = Modelled::new(0..count);
            let page = space.take(count).expect("the pages");
            beside(
                &space,
                move |space| space.put(page, count),
                move |space| {
                    if let Some(page) = space.take(count) {
                        space.put(page, count);
                    }
                },
            );
            space.is_at_rest(count);
        });
    }
}

#[test]
fn a_page_freed_while_its_chunk_is_let_go_is_found_later() {
    model(|| {
        // A part of a chunk, which is never closed.
        let space = Modelled::new(0..2);
        let page = space.take(2).expect("both pages");
        beside(
            &space,
            move |space| space.put(page, 2),
            |space| space.space.leave_all(),
        );
        space.is_at_rest(2);
    });
}

#[test]
fn a_chunk_of_which_the_last_pages_are_freed_while_it_is_let_go_is_whole_again() {
    bounded_model(3, || {
        let space = Modelled::new(0..CHUNK);
        let pages = space.take(1).expect("a page");
        beside(
            &space,
            move |space| space.put(pages, 1),
            |space| space.space.leave_all(),
        );
        space.is_at_rest(CHUNK);
        assert_eq!(space.take(CHUNK), Some(0));
    });
}

#[test]
fn of_two_that_free_the_last_pages_one_makes_the_chunk_whole() {
    model(|| {
        let space = Modelled::new(0..CHUNK);
        // One page in each word.
        let first = space.take(65).expect("a run over both words");
        space.space.leave_all();
        space.space.put(first + 1, 63);
        beside(
            &space,
            move |space| space.space.put(first, 1),
            |space| space.space.put(first + 64, 1),
        );
        space.is_at_rest(CHUNK);
    });
}

#[test]
fn of_two_that_free_the_last_chunks_one_makes_the_block_whole() {
    bounded_model(3, || {
        let space = Modelled::new(0..BLOCK);
        let chunks = [(); 2].map(|()| space.take(CHUNK).expect("a chunk"));
        beside(
            &space,
            move |space| space.put(chunks[0], CHUNK),
            |space| space.put(chunks[1], CHUNK),
        );
        space.is_at_rest(BLOCK);
    });
}

#[test]
fn two_threads_that_make_the_same_block_get_the_same_one() {
    model(|| {
        let directory = Arc::new(Directory::new(1).expect("memory"));
        let theirs = Arc::clone(&directory);
        let make = |directory: &Directory| {
            let block = directory.get_or_make(0, || Block::new(CHUNK));
            core::ptr::from_ref(block.expect("memory")).addr()
        };
        let there = thread::spawn(move || make(&theirs));
        let here = make(&directory);
        assert_eq!(here, there.join().expect("the thread ends"));
    });
}

#[test]
fn two_threads_that_open_the_same_block_both_get_a_page() {
    bounded_model(1, || {
        let space = Modelled::new(0..BLOCK);
        // So that the block is there, if closed: each step less is one less for the model to try.
        let chunk = space.take(CHUNK).expect("a chunk");
        space.put(chunk, CHUNK);
        let take = |space: &Modelled| _ = space.take(1).expect("there are many");
        beside(&space, take, take);
        space.is_at_rest(BLOCK - 2);
    });
}

#[test]
fn free_pages_are_not_missed_while_their_chunk_is_opened() {
    bounded_model(2, || {
        let space = Modelled::new(0..CHUNK);
        let take = |space: &Modelled| _ = space.take(1).expect("there are many");
        beside(&space, take, take);
        space.is_at_rest(CHUNK - 2);
    });
}

#[test]
fn free_pages_are_not_missed_while_their_chunk_is_closed() {
    bounded_model(2, || {
        let space = Modelled::new(0..CHUNK);
        let page = space.take(1).expect("a page");
        space.space.leave_all();
        beside(
            &space,
            move |space| space.put(page, 1),
            |space| _ = space.take(1).expect("there are many"),
        );
        space.is_at_rest(CHUNK - 1);
    });
}

#[test]
fn free_chunks_are_not_missed_while_their_block_is_closed() {
    bounded_model(2, || {
        let space = Modelled::new(0..BLOCK);
        let chunk = space.take(CHUNK).expect("a chunk");
        beside(
            &space,
            move |space| space.put(chunk, CHUNK),
            |space| _ = space.take(CHUNK).expect("there is another"),
        );
        space.is_at_rest(BLOCK - CHUNK);
    });
}

#[test]
fn pages_that_a_run_tries_in_vain_are_not_missed() {
    bounded_model(3, || {
        let space = Modelled::new(0..65);
        beside(
            &space,
            |space| _ = space.take(65),
            |space| {
                let first = space.take(1);
                // If there was room for one, there is none for the run any more.
                assert!(first.is_none() || space.take(1).is_some());
            },
        );
        space.space.check_at_rest();
    });
}

#[test]
fn a_chunk_let_go_while_a_run_is_tried_in_vain_is_found_later() {
    bounded_model(2, || {
        let space = Modelled::new(0..BLOCK);
        // This thread keeps to the first chunk, nobody to the second one, in which 65 pages are free.
        space.take(1).expect("a page");
        let first = space.take(100).expect("a run in the second chunk");
        assert_eq!(first, CHUNK);
        space.put(first, 65);
        let rest = space.space.block_of(1).expect("it is open").pages(1);
        assert!(bits::take(rest, 100, CHUNK - 100));
        beside(
            &space,
            |space| {
                let block = space.space.block_of(1).expect("it is open");
                bits::take(block.pages(1), 64, 1);
                space.space.leave(1);
            },
            |space| _ = space.take(65),
        );
        space.space.check_at_rest();
    });
}

#[test]
fn a_run_is_used_after_what_the_owners_of_its_parts_did() {
    bounded_model(3, || {
        let space = Modelled::new(0..CHUNK);
        let page = space.take(1).expect("the first page");
        space.space.leave_all();
        beside(
            &space,
            move |space| space.put(page, 1),
            |space| _ = space.take(CHUNK),
        );
        space.space.check_at_rest();
    });
}

#[test]
fn a_chunk_freed_beside_a_search_for_one_is_found_later() {
    bounded_model(3, || {
        // A block and a half, so that the block stays open.
        let space = Modelled::new(0..BLOCK - 1);
        let chunk = space.take(CHUNK).expect("the only whole chunk");
        beside(
            &space,
            move |space| space.put(chunk, CHUNK),
            |space| _ = space.take(CHUNK),
        );
        space.space.check_at_rest();
    });
}
