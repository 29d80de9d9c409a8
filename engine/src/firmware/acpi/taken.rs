//! Which numbers were given away: how sentences of a table that overlap become rules that do not.

use alloc::collections::BTreeMap;

/// Closed ranges of numbers that were taken; no two of them overlap.
#[derive(Debug, Default)]
pub(super) struct Taken {
    /// First to last.
    ranges: BTreeMap<u64, u64>,
}

impl Taken {
    /// Takes `first..=last`, and says which parts of it were free, in their order.
    ///
    /// A range that it meets becomes part of a larger one, and is not met again: all calls together cost
    /// no more than what they take and say.
    pub(super) fn take(&mut self, first: u64, last: u64, mut free: impl FnMut(u64, u64)) {
        let (mut start, mut end) = (first, last);
        let mut next = Some(first);
        if let Some((&before, &until)) = self.ranges.range(..first).next_back()
            && until.saturating_add(1) >= first
        {
            self.ranges.remove(&before);
            start = before;
            end = end.max(until);
            next = until.checked_add(1);
        }
        while let Some((&met, &until)) = self.ranges.range(first..=last).next() {
            self.ranges.remove(&met);
            if let Some(next) = next
                && next < met
            {
                free(next, met - 1);
            }
            end = end.max(until);
            next = until.checked_add(1);
        }
        if let Some(next) = next
            && next <= last
        {
            free(next, last);
        }
        self.ranges.insert(start, end);
    }

    /// Takes one number; returns whether it was free.
    pub(super) fn take_one(&mut self, number: u64) -> bool {
        let mut is_free = false;
        self.take(number, number, |_, _| is_free = true);
        is_free
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;
    use crate::intervals::random::{Random, rounds};

    #[test]
    fn what_was_free_is_said_once_and_in_order() {
        let mut random = Random::new(0x7a6e);
        for _ in 0..rounds(300) {
            let mut taken = Taken::default();
            let mut model = [false; 64];
            for _ in 0..24 {
                let (one, other) = (random.below(64), random.below(64));
                let (first, last) = (one.min(other), one.max(other));
                let mut said = Vec::new();
                taken.take(first, last, |first, last| said.push((first, last)));
                let mut expected: Vec<(u64, u64)> = Vec::new();
                for number in first..=last {
                    if !core::mem::replace(&mut model[number as usize], true) {
                        match expected.last_mut() {
                            Some((_, last)) if *last + 1 == number => *last = number,
                            _ => expected.push((number, number)),
                        }
                    }
                }
                assert_eq!(said, expected, "{first}..={last}");
            }
        }
    }

    #[test]
    fn the_largest_number_can_be_taken() {
        let mut taken = Taken::default();
        assert!(taken.take_one(u64::MAX));
        assert!(!taken.take_one(u64::MAX));
        let mut said = Vec::new();
        taken.take(0, u64::MAX, |first, last| said.push((first, last)));
        assert_eq!(said, [(0, u64::MAX - 1)]);
    }
}
