//! Every interleaving of threads that take and put pages of a memory of a few.

use alloc::sync::Arc;
use alloc::vec::Vec;

use iopt_formats::PageSize;

use crate::mem::chunk::{Chunk, Order, PAGE_COUNT};
use crate::mem::frames::Frames;
use crate::sync::model;
use crate::sync::models::{UnsafeCell, thread};
use crate::sync::unmodelled::{AtomicBool, Ordering};

/// A memory, what its pages hold, and whether somebody has them.
struct Memory {
    frames: Frames,
    pages: Vec<(UnsafeCell<()>, AtomicBool)>,
}

impl Memory {
    /// Returns a memory of `page_count` pages with a magazine for each of two threads.
    fn new(page_count: usize) -> Arc<Self> {
        Self::with_magazines(page_count, 2)
    }

    #[expect(
        clippy::arc_with_non_send_sync,
        reason = "threads of a model take turns"
    )]
    fn with_magazines(page_count: usize, count: usize) -> Arc<Self> {
        let page = |_| (UnsafeCell::new(()), AtomicBool::new(false));
        Arc::new(Self {
            frames: Frames::with_magazines(page_count, count).expect("memory"),
            pages: (0..page_count).map(page).collect(),
        })
    }

    /// Uses a page that was taken.
    fn own(&self, page: usize) {
        let (content, is_owned) = &self.pages[page];
        assert!(!is_owned.swap(true, Ordering::Relaxed), "page {page} twice");
        // The model reports it if this does not happen after what the last owner did.
        content.with_mut(|_| ());
    }

    /// Clears a page that is about to be put back.
    fn disown(&self, page: usize) {
        let (content, is_owned) = &self.pages[page];
        content.with_mut(|_| ());
        is_owned.store(false, Ordering::Relaxed);
    }

    fn take(&self) -> Option<usize> {
        let page = self.frames.take(one())?;
        self.own(page);
        Some(page)
    }

    fn put(&self, page: usize) {
        self.disown(page);
        self.frames.put(page, one());
    }

    /// Checks H1, and that all pages but `used_count` are free.
    fn is_at_rest(&self, used_count: usize) {
        let chunk_count = self.pages.len().div_ceil(PAGE_COUNT);
        for index in 0..chunk_count {
            assert!(self.frames.is_found(index), "chunk {index} is lost");
        }
        assert_eq!(self.frames.counts().used, used_count);
    }
}

fn one() -> Order {
    Order::of(PageSize::KIB_4).expect("the smallest page")
}

/// Two words: all of a chunk in models.
fn wide() -> Order {
    Order::of(PageSize::from_lg2(19)).expect("512 KiB")
}

/// Runs `here` beside `there`.
fn beside(memory: &Arc<Memory>, there: impl FnOnce(&Memory) + 'static, here: impl FnOnce(&Memory)) {
    let theirs = Arc::clone(memory);
    let there = thread::spawn(move || there(&theirs));
    here(memory);
    there.join().expect("the thread ends");
}

#[test]
fn magazine_hand_over() {
    model(|| {
        let memory = Memory::new(2);
        let turn = |memory: &Memory| {
            let page = memory.take().expect("a page for each thread");
            memory.put(page);
        };
        beside(&memory, turn, turn);
        memory.is_at_rest(0);
        assert!(memory.take().is_some() && memory.take().is_some());
        assert_eq!(memory.take(), None);
    });
}

#[test]
fn a_page_put_back_while_its_chunk_is_left_is_found_later() {
    model(|| {
        // Two chunks; all pages of the first are taken, one for the second time.
        let memory = Memory::new(PAGE_COUNT + 1);
        assert_eq!(memory.frames.take(wide()), Some(0));
        memory.frames.put(0, one());
        assert_eq!(memory.frames.take(one()), Some(0));
        beside(
            &memory,
            |memory| memory.frames.put(0, one()),
            |memory| {
                let page = memory.take().expect("the other chunk has a page");
                assert!([0, PAGE_COUNT].contains(&page));
            },
        );
        memory.is_at_rest(PAGE_COUNT);
    });
}

#[test]
fn a_page_is_used_after_what_its_last_owner_did() {
    model(|| {
        let memory = Memory::new(1);
        let page = memory.take().expect("the page");
        beside(
            &memory,
            move |memory| memory.put(page),
            |memory| {
                if let Some(page) = memory.take() {
                    memory.put(page);
                }
            },
        );
        assert_eq!(memory.take(), Some(page));
    });
}

#[test]
fn of_two_threads_one_gets_the_only_page() {
    model(|| {
        let memory = Memory::new(1);
        let is_theirs = Arc::new(AtomicBool::new(false));
        let theirs = Arc::clone(&is_theirs);
        let mut is_ours = false;
        beside(
            &memory,
            move |memory| theirs.store(memory.take().is_some(), Ordering::Relaxed),
            |memory| is_ours = memory.take().is_some(),
        );
        assert!(is_ours != is_theirs.load(Ordering::Relaxed));
    });
}

#[test]
fn pages_that_a_wide_group_tries_in_vain_are_not_missed() {
    model(|| {
        // The first word is free, the second is not.
        let memory = Memory::new(PAGE_COUNT);
        let words = [(); 2].map(|()| memory.frames.take(Order::WORD).expect("a word"));
        memory.frames.put(words[0], Order::WORD);
        beside(
            &memory,
            |memory| assert_eq!(memory.frames.take(wide()), None),
            |memory| assert!(memory.take().is_some(), "64 pages are free all the time"),
        );
        memory.is_at_rest(PAGE_COUNT / 2 + 1);
    });
}

#[test]
fn pages_that_a_wide_group_tries_in_vain_are_found_later() {
    model(|| {
        // As above, with another chunk to go to meanwhile.
        let memory = Memory::with_magazines(PAGE_COUNT + 1, 1);
        let words = [(); 2].map(|()| memory.frames.take(Order::WORD).expect("a word"));
        memory.frames.put(words[0], Order::WORD);
        beside(
            &memory,
            |memory| assert_eq!(memory.frames.take_in(0, wide()), None),
            |memory| assert!(memory.take().is_some()),
        );
        memory.is_at_rest(PAGE_COUNT / 2 + 1);
    });
}

#[test]
fn a_wide_group_is_used_after_what_the_owners_of_its_parts_did() {
    model(|| {
        let memory = Memory::new(PAGE_COUNT);
        let page = memory.take().expect("the first page");
        beside(
            &memory,
            move |memory| memory.put(page),
            |memory| {
                if let Some(first) = memory.frames.take(wide()) {
                    memory.own(first);
                }
            },
        );
    });
}

#[test]
fn pages_at_work_are_waited_for() {
    model(|| {
        let memory = Memory::with_magazines(1, 1);
        let page = memory.take().expect("the page");
        memory.put(page);
        let work = |memory: &Memory| {
            memory.frames.with_chunk(0, |chunk: &Chunk| {
                chunk.pages().for_each(|page| memory.own(page));
                chunk.pages().for_each(|page| memory.disown(page));
            });
        };
        beside(
            &memory,
            |memory| {
                let page = memory.take().expect("the page is free all the time");
                memory.put(page);
            },
            work,
        );
        memory.is_at_rest(0);
    });
}
