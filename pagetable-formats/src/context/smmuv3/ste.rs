//! The stream table entry (IHI 0070, section 5.2).

use super::cd::CdTable;
use super::flags;
use crate::armv8::{AnyFormat, Cacheability, Lpae32Stage2, Rooted, Shareability, TTB, Vtcr};
use crate::{Bits, ConfigError, Field, Level, Oa};

const CONFIG: Bits<3, 1> = Bits;
const S1_FMT: Bits<5, 4> = Bits;
const S1_CONTEXT_PTR: Bits<55, 6> = Bits;
const S1_CD_MAX: Bits<63, 59> = Bits;

const S1_DSS: Bits<1, 0> = Bits;
const S1_CIR: Bits<3, 2> = Bits;
const S1_COR: Bits<5, 4> = Bits;
const S1_CSH: Bits<7, 6> = Bits;
const CONT: Bits<16, 13> = Bits;
const EATS: Bits<29, 28> = Bits;
const STRW: Bits<31, 30> = Bits;
const MEM_ATTR: Bits<35, 32> = Bits;
const SH_CFG: Bits<45, 44> = Bits;
const PRIV_CFG: Bits<49, 48> = Bits;
const INST_CFG: Bits<51, 50> = Bits;

const S2_VMID: Bits<15, 0> = Bits;
const S2_T0SZ: Bits<37, 32> = Bits;
const S2_SL0: Bits<39, 38> = Bits;

/// What an STE does with the stream (`Config`).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum StreamConfig {
    /// Aborts without an event; `0b001` to `0b011` act as `0b000`.
    Abort,
    /// Passes addresses on.
    Bypass,
    /// Translates by stage 1.
    Stage1,
    /// Translates by stage 2.
    Stage2,
    /// Translates by stage 1, and what that gives by stage 2.
    Nested,
}

impl StreamConfig {
    /// Returns whether stage 1 translates.
    pub const fn has_stage1(self) -> bool {
        matches!(self, Self::Stage1 | Self::Nested)
    }

    /// Returns whether stage 2 translates.
    pub const fn has_stage2(self) -> bool {
        matches!(self, Self::Stage2 | Self::Nested)
    }
}

/// What happens to a transaction without a substream where substreams are enabled (`S1DSS`).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum DefaultSubstream {
    /// It is terminated; the reserved value 3 acts so, too.
    Terminate,
    /// It bypasses stage 1.
    Bypass,
    /// It uses the CD of substream 0, which substreams then cannot use.
    Substream0,
}

impl DefaultSubstream {
    pub(super) const fn bits(self) -> u64 {
        match self {
            Self::Terminate => 0,
            Self::Bypass => 1,
            Self::Substream0 => 2,
        }
    }
}

/// How ATS requests of the stream are answered (`EATS`).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Ats {
    /// Refused.
    Refused,
    /// Full: the answer is the final address.
    Full,
    /// Split stage: the answer is an intermediate address, and translated traffic still passes
    /// stage 2.
    SplitStage,
    /// Full, and a device permission table checks translated traffic.
    Checked,
}

impl Ats {
    pub(super) const fn bits(self) -> u64 {
        match self {
            Self::Refused => 0,
            Self::Full => 1,
            Self::SplitStage => 2,
            Self::Checked => 3,
        }
    }
}

/// The exception level that stage 1 of the stream belongs to (`STRW`, for a non-secure STE).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum StreamWorld {
    /// NS-EL1: two privilege levels, tagged with ASID and VMID.
    El1,
    /// EL3 in a secure STE; reserved otherwise.
    El3,
    /// EL2, or EL2-E2H if `SMMU_CR2.E2H` is set.
    El2,
    /// Reserved.
    Reserved,
}

/// Whether an attribute of incoming transactions is replaced (`PRIVCFG`, `INSTCFG`).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Override {
    /// The incoming attribute is used; the reserved value 1 acts so, too.
    Incoming,
    /// It is cleared: unprivileged, or data.
    Clear,
    /// It is set: privileged, or instruction.
    Set,
}

impl Override {
    pub(super) const fn bits(self) -> u64 {
        match self {
            Self::Incoming => 0,
            Self::Clear => 2,
            Self::Set => 3,
        }
    }

    pub(super) const fn from_bits(bits: u64) -> Self {
        match bits & 3 {
            0 | 1 => Self::Incoming,
            2 => Self::Clear,
            _ => Self::Set,
        }
    }
}

/// Why an STE does not lead to a table, or cannot be decoded.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SteError {
    /// `V` is clear: the stream aborts with `C_BAD_STE`.
    #[error("the stream table entry is not valid")]
    Invalid,
    /// Stage 2 tables are big-endian, which this crate does not read.
    #[error("stage 2 tables are big-endian")]
    BigEndian,
    /// Stage 2 cannot be configured so.
    #[error("stage 2: {0}")]
    Stage2(#[from] ConfigError),
    /// A stream cannot be configured so (`C_BAD_STE`).
    #[error("stream: {0}")]
    Illegal(#[source] ConfigError),
    /// A value that is reserved, redundant, or means what this crate does not encode.
    #[error("bits {bits:#x} of word {word} are reserved or mean nothing that is known here")]
    Undecodable {
        /// The first word with such bits.
        word: usize,
        /// The bits, in place.
        bits: u64,
    },
}

/// A stream table entry.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Ste([u64; 8]);

impl Ste {
    /// The fields of words 0 to 3. The other words hold the secure stage 2 and MPAM, which this
    /// crate does not decode.
    pub const FIELDS: [&[Field]; 4] = [
        &[
            Field::new("V", 0, 0),
            Field::new("Config", 3, 1),
            Field::new("S1Fmt", 5, 4),
            Field::new("S1ContextPtr", 55, 6),
            Field::new("S1CDMax", 63, 59),
        ],
        &[
            Field::new("S1DSS", 1, 0),
            Field::new("S1CIR", 3, 2),
            Field::new("S1COR", 5, 4),
            Field::new("S1CSH", 7, 6),
            Field::new("S2HWU", 11, 8),
            Field::new("DRE", 12, 12),
            Field::new("CONT", 16, 13),
            Field::new("DCP", 17, 17),
            Field::new("PPAR", 18, 18),
            Field::new("MEV", 19, 19),
            Field::new("S2FWB", 25, 25),
            Field::new("S1MPAM", 26, 26),
            Field::new("S1STALLD", 27, 27),
            Field::new("EATS", 29, 28),
            Field::new("STRW", 31, 30),
            Field::new("MemAttr", 35, 32),
            Field::new("MTCFG", 36, 36),
            Field::new("ALLOCCFG", 40, 37),
            Field::new("SHCFG", 45, 44),
            Field::new("NSCFG", 47, 46),
            Field::new("PRIVCFG", 49, 48),
            Field::new("INSTCFG", 51, 50),
        ],
        &[
            Field::new("S2VMID", 15, 0),
            Field::new("S2T0SZ", 37, 32),
            Field::new("S2SL0", 39, 38),
            Field::new("S2IR0", 41, 40),
            Field::new("S2OR0", 43, 42),
            Field::new("S2SH0", 45, 44),
            Field::new("S2TG", 47, 46),
            Field::new("S2PS", 50, 48),
            Field::new("S2AA64", 51, 51),
            Field::new("S2ENDI", 52, 52),
            Field::new("S2AFFD", 53, 53),
            Field::new("S2PTW", 54, 54),
            Field::new("S2HD", 55, 55),
            Field::new("S2HA", 56, 56),
            Field::new("S2S", 57, 57),
            Field::new("S2R", 58, 58),
        ],
        &[
            Field::new("S2NSW", 0, 0),
            Field::new("S2NSA", 1, 1),
            Field::new("S2SL0_2", 2, 2),
            Field::new("S2DS", 3, 3),
            Field::new("S2TTB", 51, 4),
        ],
    ];

    /// Creates the entry from its eight words, word 0 first.
    pub const fn new(words: [u64; 8]) -> Self {
        Self(words)
    }

    /// Returns the raw words.
    pub const fn words(&self) -> &[u64; 8] {
        &self.0
    }

    flags! {
        is_valid: 0, 0, "Returns `V`: whether the other fields mean anything.";
        merges_events: 1, 19, "Returns `MEV`: whether similar events may be merged into one.";
        forces_write_back: 1, 25, "Returns `S2FWB`: whether stage 2 attributes may override stage 1.";
        stage1_stalls_disabled: 1, 27, "Returns `S1STALLD`: whether stage 1 faults never stall.";
        replaces_memory_type: 1, 36, "Returns `MTCFG`: whether `MemAttr` replaces the incoming type.";
        is_stage2_aarch64: 2, 51, "Returns `S2AA64`: whether stage 2 is VMSAv8-64, not 32-bit LPAE.";
        is_stage2_big_endian: 2, 52, "Returns `S2ENDI`: whether stage 2 tables are big-endian.";
        stage2_access_faults_disabled: 2, 53, "Returns `S2AFFD`: whether a clear access flag never faults.";
        protects_table_walks: 2, 54, "Returns `S2PTW`: whether stage 1 walks into device memory fault.";
        stage2_hd: 2, 55, "Returns `S2HD`: dirty state is updated, if `S2HA` is set, too.";
        stage2_ha: 2, 56, "Returns `S2HA`: the access flag is updated.";
        stage2_stalls: 2, 57, "Returns `S2S`: whether stage 2 faults stall.";
        stage2_records: 2, 58, "Returns `S2R`: whether stage 2 faults are recorded.";
        stage2_sl0_2: 3, 2, "Returns `S2SL0_2`, the third bit of the starting level.";
        stage2_ds: 3, 3, "Returns `S2DS`: whether stage 2 descriptors are those of LPA2.";
    }

    /// Returns `Config`.
    pub const fn config(&self) -> StreamConfig {
        match CONFIG.get(self.0[0]) {
            4 => StreamConfig::Bypass,
            5 => StreamConfig::Stage1,
            6 => StreamConfig::Stage2,
            7 => StreamConfig::Nested,
            _ => StreamConfig::Abort,
        }
    }

    /// Returns `S1DSS`; without meaning unless [`CdTable::count_lg2`] is above 0.
    pub const fn default_substream(&self) -> DefaultSubstream {
        match S1_DSS.get(self.0[1]) {
            1 => DefaultSubstream::Bypass,
            2 => DefaultSubstream::Substream0,
            _ => DefaultSubstream::Terminate,
        }
    }

    /// Returns `S1CIR`: the inner cacheability of fetches of CDs.
    pub const fn cd_inner(&self) -> Cacheability {
        Cacheability::from_bits(S1_CIR.get(self.0[1]))
    }

    /// Returns `S1COR`: the outer cacheability of fetches of CDs.
    pub const fn cd_outer(&self) -> Cacheability {
        Cacheability::from_bits(S1_COR.get(self.0[1]))
    }

    /// Returns `S1CSH`: the shareability of fetches of CDs.
    pub const fn cd_shareability(&self) -> Shareability {
        Shareability::from_bits(S1_CSH.get(self.0[1]))
    }

    /// Returns `CONT`: the base-2 logarithm of the neighbouring STEs that are equal.
    pub const fn contiguous_lg2(&self) -> u8 {
        CONT.get(self.0[1]) as u8
    }

    /// Returns `EATS`.
    pub const fn ats(&self) -> Ats {
        match EATS.get(self.0[1]) {
            0 => Ats::Refused,
            1 => Ats::Full,
            2 => Ats::SplitStage,
            _ => Ats::Checked,
        }
    }

    /// Returns `STRW`.
    pub const fn stream_world(&self) -> StreamWorld {
        match STRW.get(self.0[1]) {
            0 => StreamWorld::El1,
            1 => StreamWorld::El3,
            2 => StreamWorld::El2,
            _ => StreamWorld::Reserved,
        }
    }

    /// Returns `MemAttr`, the memory type that replaces the incoming one if
    /// [`replaces_memory_type`](Self::replaces_memory_type): encoded as in stage 2 entries.
    pub const fn memory_attributes(&self) -> u8 {
        MEM_ATTR.get(self.0[1]) as u8
    }

    /// Returns `SHCFG`: the shareability that replaces the incoming one, or `None` to keep that.
    pub const fn shareability(&self) -> Option<Shareability> {
        match SH_CFG.get(self.0[1]) {
            1 => None,
            sh => Some(Shareability::from_bits(sh)),
        }
    }

    /// Returns `PRIVCFG`: what becomes of the privilege of transactions.
    pub const fn privilege(&self) -> Override {
        Override::from_bits(PRIV_CFG.get(self.0[1]))
    }

    /// Returns `INSTCFG`: what becomes of the mark that a read fetches instructions.
    pub const fn instruction(&self) -> Override {
        Override::from_bits(INST_CFG.get(self.0[1]))
    }

    /// Returns `S2VMID`, which tags cached translations.
    pub const fn vmid(&self) -> u16 {
        S2_VMID.get(self.0[2]) as u16
    }

    /// Returns the CDs of the stream, or `None` if stage 1 does not translate.
    ///
    /// # Errors
    ///
    /// [`SteError::Invalid`] if `V` is clear.
    pub const fn cd_table(&self) -> Result<Option<CdTable>, SteError> {
        if !self.is_valid() {
            return Err(SteError::Invalid);
        }
        if !self.config().has_stage1() {
            return Ok(None);
        }
        let base = Oa::new(self.0[0] & S1_CONTEXT_PTR.mask());
        let fmt = S1_FMT.get(self.0[0]) as u8;
        Ok(Some(CdTable::new(
            base,
            fmt,
            S1_CD_MAX.get(self.0[0]) as u8,
        )))
    }

    /// Returns the stage 2 table of the stream, or `None` if stage 2 does not translate.
    ///
    /// # Errors
    ///
    /// - [`SteError::Invalid`] if `V` is clear;
    /// - [`SteError::BigEndian`] if the tables are;
    /// - [`SteError::Stage2`] if widths, granule and starting level do not fit each other.
    pub fn stage2(&self) -> Result<Option<Rooted>, SteError> {
        if !self.is_valid() {
            return Err(SteError::Invalid);
        }
        if !self.config().has_stage2() {
            return Ok(None);
        }
        if self.is_stage2_big_endian() {
            return Err(SteError::BigEndian);
        }
        let format = if self.is_stage2_aarch64() {
            AnyFormat::stage2(Vtcr::from_ste([self.0[1], self.0[2], self.0[3]])?)?
        } else {
            AnyFormat::Lpae32Stage2(self.lpae32()?)
        };
        Ok(Some(Rooted::new(format, Oa::new(self.0[3] & TTB.mask()))))
    }

    /// Decodes the stage 2 of VMSAv8-32: `T0SZ` is a signed number of four bits, addresses have 40.
    fn lpae32(&self) -> Result<Lpae32Stage2, ConfigError> {
        let t0sz = S2_T0SZ.get(self.0[2]) as u8 & 0xf;
        // -8 to 7 becomes 40 to 25.
        let va_bits = if t0sz < 8 { 32 - t0sz } else { 48 - t0sz };
        let start = Level(S2_SL0.get(self.0[2]) as u8 + 1);
        let format = Lpae32Stage2::new(va_bits, 40)?.with_start_level(start)?;
        let format = if self.forces_write_back() {
            format.with_forced_write_back()
        } else {
            format
        };
        let ignored = self.stage2_access_faults_disabled();
        Ok(if ignored {
            format.with_access_flag_ignored()
        } else {
            format
        })
    }
}
