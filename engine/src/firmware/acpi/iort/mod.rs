//! The IO Remapping Table of Arm systems.
//!
//! Arm DEN 0049, revisions 0 to 6 of the table. A node describes an SMMU, an ITS group, a root complex or
//! another device, and its ID mappings say where the IDs of its requests go: from a device to an SMMU or
//! straight to an ITS group, from an SMMU to an ITS group. No other direction is accepted, so following
//! references always ends. What goes to a node of a later revision's kind is behind nobody knows what.

mod describe;
#[cfg(test)]
mod tests;

use alloc::string::String;
use alloc::vec::Vec;

use crate::firmware::acpi::error::{AcpiError, Fault};
use crate::firmware::acpi::table::{Part, Signature, Uses};

/// The signature.
pub const SIGNATURE: Signature = Signature(*b"IORT");

/// The table.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Table {
    /// The revision.
    pub revision: u8,
    /// The nodes, in their order.
    pub nodes: Vec<Node>,
}

/// A node.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Node {
    /// Where it is in the table.
    pub offset: usize,
    /// The revision of its kind of node.
    pub revision: u8,
    /// Its number, since revision 3 of the table; reserved before.
    pub identifier: u32,
    /// What it describes.
    pub kind: NodeKind,
    /// Where its IDs go.
    pub mappings: Vec<IdMapping>,
}

/// A range of IDs, and where it goes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct IdMapping {
    /// Where it is in the table.
    pub offset: usize,
    /// The first ID that comes in.
    pub first: u32,
    /// The last one. The table counts the IDs less one.
    pub last: u32,
    /// What the first one becomes.
    pub output: u32,
    /// The node that it goes to: its place in [`Table::nodes`].
    pub target: usize,
    /// Whether there is but the one output, whatever comes in.
    pub is_single: bool,
}

/// What a node describes.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum NodeKind {
    /// Interrupt translation services.
    ItsGroup {
        /// Their numbers, as the interrupt controllers' table has them.
        identifiers: Vec<u32>,
    },
    /// A device of the namespace.
    NamedComponent(NamedComponent),
    /// A PCI root complex.
    RootComplex(RootComplex),
    /// An SMMU before version 3.
    Smmu(Smmu),
    /// An SMMU of version 3.
    Smmuv3(Smmuv3),
    /// Performance counters.
    Pmcg(Pmcg),
    /// Memory that devices use already.
    ReservedMemory(ReservedMemory),
    /// A node that this code does not know.
    Unknown(
        /// Its type.
        u8,
    ),
}

/// How a device reaches memory.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct MemoryAccess {
    /// Whether it is fully coherent (CCA).
    pub is_coherent: bool,
    /// The allocation hints.
    pub hints: u8,
    /// Bit 0: the path is coherent (CPM), bit 1: so are the device's attributes (DACS), bit 2: cached
    /// writes need no help (CANWBS).
    pub flags: u8,
}

/// A device of the namespace.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NamedComponent {
    /// Bit 0: it can wait for a fault to be handled; bits 5:1: how many bits of a PASID it has.
    pub flags: u32,
    /// How it reaches memory.
    pub access: MemoryAccess,
    /// How many bits of an address it has; 0 is an error of the firmware.
    pub address_bits: u8,
    /// Its path in the namespace.
    pub name: String,
}

/// A PCI root complex.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RootComplex {
    /// How it reaches memory.
    pub access: MemoryAccess,
    /// Bit 0: it supports ATS, bit 1: page requests, bit 2: it forwards PASIDs.
    pub ats: u32,
    /// The segment; no other root complex has it.
    pub segment: u32,
    /// How many bits of an address it has, since revision 1 of the node; 0 is an error of the firmware.
    pub address_bits: Option<u8>,
}

/// An interrupt of an SMMU.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Interrupt {
    /// Its number.
    pub gsiv: u32,
    /// Bit 0: it is an edge, not a level.
    pub flags: u32,
}

/// An SMMU before version 3.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Smmu {
    /// The address of its registers.
    pub base: u64,
    /// How many bytes of them.
    pub span: u64,
    /// Its model.
    pub model: u32,
    /// Whether broadcasts of the processors' TLB invalidations reach it.
    pub has_broadcasts: bool,
    /// Whether its walks are coherent.
    pub is_coherent: bool,
    /// The interrupts of global faults: of translation and of configuration.
    pub global_interrupts: Vec<Interrupt>,
    /// One for each context.
    pub context_interrupts: Vec<Interrupt>,
    /// Those of its counters.
    pub counter_interrupts: Vec<Interrupt>,
}

/// An SMMU of version 3.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Smmuv3 {
    /// The address of its registers.
    pub base: u64,
    /// Bit 0: coherent (COHACC override), bits 2:1: hardware update of flags, bit 3: the proximity domain is
    /// valid, bit 4: the device ID mapping index is valid (since revision 5 of the node).
    pub flags: u32,
    /// The address of its address translation operations; 0 is none.
    pub vatos: u64,
    /// Its model.
    pub model: u32,
    /// Its wired interrupts: events, page requests, global errors, syncs; 0 is none.
    pub interrupts: [u32; 4],
    /// The proximity domain.
    pub proximity: u32,
    /// Which of its ID mappings is that of its own interrupts.
    pub own_mapping: Option<usize>,
}

/// Performance counters.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Pmcg {
    /// The address of the first page of registers.
    pub base: u64,
    /// The interrupt; 0 is none.
    pub interrupt: u32,
    /// What it counts for: its place in [`Table::nodes`].
    pub node: usize,
    /// The address of the second page, since revision 1 of the node.
    pub second: Option<u64>,
}

/// Memory that devices use already; its ID mappings name the streams.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ReservedMemory {
    /// Bit 0: it may be mapped elsewhere, bit 1: requests are privileged, bits 9:2: memory attributes.
    pub flags: u32,
    /// Where.
    pub ranges: Vec<ReservedRange>,
}

/// A range of memory.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ReservedRange {
    /// Where it is in the table.
    pub offset: usize,
    /// The first byte.
    pub base: u64,
    /// How many bytes.
    pub len: u64,
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
        let count = table.u32(36, "the number of nodes")?;
        let start = table.u32(40, "the offset of the nodes")?;
        if start < 48 && count != 0 {
            return Err(table.error(40, "the offset of the nodes", Fault::Overlap));
        }
        let mut rest = table.rest(start as usize);
        let mut parts = Vec::new();
        for _ in 0..count {
            rest.need(16, "a node")?;
            let len = rest.u16(1, "the length of a node")?;
            parts.push(rest.split(len.into(), 16, "a node")?);
        }
        let mut nodes = Vec::with_capacity(parts.len());
        for part in &parts {
            nodes.push(Node::parse(part, &parts)?);
        }
        let table = Self { revision, nodes };
        table.check_directions()?;
        Ok(table)
    }

    /// Follows an ID on its way from a node: returns what it becomes, and the place of the node that it
    /// goes to.
    ///
    /// The first mapping that has the ID counts. But where the ID is the last one of several, firmware may
    /// have counted the IDs themselves and not the IDs less one: then a later mapping that begins with it
    /// counts instead, and any other is ignored. The mapping of an SMMU's own interrupts counts for no
    /// other ID.
    pub fn map(&self, node: usize, id: u32) -> Option<(u32, usize)> {
        let node = self.nodes.get(node)?;
        let mut ended = None;
        for (index, mapping) in node.mappings.iter().enumerate() {
            if node.is_skipped(index) {
                continue;
            }
            if mapping.is_single {
                return Some((mapping.output, mapping.target));
            }
            if !(mapping.first..=mapping.last).contains(&id)
                || (ended.is_some() && id != mapping.first)
            {
                continue;
            }
            let output = mapping.output.checked_add(id - mapping.first)?;
            if mapping.first == mapping.last || id != mapping.last {
                return Some((output, mapping.target));
            }
            ended = Some((output, mapping.target));
        }
        ended
    }

    /// Checks that IDs go from devices to SMMUs and interrupt controllers, and from SMMUs to interrupt
    /// controllers.
    fn check_directions(&self) -> Result<(), AcpiError> {
        use NodeKind::{ItsGroup, NamedComponent, ReservedMemory, RootComplex, Unknown};

        for node in &self.nodes {
            for mapping in &node.mappings {
                let target = self.nodes.get(mapping.target);
                let is_smmu = target.is_some_and(Node::is_smmu);
                // Nobody knows what that does with IDs: `describe` says so of them.
                let is_unknown = target.is_some_and(|target| matches!(target.kind, Unknown(_)));
                let is_its = target.is_some_and(|target| matches!(target.kind, ItsGroup { .. }));
                let is_right = match node.kind {
                    RootComplex(_) | NamedComponent(_) => is_smmu || is_its || is_unknown,
                    ReservedMemory(_) => is_smmu,
                    Unknown(_) => true,
                    ItsGroup { .. } => false,
                    NodeKind::Smmu(_) | NodeKind::Smmuv3(_) | NodeKind::Pmcg(_) => is_its,
                };
                if !is_right {
                    let to = target.map_or(0, |target| target.offset) as u64;
                    return Err(AcpiError {
                        table: SIGNATURE,
                        offset: mapping.offset.saturating_add(12),
                        what: "an output reference",
                        fault: Fault::Reference { to },
                    });
                }
            }
        }
        Ok(())
    }
}

impl Node {
    fn parse(node: &Part<'_>, nodes: &[Part<'_>]) -> Result<Self, AcpiError> {
        let revision = node.u8(3, "the revision of a node")?;
        let count = node.u32(8, "the number of ID mappings")?;
        let start = node.u32(12, "the offset of the ID mappings")?;
        let kind = node.u8(0, "the type of a node")?;
        let fixed = match (kind, revision) {
            (0, _) => 20,
            (1, _) => 29,
            (2 | 5, 0) => 32,
            (2, _) => 33,
            (3, _) | (4, 0) => 60,
            (4, _) => 68,
            (5, _) => 40,
            (6, _) => 28,
            _ => 16,
        };
        let fixed = match kind {
            // The name is part of what is fixed, with its zero.
            1 => node
                .text(29, "the name of a device")
                .map_or(fixed, |name| fixed + name.len() + 1),
            _ => fixed,
        };
        let mut uses = Uses::new(*node, fixed, "a node")?;
        let mut mappings = Vec::new();
        for mapping in uses.array(start, count, 20, "ID mappings")? {
            mappings.push(IdMapping::parse(&mapping, nodes)?);
        }
        let kind = match kind {
            0 => {
                let count = node.u32(16, "the number of ITSs")?;
                let identifiers = uses.array(20, count, 4, "ITS identifiers")?;
                NodeKind::ItsGroup {
                    identifiers: identifiers
                        .map(|identifier| identifier.u32(0, "an ITS identifier"))
                        .collect::<Result<_, _>>()?,
                }
            }
            1 => NodeKind::NamedComponent(NamedComponent {
                flags: node.u32(16, "flags")?,
                access: MemoryAccess::parse(node, 20)?,
                address_bits: node.u8(28, "the address limit")?,
                name: node.text(29, "the name of a device")?,
            }),
            2 => NodeKind::RootComplex(RootComplex {
                access: MemoryAccess::parse(node, 16)?,
                ats: node.u32(24, "the ATS attribute")?,
                segment: node.u32(28, "the segment")?,
                address_bits: match revision {
                    0 => None,
                    _ => Some(node.u8(32, "the address limit")?),
                },
            }),
            3 => NodeKind::Smmu(Smmu::parse(node, &mut uses)?),
            4 => NodeKind::Smmuv3(Smmuv3::parse(node, revision, mappings.len())?),
            5 => NodeKind::Pmcg(Pmcg {
                base: node.u64(16, "the base address")?,
                interrupt: node.u32(24, "the interrupt")?,
                node: reference(node, 28, "the node reference", nodes)?,
                second: match revision {
                    0 => None,
                    _ => Some(node.u64(32, "the second base address")?),
                },
            }),
            6 => NodeKind::ReservedMemory(ReservedMemory::parse(node, &mut uses)?),
            _ => NodeKind::Unknown(kind),
        };
        Ok(Self {
            offset: node.offset(),
            revision,
            identifier: node.u32(4, "the identifier")?,
            kind,
            mappings,
        })
    }

    const fn is_smmu(&self) -> bool {
        matches!(self.kind, NodeKind::Smmu(_) | NodeKind::Smmuv3(_))
    }

    /// Returns whether one of its mappings is not for IDs that come in: the one of its own interrupts, or
    /// one with a single output where only devices may have such.
    fn is_skipped(&self, mapping: usize) -> bool {
        let own = match &self.kind {
            NodeKind::Smmuv3(smmu) => smmu.own_mapping,
            NodeKind::Pmcg(_) => Some(0),
            _ => None,
        };
        let is_device = matches!(
            self.kind,
            NodeKind::NamedComponent(_) | NodeKind::RootComplex(_)
        );
        let is_single = self
            .mappings
            .get(mapping)
            .is_some_and(|mapping| mapping.is_single);
        own == Some(mapping) || (is_single && !is_device)
    }
}

impl IdMapping {
    fn parse(mapping: &Part<'_>, nodes: &[Part<'_>]) -> Result<Self, AcpiError> {
        let first = mapping.u32(0, "the input base")?;
        let more = mapping.u32(4, "the number of IDs")?;
        let is_single = mapping.u32(16, "flags")? & 1 != 0;
        let last = match first.checked_add(more) {
            Some(last) => last,
            // It has no inputs.
            None if is_single => u32::MAX,
            None => return Err(mapping.error(4, "the number of IDs", Fault::Overflow)),
        };
        Ok(Self {
            offset: mapping.offset(),
            first,
            last,
            output: mapping.u32(8, "the output base")?,
            target: reference(mapping, 12, "an output reference", nodes)?,
            is_single,
        })
    }
}

/// Reads where in the table a node is, and returns which one is there.
fn reference(
    part: &Part<'_>,
    at: usize,
    what: &'static str,
    nodes: &[Part<'_>],
) -> Result<usize, AcpiError> {
    let to = part.u32(at, what)?;
    nodes
        .binary_search_by_key(&(to as usize), Part::offset)
        .map_err(|_| part.error(at, what, Fault::Reference { to: to.into() }))
}

impl MemoryAccess {
    fn parse(node: &Part<'_>, at: usize) -> Result<Self, AcpiError> {
        let access = node.part(at, 8, "memory access properties")?;
        Ok(Self {
            is_coherent: access.u32(0, "cache coherency")? & 1 != 0,
            hints: access.u8(4, "allocation hints")?,
            flags: access.u8(7, "memory access flags")?,
        })
    }
}

impl Smmu {
    fn parse<'a>(node: &Part<'a>, uses: &mut Uses<'a>) -> Result<Self, AcpiError> {
        let flags = node.u32(36, "flags")?;
        let global = node.u32(40, "the offset of global interrupts")?;
        let mut interrupts = |at, count, what| {
            uses.array(at, count, 8, what)?
                .map(|interrupt| {
                    Ok(Interrupt {
                        gsiv: interrupt.u32(0, what)?,
                        flags: interrupt.u32(4, what)?,
                    })
                })
                .collect::<Result<Vec<_>, AcpiError>>()
        };
        Ok(Self {
            base: node.u64(16, "the base address")?,
            span: node.u64(24, "the span")?,
            model: node.u32(32, "the model")?,
            has_broadcasts: flags & 1 != 0,
            is_coherent: flags & 2 != 0,
            global_interrupts: match global {
                0 => Vec::new(),
                _ => interrupts(global, 2, "global interrupts")?,
            },
            context_interrupts: interrupts(
                node.u32(48, "the offset of context interrupts")?,
                node.u32(44, "the number of context interrupts")?,
                "context interrupts",
            )?,
            counter_interrupts: interrupts(
                node.u32(56, "the offset of counter interrupts")?,
                node.u32(52, "the number of counter interrupts")?,
                "counter interrupts",
            )?,
        })
    }
}

impl Smmuv3 {
    fn parse(node: &Part<'_>, revision: u8, mappings: usize) -> Result<Self, AcpiError> {
        let what = "an interrupt";
        let interrupts = [
            node.u32(44, what)?,
            node.u32(48, what)?,
            node.u32(52, what)?,
            node.u32(56, what)?,
        ];
        let flags = node.u32(24, "flags")?;
        // Until revision 5 the index was valid unless all interrupts had wires.
        let has_own = match revision {
            0 => false,
            1..=4 => interrupts.contains(&0),
            _ => flags & 1 << 4 != 0,
        };
        let (proximity, index) = match revision {
            0 => (0, 0),
            _ => (
                node.u32(60, "the proximity domain")?,
                node.u32(64, "the ID mapping index")?,
            ),
        };
        Ok(Self {
            base: node.u64(16, "the base address")?,
            flags,
            vatos: node.u64(32, "the address of translation operations")?,
            model: node.u32(40, "the model")?,
            interrupts,
            proximity,
            own_mapping: Some(index as usize).filter(|index| has_own && *index < mappings),
        })
    }
}

impl ReservedMemory {
    fn parse<'a>(node: &Part<'a>, uses: &mut Uses<'a>) -> Result<Self, AcpiError> {
        let count = node.u32(20, "the number of memory ranges")?;
        let start = node.u32(24, "the offset of memory ranges")?;
        let mut ranges = Vec::new();
        for range in uses.array(start, count, 20, "memory ranges")? {
            ranges.push(ReservedRange {
                offset: range.offset(),
                base: range.u64(0, "the base address")?,
                len: range.u64(8, "the length")?,
            });
        }
        Ok(Self {
            flags: node.u32(16, "flags")?,
            ranges,
        })
    }
}
