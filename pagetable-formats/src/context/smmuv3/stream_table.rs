//! Where the STE of a stream lies (IHI 0070, sections 3.3.1 and 5.1).

use crate::{Bits, Field, Oa, bit};

/// Fields of `SMMU_STRTAB_BASE`.
pub const STRTAB_BASE_FIELDS: &[Field] = &[Field::new("ADDR", 55, 6), Field::new("RA", 62, 62)];

/// Fields of `SMMU_STRTAB_BASE_CFG`.
pub const STRTAB_BASE_CFG_FIELDS: &[Field] = &[
    Field::new("LOG2SIZE", 5, 0),
    Field::new("SPLIT", 10, 6),
    Field::new("FMT", 17, 16),
];

/// `ADDR` of `SMMU_STRTAB_BASE` and `L2Ptr` of a descriptor.
const ADDR: Bits<55, 6> = Bits;
const LOG2SIZE: Bits<5, 0> = Bits;
const SPLIT: Bits<10, 6> = Bits;
const FMT: Bits<17, 16> = Bits;
const SPAN: Bits<4, 0> = Bits;

/// The base-2 logarithm of the bytes of an STE.
const STE_LG2: u32 = 6;
/// The base-2 logarithm of the bytes of a level 1 descriptor.
const DESC_LG2: u32 = 3;

/// Returns the mask of the bits from `lg2` up, none for a table larger than the space.
const fn aligned_mask(lg2: u32) -> u64 {
    match u64::MAX.checked_shl(lg2) {
        Some(mask) => mask,
        None => 0,
    }
}

/// The stream table that the registers describe.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct StreamTable {
    base: Oa,
    /// Base-2 logarithm of the number of streams.
    count_lg2: u8,
    /// Base-2 logarithm of the streams of one level 1 descriptor; `None` if the table is linear.
    split: Option<u8>,
    /// `RA`: hint to allocate in caches on reads.
    read_allocate: bool,
}

/// What lies at the address that a stream number leads to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SteAddress {
    /// The STE, in a linear table.
    Ste(Oa),
    /// The level 1 descriptor, in a two-level table.
    L1(Oa),
}

impl StreamTable {
    /// Decodes `SMMU_STRTAB_BASE` and `SMMU_STRTAB_BASE_CFG`, which cannot be wrong: a reserved
    /// `FMT` acts as linear, a reserved `SPLIT` as 6, a `LOG2SIZE` above the bits of a stream
    /// number as all of them, and address bits below the size of the table as zero.
    pub const fn new(base: u64, cfg: u32) -> Self {
        let cfg = cfg as u64;
        let log2size = LOG2SIZE.get(cfg) as u32;
        let split = match (FMT.get(cfg), SPLIT.get(cfg) as u8) {
            (1, split @ (8 | 10)) => Some(split),
            (1, _) => Some(6),
            _ => None,
        };
        let size_lg2 = match split {
            None => log2size + STE_LG2,
            Some(split) => log2size.saturating_sub(split as u32) + DESC_LG2,
        };
        let aligned = aligned_mask(if size_lg2 > STE_LG2 {
            size_lg2
        } else {
            STE_LG2
        });
        Self {
            base: Oa::new(base & ADDR.mask() & aligned),
            count_lg2: if log2size < 32 { log2size as u8 } else { 32 },
            split,
            read_allocate: base & bit(62) != 0,
        }
    }

    /// Returns the address of the table.
    pub const fn base(&self) -> Oa {
        self.base
    }

    /// Returns the base-2 logarithm of the number of streams that the table covers.
    pub const fn count_lg2(&self) -> u8 {
        self.count_lg2
    }

    /// Returns the base-2 logarithm of the streams of one level 1 descriptor, or `None` if the
    /// table is linear.
    pub const fn split(&self) -> Option<u8> {
        self.split
    }

    /// Returns `RA`, the hint to allocate in caches on reads of the table.
    pub const fn read_allocate(&self) -> bool {
        self.read_allocate
    }

    /// Returns where the lookup of `stream` starts, or `None` if the table does not cover it
    /// (`C_BAD_STREAMID`).
    pub const fn address(&self, stream: u32) -> Option<SteAddress> {
        let stream = stream as u64;
        if stream >> self.count_lg2 != 0 {
            return None;
        }
        // The base is aligned to the table and below 2^56, so that the sums stay inside 64 bits.
        Some(match self.split {
            None => SteAddress::Ste(Oa::new(self.base.get() + (stream << STE_LG2))),
            Some(split) => SteAddress::L1(Oa::new(self.base.get() + (stream >> split << DESC_LG2))),
        })
    }
}

/// A level 1 stream table descriptor (L1STD).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct L1StreamDesc(u64);

impl L1StreamDesc {
    /// The fields of the word.
    pub const FIELDS: &[Field] = &[Field::new("Span", 4, 0), Field::new("L2Ptr", 55, 6)];

    /// Creates the descriptor from its word.
    pub const fn new(word: u64) -> Self {
        Self(word)
    }

    /// Returns the raw word.
    pub const fn word(&self) -> u64 {
        self.0
    }

    /// Returns `Span`: 0 for no table, else one more than the base-2 logarithm of its STEs.
    pub const fn span(&self) -> u8 {
        SPAN.get(self.0) as u8
    }

    /// Returns the base-2 logarithm of the number of STEs in the level 2 table, or `None` if there
    /// is none. Reserved spans, from 12, act as 0.
    pub const fn count_lg2(&self) -> Option<u8> {
        match self.span() {
            span @ 1..=11 => Some(span - 1),
            _ => None,
        }
    }

    /// Returns the address of the level 2 table, or `None` if there is none. Address bits below its
    /// size count as zero.
    pub const fn l2_table(&self) -> Option<Oa> {
        match self.count_lg2() {
            Some(count_lg2) => {
                let aligned = aligned_mask(count_lg2 as u32 + STE_LG2);
                Some(Oa::new(self.0 & ADDR.mask() & aligned))
            }
            None => None,
        }
    }

    /// Returns where the STE of `stream` lies, or `None` if the descriptor does not cover it
    /// (`C_BAD_STREAMID`); `table` is the one that holds the descriptor.
    pub const fn address(&self, table: &StreamTable, stream: u32) -> Option<Oa> {
        let Some(split) = table.split else {
            return None;
        };
        let index = stream as u64 & ((1 << split) - 1);
        match (self.count_lg2(), self.l2_table()) {
            // A span that reaches past the split point is out of bounds.
            (Some(count_lg2), Some(l2)) if count_lg2 <= split && index >> count_lg2 == 0 => {
                Some(Oa::new(l2.get() + (index << STE_LG2)))
            }
            _ => None,
        }
    }
}
