//! Which pages of a memory that was handed over have an owner.
//!
//! # Invariant
//!
//! - **W1** (one heir): of each page there is at most one owner: nobody while its bit is clear; else
//!   who set the bit, until that one clears it. Bits of pages that do not exist are never looked at.
//!
//! A bit is set by an acquiring and cleared by a releasing read-modify-write, so that what a former
//! owner did to a page happens before what the next one does.

use alloc::boxed::Box;

use crate::mem::bits;
use crate::mem::chunk::{Chunk, Order, PAGE_COUNT, WORD_COUNT, words_of};
use crate::sync::atomic::{AtomicU64, Ordering};

/// One bit a page, set if it has an owner.
pub(super) struct Heirs {
    words: Box<[AtomicU64]>,
    page_count: usize,
}

impl Heirs {
    /// Returns `page_count` pages without owners, or `None` if the allocator has no room for one bit
    /// a page.
    pub(super) fn new(page_count: usize) -> Option<Self> {
        let word_count = page_count.div_ceil(PAGE_COUNT).checked_mul(WORD_COUNT)?;
        Some(Self {
            words: bits::zeroed_words(word_count)?,
            page_count,
        })
    }

    pub(super) const fn page_count(&self) -> usize {
        self.page_count
    }

    /// Takes the group of `order` at `page`, an existing one; false, and nothing is taken, if a part
    /// of it has an owner.
    pub(super) fn take(&self, page: usize, order: Order) -> bool {
        let (words, bits) = words_of(page, order);
        for at in words.clone() {
            if !self.take_bits(at, bits) {
                for taken in words.start..at {
                    self.clear_bits(taken, bits);
                }
                return false;
            }
        }
        true
    }

    /// Undoes [`take`](Self::take).
    pub(super) fn disown(&self, page: usize, order: Order) {
        let (words, bits) = words_of(page, order);
        for at in words {
            self.clear_bits(at, bits);
        }
    }

    /// Takes all pages of chunk `index` that have no owner.
    pub(super) fn take_rest(&self, index: usize) -> Chunk {
        let all = *Chunk::full(index, self.page_count).words();
        let rest = core::array::from_fn(|at| {
            let word = self.words.get(index * WORD_COUNT + at);
            word.map_or(0, |word| {
                all[at] & !word.fetch_or(all[at], Ordering::AcqRel)
            })
        });
        Chunk::new(index, rest)
    }

    fn take_bits(&self, at: usize, bits: u64) -> bool {
        let Some(word) = self.words.get(at) else {
            return false;
        };
        let take = |taken: u64| (taken & bits == 0).then_some(taken | bits);
        word.fetch_update(Ordering::AcqRel, Ordering::Relaxed, take)
            .is_ok()
    }

    fn clear_bits(&self, at: usize, bits: u64) {
        if let Some(word) = self.words.get(at) {
            word.fetch_and(!bits, Ordering::AcqRel);
        }
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use iopt_formats::PageSize;

    use super::*;

    fn order(lg2: u8) -> Order {
        Order::of(PageSize::from_lg2(lg2)).expect("a size that a memory hands out")
    }

    #[test]
    fn a_page_is_taken_once_and_what_is_refused_takes_nothing() {
        let heirs = Heirs::new(700).expect("there is memory");
        assert!(heirs.take(255, order(12)));
        assert!(!heirs.take(255, order(12)));
        // Its last page has an owner, so none of the others gets one.
        assert!(!heirs.take(0, order(20)));
        assert!(heirs.take(0, order(19)));
        heirs.disown(255, order(12));
        assert!(!heirs.take(0, order(20)));
        heirs.disown(0, order(19));
        assert!(heirs.take(0, order(20)));
        assert!(heirs.take(256, order(16)));
    }

    #[test]
    fn the_rest_is_what_nobody_took_and_is_taken_once() {
        let heirs = Heirs::new(700).expect("there is memory");
        assert!(heirs.take(512, order(14)));
        assert!(heirs.take(699, order(12)));
        assert!((0..512).eq(heirs.take_rest(0).pages()));
        assert!((516..699).eq(heirs.take_rest(1).pages()));
        for index in 0..3 {
            assert_eq!(heirs.take_rest(index).count(), 0);
        }
        assert!(!heirs.take(3, order(12)));
        // Given back late, found by the next call.
        heirs.disown(512, order(14));
        assert!((512..516).eq(heirs.take_rest(1).pages()));
    }
}
