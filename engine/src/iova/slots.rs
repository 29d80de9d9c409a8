//! What each thread has for itself: the chunks that it keeps to, and how often it moved free pages.
//!
//! Threads beyond the number of slots share them. All of it but the count of moves is hints.
//!
//! # Moves
//!
//! Pages are free in one place: a bit of their block, of their chunk or of their own. They go from one
//! to another, and out of sight for a moment, only in a [`Move`]. Who finds nothing compares how many
//! moves had ended before it looked with how many have begun since: if they are as many, none was under
//! way, and what was free all the time was seen.

use alloc::boxed::Box;

use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{CachePadded, thread_index};

/// Slots, a power of two.
const COUNT: usize = if cfg!(loom) { 2 } else { 64 };

pub(super) struct Slots(Box<[CachePadded<Slot>; COUNT]>);

/// What one thread has, or several share.
pub(super) struct Slot {
    /// Below and above 4 GiB.
    holds: [Hold; 2],
    /// Calls that are yet to leave the first zone out.
    skip_count: AtomicUsize,
    begun_count: AtomicUsize,
    ended_count: AtomicUsize,
}

/// The chunk that a thread keeps to.
pub(super) struct Hold {
    chunk: AtomicUsize,
    /// The word that was taken from last, by its number in the space; of that chunk, unless threads that
    /// share the slot each note one of them.
    word: AtomicUsize,
}

impl Slots {
    pub(super) fn new() -> Self {
        let hold = || Hold {
            chunk: AtomicUsize::new(Hold::NONE),
            word: AtomicUsize::new(Hold::NONE),
        };
        let slot = |_| {
            CachePadded::new(Slot {
                holds: [hold(), hold()],
                skip_count: AtomicUsize::new(0),
                begun_count: AtomicUsize::new(0),
                ended_count: AtomicUsize::new(0),
            })
        };
        Self(Box::new(core::array::from_fn(slot)))
    }

    /// Returns the slot of the calling thread.
    #[inline]
    pub(super) fn mine(&self) -> &Slot {
        &self.0[thread_index() & (COUNT - 1)]
    }

    /// Returns how many moves have ended.
    pub(super) fn ended_count(&self) -> usize {
        let counts = self.0.iter();
        counts.fold(0, |sum, slot| {
            sum.wrapping_add(slot.ended_count.load(Ordering::Acquire))
        })
    }

    /// Returns how many moves have begun; behind an acquiring fence, all whose changes were seen.
    pub(super) fn begun_count(&self) -> usize {
        let counts = self.0.iter();
        counts.fold(0, |sum, slot| {
            sum.wrapping_add(slot.begun_count.load(Ordering::Relaxed))
        })
    }
}

impl Slot {
    #[inline]
    pub(super) const fn hold(&self, is_high: bool) -> &Hold {
        &self.holds[is_high as usize]
    }

    /// Returns whether this call should leave the first zone out.
    pub(super) fn skips_first(&self) -> bool {
        let count = self.skip_count.load(Ordering::Relaxed);
        if count > 0 {
            self.skip_count.store(count - 1, Ordering::Relaxed);
        }
        count > 0
    }

    /// Lets the next `count` calls leave the first zone out.
    pub(super) fn skip_first(&self, count: usize) {
        self.skip_count.store(count, Ordering::Relaxed);
    }

    /// Says that free pages may be out of sight until the result is dropped.
    pub(super) fn begin_move(&self) -> Move<'_> {
        // Seen by whoever sees one of the changes that follow, which release.
        self.begun_count.fetch_add(1, Ordering::Relaxed);
        Move(self)
    }
}

/// Free pages on their way from one place to another.
pub(super) struct Move<'a>(&'a Slot);

impl Drop for Move<'_> {
    fn drop(&mut self) {
        self.0.ended_count.fetch_add(1, Ordering::Release);
    }
}

impl Hold {
    /// Keeps to no chunk, and no word.
    pub(super) const NONE: usize = usize::MAX;

    #[inline]
    pub(super) fn chunk(&self) -> usize {
        self.chunk.load(Ordering::Relaxed)
    }

    #[inline]
    pub(super) fn word(&self) -> usize {
        self.word.load(Ordering::Relaxed)
    }

    #[inline]
    pub(super) fn note_word(&self, word: usize) {
        if word != self.word() {
            self.word.store(word, Ordering::Relaxed);
        }
    }

    /// Keeps to another chunk from now on, and returns the one that the caller has to leave, which is
    /// handed to one caller alone.
    pub(super) fn keep_to(&self, chunk: usize) -> Option<usize> {
        let left = self.chunk.swap(chunk, Ordering::Relaxed);
        (left != Self::NONE && left != chunk).then_some(left)
    }
}
