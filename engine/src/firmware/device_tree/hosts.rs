//! PCI host bridges.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use crate::firmware::device_tree::source::cell;
use crate::firmware::device_tree::{Reader, Sentence};
use crate::firmware::fdt::NodeId;
use crate::firmware::{Host, Problem, Subject, Topic};
use crate::topology::RequesterId;

/// How many segments there can be.
pub(super) const MAX_SEGMENTS: usize = 1 << 16;

impl Reader<'_, '_> {
    /// Reads the hosts. Those without `linux,pci-domain` get the lowest segments that are free, in the
    /// order of the tree: Linux numbers them as it finds them, which is the same where none has it.
    pub(super) fn read_hosts(&mut self) {
        let source = self.source;
        let hosts = source.iter().filter(|node| {
            source.is_pci_bus(*node) && !source.is_pci_function(*node) && source.is_enabled(*node)
        });
        let stated: Vec<_> = hosts.map(|node| (node, self.segment(node))).collect();
        let taken: BTreeSet<u16> = stated.iter().filter_map(|(_, segment)| *segment).collect();
        let mut free = (0..=u16::MAX).filter(|segment| !taken.contains(segment));
        for (node, segment) in stated {
            let Some(segment) = segment.or_else(|| free.next()) else {
                let name = "device_type";
                if let Some(property) = source.property(node, name) {
                    let sentence = Sentence::new(Topic::Host, None, node, (name, property));
                    let limit = MAX_SEGMENTS;
                    self.flaw(sentence, Problem::TooMany { limit });
                }
                continue;
            };
            let buses = self.buses(node);
            let ecam = self.ecam(node, buses.0);
            self.hosts.insert(node, self.description.hosts.len());
            self.description.hosts.push(Host {
                name: source.path(node),
                segment,
                buses,
                ecam,
            });
        }
    }

    /// The segment that the tree gives to a host.
    fn segment(&mut self, node: NodeId) -> Option<u16> {
        let name = "linux,pci-domain";
        let property = self.source.property(node, name)?;
        let sentence = Sentence::new(Topic::Host, None, node, (name, property));
        let number = match self.source.number(node, name)? {
            Ok(number) => number,
            Err(problem) => {
                self.flaw(sentence, problem);
                return None;
            }
        };
        let segment = u16::try_from(number).ok();
        if segment.is_none() {
            let value = u64::from(number);
            self.flaw(sentence, Problem::Value { value });
        }
        segment
    }

    /// The first and the last bus below a host or another bridge; all where the tree does not say.
    fn buses(&mut self, node: NodeId) -> (u8, u8) {
        let all = (0, u8::MAX);
        let name = "bus-range";
        let Some(property) = self.source.property(node, name) else {
            return all;
        };
        match bus_range(property.value) {
            Ok(buses) => buses,
            Err(problem) => {
                let sentence = Sentence::new(Topic::Host, None, node, (name, property));
                self.flaw(sentence, problem);
                all
            }
        }
    }

    /// Where bus 0's configuration space is, or would be: `reg` has that of the first bus.
    fn ecam(&mut self, node: NodeId, first_bus: u8) -> Option<u64> {
        if !self.source.is_compatible(node, &["pci-host-ecam-generic"]) {
            return None;
        }
        let property = self.source.property(node, "reg")?;
        let place = self.source.reg(node)?.and_then(|reg| {
            let (address, _) = reg.first().ok_or(Problem::Length { len: 0 })?;
            self.source.translate(node, *address)
        });
        match place {
            Ok(place) => place.checked_sub(u64::from(first_bus) << 20),
            Err(problem) => {
                let sentence = Sentence::new(Topic::Host, None, node, ("reg", property));
                self.flaw(sentence, problem);
                None
            }
        }
    }

    /// The requester ID of a function that the tree lists, and its host.
    ///
    /// The bus number is the one that the bridge above has in the tree; only where that says nothing it
    /// is the one in `reg`. Firmware that numbers no buses leaves that at zero, which no bus below a bridge has.
    pub(super) fn function(&self, node: NodeId) -> Result<(usize, RequesterId), Problem> {
        let missing = Problem::Length { len: 0 };
        let bridge = self.source.parent(node).ok_or_else(|| missing.clone())?;
        let mut above = self.source.up(bridge);
        let host = above.find_map(|node| self.hosts.get(&node).copied());
        let host = host.ok_or_else(|| missing.clone())?;
        let reg = self.source.property(node, "reg").ok_or(missing)?;
        let len = reg.value.len();
        let address = cell(reg.value, 0).ok_or(Problem::Length { len })?;
        let [_, stated, function, _] = address.to_be_bytes();
        let numbered = if self.hosts.contains_key(&bridge) {
            let host = self.description.hosts.get(host);
            host.map(|host| host.buses)
        } else {
            let range = self.source.property(bridge, "bus-range");
            range.and_then(|range| bus_range(range.value).ok())
        };
        let value = address.into();
        let bus = match numbered {
            Some((first, _)) => first,
            None if stated > self.function(bridge)?.1.bus() => stated,
            None => return Err(Problem::Value { value }),
        };
        let requester = RequesterId::from_parts(bus, function >> 3, function & 7);
        Ok((host, requester.ok_or(Problem::Value { value })?))
    }

    /// All requesters below a host.
    pub(super) fn requesters(&self, host: usize) -> Option<Subject> {
        let host = self.description.hosts.get(host)?;
        let (first, last) = host.buses;
        Some(Subject::Requesters {
            segment: host.segment,
            mask: u16::MAX,
            first: RequesterId::new(u16::from(first) << 8),
            last: RequesterId::new(u16::from(last) << 8 | 0xff),
        })
    }

    /// How many hosts each segment has.
    pub(super) fn hosts_of_segments(&self) -> BTreeMap<u16, usize> {
        let mut counts = BTreeMap::new();
        for host in &self.description.hosts {
            *counts.entry(host.segment).or_insert(0) += 1;
        }
        counts
    }
}

fn bus_range(value: &[u8]) -> Result<(u8, u8), Problem> {
    let len = value.len();
    let (Some(first), Some(last), 8) = (cell(value, 0), cell(value, 1), len) else {
        return Err(Problem::Length { len });
    };
    match (u8::try_from(first), u8::try_from(last)) {
        (Ok(first), Ok(last)) if first <= last => Ok((first, last)),
        _ => Err(Problem::Value {
            value: u64::from(first) << 32 | u64::from(last),
        }),
    }
}
