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
/// `RA` of `SMMU_STRTAB_BASE`.
const RA: u64 = bit(62);
const LOG2SIZE: Bits<5, 0> = Bits;
const SPLIT: Bits<10, 6> = Bits;
const FMT: Bits<17, 16> = Bits;
const SPAN: Bits<4, 0> = Bits;

/// Bits of a stream number, at most.
const STREAM_BITS: u8 = 32;
/// The base-2 logarithm of the STEs of the largest level 2 table.
const SPAN_LIMIT: u8 = 10;
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

/// Why a table of STEs or CDs cannot lie there.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// The address is not aligned to the table, or wider than its field.
    #[error("a table at {address} is not aligned to its size, or out of reach")]
    Address {
        /// The rejected address.
        address: Oa,
    },
    /// No number is that long.
    #[error("2^{count_lg2} entries are more than 2^{limit_lg2}")]
    Count {
        /// The base-2 logarithm of the rejected number of entries.
        count_lg2: u8,
        /// The largest one.
        limit_lg2: u8,
    },
    /// The split point is not 6, 8 or 10.
    #[error("a split point of {split} is not 6, 8 or 10")]
    Split {
        /// The rejected split point.
        split: u8,
    },
    /// The table has one level.
    #[error("a linear table has no level 1 descriptors")]
    Linear,
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
            read_allocate: base & RA != 0,
        }
    }

    /// Creates a table of `2^count_lg2` STEs at `base`.
    ///
    /// # Errors
    ///
    /// - [`LayoutError::Count`] if stream numbers have fewer than `count_lg2` bits: 32;
    /// - [`LayoutError::Address`] if `base` is not aligned to the table or has more than 56 bits.
    pub const fn linear(base: Oa, count_lg2: u8) -> Result<Self, LayoutError> {
        Self::with_layout(base, count_lg2, None)
    }

    /// Creates a table at `base` of the level 1 descriptors of `2^count_lg2` streams, `2^split` each.
    ///
    /// # Errors
    ///
    /// - [`LayoutError::Split`] if `split` is not 6, 8 or 10;
    /// - [`LayoutError::Count`] if stream numbers have fewer than `count_lg2` bits: 32;
    /// - [`LayoutError::Address`] if `base` is not aligned to the table, at least to 64 bytes, or
    ///   has more than 56 bits.
    pub const fn two_level(base: Oa, count_lg2: u8, split: u8) -> Result<Self, LayoutError> {
        if !matches!(split, 6 | 8 | 10) {
            return Err(LayoutError::Split { split });
        }
        Self::with_layout(base, count_lg2, Some(split))
    }

    const fn with_layout(base: Oa, count_lg2: u8, split: Option<u8>) -> Result<Self, LayoutError> {
        if count_lg2 > STREAM_BITS {
            return Err(LayoutError::Count {
                count_lg2,
                limit_lg2: STREAM_BITS,
            });
        }
        let layout = Self {
            base,
            count_lg2,
            split,
            read_allocate: false,
        };
        let found = Self::new(base.get() & ADDR.mask(), layout.cfg_register());
        if found.base.get() == base.get() {
            Ok(layout)
        } else {
            Err(LayoutError::Address { address: base })
        }
    }

    /// Hints to allocate in caches on reads of the table (`RA`).
    #[must_use]
    pub const fn with_read_allocate(mut self) -> Self {
        self.read_allocate = true;
        self
    }

    /// Returns the value of `SMMU_STRTAB_BASE`.
    pub const fn base_register(&self) -> u64 {
        self.base.get() | if self.read_allocate { RA } else { 0 }
    }

    /// Returns the value of `SMMU_STRTAB_BASE_CFG`.
    pub const fn cfg_register(&self) -> u32 {
        let layout = match self.split {
            Some(split) => FMT.put(1) | SPLIT.put(split as u64),
            None => 0,
        };
        (layout | LOG2SIZE.put(self.count_lg2 as u64)) as u32
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

    /// The descriptor that leads nowhere: its streams abort with `C_BAD_STREAMID`.
    pub const INVALID: Self = Self(0);

    /// Encodes the descriptor of a level 2 table of `2^count_lg2` STEs at `l2`. A table may be
    /// shorter than the split point of the level 1 table; one that is longer is out of bounds.
    ///
    /// # Errors
    ///
    /// - [`LayoutError::Count`] if `count_lg2` is above 10;
    /// - [`LayoutError::Address`] if `l2` is not aligned to the level 2 table or has more than 56
    ///   bits.
    pub const fn encode(l2: Oa, count_lg2: u8) -> Result<Self, LayoutError> {
        if count_lg2 > SPAN_LIMIT {
            return Err(LayoutError::Count {
                count_lg2,
                limit_lg2: SPAN_LIMIT,
            });
        }
        let desc = Self(l2.get() & ADDR.mask() | SPAN.put(count_lg2 as u64 + 1));
        match desc.l2_table() {
            Some(found) if found.get() == l2.get() => Ok(desc),
            _ => Err(LayoutError::Address { address: l2 }),
        }
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
