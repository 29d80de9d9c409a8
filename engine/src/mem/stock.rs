//! The truth about which pages are free: one bit a page, changed by one atomic operation.
//!
//! A page never moves: its bit stands in one word for good, so that whoever looks at all words has
//! seen every page that was free all the time.
//!
//! # Invariants
//!
//! - **B1** (one owner): a page whose bit is clear is free; one whose bit is set belongs to the
//!   caller that set it, until that one clears it. Bits of pages that do not exist are set.
//! - **B2** (handed over): what a thread did to a page before it put it back happens before what
//!   the next taker does.
//!
//! # Memory orderings
//!
//! Bits are set by acquiring and cleared by releasing read-modify-writes; every change of a word is
//! one, so that a taker synchronizes with all that were put back before, whatever came between: B2.
//! That puts acquire and [`settle`](Stock::settle) does both is for [`listing`](crate::mem::listing).

use alloc::boxed::Box;

use crate::mem::bits;
use crate::mem::chunk::{Chunk, Order, PAGE_COUNT, WORD_COUNT, page_at, words_of};
use crate::sync::atomic::{AtomicU64, Ordering};

/// The bits, by page.
pub(super) struct Stock {
    /// Bit set: taken. So all pages are free in memory that nobody has touched yet.
    words: Box<[AtomicU64]>,
    /// Words in front of the first that begins a cache line.
    skipped: usize,
    page_count: usize,
}

impl Stock {
    /// Returns a stock of `page_count` pages, all free, or `None` if the allocator has no room for
    /// one bit a page.
    pub(super) fn new(page_count: usize) -> Option<Self> {
        let chunk_count = page_count.div_ceil(PAGE_COUNT);
        let word_count = chunk_count.checked_mul(WORD_COUNT)?;
        let words = bits::zeroed_words(word_count.checked_add(WORD_COUNT - 1)?)?;
        let misplaced = if cfg!(loom) {
            0 // Atomics of models are of any size.
        } else {
            words.as_ptr().addr() / size_of::<u64>() % WORD_COUNT
        };
        let stock = Self {
            words,
            skipped: (WORD_COUNT - misplaced) % WORD_COUNT,
            page_count,
        };
        let last = Chunk::full(chunk_count.saturating_sub(1), page_count);
        for (word, bits) in stock.words_of_chunk(last.index()).iter().zip(last.words()) {
            word.store(!bits, Ordering::Relaxed);
        }
        Some(stock)
    }

    pub(super) const fn page_count(&self) -> usize {
        self.page_count
    }

    pub(super) const fn chunk_count(&self) -> usize {
        self.page_count.div_ceil(PAGE_COUNT)
    }

    /// Takes the lowest free group of `order` in chunk `index`, which fits one word.
    #[inline]
    pub(super) fn take(&self, index: usize, order: Order) -> Option<usize> {
        let words = self.words_of_chunk(index).iter().enumerate();
        words.into_iter().find_map(|(at, word)| {
            let mut taken = word.load(Ordering::Relaxed);
            loop {
                let bit = order.find_in(!taken)?;
                let bits = order.bits_at(bit);
                match word.compare_exchange_weak(
                    taken,
                    taken | bits,
                    Ordering::Acquire,
                    Ordering::Relaxed,
                ) {
                    Ok(_) => return Some(page_at(index, at) + bit),
                    Err(now) => taken = now,
                }
            }
        })
    }

    /// Takes all pages of word `word` of chunk `index`, if all are free.
    pub(super) fn take_word(&self, index: usize, word: usize) -> bool {
        let word = self.words_of_chunk(index).get(word);
        word.is_some_and(|word| {
            word.compare_exchange(0, u64::MAX, Ordering::Acquire, Ordering::Relaxed)
                .is_ok()
        })
    }

    /// Makes the group of `order` at `page` free, which the caller took.
    #[inline]
    pub(super) fn put(&self, page: usize, order: Order) {
        let (words, bits) = words_of(page, order);
        let words = self.skipped + words.start..self.skipped + words.end;
        for word in self.words.get(words).unwrap_or_default() {
            put_bits(word, bits);
        }
    }

    /// Returns what is free in chunk `index`.
    pub(super) fn peek(&self, index: usize) -> Chunk {
        self.read(index, |word| word.load(Ordering::Relaxed))
    }

    /// As [`peek`](Self::peek), in the order of changes of each word: a put that is not seen comes
    /// after, and sees all that the caller did before.
    pub(super) fn settle(&self, index: usize) -> Chunk {
        self.read(index, |word| word.fetch_or(0, Ordering::AcqRel))
    }

    /// Takes all free pages of chunk `index`.
    #[cfg(feature = "std")]
    pub(super) fn take_all(&self, index: usize) -> Chunk {
        self.read(index, |word| word.swap(u64::MAX, Ordering::Acquire))
    }

    /// Puts the pages of a chunk back.
    #[cfg(feature = "std")]
    pub(super) fn put_all(&self, chunk: &Chunk) {
        for (word, &bits) in self.words_of_chunk(chunk.index()).iter().zip(chunk.words()) {
            put_bits(word, bits);
        }
    }

    fn read(&self, index: usize, read: impl Fn(&AtomicU64) -> u64) -> Chunk {
        let words = self.words_of_chunk(index);
        let free = core::array::from_fn(|at| words.get(at).map_or(0, |word| !read(word)));
        Chunk::new(index, free)
    }

    /// Returns no words for a chunk that does not exist.
    #[inline]
    fn words_of_chunk(&self, index: usize) -> &[AtomicU64] {
        if index >= self.chunk_count() {
            return &[];
        }
        let first = self.skipped + index * WORD_COUNT;
        let words = self.words.get(first..first + WORD_COUNT);
        words.unwrap_or_default()
    }
}

/// Clears `bits`, of pages that the caller owns.
#[inline]
fn put_bits(word: &AtomicU64, bits: u64) {
    let before = word.fetch_and(!bits, Ordering::AcqRel);
    debug_assert_eq!(before & bits, bits, "a page is freed twice");
}
