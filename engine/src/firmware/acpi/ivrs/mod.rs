//! The I/O Virtualization Reporting Structure of AMD systems.
//!
//! AMD 48882, section 5.2. A hardware block (IVHD) describes an IOMMU and whose requests it sees; a memory
//! block (IVMD) describes memory that devices use.

mod describe;
mod entry;
#[cfg(test)]
mod tests;

use alloc::vec::Vec;

use crate::firmware::acpi::error::{AcpiError, Fault};
use crate::firmware::acpi::table::{Part, Signature};
use crate::topology::{PciAddress, RequesterId};

pub use crate::firmware::acpi::ivrs::entry::{Entry, Settings, SpecialKind, Uid};

/// The signature.
pub const SIGNATURE: Signature = Signature(*b"IVRS");

/// The table.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Table {
    /// The revision.
    pub revision: u8,
    /// What all IOMMUs have in common (`IVinfo`). Bit 0: extended features are reported in the blocks, bit
    /// 1: DMA protection is wanted; bits 7:5, 14:8, 21:15: the sizes of guest virtual, physical and
    /// virtual addresses; bit 22: the address range of ATS is reserved.
    pub info: u32,
    /// The hardware blocks of known types, in their order.
    pub hardware: Vec<Hardware>,
    /// The memory blocks of known types, in their order.
    pub memory: Vec<Memory>,
}

/// A hardware block: an IOMMU.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Hardware {
    /// Where it is in the table.
    pub offset: usize,
    /// 0x10, 0x11 or 0x40: the larger one says more.
    pub kind: u8,
    /// Bit 4: it takes requests of device TLBs. Others are what to program: bit 0: tunnelling, bit 1:
    /// posted writes, bit 2: responses to posted writes, bit 3: isochronous, bit 5: coherent walks; bits 6
    /// and 7, of type 0x10 only: prefetches and page requests are supported.
    pub flags: u8,
    /// The PCI function that it is.
    pub address: PciAddress,
    /// Where its capability is in that function's configuration space.
    pub capability: u16,
    /// The address of its registers.
    pub base: u64,
    /// The MSI number of its events in bits 4:0, its unit ID in bits 12:8.
    pub info: u16,
    /// Type 0x10: features; others: attributes.
    pub attributes: u32,
    /// Its extended feature registers, which type 0x10 does not have.
    pub features: Option<[u64; 2]>,
    /// Whose requests it sees.
    pub entries: Vec<Entry>,
}

/// A memory block.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Memory {
    /// Where it is in the table.
    pub offset: usize,
    /// Bit 0: to be mapped to itself, bit 1: readable, bit 2: writable, bit 3: not to be translated.
    pub flags: u8,
    /// The segment.
    pub segment: u16,
    /// The first and the last function that use it.
    pub requesters: (RequesterId, RequesterId),
    /// The first byte.
    pub start: u64,
    /// How many bytes.
    pub len: u64,
}

impl Table {
    /// Parses the table.
    ///
    /// # Errors
    ///
    /// Says which block or entry is wrong, and why.
    pub fn parse(bytes: &[u8]) -> Result<Self, AcpiError> {
        let (table, revision) = Part::open(SIGNATURE, bytes)?;
        table.need(48, "the table")?;
        let mut rest = table.rest(48);
        let (mut hardware, mut memory) = (Vec::new(), Vec::new());
        while rest.len() != 0 {
            rest.need(4, "a block")?;
            let len = rest.u16(2, "the length of a block")?;
            let kind = rest.u8(0, "the type of a block")?;
            let least = match kind {
                0x10 => 24,
                0x11 | 0x40 => 40,
                0x20..=0x22 => 32,
                _ => 4,
            };
            let block = rest.split(len.into(), least, "a block")?;
            match kind {
                0x10 | 0x11 | 0x40 => hardware.push(Hardware::parse(&block, kind, least)?),
                0x20..=0x22 => memory.push(Memory::parse(&block, kind)?),
                _ => {}
            }
        }
        Ok(Self {
            revision,
            info: table.u32(36, "the information field")?,
            hardware,
            memory,
        })
    }
}

impl Hardware {
    fn parse(block: &Part<'_>, kind: u8, fixed: usize) -> Result<Self, AcpiError> {
        let what = "the base address";
        let base = block.u64(8, what)?;
        if base == 0 {
            return Err(block.error(8, what, Fault::Value { value: 0 }));
        }
        let what = "the features";
        Ok(Self {
            offset: block.offset(),
            kind,
            flags: block.u8(1, "the flags")?,
            address: PciAddress {
                segment: block.u16(16, "the segment")?,
                requester: RequesterId::new(block.u16(4, "the function")?),
            },
            capability: block.u16(6, "the offset of the capability")?,
            base,
            info: block.u16(18, "the information field")?,
            attributes: block.u32(20, "the attributes")?,
            features: match kind {
                0x10 => None,
                _ => Some([block.u64(24, what)?, block.u64(32, what)?]),
            },
            entries: Entry::all(&block.rest(fixed))?,
        })
    }

    /// Returns whether it takes requests of device TLBs (`IotlbSup`).
    pub const fn has_device_tlbs(&self) -> bool {
        self.flags & 1 << 4 != 0
    }
}

impl Memory {
    fn parse(block: &Part<'_>, kind: u8) -> Result<Self, AcpiError> {
        let first = block.u16(4, "the function")?;
        let requesters = match kind {
            0x20 => (RequesterId::MIN, RequesterId::MAX),
            0x21 => (RequesterId::new(first), RequesterId::new(first)),
            _ => {
                let last = block.u16(6, "the last function")?;
                if last < first {
                    let (first, last) = (first.into(), last.into());
                    let fault = Fault::Reversed { first, last };
                    return Err(block.error(4, "the functions", fault));
                }
                (RequesterId::new(first), RequesterId::new(last))
            }
        };
        Ok(Self {
            offset: block.offset(),
            flags: block.u8(1, "the flags")?,
            segment: block.u16(8, "the segment")?,
            requesters,
            start: block.u64(16, "the start")?,
            len: block.u64(24, "the length")?,
        })
    }
}
