//! Page sizes and sets of them.

use core::fmt;

use crate::{Iova, Oa};

/// The size of one translation: a power of two bytes.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct PageSize {
    lg2: u8,
}

impl PageSize {
    /// 4 KiB.
    pub const KIB_4: Self = Self::from_lg2(12);
    /// 16 KiB.
    pub const KIB_16: Self = Self::from_lg2(14);
    /// 64 KiB.
    pub const KIB_64: Self = Self::from_lg2(16);
    /// 2 MiB.
    pub const MIB_2: Self = Self::from_lg2(21);
    /// 1 GiB.
    pub const GIB_1: Self = Self::from_lg2(30);

    /// Creates the size of `2^lg2` bytes.
    ///
    /// # Panics
    ///
    /// Panics if `lg2` is 64 or more.
    pub const fn from_lg2(lg2: u8) -> Self {
        assert!(lg2 < 64, "page size does not fit in 64 bits");
        Self { lg2 }
    }

    /// Returns the base-2 logarithm of the size in bytes.
    pub const fn lg2(self) -> u8 {
        self.lg2
    }

    /// Returns the size in bytes.
    pub const fn bytes(self) -> u64 {
        1 << (self.lg2 & 63)
    }

    /// Returns the mask of the offset inside a page of this size.
    pub const fn offset_mask(self) -> u64 {
        self.bytes() - 1
    }

    /// Returns whether `value` is a multiple of this size.
    pub const fn divides(self, value: u64) -> bool {
        value & self.offset_mask() == 0
    }
}

impl fmt::Display for PageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, shift) = match self.lg2 {
            0..10 => ("B", 0),
            10..20 => ("KiB", 10),
            20..30 => ("MiB", 20),
            30..40 => ("GiB", 30),
            40..50 => ("TiB", 40),
            50..60 => ("PiB", 50),
            _ => ("EiB", 60),
        };
        write!(f, "{} {unit}", self.bytes() >> shift)
    }
}

/// A set of page sizes; bit `n` stands for `2^n` bytes.
#[derive(Clone, Copy, Default, Eq, Hash, PartialEq)]
pub struct PageSizes(u64);

impl PageSizes {
    /// The empty set.
    pub const EMPTY: Self = Self(0);
    /// Every power of two.
    pub const ALL: Self = Self(u64::MAX);

    /// Creates the set from its bitmap.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// Returns the bitmap.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Returns this set with `size` added.
    #[must_use]
    pub const fn with(self, size: PageSize) -> Self {
        Self(self.0 | size.bytes())
    }

    /// Returns this set without `size`.
    #[must_use]
    pub const fn without(self, size: PageSize) -> Self {
        Self(self.0 & !size.bytes())
    }

    /// Returns the set of all sizes that are in either set.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Returns the set of all sizes that are in both sets.
    #[must_use]
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Returns the sizes of the set up to and including `limit`.
    #[must_use]
    pub const fn up_to(self, limit: PageSize) -> Self {
        Self(self.0 & (limit.bytes() | limit.offset_mask()))
    }

    /// Returns whether `size` is in the set.
    pub const fn contains(self, size: PageSize) -> bool {
        self.0 & size.bytes() != 0
    }

    /// Returns whether no size is in the set.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Returns the smallest size of the set.
    pub const fn smallest(self) -> Option<PageSize> {
        if self.0 == 0 {
            None
        } else {
            Some(PageSize::from_lg2(self.0.trailing_zeros() as u8))
        }
    }

    /// Returns the largest size of the set.
    pub const fn largest(self) -> Option<PageSize> {
        match self.0.checked_ilog2() {
            Some(lg2) => Some(PageSize::from_lg2(lg2 as u8)),
            None => None,
        }
    }

    /// Returns the sizes, smallest first.
    pub fn iter(self) -> impl Iterator<Item = PageSize> {
        (0..64)
            .map(PageSize::from_lg2)
            .filter(move |&size| self.contains(size))
    }

    /// Returns the largest size of the set that can start at (`iova`, `oa`) and does not reach
    /// past `last`, or `None` if no size fits or `last` is below `iova`.
    ///
    /// Takes a handful of instructions whatever the set.
    #[inline]
    pub const fn largest_fitting(self, iova: Iova, last: Iova, oa: Oa) -> Option<PageSize> {
        let Some(len_minus_one) = last.get().checked_sub(iova.get()) else {
            return None;
        };
        let fits_in_range = match len_minus_one.checked_add(1) {
            // Every size up to the highest power of two not above the length.
            Some(len) => u64::MAX >> len.leading_zeros(),
            None => u64::MAX,
        };
        // Every size that divides both addresses: those up to the lowest set bit.
        let address_bits = iova.get() | oa.get();
        let fits_alignment = address_bits ^ address_bits.wrapping_sub(1);
        Self(self.0 & fits_in_range & fits_alignment).largest()
    }
}

impl fmt::Debug for PageSizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

impl fmt::Display for PageSizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for size in self.iter() {
            write!(f, "{separator}{size}")?;
            separator = ", ";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What [`PageSizes::largest_fitting`] computes, straight from its contract.
    fn largest_fitting_reference(sizes: u64, iova: u64, last: u64, oa: u64) -> Option<u8> {
        (0..64).rev().find(|&lg2| {
            let bytes = 1_u64 << lg2;
            sizes & bytes != 0
                && iova.is_multiple_of(bytes)
                && oa.is_multiple_of(bytes)
                && bytes - 1 <= last - iova
        })
    }

    #[test]
    fn largest_fitting_agrees_with_its_contract() {
        let bitmaps = [
            0x4020_1000,
            0x0000_4444_6020_1000,
            0x1ff_f000,
            u64::MAX,
            0,
            1 << 63,
            0x4020_0000,
        ];
        let addresses = [
            0,
            0x1000,
            0x1_0000,
            0x20_0000,
            0x4000_0000,
            0x4020_0000,
            0x7fff_f000,
            1 << 47,
            1 << 63,
        ];
        let lens = [
            0x1000,
            0x2000,
            0x1_f000,
            0x20_0000,
            0x20_1000,
            0x4000_0000,
            0xffff_f000,
        ];
        for sizes in bitmaps {
            for iova in addresses {
                for oa in addresses {
                    let lasts = lens.map(|len| iova + (len - 1));
                    for last in lasts.into_iter().chain([u64::MAX]) {
                        assert_eq!(
                            PageSizes(sizes)
                                .largest_fitting(Iova::new(iova), Iova::new(last), Oa::new(oa))
                                .map(PageSize::lg2),
                            largest_fitting_reference(sizes, iova, last, oa),
                            "sizes {sizes:#x}, iova {iova:#x}, last {last:#x}, oa {oa:#x}",
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn a_range_that_ends_before_it_starts_fits_nothing() {
        assert_eq!(
            PageSizes::ALL.largest_fitting(Iova::new(0x2000), Iova::new(0x1fff), Oa::new(0)),
            None
        );
    }
}
