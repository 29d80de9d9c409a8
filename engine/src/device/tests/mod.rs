//! A driver that writes down what it is asked, and machines for it.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::any::Any;
use core::fmt;
use core::time::Duration;

use iopt_formats::command::Pasid;

use crate::device::*;
use crate::domain::DomainError;
use crate::firmware::{InstanceIndex, NodeIndex};
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{Class, Mutex};

mod attach;
mod bind;
mod default;
mod failures;
mod grow;
mod identity;
mod machine;
mod order;
mod panics;
mod ports;
mod random;
mod threads;
mod walk;

/// Of the tests' own locks: held for a moment, and around nothing.
static LOG: Class = Class::unranked("log of a test");

/// What a driver, its devices and domains did, and are to do.
#[derive(Debug)]
pub(super) struct World(Mutex<Inner>);

#[derive(Debug, Default)]
pub(super) struct Inner {
    /// Probes that succeeded, by device.
    pub(super) probe_counts: BTreeMap<DeviceAddress, usize>,
    /// Endpoints that live, by device.
    pub(super) live: BTreeMap<DeviceAddress, usize>,
    pub(super) finalized: Vec<DeviceAddress>,
    /// The domain of each device and PASID.
    pub(super) attached: BTreeMap<(DeviceAddress, Option<Pasid>), u64>,
    pub(super) domains: u64,
    /// Direct regions by domain.
    pub(super) direct: Vec<(u64, u64)>,
    pub(super) reports: Vec<String>,
    pub(super) now: Duration,
    /// Devices that want something.
    pub(super) kinds: BTreeMap<DeviceAddress, DefaultKind>,
    pub(super) max_pasids: BTreeMap<DeviceAddress, u32>,
    /// What fails.
    pub(super) failing_probes: BTreeSet<DeviceAddress>,
    pub(super) fatal_probes: BTreeSet<DeviceAddress>,
    pub(super) strangers: BTreeSet<(Identity, DeviceAddress)>,
    pub(super) failing_prepares: BTreeSet<(DeviceAddress, Option<Pasid>)>,
    pub(super) failing_kinds: BTreeSet<DefaultKind>,
    pub(super) fails_direct: bool,
    pub(super) panicking_releases: BTreeSet<DeviceAddress>,
    /// Preparations that were neither committed nor dropped, and that were dropped.
    pub(super) prepared: usize,
    pub(super) undone: Vec<DeviceAddress>,
    /// Probes by a thread that binds.
    pub(super) late_probes: usize,
}

std::thread_local! {
    static IS_BINDING: core::cell::Cell<bool> = const { core::cell::Cell::new(false) };
}

impl World {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(&LOG, Inner::default())))
    }

    pub(super) fn with<R>(&self, work: impl FnOnce(&mut Inner) -> R) -> R {
        work(&mut self.0.lock())
    }

    /// Returns how many reports begin so.
    pub(super) fn report_count(&self, start: &str) -> usize {
        self.with(|world| {
            let reports = world.reports.iter();
            reports.filter(|report| report.starts_with(start)).count()
        })
    }

    /// Returns the domain that requests of a device meet.
    pub(super) fn domain_of(&self, device: DeviceAddress, pasid: Option<Pasid>) -> Option<u64> {
        self.with(|world| world.attached.get(&(device, pasid)).copied())
    }
}

impl Clock for World {
    fn now(&self) -> Duration {
        self.with(|world| world.now)
    }
}

impl Reports for World {
    fn report(&self, report: Report) {
        crate::sync::lockdep::assert_none_held();
        self.with(|world| world.reports.push(alloc::format!("{report:?}")));
    }
}

type Hook = Box<dyn Fn(&ProbeRequest<'_>) + Send + Sync>;
type Told = Box<dyn Fn(&Arc<dyn Endpoint>) + Send + Sync>;

/// The driver. Its hooks run inside its callbacks.
pub(super) struct Toy {
    pub(super) world: Arc<World>,
    pub(super) on_probe: Mutex<Option<Arc<Hook>>>,
    pub(super) on_finalize: Mutex<Option<Arc<Told>>>,
    pub(super) on_new_domain: Mutex<Option<Arc<dyn Fn() + Send + Sync>>>,
    pub(super) tells_devices_apart: bool,
}

impl fmt::Debug for Toy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("toy")
    }
}

impl Toy {
    pub(super) fn new(world: &Arc<World>) -> Arc<Self> {
        Arc::new(Self {
            world: Arc::clone(world),
            on_probe: Mutex::new(&LOG, None),
            on_finalize: Mutex::new(&LOG, None),
            on_new_domain: Mutex::new(&LOG, None),
            tells_devices_apart: true,
        })
    }

    pub(super) fn on_probe(&self, hook: impl Fn(&ProbeRequest<'_>) + Send + Sync + 'static) {
        *self.on_probe.lock() = Some(Arc::new(Box::new(hook)));
    }

    pub(super) fn on_new_domain(&self, hook: impl Fn() + Send + Sync + 'static) {
        *self.on_new_domain.lock() = Some(Arc::new(hook));
    }

    pub(super) fn on_finalize(&self, hook: impl Fn(&Arc<dyn Endpoint>) + Send + Sync + 'static) {
        *self.on_finalize.lock() = Some(Arc::new(Box::new(hook)));
    }
}

impl Driver for Toy {
    fn probe(&self, request: &ProbeRequest<'_>) -> Result<Arc<dyn Endpoint>, ProbeError> {
        let address = request.address();
        let is_late = IS_BINDING.get();
        self.world
            .with(|world| world.late_probes += usize::from(is_late));
        let hook = self.on_probe.lock().clone();
        if let Some(hook) = hook {
            hook(request);
        }
        for index in 0..request.instance_count() {
            let identity = request.identity(index).expect("it is in range");
            let instance = request.instance::<Identity>(index);
            assert_eq!(instance.as_deref(), Some(&identity), "published is ready");
            if self
                .world
                .with(|world| world.strangers.contains(&(identity, address)))
            {
                return Err(ProbeError::NotMine);
            }
        }
        self.world.with(|world| {
            if world.fatal_probes.contains(&address) {
                return Err(ProbeError::Fatal("broken".into()));
            }
            if world.failing_probes.contains(&address) {
                return Err(ProbeError::Failed("broken".into()));
            }
            *world.probe_counts.entry(address).or_default() += 1;
            let live = world.live.entry(address).or_default();
            *live += 1;
            assert_eq!(*live, 1, "a device is probed once at a time");
            Ok(())
        })?;
        Ok(Arc::new(Leg {
            address,
            world: Arc::clone(&self.world),
        }))
    }

    fn finalize(&self, endpoint: &Arc<dyn Endpoint>) {
        let any: &dyn Any = &**endpoint;
        let leg = any.downcast_ref::<Leg>().expect("it is ours");
        self.world.with(|world| {
            assert_eq!(world.live.get(&leg.address), Some(&1), "it is not released");
            world.finalized.push(leg.address);
        });
        let hook = self.on_finalize.lock().clone();
        if let Some(hook) = hook {
            hook(endpoint);
        }
    }

    fn new_domain(
        &self,
        kind: DefaultKind,
        _: &[Arc<dyn Endpoint>],
    ) -> Result<Arc<dyn Hwpt>, NewDomainError> {
        let hook = self.on_new_domain.lock().clone();
        if let Some(hook) = hook {
            hook();
        }
        if self.world.with(|world| world.failing_kinds.contains(&kind)) {
            return Err(NewDomainError::Unsupported);
        }
        Ok(domain(&self.world, kind.into()))
    }

    fn tells_devices_apart(&self) -> bool {
        self.tells_devices_apart
    }
}

/// Where a callback stops until the test lets it go on.
pub(super) struct Gate {
    stopped: AtomicUsize,
    released: AtomicUsize,
}

impl Gate {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            stopped: AtomicUsize::new(0),
            released: AtomicUsize::new(0),
        })
    }

    fn wait(counter: &AtomicUsize, count: usize) {
        let mut turn = 0;
        while counter.load(Ordering::Acquire) < count {
            assert!(turn < 200_000, "what is waited for comes");
            crate::sync::pause(turn);
            turn += 1;
        }
    }

    /// Called inside.
    pub(super) fn stop(&self) {
        let count = self.stopped.fetch_add(1, Ordering::AcqRel) + 1;
        Self::wait(&self.released, count);
    }

    /// Waits until one more callback than were let go on has stopped.
    pub(super) fn await_stop(&self) {
        Self::wait(&self.stopped, self.released.load(Ordering::Acquire) + 1);
    }

    pub(super) fn go_on(&self) {
        self.released.fetch_add(1, Ordering::AcqRel);
    }
}

/// Makes a domain.
pub(super) fn domain(world: &Arc<World>, kind: DomainKind) -> Arc<dyn Hwpt> {
    let number = world.with(|inner| {
        inner.domains += 1;
        inner.domains
    });
    Arc::new(Shoe {
        number,
        kind,
        world: Arc::clone(world),
    })
}

pub(super) fn number_of(domain: &Arc<dyn Hwpt>) -> u64 {
    let any: &dyn Any = &**domain;
    any.downcast_ref::<Shoe>().expect("it is ours").number
}

#[derive(Debug)]
struct Shoe {
    number: u64,
    kind: DomainKind,
    world: Arc<World>,
}

impl Hwpt for Shoe {
    fn kind(&self) -> DomainKind {
        self.kind
    }

    fn map_direct(&self, region: DirectRegion) -> Result<(), DomainError> {
        self.world.with(|world| {
            if world.fails_direct {
                return Err(DomainError::OutOfMemory);
            }
            world.direct.push((self.number, region.range.start().get()));
            Ok(())
        })
    }
}

/// A domain that no [`Toy`] made.
#[derive(Debug)]
pub(super) struct Foreign;

impl Hwpt for Foreign {
    fn kind(&self) -> DomainKind {
        DomainKind::Paging
    }

    fn map_direct(&self, _: DirectRegion) -> Result<(), DomainError> {
        Ok(())
    }
}

#[derive(Debug)]
struct Leg {
    address: DeviceAddress,
    world: Arc<World>,
}

impl Endpoint for Leg {
    fn default_kind(&self) -> Option<DefaultKind> {
        self.world
            .with(|world| world.kinds.get(&self.address).copied())
    }

    fn max_pasids(&self) -> u32 {
        let world = |world: &mut Inner| world.max_pasids.get(&self.address).copied();
        self.world.with(world).unwrap_or(0)
    }

    fn prepare(
        &self,
        pasid: Option<Pasid>,
        domain: &Arc<dyn Hwpt>,
    ) -> Result<Box<dyn Prepared + '_>, AttachFailure> {
        let any: &dyn Any = &**domain;
        let shoe = any.downcast_ref::<Shoe>().ok_or(AttachFailure::Foreign)?;
        self.world.with(|world| {
            if world.failing_prepares.contains(&(self.address, pasid)) {
                return Err(AttachFailure::Exhausted);
            }
            world.prepared += 1;
            Ok(())
        })?;
        Ok(Box::new(Laces {
            leg: self,
            pasid,
            domain: shoe.number,
            is_tied: false,
        }))
    }

    fn block(&self, pasid: Option<Pasid>) {
        self.world.with(|world| {
            world.attached.remove(&(self.address, pasid));
        });
    }

    fn release(&self) {
        crate::sync::lockdep::assert_none_held();
        self.world.with(|world| {
            let live = world.live.remove(&self.address);
            assert_eq!(live, Some(1), "what is released was probed");
            let places = (self.address, None)..=(self.address, Some(Pasid::MAX));
            let attached = world.attached.range(places).next();
            assert_eq!(attached, None, "what is released is blocked");
        });
        let panics = |world: &mut Inner| world.panicking_releases.contains(&self.address);
        assert!(!self.world.with(panics), "as it was told");
    }
}

struct Laces<'a> {
    leg: &'a Leg,
    pasid: Option<Pasid>,
    domain: u64,
    is_tied: bool,
}

impl Prepared for Laces<'_> {
    fn commit(mut self: Box<Self>) {
        self.is_tied = true;
        let place = (self.leg.address, self.pasid);
        let domain = self.domain;
        self.leg.world.with(|world| {
            assert_eq!(world.live.get(&place.0), Some(&1), "it is not released");
            world.attached.insert(place, domain);
        });
    }
}

impl Drop for Laces<'_> {
    fn drop(&mut self) {
        self.leg.world.with(|world| {
            world.prepared -= 1;
            if !self.is_tied {
                world.undone.push(self.leg.address);
            }
        });
    }
}

pub(super) fn node(number: usize) -> DeviceAddress {
    DeviceAddress::Node(NodeIndex(number))
}

pub(super) fn described(number: usize) -> Identity {
    Identity::Described(InstanceIndex(number))
}

pub(super) fn pasid(number: u32) -> Pasid {
    Pasid::new(number).expect("it fits")
}

/// A device behind some instances, with an ID of its own at each.
pub(super) fn behind(number: usize, group: usize, instances: &[usize]) -> Resolved {
    let mut device = Resolved::new(node(number), group);
    let stream = |&instance: &usize| Stream {
        instance: InstanceIndex(instance),
        ids: alloc::vec![number as u32],
    };
    device.streams = instances.iter().map(stream).collect();
    device
}

/// Parts with as many instances as the devices name.
pub(super) fn parts(devices: Vec<Resolved>) -> MachineParts {
    let streams = devices.iter().flat_map(|device| &device.streams);
    let instance_count = streams.map(|stream| stream.instance.0 + 1).max();
    MachineParts {
        devices,
        instances: alloc::vec![InstanceFacts::default(); instance_count.unwrap_or(0)],
        ..MachineParts::default()
    }
}

/// A registry with its driver.
pub(super) struct Rig {
    pub(super) driver: Arc<Toy>,
    pub(super) world: Arc<World>,
    pub(super) registry: Arc<Registry>,
}

impl Rig {
    pub(super) fn new(devices: Vec<Resolved>) -> Self {
        Self::of(parts(devices))
    }

    pub(super) fn of(parts: MachineParts) -> Self {
        Self::with(parts, |_| {})
    }

    pub(super) fn with(parts: MachineParts, configure: impl FnOnce(&mut Config)) -> Self {
        let world = World::new();
        let machine = Machine::new(parts).expect("it is one");
        let mut config = Config {
            clock: Arc::clone(&world) as Arc<dyn Clock>,
            reports: Some(Arc::clone(&world) as Arc<dyn Reports>),
            ..Config::default()
        };
        configure(&mut config);
        Self {
            driver: Toy::new(&world),
            world,
            registry: Arc::new(Registry::new(Arc::new(machine), config)),
        }
    }

    pub(super) fn registration(&self, identity: Identity) -> Registration {
        Registration {
            identity,
            driver: Arc::clone(&self.driver) as Arc<dyn Driver>,
            instance: Arc::new(identity),
        }
    }

    pub(super) fn register(&self, number: usize) {
        let registration = self.registration(described(number));
        self.registry.register(registration).expect("it works");
    }

    pub(super) fn add(&self, number: usize) {
        self.registry.add_device(node(number)).expect("it is there");
    }

    pub(super) fn add_all(&self) {
        for device in self.registry.machine().devices() {
            self.registry
                .add_device(device.address)
                .expect("it is there");
        }
    }

    pub(super) fn remove(&self, number: usize) -> Removal {
        self.guard(number).remove()
    }

    pub(super) fn guard(&self, number: usize) -> DeviceGuard<'_> {
        self.registry
            .lock_device(node(number))
            .expect("it is there")
    }

    pub(super) fn bind(&self, number: usize) -> Result<Binding, BindError> {
        self.bind_at(node(number))
    }

    /// Binds; a driver that is asked about any device meanwhile is noted.
    pub(super) fn bind_at(&self, device: DeviceAddress) -> Result<Binding, BindError> {
        IS_BINDING.set(true);
        let bound = self.registry.bind_device(device, Use::DefaultDomain);
        IS_BINDING.set(false);
        bound
    }

    pub(super) fn unbind(&self, number: usize) {
        self.registry
            .unbind_device(node(number))
            .expect("it is there");
    }

    /// Returns what is said of a device.
    pub(super) fn standing(&self, number: usize) -> Standing {
        let snapshot = self.registry.snapshot();
        let device = snapshot.device(node(number)).expect("it was added");
        device.standing.clone()
    }

    pub(super) fn group_count(&self) -> usize {
        self.registry.snapshot().groups.len()
    }

    pub(super) fn later(&self, seconds: u64) {
        self.world
            .with(|world| world.now += Duration::from_secs(seconds));
    }

    /// Checks what holds whenever nothing is going on.
    pub(super) fn check(&self) {
        self.check_with(false);
    }

    /// As [`check`](Self::check), where devices may have come into groups that are one driver's own: those are
    /// blocked (P4).
    pub(super) fn check_grown(&self) {
        self.check_with(true);
    }

    fn check_with(&self, has_grown: bool) {
        let snapshot = self.registry.snapshot();
        self.world.with(|world| {
            assert_eq!(world.prepared, 0, "all preparations ended");
            assert_eq!(world.late_probes, 0, "binding only asks");
            let mut member_count = 0;
            for group in &snapshot.groups {
                let domains = group.members.iter();
                let domains = domains.map(|&member| world.attached.get(&(member, None)));
                let mut domains: BTreeSet<_> = domains.collect();
                if has_grown && domains.len() > 1 {
                    domains.remove(&None);
                }
                assert_eq!(domains.len(), 1, "P1: a group is attached together");
                let is_blocked = group.current == DomainKind::Blocked;
                assert_eq!(domains.contains(&None), is_blocked);
                member_count += group.members.len();
            }
            assert_eq!(member_count, world.live.len(), "who lives is in a group");
        });
    }
}
