//! Closed intervals that may overlap and repeat, each with a value.

use super::augmented::{Handle, Key, OutOfNodes, Side, Summary, Tree};

#[cfg(test)]
mod tests;

/// The highest last address of a subtree.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct HighestLast(u64);

impl Summary for HighestLast {
    fn new(left: Option<Self>, key: Key, right: Option<Self>) -> Self {
        let children = [left, right].into_iter().flatten();
        Self(children.fold(key.last, |highest, child| highest.max(child.0)))
    }
}

/// Intervals `start..=last` with values, in order of the start, then of the last, then of their
/// insertion. The unit, bytes or pages, is the user's.
///
/// A [`Handle`] is good until its interval is removed.
#[derive(Debug)]
pub(crate) struct IntervalTree<V> {
    nodes: Tree<V, HighestLast>,
}

impl<V> IntervalTree<V> {
    pub(crate) const fn new() -> Self {
        Self { nodes: Tree::new() }
    }

    #[cfg(test)]
    pub(crate) const fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Makes room: until the tree has `count` intervals more than now, no insertion needs memory.
    /// Calls do not add up.
    ///
    /// # Errors
    ///
    /// [`OutOfNodes`], with nothing changed, if there is no memory.
    pub(crate) fn try_reserve(&mut self, count: usize) -> Result<(), OutOfNodes> {
        self.nodes.try_reserve(count)
    }

    /// Puts in `start..=last`; `start` is not above `last`. Where memory may be out, call
    /// [`try_reserve`](Self::try_reserve) first: then this cannot fail.
    pub(crate) fn insert(&mut self, start: u64, last: u64, value: V) -> Handle {
        debug_assert!(start <= last, "{start:#x}..={last:#x} is no interval");
        self.nodes.insert(Key { start, last }, value)
    }

    /// Takes an interval out. Needs no memory; all other handles stay good.
    ///
    /// # Panics
    ///
    /// If the interval was removed before and its place not given to another.
    pub(crate) fn remove(&mut self, at: Handle) -> V {
        self.nodes.remove(at)
    }

    /// Removes the intervals that `keeps` does not hold for.
    pub(crate) fn retain(&mut self, mut keeps: impl FnMut(&V) -> bool) {
        let mut next = self.nodes.first();
        while let Some(at) = next {
            next = self.nodes.next(at);
            if !keeps(self.get(at)) {
                self.remove(at);
            }
        }
    }

    pub(crate) fn get(&self, at: Handle) -> &V {
        self.nodes.value(at)
    }

    pub(crate) fn get_mut(&mut self, at: Handle) -> &mut V {
        self.nodes.value_mut(at)
    }

    /// Returns the first and the last address of an interval.
    pub(crate) fn bounds(&self, at: Handle) -> (u64, u64) {
        let Key { start, last } = self.nodes.key(at);
        (start, last)
    }

    /// Returns the intervals that share an address with `start..=last`, in order, each with its
    /// bounds.
    ///
    /// Of `n` intervals, `k` are found in O(log n + k) steps if they are neighbours in the order, as
    /// disjoint ones always are; if many that end below `start` lie between them, each may cost
    /// O(log n).
    pub(crate) fn overlapping(&self, start: u64, last: u64) -> Overlapping<'_, V> {
        Overlapping {
            tree: self,
            next: self.first_overlap(self.nodes.root(), start, last),
            start,
            last,
        }
    }

    /// Returns the first interval in a subtree that shares an address with `start..=last`.
    fn first_overlap(&self, top: Option<Handle>, start: u64, last: u64) -> Option<Handle> {
        let mut at = self.reaching(top, start)?;
        loop {
            // The first that reaches `start` is the one: if it begins above `last`, so do the rest.
            if let Some(left) = self.reaching(self.nodes.child(at, Side::Left), start) {
                at = left;
                continue;
            }
            let key = self.nodes.key(at);
            if key.start > last {
                return None;
            }
            if key.last >= start {
                return Some(at);
            }
            at = self.nodes.child(at, Side::Right)?;
        }
    }

    /// Returns the first interval behind `at` that shares an address with `start..=last`.
    fn next_overlap(&self, mut at: Handle, start: u64, last: u64) -> Option<Handle> {
        loop {
            if let Some(right) = self.reaching(self.nodes.child(at, Side::Right), start) {
                return self.first_overlap(Some(right), start, last);
            }
            at = self.nodes.ancestor_above(at)?;
            let key = self.nodes.key(at);
            if key.start > last {
                return None;
            }
            if key.last >= start {
                return Some(at);
            }
        }
    }

    /// Returns the subtree if an interval in it ends at `start` or above.
    fn reaching(&self, top: Option<Handle>, start: u64) -> Option<Handle> {
        top.filter(|&top| self.nodes.summary(top).0 >= start)
    }
}

/// The intervals that share an address with a range; see [`IntervalTree::overlapping`].
#[derive(Debug)]
pub(crate) struct Overlapping<'a, V> {
    tree: &'a IntervalTree<V>,
    next: Option<Handle>,
    start: u64,
    last: u64,
}

impl<V> Iterator for Overlapping<'_, V> {
    type Item = (Handle, u64, u64);

    fn next(&mut self) -> Option<Self::Item> {
        let at = self.next?;
        self.next = self.tree.next_overlap(at, self.start, self.last);
        let (start, last) = self.tree.bounds(at);
        Some((at, start, last))
    }
}
