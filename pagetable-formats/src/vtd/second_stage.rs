//! VT-d second-stage paging entries.
//!
//! Source: *Intel Virtualization Technology for Directed I/O, Architecture Specification*,
//! revision 4.1, section 9.8 "Second-Stage Paging Entries"; walk, page sizes and accessed and dirty
//! flags in section 3.7.
//!
//! ```text
//!  63  62 61   52 51                          12 11  10  9  8  7   6   5 3  2  1  0
//! +---+--+-------+------------------------------+---+---+--+--+--+----+----+--+--+--+
//! | . |TM|   .   |         address [51:12]      |SNP|PND|D |A |PS|IPAT|EMT |. |W |R |
//! +---+--+-------+------------------------------+---+---+--+--+--+----+----+--+--+--+
//! ```
//!
//! There is no present bit: an entry with neither R nor W is not present, whatever else it holds.
//! Rights are the AND over all levels (section 3.7.1). PND is one of the bits that hardware ignores;
//! this crate marks table entries that are not written back yet with it.
//!
//! # What decodes as reserved
//!
//! PS at the two highest levels, and address bits below the size of a large page. Hardware faults on
//! more, but only as its registers say, which a table does not tell, so these are left alone: address
//! bits at or above the host address width (a walk checks [`Format::oa_bits`] instead), SNP where
//! `ECAP_REG.SC` is 0, bit 62, which is TM or reserved depending on revision and `ECAP_REG.DT`, and
//! large pages that `CAP_REG.SSLPS` lacks.
//!
//! The specification numbers levels from 1 (SS-PTE) to 5 (SS-PML5E); this crate's [`Level`] is one
//! less.

use crate::{
    Bits, ConfigError, DirtyRule, Entry, Field, Format, Geometry, Leaf, Level, Memory, Oa,
    PageSize, PageSizes, Prot, Reserved, Rights, TableEntry, Window, bit,
};

/// R: reads allowed.
const READ: u64 = bit(0);
/// W: writes allowed.
const WRITE: u64 = bit(1);
/// PS: the entry is a leaf. Ignored at level 0, where every entry is.
const PAGE_SIZE: u64 = bit(7);
/// A: used by a translation. Ignored unless accessed and dirty flags are enabled.
const ACCESSED: u64 = bit(8);
/// D: written through, leaves only. Ignored as A is.
const DIRTY: u64 = bit(9);
/// Ignored by hardware: says that a table entry is not written back to memory yet.
const PENDING: u64 = bit(10);
/// SNP: accesses snoop whatever the request says. Leaves only.
const SNOOP: u64 = bit(11);
/// Address of the next table or of the page.
const ADDRESS: Bits<51, 12> = Bits;

/// Sizes of section 3.7; `CAP_REG.SSLPS` says which of the large ones hardware has.
const SIZES: PageSizes = PageSizes::EMPTY
    .with(PageSize::KIB_4)
    .with(PageSize::MIB_2)
    .with(PageSize::GIB_1);
/// Highest level with large pages.
const TOP_LEAF: Level = Level(2);

const TABLE_FIELDS: &[Field] = &[
    Field::new("R", 0, 0),
    Field::new("W", 1, 1),
    Field::new("PS", 7, 7),
    Field::new("A", 8, 8),
    Field::new("PND", 10, 10),
    Field::new("ADDR", 51, 12),
];

const LEAF_FIELDS: &[Field] = &[
    Field::new("R", 0, 0),
    Field::new("W", 1, 1),
    Field::new("EMT", 5, 3),
    Field::new("IPAT", 6, 6),
    Field::new("PS", 7, 7),
    Field::new("A", 8, 8),
    Field::new("D", 9, 9),
    Field::new("SNP", 11, 11),
    Field::new("ADDR", 51, 12),
    Field::new("TM", 62, 62),
];

/// The VT-d second-stage format, with 3, 4 or 5 levels.
///
/// It grants reads and writes separately. It knows neither privilege nor execution nor memory types,
/// so every leaf is a user page in write-back memory.
///
/// ```
/// use iopt_formats::vtd::SecondStage;
/// use iopt_formats::{Format, Oa, PageSize, Prot};
///
/// let format = SecondStage::new(48)?;
/// let word = format.leaf_item(Oa::new(0x1234_5000), PageSize::KIB_4, Prot::RW, 0);
/// assert_eq!(word, 0x1234_5003);
/// # Ok::<(), iopt_formats::ConfigError>(())
/// ```
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SecondStage {
    va_bits: u8,
    oa_bits: u8,
    top: Level,
    sizes: PageSizes,
    /// SNP, or nothing.
    snoop: u64,
    /// A, or nothing if accessed and dirty flags are off.
    accessed: u64,
    /// What every table entry holds besides the address.
    pointer: u64,
}

impl SecondStage {
    /// Creates the format for input addresses of `va_bits`, 31 to 57.
    ///
    /// The table has 3 levels up to 39 bits, 4 up to 48, else 5. By default it may use every page
    /// size, output addresses have 52 bits, and accessed and dirty flags are off.
    ///
    /// # Errors
    ///
    /// [`ConfigError::VaBits`] for any other width.
    pub const fn new(va_bits: u8) -> Result<Self, ConfigError> {
        let top = match va_bits {
            31..=39 => Level(2),
            40..=48 => Level(3),
            49..=57 => Level(4),
            _ => {
                return Err(ConfigError::VaBits {
                    bits: va_bits,
                    rule: "31 to 57 bits",
                });
            }
        };
        Ok(Self {
            va_bits,
            oa_bits: 52,
            top,
            sizes: SIZES,
            snoop: 0,
            accessed: 0,
            pointer: WRITE | READ,
        })
    }

    /// Returns this format with at least `levels` levels, 3 to 5: what the context entry's address
    /// width asks for may be more than the input addresses need.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Levels`] if there is no such table or it is too small for the width.
    pub const fn with_levels(self, levels: u8) -> Result<Self, ConfigError> {
        if levels < self.levels() || levels > 5 {
            return Err(ConfigError::Levels {
                levels,
                rule: "3 to 5, enough for the input width",
            });
        }
        Ok(Self {
            top: Level(levels - 1),
            ..self
        })
    }

    /// Returns this format with output addresses of `oa_bits`, 32 to 52: the host address width.
    ///
    /// # Errors
    ///
    /// [`ConfigError::OaBits`] for any other width.
    pub const fn with_oa_bits(self, oa_bits: u8) -> Result<Self, ConfigError> {
        match oa_bits {
            32..=52 => Ok(Self { oa_bits, ..self }),
            _ => Err(ConfigError::OaBits {
                bits: oa_bits,
                rule: "32 to 52 bits",
            }),
        }
    }

    /// Returns this format with only those page sizes that are also in `sizes`, as
    /// `CAP_REG.SSLPS` limits them. Decoding accepts every size nevertheless.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Sizes`] if none of 4 KiB, 2 MiB and 1 GiB is left.
    pub const fn with_sizes(self, sizes: PageSizes) -> Result<Self, ConfigError> {
        let sizes = sizes.intersection(SIZES);
        if sizes.is_empty() {
            Err(ConfigError::Sizes)
        } else {
            Ok(Self { sizes, ..self })
        }
    }

    /// Returns this format with SNP set in every new leaf, so that accesses snoop even if the
    /// request asks not to. Needs `ECAP_REG.SC`.
    #[must_use]
    pub const fn with_snoop(self) -> Self {
        Self {
            snoop: SNOOP,
            ..self
        }
    }

    /// Returns this format with accessed and dirty flags, as SSADE of the PASID entry enables them.
    ///
    /// New entries carry A, and D where they allow writes, so that hardware need not write to the
    /// table on first use: tracking starts with a pass that clears what it finds.
    #[must_use]
    pub const fn with_dirty(self) -> Self {
        Self {
            accessed: ACCESSED,
            pointer: ACCESSED | WRITE | READ,
            ..self
        }
    }

    /// Returns the number of levels, 3 to 5.
    pub const fn levels(&self) -> u8 {
        self.top.0 + 1
    }

    /// Returns the value of the field AW that announces this table in a context or PASID entry:
    /// 1, 2 or 3 for 3, 4 or 5 levels.
    pub const fn aw(&self) -> u8 {
        self.levels() - 2
    }
}

impl crate::format::sealed::Sealed for SecondStage {}

impl Format for SecondStage {
    const GRANULE: PageSize = PageSize::KIB_4;
    const PRESENT: u64 = READ | WRITE;
    const GROUPED: u64 = 0;
    const PENDING: u64 = PENDING;

    #[inline]
    fn geometry(&self) -> Geometry {
        let Self { va_bits, top, .. } = *self;
        Geometry {
            va_bits,
            window: Window::Lower,
            top,
            max_top: top,
        }
    }

    #[inline]
    fn oa_bits(&self) -> u8 {
        self.oa_bits
    }

    #[inline]
    fn sizes(&self) -> PageSizes {
        self.sizes
    }

    #[inline]
    fn effective(&self, prot: Prot) -> Option<Prot> {
        let granted = prot
            .rights()
            .intersection(Rights::READ.union(Rights::WRITE));
        (granted != Rights::NONE)
            .then_some(Prot::new(granted.union(Rights::USER), Memory::WriteBack))
    }

    #[inline]
    fn leaf_attributes(&self, prot: Prot, size: PageSize) -> u64 {
        let read = if prot.can_read() { READ } else { 0 };
        let dirty = if self.accessed == 0 { 0 } else { DIRTY };
        let write = if prot.can_write() { WRITE | dirty } else { 0 };
        let page_size = if size > Self::GRANULE { PAGE_SIZE } else { 0 };
        if read | write == 0 {
            0
        } else {
            read | write | page_size | self.snoop | self.accessed
        }
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
    fn encode_table(&self, oa: Oa, _level: Level) -> u64 {
        // Rights are ANDed on the way down, so a table entry grants all and the leaf decides.
        oa.get() | self.pointer
    }

    #[inline]
    fn child(&self, word: u64, _level: Level) -> Option<Oa> {
        (word & PAGE_SIZE == 0 && word & Self::PRESENT != 0).then_some(self.decode_oa(word))
    }

    #[inline]
    fn exact_child(&self, word: u64, level: Level) -> Option<Oa> {
        // What is left of a pointer is the address alone; leaves differ in the low bits.
        let rest = word.wrapping_sub(self.encode_table(Oa::new(0), level));
        (rest & Self::GRANULE.offset_mask() == 0).then_some(Oa::new(rest))
    }

    #[inline]
    fn decode(&self, word: u64, level: Level) -> Result<Entry, Reserved> {
        if word & Self::PRESENT == 0 {
            return Ok(Entry::Empty);
        }
        let rights = Rights::NONE
            .with_if(Rights::READ, word & READ != 0)
            .with_if(Rights::WRITE, word & WRITE != 0);
        let address = word & ADDRESS.mask();
        if let Some(below) = level.below() {
            if word & PAGE_SIZE == 0 {
                let limit = rights.union(Rights::USER).union(Rights::EXECUTE);
                return Ok(Entry::Table(TableEntry {
                    oa: Oa::new(address),
                    level: below,
                    limit,
                }));
            }
            if level > TOP_LEAF {
                return Err(Reserved {
                    word,
                    level,
                    reason: "PS at a level without large pages",
                });
            }
        }
        let size = PageSize::from_lg2(Self::item_lg2(level));
        if !size.divides(address) {
            return Err(Reserved {
                word,
                level,
                reason: "address bits below the page's size",
            });
        }
        Ok(Entry::Leaf(Leaf {
            oa: Oa::new(address),
            span: size,
            size,
            prot: Prot::new(rights.union(Rights::USER), Memory::WriteBack),
            accessed: word & self.accessed == self.accessed,
            dirty: word & DIRTY != 0,
        }))
    }

    #[inline]
    fn dirty_rule(&self) -> Option<DirtyRule> {
        (self.accessed != 0).then_some(DirtyRule {
            tracked: WRITE,
            mask: DIRTY,
            dirty: DIRTY,
        })
    }

    fn arch_level(&self, level: Level) -> i8 {
        level.0.cast_signed().saturating_add(1)
    }

    fn fields(&self, word: u64, level: Level) -> &'static [Field] {
        if level == Level::LEAF || word & PAGE_SIZE != 0 {
            LEAF_FIELDS
        } else {
            TABLE_FIELDS
        }
    }
}

#[cfg(test)]
mod tests;
