//! Which entries of the ring are written: one bit each, without a clear between two laps.
//!
//! A bit that differs from the parity of the lap says that the entry of this lap is written. Each entry is
//! written once a lap, which flips its bit once, and an entry of the next lap is written only after the one
//! of this lap was published. So a bit is never in doubt, and nobody has to take it back.

use alloc::boxed::Box;

use crate::sync::atomic::{AtomicU64, Ordering};

/// Bits of a word.
const WORD_BITS: u64 = u64::BITS as u64;

/// The bits of a ring.
#[derive(Debug)]
pub(super) struct Marks {
    words: Box<[AtomicU64]>,
    lg2_entries: u32,
}

/// Entries that have their bits in one word.
struct Segment {
    word: usize,
    shift: u32,
    len: u64,
}

impl Marks {
    /// Creates the bits of a ring whose entries are not written from position `start` on.
    pub(super) fn new(lg2_entries: u32, start: u64) -> Self {
        let word_count = (1_u64 << lg2_entries).div_ceil(WORD_BITS);
        let marks = Self {
            words: (0..word_count).map(|_| AtomicU64::new(0)).collect(),
            lg2_entries,
        };
        // Before `start` stand entries of its lap, that is bits of the next one that say "not written".
        let lap_start = start >> lg2_entries << lg2_entries;
        if marks.is_odd(start) {
            marks.flip(start, lap_start + marks.entry_count() - start);
        } else {
            marks.flip(lap_start, start - lap_start);
        }
        marks
    }

    const fn entry_count(&self) -> u64 {
        1 << self.lg2_entries
    }

    const fn is_odd(&self, position: u64) -> bool {
        (position >> self.lg2_entries) & 1 == 1
    }

    const fn segment(&self, position: u64) -> Segment {
        let index = position & (self.entry_count() - 1);
        let shift = index % WORD_BITS;
        let (in_word, in_ring) = (WORD_BITS - shift, self.entry_count() - index);
        Segment {
            word: (index / WORD_BITS) as usize,
            shift: shift as u32,
            len: if in_word < in_ring { in_word } else { in_ring },
        }
    }

    /// Says that the `count` entries from `start` on are written, to whoever sees it by
    /// [`end`](Self::end) (K3).
    pub(super) fn set(&self, start: u64, count: u64) {
        self.flip(start, count);
    }

    fn flip(&self, start: u64, count: u64) {
        let end = start + count;
        let mut at = start;
        while at < end {
            let segment = self.segment(at);
            let len = segment.len.min(end - at);
            let bits = (u64::MAX >> (WORD_BITS - len)) << segment.shift;
            self.words[segment.word].fetch_xor(bits, Ordering::Release);
            at += len;
        }
    }

    /// Returns the first position from `start` on whose entry is not written (K3). What was done before the
    /// others were is acquired by a fence of the caller.
    pub(super) fn end(&self, start: u64) -> u64 {
        let limit = start + self.entry_count();
        let mut at = start;
        while at < limit {
            let segment = self.segment(at);
            let word = self.words[segment.word].load(Ordering::Relaxed);
            let written = if self.is_odd(at) { !word } else { word };
            let run = u64::from((written >> segment.shift).trailing_ones());
            at += run.min(segment.len);
            if run < segment.len {
                break;
            }
        }
        at.min(limit)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// Against a list of flags, for rings below, at and above the size of a word.
    #[test]
    fn runs_end_where_nothing_is_written() {
        // One word, part of one, and several.
        let sizes: &[u32] = if cfg!(miri) {
            &[1, 3, 7]
        } else {
            &[1, 3, 6, 7, 8]
        };
        let laps = if cfg!(miri) { 1 } else { 4 };
        for &lg2_entries in sizes {
            let count = 1_u64 << lg2_entries;
            for first in [0, 1, count - 1, count, 2 * count + 1, 7 * count - 1] {
                let marks = Marks::new(lg2_entries, first);
                let mut start = first;
                for step in 0..laps * count {
                    assert_eq!(marks.end(start), start, "{lg2_entries} {first} {step}");
                    let len = 1 + (step * 5 + first) % count;
                    // The later half first: a hole hides it.
                    let middle = start + len / 2;
                    marks.set(middle, len - len / 2);
                    let end = if middle == start { start + len } else { start };
                    assert_eq!(marks.end(start), end);
                    marks.set(start, middle - start);
                    assert_eq!(marks.end(start), start + len);
                    assert_eq!(marks.end(start + len - 1), start + len);
                    start += len;
                }
            }
        }
    }
}
