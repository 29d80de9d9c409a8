//! Machines of which more becomes known.

use super::*;

/// Makes a machine known that has these devices.
fn grow(rig: &Rig, devices: Vec<Resolved>) -> Result<(), GrowError> {
    let machine = Machine::new(parts(devices)).expect("it is one");
    rig.registry.grow(machine)
}

/// Eight devices behind two instances, in groups {0, 5}, {1, 2, 7}, {3}, {4, 6}.
fn all() -> Vec<Resolved> {
    let groups = [0, 1, 1, 3, 4, 0, 4, 1];
    let devices = groups.iter().zip(0..);
    devices
        .map(|(&group, number)| behind(number, group, &[number % 2, 1][number % 2..]))
        .collect()
}

fn some(numbers: &[usize]) -> Vec<Resolved> {
    let mut devices = all();
    devices.retain(|device| numbers.iter().any(|&number| device.address == node(number)));
    devices
}

#[test]
fn a_machine_that_grew_is_the_one_that_was_known_from_the_start() {
    let whole = Rig::new(all());
    whole.add_all();
    whole.register(0);
    whole.register(1);
    whole.check();
    let steps: [&[usize]; 4] = [
        &[6, 7],
        &[1, 6, 7],
        &[0, 1, 3, 6, 7],
        &[0, 1, 2, 3, 4, 5, 6, 7],
    ];
    // Instances come before the step of this number.
    for registered_at in 0..=steps.len() {
        let rig = Rig::new(some(steps[0]));
        for (step, numbers) in steps.into_iter().enumerate() {
            if step == registered_at {
                rig.register(0);
                rig.register(1);
            }
            grow(&rig, some(numbers)).expect("it is the same");
            rig.add_all();
            rig.check();
        }
        if registered_at == steps.len() {
            rig.register(0);
            rig.register(1);
        }
        rig.check();
        assert_eq!(rig.registry.snapshot(), whole.registry.snapshot());
        let counts = rig.world.with(|world| world.probe_counts.clone());
        assert!(counts.len() == 8 && counts.values().all(|&count| count == 1));
    }
}

#[test]
fn groups_that_are_there_are_neither_joined_nor_parted() {
    let rig = Rig::new(some(&[0, 3, 4, 6]));
    rig.add_all();
    rig.register(0);
    rig.register(1);
    let before = rig.registry.snapshot();
    let refused = |devices, error| {
        assert_eq!(grow(&rig, devices), Err(error));
        assert_eq!(rig.registry.snapshot(), before);
        assert_eq!(rig.registry.machine().group_count(), 3);
    };
    let address = node(0);
    // One more shares an ID with two of them.
    let mut devices = some(&[0, 1, 3, 4, 6]);
    devices[1].streams[0].ids.extend([0, 3]);
    let joined = GrowError::Joined {
        address: node(3),
        other: address,
    };
    refused(devices, joined);
    let mut devices = all();
    devices[6].group = 6;
    let parted = GrowError::Parted { address: node(6) };
    refused(devices, parted);
    refused(some(&[1, 3, 4, 6]), GrowError::Gone { address });
    let mut devices = all();
    devices[0].streams[0].ids.push(9);
    refused(devices, GrowError::Changed { address });
    let mut others = parts(all());
    others.instances[0].is_enabled = false;
    let machine = Machine::new(others).expect("it is one");
    assert_eq!(rig.registry.grow(machine), Err(GrowError::Instances));
    let mut others = parts(all());
    others.anonymous_count = 1;
    let machine = Machine::new(others).expect("it is one");
    assert_eq!(rig.registry.grow(machine), Err(GrowError::Instances));
    assert_eq!(rig.registry.snapshot(), before);
}

#[test]
fn a_newcomer_meets_what_its_group_is_attached_to() {
    let rig = Rig::new(some(&[1]));
    rig.add(1);
    rig.register(1);
    let binding = rig.bind(1).expect("it is ready");
    assert!(matches!(binding, Binding::Translated { .. }));
    let guard = rig.guard(1);
    grow(&rig, some(&[0, 1, 7])).expect("it is the same");
    drop(guard);
    assert_eq!(rig.world.domain_of(node(7), None), None);
    rig.add(7);
    let domain = rig.world.domain_of(node(1), None);
    assert!(domain.is_some());
    assert_eq!(rig.world.domain_of(node(7), None), domain);
    let snapshot = rig.registry.snapshot();
    let group = snapshot.group_of(node(7)).expect("it is in one");
    assert_eq!(group.members, [node(1), node(7)]);
    rig.check();
}

#[test]
fn a_newcomer_that_is_not_trusted_is_not_given_the_whole_memory() {
    let rig = Rig::with(parts(some(&[1])), |config| {
        config.default_kind = Some(DefaultKind::Identity);
    });
    rig.add(1);
    rig.register(1);
    let mut devices = some(&[1, 7]);
    devices[1].is_untrusted = true;
    grow(&rig, devices).expect("it is the same");
    rig.add(7);
    assert_eq!(rig.world.domain_of(node(7), None), None, "it is blocked");
    assert!(rig.world.domain_of(node(1), None).is_some());
    assert_eq!(rig.world.report_count("NoDefaultDomain"), 1);
}

#[test]
fn an_instance_that_cannot_part_devices_gets_no_second_one() {
    let rig = Rig::new(some(&[1]));
    let mut driver = Toy::new(&rig.world);
    Arc::get_mut(&mut driver)
        .expect("it is new")
        .tells_devices_apart = false;
    let mut registration = rig.registration(described(1));
    registration.driver = driver;
    rig.registry.register(registration).expect("it has one");
    let identity = described(1);
    let apart = Err(GrowError::Apart { identity });
    assert_eq!(grow(&rig, some(&[1, 3])), apart);
    assert!(rig.registry.machine().device(node(3)).is_none());
}

#[test]
fn what_comes_while_a_machine_grows_is_probed_once() {
    let rig = Rig::new(some(&[7]));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for last in (0..7).rev() {
                let numbers: Vec<_> = (last..8).collect();
                grow(&rig, some(&numbers)).expect("it is the same");
                rig.add(last);
            }
        });
        scope.spawn(|| {
            for _ in 0..8 {
                rig.register(1);
                std::thread::yield_now();
                rig.registry.unregister(described(1)).expect("it is free");
            }
            rig.register(1);
        });
    });
    rig.register(0);
    rig.add(7);
    rig.check();
    let whole = Rig::new(all());
    whole.add_all();
    whole.register(0);
    whole.register(1);
    assert_eq!(rig.registry.snapshot(), whole.registry.snapshot());
}

/// Nobody looks at the device's group again but who ends the walk.
#[test]
fn a_device_that_becomes_known_and_comes_during_a_walk_gets_its_default_domain() {
    let rig = Rig::new(some(&[1]));
    rig.add(1);
    let gate = Gate::new();
    let inside = Arc::clone(&gate);
    rig.driver.on_probe(move |request| {
        if request.address() == node(1) {
            inside.stop();
        }
    });
    std::thread::scope(|scope| {
        let walk = scope.spawn(|| rig.register(1));
        gate.await_stop();
        grow(&rig, some(&[1, 3])).expect("it is the same");
        rig.add(3);
        assert_eq!(rig.bind(3).err(), Some(BindError::Defer), "not yet");
        gate.go_on();
        walk.join().expect("it does not panic");
    });
    assert!(matches!(rig.bind(3), Ok(Binding::Translated(_))));
    rig.check();
}

/// A device whose driver attached a domain of its own, before another one came into the group.
fn private() -> (Rig, u64) {
    let rig = Rig::new(some(&[1]));
    rig.add(1);
    rig.register(1);
    let _ = rig.bind(1).expect("it is ready");
    let own = domain(&rig.world, DomainKind::Paging);
    let attached = rig.registry.attach(node(1), By::Driver, &own);
    attached.expect("it is alone");
    grow(&rig, some(&[1, 7])).expect("it is the same");
    rig.add(7);
    (rig, number_of(&own))
}

#[test]
fn a_newcomer_is_kept_out_of_the_domain_of_another_devices_driver() {
    for ends_by_detaching in [true, false] {
        let (rig, own) = private();
        assert_eq!(rig.world.domain_of(node(1), None), Some(own));
        assert_eq!(rig.world.domain_of(node(7), None), None, "it is blocked");
        assert_eq!(rig.bind(7).err(), Some(BindError::Owned));
        let other = domain(&rig.world, DomainKind::Paging);
        let attached = rig.registry.attach(node(1), By::Driver, &other);
        attached.expect("it is still the driver's");
        assert_eq!(rig.world.domain_of(node(7), None), None);
        if ends_by_detaching {
            let detached = rig.registry.detach(node(1), By::Driver);
            detached.expect("it is the driver's");
        } else {
            rig.unbind(1);
        }
        let default = rig.world.domain_of(node(1), None);
        assert!(default.is_some() && default != Some(number_of(&other)));
        let finalized = rig.world.with(|world| world.finalized.clone());
        assert_eq!(finalized, [node(1), node(7)]);
        assert!(matches!(rig.bind(7), Ok(Binding::Translated(_))));
        rig.check();
    }
}

#[test]
fn a_newcomer_that_is_not_trusted_is_kept_out_of_an_owners_identity() {
    let rig = Rig::new(some(&[1]));
    rig.add(1);
    rig.register(1);
    let owner = Owner::new("owner");
    let ownership = rig.registry.claim_owner(node(1), &owner);
    let ownership = ownership.expect("nobody uses it");
    let identity = domain(&rig.world, DomainKind::Identity);
    let attached = rig
        .registry
        .attach(node(1), By::Owner(&ownership), &identity);
    attached.expect("it fits");
    let mut devices = some(&[1, 7]);
    devices[1].is_untrusted = true;
    grow(&rig, devices).expect("it is the same");
    rig.add(7);
    assert_eq!(rig.world.domain_of(node(7), None), None, "it is blocked");
    assert_eq!(rig.world.report_count("NoDefaultDomain"), 1);
    drop(ownership);
    assert!(rig.world.domain_of(node(7), None).is_some());
    rig.check();
}
