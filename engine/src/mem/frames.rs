//! Which pages are free, for many threads.
//!
//! ```text
//! thread -> its magazine: a chunk (2 MiB) that it keeps to -> the chunk's word: one atomic operation
//!               | no page of that size left
//!               +-> lowest listed chunk -> next new chunk -> any chunk, whoever keeps to it
//! ```
//!
//! A magazine is the number of a chunk, nothing more: its pages stay where they are and anybody may
//! take them, but nobody does before all else is used up. So threads write lines of their own, and
//! common ones once for up to 512 pages; and no page is ever out of reach. Within its chunk a thread
//! takes the lowest page. Putting back needs no magazine: a page has its bit. Threads beyond the
//! number of magazines share them.
//!
//! # Running out
//!
//! Who finds nothing looks at every word with `aside` locked. Pages never move, so that a page that
//! was free all the time is seen, with one exception: pages that somebody takes and may put back
//! unused. That is done under the same lock (G1). So a refusal means that no page was free.
//!
//! # Invariants
//!
//! - **G1** (nothing aside): who takes pages other than to hand them out holds `aside`.
//!
//! B1 and B2 of [`stock`](crate::mem::stock) say the rest: one owner, and handed over. No lock of the
//! engine is taken under `aside`.

use alloc::boxed::Box;

use crate::mem::chunk::{Chunk, Order, PAGE_COUNT, WORD_COUNT, chunk_of, page_at};
use crate::mem::listing::Listing;
use crate::mem::stock::Stock;
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{self, CachePadded, Mutex, thread_index};

/// Magazines at most, a power of two; without threads of our own one has to do for all.
const MAGAZINE_LIMIT: usize = if cfg!(any(feature = "std", loom)) {
    64
} else {
    1
};

/// The allocator of page indices.
pub(super) struct Frames {
    stock: Stock,
    listing: Listing,
    /// Their number is a power of two.
    magazines: Box<[CachePadded<Magazine>]>,
    /// Chunks that threads have kept to at least once: the lowest ones.
    reached: CachePadded<AtomicUsize>,
    aside: CachePadded<Mutex<()>>,
}

/// The chunk that a thread keeps to.
struct Magazine(AtomicUsize);

impl Magazine {
    /// Keeps to no chunk.
    const NONE: usize = usize::MAX;

    #[inline]
    fn chunk(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    fn keep_to(&self, index: usize) {
        self.0.store(index, Ordering::Relaxed);
    }
}

/// How many pages are where. Each page is counted as it is when it is looked at.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Counts {
    /// Pages that are handed out.
    pub(super) used: usize,
    /// Free pages of chunks that threads keep to.
    pub(super) held: usize,
    /// Pages of the chunks that threads have kept to at least once.
    pub(super) reached: usize,
}

impl Frames {
    /// Returns an allocator of `page_count` pages, all free, or `None` if there is no memory for
    /// its own data, of which all but a few words stay untouched until the pages are used.
    pub(super) fn new(page_count: usize) -> Option<Self> {
        // More magazines than chunks would only lie idle.
        let count = page_count.div_ceil(PAGE_COUNT).clamp(1, MAGAZINE_LIMIT);
        Self::with_magazines(page_count, count.next_power_of_two())
    }

    /// As [`new`](Self::new), with `count` magazines, a power of two.
    pub(super) fn with_magazines(page_count: usize, count: usize) -> Option<Self> {
        let stock = Stock::new(page_count)?;
        let listing = Listing::new(stock.chunk_count())?;
        let magazine = |_| CachePadded::new(Magazine(AtomicUsize::new(Magazine::NONE)));
        Some(Self {
            stock,
            listing,
            magazines: (0..count).map(magazine).collect(),
            reached: CachePadded::new(AtomicUsize::new(0)),
            aside: CachePadded::new(Mutex::new(&sync::TABLE_POOL, ())),
        })
    }

    /// Returns an allocator of `page_count` pages that are all handed out, or `None` as
    /// [`new`](Self::new).
    #[cfg(all(feature = "std", target_os = "linux"))]
    pub(super) fn taken(page_count: usize) -> Option<Self> {
        let frames = Self::new(page_count)?;
        let chunk_count = frames.stock.chunk_count();
        for index in 0..chunk_count {
            // Nobody else knows the allocator yet.
            frames.stock.take_all(index);
        }
        frames.reached.store(chunk_count, Ordering::Relaxed);
        Some(frames)
    }

    pub(super) const fn page_count(&self) -> usize {
        self.stock.page_count()
    }

    /// Takes a group of `order`; `None` if none is free.
    #[inline]
    pub(super) fn take(&self, order: Order) -> Option<usize> {
        let magazine = self.magazine();
        if order.wide_count().is_none()
            && let Some(page) = self.stock.take(magazine.chunk(), order)
        {
            return Some(page);
        }
        self.take_elsewhere(magazine, order)
    }

    #[cold]
    fn take_elsewhere(&self, magazine: &Magazine, order: Order) -> Option<usize> {
        if order.wide_count().is_none()
            && let Some(page) = self.take_from_next(magazine, order)
        {
            return Some(page);
        }
        let _aside = self.aside.lock();
        if order.wide_count().is_some()
            && let Some(page) = self
                .take_in(magazine.chunk(), order)
                .or_else(|| self.take_from_next(magazine, order))
        {
            return Some(page);
        }
        (0..self.stock.chunk_count()).find_map(|index| {
            let page = self.take_in(index, order)?;
            // The next one is likely to be here, too.
            self.enter(magazine, index);
            Some(page)
        })
    }

    /// Takes a group out of the next chunk that has one and keeps to that.
    fn take_from_next(&self, magazine: &Magazine, order: Order) -> Option<usize> {
        let listed = self.listing.listed(self.reached());
        let new = core::iter::from_fn(|| self.reach(self.stock.chunk_count()));
        let listed = listed.filter(|&index| {
            // Looked at first, so that a search for a large page leaves small ones where they are.
            let chunk = self.stock.peek(index);
            if chunk.count() == 0 {
                // Others used it up.
                self.leave(index);
            }
            chunk.has(order) && self.listing.hold_listed(index)
        });
        listed.chain(new).find_map(|index| {
            self.enter(magazine, index);
            self.take_in(index, order)
        })
    }

    /// Takes the lowest group in one chunk; for wide groups, under `aside`.
    pub(super) fn take_in(&self, index: usize, order: Order) -> Option<usize> {
        let Some(width) = order.wide_count() else {
            return self.stock.take(index, order);
        };
        (0..WORD_COUNT).step_by(width).find_map(|first| {
            let words = first..first + width;
            let is_taken = |&word: &usize| self.stock.take_word(index, word);
            let taken_count = words.take_while(is_taken).count();
            if taken_count == width {
                return Some(page_at(index, first));
            }
            for word in first..first + taken_count {
                self.put(page_at(index, word), Order::WORD);
            }
            None
        })
    }

    /// Puts back a group that was taken with this `order`.
    #[inline]
    pub(super) fn put(&self, page: usize, order: Order) {
        self.stock.put(page, order);
        self.listing.put_back(chunk_of(page));
    }

    /// Keeps to chunk `index` from now on.
    fn enter(&self, magazine: &Magazine, index: usize) {
        let left = magazine.chunk();
        magazine.keep_to(index);
        self.listing.hold(index);
        if left != index {
            self.leave(left);
        }
    }

    /// Stops keeping to a chunk: it is listed if it has free pages (H1).
    fn leave(&self, index: usize) {
        if index == Magazine::NONE {
            return;
        }
        self.listing.forget(index);
        if self.stock.settle(index).count() > 0 {
            self.listing.list(index);
        }
    }

    /// Returns the lowest chunk that no thread has kept to, if it is below `end`, and counts it as
    /// reached.
    fn reach(&self, end: usize) -> Option<usize> {
        let step = |reached: usize| (reached < end).then_some(reached + 1);
        self.reached
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, step)
            .ok()
    }

    fn reached(&self) -> usize {
        self.reached.load(Ordering::Relaxed)
    }

    pub(super) fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        // Nothing is aside meanwhile.
        let _aside = self.aside.lock();
        for index in 0..self.reached() {
            let count = Chunk::full(index, self.page_count()).count();
            let free_count = self.stock.peek(index).count();
            counts.reached += count;
            counts.used += count.saturating_sub(free_count);
            if self.listing.is_held(index) {
                counts.held += free_count;
            }
        }
        counts
    }

    /// Returns whether H1 holds for a chunk; for models at rest.
    #[cfg(all(test, loom))]
    pub(super) fn is_found(&self, index: usize) -> bool {
        let has_free = self.stock.peek(index).count() > 0;
        index >= self.reached() || !has_free || self.listing.is_known(index)
    }

    #[inline]
    fn magazine(&self) -> &Magazine {
        &self.magazines[thread_index() & (self.magazines.len() - 1)]
    }
}

/// What a memory needs that the system backs page by page.
#[cfg(feature = "std")]
impl Frames {
    /// Calls `act` with the free pages of each chunk below `end`, which nobody else takes meanwhile.
    /// Chunks that were never reached are, and all count as touched.
    pub(super) fn visit_below<E>(
        &self,
        end: usize,
        mut act: impl FnMut(&Chunk) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut visit = |index| {
            self.with_chunk(index, |chunk| {
                self.listing.touch(index);
                act(chunk)
            })
        };
        (0..end.min(self.reached())).try_for_each(&mut visit)?;
        core::iter::from_fn(|| self.reach(end)).try_for_each(visit)
    }

    /// Calls `act` with each touched chunk of which all pages are free, which nobody takes
    /// meanwhile; the chunk is no longer touched if `act` returns true.
    pub(super) fn visit_touched(&self, mut act: impl FnMut(&Chunk) -> bool) {
        for index in (0..self.reached()).filter(|&index| self.listing.is_touched(index)) {
            self.with_chunk(index, |chunk| {
                let whole = Chunk::full(index, self.page_count());
                if chunk.count() == whole.count() && act(chunk) {
                    self.listing.untouch(index);
                }
            });
        }
    }

    /// Puts pages of a chunk back that were handed out one by one; `is_touched` says whether the
    /// system has backed some of them.
    #[cfg(target_os = "linux")]
    pub(super) fn release(&self, chunk: &Chunk, is_touched: bool) {
        self.stock.put_all(chunk);
        if is_touched {
            self.listing.touch(chunk.index());
        }
        self.listing.list(chunk.index());
    }

    pub(super) fn with_chunk<R>(&self, index: usize, act: impl FnOnce(&Chunk) -> R) -> R {
        let _aside = self.aside.lock();
        let chunk = self.stock.take_all(index);
        let result = act(&chunk);
        self.stock.put_all(&chunk);
        if chunk.count() > 0 {
            self.listing.list(index);
        }
        result
    }
}
