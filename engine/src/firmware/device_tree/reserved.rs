//! Reserved memory with IOVA: `iommu-addresses` of the children of `/reserved-memory`.
//!
//! An entry is a device and a range, in the cells of the bus that the device is on. It names its device
//! itself, so that it counts whether or not that device refers to the memory by `memory-region`.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use iopt_formats::{Iova, IovaRange, Prot};

use crate::firmware::device_tree::source::{cell, number, split};
use crate::firmware::device_tree::{Reader, Sentence};
use crate::firmware::fdt::NodeId;
use crate::firmware::{Problem, Region, RegionKind, Subject, Topic};

const ADDRESSES: &str = "iommu-addresses";

/// The device, the address and the size of an entry; and what is behind it.
type Entry<'v> = (NodeId, (u64, u64), &'v [u8]);

/// The pieces of memory of a node, for as many look-ups.
struct Memory {
    /// Address and length.
    pieces: BTreeSet<(u64, u64)>,
    /// By length the address of the first one.
    first_of_len: BTreeMap<u64, u64>,
}

impl Memory {
    fn new(pieces: &[(u64, u64)]) -> Self {
        let mut first_of_len = BTreeMap::new();
        for (address, len) in pieces {
            first_of_len.entry(*len).or_insert(*address);
        }
        Self {
            pieces: pieces.iter().copied().collect(),
            first_of_len,
        }
    }
}

impl Reader<'_, '_> {
    pub(super) fn read_reserved_memory(&mut self) {
        for node in self.source.iter() {
            if self.source.is_enabled(node) && self.is_reserved_memory(node) {
                self.read_addresses(node);
            }
        }
        let devices: Vec<NodeId> = self.nodes.keys().copied().collect();
        for device in devices {
            self.check_memory_region(device);
        }
    }

    fn is_reserved_memory(&self, node: NodeId) -> bool {
        self.source.parent(node).is_some_and(|parent| {
            self.source.parent(parent) == Some(NodeId::ROOT)
                && self.source.name(parent) == "reserved-memory"
        })
    }

    fn read_addresses(&mut self, node: NodeId) {
        let Some(property) = self.source.property(node, ADDRESSES) else {
            return;
        };
        let sentence = Sentence::new(Topic::Region, None, node, (ADDRESSES, property));
        let memory = match self.memory(node) {
            Ok(memory) => memory,
            Err(problem) => return self.flaw(sentence, problem),
        };
        let memory = Memory::new(&memory);
        let mut rest = property.value;
        while !rest.is_empty() {
            let mut sentence = sentence;
            sentence.offset += property.value.len() - rest.len();
            match self.entry_of(rest) {
                Ok((device, range, behind)) => {
                    rest = behind;
                    self.add_region(sentence, device, range, &memory);
                }
                Err(problem) => return self.flaw(sentence, problem),
            }
        }
    }

    /// The memory that is reserved, at the processor's addresses; none if it is only IOVA.
    fn memory(&self, node: NodeId) -> Result<Vec<(u64, u64)>, Problem> {
        let Some(reg) = self.source.reg(node) else {
            return Ok(Vec::new());
        };
        let to_cpu = |(address, len)| Ok((self.source.translate(node, address)?, len));
        reg?.into_iter().map(to_cpu).collect()
    }

    /// The first entry of a value.
    fn entry_of<'v>(&self, value: &'v [u8]) -> Result<Entry<'v>, Problem> {
        let length = Problem::Length { len: value.len() };
        let phandle = cell(value, 0).ok_or_else(|| length.clone())?;
        let device = self.source.find(phandle)?;
        let bus = self.source.parent(device);
        let bus = bus.ok_or(Problem::NoSuchNode { phandle })?;
        let (address_cells, size_cells) = self.source.bus_cells(bus)?;
        let is_pci = self.source.is_pci_bus(bus);
        let read = || {
            let (_, rest) = split(value, 1)?;
            let (address, rest) = split(rest, address_cells)?;
            let (size, rest) = split(rest, size_cells)?;
            // The first cell of a PCI address is the space, which memory is not told apart by.
            let address = if is_pci {
                split(address, 1)?.1
            } else {
                address
            };
            Some((device, (number(address)?, number(size)?), rest))
        };
        read().ok_or(length)
    }

    fn add_region(
        &mut self,
        sentence: Sentence<'_>,
        device: NodeId,
        (first, len): (u64, u64),
        memory: &Memory,
    ) {
        if !self.source.is_enabled(device) {
            return;
        }
        let subject = match self.subject(device) {
            Ok(subject) => subject,
            Err(problem) => return self.flaw(sentence, problem),
        };
        let Some(range) = IovaRange::with_len(Iova::new(first), len) else {
            let subject = Some(&subject);
            self.flaw(
                Sentence {
                    subject,
                    ..sentence
                },
                Problem::Overflow { first, len },
            );
            return;
        };
        let prot = Prot::RW;
        let kind = if memory.pieces.contains(&(first, len)) {
            RegionKind::Direct {
                prot,
                is_relaxable: false,
            }
        } else {
            // Memory of another size says nothing of where the rest of the IOVA leads.
            let mapped = memory.first_of_len.get(&len).copied();
            mapped.map_or(RegionKind::Reserved, |oa| RegionKind::Mapped { oa, prot })
        };
        self.description.regions.push(Region {
            subject: Some(subject),
            range,
            kind,
        });
    }

    /// Whom a reference to a node is about; an error for a PCI function of which the tree does not say
    /// where it is.
    fn subject(&mut self, node: NodeId) -> Result<Subject, Problem> {
        if let Some(host) = self.hosts.get(&node)
            && let Some(subject) = self.requesters(*host)
        {
            return Ok(subject);
        }
        if self.source.is_pci_function(node) {
            let (host, requester) = self.function(node)?;
            let host = self.description.hosts.get(host);
            return Ok(Subject::Requesters {
                segment: host.map_or(0, |host| host.segment),
                mask: u16::MAX,
                first: requester,
                last: requester,
            });
        }
        Ok(Subject::Node(self.node_index(node)))
    }

    /// A device behind an IOMMU that refers to memory which is not there may use some that nobody knows
    /// of.
    fn check_memory_region(&mut self, node: NodeId) {
        let name = "memory-region";
        let Some(property) = self.source.property(node, name) else {
            return;
        };
        let value = property.value;
        let missing = (0..value.len() / 4).find_map(|at| {
            let found = cell(value, at).map(|phandle| self.source.find(phandle));
            found?.err().map(|problem| (at * 4, problem))
        });
        if let Some((at, problem)) = missing {
            let subject = Subject::Node(self.node_index(node));
            let mut sentence = Sentence::new(Topic::Region, Some(&subject), node, (name, property));
            sentence.offset += at;
            self.flaw(sentence, problem);
        }
    }
}
