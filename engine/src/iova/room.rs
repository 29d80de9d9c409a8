//! How long a run still fits in a chunk: a hint for who looks for one.
//!
//! A run *fits* if it is free at a multiple of its length, rounded up to a power of two. What is no longer
//! than one that fits, fits too: so the longest one says all.

use crate::iova::bits::{self, SMALL};
use crate::sync::atomic::{AtomicU64, Ordering};

/// More than any run that is shorter than a chunk: for what is not known to be less.
pub(super) const ANY: usize = (1 << 13) - 1;

/// Returns the length of the longest run that fits in a chunk of which one word has changed for the
/// better, and before that `least` was the longest.
pub(super) fn with_word(words: &[AtomicU64], word: &AtomicU64, least: usize) -> usize {
    match word.load(Ordering::Relaxed) {
        // Words beside it count too.
        0 => of_chunk(words),
        taken => rise(!taken, least),
    }
}

/// Returns the length of the longest run that fits in a chunk, or `ANY` if that is less.
pub(super) fn of_chunk(words: &[AtomicU64]) -> usize {
    let mut longest = 0;
    // Free pages in a row from the word that was looked at last.
    let mut row_len = 0;
    for (at, word) in words.iter().enumerate().rev() {
        let taken = word.load(Ordering::Relaxed);
        row_len = match taken {
            0 => row_len + SMALL,
            taken => taken.trailing_zeros() as usize,
        };
        // Longer runs are aligned to more than this word.
        let most = match at {
            0 => usize::MAX,
            at => SMALL << at.trailing_zeros(),
        };
        longest = longest.max(row_len.min(most));
        longest = rise(!taken, longest);
    }
    longest.min(ANY)
}

/// Returns the length of the longest run that fits in the bits of `free`, but `least` if that is more.
fn rise(free: u64, least: usize) -> usize {
    let fits = |count: usize| {
        let align_lg2 = align_of(count).trailing_zeros() as usize;
        bits::find_in_word(free, count, align_lg2).is_some()
    };
    // Mostly there is nothing longer.
    if least < free.count_ones() as usize && fits(least + 1) {
        longest(least + 1, free.count_ones() as usize, fits)
    } else {
        least
    }
}

/// Returns the largest count for which `fits` holds, from `least`, for which it does, to `most`.
fn longest(mut least: usize, mut most: usize, fits: impl Fn(usize) -> bool) -> usize {
    while least < most {
        let middle = (least + most).div_ceil(2);
        if fits(middle) {
            least = middle;
        } else {
            most = middle - 1;
        }
    }
    least
}

fn align_of(count: usize) -> usize {
    count.next_power_of_two()
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::intervals::random::{Random, rounds};

    #[test]
    fn the_room_of_a_chunk_is_the_longest_run_that_fits() {
        let mut random = Random::new(7);
        for _ in 0..rounds(3000) {
            let words: [AtomicU64; 8] = core::array::from_fn(|_| {
                AtomicU64::new(match random.below(5) {
                    0 | 1 => 0,
                    2 => u64::MAX << random.below(64),
                    3 => u64::MAX,
                    _ => random.next() & random.next() & random.next(),
                })
            });
            let longest = |words: &[AtomicU64]| {
                let fits = |&count: &usize| {
                    let is_taken = |bit: usize| {
                        words[bit / SMALL].load(Ordering::Relaxed) >> (bit % SMALL) & 1 != 0
                    };
                    let starts = 0..(words.len() * SMALL + 1).saturating_sub(count);
                    let mut starts = starts.step_by(align_of(count));
                    starts.any(|start| !(start..start + count).any(is_taken))
                };
                (1..=words.len() * SMALL).rev().find(fits).unwrap_or(0)
            };
            assert_eq!(of_chunk(&words), longest(&words), "{words:x?}");
            let least = random.index(64);
            let expected = match longest(&words[..1]) {
                SMALL => longest(&words),
                in_word => in_word.max(least),
            };
            assert_eq!(with_word(&words, &words[0], least), expected, "{words:x?}");
        }
    }
}
