//! Who is behind which instance: `iommus` of devices, `iommu-map` of buses.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use crate::firmware::device_tree::instances::{CELLS, MAX_CELLS};
use crate::firmware::device_tree::maps::{MASK, Map, MapEntry, clipped};
use crate::firmware::device_tree::source::cell;
use crate::firmware::device_tree::{Reader, Sentence};
use crate::firmware::fdt::NodeId;
use crate::firmware::{
    Architecture, Ats, InstanceIndex, MAX_PASID_BITS, Output, PasidWidth, Problem, Rule, Subject,
    Supplier, Topic,
};
use crate::topology::RequesterId;

/// An instance, and an ID in its cells.
type Specifier = (InstanceIndex, Vec<u32>);

impl Reader<'_, '_> {
    pub(super) fn read_devices(&mut self) {
        let segments = self.hosts_of_segments();
        for node in self.source.iter() {
            if !self.source.is_enabled(node) || self.source.is_pci_function(node) {
                continue;
            }
            if let Some(host) = self.hosts.get(&node) {
                self.read_host_map(node, *host, &segments);
                continue;
            }
            // A host for which no segment was left: its IDs are nobody's.
            if self.source.is_pci_bus(node) {
                continue;
            }
            self.read_specifiers(node);
            self.read_bus_map(node);
        }
    }

    /// `iommus`: references, each with as many cells as the instance wants.
    fn read_specifiers(&mut self, node: NodeId) {
        let Some(property) = self.source.property(node, "iommus") else {
            return;
        };
        let subject = Subject::Node(self.node_index(node));
        match self.specifiers(property.value) {
            Ok(specifiers) => {
                let mut instances = specifiers.iter().map(|(instance, _)| *instance);
                let is_translated = instances.all(|instance| self.is_instance_enabled(instance));
                for (instance, cells) in specifiers {
                    let instance = Some(instance).filter(|_| is_translated);
                    self.add_rule(
                        node,
                        &subject,
                        subject.clone(),
                        instance,
                        Output::Cells(cells),
                    );
                }
            }
            Err((at, problem)) => {
                let mut sentence =
                    Sentence::new(Topic::Rule, Some(&subject), node, ("iommus", property));
                sentence.offset += at;
                self.flaw(sentence, problem);
            }
        }
    }

    /// `pasid-num-bits` of devices behind an IOMMU (`iommu.txt`).
    pub(super) fn read_pasids(&mut self) {
        let name = "pasid-num-bits";
        let nodes: Vec<_> = self.nodes.iter().map(|(node, at)| (*node, *at)).collect();
        for (node, index) in nodes {
            let subject = Subject::Node(index);
            match (
                self.source.number(node, name),
                self.source.property(node, name),
            ) {
                (Some(Ok(bits)), _) if bits > 0 => {
                    let bits =
                        u8::try_from(bits).map_or(MAX_PASID_BITS, |bits| bits.min(MAX_PASID_BITS));
                    self.description.pasids.push(PasidWidth { subject, bits });
                }
                (Some(Err(problem)), Some(property)) => {
                    let sentence =
                        Sentence::new(Topic::Pasids, Some(&subject), node, (name, property));
                    self.flaw(sentence, problem);
                }
                _ => {}
            }
        }
    }

    /// The references of a value, or what is wrong with one and where that is in the value.
    fn specifiers(&self, value: &[u8]) -> Result<Vec<Specifier>, (usize, Problem)> {
        let length = (0, Problem::Length { len: value.len() });
        if !value.len().is_multiple_of(4) {
            return Err(length);
        }
        let mut found = Vec::new();
        let mut at = 0;
        while let Some(phandle) = cell(value, at) {
            let (instance, cells) = self.target(phandle).map_err(|problem| (at * 4, problem))?;
            let ids = (1..=cells).map(|index| cell(value, at + index));
            let Some(ids) = ids.collect::<Option<Vec<_>>>() else {
                return Err((at * 4, length.1));
            };
            self.check_ids(instance, &ids)
                .map_err(|problem| (at * 4, problem))?;
            found.push((instance, ids));
            at += 1 + cells;
        }
        Ok(found)
    }

    /// The instance with a phandle, and how many cells its IDs have.
    pub(super) fn target(&self, phandle: u32) -> Result<(InstanceIndex, usize), Problem> {
        let node = self.source.find(phandle)?;
        let instance = self.instances.get(&node);
        let instance = instance.ok_or(Problem::NoIommu { phandle })?;
        let cells = self.source.cells(node, CELLS, None, MAX_CELLS)?;
        Ok((*instance, cells))
    }

    /// Checks the cells of an ID: those of an Arm SMMU before version 3, an ID and which bits of it do not
    /// count, have 16 bits each.
    pub(super) fn check_ids(&self, instance: InstanceIndex, cells: &[u32]) -> Result<(), Problem> {
        let instance = self.description.instances.get(instance.0);
        let is_smmu = instance.is_some_and(|instance| instance.architecture == Architecture::Smmu);
        let wide = cells.iter().find(|cell| u16::try_from(**cell).is_err());
        match wide {
            Some(cell) if is_smmu => Err(Problem::Value {
                value: (*cell).into(),
            }),
            _ => Ok(()),
        }
    }

    /// `iommu-map` of a host: requester IDs.
    fn read_host_map(&mut self, node: NodeId, host: usize, segments: &BTreeMap<u16, usize>) {
        let Some(subject) = self.requesters(host) else {
            return;
        };
        let Subject::Requesters {
            segment,
            first,
            last,
            ..
        } = subject
        else {
            return;
        };
        if self.source.has(node, "ats-supported") {
            let is_required = false;
            self.description.ats.push(Ats {
                subject: subject.clone(),
                is_required,
            });
        }
        let Some(map) = self.map(node, &subject) else {
            return;
        };
        let is_shared = segments.get(&segment).is_some_and(|count| *count > 1);
        let mask = requester_mask(map.mask);
        if is_shared && mask != u16::MAX {
            let mask = map.mask;
            let property = self.source.property(node, MASK).unwrap_or(map.property);
            let sentence = Sentence::new(Topic::Rule, Some(&subject), node, (MASK, property));
            self.flaw(sentence, Problem::SharedSegment { mask, segment });
            return;
        }
        // In a segment with other hosts, an entry must not say anything of their buses.
        let bounds = if is_shared {
            (u32::from(first.get()), u32::from(last.get()))
        } else {
            (0, u32::from(u16::MAX))
        };
        self.add_entries(node, &map, &subject, |entry| {
            let (first, last, output) = clipped(entry, bounds)?;
            let subject = Subject::Requesters {
                segment,
                mask,
                first: RequesterId::new(u16::try_from(first).ok()?),
                last: RequesterId::new(u16::try_from(last).ok()?),
            };
            Some((subject, output))
        });
    }

    /// `iommu-map` of another bus: its own IDs.
    fn read_bus_map(&mut self, node: NodeId) {
        if !self.source.has(node, "iommu-map") {
            return;
        }
        let index = self.node_index(node);
        let whole = |mask| Subject::Inputs {
            node: index,
            mask,
            first: 0,
            last: u32::MAX,
        };
        let Some(map) = self.map(node, &whole(u32::MAX)) else {
            return;
        };
        let mask = map.mask;
        self.add_entries(node, &map, &whole(u32::MAX), |entry| {
            let (first, last, output) = clipped(entry, (0, u32::MAX))?;
            let subject = Subject::Inputs {
                node: index,
                mask,
                first,
                last,
            };
            Some((subject, output))
        });
    }

    /// Adds a rule for each entry that has IDs left, and the flaw that ends a map.
    fn add_entries(
        &mut self,
        node: NodeId,
        map: &Map<'_>,
        whole: &Subject,
        rule: impl Fn(&MapEntry) -> Option<(Subject, Output)>,
    ) {
        for entry in &map.entries {
            let instance = Some(entry.instance).filter(|index| self.is_instance_enabled(*index));
            if let Some((subject, output)) = rule(entry) {
                self.add_rule(node, whole, subject, instance, output);
            }
        }
        if let Some((at, problem)) = &map.flaw {
            let mut sentence =
                Sentence::new(Topic::Rule, Some(whole), node, ("iommu-map", map.property));
            sentence.offset += *at;
            self.flaw(sentence, problem.clone());
        }
    }

    fn is_instance_enabled(&self, instance: InstanceIndex) -> bool {
        let instance = self.description.instances.get(instance.0);
        instance.is_some_and(|instance| instance.is_enabled)
    }

    /// Adds a rule, and an edge from all that the node is about, unless the same one is there.
    fn add_rule(
        &mut self,
        node: NodeId,
        consumer: &Subject,
        subject: Subject,
        instance: Option<InstanceIndex>,
        output: Output,
    ) {
        if let Some(instance) = instance
            && self.edges.insert((node, instance))
        {
            self.description.suppliers.push(Supplier {
                consumer: consumer.clone(),
                instance,
            });
        }
        self.description.rules.push(Rule {
            subject,
            instance,
            output,
            amd_settings: 0,
        });
    }
}

/// A map's mask, for IDs of 16 bits.
fn requester_mask(mask: u32) -> u16 {
    let [_, _, high, low] = mask.to_be_bytes();
    u16::from_be_bytes([high, low])
}
