//! What is wrong with a flattened device tree.

use crate::firmware::fdt::{MAX_DEPTH, MAX_NAME};

/// A blob is no flattened device tree. Offsets are in bytes from its beginning.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum FdtError {
    /// A structure is longer than the blob or the block that it is in.
    #[error("{structure}: {needed} bytes at byte {offset}, where there are {available}")]
    Truncated {
        /// The structure.
        structure: &'static str,
        /// Where it begins.
        offset: usize,
        /// How long it is.
        needed: usize,
        /// How much is there.
        available: usize,
    },
    /// It does not begin as a device tree does.
    #[error("{found:#010x} is not the magic number of a device tree")]
    Magic {
        /// Its first word.
        found: u32,
    },
    /// It is of a version before 16, or readers of version 17 do not understand it.
    #[error("device tree of version {version}, for readers of version {compatible}")]
    Version {
        /// Its version.
        version: u32,
        /// The version that it is compatible with.
        compatible: u32,
    },
    /// A block is not aligned.
    #[error("{structure} at byte {offset} is not aligned")]
    Alignment {
        /// The block.
        structure: &'static str,
        /// Where it begins.
        offset: usize,
    },
    /// Two blocks have bytes in common.
    #[error("{second} at byte {offset} overlaps the {first}")]
    Overlap {
        /// The one.
        first: &'static str,
        /// The other.
        second: &'static str,
        /// Where the other begins.
        offset: usize,
    },
    /// A name has no end within 255 bytes, or has characters that no name has.
    #[error("{structure}: no name of at most {MAX_NAME} characters at byte {offset}")]
    Name {
        /// The block.
        structure: &'static str,
        /// Where the name begins.
        offset: usize,
    },
    /// There is no such token.
    #[error("{token:#x} at byte {offset} is no token")]
    Token {
        /// Where.
        offset: usize,
        /// What is there.
        token: u32,
    },
    /// Nodes are nested too deeply.
    #[error("the node at byte {offset} is nested in {MAX_DEPTH} others or more")]
    Depth {
        /// Where the node begins.
        offset: usize,
    },
    /// A property is outside of all nodes, or behind a child of its node.
    #[error("a property has no place at byte {offset}")]
    Property {
        /// Where the property begins.
        offset: usize,
    },
    /// A node ends that did not begin, or the block ends before a node does.
    #[error("a node's beginning and end do not match at byte {offset}")]
    Unbalanced {
        /// Where the token is.
        offset: usize,
    },
    /// There is no root, or a second one.
    #[error("a tree has one root, which the token at byte {offset} contradicts")]
    Root {
        /// Where the token is.
        offset: usize,
    },
}
