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
//!
//! Every entry is encoded from the value that its decoder gives, or that its constructors made:
//! these refuse what has no encoding, so encoders cannot fail. Encoding what was decoded gives the
//! same words but for bits that hardware ignores, which become zero; each encoder names them.
//!
//! # Changing an entry under hardware
//!
//! Hardware may fetch the words of an entry one by one, and caches what it fetched until it is told
//! to forget. Each entry of more than one word has `used`, which says what bits of it hardware reads,
//! and `SAFE`: with [`UpdateRules`] a change either needs one store, or has P clear in between.

mod legacy;
mod pasid;
mod root;
mod scalable;
mod update;

pub use self::legacy::LegacyContext;
pub use self::pasid::{MemoryTypes, PasidEntry};
pub use self::root::{RootEntry, RootTable};
pub use self::scalable::{PasidDirectory, PasidDirectoryEntry, ScalableContext};
pub use self::update::UpdateRules;

use crate::vtd::{FirstStage, SecondStage};
use crate::walk::Root;
use crate::{Bits, Format, Oa, Window, bit};

/// Every pointer of these structures: 4 KiB aligned, at most 52 bits wide.
const POINTER: Bits<51, 12> = Bits;
/// Address bits that no host has.
const POINTER_TOO_WIDE: Bits<63, 52> = Bits;
/// P: the entry is present.
const PRESENT: u64 = bit(0);
/// FPD: faults of requests through the entry are not reported.
const FAULT_DISABLE: u64 = bit(1);

/// What is wrong with the words of an entry, or with what shall become one.
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
    /// An address has no place in the field of a pointer.
    #[error("{entry}: {oa} is not aligned to 4 KiB or has more than 52 bits")]
    Pointer {
        /// Which structure.
        entry: &'static str,
        /// The address.
        oa: Oa,
    },
    /// First-stage tables decode addresses that hardware never translates.
    #[error("first-stage tables of {levels} levels decode addresses that are not canonical")]
    NotCanonical {
        /// Their levels.
        levels: u8,
    },
    /// Dirty pages are to be tracked through an entry that cannot enable it.
    #[error("{entry}: no field enables accessed and dirty flags")]
    DirtyTracking {
        /// Which structure.
        entry: &'static str,
    },
    /// A device TLB is allowed through an entry that leads to no tables.
    #[error("{entry}: a device TLB needs tables")]
    DeviceTlb {
        /// Which structure.
        entry: &'static str,
    },
    /// The PASID of requests without one is not in the directory.
    #[error("PASID {pasid:#x} of requests without one is not in the directory")]
    Pasid {
        /// The PASID.
        pasid: u32,
    },
    /// No PASID directory has this size.
    #[error("a PASID directory serves 2^13 to 2^20 PASIDs, a power of two, not {count}")]
    PasidCount {
        /// The number of PASIDs.
        count: u32,
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
///
/// The format is the one that an entry can describe: its levels, and for second-stage tables whether
/// dirty pages are tracked. Page sizes, address widths and snooping of one's own tables are not in it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Stage<F> {
    format: F,
    root: Root,
}

impl<F: Format> Stage<F> {
    /// Returns the format, configured as an entry says.
    pub const fn format(self) -> F {
        self.format
    }

    /// Returns where the walk starts.
    pub const fn root(self) -> Root {
        self.root
    }

    fn at(format: F, oa: Oa) -> Self {
        Self {
            format,
            root: Root {
                oa,
                level: format.geometry().top,
            },
        }
    }
}

impl Stage<FirstStage> {
    /// Describes the first-stage tables of `format` with their root at `oa`.
    ///
    /// # Errors
    ///
    /// [`ContextError::Pointer`] unless `oa` is aligned to 4 KiB and below 2^52;
    /// [`ContextError::NotCanonical`] if the format has all bits of its levels for positive addresses.
    pub fn first(format: FirstStage, oa: Oa) -> Result<Self, ContextError> {
        check_pointer("first stage", oa)?;
        let geometry = format.geometry();
        let levels = format.levels();
        let canonical_bits = 12 + 9 * levels;
        if geometry.window == Window::Lower && geometry.va_bits == canonical_bits {
            return Err(ContextError::NotCanonical { levels });
        }
        let format =
            FirstStage::sign_extended(canonical_bits).expect("4 and 5 levels take 48 and 57 bits");
        Ok(Self::at(format, oa))
    }
}

impl Stage<SecondStage> {
    /// Describes the second-stage tables of `format` with their root at `oa`.
    ///
    /// # Errors
    ///
    /// [`ContextError::Pointer`] unless `oa` is aligned to 4 KiB and below 2^52.
    pub fn second(format: SecondStage, oa: Oa) -> Result<Self, ContextError> {
        check_pointer("second stage", oa)?;
        let described = second_stage("second stage", format.aw())?;
        let described = if format.dirty_rule().is_some() {
            described.with_dirty()
        } else {
            described
        };
        Ok(Self::at(described, oa))
    }
}

/// Width of the addresses that pass through or that second-stage tables translate (AW).
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum AddressWidth {
    /// 39 bits, 3 levels.
    Bits39,
    /// 48 bits, 4 levels.
    Bits48,
    /// 57 bits, 5 levels.
    Bits57,
}

impl AddressWidth {
    /// Returns the value of the field AW.
    const fn field(self) -> u8 {
        match self {
            Self::Bits39 => 1,
            Self::Bits48 => 2,
            Self::Bits57 => 3,
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

/// Refuses a word with reserved bits.
fn refuse(entry: &'static str, word: usize, value: u64, reserved: u64) -> Result<(), ContextError> {
    match value & reserved {
        0 => Ok(()),
        bits => Err(ContextError::Reserved { entry, word, bits }),
    }
}

/// Refuses an address that no pointer can hold.
fn check_pointer(entry: &'static str, oa: Oa) -> Result<(), ContextError> {
    if oa.get() & !POINTER.mask() == 0 {
        Ok(())
    } else {
        Err(ContextError::Pointer { entry, oa })
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
