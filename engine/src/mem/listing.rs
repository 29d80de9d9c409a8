//! What is known about each chunk without looking at its pages.
//!
//! | flag | meaning |
//! |---|---|
//! | `LISTED` | may have free pages, and no thread keeps to it |
//! | `HELD` | a thread keeps to it |
//! | `TOUCHED` | pages came back here since the memory behind them was last given back to the system |
//!
//! Flags are hints: they say where to look first, and nothing depends on them but speed, the order
//! of addresses and what a trim finds. So all accesses are relaxed.
//!
//! # Invariant
//!
//! - **H1** (found): once all calls have returned, a chunk that has been reached and has a free page
//!   is `LISTED` or `HELD`, and one that a page came back to since the last trim is `TOUCHED`.
//!
//! It holds because who takes both flags away looks at the pages *afterwards*, by
//! read-modify-writes, and lists the chunk again if one is free
//! ([`Frames::leave`](crate::mem::frames::Frames)); and who puts a page back looks at the flags
//! *afterwards*. Of the two read-modify-writes of the page's word one comes first: the leaver sees
//! the page, or the putter acquires what the leaver released and so cannot load flags from before.

use alloc::boxed::Box;

use crate::mem::bits;
use crate::sync::atomic::{AtomicU64, Ordering};

const LISTED: u64 = 1;
const HELD: u64 = 2;
const TOUCHED: u64 = 4;

/// Bits for the flags of one chunk.
const WIDTH: usize = 4;

/// Chunks whose flags share a word.
const CHUNKS: usize = u64::BITS as usize / WIDTH;

/// `LISTED` of each chunk of a word.
const ALL_LISTED: u64 = 0x1111_1111_1111_1111;

/// The flags, by chunk.
pub(super) struct Listing(Box<[AtomicU64]>);

impl Listing {
    /// Returns the flags of `count` chunks, or `None` if the allocator has no room for them.
    pub(super) fn new(count: usize) -> Option<Self> {
        bits::zeroed_words(count.div_ceil(CHUNKS)).map(Self)
    }

    /// Makes sure that a chunk is found of which a page has just been put back. Mostly one load.
    #[inline]
    pub(super) fn put_back(&self, index: usize) {
        let flags = self.get(index);
        if flags & TOUCHED == 0 || flags & (LISTED | HELD) == 0 {
            self.set(index, TOUCHED | LISTED);
        }
    }

    /// Makes sure that a chunk with free pages is found.
    pub(super) fn list(&self, index: usize) {
        if self.get(index) & (LISTED | HELD) == 0 {
            self.set(index, LISTED);
        }
    }

    /// Returns the listed chunks below `end`, lowest first.
    pub(super) fn listed(&self, end: usize) -> impl Iterator<Item = usize> {
        let words = self.0.iter().take(end.div_ceil(CHUNKS)).enumerate();
        words.flat_map(|(at, word)| {
            let mut left = word.load(Ordering::Relaxed) & ALL_LISTED;
            core::iter::from_fn(move || {
                let bit = left.trailing_zeros();
                left &= left.wrapping_sub(1);
                (bit < u64::BITS).then_some(at * CHUNKS + bit as usize / WIDTH)
            })
        })
    }

    /// Turns a listed chunk into a held one; false if another thread was faster.
    pub(super) fn hold_listed(&self, index: usize) -> bool {
        let Some((word, shift)) = self.word(index) else {
            return false;
        };
        let hold = |flags: u64| {
            let is_listed = flags >> shift & LISTED != 0;
            is_listed.then(|| flags & !(LISTED << shift) | HELD << shift)
        };
        word.fetch_update(Ordering::Relaxed, Ordering::Relaxed, hold)
            .is_ok()
    }

    /// Notes that a thread keeps to a chunk.
    pub(super) fn hold(&self, index: usize) {
        self.set(index, HELD);
    }

    /// Returns whether a thread keeps to the chunk.
    pub(super) fn is_held(&self, index: usize) -> bool {
        self.get(index) & HELD != 0
    }

    /// Returns whether a chunk is listed or held.
    #[cfg(all(test, loom))]
    pub(super) fn is_known(&self, index: usize) -> bool {
        self.get(index) & (LISTED | HELD) != 0
    }

    /// Takes the chunk off every list; the caller looks at its pages afterwards.
    pub(super) fn forget(&self, index: usize) {
        self.clear(index, LISTED | HELD);
    }

    #[inline]
    fn get(&self, index: usize) -> u64 {
        self.word(index)
            .map_or(0, |(word, shift)| word.load(Ordering::Relaxed) >> shift)
    }

    fn set(&self, index: usize, flags: u64) {
        if let Some((word, shift)) = self.word(index) {
            word.fetch_or(flags << shift, Ordering::Relaxed);
        }
    }

    fn clear(&self, index: usize, flags: u64) {
        if let Some((word, shift)) = self.word(index) {
            word.fetch_and(!(flags << shift), Ordering::Relaxed);
        }
    }

    #[inline]
    fn word(&self, index: usize) -> Option<(&AtomicU64, usize)> {
        let word = self.0.get(index / CHUNKS)?;
        Some((word, index % CHUNKS * WIDTH))
    }
}

/// What a memory needs that the system backs page by page.
#[cfg(feature = "std")]
impl Listing {
    /// Notes that memory of the chunk is in use by the system.
    pub(super) fn touch(&self, index: usize) {
        self.set(index, TOUCHED);
    }

    pub(super) fn is_touched(&self, index: usize) -> bool {
        self.get(index) & TOUCHED != 0
    }

    /// Undoes [`touch`](Self::touch); for who owns all pages of the chunk.
    pub(super) fn untouch(&self, index: usize) {
        self.clear(index, TOUCHED);
    }
}
