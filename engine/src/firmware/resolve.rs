//! Who is behind which IOMMU: looking up in a [`Description`].
//!
//! Nothing here walks a bus. Where firmware names a function by its path through bridges, whether a
//! device is there is asked of a [`Position`].

#[cfg(test)]
mod tests;

use alloc::vec::Vec;
use core::fmt;

use crate::firmware::{
    Architecture, Ats, Description, Flaw, InstanceIndex, NodeIndex, Output, PciPath, Reach, Region,
    Rule, Subject, Topic,
};
use crate::topology::PciAddress;

/// Where a PCI function is, for sentences that name functions by paths. [`Place`](crate::firmware::Place) is
/// one in a tree.
pub trait Position: fmt::Debug {
    /// Returns whether the function is the one at the end of the path.
    fn is_at(&self, path: &PciPath) -> bool;
    /// Returns whether the function is at the end of the path or below it.
    fn is_below(&self, path: &PciPath) -> bool;
    /// Returns whether the function is a root port or below one.
    fn is_below_root_port(&self) -> bool;
}

/// Who is asked for.
#[derive(Clone, Copy, Debug)]
pub enum Who<'a> {
    /// A PCI function under one of its requester IDs.
    Requester(PciAddress, &'a dyn Position),
    /// A device that firmware names.
    Node(NodeIndex),
    /// A device on the bus of one that firmware names, under its ID there.
    Input(NodeIndex, u32),
}

/// What firmware says of who is asked for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Behind<'a, T> {
    /// It is behind an IOMMU.
    Instance(T),
    /// It is behind none, and this rule says so: its IOMMU may not be used.
    Nothing(&'a Rule),
    /// What firmware says cannot be read. It may well be behind an IOMMU.
    Unreadable(&'a Flaw),
    /// Nothing, which means that it is behind none.
    Unsaid,
}

/// As what an instance sees a device.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Seen<'a> {
    /// The instance.
    pub instance: InstanceIndex,
    /// The ID.
    pub identity: Identity<'a>,
    /// Another ID under which it may see the device as well.
    pub alias: Option<u32>,
    /// The rule that says so.
    pub rule: &'a Rule,
}

/// An ID of an instance.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Identity<'a> {
    /// A number: a `StreamID`, a requester ID, a device ID, an endpoint ID. That of an Arm SMMU before
    /// version 3 is as its stream match registers have it (IHI 0062D, `SMMU_SMRn`): the ID in bits 15:0,
    /// and in bits 31:16 those that are set where the ID's do not count, and are 0.
    Number(u32),
    /// None, or several cells that only the driver of the instance understands.
    Cells(&'a [u32]),
}

impl Description {
    /// Looks up one PCI function under one requester ID. A device that uses several, by its own doing or
    /// by that of a bridge, is looked up under each.
    ///
    /// Of several rules that fit the first one counts; [`Subject::Rest`] fits where no other does, and
    /// rules that lead to no instance count where all others fail.
    pub fn requester<'a>(
        &'a self,
        address: PciAddress,
        position: &dyn Position,
    ) -> Behind<'a, Seen<'a>> {
        self.first(&Who::Requester(address, position))
    }

    /// Looks up a device on the bus of a named one.
    pub fn input(&self, node: NodeIndex, id: u32) -> Behind<'_, Seen<'_>> {
        self.first(&Who::Input(node, id))
    }

    /// Looks up a named device. It can have several IDs, of several instances, and has them all.
    pub fn node(&self, node: NodeIndex) -> Behind<'_, Vec<Seen<'_>>> {
        let who = Who::Node(node);
        let fitting = || self.fitting(&who);
        let seen: Vec<_> = fitting()
            .filter_map(|(rule, input)| self.seen(rule, input))
            .collect();
        if !seen.is_empty() {
            return Behind::Instance(seen);
        }
        let nothing = fitting().next();
        nothing.map_or_else(|| self.unsaid(&who), |(rule, _)| Behind::Nothing(rule))
    }

    /// Returns the IOVA that are not free for it. Those for everyone are among them.
    pub fn regions_of<'a>(&'a self, who: Who<'a>) -> impl Iterator<Item = &'a Region> {
        let seen = match who {
            Who::Node(node) => match self.node(node) {
                Behind::Instance(seen) => seen,
                _ => Vec::new(),
            },
            Who::Requester(..) | Who::Input(..) => match self.first(&who) {
                Behind::Instance(seen) => [seen].into(),
                _ => Vec::new(),
            },
        };
        let is_for = move |subject: &Subject| {
            subject.input(&who).is_some() || seen.iter().any(|seen| seen.is_among(subject))
        };
        let regions = self.regions.iter();
        regions.filter(move |region| region.subject.as_ref().is_none_or(&is_for))
    }

    /// Returns how far it reaches, if firmware says so.
    pub fn reach_of(&self, who: Who<'_>) -> Option<&Reach> {
        let mut reaches = self.reaches.iter();
        reaches.find(|reach| reach.subject.input(&who).is_some())
    }

    /// Returns whether its requests snoop the processor's caches, if firmware says so.
    pub fn is_coherent(&self, who: Who<'_>) -> Option<bool> {
        let mut coherence = self.coherence.iter();
        let found = coherence.find(|coherence| coherence.subject.input(&who).is_some());
        found.map(|coherence| coherence.is_coherent)
    }

    /// Returns what firmware says of device TLBs for it. That it cannot work without counts wherever it is
    /// said.
    pub fn ats_of(&self, who: Who<'_>) -> Option<&Ats> {
        let ats = self.ats.iter();
        let mut fitting = ats.filter(|ats| ats.subject.input(&who).is_some());
        let first = fitting.next()?;
        if first.is_required {
            return Some(first);
        }
        Some(fitting.find(|ats| ats.is_required).unwrap_or(first))
    }

    /// Returns how many bits its PASIDs have; 0 if firmware does not say that it has any.
    pub fn pasid_bits(&self, who: Who<'_>) -> u8 {
        let mut pasids = self.pasids.iter();
        let found = pasids.find(|pasids| pasids.subject.input(&who).is_some());
        found.map_or(0, |pasids| pasids.bits)
    }

    fn first<'a>(&'a self, who: &Who<'_>) -> Behind<'a, Seen<'a>> {
        let mut rest = None;
        let mut nothing = None;
        for (rule, input) in self.fitting(who) {
            match self.seen(rule, input) {
                Some(seen) if matches!(rule.subject, Subject::Rest { .. }) => {
                    rest = rest.or(Some(seen));
                }
                Some(seen) => return Behind::Instance(seen),
                None => nothing = nothing.or(Some(rule)),
            }
        }
        match (rest, nothing) {
            (Some(seen), _) => Behind::Instance(seen),
            (None, Some(rule)) => Behind::Nothing(rule),
            (None, None) => self.unsaid(who),
        }
    }

    /// The rules for it, and what each one takes for its ID.
    fn fitting<'a>(&'a self, who: &Who<'_>) -> impl Iterator<Item = (&'a Rule, u32)> {
        let rules = self.rules.iter();
        rules.filter_map(move |rule| Some((rule, rule.subject.input(who)?)))
    }

    /// What no rule speaks of.
    fn unsaid<T>(&self, who: &Who<'_>) -> Behind<'_, T> {
        let mut flaws = self.flaws.iter().filter(|flaw| flaw.topic == Topic::Rule);
        let is_about = |flaw: &&Flaw| {
            let subject = flaw.subject.as_ref();
            subject.is_some_and(|subject| subject.input(who).is_some())
        };
        flaws
            .find(is_about)
            .map_or(Behind::Unsaid, Behind::Unreadable)
    }

    /// As what the instance of a rule sees an input; `None` if it has none that may be used, or if there
    /// is no such ID.
    pub(crate) fn seen<'a>(&'a self, rule: &'a Rule, input: u32) -> Option<Seen<'a>> {
        let instance = rule.instance?;
        let described = self.instances.get(instance.0)?;
        if !described.is_enabled {
            return None;
        }
        let has_masks = described.architecture == Architecture::Smmu;
        let number = |number| {
            if has_masks {
                matched(number, described.match_mask.into())
            } else {
                Some(number)
            }
        };
        let identity = match &rule.output {
            Output::Offset(offset) | Output::Both { offset, .. } => {
                Identity::Number(number(input.checked_add(*offset)?)?)
            }
            Output::Fixed(fixed) => Identity::Number(number(*fixed)?),
            Output::Cells(cells) => match cells.as_slice() {
                [one] => Identity::Number(number(*one)?),
                [id, mask] if has_masks => Identity::Number(matched(*id, *mask)?),
                cells => Identity::Cells(cells),
            },
        };
        let alias = match rule.output {
            Output::Both { alias, .. } => Some(number(alias)?),
            _ => None,
        };
        Some(Seen {
            instance,
            identity,
            alias,
            rule,
        })
    }
}

/// An ID and the bits of it that do not count, as a stream match register has them.
fn matched(id: u32, mask: u32) -> Option<u32> {
    let [id, mask] = [u16::try_from(id).ok()?, u16::try_from(mask).ok()?];
    Some(u32::from(mask) << 16 | u32::from(id & !mask))
}

impl Seen<'_> {
    /// Whether it is one of the IDs of an instance that a sentence is about.
    fn is_among(&self, subject: &Subject) -> bool {
        let Subject::Streams {
            instance,
            first,
            last,
        } = subject
        else {
            return false;
        };
        let own = match self.identity {
            Identity::Number(number) => Some(number),
            Identity::Cells(_) => None,
        };
        let mut ids = own.into_iter().chain(self.alias);
        self.instance == *instance && ids.any(|id| (*first..=*last).contains(&id))
    }
}

impl Subject {
    /// The ID of who is asked for under the mask, less the lower bound; `None` if it is not this one.
    fn input(&self, who: &Who<'_>) -> Option<u32> {
        match (self, who) {
            (
                Self::Requesters {
                    segment,
                    mask,
                    first,
                    last,
                },
                Who::Requester(address, _),
            ) => {
                let id = address.requester.get() & mask;
                let fits = address.segment == *segment && id <= last.get();
                let input = id.checked_sub(first.get()).filter(|_| fits)?;
                Some(u32::from(input))
            }
            (Self::Function(path), Who::Requester(address, position)) => {
                is_in(*address, path.segment, || position.is_at(path))
            }
            (Self::Below(path), Who::Requester(address, position)) => {
                is_in(*address, path.segment, || position.is_below(path))
            }
            (Self::BelowRootPorts { segment }, Who::Requester(address, position)) => {
                is_in(*address, *segment, || position.is_below_root_port())
            }
            (Self::Rest { segment }, Who::Requester(address, _)) => {
                is_in(*address, *segment, || true)
            }
            (Self::Node(node), Who::Node(asked)) => (node == asked).then_some(0),
            (
                Self::Inputs {
                    node,
                    mask,
                    first,
                    last,
                },
                Who::Input(asked, id),
            ) => {
                let id = id & mask;
                let fits = node == asked && id <= *last;
                id.checked_sub(*first).filter(|_| fits)
            }
            _ => None,
        }
    }
}

/// The requester ID, if it is in the segment and fits otherwise.
fn is_in(address: PciAddress, segment: u16, fits: impl FnOnce() -> bool) -> Option<u32> {
    (address.segment == segment && fits()).then_some(u32::from(address.requester.get()))
}
