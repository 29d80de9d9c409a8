//! A format of no hardware, small enough to try everything: for model checkers and for tests.
//!
//! A table has four items, so that three levels span 256 KiB: a checker can go through all
//! addresses, all sizes, and all interleavings of a few operations. Everything that an engine has
//! to cope with is there all the same: leaves at several levels, contiguous groups, a root that
//! grows, dirty state that hardware sets, and a pending bit. Tables still take whole pages of
//! 4 KiB, because entries hold no smaller alignment.
//!
//! ```text
//!        63 52 51              12 11  8  7   6   5   4   3   2   1   0
//!       +-----+------------------+-----+---+---+---+---+---+---+---+---+
//! leaf  |  0  |     address      |  0  | 0 | D | A | G | 0 | W | R | P |
//!       +-----+------------------+-----+---+---+---+---+---+---+---+---+
//! table |  0  |     address      |  0  |PND| 0 | 0 | 0 | T | 0 | 0 | P |
//!       +-----+------------------+-----+---+---+---+---+---+---+---+---+
//! ```
//!
//! A zero marks reserved bits: a word that an engine has torn or mixed up decodes to an error.
//! Without P the other bits mean nothing. G marks both items of a group of two; each holds its own
//! address. A says that hardware records writes in D.

use crate::{
    Bits, ConfigError, DirtyRule, Entry, Field, Format, Geometry, Leaf, Level, Memory, Oa,
    PageSize, PageSizes, Prot, Reserved, Rights, TableEntry, Window, bit,
};

/// P: the item is present.
const PRESENT: u64 = bit(0);
/// R: reads allowed.
const READ: u64 = bit(1);
/// W: writes allowed.
const WRITE: u64 = bit(2);
/// T: the item points to a table.
const TABLE: u64 = bit(3);
/// G: the item is one of two that make a leaf.
const GROUP: u64 = bit(4);
/// A: hardware records writes.
const TRACKED: u64 = bit(5);
/// D: written.
const DIRTY: u64 = bit(6);
/// PND: not written back yet.
const PENDING: u64 = bit(7);
/// Address of the next table, or of the page.
const ADDRESS: Bits<51, 12> = Bits;

const LEAF_BITS: u64 = PRESENT | READ | WRITE | GROUP | TRACKED | DIRTY | ADDRESS.mask();
const TABLE_BITS: u64 = PRESENT | TABLE | PENDING | ADDRESS.mask();

const EMPTY_FIELDS: &[Field] = &[Field::new("P", 0, 0)];
const LEAF_FIELDS: &[Field] = &[
    Field::new("P", 0, 0),
    Field::new("R", 1, 1),
    Field::new("W", 2, 2),
    Field::new("T", 3, 3),
    Field::new("G", 4, 4),
    Field::new("A", 5, 5),
    Field::new("D", 6, 6),
    Field::new("ADDR", 51, 12),
];
const TABLE_FIELDS: &[Field] = &[
    Field::new("P", 0, 0),
    Field::new("T", 3, 3),
    Field::new("PND", 7, 7),
    Field::new("ADDR", 51, 12),
];

/// Base-2 logarithm of the items of a table.
const ITEM_COUNT_LG2: u8 = 2;

/// Leaves of one item at levels 0 to 2: 4, 16 and 64 KiB.
const ITEM_SIZES: PageSizes = PageSizes::from_bits(bit(12) | bit(14) | bit(16));

/// Leaves of two items at levels 0 and 1: 8 and 32 KiB.
const GROUP_SIZES: PageSizes = PageSizes::from_bits(bit(13) | bit(15));

/// Four items a table, 2 to 4 levels of them.
///
/// The format grants reads and writes apart from each other and drops the right to execute;
/// unprivileged requests are always allowed.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Tiny {
    top: Level,
    max_top: Level,
    sizes: PageSizes,
    is_tracked: bool,
}

impl Tiny {
    /// Creates a table of `levels` levels, which spans 4 KiB times 4 to the power of that.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Levels`] unless `levels` is 2 to 4.
    pub const fn new(levels: u8) -> Result<Self, ConfigError> {
        Self::growing(levels, levels)
    }

    /// Creates a table that starts with `levels` levels and may grow to `max_levels`.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Levels`] unless both are 2 to 4 and `levels` is not more than `max_levels`.
    pub const fn growing(levels: u8, max_levels: u8) -> Result<Self, ConfigError> {
        if levels < 2 || max_levels > 4 || levels > max_levels {
            return Err(ConfigError::Levels {
                levels,
                rule: "2 to 4, and no more than it may grow to",
            });
        }
        let top = Level(levels - 1);
        let max_top = Level(max_levels - 1);
        // A leaf does not span the whole table.
        let largest = PageSize::from_lg2(va_bits(max_top) - 1);
        Ok(Self {
            top,
            max_top,
            sizes: ITEM_SIZES.up_to(largest),
            is_tracked: false,
        })
    }

    /// Returns this format with groups of two items at levels 0 and 1, besides its other sizes.
    #[must_use]
    pub const fn with_groups(self) -> Self {
        let largest = PageSize::from_lg2(va_bits(self.max_top) - 1);
        let sizes = self.sizes.union(GROUP_SIZES.up_to(largest));
        Self { sizes, ..self }
    }

    /// Returns this format, limited to those of its page sizes that are in `allowed`.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Sizes`] if none is left.
    pub const fn with_sizes(self, allowed: PageSizes) -> Result<Self, ConfigError> {
        let sizes = self.sizes.intersection(allowed);
        if sizes.is_empty() {
            Err(ConfigError::Sizes)
        } else {
            Ok(Self { sizes, ..self })
        }
    }

    /// Returns this format with dirty pages tracked. New writable leaves are dirty, so that
    /// hardware has nothing to write until software cleans them.
    #[must_use]
    pub const fn with_dirty(self) -> Self {
        Self {
            is_tracked: true,
            ..self
        }
    }
}

/// Returns the address bits that a root of level `top` decodes.
const fn va_bits(top: Level) -> u8 {
    PageSize::KIB_4.lg2() + ITEM_COUNT_LG2 * (top.0 + 1)
}

/// Returns the rights that R and W of `word` allow; the format denies nobody the others.
fn rights(word: u64) -> Rights {
    Rights::USER
        .with_if(Rights::READ, word & READ != 0)
        .with_if(Rights::WRITE, word & WRITE != 0)
}

impl crate::format::sealed::Sealed for Tiny {}

impl Format for Tiny {
    const GRANULE: PageSize = PageSize::KIB_4;
    const PRESENT: u64 = PRESENT;
    const GROUPED: u64 = GROUP;
    const PENDING: u64 = PENDING;

    #[inline]
    fn item_count_lg2() -> u8 {
        ITEM_COUNT_LG2
    }

    fn geometry(&self) -> Geometry {
        Geometry {
            va_bits: va_bits(self.max_top),
            window: Window::Lower,
            top: self.top,
            max_top: self.max_top,
        }
    }

    fn oa_bits(&self) -> u8 {
        52
    }

    fn sizes(&self) -> PageSizes {
        self.sizes
    }

    fn effective(&self, prot: Prot) -> Option<Prot> {
        let rights = prot
            .rights()
            .difference(Rights::EXECUTE)
            .union(Rights::USER);
        (rights != Rights::USER).then(|| Prot::new(rights, Memory::WriteBack))
    }

    fn leaf_attributes(&self, prot: Prot, size: PageSize) -> u64 {
        let (read, write) = (u64::from(prot.can_read()), u64::from(prot.can_write()));
        if read | write == 0 {
            return 0;
        }
        let group = u64::from(GROUP_SIZES.contains(size));
        let tracked = u64::from(self.is_tracked) * write;
        PRESENT | (read * READ) | (write * WRITE) | (group * GROUP) | (tracked * (TRACKED | DIRTY))
    }

    #[inline]
    fn encode_oa(&self, oa: Oa) -> u64 {
        oa.get()
    }

    #[inline]
    fn decode_oa(&self, word: u64) -> Oa {
        Oa::new(word & ADDRESS.mask())
    }

    fn item_step(&self, size: PageSize) -> u64 {
        1 << Self::item_lg2(Self::level_of(size))
    }

    #[inline]
    fn encode_table(&self, oa: Oa, _level: Level) -> u64 {
        oa.get() | TABLE | PRESENT
    }

    #[inline]
    fn child(&self, word: u64, _level: Level) -> Option<Oa> {
        (word & TABLE != 0).then(|| Oa::new(word & ADDRESS.mask()))
    }

    fn decode(&self, word: u64, level: Level) -> Result<Entry, Reserved> {
        let reserved = |reason| {
            Err(Reserved {
                word,
                level,
                reason,
            })
        };
        if word & PRESENT == 0 {
            return Ok(Entry::Empty);
        }
        let oa = Oa::new(word & ADDRESS.mask());
        if word & TABLE != 0 {
            return match level.below() {
                None => reserved("a pointer at level 0"),
                Some(_) if word & !TABLE_BITS != 0 => reserved("a reserved bit of a pointer"),
                Some(below) => Ok(Entry::Table(TableEntry {
                    oa,
                    level: below,
                    limit: Rights::ALL,
                })),
            };
        }
        if word & !LEAF_BITS != 0 {
            return reserved("a reserved bit of a leaf");
        }
        if word & (READ | WRITE) == 0 {
            return reserved("a leaf without rights");
        }
        let span = PageSize::from_lg2(Self::item_lg2(level));
        let size = PageSize::from_lg2(span.lg2() + u8::from(word & GROUP != 0));
        if !self.sizes.contains(size) {
            return reserved("a leaf of a size that this table has not");
        }
        if !span.divides(oa.get()) {
            return reserved("the address of a leaf is not aligned to its item");
        }
        Ok(Entry::Leaf(Leaf {
            oa,
            span,
            size,
            prot: Prot::new(rights(word), Memory::WriteBack),
            accessed: true,
            dirty: word & TRACKED != 0 && word & DIRTY != 0,
        }))
    }

    fn dirty_rule(&self) -> Option<DirtyRule> {
        self.is_tracked.then_some(DirtyRule {
            tracked: PRESENT | TRACKED,
            mask: DIRTY,
            dirty: DIRTY,
        })
    }

    fn arch_level(&self, level: Level) -> i8 {
        level.0.cast_signed()
    }

    fn fields(&self, word: u64, _level: Level) -> &'static [Field] {
        if word & PRESENT == 0 {
            EMPTY_FIELDS
        } else if word & TABLE != 0 {
            TABLE_FIELDS
        } else {
            LEAF_FIELDS
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Iova;
    use crate::conformance::check;

    fn configurations() -> impl Iterator<Item = Tiny> {
        let levels = (2..=4).flat_map(|top| (top..=4).map(move |max_top| (top, max_top)));
        levels.flat_map(|(levels, max_levels)| {
            let tiny = Tiny::growing(levels, max_levels).expect("2 to 4 levels");
            let dirty = tiny.with_dirty();
            [tiny, tiny.with_groups(), dirty, dirty.with_groups()]
        })
    }

    #[test]
    fn every_configuration_keeps_the_laws() {
        for format in configurations() {
            assert_eq!(check(format), Ok(()), "{format:?}");
            for size in format.sizes().iter() {
                let limited = format.with_sizes(PageSizes::EMPTY.with(size));
                assert_eq!(limited.map(check), Ok(Ok(())), "{format:?}, {size} alone");
            }
        }
    }

    #[test]
    fn words_are_as_drawn() {
        let tiny = Tiny::new(3).expect("2 to 4 levels").with_groups();
        let word =
            |size: u8, prot| tiny.leaf_item(Oa::new(0x8_0000), PageSize::from_lg2(size), prot, 1);
        assert_eq!(word(13, Prot::RW), 0x8_1017);
        assert_eq!(word(15, Prot::R), 0x8_4013);
        assert_eq!(
            tiny.leaf_item(Oa::new(0x5000), PageSize::KIB_4, Prot::RW, 0),
            0x5007
        );
        let dirty = tiny.with_dirty();
        assert_eq!(
            dirty.leaf_item(Oa::new(0x5000), PageSize::KIB_4, Prot::RW, 0),
            0x5067
        );
        assert_eq!(tiny.encode_table(Oa::new(0x9000), Level(1)), 0x9009);
    }

    #[test]
    fn a_table_has_four_items_and_three_levels_span_256_kib() {
        let tiny = Tiny::new(3).expect("2 to 4 levels");
        assert_eq!(tiny.geometry().va_mask(), 0x3_ffff);
        assert_eq!(tiny.root_count_lg2(Level(2)), 2);
        let path = |iova| (0..3).map(move |level| Tiny::index(Iova::new(iova), Level(level)));
        assert!(path(0x2_7000).eq([3, 1, 2]));
        assert!(path(0x3_ffff).eq([3, 3, 3]));
    }

    #[test]
    fn other_levels_and_sizes_are_refused() {
        for (levels, max_levels) in [(1, 3), (0, 0), (3, 5), (4, 3), (5, 5)] {
            let refused = Tiny::growing(levels, max_levels);
            assert!(
                matches!(refused, Err(ConfigError::Levels { .. })),
                "{levels}, {max_levels}"
            );
        }
        let two = Tiny::new(2).expect("2 to 4 levels").with_groups();
        assert_eq!(two.sizes().bits(), 0xf000);
        let none = two.with_sizes(PageSizes::EMPTY.with(PageSize::KIB_64));
        assert_eq!(none, Err(ConfigError::Sizes));
    }

    #[test]
    fn torn_words_are_reserved() {
        let tiny = Tiny::new(3).expect("2 to 4 levels");
        let torn = [
            (0x9008 | 1, 0),
            (0x1_0009 | 1 << 62, 1),
            (0x1001, 0),
            (0x1087, 0),
            (0x1007, 1),
            (0x1017, 0),
        ];
        for (word, level) in torn {
            assert!(
                tiny.decode(word, Level(level)).is_err(),
                "{word:#x} at {level}"
            );
        }
    }
}
