//! Disjoint ranges in use, and the holes between them.

use iopt_formats::{Iova, IovaRange};

use super::augmented::{Handle, Key, OutOfNodes, Side, Summary, Tree};

#[cfg(test)]
mod tests;

/// A subtree's hull and the largest hole inside it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Holes {
    start: u64,
    last: u64,
    /// Bytes of the largest hole between two ranges; 0 if there is none.
    largest: u64,
}

impl Summary for Holes {
    fn new(left: Option<Self>, key: Key, right: Option<Self>) -> Self {
        let Key { start, last } = key;
        let below = left.map_or(0, |left| left.largest.max(hole_len(left.last, start)));
        let above = right.map_or(0, |right| right.largest.max(hole_len(last, right.start)));
        Self {
            start: left.map_or(start, |left| left.start),
            last: right.map_or(last, |right| right.last),
            largest: below.max(above),
        }
    }
}

/// Returns the bytes between a last address and a higher start.
const fn hole_len(below: u64, above: u64) -> u64 {
    above - below - 1
}

/// What is to be placed, and where it may go.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Fit {
    /// Bytes less one.
    pub(crate) len_minus_one: u64,
    /// The first address modulo this power of two is `low`. From 64 on, the address is `low`.
    pub(crate) align_lg2: u8,
    /// Must be below the power of two, or nothing fits.
    pub(crate) low: u64,
    /// Contains all of it.
    pub(crate) window: IovaRange,
}

impl Fit {
    /// Returns the lowest place in a hole.
    fn place_in(&self, hole: IovaRange) -> Option<IovaRange> {
        let free = hole.intersection(self.window)?;
        let start = self.first_aligned(free.start().get())?;
        let last = start.checked_add(self.len_minus_one)?;
        range(start, last).filter(|&place| free.contains(place))
    }

    /// Returns the lowest address from `from` on that is aligned as asked.
    fn first_aligned(&self, from: u64) -> Option<u64> {
        let step = 1_u64.checked_shl(self.align_lg2.into());
        let mask = step.map_or(u64::MAX, |step| step - 1);
        if self.low > mask {
            return None;
        }
        let near = from & !mask | self.low;
        if near >= from {
            Some(near)
        } else {
            near.checked_add(step?)
        }
    }
}

fn range(start: u64, last: u64) -> Option<IovaRange> {
    IovaRange::new(Iova::new(start), Iova::new(last))
}

/// A byte of a range is in use already.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the range {range} overlaps {with}, which is in use")]
pub(crate) struct InUse {
    /// The range to be used.
    pub(crate) range: IovaRange,
    /// The lowest range in use that it overlaps.
    pub(crate) with: IovaRange,
}

/// A hole with ranges in use on both sides.
struct Hole {
    range: Option<IovaRange>,
    above: Handle,
}

/// The ranges in use. They are disjoint; neighbours stay separate.
#[derive(Debug)]
pub(crate) struct Gaps {
    used: Tree<(), Holes>,
}

impl Gaps {
    pub(crate) const fn new() -> Self {
        Self { used: Tree::new() }
    }

    /// Returns the number of ranges in use.
    #[cfg(test)]
    pub(crate) const fn len(&self) -> usize {
        self.used.len()
    }

    /// Makes room: until `count` ranges more than now are in use, no insertion needs memory. Calls
    /// do not add up.
    ///
    /// # Errors
    ///
    /// [`OutOfNodes`], with nothing changed, if there is no memory.
    pub(crate) fn try_reserve(&mut self, count: usize) -> Result<(), OutOfNodes> {
        self.used.try_reserve(count)
    }

    /// Marks a range as used. Where memory may be out, call [`try_reserve`](Self::try_reserve)
    /// first.
    ///
    /// # Errors
    ///
    /// [`InUse`], with nothing changed, if a byte of it is in use.
    pub(crate) fn insert(&mut self, range: IovaRange) -> Result<(), InUse> {
        let met = self.first_reaching(range.start().get());
        let met = met.and_then(|at| self.range_of(at));
        if let Some(with) = met.filter(|met| met.overlaps(range)) {
            return Err(InUse { range, with });
        }
        self.used.insert(key_of(range), ());
        Ok(())
    }

    /// Frees a range as it was inserted; needs no memory. Returns whether there was this very one.
    pub(crate) fn remove(&mut self, range: IovaRange) -> bool {
        let found = self.first_reaching(range.start().get());
        let found = found.filter(|&at| self.used.key(at) == key_of(range));
        if let Some(at) = found {
            self.used.remove(at);
        }
        found.is_some()
    }

    /// Returns the lowest place for `fit` that no range in use overlaps.
    ///
    /// Takes O(log n) steps for `n` ranges, and as many again for each hole in the window that is
    /// long enough and yet has no aligned place.
    pub(crate) fn first_fit(&self, fit: Fit) -> Option<IovaRange> {
        let Some(mut at) = self.first_reaching(fit.window.start().get()) else {
            return fit.place_in(IovaRange::FULL);
        };
        // What lies between the window's start and the first range is free.
        let below = self.used.key(at).start.checked_sub(1);
        let place = below.and_then(|below| fit.place_in(range(0, below)?));
        if place.is_some() {
            return place;
        }
        while let Some(hole) = self.next_hole(at, fit.len_minus_one) {
            let found = hole.range?;
            if found.start() > fit.window.last() {
                return None;
            }
            let place = fit.place_in(found);
            if place.is_some() {
                return place;
            }
            at = hole.above;
        }
        let highest = self.used.key(self.used.last()?).last;
        fit.place_in(range(highest.checked_add(1)?, u64::MAX)?)
    }

    /// Returns the lowest hole above `at`, and below another range, of more than `len` bytes.
    fn next_hole(&self, mut at: Handle, len: u64) -> Option<Hole> {
        loop {
            let mut reach = self.used.key(at).last;
            if let Some(right) = self.used.child(at, Side::Right) {
                let holes = self.used.summary(right);
                if hole_len(reach, holes.start) > len {
                    return Some(self.hole_below(right, reach));
                }
                if holes.largest > len {
                    return self.first_hole(right, len);
                }
                reach = holes.last;
            }
            let above = self.used.ancestor_above(at)?;
            let start = self.used.key(above).start;
            if hole_len(reach, start) > len {
                return Some(Hole {
                    range: range(reach + 1, start - 1),
                    above,
                });
            }
            at = above;
        }
    }

    /// Returns the lowest hole of more than `len` bytes inside a subtree that has one.
    fn first_hole(&self, mut top: Handle, len: u64) -> Option<Hole> {
        loop {
            let Key { start, last } = self.used.key(top);
            if let Some(left) = self.used.child(top, Side::Left) {
                let holes = self.used.summary(left);
                if holes.largest > len {
                    top = left;
                    continue;
                }
                if hole_len(holes.last, start) > len {
                    return Some(Hole {
                        range: range(holes.last + 1, start - 1),
                        above: top,
                    });
                }
            }
            let right = self.used.child(top, Side::Right)?;
            if hole_len(last, self.used.summary(right).start) > len {
                return Some(self.hole_below(right, last));
            }
            top = right;
        }
    }

    /// Returns the hole between a last address and the subtree that follows.
    fn hole_below(&self, subtree: Handle, reach: u64) -> Hole {
        let above = self.used.outermost(subtree, Side::Left);
        Hole {
            range: range(reach + 1, self.used.key(above).start - 1),
            above,
        }
    }

    /// Returns the lowest range that ends at `iova` or above.
    fn first_reaching(&self, iova: u64) -> Option<Handle> {
        self.used.partition_point(|key| key.last < iova)
    }

    fn range_of(&self, at: Handle) -> Option<IovaRange> {
        let Key { start, last } = self.used.key(at);
        range(start, last)
    }
}

fn key_of(range: IovaRange) -> Key {
    Key {
        start: range.start().get(),
        last: range.last().get(),
    }
}
