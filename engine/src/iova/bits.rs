//! Runs of bits over words of atomics: set is taken, clear is free.
//!
//! # Memory order
//!
//! Bits are set and cleared by acquiring and releasing read-modify-writes, and every change of a word
//! that is shared is one. So a taker synchronizes with whoever freed the bits before, whatever came
//! between (V2); and who sees that a word changed, sees what the changer did before.

use crate::sync::atomic::{AtomicU64, Ordering};

/// Bits of one word.
pub(super) const WORD_BITS: usize = u64::BITS as usize;

/// Largest run that is looked for inside one word.
pub(super) const SMALL: usize = WORD_BITS;

/// Bits where an aligned run can start, by the logarithm of the alignment.
const STARTS: [u64; 7] = [
    0xffff_ffff_ffff_ffff,
    0x5555_5555_5555_5555,
    0x1111_1111_1111_1111,
    0x0101_0101_0101_0101,
    0x0001_0001_0001_0001,
    0x0000_0001_0000_0001,
    0x0000_0000_0000_0001,
];

/// Returns a word whose lowest `count` bits are set, all for 64 and more.
#[inline]
pub(super) const fn low(count: usize) -> u64 {
    if count >= WORD_BITS {
        u64::MAX
    } else {
        (1 << count) - 1
    }
}

/// Returns where the lowest run of `count` set bits, 1 to 64, starts in `free` at a multiple of
/// `2^align_lg2`.
#[inline]
pub(super) fn find_in_word(free: u64, count: usize, align_lg2: usize) -> Option<usize> {
    let mut runs = free;
    let mut len = 1;
    // A bit says that `len` bits from it on are set.
    while len < count {
        let step = len.min(count - len);
        runs &= runs >> step;
        len += step;
    }
    runs &= STARTS.get(align_lg2)?;
    (runs != 0).then(|| runs.trailing_zeros() as usize)
}

/// Takes the lowest free bit of a word.
#[inline]
pub(super) fn take_one(word: &AtomicU64) -> Option<usize> {
    let mut taken = word.load(Ordering::Relaxed);
    while taken != u64::MAX {
        let with_one = taken | (taken + 1);
        match word.compare_exchange_weak(taken, with_one, Ordering::AcqRel, Ordering::Relaxed) {
            Ok(_) => return Some(taken.trailing_ones() as usize),
            Err(now) => taken = now,
        }
    }
    None
}

/// Returns the numbers of the bits that are set, lowest first.
#[inline]
pub(super) fn set_bits(mut left: u64) -> impl Iterator<Item = usize> {
    core::iter::from_fn(move || {
        let bit = left.trailing_zeros();
        left &= left.wrapping_sub(1);
        (bit < u64::BITS).then_some(bit as usize)
    })
}

/// Takes the lowest run of `count` bits, 1 to 64, of a word.
#[inline]
pub(super) fn take_in_word(word: &AtomicU64, count: usize, align_lg2: usize) -> Option<usize> {
    take_among(word, u64::MAX, count, align_lg2)
}

/// As [`take_in_word`], among the bits of a mask.
#[inline]
fn take_among(word: &AtomicU64, mask: u64, count: usize, align_lg2: usize) -> Option<usize> {
    let mut taken = word.load(Ordering::Relaxed);
    loop {
        let bit = find_in_word(!taken & mask, count, align_lg2)?;
        let all = taken | low(count) << bit;
        match word.compare_exchange_weak(taken, all, Ordering::AcqRel, Ordering::Relaxed) {
            Ok(_) => return Some(bit),
            Err(now) => taken = now,
        }
    }
}

/// Takes the lowest run of `count` bits, 1 to 64, below `end` that lies in one word. Words from `from`
/// on come first.
#[inline]
pub(super) fn take_small(
    words: &[AtomicU64],
    from: usize,
    count: usize,
    align_lg2: usize,
    end: usize,
) -> Option<usize> {
    let (front, back) = words.split_at_checked(from)?;
    let find = |(at, word): (usize, &AtomicU64)| {
        let mask = low(end.saturating_sub(at * WORD_BITS));
        take_among(word, mask, count, align_lg2).map(|bit| at * WORD_BITS + bit)
    };
    let in_back = (from..).zip(back).find_map(find);
    in_back.or_else(|| front.iter().enumerate().find_map(find))
}

/// Returns where [`take_small`] would take, with the lowest word first.
pub(super) fn find_small(
    words: &[AtomicU64],
    count: usize,
    align_lg2: usize,
    end: usize,
) -> Option<usize> {
    words.iter().enumerate().find_map(|(at, word)| {
        let beyond = !low(end.saturating_sub(at * WORD_BITS));
        let taken = word.load(Ordering::Relaxed) | beyond;
        Some(at * WORD_BITS + find_in_word(!taken, count, align_lg2)?)
    })
}

/// Takes `count` bits from `first` on, all or none: what was taken is put back if one of the others is
/// taken already.
pub(super) fn take(words: &[AtomicU64], first: usize, count: usize) -> bool {
    for (at, mask) in masks(first, count) {
        let is_taken = words.get(at).is_some_and(|word| {
            let take = |taken: u64| (taken & mask == 0).then_some(taken | mask);
            word.fetch_update(Ordering::AcqRel, Ordering::Relaxed, take)
                .is_ok()
        });
        if !is_taken {
            let done_count = (at * WORD_BITS).saturating_sub(first);
            put(words, first, done_count);
            return false;
        }
    }
    true
}

/// Clears `count` bits from `first` on, which the caller owns. Returns whether a word has none left.
pub(super) fn put(words: &[AtomicU64], first: usize, count: usize) -> bool {
    masks(first, count).fold(false, |is_emptied, (at, mask)| {
        words.get(at).is_some_and(|word| put_mask(word, mask)) | is_emptied
    })
}

/// Clears the bits of `mask`, which the caller owns. Returns whether the word has none left.
#[inline]
pub(super) fn put_mask(word: &AtomicU64, mask: u64) -> bool {
    // All of them are set, so this clears them and nothing else: one instruction, where clearing with the
    // old value is a loop on many processors.
    let before = word.fetch_sub(mask, Ordering::AcqRel);
    debug_assert_eq!(before & mask, mask, "freed twice");
    before == mask
}

/// Stores words of which the caller owns every bit: the lowest `count` are taken, the others free.
pub(super) fn store_prefix(words: &[AtomicU64], count: usize) {
    for (at, word) in words.iter().enumerate() {
        let taken = low(count.saturating_sub(at * WORD_BITS));
        word.store(taken, Ordering::Release);
    }
}

/// Returns the lowest `start` of `count` free bits inside `span` for which `start + offset` is a multiple of
/// `align`, a power of two.
pub(super) fn find(
    words: &[AtomicU64],
    span: core::ops::Range<usize>,
    count: usize,
    align: usize,
    offset: usize,
) -> Option<usize> {
    let mut at = span.start;
    loop {
        at = next_free(words, at, span.end)?;
        at = (at + offset).next_multiple_of(align) - offset;
        if at.checked_add(count)? > span.end {
            return None;
        }
        match last_taken(words, at, count) {
            Some(taken) => at = taken + 1,
            None => return Some(at),
        }
    }
}

/// Returns the lowest free bit of `start..end`.
fn next_free(words: &[AtomicU64], start: usize, end: usize) -> Option<usize> {
    let mut seen = low(start % WORD_BITS);
    for at in start / WORD_BITS..end.div_ceil(WORD_BITS) {
        let free = !(words.get(at)?.load(Ordering::Relaxed) | seen);
        if free != 0 {
            let bit = at * WORD_BITS + free.trailing_zeros() as usize;
            return (bit < end).then_some(bit);
        }
        seen = 0;
    }
    None
}

/// Returns the highest taken bit among `count` from `first` on.
fn last_taken(words: &[AtomicU64], first: usize, count: usize) -> Option<usize> {
    let last = first + count - 1;
    let mut mask = low(last % WORD_BITS + 1);
    for at in (first / WORD_BITS..=last / WORD_BITS).rev() {
        let below = if at == first / WORD_BITS {
            low(first % WORD_BITS)
        } else {
            0
        };
        let word = words
            .get(at)
            .map_or(u64::MAX, |word| word.load(Ordering::Relaxed));
        let taken = word & mask & !below;
        if taken != 0 {
            return Some(at * WORD_BITS + taken.ilog2() as usize);
        }
        mask = u64::MAX;
    }
    None
}

/// Returns the words that `count` bits from `first` on lie in, and their bits in each.
fn masks(first: usize, count: usize) -> impl Iterator<Item = (usize, u64)> {
    let end = first + count;
    (first / WORD_BITS..end.div_ceil(WORD_BITS)).map(move |at| {
        let above = low(end - at * WORD_BITS);
        let below = low(first.saturating_sub(at * WORD_BITS));
        (at, above & !below)
    })
}

/// Returns whether all of the lowest `count` bits are free, in words that others may just have changed.
pub(super) fn is_free(words: &[AtomicU64], count: usize) -> bool {
    let mut words = words.iter().zip(masks(0, count));
    words.all(|(word, (_, mask))| word.load(Ordering::Relaxed) & mask == 0)
}

/// Returns how many bits are free.
pub(super) fn free_count(words: &[AtomicU64]) -> usize {
    let free = |word: &AtomicU64| word.load(Ordering::Relaxed).count_zeros() as usize;
    words.iter().map(free).sum()
}

/// As [`free_count`], in the order of changes of each word: who frees a bit that is not counted comes
/// after, and sees all that the caller did before.
pub(super) fn settle(words: &[AtomicU64]) -> usize {
    let free = |word: &AtomicU64| word.fetch_or(0, Ordering::AcqRel).count_zeros() as usize;
    words.iter().map(free).sum()
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::intervals::random::{Random, rounds};

    const COUNT: usize = 4 * WORD_BITS;

    fn words(random: &mut Random) -> [u64; 4] {
        core::array::from_fn(|_| match random.below(5) {
            0 => 0,
            1 => u64::MAX,
            2 => random.next() | random.next() | random.next(),
            3 => u64::MAX << random.below(64),
            _ => random.next() & random.next() & random.next(),
        })
    }

    fn atomic(words: [u64; 4]) -> [AtomicU64; 4] {
        words.map(AtomicU64::new)
    }

    fn is_taken(words: &[u64; 4], bit: usize) -> bool {
        words[bit / WORD_BITS] >> (bit % WORD_BITS) & 1 != 0
    }

    /// The definition, written naively.
    fn lowest(
        words: &[u64; 4],
        mut starts: impl Iterator<Item = usize>,
        count: usize,
        end: usize,
    ) -> Option<usize> {
        starts.find(|&start| {
            start + count <= end && (start..start + count).all(|bit| !is_taken(words, bit))
        })
    }

    #[test]
    fn the_lowest_run_in_one_word_is_taken() {
        let mut random = Random::new(1);
        for _ in 0..rounds(20_000) {
            let before = words(&mut random);
            let count = 1 + random.index(SMALL);
            let align_lg2 = random.index(7);
            let end = random.index(COUNT + 1);
            let from = random.index(4);
            let starts = |words: core::ops::Range<usize>| {
                let starts = words.start * WORD_BITS..words.end * WORD_BITS;
                let is_inside = move |start: &usize| start % WORD_BITS + count <= WORD_BITS;
                starts.step_by(1 << align_lg2).filter(is_inside)
            };
            let expected = lowest(&before, starts(from..4).chain(starts(0..from)), count, end);
            let words = atomic(before);
            let taken = take_small(&words, from, count, align_lg2, end);
            assert_eq!(taken, expected, "{count} at 2^{align_lg2} in {before:x?}");
            let after = words.map(AtomicU64::into_inner);
            for bit in 0..COUNT {
                let is_new = taken.is_some_and(|start| (start..start + count).contains(&bit));
                assert_eq!(is_taken(&after, bit), is_taken(&before, bit) || is_new);
            }
        }
    }

    #[test]
    fn the_lowest_run_over_words_is_found_whatever_its_alignment() {
        let mut random = Random::new(2);
        for _ in 0..rounds(20_000) {
            let words = words(&mut random);
            let count = 1 + random.index(COUNT);
            let align = 1 << random.index(8);
            let offset = random.index(300);
            let start = random.index(COUNT);
            let end = start + random.index(COUNT + 1 - start);
            let starts = (start..end).filter(|start| (start + offset).is_multiple_of(align));
            let expected = lowest(&words, starts, count, end);
            let found = find(&atomic(words), start..end, count, align, offset);
            assert_eq!(found, expected, "{count} of {words:x?}");
        }
    }

    #[test]
    fn bits_are_taken_all_or_none_and_put_back_the_same() {
        let mut random = Random::new(3);
        for _ in 0..rounds(20_000) {
            let before = words(&mut random);
            let first = random.index(COUNT);
            let count = 1 + random.index(COUNT - first);
            let range = first..first + count;
            let is_free = range.clone().all(|bit| !is_taken(&before, bit));
            let words = atomic(before);
            assert_eq!(take(&words, first, count), is_free);
            if is_free {
                let is_whole = |at: &usize| {
                    let bits = at * WORD_BITS..(at + 1) * WORD_BITS;
                    let mut others = bits.clone().filter(|bit| !range.contains(bit));
                    let is_touched = bits.clone().any(|bit| range.contains(&bit));
                    is_touched && others.all(|bit| !is_taken(&before, bit))
                };
                assert!(range.clone().all(|bit| is_taken(&words_of(&words), bit)));
                let is_emptied = (0..4).any(|at| is_whole(&at));
                assert_eq!(put(&words, first, count), is_emptied);
            }
            assert_eq!(words_of(&words), before);
        }
    }

    fn words_of(words: &[AtomicU64; 4]) -> [u64; 4] {
        core::array::from_fn(|at| words[at].load(Ordering::Relaxed))
    }

    #[test]
    fn a_stored_prefix_is_taken_and_all_else_is_free() {
        for count in 0..=COUNT {
            let words = atomic([u64::MAX; 4]);
            store_prefix(&words, count);
            assert_eq!(free_count(&words), COUNT - count);
            assert_eq!(settle(&words), COUNT - count);
            assert_eq!(is_free(&words, COUNT), count == 0);
            assert_eq!(
                find(&words, 0..COUNT, 1, 1, 0),
                (count < COUNT).then_some(count)
            );
        }
    }
}
