//! What firmware says of each device of a machine: from a description and a tree to a [`Machine`].
//!
//! All sentences are taken in their order, and each is told to all devices that it is about; looking up
//! devices one by one would read all sentences for each of them. The answers are the same:
//! [`Description::requester`], [`node`](Description::node) and [`input`](Description::input) say what they
//! are.

mod masks;
mod questions;
#[cfg(test)]
mod tests;

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::mem;

use crate::device::machine::Sets;
use crate::device::resolve::questions::{Questions, Then};
use crate::device::{
    DeviceAddress, DeviceReach, DeviceRegion, DeviceTlb, InstanceFacts, Machine, MachineError,
    MachineParts, Refusal, Resolved, Stream, SupplierEdge,
};
use crate::firmware::{
    self, Architecture, Description, Identity, InstanceIndex, NodeIndex, Seen, Subject, Topic,
};
use crate::topology::{GroupsError, Member, Node, PciAddress, PciTree, Rule, Translation, groups};

/// What is known of devices besides what firmware's tables and the tree say.
#[derive(Clone, Debug, Default)]
pub struct Besides {
    /// Devices on buses of named ones: whose bus, and the ID there.
    pub inputs: Vec<(NodeIndex, u32)>,
    /// Ports that lead out of the machine's case: all below them is untrusted.
    pub external_ports: Vec<PciAddress>,
    /// How wide the PASIDs of functions are that have any, 1 to 20 bits. Of devices that firmware names it is
    /// firmware that says so.
    pub pasid_bits: Vec<(PciAddress, u8)>,
}

/// Why a machine cannot be resolved.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ResolveError {
    /// A function is spoken of that is not in the tree.
    #[error("there is no function {address} in the tree")]
    NoFunction {
        /// The function.
        address: PciAddress,
    },
    /// A device is on the bus of a named one that there is not.
    #[error("firmware names no node {}", node.0)]
    NoNode {
        /// The named one.
        node: NodeIndex,
    },
    /// There are no groups.
    #[error(transparent)]
    Groups(#[from] GroupsError),
    /// The devices are no machine.
    #[error(transparent)]
    Machine(#[from] MachineError),
}

/// Why an ID of a device is behind no IOMMU.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Unanswered {
    /// A sentence about it cannot be read, by its place in [`Description::flaws`].
    Unreadable(usize),
    /// The rule at this place of [`Description::rules`] says so.
    Nothing(usize),
    /// No rule is about it.
    Unsaid,
}

/// Why a device is behind no IOMMU.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[non_exhaustive]
pub enum Untranslated {
    /// It is this instance, which does not translate itself.
    Itself(InstanceIndex),
    /// Instances see it, but not its requests under this ID: so it is not translated at all
    /// ([`Refusal::Partial`]).
    Partly {
        /// The requester ID, or the ID on its bus. Of several one about which most is said.
        id: u32,
        /// Why they do not.
        why: Unanswered,
    },
    /// A sentence about it cannot be read, by its place in [`Description::flaws`]: it may well be behind an
    /// IOMMU, or it is, and needs IOVA that nobody knows ([`Refusal::Regions`]).
    Unreadable(usize),
    /// The rule at this place of [`Description::rules`] says so: it names no instance, or one that may not
    /// be used.
    Nothing(usize),
    /// No rule is about it.
    Unsaid,
}

/// What firmware says of each device.
#[derive(Clone, Debug)]
pub struct Resolution {
    /// What a [`Machine`] is made of. A device that is behind no IOMMU has a group of its own.
    pub parts: MachineParts,
    /// Who is behind no IOMMU, in rising order, and why.
    pub untranslated: Vec<(DeviceAddress, Untranslated)>,
}

impl From<Unanswered> for Untranslated {
    fn from(why: Unanswered) -> Self {
        match why {
            Unanswered::Unreadable(place) => Self::Unreadable(place),
            Unanswered::Nothing(place) => Self::Nothing(place),
            Unanswered::Unsaid => Self::Unsaid,
        }
    }
}

impl Machine {
    /// Resolves a machine: who is behind which instance, under all requester IDs that a function uses,
    /// and who cannot be parted by `rule`. See [`Resolution`] for who is behind none.
    ///
    /// # Errors
    ///
    /// [`ResolveError`].
    pub fn resolve(
        description: &Description,
        tree: &PciTree,
        besides: &Besides,
        rule: Rule,
    ) -> Result<Self, ResolveError> {
        let resolution = Resolution::new(description, tree, besides, rule)?;
        Ok(Self::new(resolution.parts)?)
    }
}

impl Resolution {
    /// Resolves a machine. Functions and sentences take as many steps as there are of them, but for
    /// sorting and for what comes out.
    ///
    /// Where firmware names a function by its path, it means the virtual functions of that one, too; where it
    /// names IDs, each function is found by its own ones. An ID of several cells is not among the
    /// [`ids`](Stream::ids) of a stream, unless it is an Arm SMMU's; devices whose IDs are equal cells are one
    /// group all the same, and so are devices of which such an SMMU may see the same ID. Devices whose ID has
    /// no cell cannot be told apart by their instance.
    ///
    /// A function that is behind an instance under some of its IDs only is refused. Below bridges that
    /// take requests for their own it is the ID of the last of them that must be behind one; of the others
    /// nothing need be said.
    ///
    /// # Errors
    ///
    /// [`ResolveError`]: something is spoken of in `besides` that is not there, or a device is there twice.
    pub fn new(
        description: &Description,
        tree: &PciTree,
        besides: &Besides,
        rule: Rule,
    ) -> Result<Self, ResolveError> {
        let mut inputs = besides.inputs.clone();
        inputs.sort_unstable();
        if let Some((node, _)) = inputs
            .iter()
            .find(|(node, _)| node.0 >= description.nodes.len())
        {
            return Err(ResolveError::NoNode { node: *node });
        }
        let mut resolver = Resolver::new(description, tree, &inputs);
        resolver.answer();
        resolver.arrive();
        resolver.find_regions();
        resolver.find_reaches();
        resolver.find_properties();
        resolver.take_in(besides)?;
        resolver.group(rule)?;
        Ok(resolver.into_resolution())
    }
}

/// What is known so far.
struct Resolver<'a> {
    description: &'a Description,
    tree: &'a PciTree,
    questions: Questions<'a>,
    /// For each question, what an instance sees.
    seen: Vec<Option<Seen<'a>>>,
    /// For each question that no instance answers, why.
    why_not: Vec<Unanswered>,
    /// By number, as [`Questions`] has them.
    devices: Vec<Resolved>,
    /// Who is behind no IOMMU, in rising order.
    untranslated: Vec<(usize, Untranslated)>,
    instances: Vec<InstanceFacts>,
    /// Who is seen under which ID of several cells.
    cells: Vec<((InstanceIndex, &'a [u32]), usize)>,
}

impl<'a> Resolver<'a> {
    fn new(
        description: &'a Description,
        tree: &'a PciTree,
        inputs: &'a [(NodeIndex, u32)],
    ) -> Self {
        let nodes = description.nodes.len();
        let questions = Questions::new(tree, nodes, inputs);
        let functions = tree.functions().iter();
        let addresses = functions
            .map(|function| DeviceAddress::Pci(function.address))
            .chain((0..nodes).map(|node| DeviceAddress::Node(NodeIndex(node))))
            .chain(
                inputs
                    .iter()
                    .map(|&(node, id)| DeviceAddress::Input { node, id }),
            );
        let instances = description.instances.iter();
        let instances = instances.map(|instance| InstanceFacts {
            hardware: instance.device().map(Into::into),
            is_enabled: instance.is_enabled,
            tells_devices_apart: true,
        });
        let count = questions.len();
        let devices = addresses.zip(0..);
        Self {
            description,
            tree,
            questions,
            seen: (0..count).map(|_| None).collect(),
            why_not: (0..count).map(|_| Unanswered::Unsaid).collect(),
            devices: devices
                .map(|(address, number)| Resolved::new(address, number))
                .collect(),
            untranslated: Vec::new(),
            instances: instances.collect(),
            cells: Vec::new(),
        }
    }

    /// Answers all questions: by rules that lead to an instance, then by those for the rest, then by those
    /// that lead to none, then by flaws.
    fn answer(&mut self) {
        let Self {
            description,
            questions,
            seen,
            why_not,
            ..
        } = self;
        let is_rest = |rule: &&firmware::Rule| matches!(rule.subject, Subject::Rest { .. });
        let rules = description.rules.iter();
        let rest = rules.clone().filter(is_rest);
        for rule in rules.filter(|rule| !is_rest(rule)).chain(rest) {
            let instance = rule
                .instance
                .and_then(|index| description.instances.get(index.0));
            if !instance.is_some_and(|instance| instance.is_enabled) {
                continue;
            }
            questions.visit(&rule.subject, |covered| {
                let seen = &mut seen[covered.question];
                *seen = seen.or_else(|| description.seen(rule, covered.input));
                closed_if(seen.is_some())
            });
        }
        let rules = description.rules.iter().zip(0..);
        let rules = rules.map(|(rule, place)| (&rule.subject, Unanswered::Nothing(place)));
        let flaws = description.flaws.iter().zip(0..);
        let flaws = flaws.filter_map(|(flaw, place)| {
            let subject = flaw.subject.as_ref()?;
            (flaw.topic == Topic::Rule).then_some((subject, Unanswered::Unreadable(place)))
        });
        for (subject, why) in rules.chain(flaws) {
            questions.visit(subject, |covered| {
                let why_not = &mut why_not[covered.question];
                if *why_not == Unanswered::Unsaid {
                    *why_not = why;
                }
                Then::Closed
            });
        }
        questions.reopen();
    }

    /// Collects where requests of each device arrive. Answers of named devices are all the rules' about them.
    fn arrive(&mut self) {
        let Self {
            description,
            questions,
            seen,
            devices,
            ..
        } = self;
        let answers = seen.iter().zip(0..);
        let answers =
            answers.filter_map(|(seen, question)| Some((questions.device(question), (*seen)?)));
        let rules = description.rules.iter();
        let of_nodes = rules.filter_map(|rule| match rule.subject {
            Subject::Node(node) => Some((questions.node(node)?, description.seen(rule, 0)?)),
            _ => None,
        });
        let mut arrivals: Vec<_> = answers.chain(of_nodes).collect();
        arrivals.sort_by_key(|(device, seen)| (*device, seen.instance));
        for (device, seen) in arrivals {
            let instance = seen.instance;
            let streams = &mut devices[device].streams;
            let is_known = |stream: &Stream| stream.instance == instance;
            if !streams.last().is_some_and(is_known) {
                let ids = Vec::new();
                streams.push(Stream { instance, ids });
            }
            if let Some(stream) = streams.last_mut() {
                stream.ids.extend(seen.alias);
                if let Identity::Number(id) = seen.identity {
                    stream.ids.push(id);
                }
            }
            match seen.identity {
                Identity::Number(_) => {}
                Identity::Cells([]) => self.instances[instance.0].tells_devices_apart = false,
                Identity::Cells(cells) => self.cells.push(((instance, cells), device)),
            }
        }
        for stream in devices.iter_mut().flat_map(|device| &mut device.streams) {
            stream.ids.sort_unstable();
            stream.ids.dedup();
        }
        self.find_untranslated();
    }

    fn find_untranslated(&mut self) {
        let unreadable = self.unreadable_regions();
        let mut itself = BTreeMap::new();
        for (facts, index) in self.instances.iter().zip(0..) {
            if let Some(address) = facts.hardware {
                itself.entry(address).or_insert(InstanceIndex(index));
            }
        }
        for (resolved, device) in self.devices.iter_mut().zip(0..) {
            let address = resolved.address;
            let mut instances = resolved.streams.iter().map(|stream| stream.instance);
            let is_itself =
                |instance: &InstanceIndex| self.instances[instance.0].hardware == Some(address);
            let itself = match resolved.streams.as_slice() {
                [] => itself.get(&address).copied(),
                _ => instances.find(is_itself),
            };
            let questions = self.questions.of(device);
            let reasons = questions.clone().map(|question| self.why_not[question]);
            let why = match itself {
                Some(instance) => Untranslated::Itself(instance),
                None if resolved.streams.is_empty() => {
                    reasons.min().unwrap_or(Unanswered::Unsaid).into()
                }
                None => {
                    let open = questions.zip(reasons).filter(|(question, why)| {
                        let is_decisive = self.questions.is_decisive(*question);
                        self.seen[*question].is_none()
                            && (is_decisive || *why != Unanswered::Unsaid)
                    });
                    let open = open.map(|(question, why)| (why, self.questions.id(question)));
                    match (open.min(), unreadable[device]) {
                        (Some((why, id)), _) => {
                            resolved.refusal = Some(Refusal::Partial);
                            Untranslated::Partly { id, why }
                        }
                        (None, Some(flaw)) => {
                            resolved.refusal = Some(Refusal::Regions);
                            Untranslated::Unreadable(flaw)
                        }
                        (None, None) => continue,
                    }
                }
            };
            self.untranslated.push((device, why));
        }
    }

    /// Finds who needs IOVA of which a sentence about it cannot be read, by that flaw's place.
    fn unreadable_regions(&mut self) -> Vec<Option<usize>> {
        let mut unreadable = Vec::new();
        unreadable.resize(self.devices.len(), None);
        for (flaw, place) in self.description.flaws.iter().zip(0..) {
            if let (Topic::Region, Some(subject)) = (flaw.topic, &flaw.subject) {
                self.questions.visit(subject, |covered| {
                    unreadable[covered.device].get_or_insert(place);
                    Then::Closed
                });
            }
        }
        self.questions.reopen();
        unreadable
    }

    fn find_regions(&mut self) {
        let description = self.description;
        let mut streams: Vec<_> = self
            .devices
            .iter()
            .zip(0..)
            .flat_map(|(device, number)| {
                let streams = device.streams.iter();
                streams.flat_map(move |Stream { instance, ids }| {
                    ids.iter().map(move |id| ((*instance, *id), number))
                })
            })
            .collect();
        streams.sort_unstable();
        // Which region a device was told of last: it may have several IDs that are covered.
        let count = self.devices.len();
        let mut told = Vec::new();
        told.resize(count, None);
        for (region, place) in description.regions.iter().zip(0..) {
            let devices = &mut self.devices;
            let mut tell = |device: usize| {
                if told[device].replace(place) != Some(place) {
                    devices[device].regions.push(DeviceRegion {
                        range: region.range,
                        kind: region.kind,
                    });
                }
            };
            match &region.subject {
                None => (0..count).for_each(tell),
                Some(Subject::Streams {
                    instance,
                    first,
                    last,
                }) => {
                    let start = streams.partition_point(|(id, _)| *id < (*instance, *first));
                    let end = streams.partition_point(|(id, _)| *id <= (*instance, *last));
                    let covered = streams.get(start..end).unwrap_or_default();
                    for (_, device) in covered {
                        tell(*device);
                    }
                }
                Some(subject) => self.questions.visit(subject, |covered| {
                    tell(covered.device);
                    Then::Open
                }),
            }
        }
    }

    /// Finds how far devices reach: what is said first counts.
    fn find_reaches(&mut self) {
        let mut is_known = Vec::new();
        is_known.resize(self.devices.len(), false);
        for reach in &self.description.reaches {
            let devices = &mut self.devices;
            self.questions.visit(&reach.subject, |covered| {
                if !mem::replace(&mut is_known[covered.device], true) {
                    devices[covered.device].reach = DeviceReach {
                        address_bits: reach.address_bits,
                        ranges: reach.ranges.clone(),
                    };
                }
                Then::Closed
            });
        }
        self.questions.reopen();
    }

    /// Finds what drivers want to know: of coherence and of PASIDs what is said first, of device TLBs the most.
    fn find_properties(&mut self) {
        let Self {
            description,
            questions,
            devices,
            ..
        } = self;
        for said in &description.coherence {
            questions.visit(&said.subject, |covered| {
                let is_coherent = &mut devices[covered.device].is_coherent;
                *is_coherent = is_coherent.or(Some(said.is_coherent));
                Then::Closed
            });
        }
        questions.reopen();
        for said in &description.pasids {
            questions.visit(&said.subject, |covered| {
                let bits = &mut devices[covered.device].pasid_bits;
                *bits = if *bits == 0 { said.bits } else { *bits };
                Then::Closed
            });
        }
        questions.reopen();
        // Closed once nothing more can be said: who requires it comes first.
        let (required, allowed): (Vec<_>, Vec<_>) =
            description.ats.iter().partition(|ats| ats.is_required);
        for said in required.into_iter().chain(allowed) {
            let found = if said.is_required {
                DeviceTlb::Required
            } else {
                DeviceTlb::Allowed
            };
            questions.visit(&said.subject, |covered| {
                let tlb = &mut devices[covered.device].device_tlb;
                *tlb = found.max(*tlb);
                Then::Closed
            });
        }
        questions.reopen();
    }

    fn find_suppliers(&mut self) -> Vec<SupplierEdge> {
        let mut edges = Vec::new();
        for supplier in &self.description.suppliers {
            let instance = supplier.instance;
            let devices = &self.devices;
            self.questions.visit(&supplier.consumer, |covered| {
                let consumer = devices[covered.device].address;
                let edge = SupplierEdge { consumer, instance };
                // The IDs of a device are neighbours, most often.
                if edges.last() != Some(&edge) {
                    edges.push(edge);
                }
                Then::Open
            });
        }
        edges
    }

    fn take_in(&mut self, besides: &Besides) -> Result<(), ResolveError> {
        let tree = self.tree;
        let place = |address| {
            let place = tree.index(address);
            place.ok_or(ResolveError::NoFunction { address })
        };
        for port in &besides.external_ports {
            for device in self.questions.below(place(*port)?) {
                self.devices[device].is_untrusted = true;
            }
        }
        for (address, bits) in &besides.pasid_bits {
            self.devices[place(*address)?].pasid_bits = *bits;
        }
        Ok(())
    }

    fn group(&mut self, rule: Rule) -> Result<(), ResolveError> {
        let mut members: Vec<_> = self
            .devices
            .iter()
            .zip(0..)
            .map(|(device, number)| Member {
                node: match device.address {
                    DeviceAddress::Pci(address) => Node::Pci(address),
                    DeviceAddress::Node(_) | DeviceAddress::Input { .. } => Node::Other(number),
                },
                translation: Translation::ById,
            })
            .collect();
        for (device, _) in &self.untranslated {
            members[*device].translation = Translation::Untranslated;
        }
        let partition = groups(self.tree, &members, rule)?;
        let mut of: Vec<_> = members
            .iter()
            .zip(0..)
            .map(|(member, device)| (partition.group_of(member.node).ok_or(device), device))
            .collect();
        of.sort_unstable();
        self.cells.sort_unstable();
        let mut sets = Sets::new(self.devices.len());
        sets.join_equal(&of);
        sets.join_equal(&self.cells);
        let instances = self.description.instances.iter().zip(0..);
        for (instance, index) in instances {
            if instance.architecture == Architecture::Smmu {
                let ids = masks::ids_of(&self.devices, InstanceIndex(index));
                if masks::join_shared(ids, &mut sets).is_err() {
                    self.instances[index].tells_devices_apart = false;
                }
            }
        }
        for (device, group) in self.devices.iter_mut().zip(sets.numbered()) {
            device.group = group;
        }
        Ok(())
    }

    fn into_resolution(mut self) -> Resolution {
        let suppliers = self.find_suppliers();
        let untranslated = self.untranslated.iter();
        let untranslated = untranslated
            .map(|(device, why)| (self.devices[*device].address, *why))
            .collect();
        Resolution {
            parts: MachineParts {
                devices: self.devices,
                instances: self.instances,
                anonymous_count: 0,
                suppliers,
            },
            untranslated,
        }
    }
}

const fn closed_if(is_closed: bool) -> Then {
    if is_closed { Then::Closed } else { Then::Open }
}
