//! A0.1: devices, instances, drivers and owners that come and go beside each other, in every interleaving
//! with few preemptions.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::time::Duration;

use iopt_formats::command::Pasid;
use loom::thread;

use super::*;
use crate::domain::DomainError;
use crate::firmware::{InstanceIndex, NodeIndex};
use crate::sync::bounded_model;

const INSTANCE: Identity = Identity::Described(InstanceIndex(0));

const fn node(number: usize) -> DeviceAddress {
    DeviceAddress::Node(NodeIndex(number))
}

/// What the driver did to each of two devices.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Device {
    probe_count: usize,
    release_count: usize,
    told_count: usize,
    is_attached: bool,
}

#[derive(Debug, Default)]
struct World {
    devices: [Device; 2],
    domain_count: usize,
}

#[derive(Clone, Debug, Default)]
struct Shared(Arc<loom::sync::Mutex<World>>);

impl Shared {
    fn with<R>(&self, work: impl FnOnce(&mut World) -> R) -> R {
        work(&mut self.0.lock().expect("no model panics and goes on"))
    }

    fn device(&self, number: usize) -> Device {
        self.with(|world| world.devices[number])
    }
}

/// A clock on which no time passes: models wait for nothing that does not come.
impl Clock for Shared {
    fn now(&self) -> Duration {
        Duration::ZERO
    }
}

impl Driver for Shared {
    fn probe(&self, request: &ProbeRequest<'_>) -> Result<Arc<dyn Endpoint>, ProbeError> {
        let DeviceAddress::Node(NodeIndex(number)) = request.address() else {
            return Err(ProbeError::NotMine);
        };
        self.with(|world| {
            let device = &mut world.devices[number];
            device.probe_count += 1;
            assert_eq!(
                device.probe_count,
                device.release_count + 1,
                "a device is probed once at a time"
            );
        });
        Ok(Arc::new(Leg {
            world: self.clone(),
            number,
        }))
    }

    fn finalize(&self, endpoint: &Arc<dyn Endpoint>) {
        let any: &dyn core::any::Any = &**endpoint;
        let leg = any.downcast_ref::<Leg>().expect("it is ours");
        leg.with(|device| {
            assert_eq!(device.probe_count, device.release_count + 1, "it lives");
            device.told_count += 1;
        });
        // Nobody released it by the end either.
        leg.with(|device| assert_eq!(device.probe_count, device.release_count + 1));
    }

    fn new_domain(
        &self,
        _: DefaultKind,
        _: &[Arc<dyn Endpoint>],
    ) -> Result<Arc<dyn Hwpt>, NewDomainError> {
        self.with(|world| world.domain_count += 1);
        Ok(Arc::new(Shoe))
    }
}

#[derive(Debug)]
struct Shoe;

impl Hwpt for Shoe {
    fn kind(&self) -> DomainKind {
        DomainKind::Paging
    }

    fn map_direct(&self, _: DirectRegion) -> Result<(), DomainError> {
        Ok(())
    }
}

#[derive(Debug)]
struct Leg {
    world: Shared,
    number: usize,
}

impl Leg {
    fn with(&self, work: impl FnOnce(&mut Device)) {
        self.world
            .with(|world| work(&mut world.devices[self.number]));
    }
}

struct Laces<'a>(&'a Leg);

impl Prepared for Laces<'_> {
    fn commit(self: Box<Self>) {
        self.0.with(|device| {
            assert_eq!(device.probe_count, device.release_count + 1, "it lives");
            device.is_attached = true;
        });
    }
}

impl Endpoint for Leg {
    fn prepare(
        &self,
        _: Option<Pasid>,
        _: &Arc<dyn Hwpt>,
    ) -> Result<Box<dyn Prepared + '_>, AttachFailure> {
        Ok(Box::new(Laces(self)))
    }

    fn block(&self, _: Option<Pasid>) {
        self.with(|device| device.is_attached = false);
    }

    fn release(&self) {
        self.with(|device| {
            assert!(!device.is_attached, "what is released is blocked");
            device.release_count += 1;
            assert_eq!(device.probe_count, device.release_count, "it lived");
        });
    }
}

struct Scene {
    world: Shared,
    registry: Arc<Registry>,
}

impl Scene {
    /// Two devices of one group, of which the second is not waited for.
    fn new() -> Arc<Self> {
        let device = |number| {
            let mut device = Resolved::new(node(number), 0);
            let ids = [number as u32].to_vec();
            device.streams.push(Stream {
                instance: InstanceIndex(0),
                ids,
            });
            device
        };
        let parts = MachineParts {
            devices: [0, 1].map(device).to_vec(),
            instances: [InstanceFacts::default()].to_vec(),
            ..MachineParts::default()
        };
        let machine = Machine::new(parts).expect("it is one");
        let world = Shared::default();
        let config = Config {
            clock: Arc::new(world.clone()),
            ..Config::default()
        };
        let registry = Registry::new(Arc::new(machine), config);
        registry.finish_initialization();
        Arc::new(Self {
            world,
            registry: Arc::new(registry),
        })
    }

    fn add(&self, number: usize) -> Result<(), AddError> {
        self.registry.add_device(node(number))
    }

    fn register(&self) {
        let registration = Registration {
            identity: INSTANCE,
            driver: Arc::new(self.world.clone()),
            instance: Arc::new(()),
        };
        self.registry.register(registration).expect("it works");
    }

    fn bind(&self) -> Result<Binding, BindError> {
        self.registry.bind_device(node(0), Use::DefaultDomain)
    }

    fn remove(&self) -> Removal {
        let guard = self.registry.lock_device(node(0)).expect("it is there");
        guard.remove()
    }

    fn beside<A: 'static, B>(
        self: &Arc<Self>,
        other: impl FnOnce(&Self) -> A + 'static,
        own: impl FnOnce(&Self) -> B,
    ) -> (A, B) {
        let scene = Arc::clone(self);
        let other = thread::spawn(move || other(&scene));
        let own = own(self);
        (other.join().expect("no thread panics"), own)
    }

    /// Checks that a device is in its group, ready, after so many probes.
    fn check_ready(&self, number: usize, probe_count: usize) {
        let expected = Device {
            probe_count,
            release_count: probe_count - 1,
            told_count: probe_count,
            is_attached: true,
        };
        let found = self.world.device(number);
        let is_told = (1..=probe_count).contains(&found.told_count);
        assert!(is_told, "{found:?}");
        let told_count = found.told_count;
        assert_eq!(
            found,
            Device {
                told_count,
                ..expected
            }
        );
        let snapshot = self.registry.snapshot();
        let group = &snapshot.groups[0];
        assert!(group.members.contains(&node(number)));
        assert_eq!(group.current, DomainKind::Paging);
    }

    /// Checks that nothing of a device is left.
    fn check_gone(&self) {
        let device = self.world.device(0);
        assert_eq!(device.probe_count, device.release_count, "it is released");
        assert!(!device.is_attached);
        assert!(self.registry.snapshot().groups.is_empty());
    }
}

#[test]
fn a_device_and_its_instance_that_come_together_find_each_other_once() {
    bounded_model(3, || {
        let scene = Scene::new();
        let (added, ()) = scene.beside(|scene| scene.add(0), Scene::register);
        added.expect("it is there");
        scene.check_ready(0, 1);
        assert!(matches!(scene.bind(), Ok(Binding::Translated(_))));
    });
}

#[test]
fn a_driver_binds_beside_a_registration_when_all_is_ready_or_is_deferred() {
    bounded_model(3, || {
        let scene = Scene::new();
        scene.add(0).expect("it is there");
        let (bound, ()) = scene.beside(
            |scene| {
                let bound = scene.bind();
                (bound, scene.world.device(0))
            },
            Scene::register,
        );
        match bound {
            (Ok(Binding::Translated(_)), device) => {
                assert!(device.is_attached && device.told_count == 1);
            }
            (bound, _) => assert_eq!(bound.err(), Some(BindError::Defer)),
        }
        scene.check_ready(0, 1);
    });
}

#[test]
fn a_device_removed_beside_a_registration_is_gone_or_never_was_probed() {
    bounded_model(3, || {
        let scene = Scene::new();
        scene.add(0).expect("it is there");
        let (removal, ()) = scene.beside(Scene::remove, Scene::register);
        assert_ne!(removal, Removal::Absent);
        scene.check_gone();
    });
}

#[test]
fn of_a_device_added_removed_and_registered_at_once_nothing_is_left_or_all_of_it() {
    bounded_model(2, || {
        let scene = Scene::new();
        let other = Arc::clone(&scene);
        let removing = thread::spawn(move || other.remove());
        let (added, ()) = scene.beside(|scene| scene.add(0), Scene::register);
        added.expect("it is there");
        match removing.join().expect("no thread panics") {
            Removal::Absent => scene.check_ready(0, 1),
            Removal::Done | Removal::Pending => scene.check_gone(),
        }
    });
}

#[test]
fn a_device_added_beside_the_unregistration_of_its_instance_is_released_or_keeps_it() {
    bounded_model(3, || {
        let scene = Scene::new();
        scene.register();
        let (added, unregistered) = scene.beside(
            |scene| scene.add(0),
            |scene| {
                let unregistered = scene.registry.unregister(INSTANCE);
                (unregistered, scene.world.device(0))
            },
        );
        added.expect("it is there");
        let (unregistered, device) = unregistered;
        match unregistered {
            Ok(()) => {
                assert_eq!(device.probe_count, device.release_count, "at once");
                scene.check_gone();
            }
            // Time may pass while somebody probes, of which the model lets pass little.
            Err(error) => {
                assert_eq!(error, UnregisterError::Stuck);
                let probe_count = scene.world.device(0).probe_count;
                scene.check_ready(0, probe_count);
            }
        }
    });
}

#[test]
fn an_instance_unregistered_beside_a_bind_is_used_or_gone() {
    bounded_model(3, || {
        let scene = Scene::new();
        scene.add(0).expect("it is there");
        scene.register();
        let (bound, unregistered) =
            scene.beside(Scene::bind, |scene| scene.registry.unregister(INSTANCE));
        match bound {
            Ok(_) => {
                let devices = [node(0)].to_vec();
                assert_eq!(unregistered, Err(UnregisterError::InUse { devices }));
                scene.check_ready(0, 1);
            }
            Err(error) => {
                assert_eq!((error, unregistered), (BindError::Defer, Ok(())));
                scene.check_gone();
            }
        }
    });
}

#[test]
fn members_that_come_together_share_one_default_domain() {
    bounded_model(3, || {
        let scene = Scene::new();
        scene.register();
        let (one, other) = scene.beside(|scene| scene.add(0), |scene| scene.add(1));
        one.and(other).expect("they are there");
        scene.check_ready(0, 1);
        scene.check_ready(1, 1);
        scene.world.with(|world| assert_eq!(world.domain_count, 1));
    });
}

#[test]
fn a_member_that_joins_beside_one_that_leaves_is_ready() {
    bounded_model(3, || {
        let scene = Scene::new();
        scene.register();
        scene.add(0).expect("it is there");
        let (removal, added) = scene.beside(Scene::remove, |scene| scene.add(1));
        added.expect("it is there");
        assert_eq!(removal, Removal::Done);
        scene.check_ready(1, 1);
        let device = scene.world.device(0);
        assert!(device.release_count == 1 && !device.is_attached);
    });
}

#[test]
fn of_a_driver_and_an_owner_that_come_together_one_gets_the_group() {
    bounded_model(3, || {
        let scene = Scene::new();
        scene.register();
        scene.add(0).expect("it is there");
        let (bound, owned) = scene.beside(Scene::bind, |scene| {
            scene.registry.claim_owner(node(0), &Owner::new("owner"))
        });
        assert!(bound.is_ok() != owned.is_ok());
        assert_eq!(scene.world.device(0).is_attached, bound.is_ok());
        drop(owned);
        scene.check_ready(0, 1);
    });
}
