//! The codec of long-mode entries.
//!
//! Source: *Intel 64 and IA-32 Architectures Software Developer's Manual* (SDM), volume 3, section
//! 4.5 "4-Level Paging and 5-Level Paging", tables 4-14 to 4-20.
//!
//! ```text
//!  63  62   52 51                          12  11 10 9   8  7  6  5  4   3   2   1   0
//! +---+-------+------------------------------+------+---+--+--+--+--+---+---+---+---+--+
//! |XD |   .   |         address [51:12]      |  .   |PND|. |PS|D |A |PCD|PWT|U/S|R/W|P |
//! +---+-------+------------------------------+------+---+--+--+--+--+---+---+---+---+--+
//! ```
//!
//! A dot marks bits that this codec neither sets nor reads, and so are PCD and PWT: DMA is coherent
//! on these platforms. Bit 7 of a level-0 entry is PAT, not PS; bit 12 of a large page is PAT. PND is
//! ignored by every walker; this crate marks table entries that are not written back yet with it.
//!
//! Every present entry can be read, so write-only and execute-only widen to include reads.
//!
//! # What decodes as reserved
//!
//! PS at the two highest levels, and address bits between PAT and the size of a large page. Hardware
//! faults on more, but only as its registers say, which a table does not tell, so these are left
//! alone: address bits at or above the physical address width (a walk checks [`Format::oa_bits`]
//! instead), XD without `EFER.NXE`, and 1 GiB pages of CPUs without them.
//!
//! The SDM numbers no levels; [`Format::arch_level`] counts from 1 (page table) to 5 (PML5), as the
//! VT-d specification does.

use core::marker::PhantomData;

use super::Walker;
use crate::{
    Bits, ConfigError, DirtyRule, Entry, Field, Format, Geometry, Leaf, Level, Memory, Oa,
    PageSize, PageSizes, Prot, Reserved, Rights, TableEntry, Window, bit,
};

/// P: the entry is present.
const PRESENT: u64 = bit(0);
/// R/W: writes allowed.
const WRITE: u64 = bit(1);
/// U/S: unprivileged accesses allowed.
const USER: u64 = bit(2);
/// A: used by a translation.
const ACCESSED: u64 = bit(5);
/// D: written through; leaves only.
const DIRTY: u64 = bit(6);
/// PS: the entry is a leaf. Levels above 0 only.
const PAGE_SIZE: u64 = bit(7);
/// Ignored by hardware: says that a table entry is not written back to memory yet.
const PENDING: u64 = bit(9);
/// PAT of a large page, where the address would otherwise be.
const LARGE_PAT: u64 = bit(12);
/// Address of the next table or of the page.
const ADDRESS: Bits<51, 12> = Bits;
/// XD: instruction fetches refused.
const EXECUTE_DISABLE: u64 = bit(63);

const SIZES: PageSizes = PageSizes::EMPTY
    .with(PageSize::KIB_4)
    .with(PageSize::MIB_2)
    .with(PageSize::GIB_1);
/// Highest level with large pages.
const TOP_LEAF: Level = Level(2);

/// The long-mode format, with 4 or 5 levels, for the walker `W`.
///
/// ```
/// use iopt_formats::x86_64::LongMode;
/// use iopt_formats::{Format, Oa, PageSize, Prot};
///
/// let format = LongMode::sign_extended(48)?;
/// let word = format.leaf_item(Oa::new(0x1234_5000), PageSize::KIB_4, Prot::RW, 0);
/// assert_eq!(word, 0x1234_5067);
/// # Ok::<(), iopt_formats::ConfigError>(())
/// ```
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct LongModeTables<W> {
    va_bits: u8,
    oa_bits: u8,
    window: Window,
    top: Level,
    sizes: PageSizes,
    /// XD, or nothing if execution is not controlled.
    execute_disable: u64,
    dirty: bool,
    walker: PhantomData<W>,
}

impl<W> LongModeTables<W> {
    /// Creates the format for input addresses of `va_bits`, 31 to 57, that start at 0.
    ///
    /// The table has 4 levels up to 48 bits, else 5. By default it may use every page size, output
    /// addresses have 52 bits, execution is not controlled and dirty pages are not tracked.
    ///
    /// # Errors
    ///
    /// [`ConfigError::VaBits`] for any other width.
    pub const fn new(va_bits: u8) -> Result<Self, ConfigError> {
        let top = match va_bits {
            31..=48 => Level(3),
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
            window: Window::Lower,
            top,
            sizes: SIZES,
            execute_disable: 0,
            dirty: false,
            walker: PhantomData,
        })
    }

    /// Creates the format for canonical addresses of `va_bits`, 48 or 57: a lower and an upper half.
    ///
    /// The defaults are those of [`new`](Self::new).
    ///
    /// # Errors
    ///
    /// [`ConfigError::VaBits`] for any other width.
    pub const fn sign_extended(va_bits: u8) -> Result<Self, ConfigError> {
        match (va_bits, Self::new(va_bits)) {
            (48 | 57, Ok(lower)) => Ok(Self {
                window: Window::SignExtended,
                ..lower
            }),
            _ => Err(ConfigError::VaBits {
                bits: va_bits,
                rule: "48 or 57 bits where addresses are sign-extended",
            }),
        }
    }

    /// Returns this format with `levels` levels, 4 or 5, and at least as many as before.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Levels`] for other numbers, and for 5 levels where 48-bit addresses are
    /// sign-extended.
    pub const fn with_levels(self, levels: u8) -> Result<Self, ConfigError> {
        if levels == self.levels() || levels == 5 && matches!(self.window, Window::Lower) {
            return Ok(Self {
                top: Level(levels - 1),
                ..self
            });
        }
        Err(ConfigError::Levels {
            levels,
            rule: "4 or 5, as the input width and its sign need",
        })
    }

    /// Returns this format with output addresses of `oa_bits`, 32 to 52: the physical address width.
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

    /// Returns this format with only those page sizes that are also in `sizes`. Decoding accepts
    /// every size nevertheless.
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

    /// Returns this format with control of execution: XD is set in leaves that do not allow it.
    ///
    /// Without it the bit is neither set nor read, because a table does not tell whether its walker
    /// honours it (`EFER.NXE` of the CPU), ignores it or faults on it.
    #[must_use]
    pub const fn with_execute_disable(self) -> Self {
        Self {
            execute_disable: EXECUTE_DISABLE,
            ..self
        }
    }

    /// Returns this format with dirty pages tracked.
    ///
    /// The entries are the same: a writable leaf carries D from the start, so that hardware need
    /// not write to the table on first use. Tracking starts with a pass that clears what it finds.
    #[must_use]
    pub const fn with_dirty(self) -> Self {
        Self {
            dirty: true,
            ..self
        }
    }

    /// Returns the number of levels, 4 or 5.
    pub const fn levels(&self) -> u8 {
        self.top.0 + 1
    }

    /// Returns the rights that make an entry: at least one of them must be asked for.
    const fn entry_rights(&self) -> Rights {
        Rights::READ
            .union(Rights::WRITE)
            .with_if(Rights::EXECUTE, self.execute_disable != 0)
    }

    /// Returns the read, write and user rights of a present entry.
    const fn access(word: u64) -> Rights {
        Rights::READ
            .with_if(Rights::WRITE, word & WRITE != 0)
            .with_if(Rights::USER, word & USER != 0)
    }
}

impl<W: Walker> crate::format::sealed::Sealed for LongModeTables<W> {}

impl<W: Walker> Format for LongModeTables<W> {
    const GRANULE: PageSize = PageSize::KIB_4;
    const PRESENT: u64 = PRESENT;
    const GROUPED: u64 = 0;
    const PENDING: u64 = PENDING;

    #[inline]
    fn geometry(&self) -> Geometry {
        let Self {
            va_bits,
            window,
            top,
            ..
        } = *self;
        Geometry {
            va_bits,
            window,
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
            .intersection(self.entry_rights().union(Rights::USER));
        (granted.difference(Rights::USER) != Rights::NONE)
            .then_some(Prot::new(granted.union(Rights::READ), Memory::WriteBack))
    }

    #[inline]
    fn leaf_attributes(&self, prot: Prot, size: PageSize) -> u64 {
        let write = if prot.can_write() { WRITE | DIRTY } else { 0 };
        let user = if prot.is_user() { USER } else { 0 };
        let page_size = if size > Self::GRANULE { PAGE_SIZE } else { 0 };
        let execute_disable = if prot.can_execute() {
            0
        } else {
            self.execute_disable
        };
        if prot.rights().intersection(self.entry_rights()) == Rights::NONE {
            return 0;
        }
        execute_disable | page_size | ACCESSED | user | write | PRESENT
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
        oa.get() | ACCESSED | USER | WRITE | PRESENT
    }

    #[inline]
    fn child(&self, word: u64, _level: Level) -> Option<Oa> {
        (word & (PAGE_SIZE | PRESENT) == PRESENT).then_some(self.decode_oa(word))
    }

    #[inline]
    fn exact_child(&self, word: u64, level: Level) -> Option<Oa> {
        // What is left of a pointer is the address alone; leaves differ in the low bits.
        let rest = word.wrapping_sub(self.encode_table(Oa::new(0), level));
        (rest & Self::GRANULE.offset_mask() == 0).then_some(Oa::new(rest))
    }

    #[inline]
    fn decode(&self, word: u64, level: Level) -> Result<Entry, Reserved> {
        if word & PRESENT == 0 {
            return Ok(Entry::Empty);
        }
        let mut address = word & ADDRESS.mask();
        if let Some(below) = level.below() {
            if word & PAGE_SIZE == 0 {
                let execute = word & self.execute_disable == 0;
                let limit = Self::access(word).with_if(Rights::EXECUTE, execute);
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
            address &= !LARGE_PAT;
        }
        let size = PageSize::from_lg2(Self::item_lg2(level));
        if !size.divides(address) {
            return Err(Reserved {
                word,
                level,
                reason: "address bits below the page's size",
            });
        }
        let execute = !word & self.execute_disable != 0;
        let rights = Self::access(word).with_if(Rights::EXECUTE, execute);
        Ok(Entry::Leaf(Leaf {
            oa: Oa::new(address),
            span: size,
            size,
            prot: Prot::new(rights, Memory::WriteBack),
            accessed: word & ACCESSED != 0,
            dirty: word & DIRTY != 0,
        }))
    }

    #[inline]
    fn dirty_rule(&self) -> Option<DirtyRule> {
        self.dirty.then_some(DirtyRule {
            tracked: WRITE,
            mask: DIRTY,
            dirty: DIRTY,
        })
    }

    fn arch_level(&self, level: Level) -> i8 {
        level.0.cast_signed().saturating_add(1)
    }

    fn fields(&self, word: u64, level: Level) -> &'static [Field] {
        if level == Level::LEAF {
            W::FIELDS.page
        } else if word & PAGE_SIZE != 0 {
            W::FIELDS.large_page
        } else {
            W::FIELDS.table
        }
    }
}

#[cfg(test)]
mod tests;
