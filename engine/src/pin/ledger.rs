//! Which pages are pinned, and by what.

use crate::intervals::tree::IntervalTree;
use crate::intervals::{Handle, OutOfNodes};
use crate::pin::PageRange;
use crate::pin::page_set::PageSet;

/// The pins of one or many users, each with the pages of it that are still pinned and a tag that
/// says whose it is. Memory is needed when a pin is made, never to undo it, whatever the pieces.
///
/// Pins may overlap; of one user, no page is pinned by two.
#[derive(Debug)]
pub(super) struct Ledger<T> {
    pins: IntervalTree<Pin<T>>,
}

#[derive(Debug)]
struct Pin<T> {
    pinned: PageSet,
    tag: T,
}

impl<T: Copy> Ledger<T> {
    pub(super) const fn new() -> Self {
        Self {
            pins: IntervalTree::new(),
        }
    }

    /// Makes room for `count` pins.
    ///
    /// # Errors
    ///
    /// [`OutOfNodes`], with nothing changed, if there is no memory.
    pub(super) fn try_reserve(&mut self, count: usize) -> Result<(), OutOfNodes> {
        self.pins.try_reserve(count)
    }

    /// Notes a pin of `pages`, all of which are in `pinned`. Room was made before.
    pub(super) fn insert(&mut self, pages: PageRange, pinned: PageSet, tag: T) {
        let pin = Pin { pinned, tag };
        self.pins.insert(pages.first(), pages.last(), pin);
    }

    /// Returns the lowest run of pages of `within` that are pinned by one pin whose tag `is_meant`.
    pub(super) fn first_run(
        &self,
        within: PageRange,
        is_meant: impl Fn(T) -> bool,
    ) -> Option<PageRange> {
        self.find(within, is_meant).map(|(_, run)| run)
    }

    /// Unpins the lowest run of pages of `within` whose tag `is_meant`, if there is one, and says
    /// what became of its pin. All that are left are above the run.
    pub(super) fn take_run(
        &mut self,
        within: PageRange,
        is_meant: impl Fn(T) -> bool,
    ) -> Option<Taken<T>> {
        let (at, run) = self.find(within, is_meant)?;
        let pin = self.pins.get_mut(at);
        pin.pinned.remove(run);
        let tag = pin.tag;
        let is_last = pin.pinned.count() == 0;
        if is_last {
            self.pins.remove(at);
        }
        Some(Taken { run, tag, is_last })
    }

    /// Returns the pin with the lowest run, and the run.
    fn find(&self, within: PageRange, is_meant: impl Fn(T) -> bool) -> Option<(Handle, PageRange)> {
        let mut lowest: Option<(Handle, PageRange)> = None;
        for (at, start, _) in self.pins.overlapping(within.first(), within.last()) {
            // They come in order of their start: no later one has a lower page.
            if lowest.is_some_and(|(_, run)| start >= run.first()) {
                break;
            }
            let pin = self.pins.get(at);
            if is_meant(pin.tag)
                && let Some(run) = pin.pinned.first_run(within)
                && lowest.is_none_or(|(_, lowest)| run.first() < lowest.first())
            {
                lowest = Some((at, run));
            }
        }
        lowest
    }
}

/// What [`Ledger::take_run`] did.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Taken<T> {
    /// The pages that were unpinned.
    pub(super) run: PageRange,
    /// The tag of their pin.
    pub(super) tag: T,
    /// Whether they were the last of their pin, which is forgotten now.
    pub(super) is_last: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages(first: u64, last: u64) -> PageRange {
        PageRange::new(first, last).unwrap()
    }

    fn ledger(pins: &[(u64, u64, char)]) -> Ledger<char> {
        let mut ledger = Ledger::new();
        for &(first, last, tag) in pins {
            let pages = pages(first, last);
            ledger.try_reserve(1).unwrap();
            ledger.insert(pages, PageSet::try_full(pages).unwrap(), tag);
        }
        ledger
    }

    #[test]
    fn the_lowest_page_counts_whichever_pin_holds_it() {
        let mut ledger = ledger(&[(0, 20, 'a'), (4, 9, 'b')]);
        let taken = ledger.take_run(pages(0, 9), |tag| tag == 'a');
        let expected = Taken {
            run: pages(0, 9),
            tag: 'a',
            is_last: false,
        };
        assert_eq!(taken, Some(expected));
        let first = ledger.first_run(pages(0, 20), |_| true);
        assert_eq!(first, Some(pages(4, 9)));
        let first = ledger.first_run(pages(0, 20), |tag| tag == 'a');
        assert_eq!(first, Some(pages(10, 20)));
        assert_eq!(ledger.first_run(pages(0, 3), |_| true), None);
        let taken = ledger.take_run(pages(0, 20), |_| true);
        assert!(taken.is_some_and(|taken| taken.tag == 'b' && taken.is_last));
    }

    #[test]
    fn pins_are_forgotten_with_their_last_page() {
        let mut ledger = ledger(&[(0, 3, 'a'), (4, 7, 'a'), (0, 7, 'b')]);
        let mut last_count = 0;
        let mut page_count = 0;
        while let Some(taken) = ledger.take_run(pages(1, 6), |tag| tag == 'a') {
            page_count += taken.run.count();
            last_count += u32::from(taken.is_last);
        }
        assert_eq!((page_count, last_count), (6, 0));
        for page in [0, 7] {
            let taken = ledger.take_run(pages(page, page), |tag| tag == 'a');
            assert!(taken.is_some_and(|taken| taken.is_last));
        }
        assert_eq!(ledger.pins.len(), 1);
        assert_eq!(ledger.take_run(pages(0, 7), |tag| tag == 'a'), None);
    }
}
