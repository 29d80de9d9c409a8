//! Several threads at once, stopped inside of callbacks where it matters.

use super::*;
use crate::sync::lockdep::IS_CHECKED;

/// A registry whose probes stop, with one device added.
fn stopping() -> (Rig, Arc<Gate>) {
    let rig = Rig::new(Vec::from([behind(0, 0, &[0])]));
    rig.add(0);
    let gate = Gate::new();
    let inside = Arc::clone(&gate);
    rig.driver.on_probe(move |_| inside.stop());
    (rig, gate)
}

#[test]
fn a_device_removed_while_its_driver_is_asked_is_released() {
    let (rig, gate) = stopping();
    std::thread::scope(|scope| {
        let walk = scope.spawn(|| rig.register(0));
        gate.await_stop();
        let removal = scope.spawn(|| rig.remove(0));
        // Until the driver has answered the device can be neither bound nor added.
        let leaving = Err(AddError::Leaving { address: node(0) });
        while rig.registry.add_device(node(0)) != leaving {
            std::thread::yield_now();
        }
        gate.go_on();
        assert_eq!(removal.join().expect("it does not panic"), Removal::Done);
        walk.join().expect("it does not panic");
    });
    rig.check();
    assert_eq!(rig.group_count(), 0);
    rig.world.with(|world| {
        assert_eq!(world.probe_counts.get(&node(0)), Some(&1));
        assert!(world.live.is_empty() && world.finalized.is_empty());
    });
    *rig.driver.on_probe.lock() = None;
    rig.add(0);
    assert_eq!(rig.group_count(), 1);
}

#[test]
fn a_driver_that_does_not_answer_delays_a_removal_for_some_time_only() {
    let (rig, gate) = stopping();
    std::thread::scope(|scope| {
        let walk = scope.spawn(|| rig.register(0));
        gate.await_stop();
        assert_eq!(rig.remove(0), Removal::Pending);
        assert!(rig.registry.snapshot().devices.is_empty());
        gate.go_on();
        walk.join().expect("it does not panic");
    });
    rig.check();
    assert!(rig.world.with(|world| world.live.is_empty()));
    *rig.driver.on_probe.lock() = None;
    rig.add(0);
    assert_eq!(rig.group_count(), 1);
}

/// The probe is another thread's; what it finds is released, and the device is as before.
#[test]
fn an_instance_that_cannot_be_unregistered_serves_as_before() {
    let (rig, gate) = stopping();
    rig.remove(0);
    *rig.driver.on_probe.lock() = None;
    rig.register(0);
    let inside = Arc::clone(&gate);
    rig.driver.on_probe(move |_| inside.stop());
    std::thread::scope(|scope| {
        let add = scope.spawn(|| rig.add(0));
        gate.await_stop();
        let stuck = rig.registry.unregister(described(0));
        assert_eq!(stuck, Err(UnregisterError::Stuck));
        gate.go_on();
        add.join().expect("it does not panic");
    });
    assert!(matches!(rig.bind(0), Ok(Binding::Translated(_))));
    rig.check();
}

#[test]
fn an_instance_unregistered_while_a_device_is_asked_about_takes_it_along() {
    let (rig, gate) = stopping();
    rig.remove(0);
    *rig.driver.on_probe.lock() = None;
    rig.register(0);
    let inside = Arc::clone(&gate);
    rig.driver.on_probe(move |_| inside.stop());
    std::thread::scope(|scope| {
        let add = scope.spawn(|| rig.add(0));
        gate.await_stop();
        let unregister = scope.spawn(|| rig.registry.unregister(described(0)));
        while rig.registry.lock().serving(described(0)).is_some() {
            std::thread::yield_now();
        }
        gate.go_on();
        add.join().expect("it does not panic");
        assert_eq!(unregister.join().expect("it does not panic"), Ok(()));
    });
    assert_eq!(rig.standing(0), Standing::Waiting);
    assert!(rig.world.with(|world| world.live.is_empty()));
    rig.check();
}

/// Who tells the driver of the default domain releases what was removed meanwhile.
#[test]
fn a_device_removed_while_its_driver_is_told_is_released_afterwards() {
    let rig = Rig::new(Vec::from([behind(0, 0, &[0])]));
    rig.add(0);
    let gate = Gate::new();
    let inside = Arc::clone(&gate);
    rig.driver.on_finalize(move |_| inside.stop());
    std::thread::scope(|scope| {
        let walk = scope.spawn(|| rig.register(0));
        gate.await_stop();
        assert_eq!(rig.bind(0).err(), Some(BindError::Defer));
        assert_eq!(rig.remove(0), Removal::Pending);
        rig.world.with(|world| {
            assert_eq!(world.live.get(&node(0)), Some(&1), "not yet");
            assert!(world.attached.is_empty(), "but it is blocked");
        });
        gate.go_on();
        walk.join().expect("it does not panic");
    });
    assert!(rig.world.with(|world| world.live.is_empty()));
    rig.check();
}

#[test]
fn who_unregisters_with_a_guard_in_hand_is_reported() {
    if !IS_CHECKED {
        return;
    }
    let rig = Rig::new(Vec::from([behind(0, 0, &[0])]));
    rig.register(0);
    let _guard = rig.guard(0);
    let unregister = || rig.registry.unregister(described(0));
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(unregister));
    let panic = panic.expect_err("it is reported");
    let text = panic.downcast_ref::<String>().expect("it is a text");
    assert!(
        text.contains("finalize") && text.contains("device guard"),
        "{text}"
    );
}

/// A driver that stops in the probes of some devices, each at a gate of its own.
fn stop_at(rig: &Rig, numbers: &[usize]) -> BTreeMap<DeviceAddress, Arc<Gate>> {
    let gates = numbers.iter().map(|&number| (node(number), Gate::new()));
    let gates: BTreeMap<_, _> = gates.collect();
    let inside = gates.clone();
    rig.driver.on_probe(move |request| {
        if let Some(gate) = inside.get(&request.address()) {
            gate.stop();
        }
    });
    gates
}

/// Of two probes one ends while the instance leaves, in vain, and the other keeps it from leaving.
#[test]
fn what_was_probed_in_vain_is_probed_again_when_the_instance_stays() {
    let rig = Rig::new((0..2).map(|number| behind(number, number, &[0])).collect());
    rig.register(0);
    let gates = stop_at(&rig, &[0, 1]);
    std::thread::scope(|scope| {
        let adds = [0, 1].map(|number| {
            let rig = &rig;
            scope.spawn(move || rig.add(number))
        });
        for gate in gates.values() {
            gate.await_stop();
        }
        let unregister = scope.spawn(|| rig.registry.unregister(described(0)));
        while rig.registry.lock().serving(described(0)).is_some() {
            std::thread::yield_now();
        }
        // Once before it leaves, and once when it stays.
        gates[&node(0)].go_on();
        gates[&node(0)].await_stop();
        gates[&node(0)].go_on();
        let stuck = unregister.join().expect("it does not panic");
        assert_eq!(stuck, Err(UnregisterError::Stuck));
        gates[&node(1)].go_on();
        for add in adds {
            add.join().expect("it does not panic");
        }
    });
    assert_eq!(rig.group_count(), 2);
    rig.check();
}

#[test]
fn who_comes_while_an_instance_of_the_group_leaves_is_seen_to_afterwards() {
    let rig = Rig::new(Vec::from([
        behind(0, 0, &[0]),
        behind(1, 0, &[1]),
        behind(2, 1, &[0]),
    ]));
    rig.registry.finish_initialization();
    rig.register(0);
    rig.register(1);
    let gates = stop_at(&rig, &[2]);
    std::thread::scope(|scope| {
        let add = scope.spawn(|| rig.add(2));
        gates[&node(2)].await_stop();
        let unregister = scope.spawn(|| rig.registry.unregister(described(0)));
        while rig.registry.lock().serving(described(0)).is_some() {
            std::thread::yield_now();
        }
        rig.add(1);
        gates[&node(2)].go_on();
        add.join().expect("it does not panic");
        assert_eq!(unregister.join().expect("it does not panic"), Ok(()));
    });
    assert!(matches!(rig.bind(1), Ok(Binding::Translated(_))));
    rig.check();
}

/// One device behind both instances, and one behind the first whose probe keeps that from leaving.
fn two_instances() -> (Rig, BTreeMap<DeviceAddress, Arc<Gate>>) {
    let rig = Rig::new(Vec::from([behind(0, 0, &[0, 1]), behind(1, 1, &[0])]));
    rig.register(0);
    rig.register(1);
    rig.add(0);
    let gates = stop_at(&rig, &[1]);
    (rig, gates)
}

#[test]
fn an_instance_takes_along_what_leaves_with_another_one_already() {
    for is_stuck in [false, true] {
        let (rig, gates) = two_instances();
        std::thread::scope(|scope| {
            let add = scope.spawn(|| rig.add(1));
            gates[&node(1)].await_stop();
            let first = scope.spawn(|| rig.registry.unregister(described(0)));
            while rig.registry.lock().serving(described(0)).is_some() {
                std::thread::yield_now();
            }
            assert_eq!(rig.registry.unregister(described(1)), Ok(()));
            let is_there = rig.world.with(|world| world.live.contains_key(&node(0)));
            assert!(!is_there, "who unregistered may shut the hardware now");
            let outcome = if is_stuck {
                let outcome = first.join().expect("it does not panic");
                gates[&node(1)].go_on();
                outcome
            } else {
                gates[&node(1)].go_on();
                first.join().expect("it does not panic")
            };
            let stuck = Err(UnregisterError::Stuck);
            assert_eq!(outcome, if is_stuck { stuck } else { Ok(()) });
            add.join().expect("it does not panic");
        });
        assert_eq!(rig.standing(0), Standing::Waiting);
        *rig.driver.on_probe.lock() = None;
        rig.register(1);
        if !is_stuck {
            rig.register(0);
        }
        assert!(matches!(rig.bind(0), Ok(Binding::Translated(_))));
        rig.check();
    }
}
