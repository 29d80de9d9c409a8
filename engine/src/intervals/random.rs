//! Numbers for tests that do the same in every run.

/// A xorshift generator.
pub(crate) struct Random(u64);

impl Random {
    /// `seed` is not 0.
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) const fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Returns a number below `end`.
    pub(crate) const fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 8) % end
    }

    /// Returns `true` once in `count` times.
    pub(crate) const fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }

    /// Returns an index of a slice that is not empty.
    pub(crate) const fn index(&mut self, len: usize) -> usize {
        self.below(len as u64) as usize
    }

    /// Returns the bounds of an interval in one of three small regions: at 0, at the top of the
    /// space, around its middle. Often it touches an end of its region, or has one address.
    pub(crate) fn interval(&mut self, width: u64) -> (u64, u64) {
        let base = [0, u64::MAX - (width - 1), 1 << 63][self.index(3)];
        let (one, other) = (self.below(width), self.below(width));
        let (mut low, mut high) = (one.min(other), one.max(other));
        match self.below(6) {
            0 => low = 0,
            1 => high = width - 1,
            2 => high = low,
            3 => high = high.min(low + 4),
            _ => {}
        }
        (base + low, base + high)
    }
}

/// How often a loop over random cases runs: less under an interpreter.
pub(crate) const fn rounds(count: usize) -> usize {
    if cfg!(miri) { count / 200 + 1 } else { count }
}
