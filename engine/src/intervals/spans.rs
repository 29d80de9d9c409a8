//! Which parts of a range are covered by intervals, whichever and however often.
//!
//! Spans are maximal: neighbours differ in what covers them. The iterators hold a few words whatever
//! the size of the trees.

use core::iter::Peekable;

use super::tree::{IntervalTree, Overlapping};

#[cfg(test)]
mod tests;

/// A part of a range that is covered throughout, or not at all.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Span {
    pub(crate) start: u64,
    pub(crate) last: u64,
    pub(crate) is_covered: bool,
}

/// Divides `start..=last` into spans, lowest first. Together they are the range; none if `start` is
/// above `last`.
pub(crate) fn covered_spans<V>(tree: &IntervalTree<V>, start: u64, last: u64) -> Spans<'_, V> {
    Spans {
        intervals: tree.overlapping(start, last).peekable(),
        at: (start <= last).then_some(start),
        last,
    }
}

/// See [`covered_spans`].
#[derive(Debug)]
pub(crate) struct Spans<'a, V> {
    /// Those that begin at `at` or above, or reach it.
    intervals: Peekable<Overlapping<'a, V>>,
    /// Where the next span begins; `None` at the end.
    at: Option<u64>,
    last: u64,
}

impl<V> Iterator for Spans<'_, V> {
    type Item = Span;

    fn next(&mut self) -> Option<Span> {
        let start = self.at?;
        let (last, is_covered) = match self.intervals.peek() {
            Some(&(_, above, _)) if above > start => (above - 1, false),
            Some(&(_, _, reach)) => (self.merge(reach), true),
            None => (self.last, false),
        };
        self.at = last.checked_add(1).filter(|&next| next <= self.last);
        Some(Span {
            start,
            last,
            is_covered,
        })
    }
}

impl<V> Spans<'_, V> {
    /// Passes the intervals that overlap or continue what is covered up to `reach`, until the range
    /// ends. Returns how far they cover it.
    fn merge(&mut self, mut reach: u64) -> u64 {
        let end = self.last;
        while let Some((_, _, last)) = self
            .intervals
            .next_if(|&(_, start, _)| reach < end && start <= reach + 1)
        {
            reach = reach.max(last);
        }
        reach.min(self.last)
    }
}
