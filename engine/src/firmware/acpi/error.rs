//! What is wrong with a table.

use crate::firmware::acpi::table::Signature;

/// A table that cannot be read.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{table} table, byte {offset:#x}: {what} {fault}")]
pub struct AcpiError {
    /// Which table.
    pub table: Signature,
    /// Where in it: the first byte of what is wrong, behind its end if a reference leads there.
    pub offset: usize,
    /// What is there.
    pub what: &'static str,
    /// What is wrong with it.
    pub fault: Fault,
}

/// What can be wrong with a part of a table.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// What it is part of ends before it does.
    #[error("needs {needed} bytes where there are {available}")]
    Truncated {
        /// How many bytes it has.
        needed: usize,
        /// How many there are.
        available: usize,
    },
    /// It says that it has a length that none of its kind can have.
    #[error("cannot have a length of {len}")]
    Length {
        /// The length that it says.
        len: usize,
    },
    /// The bytes of the table do not add up to 0.
    #[error("add up to {sum:#x}, not to 0")]
    Checksum {
        /// Their sum, modulo 256.
        sum: u8,
    },
    /// It is there a second time, and one at most may be.
    #[error("is there a second time")]
    Duplicate,
    /// It points to where nothing is that it could mean.
    #[error("points to {to:#x}, where nothing is that it could mean")]
    Reference {
        /// What it says.
        to: u64,
    },
    /// Its end is before its start.
    #[error("goes from {first:#x} back to {last:#x}")]
    Reversed {
        /// The start.
        first: u64,
        /// The end.
        last: u64,
    },
    /// It goes beyond the largest number that there is.
    #[error("goes beyond the largest number that there is")]
    Overflow,
    /// It lies over something else.
    #[error("lies over something else")]
    Overlap,
    /// It has a value that has no meaning.
    #[error("cannot be {value:#x}")]
    Value {
        /// The value.
        value: u64,
    },
    /// It is no text: another character than those of ASCII, or no end.
    #[error("is no text with an end")]
    Text,
    /// What it begins is not ended by what follows.
    #[error("has no end")]
    Unfinished,
    /// It would make the description far larger than the table.
    #[error("means more than {limit}")]
    TooMany {
        /// How many there may be.
        limit: usize,
    },
}
