//! The process directory table (PDT) and the process context (PC).
//!
//! Source: section "Process-Directory-Table (PDT)".

use crate::{Bits, Field, Oa, bit};

use super::features::capability;
use super::stage::FirstStageRules;
use super::{
    Features, FirstStageTables, IndexBits, LocateError, MODE, Misconfigured, POINTER_FIELDS, PPN,
    STAGE_FIELDS, VALID, check_id, check_reserved, id_bits, locate, page_number, read_words,
};

/// PDI: how a `process_id` is split.
const INDEX_BITS: IndexBits = [8, 9, 3];
/// Length of a process context: 16 bytes.
const CONTEXT_LEN_LG2: u8 = 4;
/// ENS: privileged requests are allowed.
const ENABLE_SUPERVISOR: u64 = bit(1);
/// SUM: privileged requests may access unprivileged pages.
const SUPERVISOR_USER_MEMORY: u64 = bit(2);
/// PSCID of `ta`.
const PSCID: Bits<31, 12> = Bits;
const PSCID_BITS: u8 = 20;
/// `ta` without V, ENS, SUM and PSCID.
const TA_RESERVED: u64 = !(PSCID.mask() | SUPERVISOR_USER_MEMORY | ENABLE_SUPERVISOR | VALID);
/// Bits of `pdtp` that are neither PPN nor MODE.
const PDTP_RESERVED: Bits<59, 44> = Bits;

/// A process directory: from a `process_id` to first-stage tables.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ProcessDirectory {
    root: Oa,
    levels: u8,
    has_default_process: bool,
    rules: FirstStageRules,
}

impl ProcessDirectory {
    /// Names of the fields of an entry above the last level.
    pub const FIELDS: &[Field] = POINTER_FIELDS;

    /// Describes the directory of `levels` levels, 1 to 3, at `root`, for an IOMMU with `features`.
    ///
    /// It is one of processes that reach physical addresses; the device context that takes it says
    /// what else holds, and gives it back so.
    ///
    /// # Errors
    ///
    /// [`Misconfigured::DirectoryLevels`] for other numbers of levels,
    /// [`Misconfigured::ProcessDirectoryMode`] where the IOMMU does not have it,
    /// [`Misconfigured::Pointer`] unless `root` is aligned to 4 KiB and below 2^56.
    pub fn new(root: Oa, levels: u8, features: Features) -> Result<Self, Misconfigured> {
        if !(1..=3).contains(&levels) {
            return Err(Misconfigured::DirectoryLevels { levels });
        }
        let rules = FirstStageRules {
            features,
            is_32_bit: false,
            updates_flags: false,
            is_nested: false,
        };
        Self::decode(MODE.put(levels.into()) | page_number(root)?, false, rules)
    }

    /// Returns this directory with requests without a process id using process 0 (DPE).
    #[must_use]
    pub const fn with_default_process(self) -> Self {
        Self {
            has_default_process: true,
            ..self
        }
    }

    /// Returns `pdtp`.
    pub(super) fn word(self) -> u64 {
        if self.levels == 0 {
            return 0;
        }
        MODE.put(self.levels.into()) | PPN.put(self.root.get() >> 12)
    }

    /// Returns how tables below it are read.
    pub(super) const fn rules(self) -> FirstStageRules {
        self.rules
    }

    /// Decodes `pdtp`, word 3 of a device context.
    pub(super) fn decode(
        word: u64,
        has_default_process: bool,
        rules: FirstStageRules,
    ) -> Result<Self, Misconfigured> {
        check_reserved(3, word, PDTP_RESERVED.mask())?;
        let mode = MODE.get(word) as u8;
        let is_possible = match mode {
            0 => true,
            1..=3 => rules.features.has(capability::PD8 + u32::from(mode - 1)),
            _ => false,
        };
        if !is_possible {
            return Err(Misconfigured::ProcessDirectoryMode { mode });
        }
        // Hardware ignores the page number of a directory that it does not walk.
        let root = if mode == 0 { 0 } else { PPN.get(word) << 12 };
        Ok(Self {
            root: Oa::new(root),
            levels: mode,
            has_default_process,
            rules,
        })
    }

    /// Returns where the directory lies, guest-physical if there is a second stage; or `None` if
    /// MODE is Bare, so that no request has a first stage.
    pub const fn root(self) -> Option<Oa> {
        if self.levels == 0 {
            None
        } else {
            Some(self.root)
        }
    }

    /// Returns the number of levels, 0 to 3.
    pub const fn levels(self) -> u8 {
        self.levels
    }

    /// Returns the width of the process ids that have an entry, in bits.
    pub fn process_id_bits(self) -> u8 {
        id_bits(self.levels, INDEX_BITS)
    }

    /// Returns whether requests without a process id use process 0 (DPE); else they have no first
    /// stage.
    pub const fn has_default_process(self) -> bool {
        self.has_default_process
    }

    /// Finds the context of `process_id`.
    ///
    /// `read` returns the 64-bit word at an address, or `None` where no memory is. The answer for
    /// a directory whose MODE is Bare is a context without tables.
    ///
    /// # Errors
    ///
    /// The [`LocateError`] that the search ends in.
    pub fn locate(
        self,
        process_id: u32,
        mut read: impl FnMut(Oa) -> Option<u64>,
    ) -> Result<ProcessContext, LocateError> {
        if self.levels == 0 {
            return Ok(ProcessContext {
                tables: FirstStageTables::Bare,
                ta: 0,
            });
        }
        let address = locate(
            self.root,
            self.levels,
            INDEX_BITS,
            CONTEXT_LEN_LG2,
            process_id,
            &mut read,
        )?;
        let words = read_words(address, &mut read)?;
        self.decode_context(words)
            .map_err(|reason| LocateError::Misconfigured { address, reason })?
            .ok_or(LocateError::NotValid { address })
    }

    /// Decodes a process context; `None` if it is not valid.
    ///
    /// # Errors
    ///
    /// [`Misconfigured`]: the first rule that a valid context breaks.
    pub fn decode_context(self, words: [u64; 2]) -> Result<Option<ProcessContext>, Misconfigured> {
        let [ta, fsc] = words;
        if ta & VALID == 0 {
            return Ok(None);
        }
        check_reserved(0, ta, TA_RESERVED)?;
        let tables = self.rules.decode(1, fsc)?;
        Ok(Some(ProcessContext { tables, ta }))
    }

    /// Makes the context of a process with `tables`, as this directory's device context allows.
    ///
    /// The context has the format that hardware reads the tables as: page sizes, memory types and the
    /// width of addresses are those of the IOMMU, not of `tables`.
    ///
    /// # Errors
    ///
    /// [`Misconfigured`]: what hardware would refuse, or what no field can hold. Among them
    /// [`Misconfigured::UpdatesUnsupported`] for tables that track dirty pages where SADE is not set,
    /// and [`Misconfigured::SupervisorWidth`] for tables of 32 bits where SXL is not, or of others
    /// where it is.
    pub fn make_context(
        self,
        tables: FirstStageTables,
        options: ProcessOptions,
    ) -> Result<ProcessContext, Misconfigured> {
        check_id(options.pscid, PSCID_BITS)?;
        self.rules.check_width(tables)?;
        if tables.updates_flags() && !self.rules.updates_flags {
            return Err(Misconfigured::UpdatesUnsupported);
        }
        let flag = |is_set: bool, bits: u64| if is_set { bits } else { 0 };
        let ta = VALID
            | flag(options.has_supervisor, ENABLE_SUPERVISOR)
            | flag(options.has_supervisor_user_memory, SUPERVISOR_USER_MEMORY)
            | PSCID.put(options.pscid.into());
        let tables = self.rules.decode(1, tables.word()?)?;
        Ok(ProcessContext { tables, ta })
    }
}

/// What a process context says besides its tables.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct ProcessOptions {
    /// The address space that tags translations, 20 bits (PSCID).
    pub pscid: u32,
    /// Whether privileged requests are allowed (ENS).
    pub has_supervisor: bool,
    /// Whether privileged requests may access unprivileged pages (SUM).
    pub has_supervisor_user_memory: bool,
}

/// A valid process context.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ProcessContext {
    tables: FirstStageTables,
    ta: u64,
}

impl ProcessContext {
    /// Names of the fields of each word.
    pub const FIELDS: [&[Field]; 2] = [
        &[
            Field::new("V", 0, 0),
            Field::new("ENS", 1, 1),
            Field::new("SUM", 2, 2),
            Field::new("PSCID", 31, 12),
        ],
        STAGE_FIELDS,
    ];

    /// Returns the two words. Hardware ignores the page number where there are no tables: it is zero
    /// then. A context that is not valid is all zero.
    pub fn encode(self) -> [u64; 2] {
        let fsc = self.tables.word();
        [
            self.ta,
            fsc.expect("decoding gave tables that a word describes"),
        ]
    }

    /// Returns the bits that hardware reads of a context with these words. Reserved bits of a valid
    /// one count as read, because hardware refuses them.
    pub const fn used(words: [u64; 2]) -> [u64; 2] {
        if words[0] & VALID == 0 {
            return [VALID, 0];
        }
        let has_tables = MODE.get(words[1]) != 0;
        [u64::MAX, if has_tables { u64::MAX } else { !PPN.mask() }]
    }

    /// Returns what the context says besides its tables.
    pub const fn options(self) -> ProcessOptions {
        ProcessOptions {
            pscid: self.pscid(),
            has_supervisor: self.has_supervisor(),
            has_supervisor_user_memory: self.has_supervisor_user_memory(),
        }
    }

    /// Returns the first-stage tables.
    pub const fn tables(self) -> FirstStageTables {
        self.tables
    }

    /// Returns the address space that tags translations; it has no meaning without tables.
    pub const fn pscid(self) -> u32 {
        PSCID.get(self.ta) as u32
    }

    /// Returns whether privileged requests are allowed (ENS).
    pub const fn has_supervisor(self) -> bool {
        self.ta & ENABLE_SUPERVISOR != 0
    }

    /// Returns whether privileged requests may access unprivileged pages (SUM).
    pub const fn has_supervisor_user_memory(self) -> bool {
        self.ta & SUPERVISOR_USER_MEMORY != 0
    }
}

#[cfg(test)]
mod tests;
