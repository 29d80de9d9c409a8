//! RISC-V page tables.
//!
//! Sources: *The RISC-V Instruction Set Manual: Volume II, Privileged Architecture*, chapter
//! "Supervisor-Level ISA", sections "Sv32" (meaning of the bits, translation process), "Sv39",
//! "Sv48" and "Sv57"; chapters "Svnapot" and "Svpbmt"; chapter "Hypervisor Extension", section
//! "Guest Physical Address Translation". *RISC-V IOMMU Architecture Specification*, chapter "Data
//! Structures", sections on `iosatp` and `iohgatp`, and chapter "Software Guidelines" on changes
//! of the page size.
//!
//! ```text
//!   63 62  61 60    54 53                                   10 9 8  7  6  5  4  3  2  1  0
//! +---+------+--------+---------------------------------------+----+--+--+--+--+--+--+--+--+
//! | N | PBMT |    0   |                  PPN                  |RSW |D |A |G |U |X |W |R |V |
//! +---+------+--------+---------------------------------------+----+--+--+--+--+--+--+--+--+
//! ```
//!
//! A zero marks reserved bits; G and RSW do not change what an item means. Without V the other
//! bits mean nothing. A pointer has R = W = X = 0, and N, PBMT, D, A and U are reserved in it.
//! Everything reserved raises a page fault.
//!
//! The levels of the specification are those of [`Level`].

use core::fmt;
use core::marker::PhantomData;

use crate::{
    Bits, ConfigError, DirtyRule, Entry, Field, Format, Geometry, Leaf, Level, Memory, Oa,
    PageSize, PageSizes, Prot, Reserved, Rights, TableEntry, Window, bit,
};

/// V: the item is valid.
const VALID: u64 = bit(0);
/// R: reads allowed.
const READ: u64 = bit(1);
/// W: writes allowed; reserved without R.
const WRITE: u64 = bit(2);
/// X: instruction fetches allowed.
const EXECUTE: u64 = bit(3);
/// U: unprivileged requests allowed, and privileged ones only under SUM.
const USER: u64 = bit(4);
/// A: accessed since software cleared it.
const ACCESSED: u64 = bit(6);
/// D: written since software cleared it.
const DIRTY: u64 = bit(7);
/// PPN: number of the next table's page, or of the output page.
const PPN: Bits<53, 10> = Bits;
/// Everything below the PPN.
const BELOW_PPN: Bits<9, 0> = Bits;
/// Must be zero.
const RESERVED: Bits<60, 54> = Bits;
/// PBMT: memory type, with Svpbmt; else must be zero.
const PBMT: Bits<62, 61> = Bits;
/// PBMT: non-cacheable memory.
const PBMT_NC: u64 = 1;
/// PBMT: IO registers.
const PBMT_IO: u64 = 2;
/// N: one of 16 equal items that translate 64 KiB, with Svnapot; else must be zero.
const NAPOT: u64 = bit(63);
/// Bits 3:0 of the PPN, which say the size of a leaf with N.
const NAPOT_SIZE: Bits<13, 10> = Bits;
/// The only size that is not reserved: 2^4 pages.
const NAPOT_64K: u64 = 0b1000;

const EMPTY_FIELDS: &[Field] = &[Field::new("V", 0, 0)];
const LEAF_FIELDS: &[Field] = &[
    Field::new("V", 0, 0),
    Field::new("R", 1, 1),
    Field::new("W", 2, 2),
    Field::new("X", 3, 3),
    Field::new("U", 4, 4),
    Field::new("G", 5, 5),
    Field::new("A", 6, 6),
    Field::new("D", 7, 7),
    Field::new("RSW", 9, 8),
    Field::new("PPN", 53, 10),
    Field::new("PBMT", 62, 61),
    Field::new("N", 63, 63),
];
const TABLE_FIELDS: &[Field] = &[
    Field::new("V", 0, 0),
    Field::new("G", 5, 5),
    Field::new("RSW", 9, 8),
    Field::new("PPN", 53, 10),
];

#[expect(
    unnameable_types,
    reason = "nobody else implements a trait that they cannot name"
)]
mod sealed {
    pub trait Sealed {}
    impl Sealed for super::FirstStage {}
    impl Sealed for super::GStage {}
}

/// Which stage of a translation a table is: [`FirstStage`] or [`GStage`].
pub trait Stage: sealed::Sealed + Copy + fmt::Debug + Eq + Send + Sync + 'static {
    /// Root bits on top of the 9 of other tables.
    #[doc(hidden)]
    const EXTRA_ROOT_BITS: u8;
    /// Which addresses the table decodes.
    #[doc(hidden)]
    const WINDOW: Window;
    /// Rights that every leaf must grant, because requests need them all.
    #[doc(hidden)]
    const NEEDED: Rights;
}

/// Virtual to (guest) physical addresses: `satp`, `vsatp`, `iosatp`.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct FirstStage;

impl Stage for FirstStage {
    const EXTRA_ROOT_BITS: u8 = 0;
    const WINDOW: Window = Window::SignExtended;
    const NEEDED: Rights = Rights::NONE;
}

/// Guest-physical to physical addresses: `hgatp`, `iohgatp`.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct GStage;

impl Stage for GStage {
    const EXTRA_ROOT_BITS: u8 = 2;
    const WINDOW: Window = Window::Lower;
    // Every request counts as unprivileged here.
    const NEEDED: Rights = Rights::USER;
}

/// First-stage tables: `Sv39`, `Sv48`, `Sv57`.
///
/// Addresses are sign-extended.
pub type Sv = Paging<FirstStage>;

/// G-stage tables: `Sv39x4`, `Sv48x4`, `Sv57x4`.
///
/// The root is four times as large as other tables: 16 KiB, aligned to its size. Every leaf is
/// for unprivileged requests, because the hardware takes all requests as such.
pub type Svx4 = Paging<GStage>;

/// RISC-V tables of 3 to 5 levels: [`Sv`] or [`Svx4`].
///
/// A page that can be written can be read, so write-only is widened to both. Leaves carry A, and
/// writable ones D, whether or not hardware could set them: without it, the missing flag faults.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Paging<S> {
    top: Level,
    oa_bits: u8,
    has_svnapot: bool,
    has_svpbmt: bool,
    tracks_dirty: bool,
    sizes: PageSizes,
    stage: PhantomData<S>,
}

impl Sv {
    /// Creates a table of 3 levels for 39 address bits.
    pub const fn sv39() -> Self {
        Self::with_top(Level(2))
    }

    /// Creates a table of 4 levels for 48 address bits.
    pub const fn sv48() -> Self {
        Self::with_top(Level(3))
    }

    /// Creates a table of 5 levels for 57 address bits.
    pub const fn sv57() -> Self {
        Self::with_top(Level(4))
    }

    /// Returns the `iosatp` (or PC `fsc`) word that points to a table whose root lies at `root`.
    pub const fn iosatp(self, root: Oa) -> u64 {
        (self.mode() << 60) | (root.get() >> 12)
    }
}

impl Svx4 {
    /// Creates a table of 3 levels for 41 address bits.
    pub const fn sv39x4() -> Self {
        Self::with_top(Level(2))
    }

    /// Creates a table of 4 levels for 50 address bits.
    pub const fn sv48x4() -> Self {
        Self::with_top(Level(3))
    }

    /// Creates a table of 5 levels for 59 address bits.
    pub const fn sv57x4() -> Self {
        Self::with_top(Level(4))
    }

    /// Returns the `iohgatp` word that points to a table whose root lies at `root`.
    pub const fn iohgatp(self, root: Oa, gscid: u16) -> u64 {
        (self.mode() << 60) | ((gscid as u64) << 44) | (root.get() >> 12)
    }
}

impl<S: Stage> Paging<S> {
    const fn with_top(top: Level) -> Self {
        let mut sizes = PageSizes::EMPTY;
        let mut level = 0;
        while level <= top.0 {
            sizes = sizes.with(PageSize::from_lg2(12 + 9 * level));
            level += 1;
        }
        Self {
            top,
            oa_bits: 56,
            has_svnapot: false,
            has_svpbmt: false,
            tracks_dirty: false,
            sizes,
            stage: PhantomData,
        }
    }

    /// Returns this format with 64 KiB pages, which Svnapot adds. Every RISC-V IOMMU has it.
    #[must_use]
    pub const fn with_svnapot(self) -> Self {
        Self {
            has_svnapot: true,
            sizes: self.sizes.with(PageSize::KIB_64),
            ..self
        }
    }

    /// Returns this format with memory types, which Svpbmt adds.
    ///
    /// Write-back memory keeps the type that the platform gives the address; all that is neither
    /// write-back nor device becomes non-cacheable.
    #[must_use]
    pub const fn with_svpbmt(self) -> Self {
        Self {
            has_svpbmt: true,
            ..self
        }
    }

    /// Returns whether it has memory types.
    pub const fn has_svpbmt(self) -> bool {
        self.has_svpbmt
    }

    /// Returns this format with dirty pages tracked, for hardware that sets A and D (SADE or
    /// GADE).
    #[must_use]
    pub const fn with_dirty(self) -> Self {
        Self {
            tracks_dirty: true,
            ..self
        }
    }

    /// Returns this format for output addresses of `oa_bits` bits, without the page sizes that
    /// do not fit in them.
    ///
    /// # Errors
    ///
    /// [`ConfigError::OaBits`] unless `oa_bits` is 32 to 56; [`ConfigError::Sizes`] if no page
    /// size is left.
    pub const fn with_oa_bits(self, oa_bits: u8) -> Result<Self, ConfigError> {
        if oa_bits < 32 || oa_bits > 56 {
            return Err(ConfigError::OaBits {
                bits: oa_bits,
                rule: "32 to 56",
            });
        }
        Self { oa_bits, ..self }.with_sizes(PageSizes::ALL.up_to(PageSize::from_lg2(oa_bits - 1)))
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

    /// Returns the MODE value of `satp`, `hgatp`, `iosatp` and `iohgatp`: 8, 9 or 10.
    pub const fn mode(self) -> u64 {
        self.top.0 as u64 + 6
    }
}

impl<S: Stage> Paging<S> {
    /// Returns what the leaf `word` grants.
    fn rights(self, word: u64) -> Rights {
        // Where hardware does not set D, a write to a clean page faults.
        let can_write = word & WRITE != 0 && (self.tracks_dirty || word & DIRTY != 0);
        let rights = Rights::NONE
            .with_if(Rights::READ, word & READ != 0)
            .with_if(Rights::WRITE, can_write)
            .with_if(Rights::EXECUTE, word & EXECUTE != 0)
            .with_if(Rights::USER, word & USER != 0);
        if rights.contains(S::NEEDED) {
            rights
        } else {
            Rights::NONE
        }
    }

    /// Returns the memory type that the leaf `word` sets, or `None` if the encoding is reserved.
    fn memory(self, word: u64) -> Option<Memory> {
        match PBMT.get(word) {
            0 => Some(Memory::WriteBack),
            PBMT_NC if self.has_svpbmt => Some(Memory::NonCacheable),
            PBMT_IO if self.has_svpbmt => Some(Memory::Device),
            _ => None,
        }
    }

    /// Returns the size and the address of the leaf `word`, or why it can have none.
    fn leaf_span(self, word: u64, level: Level) -> Result<(PageSize, u64), &'static str> {
        let address = PPN.get(word) << 12;
        if word & NAPOT == 0 {
            let size = PageSize::from_lg2(Self::item_lg2(level));
            let rule = "the page is not aligned to its size";
            if size.divides(address) {
                Ok((size, address))
            } else {
                Err(rule)
            }
        } else if !self.has_svnapot {
            Err("N is set but the table has no Svnapot")
        } else if level != Level::LEAF {
            Err("N is set above the last level")
        } else if NAPOT_SIZE.get(word) != NAPOT_64K {
            Err("N is set and PPN[3:0] is not 1000")
        } else {
            Ok((PageSize::KIB_64, address & !PageSize::KIB_64.offset_mask()))
        }
    }
}

impl<S: Stage> crate::format::sealed::Sealed for Paging<S> {}

impl<S: Stage> Format for Paging<S> {
    const GRANULE: PageSize = PageSize::KIB_4;
    const PRESENT: u64 = VALID;
    const GROUPED: u64 = NAPOT;
    /// The lower bit of RSW, which hardware ignores (section "Sv32").
    const PENDING: u64 = bit(8);

    #[inline]
    fn geometry(&self) -> Geometry {
        Geometry {
            va_bits: Self::item_lg2(self.top) + Self::item_count_lg2() + S::EXTRA_ROOT_BITS,
            window: S::WINDOW,
            top: self.top,
            max_top: self.top,
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
            .with_if(Rights::READ, prot.can_write())
            .union(S::NEEDED);
        let memory = match prot.memory() {
            _ if !self.has_svpbmt => Memory::WriteBack,
            Memory::SystemCache => Memory::NonCacheable,
            memory => memory,
        };
        let maps = rights.difference(Rights::USER) != Rights::NONE;
        maps.then(|| Prot::new(rights, memory))
    }

    #[inline]
    fn leaf_attributes(&self, prot: Prot, size: PageSize) -> u64 {
        let when = |condition, bits| if condition { bits } else { 0 };
        let read = when(prot.can_read() || prot.can_write(), READ);
        let write = when(prot.can_write(), WRITE | DIRTY);
        let execute = when(prot.can_execute(), EXECUTE);
        let granted = read | write | execute;
        if granted == 0 {
            return 0;
        }
        let user = when(prot.is_user() || S::NEEDED.contains(Rights::USER), USER);
        let memory = match prot.memory() {
            Memory::WriteBack => 0,
            Memory::Device => PBMT.put(PBMT_IO),
            Memory::NonCacheable | Memory::SystemCache => PBMT.put(PBMT_NC),
        };
        granted
            | user
            | when(self.has_svpbmt, memory)
            | when(size == PageSize::KIB_64, NAPOT | NAPOT_SIZE.put(NAPOT_64K))
            | ACCESSED
            | VALID
    }

    #[inline]
    fn encode_oa(&self, oa: Oa) -> u64 {
        oa.get() >> 2
    }

    #[inline]
    fn decode_oa(&self, word: u64) -> Oa {
        Oa::new((word & PPN.mask()) << 2)
    }

    #[inline]
    fn item_step(&self, _size: PageSize) -> u64 {
        0
    }

    #[inline]
    fn encode_table(&self, oa: Oa, _level: Level) -> u64 {
        (oa.get() >> 2) | VALID
    }

    #[inline]
    fn child(&self, word: u64, _level: Level) -> Option<Oa> {
        (word & (EXECUTE | WRITE | READ | VALID) == VALID).then(|| self.decode_oa(word))
    }

    #[inline]
    fn exact_child(&self, word: u64, _level: Level) -> Option<Oa> {
        // What is left of a pointer is the PPN alone; leaves differ in the low bits.
        let rest = word.wrapping_sub(VALID);
        (rest & BELOW_PPN.mask() == 0).then_some(Oa::new(rest << 2))
    }

    fn decode(&self, word: u64, level: Level) -> Result<Entry, Reserved> {
        let reserved = |reason| Reserved {
            word,
            level,
            reason,
        };
        if word & VALID == 0 {
            return Ok(Entry::Empty);
        }
        if word & RESERVED.mask() != 0 {
            return Err(reserved("a reserved bit, 60:54, is set"));
        }
        if word & (WRITE | READ) == WRITE {
            return Err(reserved("W is set without R"));
        }
        if word & (EXECUTE | READ) == 0 {
            if word & (NAPOT | PBMT.mask() | DIRTY | ACCESSED | USER) != 0 {
                return Err(reserved("N, PBMT, D, A or U is set in a pointer"));
            }
            let below = level
                .below()
                .ok_or(reserved("a pointer at the last level"))?;
            let (oa, limit) = (self.decode_oa(word), Rights::ALL);
            return Ok(Entry::Table(TableEntry {
                oa,
                level: below,
                limit,
            }));
        }
        let memory = self.memory(word).ok_or(reserved("PBMT is reserved"))?;
        let (size, address) = self.leaf_span(word, level).map_err(reserved)?;
        Ok(Entry::Leaf(Leaf {
            oa: Oa::new(address),
            span: size,
            size,
            prot: Prot::new(self.rights(word), memory),
            accessed: word & ACCESSED != 0,
            dirty: word & WRITE != 0 && word & DIRTY != 0,
        }))
    }

    fn dirty_rule(&self) -> Option<DirtyRule> {
        self.tracks_dirty.then_some(DirtyRule {
            tracked: WRITE | VALID,
            mask: DIRTY,
            dirty: DIRTY,
        })
    }

    fn faults_unaccessed(&self) -> bool {
        // Hardware that sets D sets A too.
        !self.tracks_dirty
    }

    fn arch_level(&self, level: Level) -> i8 {
        level.0.cast_signed()
    }

    fn fields(&self, word: u64, _level: Level) -> &'static [Field] {
        if word & VALID == 0 {
            EMPTY_FIELDS
        } else if word & (EXECUTE | WRITE | READ) == 0 {
            TABLE_FIELDS
        } else {
            LEAF_FIELDS
        }
    }
}

#[cfg(test)]
mod tests;
