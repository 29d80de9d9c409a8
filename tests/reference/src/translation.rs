//! What a walk answers: a translation or a fault.

use std::error::Error;
use std::fmt;

/// What the tables say about one address.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is an independent fact about the entry"
)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Translation {
    /// Output address of the address that was asked for, or of the item's first byte when a whole
    /// item is reported.
    pub oa: u64,
    /// Bytes of the whole entry: what hardware may cache as one, a contiguous group included.
    pub page_len: u64,
    /// Bytes that this one item covers; less than `page_len` in a contiguous group.
    pub item_len: u64,
    /// Reads are allowed by all levels together.
    pub read: bool,
    /// Writes are allowed by all levels together, possibly after hardware marked the item dirty.
    pub write: bool,
    /// Instruction fetches are not forbidden, for unprivileged requests if `user`, else for
    /// privileged ones; of ARM stage 2 with XNX, for either. A format without such a right never
    /// forbids them on a readable page.
    pub execute: bool,
    /// Unprivileged requests are allowed. True for formats without that distinction.
    pub user: bool,
    /// The item records that it was written. False if the entry does not track writes (ARM without
    /// DBM). Of this item alone: hardware may mark any item of a group.
    pub dirty: bool,
    /// The item's accessed flag. True for formats without one.
    pub accessed: bool,
    /// The memory attributes, as raw fields.
    pub memory: MemoryAttributes,
    /// Level of the item, in the numbering of its architecture: ARM -1 to 3 (3 is the last), VT-d,
    /// x86 and AMD 1 to 6 (1 is the last), RISC-V 0 to 4 (0 is the last).
    pub level: i8,
    /// The raw word of the item.
    pub word: u64,
}

/// The memory attributes of a leaf, as raw fields of its architecture.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum MemoryAttributes {
    /// No table was walked, so nothing says.
    Unstated,
    /// ARM stage 1 and Mali.
    ArmStage1 {
        /// `AttrIndx`, an index into MAIR.
        attr_indx: u8,
        /// `SH`: of the entry, or of the control register with 52-bit descriptors (DS).
        sh: u8,
    },
    /// ARM stage 2.
    ArmStage2 {
        /// `MemAttr[3:0]`; its meaning depends on S2FWB.
        mem_attr: u8,
        /// `SH`: of the entry, or of the control register with 52-bit descriptors (DS).
        sh: u8,
    },
    /// VT-d second stage.
    VtdSecond {
        /// `EMT`, extended memory type.
        emt: u8,
        /// `IPAT`, ignore PAT.
        ipat: bool,
        /// `SNP`, snoop behaviour.
        snp: bool,
    },
    /// x86-64, VT-d first stage, AMD guest tables.
    LongMode {
        /// `PAT`, `PCD` and `PWT`, in this order from bit 2.
        pat_index: u8,
    },
    /// AMD host tables.
    Amd {
        /// `FC`, force coherent.
        fc: bool,
    },
    /// RISC-V.
    Riscv {
        /// `PBMT`: 0 as the memory says, 1 non-cacheable, 2 IO.
        pbmt: u8,
    },
}

/// Why hardware does not translate an address.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fault {
    /// The entry at this level is not present.
    NotMapped {
        /// Level of the entry, in the numbering of its architecture.
        level: i8,
    },
    /// The entry is present and has an encoding or bits that the manual reserves.
    Reserved {
        /// Level of the entry.
        level: i8,
        /// The entry.
        word: u64,
    },
    /// The accessed flag is clear and nothing sets it.
    AccessFlag {
        /// Level of the entry.
        level: i8,
    },
    /// The entries on the way together leave no right at all.
    NoAccess {
        /// Level of the leaf.
        level: i8,
    },
    /// A table pointer or an output address does not fit the output address size.
    AddressSize {
        /// Level of the entry that holds the address.
        level: i8,
        /// The address.
        address: u64,
    },
    /// The input address is outside what the table can translate.
    OutOfWindow {
        /// The input address.
        iova: u64,
    },
    /// There is no memory where a table should be.
    MissingMemory {
        /// Address of the word.
        address: u64,
    },
    /// The configuration is not legal, so nothing can be said about any address.
    Setup(Setup),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotMapped { level } => write!(f, "not mapped at level {level}"),
            Self::Reserved { level, word } => {
                write!(f, "reserved encoding {word:#x} at level {level}")
            }
            Self::AccessFlag { level } => write!(f, "access flag clear at level {level}"),
            Self::NoAccess { level } => write!(f, "no permission at all at level {level}"),
            Self::AddressSize { level, address } => {
                write!(
                    f,
                    "address {address:#x} at level {level} exceeds the output address size"
                )
            }
            Self::OutOfWindow { iova } => write!(f, "iova {iova:#x} is outside the table's window"),
            Self::MissingMemory { address } => write!(f, "no memory at {address:#x}"),
            Self::Setup(setup) => setup.fmt(f),
        }
    }
}

impl Error for Fault {}

/// Why a configuration is not legal.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Setup {
    /// The number of levels, or the start level, is none that the format has.
    Levels {
        /// The number as given.
        levels: i8,
    },
    /// The input address size does not fit the granule and the start level.
    InputBits {
        /// The size in bits.
        ia_bits: u8,
    },
    /// The output address size is zero or more than the format can express.
    OutputBits {
        /// The size in bits.
        oa_bits: u8,
    },
    /// The root table is outside the output address size, or not aligned where that is reserved.
    Root {
        /// Its address.
        root: u64,
    },
    /// A combination of fields that the manual does not allow.
    Combination,
}

impl fmt::Display for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Levels { levels } => write!(
                f,
                "the format has no table of this level or levels: {levels}"
            ),
            Self::InputBits { ia_bits } => {
                write!(f, "an input address size of {ia_bits} bits is not legal")
            }
            Self::OutputBits { oa_bits } => {
                write!(f, "an output address size of {oa_bits} bits is not legal")
            }
            Self::Root { root } => write!(f, "no root table can be at {root:#x}"),
            Self::Combination => {
                f.write_str("a combination of settings that the manual does not allow")
            }
        }
    }
}

impl Error for Setup {}
