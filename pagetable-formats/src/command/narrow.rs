//! Numbers of fewer bits than Rust's types have.

use core::fmt;

/// An unsigned number of `BITS` bits, 1 to 32: what a field of a command holds.
///
/// ```
/// use iopt_formats::command::Narrow;
///
/// assert_eq!(Narrow::<5>::new(31).map(Narrow::get), Some(31));
/// assert_eq!(Narrow::<5>::new(32), None);
/// ```
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[repr(transparent)]
pub struct Narrow<const BITS: u32>(u32);

impl<const BITS: u32> Narrow<BITS> {
    /// The smallest number, 0.
    pub const MIN: Self = Self(0);
    /// The largest number.
    pub const MAX: Self = Self({
        assert!(BITS >= 1 && BITS <= u32::BITS, "1 to 32 bits");
        u32::MAX >> (u32::BITS - BITS)
    });

    /// Returns the number `value`, or `None` if it has more than `BITS` bits.
    pub const fn new(value: u32) -> Option<Self> {
        if value <= Self::MAX.0 {
            Some(Self(value))
        } else {
            None
        }
    }

    /// Returns the number in the low `BITS` bits of a field's value.
    pub(crate) const fn from_field(value: u64) -> Self {
        Self(value as u32 & Self::MAX.0)
    }

    /// Returns the value.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// Returns the value as a field takes it.
    pub(crate) const fn field(self) -> u64 {
        self.0 as u64
    }
}

impl<const BITS: u32> fmt::Display for Narrow<BITS> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_narrow_number_has_its_bits_and_no_more() {
        assert_eq!(Narrow::<1>::MAX.get(), 1);
        assert_eq!(Narrow::<24>::MAX.get(), 0xff_ffff);
        assert_eq!(Narrow::<32>::new(u32::MAX), Some(Narrow::MAX));
        assert_eq!(Narrow::<9>::new(0x1ff), Some(Narrow::MAX));
        assert_eq!(Narrow::<9>::new(0x200), None);
        assert_eq!(Narrow::<9>::from_field(0xfe05).get(), 5);
    }
}
