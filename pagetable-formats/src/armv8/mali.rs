//! The LPAE tables of Mali GPUs (Midgard and later, `AS_TRANSCFG` address-space mode "table").
//!
//! No public manual describes them; these are the facts that open drivers rely on. They are
//! VMSAv8-64 descriptors of the 4 KiB granule with the permission bits of stage 2, attribute
//! indices as in stage 1, no access flag, no contiguous groups, and leaves that have type `0b01`
//! at every level. A table always has four levels.
//!
//! ```text
//!  63    55 54 53 52 48 47     12 11 10 9  8  7  6  5 4      2  1    0
//! +--------+-----+-----+---------+-----+----+--+--+--+--------+----+-----+
//! |   .    | XN  |  .  |   OA    |  .  | SH |W |R |. |AttrIndx|Type|Valid|
//! +--------+-----+-----+---------+-----+----+--+--+--+--------+----+-----+
//! ```

use super::fields::{self, Dialect};
use super::shape::{SH, Shape, TABLE_OR_PAGE, TABLE_POINTER, VALID};
use crate::{
    Bits, ConfigError, DirtyRule, Entry, Field, Format, Geometry, Leaf, Level, Memory, Oa,
    PageSize, PageSizes, Prot, Reserved, Rights, TableEntry, Window, bit,
};

/// The value of `AS_MEMATTR` that our entries index: 0 non-cacheable (`0x88`), 1 cached, write
/// allocate (`0x8d`), 2 device (`0x88`).
pub const MALI_MEMATTR: u64 = 0x88_8d88;

/// `AttrIndx`: which byte of `AS_MEMATTR` gives the memory type.
const ATTR_INDX: Bits<4, 2> = Bits;
/// Reads are allowed.
const READ: u64 = bit(6);
/// Writes are allowed.
const WRITE: u64 = bit(7);
/// SH = 0b10, outer: coherent beyond the cores of the GPU.
const SH_OUTER: u64 = SH.put(2);
/// XN: no fetches. Drivers set both bits; the upper one counts.
const XN: u64 = bit(54) | bit(53);
/// The bit of `XN` that counts.
const XN_UPPER: u64 = bit(54);

/// Address mode "table" of `AS_TRANSTAB`.
const TRANSTAB_TABLE: u64 = 3;
/// The GPU's own cache holds table entries.
const TRANSTAB_READ_INNER: u64 = bit(2);
/// Walks snoop the caches of the CPUs.
const TRANSTAB_SHARE_OUTER: u64 = bit(4);

/// The level of 1 GiB blocks.
const HIGHEST_LEAF: Level = Level(2);

type Tables = Shape<12>;

const SIZES: PageSizes = PageSizes::EMPTY
    .with(PageSize::KIB_4)
    .with(PageSize::MIB_2)
    .with(PageSize::GIB_1);

/// Mali LPAE tables.
///
/// Entries have no privilege, so [`effective`](Format::effective) adds the user right; fetches need
/// the right to read, so it adds that to the right to execute; memory that only a system cache
/// holds is mapped cached. The root is a whole table of 512 items whatever the
/// width of an address.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Mali {
    shape: Tables,
    oa_bits: u8,
}

impl Mali {
    const ROOT: Level = Level(3);

    /// Creates the format.
    ///
    /// # Errors
    ///
    /// - [`ConfigError::VaBits`] unless `va_bits` is 32 to 48;
    /// - [`ConfigError::OaBits`] unless `oa_bits` is 32 to 40.
    pub const fn new(va_bits: u8, oa_bits: u8) -> Result<Self, ConfigError> {
        if va_bits < 32 || va_bits > 48 {
            return Err(ConfigError::VaBits {
                bits: va_bits,
                rule: "32 to 48 bits",
            });
        }
        if oa_bits < 32 || oa_bits > 40 {
            return Err(ConfigError::OaBits {
                bits: oa_bits,
                rule: "32 to 40 bits",
            });
        }
        match Tables::new(va_bits, 40, false) {
            Ok(shape) => Self {
                shape: shape.with_top(Self::ROOT),
                oa_bits,
            }
            .with_sizes(SIZES),
            Err(error) => Err(error),
        }
    }

    /// Uses only the page sizes in `allowed`.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Sizes`] if none of 4 KiB, 2 MiB and 1 GiB is left.
    pub const fn with_sizes(mut self, allowed: PageSizes) -> Result<Self, ConfigError> {
        match self.shape.with_sizes(allowed.intersection(SIZES)) {
            Ok(shape) => {
                self.shape = shape;
                Ok(self)
            }
            Err(error) => Err(error),
        }
    }

    /// Returns the value of `AS_TRANSTAB` for walks that snoop the caches of the CPUs.
    pub const fn coherent_transtab(&self, root: Oa) -> u64 {
        self.transtab(root) | TRANSTAB_SHARE_OUTER
    }

    /// Returns the value of `AS_TRANSTAB` for walks that do not snoop.
    pub const fn transtab(&self, root: Oa) -> u64 {
        root.get() & !Tables::GRANULE.offset_mask() | TRANSTAB_READ_INNER | TRANSTAB_TABLE
    }

    const fn effective_memory(memory: Memory) -> Memory {
        match memory {
            Memory::SystemCache => Memory::WriteBack,
            memory => memory,
        }
    }
}

impl crate::format::sealed::Sealed for Mali {}

impl Format for Mali {
    const GRANULE: PageSize = Tables::GRANULE;
    const PRESENT: u64 = VALID;
    const GROUPED: u64 = 0;
    const PENDING: u64 = bit(55);
    const BREAK_BEFORE_MAKE: bool = true;

    #[inline]
    fn geometry(&self) -> Geometry {
        self.shape.geometry(Window::Lower)
    }

    #[inline]
    fn oa_bits(&self) -> u8 {
        self.oa_bits
    }

    #[inline]
    fn sizes(&self) -> PageSizes {
        self.shape.sizes()
    }

    #[inline]
    fn effective(&self, prot: Prot) -> Option<Prot> {
        if prot.rights().difference(Rights::USER) == Rights::NONE {
            return None;
        }
        let fetch_reads = if prot.can_execute() {
            Rights::READ
        } else {
            Rights::NONE
        };
        Some(
            prot.with(Rights::USER.union(fetch_reads))
                .with_memory(Self::effective_memory(prot.memory())),
        )
    }

    #[inline]
    fn leaf_attributes(&self, prot: Prot, _size: PageSize) -> u64 {
        if prot.rights().difference(Rights::USER) == Rights::NONE {
            return 0;
        }
        let index = ATTR_INDX.put(Self::effective_memory(prot.memory()) as u64);
        let read = if prot.can_read() || prot.can_execute() {
            READ
        } else {
            0
        };
        let write = if prot.can_write() { WRITE } else { 0 };
        let fetch = if prot.can_execute() { 0 } else { XN };
        VALID | SH_OUTER | index | read | write | fetch
    }

    #[inline]
    fn encode_oa(&self, oa: Oa) -> u64 {
        oa.get()
    }

    #[inline]
    fn decode_oa(&self, word: u64) -> Oa {
        self.shape.decode_oa(word)
    }

    #[inline]
    fn item_step(&self, size: PageSize) -> u64 {
        Tables::item_step(size)
    }

    #[inline]
    fn encode_table(&self, oa: Oa, _level: Level) -> u64 {
        oa.get() | TABLE_POINTER
    }

    #[inline]
    fn child(&self, word: u64, _level: Level) -> Option<Oa> {
        self.shape.child(word)
    }

    fn decode(&self, word: u64, level: Level) -> Result<Entry, Reserved> {
        if word & VALID == 0 {
            return Ok(Entry::Empty);
        }
        match (level.below(), word & TABLE_OR_PAGE != 0) {
            (Some(below), true) => Ok(Entry::Table(TableEntry {
                oa: self.shape.decode_oa(word),
                level: below,
                limit: Rights::ALL,
            })),
            (None, true) => Err(Reserved {
                word,
                level,
                reason: "bit 1 is clear in every page descriptor",
            }),
            (_, false) if level > HIGHEST_LEAF => Err(Reserved {
                word,
                level,
                reason: "there are no blocks at this level",
            }),
            (_, false) => {
                let place = self.shape.place(word, level);
                let rights = Rights::USER
                    .with_if(Rights::READ, word & READ != 0)
                    .with_if(Rights::WRITE, word & WRITE != 0)
                    .with_if(Rights::EXECUTE, word & READ != 0 && word & XN_UPPER == 0);
                let memory = match ATTR_INDX.get(word) {
                    1 => Memory::WriteBack,
                    2 => Memory::Device,
                    _ => Memory::NonCacheable,
                };
                Ok(Entry::Leaf(Leaf {
                    oa: place.oa,
                    span: place.span,
                    size: place.span,
                    prot: Prot::new(rights, memory),
                    accessed: true,
                    dirty: false,
                }))
            }
        }
    }

    fn dirty_rule(&self) -> Option<DirtyRule> {
        None
    }

    fn arch_level(&self, level: Level) -> i8 {
        3 - level.0.cast_signed()
    }

    fn fields(&self, word: u64, level: Level) -> &'static [Field] {
        fields::of::<12>(Dialect::Mali, false, word, level)
    }

    /// The root is a whole table, even where the address needs fewer items.
    #[inline]
    fn root_count_lg2(&self, _top: Level) -> u8 {
        Self::item_count_lg2()
    }
}
