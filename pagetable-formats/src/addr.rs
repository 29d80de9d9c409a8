//! Typed addresses and the inclusive IOVA range.

use core::fmt;

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
        #[repr(transparent)]
        pub struct $name(u64);

        impl $name {
            /// Creates an address from its byte value.
            pub const fn new(bytes: u64) -> Self {
                Self(bytes)
            }

            /// Returns the byte value.
            pub const fn get(self) -> u64 {
                self.0
            }

            /// Returns the address `len` bytes above, or `None` past the last byte of the
            /// 64-bit space.
            pub const fn checked_add(self, len: u64) -> Option<Self> {
                match self.0.checked_add(len) {
                    Some(sum) => Some(Self(sum)),
                    None => None,
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }

        impl fmt::LowerHex for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::LowerHex::fmt(&self.0, f)
            }
        }
    };
}

address! {
    /// An IO virtual address, in bytes: the input of an IO page table.
    Iova
}

address! {
    /// An output address, in bytes: what an IO page table translates to, or where a table lies.
    ///
    /// Physical for a table that hardware walks alone, guest-physical for the first stage of a
    /// nested translation.
    Oa
}

/// A non-empty range of IOVA, `start..=last`.
///
/// The upper bound is inclusive because an exclusive one cannot express a range that ends at the
/// last byte of the 64-bit space.
///
/// ```
/// use iopt_formats::{Iova, IovaRange};
///
/// let top_page = IovaRange::with_len(Iova::new(0xffff_ffff_ffff_f000), 0x1000).unwrap();
/// assert_eq!(top_page.last(), Iova::new(u64::MAX));
/// assert!(IovaRange::with_len(Iova::new(0x1000), 0).is_none());
/// ```
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct IovaRange {
    start: Iova,
    last: Iova,
}

impl IovaRange {
    /// The whole 64-bit space.
    pub const FULL: Self = Self {
        start: Iova(0),
        last: Iova(u64::MAX),
    };

    /// Creates `start..=last`, or `None` if `last` is below `start`.
    pub const fn new(start: Iova, last: Iova) -> Option<Self> {
        if start.0 <= last.0 {
            Some(Self { start, last })
        } else {
            None
        }
    }

    /// Creates the range of `len` bytes from `start`.
    ///
    /// Returns `None` if `len` is zero or the range passes the last byte of the 64-bit space.
    #[inline]
    pub const fn with_len(start: Iova, len: u64) -> Option<Self> {
        let Some(len_minus_one) = len.checked_sub(1) else {
            return None;
        };
        match start.checked_add(len_minus_one) {
            Some(last) => Some(Self { start, last }),
            None => None,
        }
    }

    /// Returns the first byte.
    pub const fn start(self) -> Iova {
        self.start
    }

    /// Returns the last byte, which belongs to the range.
    pub const fn last(self) -> Iova {
        self.last
    }

    /// Returns the number of bytes less one, so that the full space has a value.
    pub const fn len_minus_one(self) -> u64 {
        self.last.0 - self.start.0
    }

    #[expect(clippy::len_without_is_empty, reason = "a range is never empty")]
    /// Returns the number of bytes, or `None` for the full 64-bit space.
    pub const fn len(self) -> Option<u64> {
        self.len_minus_one().checked_add(1)
    }

    /// Returns whether the two ranges share a byte.
    pub const fn overlaps(self, other: Self) -> bool {
        self.start.0 <= other.last.0 && other.start.0 <= self.last.0
    }

    /// Returns whether every byte of `other` belongs to this range.
    #[inline]
    pub const fn contains(self, other: Self) -> bool {
        self.start.0 <= other.start.0 && other.last.0 <= self.last.0
    }

    /// Returns whether `iova` belongs to this range.
    pub const fn contains_addr(self, iova: Iova) -> bool {
        self.start.0 <= iova.0 && iova.0 <= self.last.0
    }

    /// Returns the bytes that both ranges share.
    pub const fn intersection(self, other: Self) -> Option<Self> {
        let start = if self.start.0 > other.start.0 {
            self.start
        } else {
            other.start
        };
        let last = if self.last.0 < other.last.0 {
            self.last
        } else {
            other.last
        };
        Self::new(start, last)
    }
}

impl fmt::Display for IovaRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..={}", self.start, self.last)
    }
}
