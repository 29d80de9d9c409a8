//! A registry of devices behind two SMMUs whose commands are written down.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::mem;

use iopt_formats::armv8::Stage1;
use iopt_formats::command::Pasid;
use iopt_formats::command::smmuv3::Command;
use iopt_formats::context::smmuv3::{Cd, Ste};

use crate::device::context::HardwareEndpoint;
use crate::device::fault::{DeviceFaults, FaultHandler};
use crate::device::smmuv3::{Features, Smmu, Smmuv3, Smmuv3Domain, Smmuv3Driver, Stalls};
use crate::device::testing::Recorder;
use crate::device::{
    AttachError, By, Condition, Config, DefaultKind, DeviceAddress, DeviceControl, DeviceTlb,
    Driver, Endpoint, Hwpt, Identity, Machine, MachineParts, Owner, Ownership, ProbeError,
    ProbeRequest, Registration, Registry, Report, Reports, Resolved, Stream,
};
use crate::device::{NewDomainError, process};
use crate::firmware::{InstanceIndex, NodeIndex};
use crate::invalidation::Instance;
use crate::invalidation::plan::smmuv3::Smmuv3 as Planner;
use crate::mem::Heap;
use crate::sync::{Class, Mutex};

/// Of the tests' own locks: held for a moment, and around nothing.
static LOG: Class = Class::unranked("log of a test");

pub(super) type Unit = Smmu<Heap, Recorder>;
pub(super) type Domain = Smmuv3Domain<Heap, Recorder>;
pub(super) type Device = HardwareEndpoint<Smmuv3<Heap, Recorder>>;

pub(super) const FEATURES: Features = Features {
    has_two_level_streams: true,
    has_two_level_cds: true,
    has_stage1: true,
    has_stage2: true,
    has_ats: true,
    has_page_requests: true,
    stalls: Stalls::Allowed,
    has_forced_write_back: true,
    is_coherent: true,
    ..Features::from_registers(0, 16 | 20 << 6 | 1 << 27, 0, 5 | 7 << 4)
};

/// What was switched at a device.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Switch {
    Ats(bool),
    PageRequests(bool),
}

/// Switches of devices, written down.
#[derive(Debug)]
pub(super) struct Control {
    log: Mutex<Vec<(DeviceAddress, Switch)>>,
    /// Devices wait instead of asking by PRI.
    stalls: bool,
}

impl DeviceControl for Control {
    fn has_ats(&self, _: DeviceAddress) -> bool {
        !self.stalls
    }

    fn set_ats(&self, device: DeviceAddress, is_enabled: bool) {
        self.log.lock().push((device, Switch::Ats(is_enabled)));
    }

    fn has_page_requests(&self, _: DeviceAddress) -> bool {
        !self.stalls
    }

    fn set_page_requests(&self, device: DeviceAddress, are_enabled: bool) {
        let switch = Switch::PageRequests(are_enabled);
        self.log.lock().push((device, switch));
    }

    fn can_stall(&self, _: DeviceAddress) -> bool {
        self.stalls
    }
}

/// The driver, with what it probed.
#[derive(Debug)]
struct Watched {
    driver: Arc<Smmuv3Driver<Heap, Recorder>>,
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
        process: &Arc<process::Process>,
        endpoints: &[Arc<dyn Endpoint>],
    ) -> Result<Arc<dyn process::ProcessDomain>, NewDomainError> {
        self.driver.new_process_domain(process, endpoints)
    }
}

/// Four devices: 0 and 1 are one group, behind SMMU 0 and SMMU 1; 2 is behind SMMU 0, 3 behind SMMU 1. Their
/// streams are 0x10 and so on. Each is owned.
pub(super) struct Rig {
    pub(super) smmus: [Arc<Unit>; 2],
    pub(super) registry: Arc<Registry>,
    pub(super) ownerships: Vec<Arc<Ownership>>,
    control: Arc<Control>,
    watched: Arc<Watched>,
    told: Arc<Told>,
}

/// Reports, written down.
#[derive(Debug)]
struct Told(Mutex<Vec<Report>>);

impl Reports for Told {
    fn report(&self, report: Report) {
        self.0.lock().push(report);
    }
}

pub(super) const fn node(number: usize) -> DeviceAddress {
    DeviceAddress::Node(NodeIndex(number))
}

pub(super) fn pasid(number: u32) -> Pasid {
    Pasid::new(number).expect("it has 20 bits")
}

impl Rig {
    pub(super) fn new() -> Self {
        Self::with(FEATURES, false)
    }

    /// For several threads.
    pub(super) fn patient() -> Self {
        Self::on(
            [FEATURES; 2],
            false,
            DeviceTlb::Allowed,
            Recorder::patient_instance,
        )
    }

    pub(super) fn with(second: Features, stalls: bool) -> Self {
        Self::on(
            [FEATURES, second],
            stalls,
            DeviceTlb::Allowed,
            Recorder::instance,
        )
    }

    /// With devices of whose TLBs firmware says so much.
    pub(super) fn saying(device_tlb: DeviceTlb) -> Self {
        Self::on([FEATURES; 2], false, device_tlb, Recorder::instance)
    }

    fn on(
        features: [Features; 2],
        stalls: bool,
        device_tlb: DeviceTlb,
        instance: impl Fn() -> Arc<Instance<Planner, Recorder>>,
    ) -> Self {
        let memory = Arc::new(Heap);
        let smmus = features
            .map(|features| Smmu::new(features, Arc::clone(&memory), instance()).expect("memory"));
        let device = |(number, (group, instance)): (usize, (usize, usize))| {
            let mut device = Resolved::new(node(number), group);
            device.streams.push(Stream {
                instance: InstanceIndex(instance),
                ids: alloc::vec![0x10 + number as u32],
            });
            device.pasid_bits = 8;
            device.device_tlb = device_tlb;
            device
        };
        let places = [(0, 0), (0, 1), (1, 0), (2, 1)];
        let parts = MachineParts {
            devices: places.into_iter().enumerate().map(device).collect(),
            instances: alloc::vec![crate::device::InstanceFacts::default(); 2],
            ..MachineParts::default()
        };
        let machine = Machine::new(parts).expect("it is one");
        let told = Arc::new(Told(Mutex::new(&LOG, Vec::new())));
        let config = Config {
            default_kind: Some(DefaultKind::Paging),
            reports: Some(Arc::clone(&told) as Arc<dyn Reports>),
            ..Config::default()
        };
        let registry = Arc::new(Registry::new(Arc::new(machine), config));
        let control = Arc::new(Control {
            log: Mutex::new(&LOG, Vec::new()),
            stalls,
        });
        let plain = Arc::clone(&control) as Arc<dyn DeviceControl>;
        let driver = Smmuv3Driver::<Heap, Recorder>::new(memory, plain);
        let watched = Arc::new(Watched {
            driver,
            probed: Mutex::new(&LOG, Vec::new()),
        });
        for (number, smmu) in smmus.iter().enumerate() {
            let registration = Registration {
                identity: Identity::Described(InstanceIndex(number)),
                driver: Arc::clone(&watched) as Arc<dyn Driver>,
                instance: Arc::clone(smmu) as _,
            };
            registry.register(registration).expect("it works");
        }
        for number in 0..places.len() {
            registry.add_device(node(number)).expect("it is there");
        }
        let owner = Owner::new("the test");
        let claim = |number| {
            let ownership = registry.claim_owner(node(number), &owner);
            Arc::new(ownership.expect("nobody has it"))
        };
        let ownerships = (0..places.len()).map(claim).collect();
        let rig = Self {
            smmus,
            registry,
            ownerships,
            control,
            watched,
            told,
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

    /// Returns what was switched at a device, ever since.
    pub(super) fn switches_of(&self, number: usize) -> Vec<Switch> {
        let log = self.control.log.lock();
        let own = log.iter().filter(|(device, _)| *device == node(number));
        own.map(|(_, switch)| *switch).collect()
    }

    /// Returns how devices stand, as far as it was reported since the last call.
    pub(super) fn conditions(&self) -> Vec<(DeviceAddress, Condition)> {
        let reports = mem::take(&mut *self.told.0.lock());
        let conditions = reports.into_iter().filter_map(|report| match report {
            Report::Condition { device, condition } => Some((device, condition)),
            _ => None,
        });
        conditions.collect()
    }

    /// Returns what an SMMU was told since the last call.
    pub(super) fn commands(&self, smmu: usize) -> Vec<Command> {
        self.smmus[smmu].instance().queue().device().take()
    }

    pub(super) fn silence(&self, smmu: usize, is_silent: bool) {
        let queue = self.smmus[smmu].instance().queue();
        queue.device().set_silent(is_silent);
    }

    pub(super) fn endpoint(&self, number: usize) -> Arc<Device> {
        let probed = self.watched.probed.lock();
        let probed = probed.iter().find(|(address, _)| *address == node(number));
        let any: Arc<dyn core::any::Any + Send + Sync> =
            Arc::<dyn Endpoint>::clone(&probed.expect("it was probed").1);
        any.downcast().expect("it is ours")
    }

    /// Lets go of a device that was probed.
    pub(super) fn forget_endpoint(&self, number: usize) {
        let forgotten: Vec<_> = {
            let mut probed = self.watched.probed.lock();
            let (forgotten, kept) = mem::take(&mut *probed)
                .into_iter()
                .partition(|(address, _)| *address == node(number));
            *probed = kept;
            forgotten
        };
        drop(forgotten);
    }

    pub(super) fn faults(&self, number: usize) -> Arc<DeviceFaults> {
        Arc::clone(self.endpoint(number).faults().expect("it can ask"))
    }

    pub(super) fn ste(&self, number: usize) -> Ste {
        let smmu = usize::from(!number.is_multiple_of(2));
        let ste = self.smmus[smmu].ste(0x10 + number as u32);
        ste.expect("it is linked")
    }

    /// Returns the CD of a place.
    pub(super) fn cd(&self, number: usize, place: u32) -> Cd {
        let cd = self.endpoint(number).cd(0, pasid(place));
        cd.unwrap_or(Cd::INVALID)
    }
}

pub(super) fn stage1() -> Domain {
    let format = Stage1::<12>::new(48, 48).expect("legal");
    Domain::stage1(format, Arc::new(Heap)).expect("memory")
}

pub(super) fn capable(handler: &Arc<impl FaultHandler + 'static>) -> Arc<Domain> {
    Arc::new(stage1().with_faults(Arc::clone(handler) as Arc<dyn FaultHandler>))
}
