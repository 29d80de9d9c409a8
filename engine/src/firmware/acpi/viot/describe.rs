//! What the nodes say, as rules.

use alloc::collections::BTreeMap;
use alloc::format;

use crate::firmware::acpi::error::{AcpiError, Fault};
use crate::firmware::acpi::taken::Taken;
use crate::firmware::acpi::viot::{NodeKind, PciRange, SIGNATURE, Table};
use crate::firmware::{
    Architecture, Bus, Description, Instance, InstanceIndex, Itself, Location, Node, NodeIndex,
    Output, Rule, Subject,
};
use crate::topology::{PciAddress, RequesterId};

/// How many segments all ranges of a table may have together, one range in each counted once.
pub(super) const SEGMENTS: usize = 4096;

impl Table {
    /// Adds what the table says. Of two nodes with the same endpoint the first one counts. An endpoint that
    /// is a virtio-iommu keeps its rule, and is known as what it is.
    pub(in crate::firmware::acpi) fn describe(
        &self,
        description: &mut Description,
    ) -> Result<(), AcpiError> {
        let mut instances = BTreeMap::new();
        for (index, node) in self.nodes.iter().enumerate() {
            let (location, name) = match node.kind {
                NodeKind::IommuPci(address) => (
                    Location::Pci(address),
                    format!("VIOT virtio-iommu {address}"),
                ),
                NodeKind::IommuMmio { base } => (
                    Location::Memory { base, len: None },
                    format!("VIOT virtio-iommu at {base:#x}"),
                ),
                _ => continue,
            };
            instances.insert(
                index,
                (InstanceIndex(description.instances.len()), location),
            );
            description.instances.push(Instance {
                architecture: Architecture::Virtio,
                location,
                name,
                is_enabled: true,
                is_coherent: None,
                itself: None,
                match_mask: 0,
            });
        }
        let mut endpoints = BTreeMap::new();
        let mut taken = Taken::default();
        let mut segments = 0_usize;
        for node in &self.nodes {
            match node.kind {
                NodeKind::PciRange(range) => {
                    let Some(&(instance, location)) = instances.get(&range.output) else {
                        continue;
                    };
                    let (first, last) = range.segments;
                    segments = segments.saturating_add(usize::from(last - first) + 1);
                    let wrong = |at: usize, what, fault| AcpiError {
                        table: SIGNATURE,
                        offset: node.offset.saturating_add(at),
                        what,
                        fault,
                    };
                    if segments > SEGMENTS {
                        let fault = Fault::TooMany { limit: SEGMENTS };
                        return Err(wrong(8, "the segments", fault));
                    }
                    if range.endpoint.checked_add(range.span()).is_none() {
                        return Err(wrong(4, "the first endpoint", Fault::Overflow));
                    }
                    for segment in first..=last {
                        range.describe(segment, instance, location, &mut taken, description);
                    }
                }
                NodeKind::Mmio {
                    endpoint,
                    base,
                    output,
                } => {
                    let Some(&(instance, _)) = instances.get(&output) else {
                        continue;
                    };
                    let index = NodeIndex(description.nodes.len());
                    if endpoints.contains_key(&base) {
                        continue;
                    }
                    endpoints.insert(base, index);
                    description.nodes.push(Node {
                        name: format!("memory at {base:#x}"),
                        bus: Bus::Platform,
                    });
                    description.rules.push(Rule {
                        subject: Subject::Node(index),
                        instance: Some(instance),
                        output: Output::Fixed(endpoint),
                        amd_settings: 0,
                    });
                }
                _ => {}
            }
        }
        for (InstanceIndex(index), location) in instances.into_values() {
            if let Location::Memory { base, .. } = location
                && let Some(instance) = description.instances.get_mut(index)
            {
                instance.itself = endpoints.get(&base).copied().map(Itself::Node);
            }
        }
        Ok(())
    }
}

impl PciRange {
    /// Returns how much larger the ID of the last endpoint is than that of the first.
    fn span(&self) -> u32 {
        let (first, last) = self.requesters;
        u32::from(self.segments.1 - self.segments.0) << 16 | u32::from(last.get() - first.get())
    }

    /// Adds the rules of one segment. The virtio-iommu is not behind itself, although it may be in the
    /// range.
    fn describe(
        &self,
        segment: u16,
        instance: InstanceIndex,
        location: Location,
        taken: &mut Taken,
        description: &mut Description,
    ) {
        let key = |requester: u16| u64::from(segment) << 16 | u64::from(requester);
        let (first, last) = (self.requesters.0.get(), self.requesters.1.get());
        let mut rule = |from: u64, to: u64| {
            let [from, to] = [from as u16, to as u16];
            let before = u32::from(segment - self.segments.0) << 16;
            description.rules.push(Rule {
                subject: Subject::Requesters {
                    segment,
                    mask: u16::MAX,
                    first: RequesterId::new(from),
                    last: RequesterId::new(to),
                },
                instance: Some(instance),
                // Not more than the endpoint of the last function, which was checked.
                output: Output::Offset(
                    self.endpoint
                        .wrapping_add(before)
                        .wrapping_add(u32::from(from - first)),
                ),
                amd_settings: 0,
            });
        };
        let own = match location {
            Location::Pci(PciAddress {
                segment: own,
                requester,
            }) if own == segment => Some(requester.get()),
            _ => None,
        };
        match own.filter(|own| (first..=last).contains(own)) {
            Some(own) => {
                if first < own {
                    taken.take(key(first), key(own - 1), &mut rule);
                }
                if own < last {
                    taken.take(key(own + 1), key(last), &mut rule);
                }
            }
            None => taken.take(key(first), key(last), &mut rule),
        }
    }
}
