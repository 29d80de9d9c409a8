//! A bit a block that says where a search pays.
//!
//! # Invariant
//!
//! - **X1** (found): once all calls have returned, every block that has what a mark stands for is
//!   marked. Who makes a block have it, and then finds the mark set, and who finds nothing, and then
//!   takes the mark away, have a sequentially consistent fence between the two steps, and the latter
//!   looks again afterwards: so one of them sees what the other did.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::ops::Range;

use crate::iova::bits::{self, WORD_BITS};
use crate::sync::atomic::{AtomicU64, Ordering, fence};

pub(super) struct Marks(Box<[AtomicU64]>);

impl Marks {
    /// Returns the marks of `count` blocks, none set, or `None` if there is no memory.
    pub(super) fn new(count: usize) -> Option<Self> {
        words(count, 0).map(Self)
    }

    /// Sets a mark: that for which it stands has just come about.
    pub(super) fn mark(&self, block: usize) {
        fence(Ordering::SeqCst);
        let bit = 1 << (block % WORD_BITS);
        if let Some(word) = self.0.get(block / WORD_BITS)
            && word.load(Ordering::Relaxed) & bit == 0
        {
            word.fetch_or(bit, Ordering::Relaxed);
        }
    }

    /// Takes a mark away unless the block `has` that for which it stands.
    pub(super) fn clear_unless(&self, block: usize, has: impl Fn() -> bool) {
        if !has() {
            self.clear(block);
            fence(Ordering::SeqCst);
            if has() {
                self.mark(block);
            }
        }
    }

    pub(super) fn clear(&self, block: usize) {
        if let Some(word) = self.0.get(block / WORD_BITS) {
            // Who sees it gone, and so looks no further, sees the move in which it went.
            word.fetch_and(!(1 << (block % WORD_BITS)), Ordering::Release);
        }
    }

    pub(super) fn is_marked(&self, block: usize) -> bool {
        let word = self.0.get(block / WORD_BITS);
        word.is_some_and(|word| word.load(Ordering::Relaxed) >> (block % WORD_BITS) & 1 != 0)
    }

    /// Returns the marked blocks of `span`, lowest first.
    pub(super) fn iter(&self, span: Range<usize>) -> impl Iterator<Item = usize> {
        let first = span.start / WORD_BITS;
        let words = self.0.iter().enumerate().skip(first);
        let words = words.take(span.end.div_ceil(WORD_BITS).saturating_sub(first));
        let all = words.flat_map(|(at, word)| {
            let left = word.load(Ordering::Relaxed);
            bits::set_bits(left).map(move |bit| at * WORD_BITS + bit)
        });
        all.filter(move |block| span.contains(block))
    }
}

/// Returns words for `count` bits, or `None` if there is no memory.
pub(super) fn words(count: usize, value: u64) -> Option<Box<[AtomicU64]>> {
    let count = count.div_ceil(WORD_BITS);
    let mut words = Vec::new();
    words.try_reserve_exact(count).ok()?;
    words.extend((0..count).map(|_| AtomicU64::new(value)));
    Some(words.into_boxed_slice())
}
