//! What both stages share: widths, levels, sizes and where addresses stand in descriptors.
//!
//! Source: DDI 0487, D8.3.1, tables D8-48 and D8-50 to D8-53.
//!
//! | descriptors | address bits in place | the others |
//! |---|---|---|
//! | 48-bit | `OA[47:G]` in 47:G | none |
//! | 64 KiB granule with LPA | `OA[47:16]` in 47:16 | `OA[51:48]` in 15:12 |
//! | 4 and 16 KiB granules with LPA2 (`DS = 1`) | `OA[49:G]` in 49:G | `OA[51:50]` in 9:8 |

use super::granule::{group_lg2, has_leaves, item_lg2, leaf_sizes, natural_top};
use crate::{ConfigError, Geometry, Level, Oa, PageSize, PageSizes, Reserved, Window, bit};

/// Bit 0: the descriptor is valid.
pub(super) const VALID: u64 = bit(0);
/// Bit 1: a table, or a page at level 0; clear in a block.
pub(super) const TABLE_OR_PAGE: u64 = bit(1);
/// The type of a table descriptor.
pub(super) const TABLE_POINTER: u64 = TABLE_OR_PAGE | VALID;
/// AF: the entry was used.
pub(super) const AF: u64 = bit(10);
/// DBM: hardware may mark the page written to.
pub(super) const DBM: u64 = bit(51);
/// nT: block translation entry; keeps a block that changes its size out of the TLBs (D8.7.2).
pub(super) const NT: u64 = bit(16);
/// Contiguous: the item is one of a group that makes one entry.
pub(super) const CONTIGUOUS: u64 = bit(52);
/// SH[1:0], absent with LPA2.
pub(super) const SH: crate::Bits<9, 8> = crate::Bits;
/// Ignored in table descriptors (table D8-49), whatever the granule and the address width; ours
/// marks a table that is not written back yet.
pub(super) const PENDING: u64 = bit(2);

/// The widths of an output address that `PS` and `IPS` encode, by their code.
pub(super) const OA_WIDTHS: [u8; 7] = [32, 36, 40, 42, 44, 48, 52];

/// The parts of a table's configuration that do not depend on the stage.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Shape<const G: u8> {
    va_bits: u8,
    oa_bits: u8,
    top: Level,
    /// Descriptors hold 52 address bits.
    wide: bool,
    /// Sizes that the user lets us make.
    allowed: PageSizes,
    /// Sizes that exist and are allowed.
    sizes: PageSizes,
}

/// Where a leaf points.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Place {
    pub(super) oa: Oa,
    pub(super) span: PageSize,
    pub(super) size: PageSize,
}

/// The kind of a descriptor.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    Empty,
    Table(Oa, Level),
    Leaf(Place),
}

impl<const G: u8> Shape<G> {
    pub(super) const GRANULE: PageSize = {
        assert!(
            G == 12 || G == 14 || G == 16,
            "the granules are 4, 16 and 64 KiB"
        );
        PageSize::from_lg2(G)
    };

    /// Inside windows of this size descriptors hold addresses in place.
    pub(super) const LINEAR_LG2: u8 = if G == 16 { 48 } else { 50 };

    /// Lowest bit of the field for the address bits from `LINEAR_LG2` up.
    const HIGH_AT: u8 = if G == 16 { 12 } else { 8 };

    /// Mask of that field.
    const HIGH: u64 = ((1 << (52 - Self::LINEAR_LG2)) - 1) << Self::HIGH_AT;

    /// Mask of the address bits in place.
    const LOW: u64 = (1 << 48) - (1 << G);

    /// Address bits in place that only wide descriptors have.
    const LOW_WIDE: u64 = (1 << Self::LINEAR_LG2) - (1 << 48);

    /// Checks the widths; the root has the level that needs no concatenation.
    pub(super) const fn new(va_bits: u8, oa_bits: u8, wide: bool) -> Result<Self, ConfigError> {
        if !is_oa_width(oa_bits) {
            let rule = "32, 36, 40, 42, 44, 48 or 52 bits";
            return Err(ConfigError::OaBits {
                bits: oa_bits,
                rule,
            });
        }
        if oa_bits == 52 && !wide {
            let rule = "52 bits with 4 and 16 KiB granules need LPA2 descriptors";
            return Err(ConfigError::OaBits {
                bits: oa_bits,
                rule,
            });
        }
        if G == 16 && wide && oa_bits != 52 {
            let rule = "the 64 KiB granule has LPA descriptors exactly if OAS is 52 bits";
            return Err(ConfigError::OaBits {
                bits: oa_bits,
                rule,
            });
        }
        let longest = if wide || G == 16 { 52 } else { 48 };
        if va_bits < 25 || va_bits > longest {
            let rule = "25 to 48 bits, to 52 with a 64 KiB granule or LPA2 descriptors";
            return Err(ConfigError::VaBits {
                bits: va_bits,
                rule,
            });
        }
        let shape = Self {
            va_bits,
            oa_bits,
            top: Level::LEAF,
            wide,
            allowed: PageSizes::ALL,
            sizes: PageSizes::EMPTY,
        };
        Ok(shape.with_top(natural_top(Self::GRANULE.lg2(), va_bits)))
    }

    /// Changes the level of the root.
    pub(super) const fn with_top(mut self, top: Level) -> Self {
        self.top = top;
        let sizes = leaf_sizes(G, top, self.va_bits, self.oa_bits, self.wide);
        self.sizes = sizes.intersection(self.allowed);
        self
    }

    /// Restricts the sizes.
    pub(super) const fn with_sizes(mut self, allowed: PageSizes) -> Result<Self, ConfigError> {
        self.allowed = allowed;
        let shape = self.with_top(self.top);
        if shape.sizes.is_empty() {
            Err(ConfigError::Sizes)
        } else {
            Ok(shape)
        }
    }

    pub(super) const fn va_bits(self) -> u8 {
        self.va_bits
    }

    pub(super) const fn oa_bits(self) -> u8 {
        self.oa_bits
    }

    pub(super) const fn top(self) -> Level {
        self.top
    }

    pub(super) const fn is_wide(self) -> bool {
        self.wide
    }

    /// Whether bits 9:8 hold address bits instead of SH (`DS = 1`).
    #[inline]
    pub(super) const fn has_ds(self) -> bool {
        self.wide && G != 16
    }

    #[inline]
    pub(super) const fn sizes(self) -> PageSizes {
        self.sizes
    }

    #[inline]
    pub(super) const fn geometry(self, window: Window) -> Geometry {
        Geometry {
            va_bits: self.va_bits,
            window,
            top: self.top,
            max_top: self.top,
        }
    }

    /// Returns the base-2 logarithm of the alignment of the root: its size, at least the 16 bytes
    /// that a base register can hold, or 64 where addresses have 52 bits.
    pub(super) const fn root_align_lg2(self) -> u8 {
        let size = self.va_bits - item_lg2(G, self.top) + 3;
        let least = if self.oa_bits == 52 { 6 } else { 4 };
        if size > least { size } else { least }
    }

    /// Places an aligned address below `2^oa_bits`.
    #[inline]
    pub(super) const fn encode_oa(oa: Oa) -> u64 {
        let low = oa.get() & ((1 << Self::LINEAR_LG2) - 1);
        low | oa.get() >> Self::LINEAR_LG2 << Self::HIGH_AT
    }

    /// Extracts the address of a table or page.
    #[inline]
    pub(super) const fn decode_oa(self, word: u64) -> Oa {
        if self.wide {
            let high = word & Self::HIGH;
            Oa::new(
                word & (Self::LOW | Self::LOW_WIDE) | high << (Self::LINEAR_LG2 - Self::HIGH_AT),
            )
        } else {
            Oa::new(word & Self::LOW)
        }
    }

    /// Returns the type bits and the Contiguous bit of a leaf of `size`.
    #[inline]
    pub(super) const fn type_bits(size: PageSize) -> u64 {
        let above_page = size.lg2() - G;
        let page = if above_page < G - 3 { TABLE_OR_PAGE } else { 0 };
        let grouped = if above_page.is_multiple_of(G - 3) {
            0
        } else {
            CONTIGUOUS
        };
        VALID | page | grouped
    }

    /// Returns the bytes between two items of one leaf.
    #[inline]
    pub(super) const fn item_step(size: PageSize) -> u64 {
        let above_page = size.lg2() - G;
        1 << (size.lg2() - above_page % (G - 3))
    }

    /// Returns the address of the table that an item made by us points to.
    #[inline]
    pub(super) const fn child(self, word: u64) -> Option<Oa> {
        if word & (VALID | TABLE_OR_PAGE) == VALID | TABLE_OR_PAGE {
            Some(self.decode_oa(word))
        } else {
            None
        }
    }

    /// As [`child`](Self::child), for a pointer that holds `pointer` besides an address below
    /// `2^LINEAR_LG2`. Everything else differs in the low bits.
    #[inline]
    pub(super) const fn exact_child(word: u64, pointer: u64) -> Option<Oa> {
        let rest = word.wrapping_sub(pointer);
        if rest & Self::GRANULE.offset_mask() == 0 {
            Some(Oa::new(rest))
        } else {
            None
        }
    }

    /// Finds out what a descriptor is (table D8-48) and where it points.
    #[inline]
    pub(super) const fn classify(self, word: u64, level: Level) -> Result<Kind, Reserved> {
        if word & VALID == 0 {
            return Ok(Kind::Empty);
        }
        match (level.below(), word & TABLE_OR_PAGE != 0) {
            (Some(below), true) => Ok(Kind::Table(self.decode_oa(word), below)),
            (Some(_), false) if !has_leaves(G, level, self.wide) => Err(Reserved {
                word,
                level,
                reason: "there are no blocks at this level",
            }),
            (Some(_), false) | (None, true) => Ok(Kind::Leaf(self.place(word, level))),
            (None, false) => Err(Reserved {
                word,
                level,
                reason: "bit 1 is set in every page descriptor",
            }),
        }
    }

    /// Extracts where a leaf of `level`, which has leaves, points.
    ///
    /// The address bits below its size are reserved and ignored, `nT` (bit 16) among them.
    #[inline]
    pub(super) const fn place(self, word: u64, level: Level) -> Place {
        let span = PageSize::from_lg2(item_lg2(G, level));
        let group = span.lg2() + group_lg2(G, level);
        // Hardware may ignore the hint where the group is larger than the table (D8.7.1.3).
        let grouped = word & CONTIGUOUS != 0 && group < self.va_bits;
        let size = if grouped {
            PageSize::from_lg2(group)
        } else {
            span
        };
        let oa = Oa::new(self.decode_oa(word).get() & !span.offset_mask());
        Place { oa, span, size }
    }
}

const fn is_oa_width(bits: u8) -> bool {
    let mut code = 0;
    while code < OA_WIDTHS.len() {
        if OA_WIDTHS[code] == bits {
            return true;
        }
        code += 1;
    }
    false
}
