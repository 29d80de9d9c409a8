//! What an invalidation by address reaches.

use super::Features;
use crate::command::{CommandError, Span, attempt, check_zero, when};
use crate::{Bits, bit};

pub(super) const AV: u64 = bit(10);
pub(super) const NL: u64 = bit(34);
/// `ADDR[63:12]`: an address stands two bits below its place.
pub(super) const ADDR: Bits<61, 10> = Bits;
pub(super) const S: u64 = bit(9);

/// What an IOTINVAL by address drops.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Target {
    /// Where; more than a page needs `capabilities.S`.
    pub span: Span,
    /// Only leaves are dropped, and no pointers to tables; `false` (NL) needs `capabilities.NL`.
    pub is_leaf: bool,
}

impl Target {
    /// Returns the bits of both words.
    pub(super) const fn encode(target: Option<Self>) -> [u64; 2] {
        match target {
            Some(target) => [
                AV | when(!target.is_leaf, NL),
                target.span.address_field() >> 2 | when(target.span.has_size(), S),
            ],
            None => [0, 0],
        }
    }

    /// Decodes what stands in `words`.
    pub(super) const fn decode(words: [u64; 2]) -> Result<Option<Self>, CommandError> {
        let [word0, word1] = words;
        let is_range = word1 & S != 0;
        if word0 & AV == 0 {
            attempt!(check_zero("NL", (word0 & NL != 0) as u64));
            attempt!(check_zero("S", is_range as u64));
            attempt!(check_zero("ADDR", ADDR.get(word1)));
            return Ok(None);
        }
        Ok(Some(Self {
            span: attempt!(decode_span((word1 & ADDR.mask()) << 2, is_range)),
            is_leaf: word0 & NL == 0,
        }))
    }

    /// Refuses what an IOMMU with `features` does not have.
    pub(super) const fn check(self, features: Features) -> Result<(), CommandError> {
        if !self.is_leaf && !features.has_non_leaf {
            return Err(CommandError::ReservedBits { word: 0, bits: NL });
        }
        if self.span.has_size() && !features.has_ranges {
            return Err(CommandError::ReservedBits { word: 1, bits: S });
        }
        Ok(())
    }
}

/// Decodes bits 63:12 of an address, which have a size encoded in them if they are a range. All ones are
/// unspecified.
pub(super) const fn decode_span(encoded: u64, is_range: bool) -> Result<Span, CommandError> {
    match Span::from_address_field(encoded, is_range) {
        Some(span) => Ok(span),
        None => Err(CommandError::ReservedValue {
            field: "ADDR",
            value: encoded >> 12,
        }),
    }
}
