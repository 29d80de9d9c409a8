//! Sentences of firmware that cannot be read: they are kept, so that who is behind an IOMMU by a
//! sentence that is lost does not pass for one that is behind none.

use alloc::string::String;

use crate::firmware::Subject;

/// A sentence that was left out because it cannot be read.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{property} of {name}, at byte {offset}: {problem}")]
pub struct Flaw {
    /// What it was to say.
    pub topic: Topic,
    /// Whom it was about, as far as that is known.
    pub subject: Option<Subject>,
    /// Where it is: a path in a device tree, or the kind and place of an ACPI structure.
    pub name: String,
    /// The property, or the field.
    pub property: &'static str,
    /// Where that is in the table, in bytes; 0 for one that is missing.
    pub offset: usize,
    /// What is wrong.
    #[source]
    pub problem: Problem,
}

/// What a sentence is to say.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Topic {
    /// Where an instance is.
    Instance,
    /// What a host bridge is.
    Host,
    /// Which instance sees whom.
    Rule,
    /// Which IOVA are not free.
    Region,
    /// How far a device reaches.
    Reach,
    /// How wide the PASIDs of a device are.
    Pasids,
}

/// What is wrong with a sentence.
#[derive(Clone, Debug, Eq, Hash, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// It does not consist of whole entries.
    #[error("{len} bytes are no whole number of entries")]
    Length {
        /// Its length in bytes.
        len: usize,
    },
    /// The number of cells of an entry is missing or too large.
    #[error("{name} of {path} is missing or no number of cells")]
    Cells {
        /// The property that has the number.
        name: &'static str,
        /// The node.
        path: String,
    },
    /// It refers to a node that is not there.
    #[error("no node has the phandle {phandle:#x}")]
    NoSuchNode {
        /// The reference.
        phandle: u32,
    },
    /// It refers to a node that is no IOMMU.
    #[error("the node with the phandle {phandle:#x} is no IOMMU")]
    NoIommu {
        /// The reference.
        phandle: u32,
    },
    /// A range of IDs begins with one that the mask makes impossible.
    #[error("the ID {base:#x} has bits outside of the mask {mask:#x}")]
    BaseOutsideMask {
        /// The first ID.
        base: u32,
        /// The mask.
        mask: u32,
    },
    /// Several IDs map to an IOMMU whose IDs have several cells: which of them counts on is not said.
    #[error("{ids} IDs to an IOMMU with {cells} cells")]
    RangeOfCells {
        /// How many IDs.
        ids: u32,
        /// How many cells.
        cells: u32,
    },
    /// A range does not fit into the numbers that there are.
    #[error("the range at {first:#x} of {len:#x} does not fit")]
    Overflow {
        /// Its first number.
        first: u64,
        /// How many.
        len: u64,
    },
    /// A number is not among those that it may be.
    #[error("{value:#x} is out of range")]
    Value {
        /// The number.
        value: u64,
    },
    /// An address does not lead to the processor's.
    #[error("the address {address:#x} leads nowhere on a bus above")]
    NoTranslation {
        /// The address on its bus.
        address: u64,
    },
    /// A map with a mask, of a bridge that shares its segment: whose IDs they are cannot be told apart.
    #[error("IDs are masked with {mask:#x}, but segment {segment:#x} has several hosts")]
    SharedSegment {
        /// The mask.
        mask: u32,
        /// The segment.
        segment: u16,
    },
    /// There is more of it than is read.
    #[error("more than {limit} entries")]
    TooMany {
        /// How many are read.
        limit: usize,
    },
}
