//! Naturally aligned blocks of addresses, and the way PCI Express writes them.
//!
//! Source: *PCI Express Base Specification*, section 10.3.2 "Invalidate Request". VT-d uses the encoding
//! in its device TLB descriptors, AMD and RISC-V in every command that has an address.

use crate::{Iova, IovaRange};

/// A naturally aligned block of `2^order` pages of 4 KiB.
///
/// ```
/// use iopt_formats::command::Span;
/// use iopt_formats::{Iova, IovaRange};
///
/// let range = IovaRange::new(Iova::new(0x1000), Iova::new(0x2fff)).unwrap();
/// assert_eq!(Span::covering(range), Span::new(0, 2).unwrap());
/// ```
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Span {
    start: u64,
    order: u8,
}

/// Base-2 logarithm of the unit.
const PAGE_LG2: u32 = 12;

impl Span {
    /// The largest order, that of the whole 64-bit space.
    pub const MAX_ORDER: u8 = 52;

    /// The whole 64-bit space.
    pub const ALL: Self = Self {
        start: 0,
        order: Self::MAX_ORDER,
    };

    /// Returns the block of `2^order` pages that holds `address`, or `None` if no address space has as
    /// many.
    pub const fn new(address: u64, order: u8) -> Option<Self> {
        if order > Self::MAX_ORDER {
            return None;
        }
        Some(Self {
            start: address & !Self::offsets(order),
            order,
        })
    }

    /// Returns the smallest block that holds all of `range`.
    pub const fn covering(range: IovaRange) -> Self {
        let start = range.start().get();
        // Above the highest bit that differs, all addresses of the range agree.
        let bits = u64::BITS - (start ^ range.last().get()).leading_zeros();
        let order = bits.saturating_sub(PAGE_LG2) as u8;
        Self {
            start: start & !Self::offsets(order),
            order,
        }
    }

    /// Returns this block, or the one of `order` that holds it if that is larger.
    ///
    /// Orders above [`MAX_ORDER`](Self::MAX_ORDER) count as that.
    #[must_use]
    pub const fn at_least(self, order: u8) -> Self {
        if order <= self.order {
            return self;
        }
        match Self::new(self.start, order) {
            Some(larger) => larger,
            None => Self::ALL,
        }
    }

    /// Returns the base-2 logarithm of the number of pages, at most 52.
    pub const fn order(self) -> u8 {
        self.order
    }

    /// Returns the first byte.
    pub const fn start(self) -> u64 {
        self.start
    }

    /// Returns all bytes.
    pub const fn range(self) -> IovaRange {
        let start = Iova::new(self.start);
        let last = Iova::new(self.start | Self::offsets(self.order));
        IovaRange::new(start, last).expect("setting bits makes no number smaller")
    }

    /// Returns the mask of the offsets inside a block.
    const fn offsets(order: u8) -> u64 {
        match 1_u64.checked_shl(PAGE_LG2 + order as u32) {
            Some(len) => len - 1,
            None => u64::MAX,
        }
    }

    /// Returns bits 63:12 of the address field, in place: below the top bit of the offset, which is zero,
    /// they are ones.
    pub(crate) const fn address_field(self) -> u64 {
        (self.start | (Self::offsets(self.order) >> 1)) & !Self::offsets(0)
    }

    /// Returns S: whether the address field tells the size too. Without it the block is one page.
    pub(crate) const fn has_size(self) -> bool {
        self.order != 0
    }

    /// Returns the block that bits 63:12 of `field` describe beside S, or `None` if they are all ones,
    /// which is the size of nothing.
    pub(crate) const fn from_address_field(field: u64, has_size: bool) -> Option<Self> {
        if !has_size {
            return Self::new(field, 0);
        }
        // At least the twelve offset bits, so the order is at least 1.
        let ones = (field | Self::offsets(0)).trailing_ones();
        if ones == u64::BITS {
            return None;
        }
        Self::new(field, (ones + 1 - PAGE_LG2) as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, last: u64) -> IovaRange {
        IovaRange::new(Iova::new(start), Iova::new(last)).expect("start is not above last")
    }

    fn span(address: u64, order: u8) -> Span {
        Span::new(address, order).expect("a valid order")
    }

    #[test]
    fn the_address_field_has_ones_below_a_zero_as_pci_express_writes_it() {
        let cases = [
            (span(0x1234_5000, 0), 0x1234_5000, false),
            (span(0x1234_4000, 1), 0x1234_4000, true),
            (span(0x1234_4000, 2), 0x1234_5000, true),
            (span(0x1234_0000, 4), 0x1234_7000, true),
            (span(0x4000_0000, 9), 0x400f_f000, true),
            (span(0x4000_0000, 18), 0x5fff_f000, true),
            (span(1 << 63, 51), 0xbfff_ffff_ffff_f000, true),
            (Span::ALL, 0x7fff_ffff_ffff_f000, true),
        ];
        for (span, field, has_size) in cases {
            assert_eq!(span.address_field(), field, "{span:?}");
            assert_eq!(span.has_size(), has_size, "{span:?}");
            assert_eq!(Span::from_address_field(field, has_size), Some(span));
        }
        assert_eq!(Span::from_address_field(!0xfff, true), None);
    }

    #[test]
    fn every_block_survives_its_address_field() {
        for order in 0..=Span::MAX_ORDER {
            for address in [0, 0x1000, 0xdead_beef_f000, 1 << 51, u64::MAX] {
                let span = span(address, order);
                assert!(span.range().contains_addr(Iova::new(address)));
                let read = Span::from_address_field(span.address_field(), span.has_size());
                assert_eq!(read, Some(span));
            }
        }
        assert_eq!(Span::new(0, 53), None);
    }

    #[test]
    fn the_covering_block_is_the_smallest_one() {
        const PAGES: u64 = 40;
        for first in 0..PAGES {
            for last in first..PAGES {
                let range = range(first << 12, (last << 12) + 0xfff);
                let span = Span::covering(range);
                assert!(span.range().contains(range));
                if let Some(order) = span.order().checked_sub(1) {
                    let smaller = Span::new(first << 12, order).expect("a valid order");
                    assert!(!smaller.range().contains(range), "{range} in {smaller:?}");
                }
            }
        }
        assert_eq!(Span::covering(IovaRange::FULL), Span::ALL);
        let top = range(u64::MAX, u64::MAX);
        assert_eq!(Span::covering(top), span(u64::MAX, 0));
        let middle = range((1 << 63) - 1, 1 << 63);
        assert_eq!(Span::covering(middle), Span::ALL);
    }

    #[test]
    fn a_block_grows_to_the_order_that_is_asked_for() {
        let block = span(0x20_3000, 0);
        assert_eq!(block.at_least(0), block);
        assert_eq!(block.at_least(9), span(0x20_0000, 9));
        assert_eq!(span(0x20_0000, 9).at_least(3), span(0x20_0000, 9));
        assert_eq!(block.at_least(200), Span::ALL);
    }
}
