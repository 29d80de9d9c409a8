//! AMD IO page tables, version 1.
//!
//! Source: *AMD I/O Virtualization Technology (IOMMU) Specification*, document 48882, section
//! 2.2.3 "I/O Page Tables for Host Translations".
//!
//! ```text
//!      63  62 61 60 59 58   52 51                          12 11    9 8 7  6  5 4 1  0
//!     +---+--+--+--+--+-------+------------------------------+-------+---+--+--+---+--+
//! PTE | . |IW|IR|FC|U |   0   |         PageAddress          |0 or 7 | . |D |A | . |PR|
//!     +---+--+--+--+--+-------+------------------------------+-------+---+--+--+---+--+
//! PDE | . |IW|IR|       0     |       NextTableAddress       |NxtLvl |  .   |A | . |PR|
//!     +---+--+--+-------------+------------------------------+-------+------+--+---+--+
//! ```
//!
//! A dot marks ignored bits, a zero reserved ones. Without PR the other bits mean nothing.
//!
//! The specification numbers levels from 1 to 6, [`Level`] is one less, and so the `NextLevel` of
//! a pointer is the [`Level`] of the table that holds it wherever no level is skipped.
//!
//! A leaf has the size of its item (`NextLevel` 0), or any other power of two below the next
//! level's item (`NextLevel` 7). Then every item of the entry holds the same word, and the
//! address bits below the size are ones but for the highest of them: 64 KiB are `0111` in bits
//! 15:12.

use crate::{
    Bits, ConfigError, DirtyRule, Entry, Field, Format, Geometry, Leaf, Level, Memory, Oa,
    PageSize, PageSizes, Prot, Reserved, Rights, TableEntry, Window, bit,
};

/// PR: the item is present.
const PRESENT: u64 = bit(0);
/// A: read or written since software cleared it, if the device table entry's HAD enables it.
const ACCESSED: u64 = bit(5);
/// D: written since software cleared it, if HAD enables it.
const DIRTY: u64 = bit(6);
/// `NextLevel`: 0 and 7 make a leaf, 1 to 6 a pointer to a table of that level.
const NEXT_LEVEL: Bits<11, 9> = Bits;
/// `NextLevel` of a leaf whose address field also says its size.
const SIZED: u64 = 7;
/// Address of the next table, or of the page.
const ADDRESS: Bits<51, 12> = Bits;
/// FC: the IOMMU makes the device's accesses coherent whatever their No Snoop attribute says.
const FORCE_COHERENT: u64 = bit(60);
/// IR: reads allowed.
const READ: u64 = bit(61);
/// IW: writes allowed.
const WRITE: u64 = bit(62);
/// Must be zero in a leaf.
const LEAF_RESERVED: Bits<58, 52> = Bits;
/// Must be zero in a pointer.
const TABLE_RESERVED: Bits<60, 52> = Bits;

const EMPTY_FIELDS: &[Field] = &[Field::new("PR", 0, 0)];
const LEAF_FIELDS: &[Field] = &[
    Field::new("PR", 0, 0),
    Field::new("A", 5, 5),
    Field::new("D", 6, 6),
    Field::new("NextLevel", 11, 9),
    Field::new("PageAddress", 51, 12),
    Field::new("U", 59, 59),
    Field::new("FC", 60, 60),
    Field::new("IR", 61, 61),
    Field::new("IW", 62, 62),
];
const TABLE_FIELDS: &[Field] = &[
    Field::new("PR", 0, 0),
    Field::new("A", 5, 5),
    Field::new("NextLevel", 11, 9),
    Field::new("NextTableAddress", 51, 12),
    Field::new("IR", 61, 61),
    Field::new("IW", 62, 62),
];

/// The sizes from 4 KiB to 2^51 bytes, without the 512 GiB that hardware gets wrong.
const SIZES: PageSizes = PageSizes::from_bits((bit(52) - bit(12)) & !bit(39));

/// The sizes of one item, which need no `NextLevel` 7.
const ITEM_SIZES: PageSizes = PageSizes::from_bits(bit(12) | bit(21) | bit(30) | bit(39) | bit(48));

/// AMD IO page tables, version 1, with 1 to 6 levels.
///
/// The format grants reads and writes apart from each other. It controls neither execution nor
/// privilege: the right to execute is dropped, and unprivileged requests are always allowed.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct V1 {
    va_bits: u8,
    oa_bits: u8,
    top: Level,
    max_top: Level,
    sizes: PageSizes,
    /// Bits of every leaf besides address, size and rights.
    leaf_bits: u64,
    /// What a pointer in a table of each level holds besides the address.
    pointers: [u64; Level::MAX.0 as usize + 1],
}

/// Returns what a pointer in a table of each level holds besides the address.
const fn pointers() -> [u64; Level::MAX.0 as usize + 1] {
    let mut pointers = [0; Level::MAX.0 as usize + 1];
    let mut level = 1;
    while level < pointers.len() {
        // Rights are the AND over all levels, so a pointer allows everything.
        pointers[level] = NEXT_LEVEL.put(level as u64) | WRITE | READ | PRESENT;
        level += 1;
    }
    pointers
}

impl V1 {
    /// Levels of a new table that may grow.
    const FIRST_LEVELS: u8 = 3;
    /// Address bits of an entry.
    const OA_BITS: u8 = 52;

    /// Creates a table that starts with 3 levels (39 bits) and may grow to 6 (64 bits).
    pub const fn new() -> Self {
        Self {
            va_bits: 64,
            oa_bits: Self::OA_BITS,
            top: Level(Self::FIRST_LEVELS - 1),
            max_top: Level(5),
            sizes: SIZES,
            leaf_bits: 0,
            pointers: pointers(),
        }
    }

    /// Creates a table that starts with 3 levels and may grow to `max_levels`, which the IOMMU
    /// reports as HATS; with fewer than 3 it starts with all of them.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Levels`] unless `max_levels` is 1 to 6.
    pub const fn growing(max_levels: u8) -> Result<Self, ConfigError> {
        let Some(va_bits) = spanned_bits(max_levels) else {
            return Err(levels_error(max_levels));
        };
        let levels = if max_levels < Self::FIRST_LEVELS {
            max_levels
        } else {
            Self::FIRST_LEVELS
        };
        let grown = Self {
            va_bits,
            max_top: Level(max_levels - 1),
            ..Self::new()
        };
        Ok(Self {
            top: Level(levels - 1),
            ..grown.with_sizes_cut()
        })
    }

    /// Creates a table with exactly `levels` levels, for input addresses of `va_bits` bits.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Levels`] unless `levels` is 1 to 6; [`ConfigError::VaBits`] if the levels
    /// do not reach `va_bits`, or if fewer would.
    pub const fn fixed(levels: u8, va_bits: u8) -> Result<Self, ConfigError> {
        let Some(max_bits) = spanned_bits(levels) else {
            return Err(levels_error(levels));
        };
        let top = Level(levels - 1);
        if va_bits <= 12 + 9 * top.0 || va_bits > max_bits {
            let rule = "the root holds 2 to 512 items, with 6 levels 2 to 128";
            return Err(ConfigError::VaBits {
                bits: va_bits,
                rule,
            });
        }
        Ok(Self {
            va_bits,
            top,
            max_top: top,
            ..Self::new()
        }
        .with_sizes_cut())
    }

    /// Returns this format for output addresses of `oa_bits` bits, without the page sizes that
    /// do not fit in them.
    ///
    /// # Errors
    ///
    /// [`ConfigError::OaBits`] unless `oa_bits` is 32 to 52; [`ConfigError::Sizes`] if no page
    /// size is left.
    pub const fn with_oa_bits(self, oa_bits: u8) -> Result<Self, ConfigError> {
        if oa_bits < 32 || oa_bits > Self::OA_BITS {
            return Err(ConfigError::OaBits {
                bits: oa_bits,
                rule: "32 to 52",
            });
        }
        Self { oa_bits, ..self }
            .with_sizes_cut()
            .with_sizes(PageSizes::ALL)
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

    /// Returns this format with FC in every leaf: accesses are coherent even if the device asks
    /// for no snooping.
    #[must_use]
    pub const fn with_force_coherence(self) -> Self {
        Self {
            leaf_bits: self.leaf_bits | FORCE_COHERENT,
            ..self
        }
    }

    /// Returns this format with dirty pages tracked, for a device table entry with HAD = 3.
    ///
    /// New leaves carry A, and writable ones D, so that hardware has nothing to write until
    /// software clears them.
    #[must_use]
    pub const fn with_dirty(self) -> Self {
        Self {
            leaf_bits: self.leaf_bits | ACCESSED,
            ..self
        }
    }

    const fn tracks_dirty(self) -> bool {
        self.leaf_bits & ACCESSED != 0
    }

    /// Removes the sizes that a leaf cannot have because it would span the whole table or the
    /// whole output space.
    const fn with_sizes_cut(self) -> Self {
        let shortest = if self.va_bits < self.oa_bits {
            self.va_bits
        } else {
            self.oa_bits
        };
        let sizes = self.sizes.up_to(PageSize::from_lg2(shortest - 1));
        Self { sizes, ..self }
    }

    /// Returns the size that a leaf word of `level` says, if such a leaf can be.
    fn leaf_size(word: u64, level: Level) -> Option<PageSize> {
        let item_lg2 = Self::item_lg2(level);
        let lg2 = if NEXT_LEVEL.get(word) == SIZED {
            // One more than the position of the lowest zero; without one it is too much below.
            let lg2 = ADDRESS.get(word).trailing_ones() as u8 + 13;
            let other_sizes = item_lg2 + 1..item_lg2 + Self::item_count_lg2();
            other_sizes.contains(&lg2).then_some(lg2)?
        } else {
            item_lg2
        };
        (lg2 <= Self::OA_BITS).then(|| PageSize::from_lg2(lg2))
    }
}

impl Default for V1 {
    fn default() -> Self {
        Self::new()
    }
}

/// Returns the input address bits that `levels` levels decode, or `None` if there are none such.
const fn spanned_bits(levels: u8) -> Option<u8> {
    match levels {
        1..=5 => Some(12 + 9 * levels),
        6 => Some(64),
        _ => None,
    }
}

const fn levels_error(levels: u8) -> ConfigError {
    ConfigError::Levels {
        levels,
        rule: "1 to 6",
    }
}

/// Returns the rights that IR and IW of `word` allow; the format denies nobody the others.
fn rights(word: u64) -> Rights {
    Rights::USER
        .with_if(Rights::READ, word & READ != 0)
        .with_if(Rights::WRITE, word & WRITE != 0)
}

impl crate::format::sealed::Sealed for V1 {}

impl Format for V1 {
    const GRANULE: PageSize = PageSize::KIB_4;
    const PRESENT: u64 = PRESENT;
    const GROUPED: u64 = NEXT_LEVEL.mask();
    /// One of the bits 4:1, which the figure of a PDE marks as ignored.
    const PENDING: u64 = bit(1);

    #[inline]
    fn geometry(&self) -> Geometry {
        Geometry {
            va_bits: self.va_bits,
            window: Window::Lower,
            top: self.top,
            max_top: self.max_top,
        }
    }

    fn oa_bits(&self) -> u8 {
        self.oa_bits
    }

    #[inline]
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

    #[inline]
    fn leaf_attributes(&self, prot: Prot, size: PageSize) -> u64 {
        let (read, write) = (u64::from(prot.can_read()), u64::from(prot.can_write()));
        if read | write == 0 {
            return 0;
        }
        let sized = if ITEM_SIZES.contains(size) {
            0
        } else {
            // Ones from bit 12 up to two below the size's own bit.
            (((size.bytes() >> 1) - 1) & ADDRESS.mask()) | NEXT_LEVEL.put(SIZED)
        };
        let dirty = if self.tracks_dirty() {
            write * DIRTY
        } else {
            0
        };
        (read * READ) | (write * WRITE) | dirty | sized | self.leaf_bits | PRESENT
    }

    #[inline]
    fn encode_oa(&self, oa: Oa) -> u64 {
        oa.get()
    }

    #[inline]
    fn decode_oa(&self, word: u64) -> Oa {
        Oa::new(word & ADDRESS.mask())
    }

    #[inline]
    fn item_step(&self, _size: PageSize) -> u64 {
        0
    }

    #[inline]
    fn encode_table(&self, oa: Oa, level: Level) -> u64 {
        oa.get() | self.pointers[usize::from(level.0.min(Level::MAX.0))]
    }

    #[inline]
    fn child(&self, word: u64, level: Level) -> Option<Oa> {
        (NEXT_LEVEL.get(word) == u64::from(level.0)).then(|| Oa::new(word & ADDRESS.mask()))
    }

    #[inline]
    fn exact_child(&self, word: u64, level: Level) -> Option<Oa> {
        // What is left of a pointer is the address alone; leaves differ in the low bits.
        let rest = word.wrapping_sub(self.pointers[usize::from(level.0.min(Level::MAX.0))]);
        (rest & Self::GRANULE.offset_mask() == 0).then_some(Oa::new(rest))
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
        let next_level = NEXT_LEVEL.get(word);
        if (1..SIZED).contains(&next_level) {
            if next_level > u64::from(level.0) {
                return reserved("NextLevel is not below the level of the table");
            }
            if word & TABLE_RESERVED.mask() != 0 {
                return reserved("a reserved bit of a pointer, 60:52, is set");
            }
            return Ok(Entry::Table(TableEntry {
                oa: Oa::new(word & ADDRESS.mask()),
                level: Level(next_level as u8 - 1),
                limit: rights(word).union(Rights::EXECUTE),
            }));
        }
        if word & LEAF_RESERVED.mask() != 0 {
            return reserved("a reserved bit of a leaf, 58:52, is set");
        }
        let Some(size) = Self::leaf_size(word, level) else {
            return reserved("a leaf of this size cannot stand at this level");
        };
        Ok(Entry::Leaf(Leaf {
            oa: Oa::new(word & ADDRESS.mask() & !size.offset_mask()),
            span: size,
            size,
            prot: Prot::new(rights(word), Memory::WriteBack),
            accessed: word & ACCESSED != 0,
            dirty: word & WRITE != 0 && word & DIRTY != 0,
        }))
    }

    fn dirty_rule(&self) -> Option<DirtyRule> {
        self.tracks_dirty().then_some(DirtyRule {
            tracked: PRESENT | WRITE,
            mask: DIRTY,
            dirty: DIRTY,
        })
    }

    fn arch_level(&self, level: Level) -> i8 {
        level.0.cast_signed() + 1
    }

    fn fields(&self, word: u64, _level: Level) -> &'static [Field] {
        if word & PRESENT == 0 {
            EMPTY_FIELDS
        } else if (1..SIZED).contains(&NEXT_LEVEL.get(word)) {
            TABLE_FIELDS
        } else {
            LEAF_FIELDS
        }
    }
}

#[cfg(test)]
mod tests;
