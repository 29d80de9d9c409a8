//! Flattened device trees: a reader of the binary form, the Devicetree Specification v0.4, chapter 5.
//!
//! It is own code because the readers on crates.io are under the MPL or panic on what is malformed, and
//! what is needed is small: a walk over tokens, with the place of every error.
//!
//! Nothing is copied: names and values are slices of the blob. Work is linear in the size of the blob
//! (times a logarithm where properties are looked up), nesting and the length of names are limited, and
//! every offset and length of the blob is checked before it is used.

mod error;
mod events;
mod nodes;
#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) mod writer;

pub use crate::firmware::fdt::error::FdtError;
pub use crate::firmware::fdt::events::{Event, Events, Property};
pub use crate::firmware::fdt::nodes::{NodeId, Nodes};

/// How deep nodes may be nested, the root counted.
pub const MAX_DEPTH: usize = 64;
/// How long a name may be, in bytes. The specification allows 31 characters and a unit address.
pub const MAX_NAME: usize = 255;

const MAGIC: u32 = 0xd00d_feed;
/// The version that this reader knows (5.2, `version`).
const KNOWN_VERSION: u32 = 17;
/// The oldest version whose structure block is as described here.
const OLDEST_VERSION: u32 = 16;

/// A flattened device tree whose header is in order.
#[derive(Clone, Copy, Debug)]
pub struct Tree<'a> {
    blob: &'a [u8],
    structure: Block<'a>,
    strings: Block<'a>,
    reservations: Block<'a>,
}

/// A part of the blob.
#[derive(Clone, Copy, Debug)]
struct Block<'a> {
    name: &'static str,
    bytes: &'a [u8],
    /// Where it begins in the blob, for errors.
    offset: usize,
}

/// Memory that software must not use, whatever for: an entry of the memory reservation block (5.3).
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Reservation {
    /// The first physical address.
    pub address: u64,
    /// How many bytes.
    pub size: u64,
}

impl<'a> Tree<'a> {
    /// Checks the header (5.2) of the tree that begins with the blob. Bytes behind its total size are
    /// not looked at.
    ///
    /// # Errors
    ///
    /// [`FdtError`] if the blob is no device tree of version 16 or 17, or a block of it is misplaced.
    pub fn new(blob: &'a [u8]) -> Result<Self, FdtError> {
        let header = Block {
            name: "header",
            bytes: blob,
            offset: 0,
        };
        let magic = header.word(0)?;
        if magic != MAGIC {
            return Err(FdtError::Magic { found: magic });
        }
        let (version, compatible) = (header.word(20)?, header.word(24)?);
        if version < OLDEST_VERSION || compatible > KNOWN_VERSION {
            return Err(FdtError::Version {
                version,
                compatible,
            });
        }
        let has_structure_size = version >= 17;
        let header_len = if has_structure_size { 40 } else { 36 };
        let total = header.size(4)?;
        let whole = header.part("tree", 0, total)?;
        whole.part("header", 0, header_len)?;

        let (at, strings_at) = (whole.size(8)?, whole.size(12)?);
        let reservations_at = whole.size(16)?;
        let strings = whole.part("strings block", strings_at, whole.size(32)?)?;
        let structure = if has_structure_size {
            whole.part("structure block", at, whole.size(36)?)?
        } else {
            whole.rest("structure block", at)?
        };
        let reservations = whole.rest("memory reservation block", reservations_at)?;
        for (block, alignment) in [(&structure, 4), (&reservations, 8)] {
            if block.offset % alignment != 0 {
                return Err(FdtError::Alignment {
                    structure: block.name,
                    offset: block.offset,
                });
            }
        }
        for block in [&structure, &strings, &reservations] {
            if block.offset < header_len {
                return Err(FdtError::Overlap {
                    first: "header",
                    second: block.name,
                    offset: block.offset,
                });
            }
        }
        // Without a size the structure block ends where its last token does.
        let sized = has_structure_size.then_some(&structure);
        let used = reservations.used();
        let pairs = [
            (sized, Some(&strings)),
            (used.as_ref(), sized),
            (used.as_ref(), Some(&strings)),
        ];
        for pair in pairs {
            if let (Some(first), Some(second)) = pair
                && first.overlaps(second)
            {
                return Err(FdtError::Overlap {
                    first: first.name,
                    second: second.name,
                    offset: second.offset,
                });
            }
        }
        Ok(Self {
            blob: whole.bytes,
            structure,
            strings,
            reservations,
        })
    }

    /// Returns the bytes of the tree.
    pub fn as_bytes(&self) -> &'a [u8] {
        self.blob
    }

    /// Walks the memory reservation block, up to its empty entry. Stops after an error.
    pub fn reservations(&self) -> impl Iterator<Item = Result<Reservation, FdtError>> + use<'a> {
        let block = self.reservations;
        let mut next = Some(0);
        core::iter::from_fn(move || {
            let at = next.take()?;
            match block.reservation(at) {
                Ok(Reservation {
                    address: 0,
                    size: 0,
                }) => None,
                Ok(entry) => {
                    next = Some(at + 16);
                    Some(Ok(entry))
                }
                Err(error) => Some(Err(error)),
            }
        })
    }

    /// Walks the structure block (5.4). Stops after an error.
    pub fn events(&self) -> Events<'a> {
        Events::new(self.structure, self.strings)
    }

    /// Reads all nodes.
    ///
    /// # Errors
    ///
    /// [`FdtError`] if the structure block is malformed.
    pub fn nodes(&self) -> Result<Nodes<'a>, FdtError> {
        Nodes::new(self.events())
    }
}

impl<'a> Block<'a> {
    /// The `len` bytes at `at`.
    fn bytes(&self, at: usize, len: usize) -> Result<&'a [u8], FdtError> {
        let end = at.checked_add(len);
        end.and_then(|end| self.bytes.get(at..end))
            .ok_or(FdtError::Truncated {
                structure: self.name,
                offset: self.offset.saturating_add(at),
                needed: len,
                available: self.bytes.len().saturating_sub(at),
            })
    }

    /// The big-endian word at `at`.
    fn word(&self, at: usize) -> Result<u32, FdtError> {
        let mut word = [0; 4];
        word.copy_from_slice(self.bytes(at, 4)?);
        Ok(u32::from_be_bytes(word))
    }

    /// The word at `at`, as an offset or a length.
    fn size(&self, at: usize) -> Result<usize, FdtError> {
        Ok(usize::try_from(self.word(at)?).unwrap_or(usize::MAX))
    }

    fn reservation(&self, at: usize) -> Result<Reservation, FdtError> {
        self.bytes(at, 16)?;
        let double = |at| Ok((u64::from(self.word(at)?) << 32) | u64::from(self.word(at + 4)?));
        Ok(Reservation {
            address: double(at)?,
            size: double(at + 8)?,
        })
    }

    /// The `len` bytes at `at` as a block of their own.
    fn part(&self, name: &'static str, at: usize, len: usize) -> Result<Self, FdtError> {
        let named = Self { name, ..*self };
        Ok(Self {
            name,
            bytes: named.bytes(at, len)?,
            offset: self.offset.saturating_add(at),
        })
    }

    /// All from `at` as a block of its own.
    fn rest(&self, name: &'static str, at: usize) -> Result<Self, FdtError> {
        self.part(name, at, self.bytes.len().saturating_sub(at))
    }

    /// The part of a memory reservation block up to its empty entry; `None` if it has none, which whoever
    /// walks it is told.
    fn used(&self) -> Option<Self> {
        let mut entries = self.bytes.chunks_exact(16);
        let len = entries
            .position(|entry| entry.iter().all(|byte| *byte == 0))?
            .checked_add(1)?
            .checked_mul(16)?;
        self.part(self.name, 0, len).ok()
    }

    fn overlaps(&self, other: &Self) -> bool {
        let is_empty = self.bytes.is_empty() || other.bytes.is_empty();
        !is_empty
            && self.offset < other.offset + other.bytes.len()
            && other.offset < self.offset + self.bytes.len()
    }

    /// The name at `at`, up to its zero byte.
    fn name(&self, at: usize) -> Result<&'a str, FdtError> {
        let refused = || FdtError::Name {
            structure: self.name,
            offset: self.offset.saturating_add(at),
        };
        let bytes = self.bytes.get(at..).ok_or_else(refused)?;
        let bytes = &bytes[..bytes.len().min(MAX_NAME + 1)];
        let len = bytes.iter().position(|byte| *byte == 0);
        let name = &bytes[..len.ok_or_else(refused)?];
        if !name.iter().all(|byte| matches!(byte, b' '..=b'~')) {
            return Err(refused());
        }
        core::str::from_utf8(name).map_err(|_| refused())
    }
}
