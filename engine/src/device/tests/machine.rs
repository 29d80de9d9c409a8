//! What a machine makes of what is resolved.

use super::*;

fn groups(machine: &Machine) -> Vec<Vec<DeviceAddress>> {
    let devices = machine.devices();
    let groups = devices.map(|device| machine.group(device.address).expect("it is there"));
    let mut groups: Vec<Vec<_>> = groups.map(Iterator::collect).collect();
    groups.dedup();
    groups
}

#[test]
fn devices_are_grouped_by_what_cannot_be_told_apart() {
    let mut devices: Vec<_> = (0..8).map(|number| behind(number, number, &[0])).collect();
    devices[3].group = 1;
    // Requests of 4 and 6 arrive under one ID; 7's does too, elsewhere.
    devices[4].streams[0].ids = Vec::from([70, 60]);
    devices[6].streams[0].ids = Vec::from([80, 60, 60]);
    devices[7].streams[0] = Stream {
        instance: InstanceIndex(1),
        ids: Vec::from([60]),
    };
    devices[5].streams.clear();
    devices.reverse();
    let machine = Machine::new(parts(devices.clone())).expect("it is one");
    let alone = |number| Vec::from([node(number)]);
    assert_eq!(machine.group_count(), 6);
    assert_eq!(
        machine.device(node(6)).expect("it is there").streams[0].ids,
        [60, 80]
    );
    let expected = [
        alone(0),
        Vec::from([node(1), node(3)]),
        alone(2),
        Vec::from([node(4), node(6)]),
        alone(5),
        alone(7),
    ];
    let mut found = groups(&machine);
    found.sort_unstable();
    found.dedup();
    assert_eq!(found, expected);

    let mut parts = parts(devices);
    parts.instances[0].tells_devices_apart = false;
    let machine = Machine::new(parts).expect("it is one");
    let all = [0, 1, 2, 3, 4, 6].map(node);
    assert_eq!(groups(&machine)[0], all);
    assert_eq!(machine.group_count(), 3);
    assert!(machine.group(node(8)).is_none());
}

#[test]
fn what_contradicts_itself_is_no_machine() {
    let refused = |parts| Machine::new(parts).expect_err("it is none");
    let twice = Vec::from([behind(1, 0, &[]), behind(2, 0, &[]), behind(1, 1, &[])]);
    assert_eq!(
        refused(parts(twice)),
        MachineError::Twice { address: node(1) }
    );
    let (address, instance) = (node(0), InstanceIndex(1));
    let mut one = parts(Vec::from([behind(0, 0, &[1])]));
    one.instances.pop();
    assert_eq!(
        refused(one),
        MachineError::UnknownInstance { address, instance }
    );
    let again = parts(Vec::from([behind(0, 0, &[1, 1])]));
    assert_eq!(
        refused(again),
        MachineError::StreamTwice { address, instance }
    );
    let mut wide = parts(Vec::from([behind(0, 0, &[1])]));
    wide.devices[0].pasid_bits = 21;
    assert_eq!(
        refused(wide.clone()),
        MachineError::PasidBits { address, bits: 21 }
    );
    wide.devices[0].pasid_bits = 20;
    wide.suppliers.push(SupplierEdge {
        consumer: address,
        instance: InstanceIndex(2),
    });
    let instance = InstanceIndex(2);
    assert_eq!(
        refused(wide),
        MachineError::UnknownInstance { address, instance }
    );
}
