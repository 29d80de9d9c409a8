//! Context descriptors and the tables that hold them (IHI 0070, sections 5.2 to 5.4).

use super::{LayoutError, flags};
use crate::armv8::{AnyFormat, Half, Lpae32, Rooted, TTB, Tcr};
use crate::{Bits, ConfigError, Field, Iova, Oa, bit};

const T0SZ_LPAE32: Bits<2, 0> = Bits;
const ASID: Bits<63, 48> = Bits;
const L2_PTR: Bits<55, 12> = Bits;
/// `S1Fmt`, STE word 0.
const S1_FMT: Bits<5, 4> = Bits;
/// `S1ContextPtr`, STE word 0.
const CONTEXT_PTR: Bits<55, 6> = Bits;
/// `S1CDMax`, STE word 0.
const S1_CD_MAX: Bits<63, 59> = Bits;

/// Bits of a substream number, at most.
const SUBSTREAM_BITS: u8 = 20;

/// The base-2 logarithm of the bytes of a CD.
const CD_LG2: u8 = 6;
/// The base-2 logarithm of the bytes of a level 1 descriptor.
const DESC_LG2: u8 = 3;

/// How a table of CDs is laid out (`S1Fmt`).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum CdTableFormat {
    /// CDs one after the other; the reserved value 3 acts so, too.
    Linear = 0,
    /// Level 1 descriptors that point to tables of 64 CDs, 4 KiB.
    Kib4Leaves = 1,
    /// Level 1 descriptors that point to tables of 1024 CDs, 64 KiB.
    Kib64Leaves = 2,
}

impl CdTableFormat {
    /// Returns the base-2 logarithm of the CDs of one level 1 descriptor.
    const fn split(self) -> Option<u8> {
        match self {
            Self::Linear => None,
            Self::Kib4Leaves => Some(6),
            Self::Kib64Leaves => Some(10),
        }
    }
}

/// The CDs of a stream, one a substream.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct CdTable {
    base: Oa,
    format: CdTableFormat,
    count_lg2: u8,
}

/// What lies at the address that a substream number leads to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum CdAddress {
    /// The CD, in a linear table.
    Cd(Oa),
    /// The level 1 descriptor, in a two-level table.
    L1(Oa),
}

impl CdTable {
    /// Decodes `S1ContextPtr`, `S1Fmt` and `S1CDMax`. Address bits below the size of the table,
    /// which are to be zero, count as zero.
    pub(super) const fn new(base: Oa, fmt: u8, count_lg2: u8) -> Self {
        let format = match fmt {
            // Without substreams the pointer leads to the one CD.
            _ if count_lg2 == 0 => CdTableFormat::Linear,
            1 => CdTableFormat::Kib4Leaves,
            2 => CdTableFormat::Kib64Leaves,
            _ => CdTableFormat::Linear,
        };
        let size_lg2 = match format.split() {
            None => count_lg2 + CD_LG2,
            Some(split) => count_lg2.saturating_sub(split) + DESC_LG2,
        };
        let aligned = u64::MAX << if size_lg2 > CD_LG2 { size_lg2 } else { CD_LG2 };
        Self {
            base: Oa::new(base.get() & aligned),
            format,
            count_lg2,
        }
    }

    /// Creates a table of `2^count_lg2` CDs at `base`. For a single CD, the layout is
    /// [`CdTableFormat::Linear`], whatever `format` says.
    ///
    /// # Errors
    ///
    /// - [`LayoutError::Count`] if substreams have fewer than `count_lg2` bits: 20;
    /// - [`LayoutError::Address`] if `base` is not aligned to the table, at least to 64 bytes, or
    ///   has more than 56 bits.
    pub const fn with_layout(
        base: Oa,
        format: CdTableFormat,
        count_lg2: u8,
    ) -> Result<Self, LayoutError> {
        if count_lg2 > SUBSTREAM_BITS {
            return Err(LayoutError::Count {
                count_lg2,
                limit_lg2: SUBSTREAM_BITS,
            });
        }
        let table = Self::new(
            Oa::new(base.get() & CONTEXT_PTR.mask()),
            format as u8,
            count_lg2,
        );
        if table.base.get() == base.get() {
            Ok(table)
        } else {
            Err(LayoutError::Address { address: base })
        }
    }

    /// Returns `S1Fmt`, `S1ContextPtr` and `S1CDMax` in their places in STE word 0.
    pub(super) const fn ste_bits(&self) -> u64 {
        self.base.get() | S1_FMT.put(self.format as u64) | S1_CD_MAX.put(self.count_lg2 as u64)
    }

    /// Returns the address of the table, an intermediate one if the stream is nested.
    pub const fn base(&self) -> Oa {
        self.base
    }

    /// Returns the layout.
    pub const fn format(&self) -> CdTableFormat {
        self.format
    }

    /// Returns `S1CDMax`, the base-2 logarithm of the number of CDs; 0 if substreams are disabled.
    pub const fn count_lg2(&self) -> u8 {
        self.count_lg2
    }

    /// Returns where the lookup of `substream` starts, or `None` if the table does not cover it
    /// (`C_BAD_SUBSTREAMID`). Without substreams the only CD is that of 0.
    pub const fn address(&self, substream: u32) -> Option<CdAddress> {
        let substream = substream as u64;
        if substream >> self.count_lg2 != 0 {
            return None;
        }
        // The base is aligned to the table and below 2^56, so that the sums stay inside 64 bits.
        Some(match self.format.split() {
            None => CdAddress::Cd(Oa::new(self.base.get() + (substream << CD_LG2))),
            Some(split) => {
                CdAddress::L1(Oa::new(self.base.get() + (substream >> split << DESC_LG2)))
            }
        })
    }
}

/// A level 1 context descriptor pointer (L1CD, section 5.3).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct L1CdDesc(u64);

impl L1CdDesc {
    /// The fields of the word.
    pub const FIELDS: &[Field] = &[Field::new("V", 0, 0), Field::new("L2Ptr", 55, 12)];

    /// Creates the descriptor from its word.
    pub const fn new(word: u64) -> Self {
        Self(word)
    }

    /// Returns the raw word.
    pub const fn word(&self) -> u64 {
        self.0
    }

    /// The descriptor that leads nowhere: its substreams fault with `C_BAD_SUBSTREAMID`.
    pub const INVALID: Self = Self(0);

    /// Encodes the descriptor of a level 2 table at `l2` in `table`'s layout.
    ///
    /// # Errors
    ///
    /// - [`LayoutError::Linear`] if `table` has no level 2;
    /// - [`LayoutError::Address`] if `l2` is not aligned to the level 2 table or has more than 56
    ///   bits.
    pub const fn encode(table: &CdTable, l2: Oa) -> Result<Self, LayoutError> {
        let desc = Self(1 | l2.get() & L2_PTR.mask());
        match desc.l2_table(table) {
            Some(found) if found.get() == l2.get() => Ok(desc),
            Some(_) => Err(LayoutError::Address { address: l2 }),
            None => Err(LayoutError::Linear),
        }
    }

    /// Returns `L2Ptr`, the address of the level 2 table of `table`'s layout, or `None` if `V` is
    /// clear. Address bits below its size count as zero.
    pub const fn l2_table(&self, table: &CdTable) -> Option<Oa> {
        match table.format.split() {
            Some(split) if self.0 & 1 != 0 => {
                let aligned = u64::MAX << (split + CD_LG2);
                Some(Oa::new(self.0 & L2_PTR.mask() & aligned))
            }
            _ => None,
        }
    }

    /// Returns where the CD of `substream` lies, or `None` if the descriptor is not valid or
    /// `table`, which holds it, is linear.
    pub const fn address(&self, table: &CdTable, substream: u32) -> Option<Oa> {
        match (table.format.split(), self.l2_table(table)) {
            (Some(split), Some(l2)) => {
                let index = substream as u64 & ((1 << split) - 1);
                Some(Oa::new(l2.get() + (index << CD_LG2)))
            }
            _ => None,
        }
    }
}

/// Why a CD does not lead to a table, or cannot be decoded.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum CdError {
    /// `V` is clear: transactions abort with `C_BAD_CD`.
    #[error("the context descriptor is not valid")]
    Invalid,
    /// `EPD` of that half is set: every address of it faults.
    #[error("walks through TTB{} are disabled", *.half as u8)]
    Disabled {
        /// The half asked for.
        half: Half,
    },
    /// The tables are big-endian, which this crate does not read.
    #[error("stage 1 tables are big-endian")]
    BigEndian,
    /// The second range of 32-bit LPAE lies at the top of 32 bits, which no format here decodes.
    #[error("TTB1 of 32-bit LPAE is not supported")]
    UpperLpae32,
    /// Stage 1 cannot be configured so.
    #[error("stage 1: {0}")]
    Stage1(#[from] ConfigError),
    /// A value that is reserved, redundant, or means what this crate does not encode.
    #[error("bits {bits:#x} of word {word} are reserved or mean nothing that is known here")]
    Undecodable {
        /// The first word with such bits.
        word: usize,
        /// The bits, in place.
        bits: u64,
    },
}

/// A context descriptor.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Cd([u64; 8]);

impl Cd {
    /// The fields of words 0 to 4. The other words hold MPAM and permission indirection, which this
    /// crate does not decode.
    pub const FIELDS: [&[Field]; 5] = [
        &[
            Field::new("T0SZ", 5, 0),
            Field::new("TG0", 7, 6),
            Field::new("IR0", 9, 8),
            Field::new("OR0", 11, 10),
            Field::new("SH0", 13, 12),
            Field::new("EPD0", 14, 14),
            Field::new("ENDI", 15, 15),
            Field::new("T1SZ", 21, 16),
            Field::new("TG1", 23, 22),
            Field::new("IR1", 25, 24),
            Field::new("OR1", 27, 26),
            Field::new("SH1", 29, 28),
            Field::new("EPD1", 30, 30),
            Field::new("V", 31, 31),
            Field::new("IPS", 34, 32),
            Field::new("AFFD", 35, 35),
            Field::new("WXN", 36, 36),
            Field::new("UWXN", 37, 37),
            Field::new("TBI0", 38, 38),
            Field::new("TBI1", 39, 39),
            Field::new("PAN", 40, 40),
            Field::new("AA64", 41, 41),
            Field::new("HD", 42, 42),
            Field::new("HA", 43, 43),
            Field::new("S", 44, 44),
            Field::new("R", 45, 45),
            Field::new("A", 46, 46),
            Field::new("ASET", 47, 47),
            Field::new("ASID", 63, 48),
        ],
        &[
            Field::new("NSCFG0", 0, 0),
            Field::new("HAD0", 1, 1),
            Field::new("E0PD0", 2, 2),
            Field::new("HAFT", 3, 3),
            Field::new("TTB0", 51, 4),
            Field::new("PnCH", 58, 58),
            Field::new("EPAN", 59, 59),
        ],
        &[
            Field::new("NSCFG1", 0, 0),
            Field::new("HAD1", 1, 1),
            Field::new("E0PD1", 2, 2),
            Field::new("AIE", 3, 3),
            Field::new("TTB1", 51, 4),
            Field::new("DS", 58, 58),
            Field::new("PIE", 59, 59),
        ],
        &[Field::new("MAIR0", 31, 0), Field::new("MAIR1", 63, 32)],
        &[Field::new("AMAIR0", 31, 0), Field::new("AMAIR1", 63, 32)],
    ];

    /// Creates the descriptor from its eight words, word 0 first.
    pub const fn new(words: [u64; 8]) -> Self {
        Self(words)
    }

    /// Returns the raw words.
    pub const fn words(&self) -> &[u64; 8] {
        &self.0
    }

    flags! {
        is_big_endian: 0, 15, "Returns `ENDI`: whether the tables are big-endian.";
        is_valid: 0, 31, "Returns `V`: whether the other fields mean anything.";
        access_faults_disabled: 0, 35, "Returns `AFFD`: whether a clear access flag never faults.";
        writable_never_executes: 0, 36, "Returns `WXN`: whether writable pages allow no fetches.";
        denies_privileged_access: 0, 40, "Returns `PAN`: whether privileged requests to user pages fault.";
        is_aarch64: 0, 41, "Returns `AA64`: whether the tables are VMSAv8-64, not 32-bit LPAE.";
        hd: 0, 42, "Returns `HD`: dirty state is updated, if `HA` is set, too.";
        ha: 0, 43, "Returns `HA`: the access flag is updated.";
        stalls: 0, 44, "Returns `S`: whether faults stall.";
        records: 0, 45, "Returns `R`: whether faults are recorded.";
        aborts: 0, 46, "Returns `A`: whether terminated transactions abort, not read zero.";
        has_private_asid: 0, 47, "Returns `ASET`: whether the ASID is not shared with CPUs.";
        has_ds: 2, 58, "Returns `DS`: whether descriptors are those of LPA2.";
    }

    /// Returns `ASID`, which tags cached translations.
    pub const fn asid(&self) -> u16 {
        ASID.get(self.0[0]) as u16
    }

    /// Returns `MAIR`, the attribute bytes that entries index.
    pub const fn mair(&self) -> u64 {
        self.0[3]
    }

    /// Returns `AMAIR`, implementation-defined attributes.
    pub const fn amair(&self) -> u64 {
        self.0[4]
    }

    /// Returns `TBI` of `half`: whether bits 63:56 of an address are ignored.
    pub const fn ignores_top_byte(&self, half: Half) -> bool {
        let tbi = match half {
            Half::Lower => bit(38),
            Half::Upper => bit(39),
        };
        self.0[0] & tbi != 0
    }

    /// Returns which half translates `iova` and the address that its table decodes: `iova` itself
    /// unless the top byte is ignored (sections 3.4 and 3.4.1).
    pub const fn locate(&self, iova: Iova) -> (Half, Iova) {
        if !self.is_aarch64() {
            return (Half::Lower, iova);
        }
        let upper = iova.get() & bit(55) != 0;
        let half = if upper { Half::Upper } else { Half::Lower };
        if !self.ignores_top_byte(half) {
            return (half, iova);
        }
        let top = if upper { u64::MAX << 56 } else { 0 };
        (half, Iova::new(iova.get() & (u64::MAX >> 8) | top))
    }

    /// Returns the table of one half.
    ///
    /// The address is an intermediate one if the stream is nested. `EPD` is respected, although
    /// hardware ignores it for streams of EL2 and EL3. What a CD takes from the rights of pages
    /// (`WXN`, `PAN`, `E0PD`) is not part of the table.
    ///
    /// # Errors
    ///
    /// - [`CdError::Invalid`] if `V` is clear;
    /// - [`CdError::Disabled`] if `EPD` of the half is set;
    /// - [`CdError::BigEndian`] if the tables are;
    /// - [`CdError::UpperLpae32`] for the upper half of 32-bit LPAE;
    /// - [`CdError::Stage1`] if widths and granule do not fit each other.
    pub fn table(&self, half: Half) -> Result<Rooted, CdError> {
        if !self.is_valid() {
            return Err(CdError::Invalid);
        }
        if Tcr::is_disabled(self.0[0], half) {
            return Err(CdError::Disabled { half });
        }
        if self.is_big_endian() {
            return Err(CdError::BigEndian);
        }
        let base = match half {
            Half::Lower => self.0[1],
            Half::Upper => self.0[2],
        };
        let format = match (self.is_aarch64(), half) {
            (true, _) => {
                let tcr = Tcr::from_cd([self.0[0], self.0[1], self.0[2]], half)?;
                AnyFormat::stage1(tcr, self.mair())?
            }
            (false, Half::Lower) => AnyFormat::Lpae32(self.lpae32()?),
            (false, Half::Upper) => return Err(CdError::UpperLpae32),
        };
        Ok(Rooted::new(format, Oa::new(base & TTB.mask())))
    }

    /// Decodes `TTB0` of VMSAv8-32: `T0SZ` has three bits, addresses have 40.
    fn lpae32(&self) -> Result<Lpae32, ConfigError> {
        let va_bits = 32 - T0SZ_LPAE32.get(self.0[0]) as u8;
        let format = Lpae32::new(va_bits, 40)?.with_mair(self.mair());
        let format = if Tcr::has_table_limits(self.0[1]) {
            format
        } else {
            format.without_table_limits()
        };
        let ignored = self.access_faults_disabled();
        Ok(if ignored {
            format.with_access_flag_ignored()
        } else {
            format
        })
    }
}
