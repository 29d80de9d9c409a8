//! The book-keeping of an enumeration: limits, loops, strictness.

use std::error::Error;
use std::fmt;

use crate::{Fault, Memory, Setup, Translation};

/// One leaf item that an enumeration found.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Item {
    /// First input address.
    pub iova: u64,
    /// Bytes that the item translates.
    pub len: u64,
    /// The translation of `iova`.
    pub translation: Translation,
}

/// What an enumeration does with entries that are present but wrong.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Rigour {
    /// Leave them out, as hardware faults there: for tables of others.
    Lenient,
    /// Stop at the first, and at the first group of contiguous items that disagree, because
    /// hardware may use any of them: for tables that must be right.
    Strict,
}

/// Why an enumeration stopped. The items reported before it are right.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ScanError {
    /// A table is its own ancestor.
    Loop {
        /// Address of the table.
        table: u64,
    },
    /// There are more leaf items, or more tables, than allowed.
    Limit {
        /// The limit.
        limit: u64,
    },
    /// There is no memory where a table should be.
    MissingMemory {
        /// Address of the word.
        address: u64,
    },
    /// An entry is present and hardware would fault on it.
    Faulty {
        /// First input address of the entry.
        iova: u64,
        /// What hardware reports.
        fault: Fault,
    },
    /// An item of a contiguous group does not agree with the group's first item.
    Inconsistent {
        /// First input address of the item.
        iova: u64,
        /// The group's first item.
        first: u64,
        /// The item.
        word: u64,
    },
    /// The configuration is not legal.
    Setup(Setup),
}

impl fmt::Display for ScanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loop { table } => write!(f, "the table at {table:#x} is its own ancestor"),
            Self::Limit { limit } => write!(f, "more than {limit} leaf items or tables"),
            Self::MissingMemory { address } => write!(f, "no memory at {address:#x}"),
            Self::Faulty { iova, fault } => write!(f, "iova {iova:#x}: {fault}"),
            Self::Inconsistent { iova, first, word } => {
                write!(
                    f,
                    "iova {iova:#x}: item {word:#x} disagrees with {first:#x}, the first of its group"
                )
            }
            Self::Setup(setup) => setup.fmt(f),
        }
    }
}

impl Error for ScanError {}

/// An enumeration under way.
pub(crate) struct Scan<'a, M: ?Sized, F> {
    memory: &'a M,
    limit: u64,
    tables: u64,
    items: u64,
    rigour: Rigour,
    /// Addresses of the tables from the root to the one being read.
    path: Vec<u64>,
    callback: F,
}

impl<'a, M: Memory + ?Sized, F: FnMut(Item)> Scan<'a, M, F> {
    pub(crate) fn new(memory: &'a M, limit: u64, rigour: Rigour, callback: F) -> Self {
        Self {
            memory,
            limit,
            tables: 0,
            items: 0,
            rigour,
            path: Vec::new(),
            callback,
        }
    }

    /// Notes that `table` is read next. Without the count of tables, a few tables that point at
    /// each other often enough would hold no leaf and yet cost 512 to the power of the levels.
    pub(crate) fn enter(&mut self, table: u64) -> Result<(), ScanError> {
        if self.path.contains(&table) {
            return Err(ScanError::Loop { table });
        }
        self.tables += 1;
        if self.tables > self.limit {
            return Err(ScanError::Limit { limit: self.limit });
        }
        self.path.push(table);
        Ok(())
    }

    /// Notes that the table entered last is done.
    pub(crate) fn leave(&mut self) {
        self.path.pop();
    }

    pub(crate) fn word(&self, address: u64) -> Result<u64, ScanError> {
        self.memory
            .read64(address)
            .ok_or(ScanError::MissingMemory { address })
    }

    pub(crate) fn is_strict(&self) -> bool {
        self.rigour == Rigour::Strict
    }

    /// Reports the leaf item that starts at `iova`.
    pub(crate) fn leaf(&mut self, iova: u64, translation: Translation) -> Result<(), ScanError> {
        self.items += 1;
        if self.items > self.limit {
            return Err(ScanError::Limit { limit: self.limit });
        }
        (self.callback)(Item {
            iova,
            len: translation.item_len,
            translation,
        });
        Ok(())
    }

    /// Weighs an entry at `iova` that hardware does not translate.
    pub(crate) fn fault(&self, iova: u64, fault: Fault) -> Result<(), ScanError> {
        match fault {
            Fault::Setup(setup) => Err(ScanError::Setup(setup)),
            Fault::MissingMemory { address } => Err(ScanError::MissingMemory { address }),
            Fault::NotMapped { .. } => Ok(()),
            _ if self.is_strict() => Err(ScanError::Faulty { iova, fault }),
            _ => Ok(()),
        }
    }
}
