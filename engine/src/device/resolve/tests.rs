//! Machines resolved by hand.

mod buses;
mod random;
mod tables;

use std::vec::Vec;

use iopt_formats::{Iova, IovaRange};

use super::*;
use crate::firmware::{
    Architecture, Ats, Behind, Bus, DmaRange, Flaw, Instance, Itself, Location, Output, PathStep,
    PciPath, Place, Problem, Reach, Region, RegionKind, Rule as Sentence, Supplier, Who,
};
use crate::topology::{BusRange, Function, FunctionKind, RequesterId, RootBus};

fn pci(text: &str) -> PciAddress {
    text.parse().expect("it is an address")
}

fn device(text: &str) -> DeviceAddress {
    pci(text).into()
}

fn function(text: &str, kind: FunctionKind) -> Function {
    Function::new(pci(text), kind)
}

fn bridge(text: &str, kind: FunctionKind, secondary: u8, subordinate: u8) -> Function {
    let mut function = function(text, kind);
    function.buses = Some(BusRange {
        secondary,
        subordinate,
    });
    function
}

/// Root ports with an endpoint that has a virtual function, and with a bridge to PCI and a device there;
/// an IOMMU and a device on the root bus.
fn tree() -> PciTree {
    let mut one = function("0000:01:00.0", FunctionKind::Endpoint);
    one.aliases.push(RequesterId::new(0x0101));
    let mut virtual_one = function("0000:01:10.0", FunctionKind::Endpoint);
    virtual_one.physical = Some(RequesterId::new(0x0100));
    let functions = [
        bridge("0000:00:01.0", FunctionKind::RootPort, 1, 1),
        one,
        virtual_one,
        bridge("0000:00:02.0", FunctionKind::RootPort, 2, 3),
        bridge("0000:02:00.0", FunctionKind::PciePciBridge, 3, 3),
        function("0000:03:05.0", FunctionKind::Conventional),
        function("0000:00:03.0", FunctionKind::RootComplexEndpoint),
        function("0000:00:04.0", FunctionKind::RootComplexEndpoint),
    ];
    PciTree::new(&[RootBus { segment: 0, bus: 0 }], functions).expect("it is a tree")
}

fn instance(location: Location) -> Instance {
    Instance {
        architecture: Architecture::Other,
        location,
        name: "an instance".into(),
        is_enabled: true,
        is_coherent: None,
        itself: None,
        match_mask: 0,
    }
}

fn requesters(first: u16, last: u16) -> Subject {
    Subject::Requesters {
        segment: 0,
        mask: u16::MAX,
        first: RequesterId::new(first),
        last: RequesterId::new(last),
    }
}

fn path(steps: &[u8]) -> PciPath {
    let step = |device: &u8| PathStep {
        device: *device,
        function: 0,
    };
    PciPath {
        segment: 0,
        start_bus: 0,
        steps: steps.iter().map(step).collect(),
    }
}

fn sentence(subject: Subject, instance: Option<usize>, output: Output) -> Sentence {
    Sentence {
        subject,
        instance: instance.map(InstanceIndex),
        output,
        amd_settings: 0,
    }
}

fn described(instances: usize, rules: impl IntoIterator<Item = Sentence>) -> Description {
    Description {
        instances: (0..instances)
            .map(|_| instance(Location::Unstated))
            .collect(),
        rules: rules.into_iter().collect(),
        ..Description::default()
    }
}

fn resolve(description: &Description) -> Resolution {
    resolve_with(description, &Besides::default()).expect("it can be resolved")
}

fn resolve_with(description: &Description, besides: &Besides) -> Result<Resolution, ResolveError> {
    Resolution::new(description, &tree(), besides, Rule::Reachability)
}

impl Resolution {
    fn of(&self, address: DeviceAddress) -> &Resolved {
        let mut devices = self.parts.devices.iter();
        let found = devices.find(|device| device.address == address);
        found.expect("it is there")
    }

    fn streams(&self, address: DeviceAddress) -> Vec<(usize, Vec<u32>)> {
        let streams = self.of(address).streams.iter();
        streams
            .map(|stream| (stream.instance.0, stream.ids.clone()))
            .collect()
    }

    fn why_not(&self, address: DeviceAddress) -> Option<Untranslated> {
        let mut untranslated = self.untranslated.iter();
        let found = untranslated.find(|(device, _)| *device == address);
        found.map(|(_, why)| *why)
    }
}

#[test]
fn a_function_is_found_under_all_requester_ids_that_it_uses() {
    let description = described(
        2,
        [
            sentence(requesters(0, 0x0100), Some(0), Output::Offset(0x1000)),
            sentence(requesters(0x0101, 0x0300), Some(1), Output::Offset(0)),
        ],
    );
    let resolution = resolve(&description);
    // Its own ID, and the one of a quirk.
    let found = resolution.streams(device("0000:01:00.0"));
    assert_eq!(found, [(0, vec![0x1100]), (1, vec![0])]);
    // The bridge's alone: no rule is about its own.
    let found = resolution.streams(device("0000:03:05.0"));
    assert_eq!(found, [(1, vec![0x1ff])]);
    assert_eq!(resolution.untranslated, []);
    // Below a port without access control.
    let group = |text| resolution.of(device(text)).group;
    assert_eq!(group("0000:01:00.0"), group("0000:00:01.0"));
    assert_eq!(group("0000:03:05.0"), group("0000:00:02.0"));
    assert_ne!(group("0000:01:00.0"), group("0000:03:05.0"));
    let machine = Machine::new(resolution.parts).expect("it is a machine");
    assert_eq!(machine.group_count(), 4);
}

#[test]
fn a_function_that_is_half_behind_an_iommu_is_refused() {
    // Requests under the ID of its quirk are not met: unsaid, by a disabled instance, by a damaged entry.
    let half = || {
        described(
            2,
            [sentence(
                requesters(0x0100, 0x0100),
                Some(0),
                Output::Fixed(7),
            )],
        )
    };
    let mut disabled = half();
    disabled.instances[1].is_enabled = false;
    let other = sentence(requesters(0x0101, 0x0101), Some(1), Output::Fixed(8));
    disabled.rules.push(other);
    let mut damaged = half();
    damaged.flaws.push(Flaw {
        topic: Topic::Rule,
        subject: Some(requesters(0x0101, 0x0101)),
        name: "a map".into(),
        property: "an entry",
        offset: 0,
        problem: Problem::Value { value: 0 },
    });
    let function = device("0000:01:00.0");
    for (description, why) in [
        (half(), Unanswered::Unsaid),
        (disabled, Unanswered::Nothing(1)),
        (damaged, Unanswered::Unreadable(0)),
    ] {
        let resolution = resolve(&description);
        let id = 0x0101;
        let partly = Untranslated::Partly { id, why };
        assert_eq!(resolution.why_not(function), Some(partly));
        assert_eq!(resolution.streams(function), [(0, vec![7])]);
        assert_eq!(resolution.of(function).refusal, Some(Refusal::Partial));
    }
}

#[test]
fn below_a_bridge_to_pci_the_id_of_the_bridge_decides() {
    let function = device("0000:03:05.0");
    let of = |first, last, nothing: &[u16]| {
        let nothing = nothing.iter();
        let nothing = nothing.map(|id| sentence(requesters(*id, *id), None, Output::Offset(0)));
        let rule = sentence(requesters(first, last), Some(0), Output::Offset(0));
        resolve(&described(1, [rule].into_iter().chain(nothing))).why_not(function)
    };
    let partly = |id, why| Some(Untranslated::Partly { id, why });
    assert_eq!(of(0x0300, 0x0300, &[]), None);
    assert_eq!(of(0x0328, 0x0328, &[]), partly(0x0300, Unanswered::Unsaid));
    // What is said of its own ID counts all the same.
    let nothing = Unanswered::Nothing(1);
    assert_eq!(of(0x0300, 0x0300, &[0x0328]), partly(0x0328, nothing));
}

#[test]
fn a_virtual_function_is_where_its_physical_one_is_under_its_own_id() {
    for subject in [Subject::Function(path(&[1, 0])), Subject::Below(path(&[1]))] {
        let description = described(
            2,
            [
                sentence(subject, Some(1), Output::Offset(0)),
                sentence(Subject::Rest { segment: 0 }, Some(0), Output::Offset(0)),
            ],
        );
        let resolution = resolve(&description);
        let found = resolution.streams(device("0000:01:10.0"));
        assert_eq!(found, [(1, vec![0x0180])]);
        let found = resolution.streams(device("0000:00:03.0"));
        assert_eq!(found, [(0, vec![0x18])]);
    }
}

#[test]
fn who_is_behind_no_instance_has_a_reason_and_a_group_of_its_own() {
    let mut description = described(
        2,
        [
            sentence(requesters(0x08, 0x10), None, Output::Offset(0)),
            sentence(requesters(0x0100, 0x0180), Some(1), Output::Offset(0)),
            sentence(requesters(0x20, 0x20), Some(0), Output::Offset(0)),
        ],
    );
    description.instances[0].location = Location::Pci(pci("0000:00:03.0"));
    description.instances[1].is_enabled = false;
    description.flaws.push(Flaw {
        topic: Topic::Rule,
        subject: Some(Subject::Below(path(&[2, 0]))),
        name: "a map".into(),
        property: "an entry",
        offset: 0,
        problem: Problem::Value { value: 0 },
    });
    let resolution = resolve(&description);
    let expected = [
        ("0000:00:01.0", Untranslated::Nothing(0)),
        ("0000:00:02.0", Untranslated::Nothing(0)),
        ("0000:00:03.0", Untranslated::Itself(InstanceIndex(0))),
        ("0000:01:00.0", Untranslated::Nothing(1)),
        ("0000:01:10.0", Untranslated::Nothing(1)),
        ("0000:02:00.0", Untranslated::Unreadable(0)),
        ("0000:03:05.0", Untranslated::Unreadable(0)),
    ];
    assert_eq!(
        resolution.untranslated,
        expected.map(|(text, why)| (device(text), why))
    );
    let mut groups: Vec<_> = resolution
        .parts
        .devices
        .iter()
        .map(|device| device.group)
        .collect();
    groups.sort_unstable();
    groups.dedup();
    assert_eq!(groups.len(), 8);

    // Without any of that nothing is said of the last one either.
    description.rules.pop();
    let resolution = resolve(&description);
    let why = resolution.why_not(device("0000:00:04.0"));
    assert_eq!(why, Some(Untranslated::Unsaid));
}

#[test]
fn an_instance_does_not_translate_itself_though_a_rule_says_so() {
    let function = pci("0000:00:03.0");
    // With its registers, or with those in memory.
    for (location, besides) in [
        (Location::Pci(function), None),
        (Location::Unstated, Some(function)),
    ] {
        let mut description = described(
            1,
            [sentence(requesters(0, 0xffff), Some(0), Output::Offset(0))],
        );
        description.instances[0].location = location;
        description.instances[0].itself = besides.map(Itself::Function);
        let resolution = resolve(&description);
        let itself = device("0000:00:03.0");
        assert_eq!(resolution.parts.instances[0].hardware, Some(itself));
        assert_eq!(
            resolution.untranslated,
            [(itself, Untranslated::Itself(InstanceIndex(0)))]
        );
        assert_eq!(resolution.streams(itself), [(0, vec![0x18])]);
    }
}

fn named(name: &str) -> firmware::Node {
    firmware::Node {
        name: name.into(),
        bus: Bus::Platform,
    }
}

#[test]
fn a_named_device_has_all_its_ids_and_equal_cells_are_one_group() {
    let node = |number| Subject::Node(NodeIndex(number));
    let cells = |cells: &[u32]| Output::Cells(cells.to_vec());
    let mut description = described(
        3,
        [
            sentence(node(0), Some(1), cells(&[7])),
            sentence(node(0), Some(0), Output::Fixed(9)),
            sentence(node(0), Some(1), cells(&[5])),
            sentence(node(1), Some(0), cells(&[1, 2])),
            sentence(node(2), Some(0), cells(&[1, 3])),
            sentence(node(3), Some(0), cells(&[1, 2])),
            sentence(node(4), Some(2), cells(&[])),
        ],
    );
    description.nodes = ["a", "b", "c", "d", "e", "f"].map(named).to_vec();
    let resolution = resolve(&description);
    let at = |number| DeviceAddress::Node(NodeIndex(number));
    assert_eq!(resolution.streams(at(0)), [(0, vec![9]), (1, vec![5, 7])]);
    assert_eq!(resolution.streams(at(1)), [(0, vec![])]);
    let group = |number| resolution.of(at(number)).group;
    assert_eq!(group(1), group(3));
    assert_ne!(group(1), group(2));
    assert_eq!(resolution.why_not(at(4)), None);
    assert_eq!(resolution.why_not(at(5)), Some(Untranslated::Unsaid));
    let apart = resolution.parts.instances.iter();
    let apart: Vec<_> = apart.map(|facts| facts.tells_devices_apart).collect();
    assert_eq!(apart, [true, true, false]);
}

#[test]
fn devices_on_a_named_bus_are_found_by_their_ids_there() {
    let inputs = |node, mask, first, last| Subject::Inputs {
        node: NodeIndex(node),
        mask,
        first,
        last,
    };
    let mut description = described(
        1,
        [
            sentence(inputs(0, u32::MAX, 3, 9), Some(0), Output::Offset(0x20)),
            sentence(inputs(1, 0xf, 2, 2), Some(0), Output::Offset(0x40)),
        ],
    );
    description.nodes = ["a", "b"].map(named).to_vec();
    let besides = Besides {
        inputs: [(1, 0x32), (0, 9), (0, 10), (1, 0x12)]
            .map(|(node, id)| (NodeIndex(node), id))
            .to_vec(),
        ..Besides::default()
    };
    let resolution = resolve_with(&description, &besides).expect("it can be resolved");
    let at = |node, id| DeviceAddress::Input {
        node: NodeIndex(node),
        id,
    };
    assert_eq!(resolution.streams(at(0, 9)), [(0, vec![0x26])]);
    assert_eq!(resolution.why_not(at(0, 10)), Some(Untranslated::Unsaid));
    // What the mask leaves out, the instance does not see.
    assert_eq!(resolution.streams(at(1, 0x32)), [(0, vec![0x40])]);
    assert_eq!(resolution.streams(at(1, 0x12)), [(0, vec![0x40])]);
    let machine = Machine::new(resolution.parts).expect("it is a machine");
    let group: Vec<_> = machine.group(at(1, 0x12)).expect("it is there").collect();
    assert_eq!(group, [at(1, 0x12), at(1, 0x32)]);
}

fn region(subject: Option<Subject>, start: u64) -> Region {
    Region {
        subject,
        range: IovaRange::new(Iova::new(start), Iova::new(start + 0xfff)).expect("it is one"),
        kind: RegionKind::Reserved,
    }
}

#[test]
fn regions_reach_and_suppliers_are_those_of_the_device() {
    let mut description = described(
        1,
        [sentence(
            requesters(0x0100, 0x0101),
            Some(0),
            Output::Offset(0x40),
        )],
    );
    let streams = Subject::Streams {
        instance: InstanceIndex(0),
        first: 0x41,
        last: 0x50,
    };
    description.regions = Vec::from([
        region(None, 0x1000),
        // Its own ID and that of its quirk: one region all the same.
        region(Some(requesters(0x0100, 0x0101)), 0x2000),
        region(Some(streams), 0x3000),
        region(Some(Subject::Below(path(&[2]))), 0x4000),
    ]);
    let reach = |subject, bits| Reach {
        subject,
        address_bits: Some(bits),
        ranges: Vec::<DmaRange>::new(),
    };
    description.reaches = Vec::from([
        reach(requesters(0x0100, 0x0100), 40),
        reach(requesters(0, 0xffff), 48),
    ]);
    description.suppliers.push(Supplier {
        consumer: Subject::Below(path(&[2, 0])),
        instance: InstanceIndex(0),
    });
    let besides = Besides {
        external_ports: [pci("0000:00:02.0")].to_vec(),
        pasid_bits: [(pci("0000:01:00.0"), 16)].to_vec(),
        ..Besides::default()
    };
    let resolution = resolve_with(&description, &besides).expect("it can be resolved");
    let facts = |text| {
        let device = resolution.of(device(text));
        let regions = device.regions.iter();
        let starts: Vec<_> = regions
            .map(|region| region.range.start().get() >> 12)
            .collect();
        (
            starts,
            device.reach.address_bits,
            device.is_untrusted,
            device.pasid_bits,
        )
    };
    let expected = (vec![1, 2, 3], Some(40), false, 16);
    assert_eq!(facts("0000:01:00.0"), expected);
    assert_eq!(facts("0000:01:10.0"), (vec![1], Some(48), false, 0));
    assert_eq!(facts("0000:00:02.0"), (vec![1, 4], Some(48), false, 0));
    assert_eq!(facts("0000:03:05.0"), (vec![1, 4], Some(48), true, 0));
    let edges = resolution.parts.suppliers.iter();
    let consumers: Vec<_> = edges.map(|edge| edge.consumer).collect();
    assert_eq!(consumers, [device("0000:02:00.0"), device("0000:03:05.0")]);
}

#[test]
fn what_is_not_there_is_refused() {
    let description = described(1, []);
    let refused = |besides: &Besides| resolve_with(&description, besides).expect_err("it is wrong");
    let address = pci("0000:00:09.0");
    let mut besides = Besides::default();
    besides.external_ports.push(address);
    assert_eq!(refused(&besides), ResolveError::NoFunction { address });
    let mut besides = Besides::default();
    besides.pasid_bits.push((address, 1));
    assert_eq!(refused(&besides), ResolveError::NoFunction { address });
    let mut besides = Besides::default();
    besides.inputs.push((NodeIndex(0), 1));
    let node = NodeIndex(0);
    assert_eq!(refused(&besides), ResolveError::NoNode { node });

    let mut description = description;
    description.nodes.push(named("a"));
    besides.inputs.push((NodeIndex(0), 1));
    let machine = Machine::resolve(&description, &tree(), &besides, Rule::Reachability);
    let address = DeviceAddress::Input { node, id: 1 };
    assert_eq!(
        machine.expect_err("it is wrong"),
        MachineError::Twice { address }.into()
    );
}

#[test]
fn a_device_that_needs_iova_which_cannot_be_read_is_refused() {
    let all = sentence(requesters(0, 0xffff), Some(0), Output::Offset(0));
    let mut description = described(1, [all]);
    for subject in [Some(requesters(0x18, 0x18)), None] {
        description.flaws.push(Flaw {
            topic: Topic::Region,
            subject,
            name: "memory".into(),
            property: "a range",
            offset: 0,
            problem: Problem::Value { value: 0 },
        });
    }
    let resolution = resolve(&description);
    let refused = device("0000:00:03.0");
    assert_eq!(
        resolution.untranslated,
        [(refused, Untranslated::Unreadable(0))]
    );
    assert_eq!(resolution.of(refused).refusal, Some(Refusal::Regions));
    assert_eq!(resolution.streams(refused), [(0, vec![0x18])]);
}

#[test]
fn that_a_device_tlb_is_required_counts_wherever_it_is_said() {
    let ats = |subject, is_required| Ats {
        subject,
        is_required,
    };
    let mut description = described(1, []);
    // As DMAR has them: root ports first, then what is inside the package.
    description.ats = Vec::from([
        ats(Subject::BelowRootPorts { segment: 0 }, false),
        ats(Subject::Function(path(&[1, 0])), true),
        ats(Subject::Function(path(&[3])), true),
        ats(Subject::Function(path(&[3])), false),
        ats(Subject::BelowRootPorts { segment: 1 }, true),
    ]);
    let tree = tree();
    let resolution = resolve(&description);
    let of = |text| {
        let address = pci(text);
        let who = Who::Requester(address, &Place::new(&tree, address));
        let found = description.ats_of(who).map(|ats| ats.is_required);
        let expected = match found {
            None => DeviceTlb::Unsaid,
            Some(false) => DeviceTlb::Allowed,
            Some(true) => DeviceTlb::Required,
        };
        assert_eq!(resolution.of(address.into()).device_tlb, expected, "{text}");
        found
    };
    assert_eq!(of("0000:00:01.0"), Some(false));
    assert_eq!(of("0000:01:00.0"), Some(true));
    // A virtual function is where its physical one is.
    assert_eq!(of("0000:01:10.0"), Some(true));
    assert_eq!(of("0000:03:05.0"), Some(false));
    assert_eq!(of("0000:00:03.0"), Some(true));
    // Root ports are not what integrated devices are below.
    assert_eq!(of("0000:00:04.0"), None);
}
