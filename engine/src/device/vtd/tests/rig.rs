//! A registry of devices that ask for pages, behind two units whose descriptors are written down.

use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::mem;

use super::*;
use crate::device::fault::{DeviceFaults, FaultHandler};
use crate::device::process::{Process, ProcessDomain};
use crate::device::{
    AttachError, By, Config, DefaultKind, DeviceAddress, DeviceControl, DeviceTlb, Driver,
    Endpoint, Hwpt, Identity, InstanceFacts, Machine, MachineParts, NewDomainError, Owner,
    Ownership, ProbeError, ProbeRequest, Registration, Registry, Resolved, Stream,
};
use crate::firmware::{InstanceIndex, NodeIndex};
use crate::radix::MapSide;
use crate::sync::{Class, Mutex};

/// Of the tests' own locks: held for a moment, and around nothing.
static LOG: Class = Class::unranked("log of a test");

pub(super) type Domain = VtdDomain<Heap, Queue>;
type Device = VtdEndpoint<Heap, Queue>;

/// Besides: page requests that can be drained, and walks that snoop.
const ASKING: u64 = ECAP | 1 << 29 | 1 << 42 | 1 << 48;

pub(super) const ASKING_FEATURES: Features = Features::from_registers(CAP, ASKING, 48);

/// What was switched at a device.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Switch {
    Ats(bool),
    PageRequests(bool),
    /// As the one before, where the unit does not pass on what the device asks.
    Unheard(bool),
}

/// Switches of devices, written down.
#[derive(Debug)]
pub(super) struct Control {
    log: Mutex<Vec<(DeviceAddress, Switch)>>,
    units: Mutex<Vec<Weak<Unit>>>,
    /// Responses have no PASID.
    needs_no_pasids: bool,
}

impl DeviceControl for Control {
    fn has_ats(&self, _: DeviceAddress) -> bool {
        true
    }

    fn set_ats(&self, device: DeviceAddress, is_enabled: bool) {
        self.log.lock().push((device, Switch::Ats(is_enabled)));
    }

    fn has_page_requests(&self, _: DeviceAddress) -> bool {
        true
    }

    fn set_page_requests(&self, device: DeviceAddress, are_enabled: bool) {
        let (unit, id) = seen(device);
        let unit = self.units.lock().get(unit).and_then(Weak::upgrade);
        let entry = unit.and_then(|unit| unit.context(id));
        let is_heard = matches!(
            entry,
            Some(ContextEntry::Scalable(context))
                if context.has_page_requests() && context.has_device_tlb()
        );
        let switch = if is_heard {
            Switch::PageRequests(are_enabled)
        } else {
            Switch::Unheard(are_enabled)
        };
        self.log.lock().push((device, switch));
    }

    fn needs_pasids_in_responses(&self, _: DeviceAddress) -> bool {
        !self.needs_no_pasids
    }
}

/// The driver, with what it probed.
#[derive(Debug)]
struct Watched {
    driver: Arc<VtdDriver<Heap, Queue>>,
    probed: Mutex<Vec<(DeviceAddress, Arc<dyn Endpoint>)>>,
}

impl Driver for Watched {
    fn probe(&self, request: &ProbeRequest<'_>) -> Result<Arc<dyn Endpoint>, ProbeError> {
        let endpoint = self.driver.probe(request)?;
        let probed = (request.address(), Arc::clone(&endpoint));
        self.probed.lock().push(probed);
        Ok(endpoint)
    }

    fn new_domain(
        &self,
        kind: DefaultKind,
        endpoints: &[Arc<dyn Endpoint>],
    ) -> Result<Arc<dyn Hwpt>, NewDomainError> {
        self.driver.new_domain(kind, endpoints)
    }

    fn new_process_domain(
        &self,
        process: &Arc<Process>,
        endpoints: &[Arc<dyn Endpoint>],
    ) -> Result<Arc<dyn ProcessDomain>, NewDomainError> {
        self.driver.new_process_domain(process, endpoints)
    }
}

/// Three devices: 0 and 1 are one group, behind unit 0 and unit 1; 2 is behind unit 0. Their requester IDs are
/// 0x10 and so on. Each is owned.
pub(super) struct Rig {
    pub(super) units: [Arc<Unit>; 2],
    pub(super) registry: Arc<Registry>,
    pub(super) ownerships: Vec<Arc<Ownership>>,
    control: Arc<Control>,
    watched: Arc<Watched>,
}

/// Group and unit of each device.
const PLACES: [(usize, usize); 3] = [(0, 0), (0, 1), (1, 0)];

pub(super) const fn node(number: usize) -> DeviceAddress {
    DeviceAddress::Node(NodeIndex(number))
}

fn seen(device: DeviceAddress) -> (usize, u16) {
    let number = (0..PLACES.len()).find(|&number| node(number) == device);
    let number = number.expect("it is one of them");
    (PLACES[number].1, 0x10 + number as u16)
}

impl Rig {
    pub(super) fn new() -> Self {
        Self::with(ASKING_FEATURES, TableMode::Scalable, false)
    }

    /// With a second unit that has `features`, and devices that want responses without PASIDs.
    pub(super) fn with(features: Features, mode: TableMode, needs_no_pasids: bool) -> Self {
        let memory = Arc::new(Heap);
        let units = [ASKING_FEATURES, features].map(|features| {
            let instance = Queue::instance_of(PLANNER);
            Arc::new(Unit::new(features, mode, Arc::clone(&memory), instance).expect("memory"))
        });
        let device = |(number, (group, instance)): (usize, (usize, usize))| {
            let mut device = Resolved::new(node(number), group);
            device.streams.push(Stream {
                instance: InstanceIndex(instance),
                ids: alloc::vec![0x10 + number as u32],
            });
            device.pasid_bits = 8;
            device.device_tlb = DeviceTlb::Allowed;
            device
        };
        let parts = MachineParts {
            devices: PLACES.into_iter().enumerate().map(device).collect(),
            instances: alloc::vec![InstanceFacts::default(); 2],
            ..MachineParts::default()
        };
        let machine = Machine::new(parts).expect("it is one");
        let config = Config {
            default_kind: Some(DefaultKind::Paging),
            ..Config::default()
        };
        let registry = Arc::new(Registry::new(Arc::new(machine), config));
        let control = Arc::new(Control {
            log: Mutex::new(&LOG, Vec::new()),
            units: Mutex::new(&LOG, units.iter().map(Arc::downgrade).collect()),
            needs_no_pasids,
        });
        let plain = Arc::clone(&control) as Arc<dyn DeviceControl>;
        let watched = Arc::new(Watched {
            driver: VtdDriver::<Heap, Queue>::new(memory, plain),
            probed: Mutex::new(&LOG, Vec::new()),
        });
        for (number, unit) in units.iter().enumerate() {
            let registration = Registration {
                identity: Identity::Described(InstanceIndex(number)),
                driver: Arc::clone(&watched) as Arc<dyn Driver>,
                instance: Arc::clone(unit) as _,
            };
            registry.register(registration).expect("it works");
        }
        for number in 0..PLACES.len() {
            registry.add_device(node(number)).expect("it is there");
        }
        let owner = Owner::new("the test");
        let claim = |number| {
            let ownership = registry.claim_owner(node(number), &owner);
            Arc::new(ownership.expect("nobody has it"))
        };
        let ownerships = (0..PLACES.len()).map(claim).collect();
        let rig = Self {
            units,
            registry,
            ownerships,
            control,
            watched,
        };
        rig.switches();
        rig.commands(0);
        rig.commands(1);
        rig
    }

    pub(super) fn by(&self, number: usize) -> By<'_> {
        By::Owner(&self.ownerships[number])
    }

    pub(super) fn attach(
        &self,
        number: usize,
        place: u32,
        domain: &Arc<Domain>,
    ) -> Result<(), AttachError> {
        let (address, by) = (node(number), self.by(number));
        let hwpt = Arc::clone(domain) as Arc<dyn Hwpt>;
        if place == 0 {
            return self.registry.attach(address, by, &hwpt);
        }
        let pasid = pasid(place);
        if self.registry.attached(address, Some(pasid)).is_some() {
            self.registry.replace_pasid(address, by, pasid, &hwpt)
        } else {
            self.registry.attach_pasid(address, by, pasid, &hwpt)
        }
    }

    pub(super) fn detach(&self, number: usize, place: u32) {
        let (address, by) = (node(number), self.by(number));
        let detached = if place == 0 {
            self.registry.detach(address, by)
        } else {
            self.registry.detach_pasid(address, by, pasid(place))
        };
        detached.expect("something is attached");
    }

    /// Returns what was switched since the last call.
    pub(super) fn switches(&self) -> Vec<(DeviceAddress, Switch)> {
        mem::take(&mut *self.control.log.lock())
    }

    /// Returns what a unit was told since the last call.
    pub(super) fn commands(&self, unit: usize) -> Vec<Descriptor> {
        take(&self.units[unit])
    }

    pub(super) fn silence(&self, unit: usize, is_silent: bool) {
        let queue = self.units[unit].instance().queue();
        queue.device().set_silent(is_silent);
    }

    pub(super) fn endpoint(&self, number: usize) -> Arc<Device> {
        let probed = self.watched.probed.lock();
        let probed = probed.iter().find(|(address, _)| *address == node(number));
        let any: Arc<dyn core::any::Any + Send + Sync> =
            Arc::<dyn Endpoint>::clone(&probed.expect("it was probed").1);
        any.downcast().expect("it is ours")
    }

    pub(super) fn faults(&self, number: usize) -> Arc<DeviceFaults> {
        Arc::clone(self.endpoint(number).faults().expect("it can ask"))
    }

    pub(super) fn context(&self, number: usize) -> ScalableContext {
        let (unit, id) = seen(node(number));
        match self.units[unit].context(id) {
            Some(ContextEntry::Scalable(context)) => context,
            other => panic!("{other:?}"),
        }
    }

    /// Returns the PASID entry of a place.
    pub(super) fn entry(&self, number: usize, place: u32) -> PasidEntry {
        let entry = self.endpoint(number).pasid_entry(0, pasid(place));
        entry.unwrap_or(PasidEntry::blocked())
    }
}

pub(super) fn first() -> Domain {
    let format = FirstStage::new(47).expect("legal").with_oa_bits(48);
    let format = format.expect("legal");
    Domain::first_stage(format, Arc::new(Heap), MapSide::Silent).expect("memory")
}

pub(super) fn capable(handler: &Arc<impl FaultHandler + 'static>) -> Arc<Domain> {
    Arc::new(first().with_faults(Arc::clone(handler) as Arc<dyn FaultHandler>))
}
