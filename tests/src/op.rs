//! One step of a test on a table.

use iopt_formats::Prot;

use crate::place::{Len, Output, Target};

/// One operation, in numbers that shrink well.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Op {
    /// Map a range to consecutive output.
    Map {
        /// The IOVA.
        target: Target,
        /// The output.
        output: Output,
        /// The rights.
        prot: Prot,
    },
    /// Map a range piece by piece.
    MapRuns {
        /// The IOVA of the first piece.
        target: Target,
        /// Output and length of each piece.
        runs: Vec<(Output, Len)>,
        /// The rights.
        prot: Prot,
    },
    /// Unmap a range that consists of whole entries.
    Unmap {
        /// The IOVA.
        target: Target,
        /// Whether tables go that the range covers.
        detach: bool,
    },
    /// Unmap what there is in a range.
    Clear {
        /// The IOVA.
        target: Target,
        /// Whether tables go that the range covers.
        detach: bool,
    },
    /// Unmap every entry that a range touches.
    UnmapEntries {
        /// The IOVA.
        target: Target,
    },
    /// Change the rights of a range.
    Protect {
        /// The IOVA.
        target: Target,
        /// The new rights.
        prot: Prot,
    },
    /// Divide entries.
    Cut {
        /// The IOVA.
        target: Target,
        /// Number of the page size that they are cut to.
        size: u8,
        /// Number of the break-before-make rule.
        rule: u8,
    },
    /// Join entries.
    Merge {
        /// The IOVA.
        target: Target,
        /// Number of the break-before-make rule.
        rule: u8,
    },
    /// Write through an entry, as a device does.
    Soil {
        /// Number of the entry.
        entry: u16,
        /// Number of the item in it.
        item: u16,
    },
    /// Read and clear what was written.
    TakeDirty {
        /// The IOVA.
        target: Target,
    },
    /// Make the tables for later mappings.
    Reserve {
        /// The IOVA.
        target: Target,
    },
    /// Free the tables that hold nothing.
    Compact {
        /// The IOVA.
        target: Target,
    },
}
