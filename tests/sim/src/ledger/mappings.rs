//! What a domain maps, or mapped and may not have been forgotten.

use std::collections::BTreeMap;

use super::State;
use crate::rights::Rights;

/// One mapping that is allowed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Allowance {
    /// Output address less input address, modulo `2^64`.
    offset: u64,
    rights: Rights,
    state: State,
}

#[derive(Clone, Debug)]
struct Segment {
    last: u64,
    allowances: Vec<Allowance>,
}

/// Segments that do not overlap, by their first address, each with all mappings of its addresses.
#[derive(Debug, Default)]
pub(super) struct Mappings {
    segments: BTreeMap<u64, Segment>,
}

impl Mappings {
    pub(super) fn begin(&mut self, start: u64, last: u64, oa: u64, rights: Rights) {
        let allowance = Allowance {
            offset: oa.wrapping_sub(start),
            rights,
            state: State::Beginning,
        };
        self.fill(start, last);
        for (_, segment) in self.segments.range_mut(start..=last) {
            segment.allowances.push(allowance);
        }
    }

    pub(super) fn settle(&mut self, start: u64, last: u64) {
        self.change(start, last, State::Beginning, State::Lasting);
    }

    pub(super) fn end(&mut self, start: u64, last: u64) {
        self.change(start, last, State::Beginning, State::Ending);
        self.change(start, last, State::Lasting, State::Ending);
    }

    pub(super) fn forget(&mut self, start: u64, last: u64) {
        self.split(start, last);
        let mut is_empty = Vec::new();
        for (start, segment) in self.segments.range_mut(start..=last) {
            let is_ending = |allowance: &Allowance| allowance.state == State::Ending;
            if segment.allowances.iter().any(is_ending) {
                segment.allowances.retain(|allowance| !is_ending(allowance));
            } else {
                segment.allowances.clear();
            }
            if segment.allowances.is_empty() {
                is_empty.push(*start);
            }
        }
        for start in is_empty {
            self.segments.remove(&start);
        }
    }

    /// Returns whether all of `start..=last` may lead to the addresses from `oa` on, with `rights`.
    pub(super) fn allow(&self, start: u64, last: u64, oa: u64, rights: Rights) -> bool {
        let offset = oa.wrapping_sub(start);
        let mut at = start;
        loop {
            let Some((_, segment)) = self.segments.range(..=at).next_back() else {
                return false;
            };
            let allows = |allowance: &Allowance| {
                allowance.offset == offset && rights.is_within(allowance.rights)
            };
            if segment.last < at || !segment.allowances.iter().any(allows) {
                return false;
            }
            if segment.last >= last {
                return true;
            }
            at = segment.last + 1;
        }
    }

    /// Returns whether there is one mapping of `iova`, for good and with `rights`.
    pub(super) fn need(&self, iova: u64, rights: Rights) -> bool {
        let Some((_, segment)) = self.segments.range(..=iova).next_back() else {
            return false;
        };
        let is_lasting = |allowance: &Allowance| {
            allowance.state == State::Lasting && rights.is_within(allowance.rights)
        };
        segment.last >= iova
            && !segment.allowances.is_empty()
            && segment.allowances.iter().all(is_lasting)
    }

    fn change(&mut self, start: u64, last: u64, from: State, to: State) {
        self.split(start, last);
        for (_, segment) in self.segments.range_mut(start..=last) {
            for allowance in &mut segment.allowances {
                if allowance.state == from {
                    allowance.state = to;
                }
            }
        }
    }

    /// Makes both ends of a range borders of segments.
    fn split(&mut self, start: u64, last: u64) {
        self.split_before(start);
        if let Some(next) = last.checked_add(1) {
            self.split_before(next);
        }
    }

    fn split_before(&mut self, at: u64) {
        let Some((&start, segment)) = self.segments.range_mut(..at).next_back() else {
            return;
        };
        if segment.last < at {
            return;
        }
        let upper = segment.clone();
        if let Some(segment) = self.segments.get_mut(&start) {
            segment.last = at - 1;
        }
        self.segments.insert(at, upper);
    }

    /// Splits, and adds empty segments where there is none.
    fn fill(&mut self, start: u64, last: u64) {
        self.split(start, last);
        let inside = self.segments.range(start..=last);
        let there: Vec<(u64, u64)> = inside
            .map(|(first, segment)| (*first, segment.last))
            .collect();
        let mut at = Some(start);
        let mut add = |first: u64, last: u64| {
            let allowances = Vec::new();
            self.segments.insert(first, Segment { last, allowances });
        };
        for (first, end) in there {
            if let Some(gap) = at.filter(|at| *at < first) {
                add(gap, first - 1);
            }
            at = end.checked_add(1);
        }
        if let Some(gap) = at.filter(|at| *at <= last) {
            add(gap, last);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Mappings;
    use crate::rights::Rights;

    #[test]
    fn a_range_is_allowed_only_as_a_whole_and_to_one_place() {
        let mut mappings = Mappings::default();
        mappings.begin(0x1000, 0x1fff, 0x9000, Rights::ALL);
        mappings.begin(0x2000, 0x2fff, 0xa000, Rights::READ);
        assert!(mappings.allow(0x1000, 0x2fff, 0x9000, Rights::READ));
        assert!(!mappings.allow(0x1000, 0x2fff, 0x9000, Rights::ALL));
        assert!(!mappings.allow(0x1000, 0x1fff, 0xa000, Rights::READ));
        assert!(!mappings.allow(0x2000, 0x3000, 0xa000, Rights::READ));
        assert!(!mappings.allow(0xfff, 0x1000, 0x8fff, Rights::READ));
    }

    #[test]
    fn old_and_new_are_allowed_until_the_old_is_forgotten() {
        let mut mappings = Mappings::default();
        mappings.begin(0, u64::MAX, 0, Rights::ALL);
        mappings.settle(0, u64::MAX);
        assert!(mappings.need(0x1000, Rights::ALL));
        mappings.end(0x1000, 0x1fff);
        mappings.begin(0x1000, 0x1fff, 0x5000, Rights::ALL);
        assert!(!mappings.need(0x1000, Rights::ALL));
        assert!(mappings.need(0x2000, Rights::ALL) && mappings.need(0xfff, Rights::ALL));
        for oa in [0x1000, 0x5000] {
            assert!(mappings.allow(0x1000, 0x1fff, oa, Rights::ALL));
        }
        mappings.forget(0x1000, 0x1fff);
        assert!(!mappings.allow(0x1000, 0x1fff, 0x1000, Rights::ALL));
        assert!(mappings.allow(0x1000, 0x1fff, 0x5000, Rights::ALL));
        mappings.forget(0, u64::MAX);
        assert!(!mappings.allow(u64::MAX, u64::MAX, u64::MAX, Rights::READ));
    }
}
