//! What the nodes say, as rules.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::vec::Vec;

use iopt_formats::{Iova, IovaRange, Prot};

use crate::firmware::acpi::all_of;
use crate::firmware::acpi::error::{AcpiError, Fault};
use crate::firmware::acpi::iort::{
    IdMapping, NamedComponent, Node, NodeKind, ReservedMemory, RootComplex, SIGNATURE, Table,
};
use crate::firmware::acpi::taken::Taken;
use crate::firmware::{
    Architecture, Ats, Bus, Coherence, Description, Flaw, Host, Instance, InstanceIndex, Location,
    MAX_PASID_BITS, NodeIndex, Output, PasidWidth, Problem, Reach, Region, RegionKind, Rule,
    Subject, Topic,
};
use crate::topology::RequesterId;

/// How many regions a table may ask for: each range of memory counts once for each range of streams.
pub(super) const REGIONS: usize = 4096;

/// A part of the inputs of a node, and where it goes. Parts of one node do not overlap.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Piece {
    pub(super) first: u32,
    pub(super) last: u32,
    /// What the first one becomes.
    pub(super) output: u32,
    /// Whether all become that.
    pub(super) is_single: bool,
    pub(super) target: usize,
}

impl Table {
    /// Adds what the table says.
    pub(in crate::firmware::acpi) fn describe(
        &self,
        description: &mut Description,
    ) -> Result<(), AcpiError> {
        let mut writer = Writer {
            table: self,
            description,
            instances: BTreeMap::new(),
            segments: BTreeSet::new(),
            regions: 0,
        };
        for (index, node) in self.nodes.iter().enumerate() {
            writer.instance(index, node);
        }
        for node in &self.nodes {
            match &node.kind {
                NodeKind::RootComplex(root) => writer.root_complex(node, root)?,
                NodeKind::NamedComponent(component) => writer.named_component(node, component)?,
                NodeKind::ReservedMemory(memory) => writer.reserved_memory(node, memory)?,
                _ => {}
            }
        }
        Ok(())
    }
}

struct Writer<'a> {
    table: &'a Table,
    description: &'a mut Description,
    /// By the place of the node.
    instances: BTreeMap<usize, InstanceIndex>,
    segments: BTreeSet<u16>,
    /// How many memory ranges became regions.
    regions: usize,
}

impl Writer<'_> {
    fn instance(&mut self, index: usize, node: &Node) {
        let offset = node.offset;
        let instance = match &node.kind {
            NodeKind::Smmu(smmu) => Instance {
                architecture: Architecture::Smmu,
                location: Location::Memory {
                    base: smmu.base,
                    len: Some(smmu.span),
                },
                name: format!("IORT SMMU at {offset:#x}"),
                is_enabled: true,
                is_coherent: Some(smmu.is_coherent),
                itself: None,
                match_mask: 0,
            },
            NodeKind::Smmuv3(smmu) => Instance {
                architecture: Architecture::Smmuv3,
                location: Location::Memory {
                    base: smmu.base,
                    len: None,
                },
                name: format!("IORT SMMUv3 at {offset:#x}"),
                is_enabled: true,
                is_coherent: Some(smmu.flags & 1 != 0),
                itself: None,
                match_mask: 0,
            },
            _ => return,
        };
        let place = InstanceIndex(self.description.instances.len());
        self.instances.insert(index, place);
        self.description.instances.push(instance);
    }

    fn root_complex(&mut self, node: &Node, root: &RootComplex) -> Result<(), AcpiError> {
        let wrong = |fault| AcpiError {
            table: SIGNATURE,
            offset: node.offset.saturating_add(28),
            what: "the segment of a root complex",
            fault,
        };
        let segment = u16::try_from(root.segment).map_err(|_| {
            wrong(Fault::Value {
                value: root.segment.into(),
            })
        })?;
        if !self.segments.insert(segment) {
            return Err(wrong(Fault::Duplicate));
        }
        for piece in pieces(node, u32::from(u16::MAX))? {
            let [first, last] = [piece.first, piece.last].map(|id| RequesterId::new(id as u16));
            self.rule(
                Subject::Requesters {
                    segment,
                    mask: u16::MAX,
                    first,
                    last,
                },
                &piece,
            );
        }
        self.access(
            &all_of(segment),
            root.access.is_coherent,
            root.address_bits.unwrap_or(0),
        );
        if root.ats & 1 != 0 {
            self.description.ats.push(Ats {
                subject: all_of(segment),
                is_required: false,
            });
        }
        self.description.hosts.push(Host {
            name: format!("IORT root complex at {:#x}", node.offset),
            segment,
            buses: (0, u8::MAX),
            ecam: None,
        });
        Ok(())
    }

    fn named_component(
        &mut self,
        node: &Node,
        component: &NamedComponent,
    ) -> Result<(), AcpiError> {
        let index = NodeIndex(self.description.nodes.len());
        self.description.nodes.push(crate::firmware::Node {
            name: component.name.clone(),
            bus: Bus::Platform,
        });
        for mapping in node.mappings.iter().filter(|mapping| mapping.is_single) {
            let piece = Piece {
                first: 0,
                last: 0,
                output: mapping.output,
                is_single: true,
                target: mapping.target,
            };
            self.rule(Subject::Node(index), &piece);
        }
        // A single mapping is that of the device itself, and of all on its bus that no other one maps.
        for piece in &pieces(node, u32::MAX)? {
            self.rule(
                Subject::Inputs {
                    node: index,
                    mask: u32::MAX,
                    first: piece.first,
                    last: piece.last,
                },
                piece,
            );
        }
        self.access(
            &Subject::Node(index),
            component.access.is_coherent,
            component.address_bits,
        );
        let bits = (component.flags >> 1 & 0x1f) as u8;
        if bits != 0 {
            self.description.pasids.push(PasidWidth {
                subject: Subject::Node(index),
                bits: bits.min(MAX_PASID_BITS),
            });
        }
        Ok(())
    }

    fn rule(&mut self, subject: Subject, piece: &Piece) {
        let target = self.table.nodes.get(piece.target);
        if let Some(Node {
            kind: NodeKind::Unknown(kind),
            offset,
            ..
        }) = target
        {
            self.description.flaws.push(Flaw {
                topic: Topic::Rule,
                subject: Some(subject),
                name: format!("IORT node at {offset:#x}"),
                property: "the type of a node",
                offset: *offset,
                problem: Problem::Value {
                    value: (*kind).into(),
                },
            });
            return;
        }
        self.description.rules.push(Rule {
            subject,
            instance: self.instances.get(&piece.target).copied(),
            output: if piece.is_single {
                Output::Fixed(piece.output)
            } else {
                Output::Offset(piece.output)
            },
            amd_settings: 0,
        });
    }

    fn access(&mut self, subject: &Subject, is_coherent: bool, address_bits: u8) {
        self.description.coherence.push(Coherence {
            subject: subject.clone(),
            is_coherent,
        });
        if address_bits != 0 {
            self.description.reaches.push(Reach {
                subject: subject.clone(),
                address_bits: Some(address_bits.min(64)),
                ranges: Vec::new(),
            });
        }
    }

    /// The streams are the outputs of the node's mappings: what goes in has no meaning.
    ///
    /// Regions count from revision 5 of the table on (E.d); what nodes of this type meant before was
    /// withdrawn.
    fn reserved_memory(&mut self, node: &Node, memory: &ReservedMemory) -> Result<(), AcpiError> {
        if self.table.revision < 5 {
            return Ok(());
        }
        let kind = RegionKind::Direct {
            prot: prot(memory.flags),
            is_relaxable: memory.flags & 1 != 0,
        };
        for mapping in &node.mappings {
            let Some(&instance) = self.instances.get(&mapping.target) else {
                continue;
            };
            let last = last_output(mapping, mapping.first, mapping.last)?;
            for range in &memory.ranges {
                let wrong = |at: usize, fault| AcpiError {
                    table: SIGNATURE,
                    offset: range.offset.saturating_add(at),
                    what: "a memory range",
                    fault,
                };
                if range.len == 0 {
                    return Err(wrong(8, Fault::Value { value: 0 }));
                }
                let iova = IovaRange::with_len(Iova::new(range.base), range.len)
                    .ok_or_else(|| wrong(0, Fault::Overflow))?;
                self.regions = self.regions.saturating_add(1);
                if self.regions > REGIONS {
                    return Err(wrong(0, Fault::TooMany { limit: REGIONS }));
                }
                self.description.regions.push(Region {
                    subject: Some(Subject::Streams {
                        instance,
                        first: mapping.output,
                        last,
                    }),
                    range: iova,
                    kind,
                });
            }
        }
        Ok(())
    }
}

/// The rights and the memory type of a reserved range: Arm DEN 0049E.d, table of the flags of an RMR
/// node. Attributes 0 to 3 are those of device memory, 5 is write-back.
const fn prot(flags: u32) -> Prot {
    let prot = match flags >> 2 & 0xff {
        0..=3 => Prot::RW.device(),
        5 => Prot::RW.cached(),
        _ => Prot::RW,
    };
    if flags & 2 != 0 {
        prot.privileged()
    } else {
        prot
    }
}

/// Returns what the IDs of a mapping up to `last` become at most, where `first` is its first that counts.
fn last_output(mapping: &IdMapping, first: u32, last: u32) -> Result<u32, AcpiError> {
    let output = mapping.output.checked_add(last - first);
    output.ok_or(AcpiError {
        table: SIGNATURE,
        offset: mapping.offset.saturating_add(8),
        what: "the output base",
        fault: Fault::Overflow,
    })
}

/// Returns where a node's inputs up to `limit` go, each input once: for every one of them what
/// [`Table::map`] says.
pub(super) fn pieces(node: &Node, limit: u32) -> Result<Vec<Piece>, AcpiError> {
    let mappings = || {
        let all = node.mappings.iter().enumerate();
        all.filter(|(index, mapping)| !node.is_skipped(*index) && mapping.first <= limit)
    };
    let starts: BTreeSet<(u32, usize)> = mappings()
        .filter(|(_, mapping)| !mapping.is_single)
        .map(|(index, mapping)| (mapping.first, index))
        .collect();
    let single = mappings().find(|(_, mapping)| mapping.is_single);
    let mut taken = Taken::default();
    let mut pieces = Vec::new();
    for (index, mapping) in mappings() {
        if mapping.is_single {
            taken.take(0, limit.into(), |first, last| {
                pieces.push(Piece::new(mapping, first as u32, last as u32));
            });
            break;
        }
        let last = mapping.last.min(limit);
        last_output(mapping, mapping.first, last)?;
        let mut end = last;
        if mapping.first < last && last == mapping.last {
            let later = starts
                .range((last, index.saturating_add(1))..=(last, usize::MAX))
                .next()
                .map(|(_, later)| *later);
            let single = single.filter(|(single, _)| later.is_none_or(|later| *single < later));
            let winner = match single {
                Some((_, mapping)) => Some(mapping),
                None => later.and_then(|later| node.mappings.get(later)),
            };
            if let Some(winner) = winner {
                end = last - 1;
                if taken.take_one(last.into()) {
                    pieces.push(Piece::new(winner, last, last));
                }
            }
        }
        taken.take(mapping.first.into(), end.into(), |first, last| {
            pieces.push(Piece::new(mapping, first as u32, last as u32));
        });
    }
    pieces.sort_unstable_by_key(|piece| piece.first);
    let mut joined: Vec<Piece> = Vec::with_capacity(pieces.len());
    for piece in pieces {
        match joined.last_mut() {
            Some(before) if before.is_continued_by(&piece) => before.last = piece.last,
            _ => joined.push(piece),
        }
    }
    Ok(joined)
}

impl Piece {
    /// A part of what a mapping has, whose outputs were checked.
    const fn new(mapping: &IdMapping, first: u32, last: u32) -> Self {
        let output = if mapping.is_single {
            mapping.output
        } else {
            mapping
                .output
                .wrapping_add(first.wrapping_sub(mapping.first))
        };
        Self {
            first,
            last,
            output,
            is_single: mapping.is_single,
            target: mapping.target,
        }
    }

    fn is_continued_by(&self, next: &Self) -> bool {
        let len = (self.last - self.first).wrapping_add(1);
        let output = if self.is_single {
            self.output
        } else {
            self.output.wrapping_add(len)
        };
        self.last.checked_add(1) == Some(next.first)
            && (self.target, self.is_single, output) == (next.target, next.is_single, next.output)
    }
}
