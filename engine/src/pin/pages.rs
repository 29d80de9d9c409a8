//! Ranges of pages.

use core::fmt;

/// A range of page indices of a source, both ends included; never empty.
///
/// ```
/// use iopt::pin::PageRange;
///
/// let pages = PageRange::new(4, 7).unwrap();
/// assert_eq!(pages.count(), 4);
/// assert_eq!(pages.intersection(PageRange::new(7, 9).unwrap()), PageRange::new(7, 7));
/// assert_eq!(PageRange::new(1, 0), None);
/// ```
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct PageRange {
    first: u64,
    last: u64,
}

impl PageRange {
    /// Creates `first..=last`, or `None` if `last` is below `first`.
    pub const fn new(first: u64, last: u64) -> Option<Self> {
        if first <= last {
            Some(Self { first, last })
        } else {
            None
        }
    }

    /// Creates the range of `count` pages from `first` on, or `None` if there is no such range.
    pub const fn with_count(first: u64, count: u64) -> Option<Self> {
        let Some(count_minus_one) = count.checked_sub(1) else {
            return None;
        };
        match first.checked_add(count_minus_one) {
            Some(last) => Some(Self { first, last }),
            None => None,
        }
    }

    /// Returns the first page.
    pub const fn first(self) -> u64 {
        self.first
    }

    /// Returns the last page, which belongs to the range.
    pub const fn last(self) -> u64 {
        self.last
    }

    /// Returns the number of pages; `u64::MAX` also for the one range that has a page more.
    pub const fn count(self) -> u64 {
        (self.last - self.first).saturating_add(1)
    }

    /// Returns whether every page of `other` belongs to this range.
    pub const fn contains(self, other: Self) -> bool {
        self.first <= other.first && other.last <= self.last
    }

    /// Returns whether the two ranges share a page.
    pub const fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// Returns the pages of the range that are above `page`.
    pub const fn above(self, page: u64) -> Option<Self> {
        if page < self.first {
            return Some(self);
        }
        match page.checked_add(1) {
            Some(next) => Self::new(next, self.last),
            None => None,
        }
    }

    /// Returns the pages that both ranges share.
    pub const fn intersection(self, other: Self) -> Option<Self> {
        let first = if self.first > other.first {
            self.first
        } else {
            other.first
        };
        let last = if self.last < other.last {
            self.last
        } else {
            other.last
        };
        Self::new(first, last)
    }
}

impl fmt::Display for PageRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..={}", self.first, self.last)
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    fn range(first: u64, last: u64) -> PageRange {
        PageRange::new(first, last).unwrap()
    }

    #[test]
    fn the_highest_page_belongs_to_ranges() {
        let top = PageRange::with_count(u64::MAX, 1).unwrap();
        assert_eq!((top.last(), top.count()), (u64::MAX, 1));
        assert_eq!(PageRange::with_count(u64::MAX, 2), None);
        assert_eq!(PageRange::with_count(0, 0), None);
        assert_eq!(range(0, u64::MAX).above(u64::MAX), None);
        assert_eq!(range(0, u64::MAX).count(), u64::MAX);
        assert_eq!(range(1, u64::MAX).count(), u64::MAX);
    }

    #[test]
    fn ranges_meet_in_the_pages_that_both_have() {
        for first in 0..6 {
            for last in first..6 {
                let (a, b) = (range(first, last), range(2, 4));
                let common =
                    (0..6).filter(|page| (first..=last).contains(page) && (2..=4).contains(page));
                let common: Vec<u64> = common.collect();
                let met = a.intersection(b);
                assert_eq!(met, b.intersection(a));
                assert_eq!(met.map(PageRange::first), common.first().copied());
                assert_eq!(met.map(PageRange::last), common.last().copied());
                assert_eq!(a.overlaps(b), met.is_some());
                assert_eq!(a.contains(b), met == Some(b));
                let above = (first..=last).find(|page| *page > 2);
                assert_eq!(a.above(2).map(PageRange::first), above);
                assert_eq!(a.above(2).map(PageRange::last), above.map(|_| last));
            }
        }
    }
}
