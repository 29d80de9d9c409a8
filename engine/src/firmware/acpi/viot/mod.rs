//! The Virtual I/O Translation table: which endpoints are behind which virtio-iommu.
//!
//! ACPI Specification 6.5, "Virtual I/O Translation Table". Endpoint IDs are those of virtio 1.3, section 5.13.

mod describe;
#[cfg(test)]
mod tests;

use alloc::vec::Vec;

use crate::firmware::acpi::error::{AcpiError, Fault};
use crate::firmware::acpi::table::{Part, Signature};
use crate::topology::{PciAddress, RequesterId};

/// The signature.
pub const SIGNATURE: Signature = Signature(*b"VIOT");

/// The table.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Table {
    /// The revision.
    pub revision: u8,
    /// The nodes, in their order.
    pub nodes: Vec<Node>,
}

/// A node.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Node {
    /// Where it is in the table.
    pub offset: usize,
    /// What it describes.
    pub kind: NodeKind,
}

/// What a node describes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum NodeKind {
    /// PCI functions that are endpoints.
    PciRange(PciRange),
    /// A device in memory that is an endpoint.
    Mmio {
        /// The endpoint ID.
        endpoint: u32,
        /// The first address of its registers.
        base: u64,
        /// The virtio-iommu: its place in [`Table::nodes`].
        output: usize,
    },
    /// A virtio-iommu that is a PCI function.
    IommuPci(
        /// Which.
        PciAddress,
    ),
    /// A virtio-iommu in memory.
    IommuMmio {
        /// The first address of its registers.
        base: u64,
    },
    /// A node that this code does not know.
    Unknown(
        /// Its type.
        u8,
    ),
}

/// PCI functions that are endpoints: the same requester IDs of some segments.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PciRange {
    /// The endpoint ID of the first function of the first segment; the ID of another one is larger by
    /// its distance, where a segment counts 65536.
    pub endpoint: u32,
    /// The first and the last segment.
    pub segments: (u16, u16),
    /// The first and the last function of each of them.
    pub requesters: (RequesterId, RequesterId),
    /// The virtio-iommu: its place in [`Table::nodes`].
    pub output: usize,
}

impl Table {
    /// Parses the table.
    ///
    /// # Errors
    ///
    /// Says which node is wrong, and why.
    pub fn parse(bytes: &[u8]) -> Result<Self, AcpiError> {
        let (table, revision) = Part::open(SIGNATURE, bytes)?;
        table.need(48, "the table")?;
        let count = table.u16(36, "the number of nodes")?;
        let start = table.u16(38, "the offset of the nodes")?;
        if start < 48 && count != 0 {
            return Err(table.error(38, "the offset of the nodes", Fault::Overlap));
        }
        let mut rest = table.rest(start.into());
        let mut parts = Vec::new();
        for _ in 0..count {
            rest.need(4, "a node")?;
            let len = rest.u16(2, "the length of a node")?;
            let least = match rest.u8(0, "the type of a node")? {
                1 | 2 => 24,
                3 | 4 => 16,
                _ => 4,
            };
            parts.push(rest.split(len.into(), least, "a node")?);
        }
        let mut nodes = Vec::with_capacity(parts.len());
        for node in &parts {
            nodes.push(Node {
                offset: node.offset(),
                kind: NodeKind::parse(node, &parts)?,
            });
        }
        Ok(Self { revision, nodes })
    }
}

impl NodeKind {
    fn parse(node: &Part<'_>, nodes: &[Part<'_>]) -> Result<Self, AcpiError> {
        Ok(match node.u8(0, "the type of a node")? {
            1 => {
                let segments = ordered(node, 8, "the segments")?;
                let (first, last) = ordered(node, 12, "the functions")?;
                Self::PciRange(PciRange {
                    endpoint: node.u32(4, "the first endpoint")?,
                    segments,
                    requesters: (RequesterId::new(first), RequesterId::new(last)),
                    output: output(node, nodes)?,
                })
            }
            2 => Self::Mmio {
                endpoint: node.u32(4, "the endpoint")?,
                base: node.u64(8, "the base address")?,
                output: output(node, nodes)?,
            },
            3 => Self::IommuPci(PciAddress {
                segment: node.u16(4, "the segment")?,
                requester: RequesterId::new(node.u16(6, "the function")?),
            }),
            4 => Self::IommuMmio {
                base: node.u64(8, "the base address")?,
            },
            kind => Self::Unknown(kind),
        })
    }
}

/// Reads the first and the last of a range.
fn ordered(node: &Part<'_>, at: usize, what: &'static str) -> Result<(u16, u16), AcpiError> {
    let first = node.u16(at, what)?;
    let last = node.u16(at.saturating_add(2), what)?;
    if last < first {
        let (first, last) = (first.into(), last.into());
        return Err(node.error(at, what, Fault::Reversed { first, last }));
    }
    Ok((first, last))
}

/// Reads where in the table a virtio-iommu is, and returns which node is there.
fn output(node: &Part<'_>, nodes: &[Part<'_>]) -> Result<usize, AcpiError> {
    let what = "the output node";
    let to = node.u16(16, what)?;
    let is_iommu = |index: &usize| {
        let kind = nodes.get(*index).map(|target| target.u8(0, what));
        matches!(kind, Some(Ok(3 | 4)))
    };
    nodes
        .binary_search_by_key(&usize::from(to), Part::offset)
        .ok()
        .filter(is_iommu)
        .ok_or_else(|| node.error(16, what, Fault::Reference { to: to.into() }))
}
