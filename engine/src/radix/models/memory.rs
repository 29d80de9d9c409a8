//! Table memory of a model.
//!
//! Pages hold junk until they are allocated, so that a walk which is not ordered behind the zeroing
//! goes wrong; and each has a cell that is read by whoever turns its address into a pointer and
//! written by whoever frees it, so that the model checker reports a walk into a freed table.

#![expect(
    unsafe_code,
    reason = "a table memory of atomics that the model checker watches"
)]

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;

use iopt_formats::{Oa, PageSize};

use crate::mem::{FlushLine, LINE_LEN, OutOfMemory, SMALLEST, TableMemory};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::models::UnsafeCell;
use crate::sync::{self, Mutex};

/// No leaf, no table, nothing that a format would accept.
const JUNK: u64 = 0xdead_beef_dead_beef;

pub(crate) struct ModelMemory {
    pages: Vec<Page>,
    /// Numbers of the free pages.
    free: Mutex<Vec<usize>>,
}

struct Page {
    /// A cache line more than needed, so that the items start with one: which items share a line
    /// must not depend on where the heap puts them.
    room: Box<[AtomicU64]>,
    item_count: usize,
    /// Read by walks, written by frees.
    life: UnsafeCell<()>,
}

impl ModelMemory {
    /// Creates `count` pages of four items; the first one, which becomes the root, has `root_items`.
    pub(crate) fn new(count: usize, root_items: usize) -> Self {
        let page = |number| {
            let item_count = if number == 0 { root_items } else { 4 };
            let room = (0..item_count + LINE_LEN / 8).map(|_| AtomicU64::new(JUNK));
            Page {
                room: room.collect(),
                item_count,
                life: UnsafeCell::new(()),
            }
        };
        Self {
            pages: (0..count).map(page).collect(),
            free: Mutex::new(&sync::TABLE_POOL, (0..count).rev().collect()),
        }
    }

    pub(crate) fn used_count(&self) -> usize {
        self.pages.len() - self.free.lock().len()
    }

    /// Returns the items of the page at `oa`, which is alive.
    pub(crate) fn items(&self, oa: Oa) -> &[AtomicU64] {
        let page = &self.pages[number(oa)];
        page.life.with(|_| ());
        page.items()
    }
}

impl Page {
    fn items(&self) -> &[AtomicU64] {
        let skew = self.room.as_ptr().addr() % LINE_LEN;
        let first = (LINE_LEN - skew) % LINE_LEN / size_of::<AtomicU64>();
        &self.room[first..first + self.item_count]
    }
}

/// Output addresses start behind page 0, which no table has.
fn number(oa: Oa) -> usize {
    (oa.get() >> SMALLEST.lg2()) as usize - 1
}

// SAFETY: the cell holds nothing; the model checker watches who reads and who writes it.
unsafe impl Sync for Page {}

// SAFETY: M1: the free list hands a page out once, its items zeroed, at a multiple of 4 KiB in the
// space of output addresses; the other space is that of the items, which are aligned. M2: the items
// stand on the heap as long as `self` lives. M3: there are few pages.
unsafe impl TableMemory for ModelMemory {
    fn alloc(&self, size: PageSize) -> Result<Oa, OutOfMemory> {
        let mut free = self.free.lock();
        let number = free.pop().filter(|_| size == SMALLEST);
        let number = number.ok_or(OutOfMemory { size })?;
        drop(free);
        let page = &self.pages[number];
        page.life.with_mut(|_| ());
        for item in page.items() {
            item.store(0, Ordering::Relaxed);
        }
        Ok(Oa::new((number as u64 + 1) << SMALLEST.lg2()))
    }

    unsafe fn free(&self, oa: Oa, _: PageSize) {
        let number = number(oa);
        self.pages[number].life.with_mut(|_| ());
        self.free.lock().push(number);
    }

    fn ptr(&self, oa: Oa) -> *mut u8 {
        self.items(oa).as_ptr().cast_mut().cast()
    }
}

/// What walkers that do not snoop see of a memory: the values that were written back.
#[derive(Clone)]
pub(crate) struct Shadow {
    memory: Arc<ModelMemory>,
    /// By page and item.
    seen: Arc<Mutex<Vec<[u64; 4]>>>,
}

impl Shadow {
    pub(crate) fn new(memory: Arc<ModelMemory>) -> Self {
        let seen = alloc::vec![[JUNK; 4]; memory.pages.len()];
        Self {
            memory,
            seen: Arc::new(Mutex::new(&sync::TABLE_POOL, seen)),
        }
    }

    /// Returns what a walker reads.
    pub(crate) fn read(&self, oa: Oa, index: usize) -> u64 {
        self.seen.lock()[number(oa)][index]
    }
}

impl FlushLine for Shadow {
    fn flush_line(&self, line: *const u8) {
        let lines = line.addr()..line.addr() + LINE_LEN;
        let mut seen = self.seen.lock();
        for (page, seen) in self.memory.pages.iter().zip(&mut *seen) {
            for (item, seen) in page.items().iter().zip(seen) {
                if lines.contains(&core::ptr::from_ref(item).addr()) {
                    // A cache line holds the newest values; this thread may know older ones of
                    // its neighbours, but items of the model never go back to 0.
                    let word = item.load(Ordering::Relaxed);
                    if word != 0 || *seen == JUNK {
                        *seen = word;
                    }
                }
            }
        }
    }
}
