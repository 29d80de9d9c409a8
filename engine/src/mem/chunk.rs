//! The free pages among 512 consecutive ones, 2 MiB, and groups of them.
//!
//! ```text
//! page     0 ..  63   64 .. 127   ..   448 .. 511
//! word         0          1       ..        7       a cache line
//! ```
//!
//! A page of `2^order` smallest pages is an aligned group of bits, inside one word or of several
//! whole ones.

use core::ops::Range;

use iopt_formats::PageSize;

use crate::mem::{LARGEST, SMALLEST};

/// Words of a chunk: one cache line; fewer in models, which try each access of each.
pub(super) const WORD_COUNT: usize = if cfg!(loom) { 2 } else { 8 };

/// Pages of a chunk.
pub(super) const PAGE_COUNT: usize = WORD_COUNT * WORD_BITS;

const WORD_BITS: usize = u64::BITS as usize;

/// Largest order whose group fits one word.
const WORD_ORDER: u8 = 6;

/// Bits where an aligned group can start, for each order that fits one word.
const STARTS: [u64; WORD_ORDER as usize + 1] = [
    0xffff_ffff_ffff_ffff,
    0x5555_5555_5555_5555,
    0x1111_1111_1111_1111,
    0x0101_0101_0101_0101,
    0x0001_0001_0001_0001,
    0x0000_0001_0000_0001,
    0x0000_0000_0000_0001,
];

/// A size in smallest pages, as a power of two, 0 to 8.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Order(u8);

impl Order {
    /// Returns the order of pages of `size`, if a memory hands them out.
    #[inline]
    pub(super) fn of(size: PageSize) -> Option<Self> {
        (SMALLEST..=LARGEST)
            .contains(&size)
            .then(|| Self(size.lg2() - SMALLEST.lg2()))
    }

    /// The order of a whole word.
    pub(super) const WORD: Self = Self(WORD_ORDER);

    /// Returns the number of smallest pages.
    #[inline]
    pub(super) const fn page_count(self) -> usize {
        1 << self.0
    }

    /// Returns the number of whole words of a group that fits no single one.
    #[inline]
    pub(super) const fn wide_count(self) -> Option<usize> {
        if self.0 > WORD_ORDER {
            Some(1 << (self.0 - WORD_ORDER))
        } else {
            None
        }
    }

    /// Returns the words of a chunk that the group at `slot` lies in, and its bits in each.
    #[inline]
    fn words_at(self, slot: usize) -> (Range<usize>, u64) {
        let first = slot / WORD_BITS;
        if let Some(count) = self.wide_count() {
            return (first..first + count, u64::MAX);
        }
        let bits = u64::MAX >> (WORD_BITS - self.page_count());
        (first..first + 1, bits << (slot % WORD_BITS))
    }

    /// Returns the first bit of the lowest group in `free`, for groups that fit one word.
    #[inline]
    pub(super) fn find_in(self, free: u64) -> Option<usize> {
        let starts = STARTS.get(usize::from(self.0))?;
        // After each step a bit says that twice as many from it on are set.
        let runs = (0..self.0).fold(free, |runs, step| runs & (runs >> (1 << step)));
        let runs = runs & starts;
        (runs != 0).then(|| runs.trailing_zeros() as usize)
    }

    /// Returns the bits of the group whose first bit in its word is `bit`.
    #[inline]
    pub(super) fn bits_at(self, bit: usize) -> u64 {
        self.words_at(bit).1
    }
}

/// Returns the chunk that `page` lies in.
#[inline]
pub(super) const fn chunk_of(page: usize) -> usize {
    page / PAGE_COUNT
}

/// Returns the first page of word `word` of chunk `index`.
#[inline]
pub(super) const fn page_at(index: usize, word: usize) -> usize {
    index * PAGE_COUNT + word * WORD_BITS
}

/// Returns the words that the group of `order` at `page` lies in, counted over all chunks, and its
/// bits in each.
#[inline]
pub(super) fn words_of(page: usize, order: Order) -> (Range<usize>, u64) {
    let (words, bits) = order.words_at(page % PAGE_COUNT);
    let first = chunk_of(page) * WORD_COUNT;
    (first + words.start..first + words.end, bits)
}

/// Free pages of one chunk.
#[derive(Debug)]
pub(super) struct Chunk {
    index: usize,
    words: [u64; WORD_COUNT],
}

impl Chunk {
    /// Returns chunk `index` with those pages free whose bits are set.
    pub(super) const fn new(index: usize, words: [u64; WORD_COUNT]) -> Self {
        Self { index, words }
    }

    /// Returns the pages of chunk `index` that a memory of `page_count` pages has.
    pub(super) fn full(index: usize, page_count: usize) -> Self {
        let words =
            core::array::from_fn(
                |word| match page_count.saturating_sub(page_at(index, word)) {
                    0 => 0,
                    left => u64::MAX >> WORD_BITS.saturating_sub(left),
                },
            );
        Self { index, words }
    }

    pub(super) const fn index(&self) -> usize {
        self.index
    }

    pub(super) const fn words(&self) -> &[u64; WORD_COUNT] {
        &self.words
    }

    /// Returns the number of free pages.
    pub(super) fn count(&self) -> usize {
        let counts = self.words.iter().map(|word| word.count_ones() as usize);
        counts.sum()
    }

    /// Returns the free pages.
    #[cfg(any(feature = "std", test))]
    pub(super) fn pages(&self) -> impl Iterator<Item = usize> {
        let slots = 0..PAGE_COUNT;
        let free = slots.filter(|slot| self.words[slot / WORD_BITS] >> (slot % WORD_BITS) & 1 != 0);
        free.map(|slot| self.index * PAGE_COUNT + slot)
    }

    /// Returns whether a group of `order` is free.
    pub(super) fn has(&self, order: Order) -> bool {
        match order.wide_count() {
            Some(count) => {
                let mut groups = self.words.chunks_exact(count);
                groups.any(|group| group.iter().all(|&word| word == u64::MAX))
            }
            None => self.words.iter().any(|&word| order.find_in(word).is_some()),
        }
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    const ORDERS: [Order; 9] = [
        Order(0),
        Order(1),
        Order(2),
        Order(3),
        Order(4),
        Order(5),
        Order(6),
        Order(7),
        Order(8),
    ];

    fn next(state: &mut u64) -> u64 {
        *state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (*state >> 32) << 32 | *state >> 32
    }

    /// Words of many shapes.
    fn words(state: &mut u64) -> [u64; WORD_COUNT] {
        core::array::from_fn(|_| match next(state) >> 3 & 3 {
            0 => 0,
            1 => u64::MAX,
            2 => next(state) | next(state) | next(state),
            _ => next(state) & next(state),
        })
    }

    fn is_free(words: &[u64; WORD_COUNT], slot: usize) -> bool {
        words[slot / WORD_BITS] >> (slot % WORD_BITS) & 1 != 0
    }

    /// The definition, written naively.
    fn lowest(words: &[u64; WORD_COUNT], order: Order) -> Option<usize> {
        let width = order.page_count();
        (0..PAGE_COUNT)
            .step_by(width)
            .find(|&slot| (slot..slot + width).all(|slot| is_free(words, slot)))
    }

    #[test]
    fn the_lowest_aligned_group_is_found() {
        let mut state = 1;
        for _ in 0..if cfg!(miri) { 2 } else { 3000 } {
            let words = words(&mut state);
            for order in ORDERS {
                let expected = lowest(&words, order);
                assert_eq!(Chunk::new(3, words).has(order), expected.is_some());
                if order.wide_count().is_none() {
                    let mut found = words.iter().enumerate().filter_map(|(index, &word)| {
                        order.find_in(word).map(|bit| index * WORD_BITS + bit)
                    });
                    assert_eq!(found.next(), expected, "{order:?} in {words:x?}");
                }
            }
        }
    }

    #[test]
    fn a_group_has_the_bits_of_its_pages_and_no_others() {
        for order in ORDERS.into_iter().skip(if cfg!(miri) { 7 } else { 0 }) {
            for slot in (0..PAGE_COUNT).step_by(order.page_count()) {
                let mut words = [0; WORD_COUNT];
                let (range, bits) = words_of(2 * PAGE_COUNT + slot, order);
                for word in range {
                    words[word - 2 * WORD_COUNT] = bits;
                }
                let chunk = Chunk::new(2, words);
                assert_eq!(chunk.count(), order.page_count());
                let first = chunk.pages().next();
                assert_eq!(first, Some(2 * PAGE_COUNT + slot));
                assert_eq!(lowest(&words, order), Some(slot));
            }
        }
    }

    #[test]
    fn the_last_chunk_has_only_the_pages_that_exist() {
        for page_count in [0, 1, 63, 64, 65, 511, 512, 513, 1000, 1024, 1025] {
            let counts = (0..4).map(|index| Chunk::full(index, page_count).count());
            assert_eq!(counts.sum::<usize>(), page_count);
            let first = Chunk::full(0, page_count);
            assert!(first.pages().eq(0..page_count.min(PAGE_COUNT)));
            if cfg!(miri) && page_count > 1 {
                break;
            }
        }
    }

    #[test]
    fn only_sizes_that_a_memory_hands_out_have_an_order() {
        let order = |lg2| Order::of(PageSize::from_lg2(lg2)).map(Order::page_count);
        assert_eq!(order(11), None);
        assert_eq!(order(12), Some(1));
        assert_eq!(order(20), Some(256));
        assert_eq!(order(21), None);
    }
}
