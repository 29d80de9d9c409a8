//! How the space is divided: pages, chunks of one leaf table, blocks of chunks.

use core::ops::Range;

use iopt_formats::{Iova, IovaRange, PageSize};

/// Chunks of a block, as a power of two; fewer in models, which try each access of each.
const BLOCK_LG2: u32 = if cfg!(loom) { 1 } else { 9 };

/// Chunks of a block.
pub(super) const CHUNK_COUNT: usize = 1 << BLOCK_LG2;

/// Blocks at most: 256 TiB of 4 KiB pages.
pub(super) const MAX_BLOCKS: usize = 1 << 18;

/// Pages that share a word, as a power of two.
const WORD_LG2: u32 = u64::BITS.ilog2();

/// Where the first zone ends: what 32 address bits reach.
const LOW_END: u64 = 1 << 32;

/// Pages are counted from `base` on, a multiple of a block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    base: u64,
    page_lg2: u32,
    /// Pages of a chunk.
    chunk_lg2: u32,
    block_count: usize,
    /// The first page at 4 GiB or above.
    low_end: usize,
}

/// So many pages, the first at a multiple of `align` of them in the 64-bit space.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Run {
    pub(super) count: usize,
    pub(super) align: usize,
}

/// What a run consists of, in this order: whole blocks, whole chunks, pages of one chunk.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Parts {
    pub(super) blocks: usize,
    pub(super) chunks: usize,
    pub(super) pages: usize,
}

impl Layout {
    /// Returns the layout of `aperture` with a granule of 4 to 64 KiB, or `None` if it has too many
    /// blocks.
    pub(super) fn new(aperture: IovaRange, granule: PageSize) -> Option<Self> {
        let page_lg2 = u32::from(granule.lg2());
        // Eight bytes an entry: a table of one page.
        let chunk_lg2 = if cfg!(loom) { 7 } else { page_lg2 - 3 };
        let block_lg2 = page_lg2 + chunk_lg2 + BLOCK_LG2;
        let first = aperture.start().get() >> block_lg2;
        let block_count = (aperture.last().get() >> block_lg2) - first + 1;
        let base = first << block_lg2;
        let page_count = block_count.checked_mul(1 << (chunk_lg2 + BLOCK_LG2))?;
        let low_end = LOW_END.saturating_sub(base) >> page_lg2;
        let layout = Self {
            base,
            page_lg2,
            chunk_lg2,
            block_count: usize::try_from(block_count).ok()?,
            low_end: low_end.min(page_count) as usize,
        };
        (layout.block_count <= MAX_BLOCKS).then_some(layout)
    }

    pub(super) const fn block_count(&self) -> usize {
        self.block_count
    }

    pub(super) const fn page_count(&self) -> usize {
        self.block_count << (self.chunk_lg2 + BLOCK_LG2)
    }

    /// Returns the number of pages of a chunk.
    #[inline]
    pub(super) const fn chunk_pages(&self) -> usize {
        1 << self.chunk_lg2
    }

    /// Returns the number of pages of a block.
    pub(super) const fn block_pages(&self) -> usize {
        1 << (self.chunk_lg2 + BLOCK_LG2)
    }

    pub(super) const fn low_end(&self) -> usize {
        self.low_end
    }

    /// Returns the chunk that a page lies in, counted over all blocks.
    #[inline]
    pub(super) const fn chunk_of(&self, page: usize) -> usize {
        page >> self.chunk_lg2
    }

    #[inline]
    pub(super) const fn first_page(&self, chunk: usize) -> usize {
        chunk << self.chunk_lg2
    }

    #[inline]
    pub(super) const fn page_in_chunk(&self, page: usize) -> usize {
        page & (self.chunk_pages() - 1)
    }

    /// Returns the last address of 64 pages that share a word, by the number of the word.
    #[inline]
    pub(super) const fn last_of_word(&self, word: usize) -> Iova {
        // The end of the 64-bit space is 0.
        let end = (word as u64).wrapping_add(1) << (self.page_lg2 + WORD_LG2);
        Iova::new(self.base.wrapping_add(end).wrapping_sub(1))
    }

    /// Returns the block of a word, and its number there.
    #[inline]
    pub(super) const fn place_of_word(&self, word: usize) -> (usize, usize) {
        let lg2 = self.chunk_lg2 + BLOCK_LG2 - WORD_LG2;
        (word >> lg2, word & ((1 << lg2) - 1))
    }

    /// Returns how many pages of a chunk lie below `end`.
    pub(super) fn pages_below(&self, chunk: usize, end: usize) -> usize {
        let first = self.first_page(chunk);
        end.saturating_sub(first).min(self.chunk_pages())
    }

    /// Returns whether a run may begin with the first page of a chunk, as far as its alignment goes, or
    /// inside.
    pub(super) fn is_start(&self, chunk: usize, align: usize) -> bool {
        let page = (self.base >> self.page_lg2) as usize + self.first_page(chunk);
        page.is_multiple_of(align.max(self.chunk_pages()))
    }

    /// Returns the number that a block has in the 64-bit space.
    pub(super) const fn absolute_block(&self, block: usize) -> usize {
        (self.base >> (self.page_lg2 + self.chunk_lg2 + BLOCK_LG2)) as usize + block
    }

    /// Returns the blocks that `pages` touch.
    pub(super) const fn blocks(&self, pages: &Range<usize>) -> Range<usize> {
        let size = self.block_pages();
        pages.start / size..pages.end.div_ceil(size)
    }

    /// Returns the chunks of a block that `pages` touch, counted from 0.
    pub(super) fn chunks_in(&self, block: usize, pages: &Range<usize>) -> Range<usize> {
        let first = block * CHUNK_COUNT;
        let inside = |chunk: usize| chunk.saturating_sub(first).min(CHUNK_COUNT);
        inside(pages.start / self.chunk_pages())..inside(pages.end.div_ceil(self.chunk_pages()))
    }

    pub(super) const fn parts(&self, count: usize) -> Parts {
        Parts {
            blocks: count / self.block_pages(),
            chunks: count % self.block_pages() / self.chunk_pages(),
            pages: count % self.chunk_pages(),
        }
    }

    /// Returns the pages that lie wholly in a range.
    pub(super) fn pages_in(&self, range: IovaRange) -> Range<usize> {
        let mask = (1 << self.page_lg2) - 1;
        // As differences to the base, which no range starts below, they fit.
        let first = range.start().get() - self.base;
        let last = range.last().get() - self.base;
        let start = (first >> self.page_lg2) + u64::from(first & mask != 0);
        let end = (last >> self.page_lg2) + u64::from(last & mask == mask);
        start as usize..end.max(start) as usize
    }

    /// Returns the number of the first page that is not wholly at `last` or below.
    #[inline]
    pub(super) const fn end_at(&self, last: Iova) -> usize {
        let Some(below) = last.get().checked_sub(self.base) else {
            return 0;
        };
        let mask = (1 << self.page_lg2) - 1;
        let end = (below >> self.page_lg2) as usize + (below & mask == mask) as usize;
        if end < self.page_count() {
            end
        } else {
            self.page_count()
        }
    }

    /// Returns the number of pages that `len` bytes take; 0 for none.
    #[inline]
    pub(super) const fn pages_of(&self, len: u64) -> usize {
        (len >> self.page_lg2) as usize + (len & ((1 << self.page_lg2) - 1) != 0) as usize
    }

    /// Returns the bytes of so many pages; at most `u64::MAX`.
    pub(super) const fn len_of(&self, page_count: usize) -> u64 {
        (page_count as u64).saturating_mul(1 << self.page_lg2)
    }

    #[inline]
    pub(super) fn range_of(&self, page: usize, count: usize) -> IovaRange {
        let start = self.base + ((page as u64) << self.page_lg2);
        let last = start + (((count as u64 - 1) << self.page_lg2) | ((1 << self.page_lg2) - 1));
        IovaRange::new(Iova::new(start), Iova::new(last))
            .expect("the last page ends above the first")
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn layout(start: u64, last: u64, granule: PageSize) -> Layout {
        let aperture = IovaRange::new(Iova::new(start), Iova::new(last)).expect("a range");
        Layout::new(aperture, granule).expect("few blocks")
    }

    #[test]
    fn a_chunk_is_what_one_leaf_table_translates() {
        for (granule, chunk) in [
            (PageSize::KIB_4, 2 << 20),
            (PageSize::KIB_16, 32 << 20),
            (PageSize::KIB_64, 512 << 20),
        ] {
            let layout = layout(0, u64::MAX >> 16, granule);
            assert_eq!(layout.len_of(layout.chunk_pages()), chunk);
            assert_eq!(layout.len_of(layout.page_count()), 1 << 48);
            assert_eq!(layout.len_of(layout.low_end()), 1 << 32);
        }
    }

    #[test]
    fn pages_and_addresses_are_the_same_at_the_top_of_the_space() {
        let layout = layout(u64::MAX - 0xffff, u64::MAX, PageSize::KIB_4);
        let end = layout.page_count();
        assert_eq!(layout.end_at(Iova::new(u64::MAX)), end);
        assert_eq!(layout.end_at(Iova::new(u64::MAX - 1)), end - 1);
        assert_eq!(layout.end_at(Iova::new(0)), 0);
        let top = layout.range_of(end - 2, 2);
        assert_eq!(
            (top.start().get(), top.last().get()),
            (u64::MAX - 0x1fff, u64::MAX)
        );
        assert_eq!(layout.pages_in(top), end - 2..end);
        assert_eq!(layout.low_end(), 0);
    }

    #[test]
    fn a_range_has_only_the_pages_that_it_holds_wholly() {
        let layout = layout(0x1000, 0xffff, PageSize::KIB_4);
        let pages = |start, last| {
            let range = IovaRange::new(Iova::new(start), Iova::new(last)).expect("a range");
            layout.pages_in(range)
        };
        assert_eq!(pages(0x1000, 0x2fff), 1..3);
        assert_eq!(pages(0x1001, 0x2ffe), 2..2);
        assert!(pages(0x1001, 0x1ffe).is_empty());
        assert_eq!(layout.pages_of(1), 1);
        assert_eq!(layout.pages_of(0x1001), 2);
        assert_eq!(layout.pages_of(u64::MAX), 1 << 52);
    }

    #[test]
    fn spaces_of_too_many_blocks_are_refused() {
        assert!(Layout::new(IovaRange::FULL, PageSize::KIB_4).is_none());
        let last = Iova::new(1 << 48);
        let range = IovaRange::new(Iova::new(0), last).expect("a range");
        assert!(Layout::new(range, PageSize::KIB_4).is_none());
        assert!(Layout::new(range, PageSize::KIB_16).is_some());
    }
}
