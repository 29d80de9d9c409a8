//! Properties of an endpoint, which the device writes in answer to a probe.

use super::{need, range, to_bytes, to_words};
use crate::command::CommandError;
use crate::{Bits, IovaRange};

/// A property.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Property {
    /// `RESV_MEM`: addresses that must not be mapped.
    ReservedMemory {
        /// What they are.
        subtype: ReservedMemory,
        /// Which.
        range: IovaRange,
    },
}

/// What reserved addresses are.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[repr(u8)]
pub enum ReservedMemory {
    /// Accesses do not arrive. A driver takes subtypes that it does not know for this one.
    Reserved = 0,
    /// Writes are message signalled interrupts, which arrive untranslated.
    Msi = 1,
}

/// The properties in what the device wrote in answer to a probe, without the tail.
///
/// Ends behind the last property, or behind the first one that is malformed. Properties of unknown types
/// are skipped, as a driver must.
#[derive(Clone, Debug)]
pub struct Properties<'a> {
    rest: &'a [u8],
}

/// Type and length.
const HEAD: usize = 4;
const TYPE: Bits<15, 0> = Bits;
const LEN: Bits<31, 16> = Bits;
const RESERVED_MEMORY: u64 = 1;
/// Bytes of `RESV_MEM` behind its head.
const RESERVED_MEMORY_LEN: usize = 20;
const SUBTYPE: Bits<39, 32> = Bits;

impl Property {
    /// Bytes of a property with its head.
    pub const LEN: usize = HEAD + RESERVED_MEMORY_LEN;

    /// Returns the bytes of the property.
    pub fn encode(&self) -> [u8; Self::LEN] {
        let Self::ReservedMemory { subtype, range } = *self;
        let head = TYPE.put(RESERVED_MEMORY) | LEN.put(RESERVED_MEMORY_LEN as u64);
        let first = head | SUBTYPE.put(subtype as u64);
        to_bytes([first, range.start().get(), range.last().get()])
    }

    /// Decodes a whole property of type `RESV_MEM`.
    fn decode_reserved_memory(bytes: &[u8]) -> Result<Self, CommandError> {
        need(bytes, Self::LEN)?;
        let [first, start, end] = to_words(bytes);
        Ok(Self::ReservedMemory {
            subtype: match SUBTYPE.get(first) {
                1 => ReservedMemory::Msi,
                _ => ReservedMemory::Reserved,
            },
            range: range("end", start, end)?,
        })
    }
}

impl<'a> Properties<'a> {
    /// Reads the properties in `bytes`.
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }
}

impl Iterator for Properties<'_> {
    /// A property, or why none can be read here: [`CommandError::TooShort`] for one that is longer than
    /// what is left, or too short for its type, and [`CommandError::ReservedValue`] for addresses that
    /// end before they start.
    type Item = Result<Property, CommandError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if self.rest.len() < HEAD {
                return None;
            }
            let [head] = to_words(&self.rest[..HEAD]);
            let len = HEAD + LEN.get(head) as usize;
            if TYPE.get(head) == 0 {
                self.rest = &[];
                return None;
            }
            if let Err(error) = need(self.rest, len) {
                self.rest = &[];
                return Some(Err(error));
            }
            let (property, rest) = self.rest.split_at(len);
            self.rest = rest;
            // The upper four bits belong to no type so far: with them it is an unknown one.
            if TYPE.get(head) == RESERVED_MEMORY {
                let property = Property::decode_reserved_memory(property);
                if property.is_err() {
                    self.rest = &[];
                }
                return Some(property);
            }
        }
    }
}
