//! Groups of devices below ports, whatever becomes of the ports.

use super::*;
use crate::device::{Besides, Resolution};
use crate::firmware::{
    Architecture, Description, Instance, Location, Output, Rule as Sentence, Subject,
};
use crate::topology::{
    Acs, AcsFlags, BusRange, Function, FunctionKind, PciTree, RequesterId, RootBus, Rule,
};

/// A root port without access control above a device of two functions, and one with it above another device.
const PORTS: [&str; 2] = ["0000:00:01.0", "0000:00:02.0"];
const ENDPOINTS: [&str; 3] = ["0000:01:00.0", "0000:01:00.1", "0000:02:00.0"];

fn device(text: &str) -> DeviceAddress {
    DeviceAddress::Pci(text.parse().expect("it is an address"))
}

fn tree() -> PciTree {
    let function = |text: &str, kind| Function::new(text.parse().expect("it is one"), kind);
    let mut functions: Vec<_> = PORTS
        .map(|text| function(text, FunctionKind::RootPort))
        .to_vec();
    for (port, bus) in functions.iter_mut().zip(1..) {
        port.buses = Some(BusRange {
            secondary: bus,
            subordinate: bus,
        });
    }
    functions[1].acs = Some(Acs {
        capable: AcsFlags::ISOLATION,
        enabled: AcsFlags::ISOLATION,
    });
    functions.extend(ENDPOINTS.map(|text| function(text, FunctionKind::Endpoint)));
    PciTree::new(&[RootBus { segment: 0, bus: 0 }], functions).expect("it is a tree")
}

/// All functions are behind one instance, but the first port if that is behind none.
fn resolved(has_port: bool) -> MachineParts {
    let mut description = Description::default();
    description.instances.push(Instance {
        architecture: Architecture::Other,
        location: Location::Unstated,
        name: "an instance".into(),
        is_enabled: true,
        is_coherent: None,
        itself: None,
        match_mask: 0,
    });
    description.rules.push(Sentence {
        subject: Subject::Requesters {
            segment: 0,
            mask: u16::MAX,
            first: RequesterId::new(if has_port { 0 } else { 0x10 }),
            last: RequesterId::MAX,
        },
        instance: Some(InstanceIndex(0)),
        output: Output::Offset(0),
        amd_settings: 0,
    });
    let besides = Besides::default();
    let resolution = Resolution::new(&description, &tree(), &besides, Rule::Reachability);
    resolution.expect("it can be resolved").parts
}

/// The endpoints of each group that has any.
fn groups(rig: &Rig) -> Vec<Vec<DeviceAddress>> {
    let groups = rig.registry.snapshot().groups;
    let is_endpoint =
        |device: &DeviceAddress| ENDPOINTS.iter().any(|text| *device == self::device(text));
    let endpoints = groups.into_iter().map(|group| {
        let members = group.members.into_iter();
        members.filter(is_endpoint).collect::<Vec<_>>()
    });
    let mut groups: Vec<_> = endpoints.filter(|group| !group.is_empty()).collect();
    groups.sort_unstable();
    groups
}

/// A2.4: the driver of a port fails, or there is none, or no IOMMU translates the port: the groups below are the
/// same.
#[test]
fn what_becomes_of_a_port_changes_no_group_below() {
    let port = device(PORTS[0]);
    let [one, two, other] = ENDPOINTS.map(device);
    let expected = [Vec::from([one, two]), Vec::from([other])];
    let bind = |rig: &Rig, device| rig.registry.bind_device(device, Use::DefaultDomain);
    for (has_port, fails, is_added, is_bound, is_removed) in [
        (true, false, true, true, false),
        (true, true, true, true, false),
        (true, false, false, false, false),
        (true, false, true, true, true),
        (false, false, true, true, false),
    ] {
        let rig = Rig::of(resolved(has_port));
        if fails {
            rig.world.with(|world| world.failing_probes.insert(port));
        }
        rig.register(0);
        let ports = [port, device(PORTS[1])];
        for address in ports.into_iter().chain([one, two, other]) {
            if is_added || address != port {
                rig.registry.add_device(address).expect("it is there");
            }
        }
        rig.registry.finish_initialization();
        if is_bound {
            let bound = bind(&rig, port).expect("there is nothing to wait for");
            let is_translated = matches!(bound, Binding::Translated(_));
            assert_eq!(is_translated, has_port && !fails);
        }
        if is_removed {
            let guard = rig.registry.lock_device(port).expect("it is there");
            assert_eq!(guard.remove(), Removal::Done);
        }
        for address in [one, two, other] {
            assert!(matches!(bind(&rig, address), Ok(Binding::Translated(_))));
        }
        assert_eq!(groups(&rig), expected, "{has_port} {fails} {is_added}");
        rig.check();
    }
}
