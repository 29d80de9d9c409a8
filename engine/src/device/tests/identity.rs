//! Which instance serves which device, by what names, and in which group.

use alloc::string::ToString as _;

use super::*;
use crate::topology::{PciAddress, RequesterId};

/// A1.7: nothing but the identity leads to an instance.
#[test]
fn each_device_finds_its_own_of_two_instances_of_one_parent() {
    let rig = Rig::new(Vec::from([behind(0, 0, &[1]), behind(1, 1, &[0])]));
    rig.add_all();
    rig.driver.on_probe(|request| {
        let own = usize::from(request.address() == node(0));
        assert_eq!(request.identity(0), Some(described(own)));
        assert_eq!(
            request.instance::<Identity>(0).as_deref(),
            Some(&described(own))
        );
        assert!(request.instance::<u32>(0).is_none() && request.instance::<Identity>(1).is_none());
    });
    rig.register(1);
    assert_eq!((rig.group_count(), rig.standing(1)), (1, Standing::Waiting));
    rig.register(0);
    assert_eq!(rig.group_count(), 2);
}

/// A1.8.
#[test]
fn instances_without_a_description_serve_the_devices_that_no_rule_names() {
    let mut parts = parts(Vec::from([
        behind(0, 0, &[0]),
        behind(1, 1, &[]),
        behind(2, 2, &[]),
        behind(3, 3, &[]),
    ]));
    parts.anonymous_count = 2;
    for order in [[0, 1], [1, 0]] {
        let rig = Rig::of(parts.clone());
        rig.world.with(|world| {
            let of = |number| Identity::Anonymous(number);
            world.strangers.extend([(of(1), node(1)), (of(0), node(2))]);
            world.strangers.extend([(of(0), node(3)), (of(1), node(3))]);
        });
        rig.add_all();
        for number in order {
            assert_eq!(rig.standing(1), Standing::Waiting);
            let registration = rig.registration(Identity::Anonymous(number));
            rig.registry.register(registration).expect("it works");
        }
        assert_eq!(rig.standing(0), Standing::Waiting);
        rig.register(0);
        let served = |number| match rig.standing(number) {
            Standing::Grouped { streams, .. } => streams,
            other => panic!("{other:?}"),
        };
        assert_eq!(served(0), [(described(0), Vec::from([0]))]);
        assert_eq!(served(1), [(Identity::Anonymous(0), Vec::new())]);
        assert_eq!(served(2), [(Identity::Anonymous(1), Vec::new())]);
        assert_eq!(rig.standing(3), Standing::NoIommu(NoIommu::NotBehind));
        assert_eq!(rig.world.report_count("NoIommu"), 0, "firmware names none");
        rig.registry
            .unregister(Identity::Anonymous(1))
            .expect("nobody uses it");
        assert_eq!(rig.standing(2), Standing::Waiting);
        assert_eq!(served(1).len(), 1);
        let stranger = Registration {
            driver: Toy::new(&rig.world),
            ..rig.registration(Identity::Anonymous(1))
        };
        let refused = rig.registry.register(stranger);
        assert!(
            matches!(refused, Err(RegisterError::AnotherDriver)),
            "{refused:?}"
        );
        rig.check();
    }
}

#[test]
fn a_device_behind_instances_of_two_drivers_is_behind_none() {
    let rig = Rig::new(Vec::from([behind(0, 0, &[0, 1]), behind(1, 1, &[1])]));
    rig.add_all();
    rig.register(0);
    let other = Registration {
        driver: Toy::new(&rig.world),
        ..rig.registration(described(1))
    };
    rig.registry.register(other).expect("it works");
    assert_eq!(rig.standing(0), Standing::NoIommu(NoIommu::Mixed));
    assert_eq!(rig.world.report_count("NoIommu"), 1);
    assert_eq!(rig.group_count(), 1);
    rig.registry
        .unregister(described(1))
        .expect("nobody uses it");
    assert_eq!(rig.standing(0), Standing::Waiting);
}

/// A1.10: what goes into an ID map by bus, and what comes out.
#[test]
fn each_bus_brings_the_ids_that_its_instance_sees() {
    let function = |bus, device| {
        DeviceAddress::Pci(PciAddress {
            segment: 1,
            requester: RequesterId::from_parts(bus, device, 0).expect("it is one"),
        })
    };
    let input = |id| DeviceAddress::Input {
        node: NodeIndex(1),
        id,
    };
    let vectors: [(DeviceAddress, &[u32], &str); 5] = [
        // With the alias of the bridge above, which another function has as well.
        (function(2, 0), &[0x200, 0x210], "0001:02:00.0"),
        (function(2, 1), &[0x200, 0x208], "0001:02:01.0"),
        (node(0), &[7], "node 0"),
        // Two objects of one container.
        (input(0x10), &[0x4010], "input 0x10 of node 1"),
        (input(0x20), &[0x4010], "input 0x20 of node 1"),
    ];
    let mut devices = Vec::new();
    for (group, (address, ids, text)) in vectors.into_iter().enumerate() {
        assert_eq!(address.to_string(), text);
        let mut device = Resolved::new(address, group);
        let ids = ids.to_vec();
        device.streams.push(Stream {
            instance: InstanceIndex(0),
            ids,
        });
        devices.push(device);
    }
    let rig = Rig::new(devices);
    rig.add_all();
    let world = Arc::clone(&rig.world);
    rig.driver.on_probe(move |request| {
        let line = alloc::format!("ids {} {:x?}", request.address(), request.ids(0));
        world.with(|world| world.reports.push(line));
    });
    rig.register(0);
    for (address, ids, _) in vectors {
        let line = alloc::format!("ids {address} {ids:x?}");
        assert_eq!(rig.world.report_count(&line), 1, "{line}");
    }
    let snapshot = rig.registry.snapshot();
    let sizes: Vec<_> = snapshot
        .groups
        .iter()
        .map(|group| group.members.len())
        .collect();
    assert_eq!(sizes, [2, 1, 2]);
}

/// A2.5.
#[test]
fn an_instance_that_cannot_tell_its_devices_apart_has_one_group() {
    let devices: Vec<_> = (0..4)
        .map(|number| behind(number, number, &[number / 2]))
        .collect();
    let mut singleton = parts(devices.clone());
    for facts in &mut singleton.instances {
        facts.tells_devices_apart = false;
    }
    let rig = Rig::of(singleton);
    rig.registry.finish_initialization();
    rig.register(0);
    rig.register(1);
    std::thread::scope(|scope| {
        for number in 0..4 {
            let rig = &rig;
            scope.spawn(move || rig.add(number));
        }
    });
    let groups = rig.registry.snapshot().groups;
    let members: Vec<_> = groups.iter().map(|group| &group.members[..]).collect();
    assert_eq!(members, [[node(0), node(1)], [node(2), node(3)]]);
    rig.check();
    let domain = rig.world.domain_of(node(0), None);
    assert_ne!(domain, rig.world.domain_of(node(2), None));
    rig.registry
        .unregister(described(0))
        .expect("nobody uses it");
    assert_eq!(rig.group_count(), 1);
    rig.register(0);
    assert_eq!(rig.group_count(), 2);
    assert!(rig.world.domain_of(node(0), None) > domain, "a fresh one");
    rig.check();

    let rig = Rig::new(devices);
    let driver = Toy {
        world: Arc::clone(&rig.world),
        on_probe: Mutex::new(&LOG, None),
        on_finalize: Mutex::new(&LOG, None),
        on_new_domain: Mutex::new(&LOG, None),
        tells_devices_apart: false,
    };
    let registration = Registration {
        driver: Arc::new(driver),
        ..rig.registration(described(0))
    };
    let refused = rig.registry.register(registration);
    assert!(
        matches!(refused, Err(RegisterError::Apart { .. })),
        "{refused:?}"
    );
}
