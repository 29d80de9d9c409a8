//! Bit positions, written the way the specifications write them.

/// Returns the mask of bit `n`.
///
/// # Panics
///
/// Panics if `n` is 64 or more.
pub const fn bit(n: u32) -> u64 {
    1 << n
}

/// The field `HI:LO` of a 64-bit word, both bounds inclusive.
///
/// A swapped or oversized range does not compile.
#[derive(Clone, Copy, Debug)]
pub struct Bits<const HI: u32, const LO: u32>;

impl<const HI: u32, const LO: u32> Bits<HI, LO> {
    const MASK: u64 = {
        assert!(LO <= HI && HI < u64::BITS);
        (u64::MAX >> (u64::BITS - 1 - HI)) & (u64::MAX << LO)
    };

    /// Returns the field's bits, in place.
    pub const fn mask(self) -> u64 {
        Self::MASK
    }

    /// Extracts the field's value, shifted down to bit 0.
    pub const fn get(self, word: u64) -> u64 {
        (word & Self::MASK) >> LO
    }

    /// Places `value` in the field; every other bit of the result is zero.
    ///
    /// # Panics
    ///
    /// Panics in debug builds if `value` is too wide for the field.
    pub const fn put(self, value: u64) -> u64 {
        debug_assert!(value <= Self::MASK >> LO, "value is too wide for the field");
        value << LO
    }
}

/// A named field of a word, for people who read tables.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Field {
    /// Name as in the specification.
    pub name: &'static str,
    /// Highest bit of the field.
    pub hi: u8,
    /// Lowest bit of the field.
    pub lo: u8,
}

impl Field {
    /// Creates the field `hi:lo`.
    ///
    /// # Panics
    ///
    /// Panics if `hi` is above 63 or below `lo`.
    pub const fn new(name: &'static str, hi: u8, lo: u8) -> Self {
        assert!(lo <= hi && hi < 64, "not a field of a 64-bit word");
        Self { name, hi, lo }
    }

    /// Returns the bits of the field, in place.
    pub const fn mask(self) -> u64 {
        (u64::MAX >> (63 - self.hi)) & (u64::MAX << self.lo)
    }

    /// Extracts the field's value from `word`, shifted down to bit 0.
    pub const fn get(self, word: u64) -> u64 {
        (word & self.mask()) >> self.lo
    }
}
