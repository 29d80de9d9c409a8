//! Disjoint sets of the numbers below a bound (union-find).

use alloc::vec::Vec;

/// Sets of the numbers below a bound, each alone at first.
pub(super) struct Sets {
    /// The number above each in its set's tree; the topmost is its own, and the lowest of all.
    above: Vec<usize>,
}

impl Sets {
    pub(super) fn new(bound: usize) -> Self {
        Self {
            above: (0..bound).collect(),
        }
    }

    /// Returns the lowest number in the set of `one`.
    pub(super) fn find(&mut self, mut one: usize) -> usize {
        while self.above[one] != one {
            // Halving the path keeps trees flat without a second pass.
            self.above[one] = self.above[self.above[one]];
            one = self.above[one];
        }
        one
    }

    /// Makes the sets of both one.
    pub(super) fn join(&mut self, one: usize, other: usize) {
        let (one, other) = (self.find(one), self.find(other));
        self.above[one.max(other)] = one.min(other);
    }
}
