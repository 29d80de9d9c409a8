//! 512 chunks: which of them are free as a whole, which pages of the others are, and what is known
//! about each without looking.
//!
//! | flag | meaning |
//! |---|---|
//! | `OPEN` | its pages are given out one by one; changes only while somebody owns all of them |
//! | `LISTED` | may have free pages, and no thread keeps to it |
//! | `HELD` | a thread keeps to it |
//!
//! Beside them stands the length of the longest run that [fits](room) in a listed chunk, as far as that
//! is known: a hint, and mostly not too low.
//!
//! # Memory order
//!
//! Flags are set behind the stores that open a chunk, and taken away in front of the look at its pages, by
//! releasing and acquiring read-modify-writes: who takes them away from a chunk that was just opened sees
//! what is free in it. And who sees `OPEN` gone, and so looks no further, sees the move in which it went.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::ops::Range;

use crate::iova::bits::{self, WORD_BITS};
use crate::iova::layout::CHUNK_COUNT;
use crate::iova::room;
use crate::sync::atomic::{AtomicU64, Ordering};

/// The bits of the length.
pub(super) const ROOM: u64 = room::ANY as u64;
pub(super) const OPEN: u64 = 1 << 13;
pub(super) const LISTED: u64 = 1 << 14;
pub(super) const HELD: u64 = 1 << 15;

/// Bits for what is known of one chunk.
const WIDTH: usize = 16;

/// Chunks whose flags share a word.
const PER_WORD: usize = u64::BITS as usize / WIDTH;

/// One bit of each chunk of a word.
const EACH: u64 = 0x0001_0001_0001_0001;

/// Words that fill a cache line.
const LINE_WORDS: usize = 8;

pub(super) struct Block {
    /// A bit a chunk.
    chunks: [AtomicU64; CHUNK_COUNT.div_ceil(WORD_BITS)],
    flags: [AtomicU64; CHUNK_COUNT.div_ceil(PER_WORD)],
    /// A bit a page, those of a chunk in as many whole cache lines as they fill.
    pages: Box<[AtomicU64]>,
    /// Words in front of the first that begins a cache line.
    skipped: usize,
    /// Words of a chunk.
    word_count: usize,
}

impl Block {
    /// Returns a block of which everything is taken, with `chunk_pages` pages a chunk, or `None` if
    /// there is no memory.
    pub(super) fn new(chunk_pages: usize) -> Option<Box<Self>> {
        let word_count = chunk_pages / WORD_BITS;
        let count = CHUNK_COUNT * word_count + LINE_WORDS - 1;
        let mut pages = Vec::new();
        pages.try_reserve_exact(count).ok()?;
        pages.extend((0..count).map(|_| AtomicU64::new(u64::MAX)));
        let misplaced = if cfg!(loom) {
            0 // Atomics of models are of any size.
        } else {
            pages.as_ptr().addr() / size_of::<u64>() % LINE_WORDS
        };
        Some(Box::new(Self {
            chunks: core::array::from_fn(|at| {
                AtomicU64::new(bits::low(CHUNK_COUNT - at * WORD_BITS))
            }),
            flags: core::array::from_fn(|_| AtomicU64::new(0)),
            pages: pages.into_boxed_slice(),
            skipped: (LINE_WORDS - misplaced) % LINE_WORDS,
            word_count,
        }))
    }

    #[inline]
    pub(super) fn chunks(&self) -> &[AtomicU64] {
        &self.chunks
    }

    /// Returns the words of a chunk of this block.
    #[inline]
    pub(super) fn pages(&self, chunk: usize) -> &[AtomicU64] {
        let first = self.skipped + chunk % CHUNK_COUNT * self.word_count;
        let words = self.pages.get(first..first + self.word_count);
        words.unwrap_or_default()
    }

    /// Returns a word by its number in this block.
    #[inline]
    pub(super) fn word(&self, at: usize) -> Option<&AtomicU64> {
        self.pages.get(self.skipped + at)
    }

    #[inline]
    pub(super) fn flags(&self, chunk: usize) -> u64 {
        let (word, shift) = self.flag_word(chunk);
        word.load(Ordering::Relaxed) >> shift
    }

    pub(super) fn set(&self, chunk: usize, flags: u64) {
        let (word, shift) = self.flag_word(chunk);
        word.fetch_or(flags << shift, Ordering::Release);
    }

    pub(super) fn clear(&self, chunk: usize, flags: u64) {
        let (word, shift) = self.flag_word(chunk);
        word.fetch_and(!(flags << shift), Ordering::AcqRel);
    }

    /// Turns a chunk into a held one.
    pub(super) fn hold(&self, chunk: usize) {
        let (word, shift) = self.flag_word(chunk);
        // In one step: who lets the chunk go meanwhile lists it before, or behind.
        let hold = |flags: u64| Some(flags & !(LISTED << shift) | HELD << shift);
        let _ = word.fetch_update(Ordering::Release, Ordering::Relaxed, hold);
    }

    /// Turns a listed chunk into a held one; false if another thread was faster.
    pub(super) fn hold_listed(&self, chunk: usize) -> bool {
        let (word, shift) = self.flag_word(chunk);
        let hold = |flags: u64| {
            let is_listed = flags >> shift & LISTED != 0;
            is_listed.then_some(flags & !(LISTED << shift) | HELD << shift)
        };
        word.fetch_update(Ordering::Relaxed, Ordering::Relaxed, hold)
            .is_ok()
    }

    #[inline]
    fn flag_word(&self, chunk: usize) -> (&AtomicU64, usize) {
        let chunk = chunk % CHUNK_COUNT;
        (&self.flags[chunk / PER_WORD], chunk % PER_WORD * WIDTH)
    }

    /// Returns the longest run that is known to fit in a listed chunk.
    pub(super) fn room(&self, chunk: usize) -> usize {
        (self.flags(chunk) & ROOM) as usize
    }

    /// Makes a chunk a listed one in which `room` pages fit, unless a thread keeps to it. Returns whether
    /// it was none.
    pub(super) fn list(&self, chunk: usize, room: usize) -> bool {
        let (word, shift) = self.flag_word(chunk);
        let list = |flags: u64| {
            let now = flags >> shift;
            let more = (room as u64).min(ROOM).saturating_sub(now & ROOM);
            let is_known = now & LISTED != 0 && more == 0;
            (now & HELD == 0 && !is_known).then_some((flags | LISTED << shift) + (more << shift))
        };
        let listed = word.fetch_update(Ordering::Release, Ordering::Relaxed, list);
        listed.is_ok_and(|flags| flags >> shift & LISTED == 0)
    }

    /// Notes that no more than `room` pages fit in a listed chunk.
    pub(super) fn note_room(&self, chunk: usize, room: usize) {
        let (word, shift) = self.flag_word(chunk);
        let note = |flags: u64| {
            let is_listed = flags >> shift & LISTED != 0;
            let room = (room as u64).min(ROOM);
            is_listed.then_some(flags & !(ROOM << shift) | room << shift)
        };
        let _ = word.fetch_update(Ordering::Relaxed, Ordering::Relaxed, note);
    }

    /// Returns the open chunks of `span`, counted from 0, lowest first.
    pub(super) fn open(&self, span: Range<usize>) -> impl Iterator<Item = usize> {
        self.select(span, |flags| flags / OPEN)
    }

    /// Returns the listed chunks of `span`, counted from 0, in which `count` pages may fit, lowest first.
    pub(super) fn listed(&self, count: usize, span: Range<usize>) -> impl Iterator<Item = usize> {
        // What has enough comes to `ROOM + 1` at least, and to no more than fits in as many bits again.
        let missing = (ROOM + 1).saturating_sub(count as u64) * EACH;
        self.select(span, move |flags| {
            let sums = (flags & (ROOM * EACH)) + missing;
            (sums / (ROOM + 1)) & (flags / LISTED)
        })
    }

    /// Returns the chunks of `span`, counted from 0, whose lowest bit `choose` leaves set, lowest first.
    fn select(
        &self,
        span: Range<usize>,
        choose: impl Fn(u64) -> u64,
    ) -> impl Iterator<Item = usize> {
        let first = span.start / PER_WORD;
        let words = self.flags.iter().enumerate().skip(first);
        let words = words.take(span.end.div_ceil(PER_WORD).saturating_sub(first));
        let all = words.flat_map(move |(at, word)| {
            let left = choose(word.load(Ordering::Relaxed)) & EACH;
            bits::set_bits(left).map(move |bit| at * PER_WORD + bit / WIDTH)
        });
        all.filter(move |chunk| span.contains(chunk))
    }

    /// Returns whether any chunk has `flag`.
    pub(super) fn has(&self, flag: u64) -> bool {
        let mut words = self.flags.iter();
        words.any(|word| word.load(Ordering::Relaxed) & (EACH * flag) != 0)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_a_chunk_are_whole_cache_lines() {
        for chunk_pages in [512, 2048] {
            let block = Block::new(chunk_pages).expect("memory");
            for chunk in [0, 1, CHUNK_COUNT - 1] {
                let words = block.pages(chunk);
                assert_eq!(words.len() * WORD_BITS, chunk_pages);
                assert!(words.as_ptr().addr().is_multiple_of(64));
            }
        }
    }

    #[test]
    fn flags_of_one_chunk_leave_those_of_others_alone() {
        let block = Block::new(512).expect("memory");
        for chunk in [3, 15, 16, 511] {
            block.set(chunk, LISTED | OPEN);
        }
        assert!(block.hold_listed(15) && !block.hold_listed(15));
        block.clear(3, LISTED);
        let open = |span| block.open(span).collect::<Vec<_>>();
        let listed = |room| block.listed(room, 0..512).collect::<Vec<_>>();
        assert_eq!(open(0..512), [3, 15, 16, 511]);
        assert_eq!(open(4..511), [15, 16]);
        assert_eq!(listed(0), [16, 511]);
        assert_eq!(listed(1), []);
        assert!(!block.list(16, 5) && block.list(17, room::ANY) && !block.list(15, 9));
        assert!(!block.list(16, 4), "it is not lowered");
        assert_eq!(
            [15, 16, 17].map(|chunk| block.room(chunk)),
            [0, 5, room::ANY]
        );
        assert_eq!([5, 6].map(listed), [Vec::from([16, 17]), Vec::from([17])]);
        assert!(block.has(HELD));
        block.note_room(17, 4);
        assert_eq!(listed(5), [16]);
        block.clear(15, HELD);
        assert!(!block.has(HELD));
    }
}
