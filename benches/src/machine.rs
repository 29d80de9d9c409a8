//! A large machine, from what firmware says of it to groups that are ready.
//!
//! A segment for each instance, with root ports that have ACS, and below each a function with many virtual
//! ones: as many groups as devices. The driver does nothing and its domains are empty, so that what is
//! timed is the engine's.

use std::sync::Arc;

use iopt::device::{
    AttachFailure, Besides, Config, DefaultKind, DirectRegion, DomainKind, Driver, Endpoint, Hwpt,
    Identity, Machine, NewDomainError, Prepared, ProbeError, ProbeRequest, Registration, Registry,
    Standing,
};
use iopt::domain::DomainError;
use iopt::firmware::{
    Architecture, Description, Instance, InstanceIndex, Location, Output, Rule as IdRule, Subject,
};
use iopt::topology::{
    Acs, AcsFlags, BusRange, Function, FunctionKind, PciAddress, PciTree, RequesterId, RootBus,
    Rule,
};
use iopt_formats::command::Pasid;

use crate::clock::time;
use crate::row::{Bar, Row};

/// Devices and instances of the machine, and what they may take.
pub const DEVICE_COUNT: usize = 100_000;
/// See [`DEVICE_COUNT`].
pub const INSTANCE_COUNT: usize = 64;
/// See [`DEVICE_COUNT`], in milliseconds.
pub const MAX_MS: f64 = 1000.0;

/// Functions below a root port.
const BELOW_PORT: usize = 224;

/// Times each step, in the best of `round_count` rounds.
///
/// # Panics
///
/// Panics if the engine refuses the machine, or leaves a device out.
pub fn measure(round_count: usize) -> Vec<Row> {
    let (description, tree) = describe();
    let mut best = [f64::INFINITY; 4];
    for _ in 0..round_count {
        for (best, ns) in best.iter_mut().zip(round(&description, &tree)) {
            *best = best.min(ns / 1e6);
        }
    }
    let [resolve, instances_last, devices_last, unregister] = best;
    let how = "100000 devices, 64 instances";
    let row = |what, ms| Row::new(what, how, ms, "ms");
    let bar = |row: Row| row.with_bar(Bar::AtMost(MAX_MS), false);
    vec![
        bar(row("resolve and group", resolve)),
        bar(row("add devices, register instances", instances_last)),
        bar(row("resolve, group and probe", resolve + instances_last)),
        bar(row("register instances, add devices", devices_last)),
        row("unregister and release", unregister),
    ]
}

fn round(description: &Description, tree: &PciTree) -> [f64; 4] {
    let mut machine = None;
    let resolve = time(|| {
        let resolved = Machine::resolve(description, tree, &Besides::default(), Rule::Reachability);
        machine = Some(Arc::new(resolved.expect("a sound machine")));
    });
    let machine = machine.expect("it was resolved");
    let registry = Registry::new(Arc::clone(&machine), Config::default());
    let instances_last = time(|| {
        add_all(&registry);
        register_all(&registry);
    });
    check(&registry);
    let unregister = time(|| {
        for index in 0..INSTANCE_COUNT {
            let gone = registry.unregister(identity(index));
            gone.expect("nobody uses it");
        }
    });
    let registry = Registry::new(machine, Config::default());
    let devices_last = time(|| {
        register_all(&registry);
        add_all(&registry);
    });
    check(&registry);
    [resolve, instances_last, devices_last, unregister]
}

fn identity(index: usize) -> Identity {
    Identity::Described(InstanceIndex(index))
}

fn add_all(registry: &Registry) {
    for device in registry.machine().devices() {
        registry.add_device(device.address).expect("it is known");
    }
}

fn register_all(registry: &Registry) {
    let driver: Arc<dyn Driver> = Arc::new(Idle);
    for index in 0..INSTANCE_COUNT {
        let registration = Registration {
            identity: identity(index),
            driver: Arc::clone(&driver),
            instance: Arc::new(()),
        };
        registry.register(registration).expect("it is awaited");
    }
}

/// Checks that all devices came through, each in a group of its own.
fn check(registry: &Registry) {
    let snapshot = registry.snapshot();
    let grouped = snapshot
        .devices
        .iter()
        .filter(|device| matches!(device.standing, Standing::Grouped { .. }));
    assert_eq!(grouped.count(), DEVICE_COUNT, "every device is probed");
    let mut groups = snapshot.groups.iter();
    assert!(
        groups.all(|group| group.current == DomainKind::Paging),
        "every group has its default domain"
    );
}

/// Describes the machine: ports are devices, too.
fn describe() -> (Description, PciTree) {
    let mut description = Description::default();
    let mut functions = Vec::new();
    let mut roots = Vec::new();
    for index in 0..INSTANCE_COUNT {
        let segment = index as u16;
        let share = DEVICE_COUNT * (index + 1) / INSTANCE_COUNT - functions.len();
        add_segment(segment, share, &mut functions);
        roots.push(RootBus { segment, bus: 0 });
        description.instances.push(Instance {
            architecture: Architecture::Smmuv3,
            location: Location::Unstated,
            name: format!("instance {index}"),
            is_enabled: true,
            is_coherent: None,
            itself: None,
            match_mask: 0,
        });
        description.rules.push(IdRule {
            subject: Subject::Requesters {
                segment,
                mask: u16::MAX,
                first: RequesterId::new(0),
                last: RequesterId::new(u16::MAX),
            },
            instance: Some(InstanceIndex(index)),
            output: Output::Offset(0),
            amd_settings: 0,
        });
    }
    let tree = PciTree::new(&roots, functions).expect("a sound tree");
    (description, tree)
}

/// Adds `count` functions to a segment: ports, and below each one function with its virtual ones.
fn add_segment(segment: u16, count: usize, functions: &mut Vec<Function>) {
    let mut left = count;
    for port in 0.. {
        if left == 0 {
            break;
        }
        let address = |bus: u8, devfn: u8| PciAddress {
            segment,
            requester: RequesterId::new(u16::from(bus) << 8 | u16::from(devfn)),
        };
        let bus = port + 1;
        let acs = Some(Acs {
            capable: AcsFlags::ISOLATION,
            enabled: AcsFlags::ISOLATION,
        });
        functions.push(Function {
            buses: Some(BusRange {
                secondary: bus,
                subordinate: bus,
            }),
            acs,
            ..Function::new(address(0, port << 3), FunctionKind::RootPort)
        });
        left -= 1;
        let below = left.min(BELOW_PORT);
        for devfn in 0..below {
            let devfn = devfn as u8;
            let physical = (devfn > 0).then_some(address(bus, 0).requester);
            functions.push(Function {
                acs,
                physical,
                ..Function::new(address(bus, devfn), FunctionKind::Endpoint)
            });
        }
        left -= below;
    }
}

/// A driver that takes everything in.
#[derive(Debug)]
struct Idle;

impl Driver for Idle {
    fn probe(&self, _request: &ProbeRequest<'_>) -> Result<Arc<dyn Endpoint>, ProbeError> {
        Ok(Arc::new(Idle))
    }

    fn new_domain(
        &self,
        _kind: DefaultKind,
        _endpoints: &[Arc<dyn Endpoint>],
    ) -> Result<Arc<dyn Hwpt>, NewDomainError> {
        Ok(Arc::new(Idle))
    }
}

impl Endpoint for Idle {
    fn prepare(
        &self,
        _pasid: Option<Pasid>,
        _domain: &Arc<dyn Hwpt>,
    ) -> Result<Box<dyn Prepared + '_>, AttachFailure> {
        Ok(Box::new(Idle))
    }

    fn block(&self, _pasid: Option<Pasid>) {}

    fn release(&self) {}
}

impl Prepared for Idle {
    fn commit(self: Box<Self>) {}
}

impl Hwpt for Idle {
    fn kind(&self) -> DomainKind {
        DomainKind::Paging
    }

    fn map_direct(&self, _region: DirectRegion) -> Result<(), DomainError> {
        Ok(())
    }
}
