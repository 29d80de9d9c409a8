//! Units that firmware's description of the machine leaves out, and that find their devices themselves.

use alloc::string::String;
use alloc::vec;

use iopt_formats::Iova;
use iopt_formats::command::PageResponse;
use iopt_formats::context::vtd::Translation;
use iopt_formats::event::vtd::PageRequest as Record;

use super::*;
use crate::device::testing_faults::Collector;
use crate::device::vtd::tests::rig::{ASKING_FEATURES, capable};
use crate::device::{
    By, Config, DefaultKind, DeviceAddress, DeviceControl, DeviceTlb, Hwpt, Identity, Machine,
    MachineParts, NoIommu, Owner, PlainDevices, Registration, Registry, Resolved, Standing,
};
use crate::firmware::{
    self, Description, Instance, InstanceIndex, Location, Output, PathStep, PciPath, Rule, Subject,
};
use crate::topology::{
    BusRange, Function, FunctionKind, PciAddress, PciTree, RequesterId, RootBus,
};

fn at(bus: u8, device: u8) -> PciAddress {
    PciAddress {
        segment: 0,
        requester: RequesterId::from_parts(bus, device, 0).expect("it is one"),
    }
}

/// Two endpoints, a virtual function of the first one, and a device below a bridge to a conventional bus.
fn tree() -> PciTree {
    let endpoint = |address| Function::new(address, FunctionKind::RootComplexEndpoint);
    let bridge = Function {
        buses: Some(BusRange {
            secondary: 1,
            subordinate: 1,
        }),
        ..Function::new(at(0, 4), FunctionKind::ConventionalBridge)
    };
    let virtual_function = Function {
        physical: Some(at(0, 2).requester),
        ..endpoint(at(0, 9))
    };
    let functions = vec![
        endpoint(at(0, 2)),
        endpoint(at(0, 3)),
        virtual_function,
        bridge,
        Function::new(at(1, 5), FunctionKind::Conventional),
    ];
    let root = RootBus { segment: 0, bus: 0 };
    PciTree::new(&[root], functions).expect("it is one")
}

/// The first unit has one function, the second one what is below the bridge; of the rest, nobody has anything.
fn description() -> Description {
    let instance = |number: u64| Instance {
        architecture: firmware::Architecture::Vtd,
        location: Location::Memory {
            base: 0xfed9_0000 + 0x1000 * number,
            len: None,
        },
        name: String::new(),
        is_enabled: true,
        is_coherent: None,
        itself: None,
        match_mask: 0,
    };
    let path = |device| PciPath {
        segment: 0,
        start_bus: 0,
        steps: vec![PathStep {
            device,
            function: 0,
        }],
    };
    let rule = |subject, number| Rule {
        subject,
        instance: Some(InstanceIndex(number)),
        output: Output::Offset(0),
        amd_settings: 0,
    };
    Description {
        instances: vec![instance(0), instance(1)],
        rules: vec![
            rule(Subject::Function(path(2)), 0),
            rule(Subject::Below(path(4)), 1),
        ],
        ..Description::default()
    }
}

/// A1.8, with what units know of themselves.
#[test]
fn an_anonymous_unit_takes_the_devices_of_its_own_scope() {
    let (tree, description) = (Arc::new(tree()), Arc::new(description()));
    let devices = [at(0, 2), at(0, 3), at(0, 9), at(1, 5)];
    let resolved = devices.iter().zip(0..);
    let parts = MachineParts {
        devices: resolved
            .map(|(&address, group)| Resolved::new(DeviceAddress::Pci(address), group))
            .collect(),
        anonymous_count: 3,
        ..MachineParts::default()
    };
    let config = Config {
        default_kind: Some(DefaultKind::Paging),
        ..Config::default()
    };
    let machine = Arc::new(Machine::new(parts).expect("they fit"));
    let registry = Arc::new(Registry::new(machine, config));
    let driver = VtdDriver::<Heap, Queue>::new(Arc::new(Heap), Arc::new(PlainDevices));
    let scope = |number| Scope {
        description: Arc::clone(&description),
        instance: InstanceIndex(number),
        tree: Arc::clone(&tree),
    };
    // The first one knows of nothing.
    let units = [
        unit(TableMode::Legacy, PLANNER),
        unit(TableMode::Scalable, PLANNER).with_scope(scope(0)),
        unit(TableMode::Legacy, PLANNER).with_scope(scope(1)),
    ];
    let units = units.map(Arc::new);
    for &address in &devices {
        let added = registry.add_device(DeviceAddress::Pci(address));
        added.expect("it is new");
    }
    for (unit, number) in units.iter().zip(0..) {
        let registration = Registration {
            identity: Identity::Anonymous(number),
            driver: Arc::clone(&driver) as _,
            instance: Arc::clone(unit) as _,
        };
        registry.register(registration).expect("it works");
    }
    let snapshot = registry.snapshot();
    let standing = |address| {
        let device = snapshot.device(DeviceAddress::Pci(address));
        &device.expect("it was added").standing
    };
    for (address, number) in [(at(0, 2), 1), (at(0, 9), 1), (at(1, 5), 2)] {
        let served = match standing(address) {
            Standing::Grouped { streams, .. } => streams,
            other => panic!("{address}: {other:?}"),
        };
        assert_eq!(served[0].0, Identity::Anonymous(number), "{address}");
    }
    // A device that nobody sees.
    let none = standing(at(0, 3));
    assert_eq!(*none, Standing::NoIommu(NoIommu::NotBehind));
    let is_led = |unit: &Unit, address: PciAddress| {
        let entry = unit.context(address.requester.get());
        entry.is_some_and(|entry| match entry {
            ContextEntry::Legacy(entry) => entry.translation() != Translation::Blocked,
            ContextEntry::Scalable(entry) => entry.directory().is_some(),
        })
    };
    for (number, led) in [
        (0, vec![]),
        (1, vec![at(0, 2), at(0, 9)]),
        // Its own ID, and that of the bridge which takes its requests.
        (2, vec![at(0, 4), at(1, 5)]),
    ] {
        let all = [at(0, 2), at(0, 3), at(0, 4), at(0, 9), at(1, 5)];
        let found: Vec<_> = all
            .into_iter()
            .filter(|&address| is_led(&units[number], address))
            .collect();
        assert_eq!(found, led, "{number}");
    }
}

/// A device that can ask for pages.
#[derive(Debug)]
struct Asking;

impl DeviceControl for Asking {
    fn has_ats(&self, _: DeviceAddress) -> bool {
        true
    }

    fn has_page_requests(&self, _: DeviceAddress) -> bool {
        true
    }
}

/// No rule of firmware names the device; records name it by the ID that the unit knows.
#[test]
fn page_requests_behind_an_anonymous_unit_find_their_device() {
    let device = DeviceAddress::Pci(at(0, 2));
    let mut resolved = Resolved::new(device, 0);
    resolved.device_tlb = DeviceTlb::Allowed;
    let parts = MachineParts {
        devices: vec![resolved],
        anonymous_count: 1,
        ..MachineParts::default()
    };
    let config = Config {
        default_kind: Some(DefaultKind::Paging),
        ..Config::default()
    };
    let machine = Arc::new(Machine::new(parts).expect("they fit"));
    let registry = Arc::new(Registry::new(machine, config));
    let instance = Queue::instance_of(PLANNER);
    let mode = TableMode::Scalable;
    let unit = Unit::new(ASKING_FEATURES, mode, Arc::new(Heap), instance).expect("memory");
    let unit = Arc::new(unit.with_scope(Scope {
        description: Arc::new(description()),
        instance: InstanceIndex(0),
        tree: Arc::new(tree()),
    }));
    registry.add_device(device).expect("it is new");
    let registration = Registration {
        identity: Identity::Anonymous(0),
        driver: VtdDriver::<Heap, Queue>::new(Arc::new(Heap), Arc::new(Asking)),
        instance: Arc::clone(&unit) as _,
    };
    registry.register(registration).expect("it works");
    let collector = Collector::new();
    let owner = registry.claim_owner(device, &Owner::new("the test"));
    let owner = owner.expect("nobody has it");
    let domain = capable(&collector) as Arc<dyn Hwpt>;
    let attached = registry.attach(device, By::Owner(&owner), &domain);
    attached.expect("it can ask");
    take(&unit);
    let record = Record {
        requester_id: at(0, 2).requester.get(),
        pasid: None,
        group: Narrow::new(1).expect("it fits"),
        is_last: true,
        is_read: true,
        is_write: false,
        is_fetch: false,
        is_privileged: false,
        address: Iova::new(0x5000),
        private_data: None,
    };
    unit.take_page_request(&record).expect("it is kept");
    let mut groups = collector.take();
    let group = groups.pop().expect("it was found");
    assert_eq!(group.device(), device);
    group.respond(PageResponse::Success).expect("it is open");
    assert_eq!(take(&unit).len(), 1);
}
