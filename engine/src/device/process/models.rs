//! Bonds that come and go, and a process that ends, in every interleaving with few preemptions.

use alloc::boxed::Box;
use alloc::sync::{Arc, Weak};
use core::any::Any;
use core::time::Duration;

use iopt_formats::command::Pasid;
use iopt_formats::{IovaRange, Oa};
use loom::sync::atomic::Ordering;
use loom::thread;

use super::*;
use crate::device::{
    AttachFailure, Clock, Config, DefaultKind, DeviceAddress, DirectRegion, DomainKind, Driver,
    Endpoint, Hwpt, Identity, InstanceFacts, Machine, MachineParts, NewDomainError, Owner,
    Ownership, Prepared, ProbeError, ProbeRequest, Registration, Registry, Resolved, Stream,
};
use crate::domain::DomainError;
use crate::firmware::{InstanceIndex, NodeIndex};
use crate::invalidation::SyncError;
use crate::sync::bounded_model;

const DEVICE: DeviceAddress = DeviceAddress::Node(NodeIndex(0));

/// What the driver saw.
#[derive(Debug, Default)]
struct Inner {
    is_attached: bool,
    attach_count: usize,
    block_count: usize,
    exit_count: usize,
}

#[derive(Clone, Debug, Default)]
struct World(Arc<loom::sync::Mutex<Inner>>);

impl World {
    fn with<R>(&self, work: impl FnOnce(&mut Inner) -> R) -> R {
        work(&mut self.0.lock().expect("no model panics and goes on"))
    }
}

impl Clock for World {
    fn now(&self) -> Duration {
        Duration::ZERO
    }
}

impl Driver for World {
    fn probe(&self, _: &ProbeRequest<'_>) -> Result<Arc<dyn Endpoint>, ProbeError> {
        Ok(Arc::new(self.clone()))
    }

    fn new_domain(
        &self,
        _: DefaultKind,
        _: &[Arc<dyn Endpoint>],
    ) -> Result<Arc<dyn Hwpt>, NewDomainError> {
        Err(NewDomainError::Unsupported)
    }

    fn new_process_domain(
        &self,
        _: &Arc<Process>,
        _: &[Arc<dyn Endpoint>],
    ) -> Result<Arc<dyn ProcessDomain>, NewDomainError> {
        Ok(Arc::new(Shoe(self.clone())))
    }
}

#[derive(Debug)]
struct Shoe(World);

impl Hwpt for Shoe {
    fn kind(&self) -> DomainKind {
        DomainKind::Process
    }

    fn map_direct(&self, _: DirectRegion) -> Result<(), DomainError> {
        Ok(())
    }
}

impl ProcessDomain for Shoe {
    fn changed(&self, _: IovaRange) -> Result<(), SyncError> {
        Ok(())
    }

    fn exit(self: Arc<Self>) -> Result<(), ExitError> {
        self.0.with(|inner| inner.exit_count += 1);
        Ok(())
    }
}

/// A domain of the default kind, so that the device joins its group.
#[derive(Debug)]
struct Slipper;

impl Hwpt for Slipper {
    fn kind(&self) -> DomainKind {
        DomainKind::Paging
    }

    fn map_direct(&self, _: DirectRegion) -> Result<(), DomainError> {
        Ok(())
    }
}

/// As [`World`], with a default domain.
#[derive(Debug)]
struct Dresser(World);

impl Driver for Dresser {
    fn probe(&self, request: &ProbeRequest<'_>) -> Result<Arc<dyn Endpoint>, ProbeError> {
        self.0.probe(request)
    }

    fn new_domain(
        &self,
        _: DefaultKind,
        _: &[Arc<dyn Endpoint>],
    ) -> Result<Arc<dyn Hwpt>, NewDomainError> {
        Ok(Arc::new(Slipper))
    }

    fn new_process_domain(
        &self,
        process: &Arc<Process>,
        endpoints: &[Arc<dyn Endpoint>],
    ) -> Result<Arc<dyn ProcessDomain>, NewDomainError> {
        self.0.new_process_domain(process, endpoints)
    }
}

struct Laces<'a>(&'a World, Option<Pasid>);

impl Prepared for Laces<'_> {
    fn commit(self: Box<Self>) {
        if self.1.is_some() {
            self.0.with(|inner| {
                assert!(!inner.is_attached, "attached once");
                inner.is_attached = true;
                inner.attach_count += 1;
            });
        }
    }
}

impl Endpoint for World {
    fn max_pasids(&self) -> u32 {
        16
    }

    fn prepare(
        &self,
        pasid: Option<Pasid>,
        domain: &Arc<dyn Hwpt>,
    ) -> Result<Box<dyn Prepared + '_>, AttachFailure> {
        let any: &dyn Any = &**domain;
        let is_shoe = any.downcast_ref::<Shoe>().is_some();
        assert_eq!(is_shoe, pasid.is_some());
        Ok(Box::new(Laces(self, pasid)))
    }

    fn block(&self, pasid: Option<Pasid>) {
        if pasid.is_some() {
            self.with(|inner| {
                assert!(inner.is_attached, "detached once");
                inner.is_attached = false;
                inner.block_count += 1;
            });
        }
    }

    fn release(&self) {}
}

#[derive(Debug)]
struct Memory;

impl ProcessMemory for Memory {
    fn identity(&self) -> u64 {
        1
    }

    fn tables(&self) -> ProcessTables {
        ProcessTables::X86 {
            levels: 4,
            root: Oa::new(0),
        }
    }

    fn subscribe(&self, _: Weak<Process>) {}
}

struct Scene {
    world: World,
    registry: Arc<Registry>,
    ownership: Arc<Ownership>,
    process: Arc<Process>,
}

impl Scene {
    fn new() -> Arc<Self> {
        let mut device = Resolved::new(DEVICE, 0);
        device.streams.push(Stream {
            instance: InstanceIndex(0),
            ids: [0].to_vec(),
        });
        let parts = MachineParts {
            devices: [device].to_vec(),
            instances: [InstanceFacts::default()].to_vec(),
            ..MachineParts::default()
        };
        let world = World::default();
        let config = Config {
            clock: Arc::new(world.clone()),
            ..Config::default()
        };
        let machine = Machine::new(parts).expect("it is one");
        let registry = Arc::new(Registry::new(Arc::new(machine), config));
        let registration = Registration {
            identity: Identity::Described(InstanceIndex(0)),
            driver: Arc::new(Dresser(world.clone())),
            instance: Arc::new(()),
        };
        registry.register(registration).expect("it works");
        registry.add_device(DEVICE).expect("it is there");
        let ownership = registry.claim_owner(DEVICE, &Owner::new("owner"));
        let memory = Arc::new(Memory) as Arc<dyn ProcessMemory>;
        Arc::new(Self {
            world,
            ownership: Arc::new(ownership.expect("nobody has it")),
            registry,
            process: Processes::new(8).process(&memory).expect("a PASID"),
        })
    }

    fn bind(&self) -> Result<Arc<Bond>, BindProcessError> {
        let right = Right::Owner(Arc::clone(&self.ownership));
        self.process.bind(&self.registry, DEVICE, &right)
    }
}

#[test]
fn who_binds_beside_the_last_bond_that_goes_is_bound() {
    bounded_model(2, || {
        let scene = Scene::new();
        let bond = scene.bind().expect("it fits");
        // The model does not know the counts of an `Arc`: this is where it looks for another order.
        let turn = Arc::new(loom::sync::atomic::AtomicUsize::new(0));
        let going = {
            let turn = Arc::clone(&turn);
            thread::spawn(move || {
                turn.fetch_add(1, Ordering::Relaxed);
                drop(bond);
            })
        };
        turn.fetch_add(1, Ordering::Relaxed);
        let other = scene.bind().expect("it fits");
        going.join().expect("no thread panics");
        scene.world.with(|inner| {
            assert!(inner.is_attached, "S2: somebody is bound");
            assert_eq!(inner.attach_count, inner.block_count + 1);
        });
        drop(other);
        scene.world.with(|inner| {
            assert!(!inner.is_attached);
            assert_eq!(inner.attach_count, inner.block_count);
        });
    });
}

#[test]
fn two_who_bind_at_once_share_a_bond() {
    bounded_model(2, || {
        let scene = Scene::new();
        let other = {
            let scene = Arc::clone(&scene);
            thread::spawn(move || scene.bind().expect("it fits"))
        };
        let own = scene.bind().expect("it fits");
        let other = other.join().expect("no thread panics");
        assert!(Arc::ptr_eq(&own, &other));
        scene
            .world
            .with(|inner| assert_eq!((inner.attach_count, inner.block_count), (1, 0)));
    });
}

#[test]
fn a_process_that_ends_beside_a_device_that_comes_is_told_to_its_domain() {
    bounded_model(2, || {
        let scene = Scene::new();
        let ending = {
            let process = Arc::clone(&scene.process);
            thread::spawn(move || process.exit().expect("it does"))
        };
        let bond = scene.bind();
        ending.join().expect("no thread panics");
        let exit_count = scene.world.with(|inner| inner.exit_count);
        match &bond {
            Ok(_) => assert_eq!(exit_count, 1, "S3"),
            Err(error) => assert!(matches!(error, BindProcessError::Exited)),
        }
        drop(bond);
        scene.world.with(|inner| assert!(!inner.is_attached));
    });
}
