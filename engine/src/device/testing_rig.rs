//! A registry of devices behind two IOMMUs of any architecture whose commands are written down, and processes.

use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::any::Any;
use core::mem;

use iopt_formats::Oa;
use iopt_formats::command::{PageResponse, Pasid};

use crate::device::context::{Architecture, HardwareDomain, HardwareDriver, HardwareEndpoint};
use crate::device::fault::{DeviceFaults, FaultHandler, Round};
use crate::device::process::{
    BindProcessError, Bond, ExitError, Process, ProcessDomain, ProcessMemory, ProcessTables,
    Processes, Right,
};
use crate::device::testing::{Recorded, Recorder};
use crate::device::testing_faults::Collector;
use crate::device::{
    AttachError, By, Config, DefaultKind, DeviceAddress, DeviceControl, DeviceTlb, Driver,
    Endpoint, Hwpt, Identity, InstanceFacts, Machine, MachineParts, NewDomainError, Owner,
    Ownership, ProbeError, ProbeRequest, Registration, Registry, Resolved, Stream,
};
use crate::firmware::{InstanceIndex, NodeIndex};
use crate::mem::Heap;
use crate::sync::{Class, Mutex};

/// Of the tests' own locks: held for a moment, and around nothing.
static LOG: Class = Class::unranked("log of a test");

/// An architecture, as the rig needs it.
pub(super) trait Subject:
    Architecture<Memory = Heap, Queue = Recorder<Self::Command>>
{
    type Command: Recorded;

    /// Returns an IOMMU for devices up to 0x1f, with PASIDs of 20 bits, and ATS and page requests if it
    /// `has_page_requests`.
    fn unit(has_page_requests: bool) -> Arc<Self::Unit>;

    /// Returns a domain for any place.
    fn domain() -> HardwareDomain<Self>;

    /// Has an IOMMU report a request for `0x1234_5000`.
    fn ask(unit: &Self::Unit, id: u32, place: u32, group: u16, is_last: bool);

    /// Begins a round over what an IOMMU reports.
    fn begin(unit: &Self::Unit) -> Round<'_>;

    /// Returns whom a command answers, if it does: ID, place that it names, group, and how.
    fn answer(command: &Self::Command) -> Option<(u32, u32, u16, PageResponse)>;

    /// Returns whether a command makes an IOMMU forget contexts.
    fn is_of_context(command: &Self::Command) -> bool;

    /// Returns whether an IOMMU lets a device ask for pages.
    fn allows(unit: &Self::Unit, id: u32) -> bool;

    /// Returns tables of a process at an address.
    fn tables(root: Oa) -> ProcessTables;

    /// Returns which tables requests of a place are led to.
    fn root(endpoint: &HardwareEndpoint<Self>, place: u32) -> Option<Oa>;

    /// Asserts that no ID is in use, or lost.
    fn assert_unused(unit: &Self::Unit);
}

/// What was switched at a device.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Switch {
    Ats(bool),
    PageRequests(bool),
}

/// Switches of devices, written down.
struct Control<A: Subject> {
    log: Mutex<Vec<(DeviceAddress, Switch)>>,
    units: [Arc<A::Unit>; 2],
    needs_pasids: bool,
}

impl<A: Subject> core::fmt::Debug for Control<A> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Control").finish_non_exhaustive()
    }
}

impl<A: Subject> DeviceControl for Control<A> {
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
        let number = (0..PLACES.len()).find(|&number| node(number) == device);
        let number = number.expect("there are no others");
        // Allowed at the IOMMU before it is at the device, and for longer.
        assert!(A::allows(&self.units[PLACES[number].1], id(number)));
        let switch = Switch::PageRequests(are_enabled);
        self.log.lock().push((device, switch));
    }

    fn needs_pasids_in_responses(&self, _: DeviceAddress) -> bool {
        self.needs_pasids
    }
}

/// The driver, with what it probed.
struct Watched<A: Subject> {
    driver: Arc<HardwareDriver<A>>,
    probed: Mutex<Vec<(DeviceAddress, Arc<dyn Endpoint>)>>,
}

impl<A: Subject> core::fmt::Debug for Watched<A> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Watched").finish_non_exhaustive()
    }
}

impl<A: Subject> Driver for Watched<A> {
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

/// Group and IOMMU of each device.
const PLACES: [(usize, usize); 4] = [(0, 0), (0, 1), (1, 0), (2, 1)];

/// Four devices: 0 and 1 are one group, behind IOMMU 0 and IOMMU 1; 2 is behind IOMMU 0, 3 behind IOMMU 1. Their IDs
/// are 0x10 and so on. Each is owned.
pub(super) struct Rig<A: Subject> {
    pub(super) units: [Arc<A::Unit>; 2],
    pub(super) registry: Arc<Registry>,
    pub(super) ownerships: Vec<Arc<Ownership>>,
    control: Arc<Control<A>>,
    watched: Arc<Watched<A>>,
}

pub(super) const fn node(number: usize) -> DeviceAddress {
    DeviceAddress::Node(NodeIndex(number))
}

pub(super) const fn id(number: usize) -> u32 {
    0x10 + number as u32
}

pub(super) fn pasid(number: u32) -> Pasid {
    Pasid::new(number).expect("it has 20 bits")
}

impl<A: Subject> Rig<A> {
    pub(super) fn new() -> Self {
        Self::with([true; 2], true)
    }

    /// Of IOMMUs that have page requests or not, and devices that want PASIDs in answers or not.
    pub(super) fn with(have_page_requests: [bool; 2], needs_pasids: bool) -> Self {
        let units = have_page_requests.map(A::unit);
        let device = |(number, (group, instance)): (usize, (usize, usize))| {
            let mut device = Resolved::new(node(number), group);
            device.streams.push(Stream {
                instance: InstanceIndex(instance),
                ids: alloc::vec![id(number)],
            });
            device.pasid_bits = 20;
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
        let control = Arc::new(Control::<A> {
            log: Mutex::new(&LOG, Vec::new()),
            units: units.clone(),
            needs_pasids,
        });
        let plain = Arc::clone(&control) as Arc<dyn DeviceControl>;
        let watched = Arc::new(Watched {
            driver: HardwareDriver::<A>::new(Arc::new(Heap), plain),
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
        rig.forget_commands();
        rig
    }

    pub(super) fn by(&self, number: usize) -> By<'_> {
        By::Owner(&self.ownerships[number])
    }

    pub(super) fn attach(
        &self,
        number: usize,
        place: u32,
        domain: &Arc<HardwareDomain<A>>,
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

    /// Has the IOMMU of a device report a request of it.
    pub(super) fn ask(&self, number: usize, place: u32, group: u16) {
        A::ask(
            &self.units[PLACES[number].1],
            id(number),
            place,
            group,
            true,
        );
    }

    /// Reads all that the IOMMUs have on record: nothing.
    pub(super) fn read_all(&self) {
        for unit in &self.units {
            A::begin(unit).finish();
        }
    }

    /// Returns what was switched since the last call.
    pub(super) fn switches(&self) -> Vec<(DeviceAddress, Switch)> {
        mem::take(&mut *self.control.log.lock())
    }

    /// Returns how page requests were switched at a device since `switches` was called.
    pub(super) fn request_switches(&self, number: usize) -> Vec<bool> {
        let log = self.control.log.lock();
        let own = log.iter().filter(|(device, _)| *device == node(number));
        let own = own.filter_map(|(_, switch)| match switch {
            Switch::PageRequests(are_enabled) => Some(*are_enabled),
            Switch::Ats(_) => None,
        });
        own.collect()
    }

    /// Returns whether a device's IOMMU lets it ask.
    pub(super) fn allows(&self, number: usize) -> bool {
        A::allows(&self.units[PLACES[number].1], id(number))
    }

    /// Returns what an IOMMU was told since the last call.
    pub(super) fn commands(&self, unit: usize) -> Vec<A::Command> {
        A::instance(&self.units[unit]).queue().device().take()
    }

    pub(super) fn forget_commands(&self) {
        for unit in 0..self.units.len() {
            self.commands(unit);
        }
    }

    /// Returns whom an IOMMU was told to answer since the last call: ID, place, group, and how.
    pub(super) fn answers(&self, unit: usize) -> Vec<(u32, u32, u16, PageResponse)> {
        self.commands(unit).iter().filter_map(A::answer).collect()
    }

    pub(super) fn silence(&self, unit: usize, is_silent: bool) {
        let queue = A::instance(&self.units[unit]).queue();
        queue.device().set_silent(is_silent);
    }

    pub(super) fn endpoint(&self, number: usize) -> Arc<HardwareEndpoint<A>> {
        let probed = self.watched.probed.lock();
        let probed = probed.iter().find(|(address, _)| *address == node(number));
        let any: Arc<dyn Any + Send + Sync> =
            Arc::<dyn Endpoint>::clone(&probed.expect("it was probed").1);
        any.downcast().expect("it is ours")
    }

    pub(super) fn faults(&self, number: usize) -> Arc<DeviceFaults> {
        Arc::clone(self.endpoint(number).faults().expect("it can ask"))
    }

    /// Returns which tables requests of a place are led to.
    pub(super) fn root(&self, number: usize, place: u32) -> Option<Oa> {
        A::root(&self.endpoint(number), place)
    }

    pub(super) fn capable(handler: &Arc<Collector>) -> Arc<HardwareDomain<A>> {
        let handler = Arc::clone(handler) as Arc<dyn FaultHandler>;
        Arc::new(A::domain().with_faults(handler))
    }

    pub(super) fn plain() -> Arc<HardwareDomain<A>> {
        Arc::new(A::domain())
    }

    pub(super) fn bind(
        &self,
        process: &Arc<Process>,
        device: usize,
    ) -> Result<Arc<Bond>, BindProcessError> {
        let right = Right::Owner(Arc::clone(&self.ownerships[device]));
        process.bind(&self.registry, node(device), &right)
    }
}

/// A process that does as it is told.
#[derive(Debug)]
pub(super) struct Toy {
    identity: u64,
    tables: ProcessTables,
    listeners: Mutex<Vec<Weak<Process>>>,
    asks: bool,
}

impl Toy {
    pub(super) fn new(identity: u64, tables: ProcessTables, asks: bool) -> Arc<Self> {
        Arc::new(Self {
            identity,
            tables,
            listeners: Mutex::new(&LOG, Vec::new()),
            asks,
        })
    }

    /// Ends, as an operating system would have it.
    pub(super) fn end(&self) -> Result<(), ExitError> {
        let listener = self.listeners.lock()[0].upgrade();
        listener.map_or(Ok(()), |process| process.exit())
    }
}

impl ProcessMemory for Toy {
    fn identity(&self) -> u64 {
        self.identity
    }

    fn tables(&self) -> ProcessTables {
        self.tables
    }

    fn subscribe(&self, listener: Weak<Process>) {
        crate::sync::lockdep::assert_none_held();
        self.listeners.lock().push(listener);
    }

    fn unsubscribe(&self, listener: &Weak<Process>) {
        let mut listeners = self.listeners.lock();
        listeners.retain(|other| !other.ptr_eq(listener));
    }

    fn fault_handler(&self) -> Option<Arc<dyn FaultHandler>> {
        self.asks.then(|| Collector::new() as Arc<dyn FaultHandler>)
    }
}

pub(super) fn known(processes: &Arc<Processes>, toy: &Arc<Toy>) -> Arc<Process> {
    let memory = Arc::clone(toy) as Arc<dyn ProcessMemory>;
    processes.process(&memory).expect("there are PASIDs")
}
