//! A machine as the registry sees it: which device is known to which instance, and in which group.
//!
//! All of it is settled before anything is probed, so nothing here depends on who comes first.

mod grow;

use alloc::vec::Vec;
use core::cmp::Ordering;
use core::fmt;

use iopt_formats::IovaRange;

use crate::device::{DeviceAddress, MachineError};
use crate::firmware::{DmaRange, InstanceIndex, MAX_PASID_BITS, RegionKind};

/// Which instance this is: what look-ups go by, and nothing else does.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Identity {
    /// The one that firmware describes.
    Described(InstanceIndex),
    /// One that firmware does not describe, by its number among those. Together they serve exactly the
    /// devices that no rule names: each is asked, in rising order, whether the device is its own.
    Anonymous(u32),
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Described(InstanceIndex(index)) => write!(f, "instance {index}"),
            Self::Anonymous(number) => write!(f, "anonymous instance {number}"),
        }
    }
}

/// Where a device's requests arrive.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Stream {
    /// The instance.
    pub instance: InstanceIndex,
    /// Under which IDs, each of its DMA aliases included. Those of an Arm SMMU before version 3 have in
    /// bits 31:16 which of the bits 15:0 do not count
    /// ([`Identity::Number`](crate::firmware::Identity::Number)).
    pub ids: Vec<u32>,
}

/// IOVA of one device that are not free for use.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DeviceRegion {
    /// Which.
    pub range: IovaRange,
    /// Why.
    pub kind: RegionKind,
}

/// How far one device reaches.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct DeviceReach {
    /// How many bits of an address it has, if that is known.
    pub address_bits: Option<u8>,
    /// Which addresses of its bus lead to memory; empty if all do.
    pub ranges: Vec<DmaRange>,
}

/// What firmware says of a TLB that a device may have.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum DeviceTlb {
    /// Nothing: what is between it and the instance may not take its requests. It must stay off.
    #[default]
    Unsaid,
    /// That it may be used.
    Allowed,
    /// That the device does not work without it.
    Required,
}

/// Why a device is not translated, although instances see it.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[non_exhaustive]
pub enum Refusal {
    /// Some of its requests, under another ID, are behind no IOMMU: whoever got the device could do with
    /// those what it likes.
    Partial,
    /// Which IOVA it uses by itself cannot be read: it would no longer reach them.
    Regions,
}

/// All that is known of a device.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Resolved {
    /// Which it is.
    pub address: DeviceAddress,
    /// Where its requests arrive, at most once for each instance; empty if no rule names it.
    pub streams: Vec<Stream>,
    /// Equal for devices that isolation cannot part; any number.
    pub group: usize,
    /// Which IOVA are not free.
    pub regions: Vec<DeviceRegion>,
    /// How far it reaches.
    pub reach: DeviceReach,
    /// Whether it could be anybody's, as behind an external port: it is never given the whole memory.
    pub is_untrusted: bool,
    /// How wide its PASIDs are, 0 to 20 bits; 0 for a device without.
    pub pasid_bits: u8,
    /// What becomes of a TLB of its own.
    pub device_tlb: DeviceTlb,
    /// Whether its requests snoop the processor's caches, if that is known.
    pub is_coherent: Option<bool>,
    /// Why it is not translated, although it has streams.
    pub refusal: Option<Refusal>,
}

impl Resolved {
    /// Creates a device of a group of its own choice that no rule names, is trusted and has no PASID.
    pub const fn new(address: DeviceAddress, group: usize) -> Self {
        Self {
            address,
            streams: Vec::new(),
            group,
            regions: Vec::new(),
            reach: DeviceReach {
                address_bits: None,
                ranges: Vec::new(),
            },
            is_untrusted: false,
            pasid_bits: 0,
            device_tlb: DeviceTlb::Unsaid,
            is_coherent: None,
            refusal: None,
        }
    }
}

/// What is known of an instance before its driver comes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct InstanceFacts {
    /// The device that it is itself, which it cannot translate.
    pub hardware: Option<DeviceAddress>,
    /// Whether it may be used.
    pub is_enabled: bool,
    /// Whether it can treat its devices differently. If not, all of them are one group.
    pub tells_devices_apart: bool,
}

impl Default for InstanceFacts {
    fn default() -> Self {
        Self {
            hardware: None,
            is_enabled: true,
            tells_devices_apart: true,
        }
    }
}

/// A device cannot work before an instance does: an order of binding and of power, nothing else.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SupplierEdge {
    /// The device.
    pub consumer: DeviceAddress,
    /// The instance.
    pub instance: InstanceIndex,
}

/// What a [`Machine`] is made of.
#[derive(Clone, Debug, Default)]
pub struct MachineParts {
    /// The devices, in any order.
    pub devices: Vec<Resolved>,
    /// The instances that firmware describes, in its order.
    pub instances: Vec<InstanceFacts>,
    /// How many instances there are besides, each [`Anonymous`](Identity::Anonymous).
    pub anonymous_count: u32,
    /// Who needs whom.
    pub suppliers: Vec<SupplierEdge>,
}

/// Devices, instances and groups, resolved before anything is probed. What is known never changes; more can
/// become known ([`Registry::grow`](crate::device::Registry::grow)).
#[derive(Debug)]
pub struct Machine {
    /// By number. Numbers rise with addresses, but those of a machine that grew with its age.
    devices: Vec<Resolved>,
    /// Numbers, in rising order of address.
    sorted: Vec<usize>,
    instances: Vec<InstanceFacts>,
    anonymous_count: u32,
    /// By consumer.
    suppliers: Vec<SupplierEdge>,
    /// The group of each device, numbered by its first member.
    group_of: Vec<usize>,
    /// Devices by group, in each in rising order of address.
    members: Vec<Vec<usize>>,
    /// Instances by group, rising in each.
    group_instances: Vec<Vec<Identity>>,
    /// Devices by described instance, rising in each.
    devices_of: Vec<Vec<usize>>,
    /// Devices that no rule names.
    unnamed: Vec<usize>,
}

impl Machine {
    /// Puts a machine together. Devices that share an ID at an instance, or an instance that cannot tell
    /// them apart, come into one group, whatever groups they were given.
    ///
    /// # Errors
    ///
    /// [`MachineError`].
    pub fn new(parts: MachineParts) -> Result<Self, MachineError> {
        let MachineParts {
            mut devices,
            instances,
            anonymous_count,
            suppliers,
        } = parts;
        devices.sort_by_key(|device| device.address);
        for pair in devices.windows(2) {
            if let [one, other] = pair
                && one.address == other.address
            {
                return Err(MachineError::Twice {
                    address: one.address,
                });
            }
        }
        for device in &mut devices {
            device.streams.sort_by_key(|stream| stream.instance);
            for stream in &mut device.streams {
                stream.ids.sort_unstable();
                stream.ids.dedup();
            }
            check(device, instances.len())?;
        }
        if let Some(edge) = suppliers
            .iter()
            .find(|edge| edge.instance.0 >= instances.len())
        {
            return Err(MachineError::UnknownInstance {
                address: edge.consumer,
                instance: edge.instance,
            });
        }
        let parts = MachineParts {
            devices,
            instances,
            anonymous_count,
            suppliers,
        };
        Ok(Self::assemble(parts))
    }

    /// Puts sound parts together. Devices get numbers in their order.
    fn assemble(parts: MachineParts) -> Self {
        let MachineParts {
            devices,
            instances,
            anonymous_count,
            mut suppliers,
        } = parts;
        suppliers.sort_by_key(|edge| edge.consumer);
        let mut sorted: Vec<_> = (0..devices.len()).collect();
        sorted.sort_unstable_by_key(|&number| devices[number].address);
        let mut devices_of: Vec<Vec<usize>> = instances.iter().map(|_| Vec::new()).collect();
        let mut unnamed = Vec::new();
        for &number in &sorted {
            let device = &devices[number];
            for stream in &device.streams {
                devices_of[stream.instance.0].push(number);
            }
            if device.streams.is_empty() {
                unnamed.push(number);
            }
        }
        let group_of = partition(&devices, &instances, &devices_of);
        let group_count = group_of.iter().max().map_or(0, |&last| last + 1);
        let mut machine = Self {
            devices,
            sorted,
            instances,
            anonymous_count,
            suppliers,
            group_of,
            members: (0..group_count).map(|_| Vec::new()).collect(),
            group_instances: (0..group_count).map(|_| Vec::new()).collect(),
            devices_of,
            unnamed,
        };
        for &number in &machine.sorted {
            let group = machine.group_of[number];
            machine.members[group].push(number);
            let needs: Vec<_> = machine.needs(number).collect();
            machine.group_instances[group].extend(needs);
        }
        for identities in &mut machine.group_instances {
            identities.sort_unstable();
            identities.dedup();
        }
        machine
    }

    /// Returns the numbers of all devices, in rising order of address.
    pub(super) fn numbers(&self) -> impl Iterator<Item = usize> + '_ {
        self.sorted.iter().copied()
    }

    /// Returns how many devices there are.
    pub(super) fn len(&self) -> usize {
        self.devices.len()
    }

    /// Returns what is known of a device.
    pub fn device(&self, address: DeviceAddress) -> Option<&Resolved> {
        self.number_of(address).map(|number| self.resolved(number))
    }

    /// Returns all devices, in rising order of address.
    pub fn devices(&self) -> impl ExactSizeIterator<Item = &Resolved> {
        self.sorted.iter().map(|&number| self.resolved(number))
    }

    /// Returns the instances that firmware describes.
    pub fn instances(&self) -> &[InstanceFacts] {
        &self.instances
    }

    /// Returns how many instances there are that firmware does not describe.
    pub const fn anonymous_count(&self) -> u32 {
        self.anonymous_count
    }

    /// Returns the number of groups.
    pub fn group_count(&self) -> usize {
        self.members.len()
    }

    /// Returns the devices of the group of a device, itself included, in rising order.
    pub fn group(&self, address: DeviceAddress) -> Option<impl Iterator<Item = DeviceAddress>> {
        let number = self.number_of(address)?;
        let members = self.members_of(self.group_of(number)).iter();
        Some(members.map(|&member| self.address(member)))
    }

    /// Returns all devices in an order in which the hardware of an instance comes before those that it
    /// serves or supplies, as far as there is one: in a circle, the edge that would close it is left
    /// out. Nothing but convenience depends on it: a bind that comes too early is deferred.
    pub fn binding_order(&self) -> Vec<DeviceAddress> {
        let mut order = Order {
            machine: self,
            state: self.devices.iter().map(|_| Visit::New).collect(),
            sorted: Vec::with_capacity(self.devices.len()),
        };
        for &number in &self.sorted {
            order.visit(number);
        }
        let sorted = order.sorted.into_iter();
        sorted.map(|number| self.address(number)).collect()
    }

    /// Returns the devices that need an instance without being behind it.
    pub(super) fn consumers(
        &self,
        instance: InstanceIndex,
    ) -> impl Iterator<Item = DeviceAddress> + '_ {
        let edges = self.suppliers.iter();
        let edges = edges.filter(move |edge| edge.instance == instance);
        edges.map(|edge| edge.consumer)
    }

    pub(super) fn number_of(&self, address: DeviceAddress) -> Option<usize> {
        let by = |&number: &usize| self.address(number).cmp(&address);
        let place = self.sorted.binary_search_by(by).ok()?;
        Some(self.sorted[place])
    }

    pub(super) fn resolved(&self, number: usize) -> &Resolved {
        &self.devices[number]
    }

    pub(super) fn address(&self, number: usize) -> DeviceAddress {
        self.resolved(number).address
    }

    pub(super) fn group_of(&self, number: usize) -> usize {
        self.group_of[number]
    }

    pub(super) fn members_of(&self, group: usize) -> &[usize] {
        &self.members[group]
    }

    /// Returns the device of a group with the lowest address.
    pub(super) fn first_of(&self, group: usize) -> DeviceAddress {
        self.address(self.members[group][0])
    }

    pub(super) fn instances_of(&self, group: usize) -> &[Identity] {
        &self.group_instances[group]
    }

    /// Returns the devices that an instance may be asked about.
    pub(super) fn devices_of(&self, identity: Identity) -> &[usize] {
        match identity {
            Identity::Described(index) => self.devices_of.get(index.0).map_or(&[], Vec::as_slice),
            Identity::Anonymous(_) => &self.unnamed,
        }
    }

    /// Returns the instances without which a device is not probed, in rising order.
    pub(super) fn needs(&self, number: usize) -> impl Iterator<Item = Identity> + '_ {
        let streams = &self.resolved(number).streams;
        let anonymous_count = if streams.is_empty() {
            self.anonymous_count
        } else {
            0
        };
        let described = streams
            .iter()
            .map(|stream| Identity::Described(stream.instance));
        described.chain((0..anonymous_count).map(Identity::Anonymous))
    }

    pub(super) fn is_known(&self, identity: Identity) -> bool {
        match identity {
            Identity::Described(index) => index.0 < self.instances.len(),
            Identity::Anonymous(number) => number < self.anonymous_count,
        }
    }

    pub(super) fn facts(&self, identity: Identity) -> InstanceFacts {
        match identity {
            Identity::Described(index) => self.instances.get(index.0).copied().unwrap_or_default(),
            Identity::Anonymous(_) => InstanceFacts::default(),
        }
    }
}

/// Checks what can be said of one device.
fn check(device: &Resolved, instance_count: usize) -> Result<(), MachineError> {
    let address = device.address;
    if device.pasid_bits > MAX_PASID_BITS {
        let bits = device.pasid_bits;
        return Err(MachineError::PasidBits { address, bits });
    }
    for stream in &device.streams {
        let instance = stream.instance;
        if instance.0 >= instance_count {
            return Err(MachineError::UnknownInstance { address, instance });
        }
    }
    for pair in device.streams.windows(2) {
        if let [one, other] = pair
            && one.instance == other.instance
        {
            let instance = one.instance;
            return Err(MachineError::StreamTwice { address, instance });
        }
    }
    Ok(())
}

/// Returns the group of each device, numbered in the order of their first members.
fn partition(
    devices: &[Resolved],
    instances: &[InstanceFacts],
    devices_of: &[Vec<usize>],
) -> Vec<usize> {
    let mut sets = Sets::new(devices.len());
    let mut by_group: Vec<_> = devices.iter().map(|device| device.group).zip(0..).collect();
    by_group.sort_unstable();
    sets.join_equal(&by_group);
    for (of, facts) in devices_of.iter().zip(instances) {
        if !facts.tells_devices_apart {
            let alike: Vec<_> = of.iter().map(|&number| ((), number)).collect();
            sets.join_equal(&alike);
        }
    }
    let mut by_id = Vec::new();
    for (number, device) in devices.iter().enumerate() {
        for stream in &device.streams {
            let ids = stream.ids.iter();
            by_id.extend(ids.map(|&id| ((stream.instance, id), number)));
        }
    }
    by_id.sort_unstable();
    sets.join_equal(&by_id);
    sets.numbered()
}

/// Disjoint sets of numbers, each named by its smallest.
pub(super) struct Sets(Vec<usize>);

impl Sets {
    pub(super) fn new(count: usize) -> Self {
        Self((0..count).collect())
    }

    fn find(&mut self, mut number: usize) -> usize {
        while self.0[number] != number {
            let above = self.0[self.0[number]];
            self.0[number] = above;
            number = above;
        }
        number
    }

    /// Joins neighbours with equal keys.
    pub(super) fn join_equal<K: Eq>(&mut self, sorted: &[(K, usize)]) {
        for pair in sorted.windows(2) {
            if let [(one_key, one), (other_key, other)] = pair
                && one_key == other_key
            {
                let (one, other) = (self.find(*one), self.find(*other));
                match one.cmp(&other) {
                    Ordering::Less => self.0[other] = one,
                    Ordering::Greater => self.0[one] = other,
                    Ordering::Equal => {}
                }
            }
        }
    }

    pub(super) fn numbered(mut self) -> Vec<usize> {
        let mut numbers = Vec::with_capacity(self.0.len());
        let mut next = 0;
        for number in 0..self.0.len() {
            let first = self.find(number);
            numbers.push(if first == number {
                next += 1;
                next - 1
            } else {
                numbers[first]
            });
        }
        numbers
    }
}

#[derive(Clone, Copy, Eq, PartialEq)]
enum Visit {
    New,
    Begun,
    Done,
}

/// A sort by edges, without recursion: chains may be as long as firmware likes.
struct Order<'a> {
    machine: &'a Machine,
    state: Vec<Visit>,
    sorted: Vec<usize>,
}

impl Order<'_> {
    fn visit(&mut self, start: usize) {
        let mut path = Vec::new();
        self.begin(start, &mut path);
        while let Some((number, suppliers)) = path.last_mut() {
            if let Some(supplier) = suppliers.pop() {
                self.begin(supplier, &mut path);
            } else {
                let number = *number;
                self.state[number] = Visit::Done;
                self.sorted.push(number);
                path.pop();
            }
        }
    }

    /// Steps down to a device, unless it was met before; one on the path itself closes a circle.
    fn begin(&mut self, number: usize, path: &mut Vec<(usize, Vec<usize>)>) {
        if self.state[number] == Visit::New {
            self.state[number] = Visit::Begun;
            path.push((number, self.suppliers(number)));
        }
    }

    fn suppliers(&self, number: usize) -> Vec<usize> {
        let machine = self.machine;
        let address = machine.address(number);
        let all = &machine.suppliers;
        let start = all.partition_point(|edge| edge.consumer < address);
        let edges = all.iter().skip(start);
        let edges = edges.take_while(|edge| edge.consumer == address);
        let served = machine.resolved(number).streams.iter();
        let instances = edges
            .map(|edge| edge.instance)
            .chain(served.map(|stream| stream.instance));
        instances
            .filter_map(|instance| machine.instances.get(instance.0)?.hardware)
            .filter_map(|hardware| machine.number_of(hardware))
            .collect()
    }
}
