//! Binding: what it asks, how long it is deferred, what it counts.

use super::*;

fn why(binding: Result<Binding, BindError>) -> Option<NoIommu> {
    match binding.expect("it is not refused") {
        Binding::Untranslated(why) => Some(why),
        Binding::Translated(_) => None,
    }
}

/// A1.9.
#[test]
fn waiting_for_an_instance_ends_with_one_warning() {
    let devices = || {
        (0..4)
            .map(|number| behind(number, number, &[number / 2]))
            .collect()
    };
    let rig = Rig::new(devices());
    rig.add_all();
    let deferred = |number| assert_eq!(rig.bind(number).err(), Some(BindError::Defer));
    rig.later(1000);
    deferred(0);
    rig.registry.finish_initialization();
    rig.later(9);
    deferred(0);
    // A registration begins the wait anew.
    rig.register(1);
    rig.later(9);
    deferred(0);
    rig.later(1);
    assert_eq!(why(rig.bind(0)), Some(NoIommu::TimedOut));
    assert_eq!(rig.world.report_count("TimedOut"), 1);
    rig.later(100);
    rig.registry.tick();
    assert_eq!(
        rig.world.report_count("TimedOut"),
        1,
        "one warning for both"
    );
    // It comes after all: who is bound stays as it is, and that is said.
    rig.register(0);
    assert_eq!(rig.standing(0), Standing::NoIommu(NoIommu::TimedOut));
    assert_eq!(
        rig.world.report_count("Late { device: Node(NodeIndex(0))"),
        1
    );
    assert_eq!(rig.world.report_count("Late"), 1);
    assert_eq!(why(rig.bind(1)), None);
    assert_eq!(why(rig.bind(2)), None);
    rig.check();
}

#[test]
fn nobody_waits_where_no_driver_can_come_later() {
    let parts = parts(Vec::from([behind(0, 0, &[0]), behind(1, 1, &[])]));
    let rig = Rig::with(parts, |config| config.patience = Duration::ZERO);
    rig.add_all();
    assert_eq!(why(rig.bind(1)), Some(NoIommu::NotBehind));
    assert_eq!(rig.bind(0).err(), Some(BindError::Defer));
    rig.registry.finish_initialization();
    assert_eq!(
        why(rig.guard(0).bind(Use::DefaultDomain)),
        Some(NoIommu::TimedOut)
    );
    assert_eq!(rig.world.report_count("TimedOut"), 1);
}

/// The other member is known and never comes, or has an instance that does not.
#[test]
fn a_group_waits_for_its_members_until_they_need_not_be_waited_for() {
    let rig = Rig::new(Vec::from([
        behind(0, 0, &[0]),
        behind(1, 0, &[1]),
        behind(2, 0, &[0]),
    ]));
    rig.add(0);
    rig.add(1);
    rig.register(0);
    assert_eq!(rig.bind(0).err(), Some(BindError::Defer));
    rig.registry.finish_initialization();
    assert_eq!(rig.bind(0).err(), Some(BindError::Defer));
    rig.later(10);
    assert_eq!(why(rig.bind(0)), None);
    let domain = rig.world.domain_of(node(0), None);
    // Who comes later joins.
    rig.add(2);
    rig.register(1);
    rig.check();
    assert_eq!(rig.world.domain_of(node(1), None), domain);
    assert_eq!(rig.world.domain_of(node(2), None), domain);
    assert_eq!(why(rig.bind(2)), None);
}

#[test]
fn a_member_that_is_removed_is_not_waited_for_after_initialization() {
    let rig = Rig::new(Vec::from([behind(0, 0, &[0]), behind(1, 0, &[1])]));
    rig.add_all();
    rig.register(0);
    rig.registry.finish_initialization();
    assert_eq!(rig.bind(0).err(), Some(BindError::Defer));
    assert_eq!(rig.remove(1), Removal::Done);
    assert_eq!(why(rig.bind(0)), None);
    rig.check();
}

/// A1.11: what is known of a device is settled when the machine is, so no deferral can undo it.
#[test]
fn what_a_device_reaches_stays_the_same_however_often_it_is_configured() {
    let mut device = behind(0, 0, &[0, 1]);
    device.reach.address_bits = Some(40);
    let rig = Rig::new(Vec::from([device]));
    let reach = || {
        let machine = rig.registry.machine();
        let device = machine.device(node(0)).expect("it is there");
        assert_eq!(device.reach.address_bits, Some(40));
        core::ptr::from_ref(&device.reach)
    };
    let first = reach();
    for step in 0..3 {
        match step {
            0 => rig.add(0),
            _ => rig.register(step - 1),
        }
        for _ in 0..3 {
            let bound = rig.bind(0);
            if step < 2 {
                assert_eq!(bound.err(), Some(BindError::Defer));
            } else {
                assert_eq!(why(bound), None);
                assert_eq!(rig.bind(0).err(), Some(BindError::Bound));
                assert_eq!(reach(), first);
                rig.unbind(0);
            }
            assert_eq!(reach(), first);
        }
    }
}

/// A1.11: deferred three times inside each step that takes the device in, from another thread.
#[test]
fn a_driver_that_is_deferred_at_each_step_finds_the_device_as_it_was() {
    let mut device = behind(0, 0, &[0, 1]);
    device.reach.address_bits = Some(40);
    let rig = Rig::new(Vec::from([device]));
    let deferrals = Arc::new(AtomicUsize::new(0));
    let seen = |machine: &Machine| {
        let device = machine.device(node(0)).expect("it is there");
        assert_eq!(device.reach.address_bits, Some(40));
        core::ptr::from_ref(&device.reach) as usize
    };
    let first = seen(&rig.registry.machine());
    let defer = {
        let (registry, deferrals) = (Arc::downgrade(&rig.registry), Arc::clone(&deferrals));
        move || {
            let registry = registry.upgrade().expect("somebody calls it");
            std::thread::scope(|scope| {
                let deferred = scope.spawn(|| {
                    for _ in 0..3 {
                        let bound = registry.bind_device(node(0), Use::DefaultDomain);
                        assert_eq!(bound.err(), Some(BindError::Defer));
                        assert_eq!(seen(&registry.machine()), first);
                        deferrals.fetch_add(1, Ordering::Relaxed);
                    }
                });
                deferred.join().expect("it is deferred");
            });
        }
    };
    let (in_probe, in_domain, in_finalize) = (defer.clone(), defer.clone(), defer.clone());
    rig.driver.on_probe(move |_| in_probe());
    rig.driver.on_new_domain(in_domain);
    rig.driver.on_finalize(move |_| in_finalize());
    rig.add(0);
    defer();
    rig.register(0);
    defer();
    rig.register(1);
    assert_eq!(deferrals.load(Ordering::Relaxed), 15);
    assert_eq!(why(rig.bind(0)), None);
    assert_eq!(seen(&rig.registry.machine()), first);
    rig.world.with(|world| {
        assert_eq!(world.probe_counts.get(&node(0)), Some(&1));
        assert_eq!((world.finalized.len(), world.domains), (1, 1));
    });
    rig.unbind(0);
    assert_eq!(rig.remove(0), Removal::Done);
    rig.world
        .with(|world| assert!(world.live.is_empty() && world.attached.is_empty()));
}

/// A1.12.
#[test]
fn a_driver_that_manages_dma_itself_claims_nothing() {
    let rig = Rig::new(Vec::from([behind(0, 0, &[0]), behind(1, 0, &[0])]));
    rig.add_all();
    rig.register(0);
    let (one, other) = (Owner::new("one"), Owner::new("other"));
    let claim = |number, owner| rig.registry.claim_owner(node(number), owner);

    let managed = rig.registry.bind_device(node(0), Use::DriverManaged);
    assert_eq!(why(managed), None);
    let first = claim(0, &one).expect("nobody uses it");
    assert_eq!(rig.bind(1).err(), Some(BindError::Owned));
    assert_eq!(claim(1, &other).err(), Some(OwnError::Owned));
    let second = claim(1, &one).expect("it is the same owner");
    assert_eq!(
        rig.registry.snapshot().groups[0].current,
        DomainKind::Blocked
    );
    rig.check();
    rig.unbind(0);
    assert_eq!(
        rig.registry.owner(node(1)).expect("it is owned").name(),
        "one"
    );
    drop(first);
    assert_eq!(
        rig.bind(1).err(),
        Some(BindError::Owned),
        "one claim is left"
    );
    drop(second);
    rig.check();
    assert_eq!(
        rig.registry.snapshot().groups[0].current,
        DomainKind::Paging
    );
    assert_eq!(why(rig.bind(1)), None);
    assert_eq!(why(rig.bind(0)), None);
    assert_eq!(claim(0, &one).err(), Some(OwnError::InUse));
    rig.unbind(1);
    assert_eq!(
        claim(0, &one).err(),
        Some(OwnError::InUse),
        "one driver is left"
    );
    rig.unbind(0);
    rig.unbind(0);
    assert!(claim(0, &other).is_ok());
}

#[test]
fn an_instance_stays_while_somebody_uses_its_devices() {
    let mut parts = parts(Vec::from([
        behind(0, 0, &[0]),
        behind(1, 1, &[0]),
        behind(2, 2, &[1]),
        behind(3, 3, &[0]),
    ]));
    parts.suppliers.push(SupplierEdge {
        consumer: node(2),
        instance: InstanceIndex(0),
    });
    let rig = Rig::of(parts);
    rig.add_all();
    rig.register(0);
    rig.register(1);
    for number in [1, 2] {
        assert_eq!(why(rig.bind(number)), None);
    }
    let owned = rig
        .registry
        .claim_owner(node(3), &Owner::new("owner"))
        .expect("nobody uses it");
    let before = rig.registry.snapshot();
    let devices = [1, 2, 3].map(node).to_vec();
    let refused = rig.registry.unregister(described(0));
    assert_eq!(refused, Err(UnregisterError::InUse { devices }));
    assert_eq!(rig.registry.snapshot(), before);
    drop(owned);
    rig.unbind(1);
    assert_eq!(rig.remove(2), Removal::Done);
    rig.registry
        .unregister(described(0))
        .expect("nobody uses it any more");
    assert_eq!(rig.group_count(), 0);
    rig.check();
}

#[test]
fn a_group_that_could_not_go_back_to_its_default_domain_is_brought_there_for_a_driver() {
    let rig = Rig::new(Vec::from([behind(0, 0, &[0])]));
    rig.add(0);
    rig.register(0);
    let owner = Owner::new("owner");
    let ownership = rig.registry.claim_owner(node(0), &owner);
    rig.world
        .with(|world| world.failing_prepares.insert((node(0), None)));
    drop(ownership.expect("nobody uses it"));
    assert_eq!(why(rig.bind(0)), Some(NoIommu::NoDomain), "it is blocked");
    assert_eq!(rig.world.report_count("LeftBlocked"), 2);
    rig.unbind(0);
    rig.world.with(|world| world.failing_prepares.clear());
    rig.check();
    let ownership = rig.registry.claim_owner(node(0), &owner);
    rig.world
        .with(|world| world.failing_prepares.insert((node(0), None)));
    drop(ownership.expect("nobody uses it"));
    rig.world.with(|world| world.failing_prepares.clear());
    assert!(matches!(rig.bind(0), Ok(Binding::Translated(_))));
    assert!(rig.world.domain_of(node(0), None).is_some());
    rig.check();
}

/// L4: whether its driver is unbound before the instance goes or after.
#[test]
fn a_device_that_failed_while_bound_waits_again_once_its_instance_went() {
    for is_unbound_first in [false, true] {
        let rig = Rig::new([behind(0, 0, &[0])].to_vec());
        rig.world.with(|world| world.failing_probes.insert(node(0)));
        rig.add(0);
        rig.register(0);
        assert_eq!(why(rig.bind(0)), Some(NoIommu::Failed));
        rig.world.with(|world| world.failing_probes.clear());
        let unregister = || {
            rig.registry
                .unregister(described(0))
                .expect("nobody uses it");
        };
        if is_unbound_first {
            rig.unbind(0);
            unregister();
        } else {
            unregister();
            assert_eq!(rig.standing(0), Standing::NoIommu(NoIommu::Failed));
            rig.unbind(0);
        }
        assert_eq!(rig.standing(0), Standing::Waiting);
        rig.register(0);
        assert!(matches!(rig.bind(0), Ok(Binding::Translated(_))));
    }
}

#[test]
fn an_instance_that_comes_again_under_a_bound_driver_is_reported() {
    let rig = Rig::new([behind(0, 0, &[0])].to_vec());
    rig.world.with(|world| world.failing_probes.insert(node(0)));
    rig.add(0);
    rig.register(0);
    assert_eq!(why(rig.bind(0)), Some(NoIommu::Failed));
    rig.world.with(|world| world.failing_probes.clear());
    let unregistered = rig.registry.unregister(described(0));
    unregistered.expect("nobody uses it");
    rig.register(0);
    assert_eq!(rig.world.report_count("Late"), 1);
    rig.unbind(0);
    rig.add(0);
    assert!(matches!(rig.bind(0), Ok(Binding::Translated(_))));
    rig.check();
}
