//! Which pages of the space are free, for many threads and without a lock.
//!
//! ```text
//! thread -> its hold: a word of the chunk that it keeps to: one atomic operation
//!              | no run of that size left
//!              +-> any word of the chunk -> lowest listed chunk that has room -> next free chunk
//!                                                             [nothing at all] -> any chunk
//!
//! block   512 chunks    bit clear: free as a whole
//!   chunk   512 pages   bit clear in an open block: free as a whole
//!     page              bit clear in an open chunk: free
//! ```
//!
//! A run below a chunk lies in one chunk, one below a block in one block. A longer one begins with whole
//! chunks or blocks and ends with the first pages of one more chunk, whose other pages are given out one
//! by one. So the length says which bits a run consists of ([`Parts`]), whatever became of its neighbours.
//!
//! A hold is the numbers of a chunk and of a word, nothing more: its pages stay where they are and anybody
//! may free them, or take them when nothing else is left. So nothing is lost with a thread that ends.
//!
//! A thread leaves its chunk for another one if a run that lies in one word has no room there. A longer run
//! comes out of another chunk without that: else each would leave one behind that has room for short
//! ones. Which chunks have room for how much is noted beside their flags ([`room`]), so that a search does
//! not look at the pages of all of them.
//!
//! # Invariants
//!
//! - **V1** (one owner): a page belongs to the owner of its bit: while its chunk is open, of its own;
//!   while its block is open and its chunk is not, of that of the chunk; else of that of the block. A bit
//!   that is clear is free; one that is set belongs to the caller that set it, until that one clears
//!   it. All bits of a chunk that is not open are set, as are those of chunks and blocks outside of the
//!   windows for good.
//! - **V2** (handed over): what an owner did before it freed a page happens before what the next one does.
//! - **V3** (moves): who owns bits only to open or to close a chunk or a block, or may have to put back
//!   what it took, is in a [`Move`].
//! - **V4** (found): once all calls have returned, an open chunk with a free page is `LISTED` or `HELD`,
//!   and a block with a listed chunk, or a free one, is marked so.
//! - **V5** (whole again): once all calls have returned, an open chunk of which all pages are free is
//!   `HELD`, and so is one in each open block of which all pages are free.
//!
//! V1 holds because bits are set and cleared by read-modify-writes ([`bits`]), and because a chunk is
//! opened and closed by who owns all of its pages: the bit of the chunk first, then each page of it, or
//! the other way round. V4 holds because who lets a chunk go looks at its pages *afterwards*, by
//! read-modify-writes, and who frees a page, or puts one back that it took in vain, looks at the flags
//! *afterwards*: of the two changes of the page's word one comes first. V5 holds because who empties a word looks at the others behind a
//! sequentially consistent fence: the last one sees them all empty; and as V4 does. Flags and marks
//! are hints; a search that is to be sure ignores them, but for `OPEN`, which changes in moves only.

use alloc::boxed::Box;
use core::ops::Range;

use crate::iova::bits::{self, WORD_BITS};
use crate::iova::block::{Block, HELD, LISTED, OPEN, ROOM};
use crate::iova::directory::Directory;
use crate::iova::layout::{CHUNK_COUNT, Layout};
use crate::iova::marks::{self, Marks};
use crate::iova::room;
use crate::iova::slots::{Hold, Slot, Slots};
use crate::sync::atomic::{AtomicU64, Ordering, fence};

pub(super) struct Space {
    pub(super) layout: Layout,
    /// A bit a block.
    pub(super) blocks: Box<[AtomicU64]>,
    pub(super) directory: Directory,
    /// Blocks that are open.
    pub(super) open: Marks,
    /// Blocks that may have a listed chunk.
    pub(super) listed: Marks,
    /// Blocks that may have a free chunk.
    pub(super) roomy: Marks,
    pub(super) slots: Slots,
}

/// There is no memory for the allocator's own data.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct NoMemory;

impl Space {
    /// Returns a space of which the pages of `windows` are free, which do not overlap.
    pub(super) fn new(
        layout: Layout,
        windows: impl Iterator<Item = Range<usize>>,
    ) -> Result<Self, NoMemory> {
        let block_count = layout.block_count();
        let marks = || Marks::new(block_count).ok_or(NoMemory);
        let space = Self {
            layout,
            blocks: marks::words(block_count, u64::MAX).ok_or(NoMemory)?,
            directory: Directory::new(block_count).ok_or(NoMemory)?,
            open: marks()?,
            listed: marks()?,
            roomy: marks()?,
            slots: Slots::new(),
        };
        for window in windows {
            space.add(window)?;
        }
        Ok(space)
    }

    /// Frees the pages of a window; nobody else knows the space yet.
    fn add(&self, window: Range<usize>) -> Result<(), NoMemory> {
        let layout = &self.layout;
        let mut page = window.start;
        while page < window.end {
            let left = window.end - page;
            let block = page / layout.block_pages();
            if page.is_multiple_of(layout.block_pages()) && left >= layout.block_pages() {
                bits::put(&self.blocks, block, 1);
                page += layout.block_pages();
                continue;
            }
            let entry = self.block_or_make(block)?;
            self.open.mark(block);
            let chunk = layout.chunk_of(page);
            let first = layout.page_in_chunk(page);
            let count = left.min(layout.chunk_pages() - first);
            if count == layout.chunk_pages() {
                bits::put(entry.chunks(), chunk % CHUNK_COUNT, 1);
                self.roomy.mark(block);
            } else {
                entry.set(chunk, OPEN);
                bits::put(entry.pages(chunk), first, count);
                self.list_new(entry, chunk);
            }
            page += count;
        }
        Ok(())
    }

    /// Returns the block that a chunk lies in, if it exists.
    #[inline]
    pub(super) fn block_of(&self, chunk: usize) -> Option<&Block> {
        self.directory.get(chunk / CHUNK_COUNT)
    }

    /// Returns a word of the pages of a block that exists, by its number in the space.
    #[inline]
    pub(super) fn word(&self, at: usize) -> Option<&AtomicU64> {
        let (block, inside) = self.layout.place_of_word(at);
        self.directory.get(block)?.word(inside)
    }

    pub(super) fn block_or_make(&self, block: usize) -> Result<&Block, NoMemory> {
        let make = || Block::new(self.layout.chunk_pages());
        self.directory.get_or_make(block, make).ok_or(NoMemory)
    }

    /// Frees `count` pages from `start` on, which were taken together. Cannot fail, and needs no memory.
    #[cold]
    pub(super) fn put(&self, start: usize, count: usize) {
        let first = self.layout.page_in_chunk(start);
        let chunk = self.layout.chunk_of(start);
        if first % WORD_BITS + count <= WORD_BITS
            && let Some(block) = self.block_of(chunk)
            && let Some(word) = block.pages(chunk).get(first / WORD_BITS)
        {
            self.put_in_word(start, count, word);
        } else {
            self.put_parts(start, count);
        }
    }

    /// As [`put`](Self::put), for a run whose bits are in `word`.
    #[inline]
    pub(super) fn put_in_word(&self, start: usize, count: usize, word: &AtomicU64) {
        let is_emptied = bits::put_mask(word, bits::low(count) << (start % WORD_BITS));
        let chunk = self.layout.chunk_of(start);
        if let Some(block) = self.block_of(chunk)
            && block.flags(chunk) & HELD == 0
        {
            self.settle_put_in_word(block, chunk, is_emptied, word);
        }
    }

    #[cold]
    fn put_parts(&self, start: usize, count: usize) {
        let parts = self.layout.parts(count);
        // From the end on, so that what closes in the first steps is whole in the last.
        if parts.pages > 0 {
            let page = start + count - parts.pages;
            let chunk = self.layout.chunk_of(page);
            if let Some(block) = self.block_of(chunk) {
                let first = self.layout.page_in_chunk(page);
                let is_emptied = bits::put(block.pages(chunk), first, parts.pages);
                self.settle_put(block, chunk, is_emptied);
            }
        }
        let page = start + parts.blocks * self.layout.block_pages();
        if parts.chunks > 0 {
            self.put_chunks(self.layout.chunk_of(page), parts.chunks);
        }
        if parts.blocks > 0 {
            let block = start / self.layout.block_pages();
            bits::put(&self.blocks, block, parts.blocks);
        }
    }

    /// As [`settle_put`](Self::settle_put), for pages of one word.
    #[cold]
    fn settle_put_in_word(&self, block: &Block, chunk: usize, is_emptied: bool, word: &AtomicU64) {
        if is_emptied {
            self.settle_put(block, chunk, true);
        } else {
            let room = room::with_word(block.pages(chunk), word, block.room(chunk));
            self.list(block, chunk, room);
        }
    }

    /// Sees to a chunk to which pages came back, if nobody keeps to it.
    pub(super) fn settle_put(&self, block: &Block, chunk: usize, is_emptied: bool) {
        let is_held = block.flags(chunk) & HELD != 0;
        if is_held || is_emptied && self.is_idle(block, chunk) && self.close_chunk(block, chunk) {
            return;
        }
        self.list(block, chunk, room::of_chunk(block.pages(chunk)));
    }

    /// Returns whether all pages of a chunk are free; true for who put the last one.
    fn is_idle(&self, block: &Block, chunk: usize) -> bool {
        fence(Ordering::SeqCst);
        bits::is_free(block.pages(chunk), self.layout.chunk_pages())
    }

    /// Frees whole chunks of one block, which the caller owns.
    pub(super) fn put_chunks(&self, chunk: usize, count: usize) {
        let index = chunk / CHUNK_COUNT;
        let Some(block) = self.block_of(chunk) else {
            return;
        };
        let is_emptied = bits::put(block.chunks(), chunk % CHUNK_COUNT, count);
        fence(Ordering::SeqCst);
        if is_emptied && bits::is_free(block.chunks(), CHUNK_COUNT) && self.close_block(index) {
            return;
        }
        self.roomy.mark(index);
    }

    /// Makes a chunk with other than free pages found, by who looks for up to `room` of them.
    pub(super) fn list(&self, block: &Block, chunk: usize, room: usize) {
        if block.list(chunk, room) {
            self.listed.mark(chunk / CHUNK_COUNT);
        }
    }

    /// Makes a chunk found that the caller has just opened. Whoever kept to it before it was closed may
    /// let it go only now, so its flags say nothing yet.
    pub(super) fn list_new(&self, block: &Block, chunk: usize) {
        block.set(chunk, LISTED | ROOM);
        self.listed.mark(chunk / CHUNK_COUNT);
    }

    /// Makes one free chunk of all pages of an open one; false, with everything as before, if one of them is
    /// not free.
    pub(super) fn close_chunk(&self, block: &Block, chunk: usize) -> bool {
        let _move = self.slots.mine().begin_move();
        if !bits::take(block.pages(chunk), 0, self.layout.chunk_pages()) {
            return false;
        }
        block.clear(chunk, OPEN | LISTED | HELD | ROOM);
        self.put_chunks(chunk, 1);
        true
    }

    /// As [`close_chunk`](Self::close_chunk), for a block of which all chunks are free.
    fn close_block(&self, index: usize) -> bool {
        let Some(block) = self.directory.get(index) else {
            return false;
        };
        let _move = self.slots.mine().begin_move();
        if !bits::take(block.chunks(), 0, CHUNK_COUNT) {
            return false;
        }
        self.open.clear(index);
        self.roomy.clear(index);
        bits::put(&self.blocks, index, 1);
        true
    }

    /// Keeps to `chunk` from now on, instead of the one that the thread kept to.
    pub(super) fn enter(&self, slot: &Slot, block: &Block, chunk: usize) {
        block.hold(chunk);
        let is_high = self.layout.first_page(chunk) >= self.layout.low_end();
        let hold = slot.hold(is_high);
        hold.note_word(self.layout.first_page(chunk) / WORD_BITS);
        if let Some(left) = hold.keep_to(chunk) {
            self.leave(left);
        }
    }

    /// Lets a chunk go, for others to find what is free in it.
    pub(super) fn leave(&self, chunk: usize) {
        let Some(block) = self.block_of(chunk) else {
            return;
        };
        block.clear(chunk, LISTED | HELD | ROOM);
        let free_count = bits::settle(block.pages(chunk));
        let is_idle = free_count == self.layout.chunk_pages();
        if is_idle && self.close_chunk(block, chunk) || free_count == 0 {
            return;
        }
        self.list(block, chunk, room::of_chunk(block.pages(chunk)));
    }

    /// Lets the chunks go that the calling thread keeps to.
    pub(super) fn leave_all(&self) {
        let slot = self.slots.mine();
        for is_high in [false, true] {
            let hold = slot.hold(is_high);
            hold.note_word(Hold::NONE);
            if let Some(left) = hold.keep_to(Hold::NONE) {
                self.leave(left);
            }
        }
    }
}
