//! What an invalidation by address reaches.

use super::{Features, flag};
use crate::command::{CommandError, attempt};
use crate::{Bits, Iova, IovaRange, bit};

pub(super) const AV: u64 = bit(10);
pub(super) const NL: u64 = bit(34);
/// `ADDR[63:12]`: an address stands two bits below its place.
pub(super) const ADDR: Bits<61, 10> = Bits;
pub(super) const S: u64 = bit(9);

/// What an IOTINVAL by address drops.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Target {
    /// The first address; bits below the size of the span are dropped.
    pub address: Iova,
    /// How much; more than a page needs `capabilities.S`.
    pub span: Napot,
    /// Only leaves are dropped, and no pointers to tables; `false` (NL) needs `capabilities.NL`.
    pub is_leaf: bool,
}

impl Target {
    /// Returns the bits of both words.
    pub(super) const fn encode(target: Option<Self>) -> [u64; 2] {
        match target {
            Some(target) => [
                AV | flag(!target.is_leaf, NL),
                target.span.encode(target.address) >> 2 | flag(target.span.0 != 0, S),
            ],
            None => [0, 0],
        }
    }

    /// Decodes what stands in `words`.
    pub(super) const fn decode(words: [u64; 2]) -> Result<Option<Self>, CommandError> {
        let [word0, word1] = words;
        let is_range = word1 & S != 0;
        if word0 & AV == 0 {
            attempt!(ignored("NL", (word0 & NL != 0) as u64));
            attempt!(ignored("S", is_range as u64));
            attempt!(ignored("ADDR", ADDR.get(word1)));
            return Ok(None);
        }
        let (address, span) = attempt!(Napot::decode((word1 & ADDR.mask()) << 2, is_range));
        Ok(Some(Self {
            address,
            span,
            is_leaf: word0 & NL == 0,
        }))
    }

    /// Refuses what an IOMMU with `features` does not have.
    pub(super) const fn check(self, features: Features) -> Result<(), CommandError> {
        if !self.is_leaf && !features.has_non_leaf {
            return Err(CommandError::ReservedBits { word: 0, bits: NL });
        }
        if self.span.0 != 0 && !features.has_ranges {
            return Err(CommandError::ReservedBits { word: 1, bits: S });
        }
        Ok(())
    }
}

/// Refuses a value that AV makes ignored, and that is not zero.
const fn ignored(field: &'static str, value: u64) -> Result<(), CommandError> {
    match value {
        0 => Ok(()),
        _ => Err(CommandError::ReservedValue { field, value }),
    }
}

/// A naturally aligned power of two of 4 KiB pages: 0 to 52.
///
/// More than one page is encoded in the address, as ATS does: its low bits are ones, followed by a zero.
///
/// ```
/// use iopt_formats::command::riscv::Napot;
/// use iopt_formats::{Iova, IovaRange};
///
/// let range = IovaRange::new(Iova::new(0x7000), Iova::new(0xafff)).unwrap();
/// assert_eq!(Napot::of(range).pages_lg2(), 4);
/// ```
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Napot(u8);

impl Napot {
    /// One page.
    pub const PAGE: Self = Self(0);
    /// The whole address space.
    pub const ALL: Self = Self(52);

    /// Returns the span of `2^pages_lg2` pages, or `None` if that is above 52.
    pub const fn new(pages_lg2: u8) -> Option<Self> {
        if pages_lg2 <= Self::ALL.0 {
            Some(Self(pages_lg2))
        } else {
            None
        }
    }

    /// Returns the smallest aligned span that contains `range`.
    pub const fn of(range: IovaRange) -> Self {
        let pages = (range.start().get() >> 12) ^ (range.last().get() >> 12);
        Self((u64::BITS - pages.leading_zeros()) as u8)
    }

    /// Returns the base-2 logarithm of the number of pages, 0 to 52.
    pub const fn pages_lg2(self) -> u8 {
        self.0
    }

    /// Returns the mask of the address bits inside the span, those below 12 included.
    const fn offset_mask(self) -> u64 {
        u64::MAX >> (52 - self.0)
    }

    /// Returns bits 63:12 of `address` with the span encoded in them, if it is more than a page.
    pub(super) const fn encode(self, address: Iova) -> u64 {
        let ones = self.offset_mask() >> 1 & !0xfff;
        address.get() & !self.offset_mask() | ones
    }

    /// Decodes bits 63:12 of an address, which have a span encoded in them if they are a range.
    pub(super) const fn decode(encoded: u64, is_range: bool) -> Result<(Iova, Self), CommandError> {
        if !is_range {
            return Ok((Iova::new(encoded), Self::PAGE));
        }
        let page = encoded >> 12;
        let span = Self(page.trailing_ones() as u8 + 1);
        if span.0 > Self::ALL.0 {
            // All ones: unspecified.
            return Err(CommandError::ReservedValue {
                field: "ADDR",
                value: page,
            });
        }
        Ok((Iova::new(encoded & !span.offset_mask()), span))
    }
}
