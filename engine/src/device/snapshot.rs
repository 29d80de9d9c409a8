//! What a registry looks like, without anything that depends on the order in which it came about.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::hash::{Hash as _, Hasher as _};
use std::hash::DefaultHasher;

use iopt_formats::command::Pasid;

use crate::device::group::Inner;
use crate::device::registry::Status;
use crate::device::{DeviceAddress, DomainKind, Hwpt, Identity, Machine, NoIommu, Registry};

/// How the devices, instances and groups of a registry stand at one moment.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Snapshot {
    /// Instances, in rising order, and whether each has taken in all of its devices.
    pub instances: Vec<(Identity, bool)>,
    /// Devices that were added, in rising order of address.
    pub devices: Vec<DeviceSnapshot>,
    /// Groups that have a member, in rising order of their first.
    pub groups: Vec<GroupSnapshot>,
}

/// How a device stands.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct DeviceSnapshot {
    /// Which it is.
    pub address: DeviceAddress,
    /// What its instances make of it.
    pub standing: Standing,
    /// Whether a driver is bound.
    pub is_bound: bool,
}

/// What a device's instances make of it.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Standing {
    /// Nothing yet.
    Waiting,
    /// It is not translated.
    NoIommu(NoIommu),
    /// It is in a group.
    Grouped {
        /// Who serves it, in rising order, and under which IDs.
        streams: Vec<(Identity, Vec<u32>)>,
        /// The first device of its group, whether it was added or not.
        group: DeviceAddress,
    },
}

/// How a group stands.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct GroupSnapshot {
    /// Those of its devices that are in it, in rising order.
    pub members: Vec<DeviceAddress>,
    /// The kind of its default domain, if it has one.
    pub default: Option<DomainKind>,
    /// What requests without a PASID meet.
    pub current: DomainKind,
    /// What those with one meet, in rising order.
    pub pasids: Vec<(Pasid, DomainKind)>,
    /// Whether somebody owns it.
    pub is_owned: bool,
}

impl Snapshot {
    /// Returns how a device stands; `None` if it was not added.
    pub fn device(&self, address: DeviceAddress) -> Option<&DeviceSnapshot> {
        let devices = &self.devices;
        let at = devices.binary_search_by(|device| device.address.cmp(&address));
        at.ok().map(|at| &devices[at])
    }

    /// Returns how the group of a device stands that is in it.
    pub fn group_of(&self, address: DeviceAddress) -> Option<&GroupSnapshot> {
        let mut groups = self.groups.iter();
        groups.find(|group| group.members.contains(&address))
    }
}

impl Registry {
    /// Returns how everything stands. Groups are looked at one after the other, while the registry stands
    /// still.
    pub fn snapshot(&self) -> Snapshot {
        let state = self.lock();
        let machine = &*self.machine();
        let instances = state.instances.iter();
        let instances = instances.map(|(&identity, instance)| (identity, !instance.is_walking));
        let mut devices = Vec::new();
        for number in machine.numbers() {
            let device = state.device(number).filter(|device| !device.is_removed);
            let Some(device) = device else { continue };
            let standing = match &device.status {
                Status::NoIommu(why) => Standing::NoIommu(*why),
                Status::Probed(probed) if !device.is_leaving => {
                    let identities = probed.identities.iter();
                    let ids = &machine.resolved(number).streams;
                    let streams = identities.enumerate().map(|(index, &identity)| {
                        let ids = ids.get(index).map(|stream| stream.ids.clone());
                        (identity, ids.unwrap_or_default())
                    });
                    Standing::Grouped {
                        streams: streams.collect(),
                        group: machine.first_of(machine.group_of(number)),
                    }
                }
                _ => Standing::Waiting,
            };
            devices.push(DeviceSnapshot {
                address: machine.address(number),
                standing,
                is_bound: device.bound.is_some(),
            });
        }
        let mut groups: Vec<_> = (0..machine.group_count())
            .map(|group| group_snapshot(machine, &self.groups[group].lock()))
            .filter(|group| !group.members.is_empty())
            .collect();
        groups.sort_by_key(|group| group.members[0]);
        Snapshot {
            instances: instances.collect(),
            devices,
            groups,
        }
    }

    /// Returns a hash of the [snapshot](Self::snapshot), the same in every run of the program.
    pub fn state_hash(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.snapshot().hash(&mut hasher);
        hasher.finish()
    }
}

fn group_snapshot(machine: &Machine, group: &Inner) -> GroupSnapshot {
    let kind = |domain: &Arc<dyn Hwpt>| domain.kind();
    let members = group.members.keys();
    let mut members: Vec<_> = members.map(|&number| machine.address(number)).collect();
    members.sort_unstable();
    let pasids = group.pasids.iter();
    GroupSnapshot {
        members,
        default: group.default.as_ref().map(kind),
        current: group.current.as_ref().map_or(DomainKind::Blocked, kind),
        pasids: pasids
            .map(|(&pasid, domain)| (pasid, kind(domain)))
            .collect(),
        is_owned: group.owner.is_some(),
    }
}
