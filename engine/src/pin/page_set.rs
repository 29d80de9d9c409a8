//! Sets of pages, a bit each.

use alloc::vec::Vec;

use crate::pin::PageRange;

/// Some pages of a range, which all are in the set at first.
///
/// A bit per page, so that taking pages out, in whatever pieces, needs no memory: 32 MiB for each
/// TiB of pages of 4 KiB.
#[derive(Debug)]
pub(super) struct PageSet {
    pages: PageRange,
    /// Bit `n % 64` of word `n / 64` stands for the page `n` behind the first. Bits behind the last
    /// page mean nothing.
    words: Vec<u64>,
    count: u64,
}

impl PageSet {
    /// Creates a set of all of `pages`, or returns `None` if there is no memory.
    pub(super) fn try_full(pages: PageRange) -> Option<Self> {
        let count = pages.count();
        let word_count = usize::try_from(count.div_ceil(64)).ok()?;
        let mut words = Vec::new();
        words.try_reserve_exact(word_count).ok()?;
        words.resize(word_count, u64::MAX);
        Some(Self {
            pages,
            words,
            count,
        })
    }

    /// Returns how many pages are in the set.
    pub(super) const fn count(&self) -> u64 {
        self.count
    }

    /// Returns the lowest run of pages of `within` that are in the set.
    pub(super) fn first_run(&self, within: PageRange) -> Option<PageRange> {
        let within = self.pages.intersection(within)?;
        let base = self.pages.first();
        let last = within.last() - base;
        let first = self.next(within.first() - base, last, 0)?;
        // The run ends in front of the next page that is missing.
        let end = self.next(first, last, u64::MAX).unwrap_or(last + 1);
        PageRange::new(base + first, base + end - 1)
    }

    /// Takes the pages of `run`, all of which are in the set, out.
    pub(super) fn remove(&mut self, run: PageRange) {
        debug_assert_eq!(self.first_run(run), Some(run), "pages are in the set");
        let Some(run) = self.pages.intersection(run) else {
            return;
        };
        let first = run.first() - self.pages.first();
        let last = run.last() - self.pages.first();
        for word in first / 64..=last / 64 {
            self.words[word as usize] &= !mask(word, first, last);
        }
        self.count -= run.count();
    }

    /// Returns the lowest bit in `first..=last` that is 1 after all of its word was changed by an
    /// exclusive or with `flip`.
    fn next(&self, first: u64, last: u64, flip: u64) -> Option<u64> {
        (first / 64..=last / 64).find_map(|word| {
            let bits = (self.words[word as usize] ^ flip) & mask(word, first, last);
            (bits != 0).then(|| word * 64 + u64::from(bits.trailing_zeros()))
        })
    }
}

/// Returns the bits of `word` that stand for one of `first..=last`, which has some there.
const fn mask(word: u64, first: u64, last: u64) -> u64 {
    let mut mask = u64::MAX;
    if word == first / 64 {
        mask &= u64::MAX << (first % 64);
    }
    if word == last / 64 {
        mask &= u64::MAX >> (63 - last % 64);
    }
    mask
}

#[cfg(test)]
mod tests {
    use alloc::collections::BTreeSet;

    use super::*;

    fn runs(set: &PageSet, within: PageRange) -> Vec<(u64, u64)> {
        let mut runs = Vec::new();
        let mut rest = Some(within);
        while let Some(run) = rest.and_then(|rest| set.first_run(rest)) {
            runs.push((run.first(), run.last()));
            rest = PageRange::new(run.last() + 1, within.last());
        }
        runs
    }

    #[test]
    fn all_pages_are_one_run_at_first() {
        for count in [1, 63, 64, 65, 128, 200] {
            let pages = PageRange::with_count(1000, count).unwrap();
            let set = PageSet::try_full(pages).unwrap();
            assert_eq!(set.count(), count);
            let everything = PageRange::new(0, 1 << 40).unwrap();
            assert_eq!(runs(&set, everything), [(1000, 999 + count)]);
            let within = PageRange::new(0, 999).unwrap();
            assert_eq!(set.first_run(within), None);
        }
    }

    #[test]
    fn removed_pages_are_missing_as_in_a_plain_set() {
        let pages = PageRange::with_count(7, 300).unwrap();
        let mut set = PageSet::try_full(pages).unwrap();
        let mut model: BTreeSet<u64> = (7..307).collect();
        for step in 0..40_u64 {
            let first = 7 + step * 89 % 300;
            let last = (first + step % 5 * 40).min(306);
            let within = PageRange::new(first, last).unwrap();
            while let Some(run) = set.first_run(within) {
                set.remove(run);
                for page in run.first()..=run.last() {
                    assert!(model.remove(&page), "page {page} was in no run before");
                }
            }
            assert_eq!(model.range(first..=last).count(), 0);
            assert_eq!(set.count(), model.len() as u64);
        }
        assert!(!model.is_empty(), "the last pages are never removed");
        let left = runs(&set, pages).into_iter();
        assert!(left.flat_map(|(first, last)| first..=last).eq(model));
    }
}
