//! VT-d: from the root table to the tables that translate.
//!
//! Source: *Intel Virtualization Technology for Directed I/O, Architecture Specification*,
//! revision 4.1, sections 3.4.2 (legacy mode), 3.4.3 (scalable mode), 9.1 to 9.6 (entries) and the
//! description of the Root Table Address Register.
//!
//! ```text
//! legacy    RTADDR -> root entry [bus] -> context entry [devfn] -> second stage
//! scalable  RTADDR -> root entry [bus], lower or upper -> context entry [devfn & 127]
//!                  -> PASID directory [PASID >> 6] -> PASID table [PASID & 63] -> stages
//! ```
//!
//! Every decoder takes the words of one entry, lowest first, and refuses reserved bits and values
//! that hardware refuses whatever its capabilities. Bits that some capability makes valid are
//! accepted. An entry that is not present leads nowhere; only its FPD counts then.

mod pasid;

pub use self::pasid::{PasidDirectory, PasidDirectoryEntry, PasidEntry, ScalableContext};

use crate::vtd::{FirstStage, SecondStage};
use crate::walk::Root;
use crate::{Bits, Field, Format, Oa, bit};

/// Every pointer of these structures: 4 KiB aligned, at most 52 bits wide.
const POINTER: Bits<51, 12> = Bits;
/// Address bits that no host has.
const POINTER_TOO_WIDE: Bits<63, 52> = Bits;
/// P: the entry is present.
const PRESENT: u64 = bit(0);
/// FPD: faults of requests through the entry are not reported.
const FAULT_DISABLE: u64 = bit(1);

/// What is wrong with the words of an entry.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ContextError {
    /// Reserved bits are set.
    #[error("{entry}: reserved bits {bits:#x} of word {word} are set")]
    Reserved {
        /// Which structure.
        entry: &'static str,
        /// Which of its 64-bit words, from 0.
        word: usize,
        /// The offending bits, in place.
        bits: u64,
    },
    /// The root table register's TTM has a reserved value.
    #[error("translation table mode {value} is reserved")]
    TableMode {
        /// The value.
        value: u8,
    },
    /// TT of a context entry or PGTT of a PASID entry has a reserved value.
    #[error("{entry}: translation type {value} is reserved")]
    TranslationType {
        /// Which structure.
        entry: &'static str,
        /// The value.
        value: u8,
    },
    /// AW names no width that second-stage tables have.
    #[error("{entry}: address width {value} is neither 1, 2 nor 3")]
    AddressWidth {
        /// Which structure.
        entry: &'static str,
        /// The value.
        value: u8,
    },
    /// FSPM names no first-stage paging mode.
    #[error("{entry}: first-stage paging mode {value} is reserved")]
    PagingMode {
        /// Which structure.
        entry: &'static str,
        /// The value.
        value: u8,
    },
}

/// What happens to requests that reach an entry.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Translation {
    /// They fault: the entry is not present.
    Blocked,
    /// Their addresses are used as they are.
    PassThrough,
    /// First stage only.
    First(Stage<FirstStage>),
    /// Second stage only.
    Second(Stage<SecondStage>),
    /// First stage, whose tables and output the second stage translates.
    Nested {
        /// The first stage; addresses in it are inputs of the second.
        first: Stage<FirstStage>,
        /// The second stage.
        second: Stage<SecondStage>,
    },
}

/// A table and how to read it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Stage<F> {
    /// The format, configured as the entry says.
    pub format: F,
    /// Where the walk starts.
    pub root: Root,
}

impl<F: Format> Stage<F> {
    fn new(format: F, oa: Oa) -> Self {
        Self {
            format,
            root: Root {
                oa,
                level: format.geometry().top,
            },
        }
    }
}

/// How the entries that the root table leads to are laid out.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum TableMode {
    /// Requester IDs lead to second-stage tables.
    Legacy,
    /// Requester IDs and PASIDs lead to first-stage, second-stage or nested tables.
    Scalable,
}

impl TableMode {
    /// Returns the bytes of a context entry.
    pub const fn context_len(self) -> u64 {
        match self {
            Self::Legacy => 16,
            Self::Scalable => 32,
        }
    }
}

/// The root table, as the register `RTADDR_REG` describes it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RootTable {
    /// Layout of the context entries.
    pub mode: TableMode,
    /// Where the table of 256 root entries lies.
    pub oa: Oa,
}

impl RootTable {
    /// The named fields of the register.
    pub const FIELDS: &[Field] = &[Field::new("TTM", 11, 10), Field::new("RTA", 63, 12)];

    /// Decodes the register, or returns `None` in abort-DMA mode, where every request is blocked.
    ///
    /// # Errors
    ///
    /// [`ContextError::Reserved`] and [`ContextError::TableMode`].
    pub fn decode(register: u64) -> Result<Option<Self>, ContextError> {
        const TABLE_MODE: Bits<11, 10> = Bits;
        const RESERVED: Bits<9, 0> = Bits;
        refuse(
            "root table address",
            0,
            register,
            RESERVED.mask() | POINTER_TOO_WIDE.mask(),
        )?;
        let mode = match TABLE_MODE.get(register) {
            0b00 => TableMode::Legacy,
            0b01 => TableMode::Scalable,
            0b11 => return Ok(None),
            value => return Err(ContextError::TableMode { value: value as u8 }),
        };
        Ok(Some(Self {
            mode,
            oa: pointer(register),
        }))
    }

    /// Returns the address of the root entry of `bus`, two words.
    pub const fn entry(self, bus: u8) -> Oa {
        Oa::new(self.oa.get() | (bus as u64 * 16))
    }
}

/// A root entry: the context tables of one bus.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RootEntry {
    /// Layout of the context entries.
    pub mode: TableMode,
    /// Where the 128 context entries of devices 0 to 15 lie, if present.
    pub lower: Option<Oa>,
    /// Where those of devices 16 to 31 lie; in legacy mode, right behind the others.
    pub upper: Option<Oa>,
}

impl RootEntry {
    /// Decodes the two words of an entry.
    ///
    /// # Errors
    ///
    /// [`ContextError::Reserved`].
    pub fn decode(words: [u64; 2], mode: TableMode) -> Result<Self, ContextError> {
        const RESERVED: Bits<11, 1> = Bits;
        let half = |word: usize| {
            if words[word] & PRESENT == 0 {
                return Ok(None);
            }
            let reserved = RESERVED.mask() | POINTER_TOO_WIDE.mask();
            refuse("root entry", word, words[word], reserved)?;
            Ok(Some(pointer(words[word])))
        };
        let lower = half(0)?;
        let upper = match (mode, lower) {
            (TableMode::Scalable, _) => half(1)?,
            (TableMode::Legacy, None) => None,
            (TableMode::Legacy, Some(table)) => {
                refuse("root entry", 1, words[1], u64::MAX)?;
                table.checked_add(128 * mode.context_len())
            }
        };
        Ok(Self { mode, lower, upper })
    }

    /// Returns the address of the context entry of `devfn`, the device number in the upper five bits
    /// and the function in the lower three, or `None` if its table is not present.
    pub fn context(self, devfn: u8) -> Option<Oa> {
        let table = if devfn < 128 { self.lower } else { self.upper };
        table?.checked_add(u64::from(devfn & 127) * self.mode.context_len())
    }

    /// Returns the named fields of both words.
    pub const fn fields(mode: TableMode) -> [&'static [Field]; 2] {
        const LEGACY: [&[Field]; 2] = [&[Field::new("P", 0, 0), Field::new("CTP", 63, 12)], &[]];
        const SCALABLE: [&[Field]; 2] = [
            &[Field::new("LP", 0, 0), Field::new("LCTP", 63, 12)],
            &[Field::new("UP", 0, 0), Field::new("UCTP", 63, 12)],
        ];
        match mode {
            TableMode::Legacy => LEGACY,
            TableMode::Scalable => SCALABLE,
        }
    }
}

/// A context entry in legacy mode.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct LegacyContext {
    /// Whether faults go unreported; holds for an entry that is not present too.
    pub fault_disable: bool,
    /// Whether the device may ask for translations and cache them (TT 1).
    pub device_tlb: bool,
    /// Tag of the cached translations; 0 if the entry is not present.
    pub domain_id: u16,
    /// [`Translation::Blocked`], [`PassThrough`](Translation::PassThrough) or
    /// [`Second`](Translation::Second).
    pub translation: Translation,
}

impl LegacyContext {
    /// The named fields of both words.
    pub const FIELDS: [&'static [Field]; 2] = [
        &[
            Field::new("P", 0, 0),
            Field::new("FPD", 1, 1),
            Field::new("TT", 3, 2),
            Field::new("SSPTPTR", 63, 12),
        ],
        &[
            Field::new("AW", 2, 0),
            Field::new("AVAIL", 6, 3),
            Field::new("DID", 23, 8),
        ],
    ];

    /// Decodes the two words of an entry.
    ///
    /// # Errors
    ///
    /// [`ContextError::Reserved`], [`TranslationType`](ContextError::TranslationType) and, unless
    /// addresses pass through, [`AddressWidth`](ContextError::AddressWidth).
    pub fn decode(words: [u64; 2]) -> Result<Self, ContextError> {
        const ENTRY: &str = "context entry";
        const TRANSLATION_TYPE: Bits<3, 2> = Bits;
        const ADDRESS_WIDTH: Bits<2, 0> = Bits;
        const DOMAIN_ID: Bits<23, 8> = Bits;
        const RESERVED: [u64; 2] = [
            0xff0 | POINTER_TOO_WIDE.mask(),
            bit(7) | Bits::<63, 24>.mask(),
        ];

        let [low, high] = words;
        let fault_disable = low & FAULT_DISABLE != 0;
        if low & PRESENT == 0 {
            let translation = Translation::Blocked;
            return Ok(Self {
                fault_disable,
                device_tlb: false,
                domain_id: 0,
                translation,
            });
        }
        for (word, reserved) in RESERVED.into_iter().enumerate() {
            refuse(ENTRY, word, words[word], reserved)?;
        }
        let second = || {
            let format = second_stage(ENTRY, ADDRESS_WIDTH.get(high) as u8)?;
            Ok(Translation::Second(Stage::new(format, pointer(low))))
        };
        let (device_tlb, translation) = match TRANSLATION_TYPE.get(low) {
            0 => (false, second()?),
            1 => (true, second()?),
            2 => (false, Translation::PassThrough),
            value => {
                return Err(ContextError::TranslationType {
                    entry: ENTRY,
                    value: value as u8,
                });
            }
        };
        Ok(Self {
            fault_disable,
            device_tlb,
            domain_id: DOMAIN_ID.get(high) as u16,
            translation,
        })
    }
}

/// Refuses a word with reserved bits.
fn refuse(entry: &'static str, word: usize, value: u64, reserved: u64) -> Result<(), ContextError> {
    match value & reserved {
        0 => Ok(()),
        bits => Err(ContextError::Reserved { entry, word, bits }),
    }
}

const fn pointer(word: u64) -> Oa {
    Oa::new(word & POINTER.mask())
}

/// Returns the format that the field AW, 1 to 3, asks for.
fn second_stage(entry: &'static str, aw: u8) -> Result<SecondStage, ContextError> {
    let va_bits = match aw {
        1 => 39,
        2 => 48,
        3 => 57,
        value => return Err(ContextError::AddressWidth { entry, value }),
    };
    Ok(SecondStage::new(va_bits).expect("all three widths exist"))
}

#[cfg(test)]
mod tests;
