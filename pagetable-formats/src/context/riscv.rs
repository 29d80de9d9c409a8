//! RISC-V IOMMU directories: which tables the requests of a device and a process go through.
//!
//! Source: *RISC-V IOMMU Architecture Specification*, version 1.0.1, chapters "Data Structures"
//! and "Memory-mapped register interface".
//!
//! ```text
//! register     memory
//! ddtp ---> device directory --[device_id]--> DC ---> first-stage tables
//!                                             | |
//!                                             | +---> process directory --[process_id]--> PC
//!                                             |                                           |
//!                                             +-----> G-stage tables    first-stage tables <+
//! ```
//!
//! All structures are read as 64-bit words. Their byte order is that of `fctl.BE`, for process
//! directories and first-stage tables that of `tc.SBE`: whoever reads or writes memory swaps the bytes.
//!
//! Every structure is encoded from the value that its decoder gives. Constructors build the words and
//! decode them, so that they refuse exactly what hardware refuses, and encoders cannot fail. Encoding
//! what was decoded gives the same words but for bits that hardware ignores, which become zero; each
//! encoder names them. [`UpdateRules`] says how contexts change under hardware.

mod device_context;
mod device_directory;
mod features;
mod process_directory;
mod stage;
mod update;

pub use self::device_context::{DeviceContext, DeviceOptions, MsiTable};
pub use self::device_directory::{Ddtp, DeviceDirectory, ReservedMode};
pub use self::features::{ContextFormat, Features};
pub use self::process_directory::{ProcessContext, ProcessDirectory, ProcessOptions};
pub use self::stage::{FirstStage, FirstStageTables, SecondStage};
pub use self::update::UpdateRules;

use crate::{Bits, Field, Level, Oa, bit};

/// V: the entry is valid.
const VALID: u64 = bit(0);
/// PPN of `ddtp` and of entries that point to a directory page.
const POINTER_PPN: Bits<53, 10> = Bits;
/// PPN of the words of a context.
const PPN: Bits<43, 0> = Bits;
/// MODE of the words of a context.
const MODE: Bits<63, 60> = Bits;

const POINTER_FIELDS: &[Field] = &[Field::new("V", 0, 0), Field::new("PPN", 53, 10)];
const STAGE_FIELDS: &[Field] = &[Field::new("PPN", 43, 0), Field::new("MODE", 63, 60)];

/// A directory, for faults.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Directory {
    /// The device directory table (DDT).
    Device,
    /// A process directory table (PDT).
    Process,
}

/// Why an id leads to no context.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum LocateError {
    /// The directory has no entry for the id.
    #[error("id {id:#x} is wider than the {bits} bits of the directory")]
    IdWidth {
        /// The device id or process id.
        id: u32,
        /// What the directory has entries for.
        bits: u8,
    },
    /// An entry lies where no memory is.
    #[error("cannot read the directory at {address}")]
    Unreadable {
        /// Address of the entry's word.
        address: Oa,
    },
    /// An entry is not valid.
    #[error("the entry at {address} is not valid")]
    NotValid {
        /// Its address.
        address: Oa,
    },
    /// An entry is misconfigured.
    #[error("the entry at {address} is misconfigured: {reason}")]
    Misconfigured {
        /// Its address.
        address: Oa,
        /// Which rule it breaks.
        reason: Misconfigured,
    },
}

impl LocateError {
    /// Returns the CAUSE that hardware reports for a search in `directory`.
    pub const fn cause(self, directory: Directory) -> u16 {
        // Table "Fault record CAUSE field encodings".
        match (self, directory) {
            (Self::IdWidth { .. }, _) => 260,
            (Self::Unreadable { .. }, Directory::Device) => 257,
            (Self::NotValid { .. }, Directory::Device) => 258,
            (Self::Misconfigured { .. }, Directory::Device) => 259,
            (Self::Unreadable { .. }, Directory::Process) => 265,
            (Self::NotValid { .. }, Directory::Process) => 266,
            (Self::Misconfigured { .. }, Directory::Process) => 267,
        }
    }
}

/// Which rule a valid entry breaks, or would break.
///
/// The specification lists them in the sections "Device-context configuration checks" and
/// "Process-context configuration checks".
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Misconfigured {
    /// Reserved bits are set.
    #[error("reserved bits {bits:#x} of word {word} are set")]
    Reserved {
        /// Number of the word in the entry.
        word: u8,
        /// The bits, in place.
        bits: u64,
    },
    /// `EN_ATS`, `EN_PRI` or PRPR is set.
    #[error("EN_ATS, EN_PRI or PRPR is set, but the IOMMU has no ATS")]
    AtsUnsupported,
    /// T2GPA is set.
    #[error("T2GPA is set, but the IOMMU does not have it")]
    T2gpaUnsupported,
    /// T2GPA is set without `EN_ATS`.
    #[error("T2GPA is set without EN_ATS")]
    T2gpaWithoutAts,
    /// T2GPA is set and there is no second stage.
    #[error("T2GPA is set, but there is no second stage")]
    T2gpaWithoutSecondStage,
    /// `EN_PRI` is set without `EN_ATS`.
    #[error("EN_PRI is set without EN_ATS")]
    PriWithoutAts,
    /// PRPR is set without `EN_PRI`.
    #[error("PRPR is set without EN_PRI")]
    PrprWithoutPri,
    /// DPE is set without PDTV.
    #[error("DPE is set without PDTV")]
    DpeWithoutDirectory,
    /// SADE or GADE is set.
    #[error("SADE or GADE is set, but the IOMMU does not update A and D")]
    UpdatesUnsupported,
    /// SBE differs from `fctl.BE`.
    #[error("SBE differs from fctl.BE, but the IOMMU has only one byte order")]
    ByteOrder,
    /// SXL has a value that the IOMMU's `fctl.GXL` rules out.
    #[error("SXL does not fit fctl.GXL")]
    SupervisorWidth,
    /// The MODE of `pdtp` is reserved, or the IOMMU does not have it.
    #[error("pdtp.MODE {mode} is not possible")]
    ProcessDirectoryMode {
        /// The value.
        mode: u8,
    },
    /// The MODE of `iosatp` or of a process context is reserved, or the IOMMU does not have it.
    #[error("first-stage MODE {mode} is not possible")]
    FirstStageMode {
        /// The value.
        mode: u8,
    },
    /// The MODE of `iohgatp` is reserved, or the IOMMU does not have it.
    #[error("iohgatp.MODE {mode} is not possible")]
    SecondStageMode {
        /// The value.
        mode: u8,
    },
    /// The root of the second stage is not aligned to 16 KiB.
    #[error("the second-stage root {root} is not aligned to 16 KiB")]
    SecondStageRoot {
        /// The root.
        root: Oa,
    },
    /// The MODE of `msiptp` is reserved.
    #[error("msiptp.MODE {mode} is not possible")]
    MsiMode {
        /// The value.
        mode: u8,
    },
    /// An address has no place in its field.
    #[error("{oa} is not aligned to 4 KiB or has more than 56 bits")]
    Pointer {
        /// The address.
        oa: Oa,
    },
    /// The level of a root is not that of its format.
    #[error("the root is at level {level}, which is not the highest of its format")]
    RootLevel {
        /// The level.
        level: Level,
    },
    /// A directory has a number of levels that no directory has.
    #[error("a directory has 1 to 3 levels, not {levels}")]
    DirectoryLevels {
        /// The levels.
        levels: u8,
    },
    /// PSCID, RCID or MCID has no place in its field.
    #[error("{id:#x} is wider than {bits} bits")]
    IdWidth {
        /// The value.
        id: u32,
        /// Width of the field.
        bits: u8,
    },
    /// An MSI table is given, but contexts have no place for it.
    #[error("the IOMMU has no MSI tables")]
    MsiUnsupported,
}

/// Decodes a pointer to the next page of a directory; `None` if it is not valid.
fn decode_pointer(word: u64) -> Result<Option<Oa>, Misconfigured> {
    if word & VALID == 0 {
        return Ok(None);
    }
    match word & !(VALID | POINTER_PPN.mask()) {
        0 => Ok(Some(Oa::new(POINTER_PPN.get(word) << 12))),
        bits => Err(Misconfigured::Reserved { word: 0, bits }),
    }
}

/// A page of a directory, which an entry above the last level points to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct DirectoryPage(Oa);

impl DirectoryPage {
    /// Describes the page at `oa`.
    ///
    /// # Errors
    ///
    /// [`Misconfigured::Pointer`] unless `oa` is aligned to 4 KiB and below 2^56.
    pub fn new(oa: Oa) -> Result<Self, Misconfigured> {
        page_number(oa).map(|_| Self(oa))
    }

    /// Decodes an entry above the last level; `None` if it is not valid.
    ///
    /// # Errors
    ///
    /// [`Misconfigured::Reserved`].
    pub fn decode(word: u64) -> Result<Option<Self>, Misconfigured> {
        Ok(decode_pointer(word)?.map(Self))
    }

    /// Returns the entry: one word, so an update is one store. One that is not valid is zero.
    pub const fn encode(self) -> u64 {
        POINTER_PPN.put(self.0.get() >> 12) | VALID
    }

    /// Returns where the page lies.
    pub const fn oa(self) -> Oa {
        self.0
    }
}

/// Returns the number of the page at `oa`, 44 bits.
const fn page_number(oa: Oa) -> Result<u64, Misconfigured> {
    let number = oa.get() >> 12;
    if number << 12 == oa.get() && number <= PPN.mask() {
        Ok(number)
    } else {
        Err(Misconfigured::Pointer { oa })
    }
}

/// Refuses an id that is wider than `bits`.
const fn check_id(id: u32, bits: u8) -> Result<(), Misconfigured> {
    if id >> bits == 0 {
        Ok(())
    } else {
        Err(Misconfigured::IdWidth { id, bits })
    }
}

/// Refuses `word` number `number` if it has one of the bits `reserved`.
const fn check_reserved(number: u8, word: u64, reserved: u64) -> Result<(), Misconfigured> {
    match word & reserved {
        0 => Ok(()),
        bits => Err(Misconfigured::Reserved { word: number, bits }),
    }
}

/// How a directory splits an id, lowest level first.
type IndexBits = [u8; 3];

/// Walks a directory of `levels` levels whose root lies at `root` down to its last page, and
/// returns the address of the context of `id` there.
fn locate(
    root: Oa,
    levels: u8,
    index_bits: IndexBits,
    context_len_lg2: u8,
    id: u32,
    read: &mut impl FnMut(Oa) -> Option<u64>,
) -> Result<Oa, LocateError> {
    let bits = id_bits(levels, index_bits);
    if u64::from(id) >> bits != 0 {
        return Err(LocateError::IdWidth { id, bits });
    }
    let mut page = root;
    for level in (1..levels).rev() {
        let address = Oa::new(page.get() | (index(id, level, index_bits) << 3));
        let word = read(address).ok_or(LocateError::Unreadable { address })?;
        page = decode_pointer(word)
            .map_err(|reason| LocateError::Misconfigured { address, reason })?
            .ok_or(LocateError::NotValid { address })?;
    }
    Ok(Oa::new(
        page.get() | (index(id, 0, index_bits) << context_len_lg2),
    ))
}

/// Returns the width of the ids of a directory.
fn id_bits(levels: u8, index_bits: IndexBits) -> u8 {
    index_bits.iter().take(usize::from(levels)).sum()
}

fn index(id: u32, level: u8, index_bits: IndexBits) -> u64 {
    let index = u64::from(id) >> id_bits(level, index_bits);
    let width = index_bits.get(usize::from(level)).copied().unwrap_or(0);
    index & ((1 << width) - 1)
}

/// Reads the `N` words of a context.
fn read_words<const N: usize>(
    context: Oa,
    read: &mut impl FnMut(Oa) -> Option<u64>,
) -> Result<[u64; N], LocateError> {
    let mut words = [0; N];
    for (offset, word) in (0..).step_by(8).zip(&mut words) {
        let address = Oa::new(context.get() | offset);
        *word = read(address).ok_or(LocateError::Unreadable { address })?;
    }
    Ok(words)
}
