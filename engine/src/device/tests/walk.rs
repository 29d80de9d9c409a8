//! Probes: who is asked, when, and what becomes of the answer.

use super::*;
use crate::sync::OnceLock;
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::lockdep::IS_CHECKED;

/// Where a test needs the registry inside of a callback.
fn weak(rig: &Rig) -> impl Fn() -> Arc<Registry> + Send + Sync + 'static + use<> {
    let registry = Arc::downgrade(&rig.registry);
    move || registry.upgrade().expect("it lives as long as the test")
}

/// A0.2: whoever probes the hardware of an instance holds its guard and registers.
#[test]
fn an_instance_is_registered_from_inside_the_probe_of_its_own_device() {
    let mut parts = parts(Vec::from([
        behind(0, 0, &[0]),
        behind(1, 1, &[0]),
        behind(2, 2, &[0, 1]),
    ]));
    parts.instances[0].hardware = Some(node(0));
    parts.instances[1].hardware = Some(node(1));
    let rig = Rig::of(parts);
    rig.add_all();
    let mut guard = rig.guard(0);
    rig.register(0);
    let bound = guard.bind(Use::DriverManaged);
    assert!(matches!(
        bound,
        Ok(Binding::Untranslated(NoIommu::SelfTranslation))
    ));
    drop(guard);
    assert_eq!(rig.standing(0), Standing::NoIommu(NoIommu::SelfTranslation));
    assert_eq!(rig.world.report_count("NoIommu"), 1);
    // The hardware of the second one is behind the first, and is probed under its guard.
    let guard = rig.guard(1);
    rig.register(1);
    drop(guard);
    assert!(matches!(rig.bind(1), Ok(Binding::Translated(_))));
    assert_eq!(rig.group_count(), 2);
    rig.check();
}

#[test]
fn a_device_that_is_half_behind_an_instance_is_left_alone() {
    let mut half = behind(0, 0, &[0]);
    half.refusal = Some(Refusal::Partial);
    let rig = Rig::new(Vec::from([half, behind(1, 1, &[0])]));
    rig.register(0);
    rig.add_all();
    let why = NoIommu::Refused(Refusal::Partial);
    assert_eq!(rig.standing(0), Standing::NoIommu(why));
    assert_eq!(rig.world.report_count("NoIommu"), 1);
    assert!(matches!(rig.bind(0), Ok(Binding::Untranslated(found)) if found == why));
    assert!(matches!(rig.bind(1), Ok(Binding::Translated(_))));
    rig.check();
}

/// A0.3.
#[test]
fn a_probe_that_is_reached_with_the_guard_held_takes_it_not_again() {
    let rig = Rig::new(Vec::from([behind(0, 0, &[0])]));
    let mut guard = rig.guard(0);
    rig.add(0);
    assert_eq!(guard.bind(Use::DefaultDomain).err(), Some(BindError::Defer));
    rig.register(0);
    assert!(matches!(
        guard.bind(Use::DefaultDomain),
        Ok(Binding::Translated(_))
    ));
    assert_eq!(guard.remove(), Removal::Done);
    rig.check();
}

/// The deadlock that taking the device's lock inside of a probe was, found by one thread.
#[test]
fn a_guard_taken_inside_a_probe_is_reported_before_it_hangs() {
    if !IS_CHECKED {
        return;
    }
    let rig = Rig::new(Vec::from([behind(0, 0, &[0])]));
    let registry = weak(&rig);
    rig.driver.on_probe(move |request| {
        let registry = registry();
        let _guard = registry.lock_device(request.address());
    });
    rig.add(0);
    let register = || rig.register(0);
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(register));
    let panic = panic.expect_err("it is reported");
    let text = panic.downcast_ref::<String>().expect("it is a text");
    assert!(
        text.contains("device guard") && text.contains("bus_walk"),
        "{text}"
    );
}

/// A0.4.
#[test]
fn a_probe_that_fails_is_tried_again_when_the_device_is_added_again() {
    let rig = Rig::new(Vec::from([behind(0, 0, &[0]), behind(1, 0, &[0])]));
    rig.world.with(|world| world.failing_probes.insert(node(0)));
    // What the machine says is read while the probe fails.
    let registry = weak(&rig);
    rig.driver.on_probe(move |request| {
        let registry = registry();
        let machine = registry.machine();
        let known = machine.device(request.address());
        assert_eq!(known.expect("it is there").streams[0].ids.len(), 1);
        assert!(registry.endpoint(request.address()).is_none());
    });
    rig.add_all();
    rig.register(0);
    assert_eq!(rig.standing(0), Standing::NoIommu(NoIommu::Failed));
    assert_eq!(rig.world.report_count("ProbeFailed"), 1);
    assert!(matches!(
        rig.bind(0),
        Ok(Binding::Untranslated(NoIommu::Failed))
    ));
    assert!(matches!(rig.bind(1), Ok(Binding::Translated(_))));
    rig.add(0);
    assert_eq!(
        rig.standing(0),
        Standing::NoIommu(NoIommu::Failed),
        "a driver is bound"
    );
    rig.unbind(0);
    rig.world.with(|world| world.failing_probes.clear());
    rig.add(0);
    assert!(matches!(rig.bind(0), Ok(Binding::Translated(_))));
    assert!(rig.registry.endpoint(node(0)).is_some());
    rig.check();
}

/// A0.5: whichever device the walk fails on.
#[test]
fn a_registration_that_fails_leaves_nothing_of_itself() {
    let devices = || {
        Vec::from([
            behind(0, 0, &[0]),
            behind(1, 1, &[1]),
            behind(2, 2, &[1]),
            behind(3, 0, &[1]),
            behind(4, 4, &[0, 1]),
        ])
    };
    for broken in [1, 2, 3, 4] {
        let rig = Rig::new(devices());
        rig.add_all();
        rig.register(0);
        let before = rig.registry.snapshot();
        let group_count = before.groups.len();
        rig.world
            .with(|world| world.fatal_probes.insert(node(broken)));
        let failed = rig.registry.register(rig.registration(described(1)));
        let expected = matches!(
            failed,
            Err(RegisterError::Fatal { device, .. }) if device == node(broken)
        );
        assert!(expected, "{failed:?}");
        assert_eq!(rig.registry.snapshot(), before);
        assert_eq!(rig.group_count(), group_count);
        assert_eq!(rig.registry.instances(), [described(0)]);
        rig.world.with(|world| {
            assert_eq!(world.live.keys().copied().collect::<Vec<_>>(), [node(0)]);
            world.fatal_probes.clear();
        });
        rig.register(1);
        assert_eq!(rig.group_count(), 4);
        assert_eq!(
            rig.registry.snapshot().groups[0].members,
            [node(0), node(3)]
        );
        rig.check();
    }
}

/// A0.6.
#[test]
fn a_driver_that_is_told_of_a_default_domain_may_call_the_registry() {
    let devices = || (0..3).map(|number| behind(number, 0, &[0])).collect();
    let rig = Rig::new(devices());
    let registry = weak(&rig);
    let count = AtomicUsize::new(0);
    rig.driver.on_finalize(move |_| {
        let registry = registry();
        match count.fetch_add(1, Ordering::Relaxed) {
            0 => {
                // Attaches, which takes the group's lock; removes itself, and one that comes later.
                let snapshot = registry.snapshot();
                assert_eq!(snapshot.groups[0].current, DomainKind::Paging);
                assert!(registry.new_domain(node(1), DefaultKind::Paging).is_ok());
                for (number, removal) in [(0, Removal::Pending), (1, Removal::Done)] {
                    let guard = registry.lock_device(node(number)).expect("it is there");
                    assert_eq!(guard.remove(), removal);
                }
                let again = registry.add_device(node(0));
                assert_eq!(again, Err(AddError::Leaving { address: node(0) }));
                let unregistered = registry.unregister(described(0));
                assert_eq!(unregistered, Err(UnregisterError::InsideCallback));
            }
            _ => assert!(registry.bind_device(node(2), Use::DefaultDomain).is_err()),
        }
    });
    rig.add_all();
    rig.register(0);
    let finalized = rig.world.with(|world| world.finalized.clone());
    assert_eq!(finalized, [node(0), node(2)]);
    assert!(matches!(rig.bind(2), Ok(Binding::Translated(_))));
    assert!(rig.registry.snapshot().device(node(0)).is_none());
    rig.add(0);
    rig.add(1);
    rig.check();
    let finalized = rig.world.with(|world| world.finalized.clone());
    assert_eq!(finalized, [node(0), node(2), node(0), node(1)]);
}

#[test]
fn a_callback_cannot_unregister_its_instance() {
    let rig = Rig::new(Vec::from([behind(0, 0, &[0])]));
    let registry = weak(&rig);
    rig.driver.on_probe(move |_| {
        let unregistered = registry().unregister(described(0));
        assert_eq!(unregistered, Err(UnregisterError::InsideCallback));
    });
    rig.add(0);
    rig.register(0);
    assert_eq!(rig.group_count(), 1);
}

/// A1.3: a driver that finds its instance itself, while it is being registered.
#[test]
fn an_instance_is_found_by_its_driver_from_the_first_probe_on() {
    let rig = Rig::new((0..4).map(|number| behind(number, number, &[0])).collect());
    let registry = weak(&rig);
    rig.driver.on_probe(move |request| {
        let found = registry().instance::<Identity>(described(0));
        assert_eq!(found.as_deref(), Some(&described(0)));
        assert_eq!(found, request.instance(0));
    });
    rig.add_all();
    rig.register(0);
    assert_eq!(rig.group_count(), 4);
    let attached = rig.world.with(|world| world.attached.len());
    assert_eq!(attached, 4);
}

/// A1.3: a driver that sets what its probes need only after it is registered.
#[derive(Debug)]
struct Premature {
    toy: Arc<Toy>,
    private: OnceLock<()>,
}

impl Driver for Premature {
    fn probe(&self, request: &ProbeRequest<'_>) -> Result<Arc<dyn Endpoint>, ProbeError> {
        self.private.get().ok_or(ProbeError::NotMine)?;
        self.toy.probe(request)
    }

    fn new_domain(
        &self,
        kind: DefaultKind,
        endpoints: &[Arc<dyn Endpoint>],
    ) -> Result<Arc<dyn Hwpt>, NewDomainError> {
        self.toy.new_domain(kind, endpoints)
    }
}

#[test]
fn a_driver_that_publishes_too_early_gets_no_group_and_a_report_for_each_device() {
    for is_premature in [true, false] {
        let rig = Rig::new((0..4).map(|number| behind(number, number, &[0])).collect());
        rig.add_all();
        let driver = Arc::new(Premature {
            toy: Arc::clone(&rig.driver),
            private: OnceLock::new(),
        });
        if !is_premature {
            driver.private.set(()).expect("it is not set");
        }
        let registration = Registration {
            driver: Arc::clone(&driver) as Arc<dyn Driver>,
            ..rig.registration(described(0))
        };
        rig.registry.register(registration).expect("it works");
        let _ = driver.private.set(());
        let expected = if is_premature { (0, 4) } else { (4, 0) };
        assert_eq!(
            (rig.group_count(), rig.world.report_count("NoIommu")),
            expected
        );
    }
}

/// A1.4.
#[test]
fn bind_is_deferred_while_the_second_instance_is_being_registered() {
    let rig = Rig::new(Vec::from([behind(0, 0, &[1]), behind(1, 1, &[0, 1])]));
    rig.add_all();
    rig.register(0);
    assert_eq!(rig.bind(1).err(), Some(BindError::Defer));
    let gate = Gate::new();
    let inside = Arc::clone(&gate);
    rig.driver.on_probe(move |_| inside.stop());
    std::thread::scope(|scope| {
        let walk = scope.spawn(|| rig.register(1));
        // Once for each device; the other one waits, or was taken in.
        for _ in 0..2 {
            gate.await_stop();
            for number in 0..2 {
                assert_eq!(rig.bind(number).err(), Some(BindError::Defer));
            }
            // Time does not end it, nor does the end of initialization.
            rig.registry.finish_initialization();
            rig.later(100);
            assert_eq!(rig.bind(1).err(), Some(BindError::Defer));
            gate.go_on();
        }
        walk.join().expect("it does not panic");
    });
    for number in 0..2 {
        assert!(matches!(rig.bind(number), Ok(Binding::Translated(_))));
    }
    let counts = rig.world.with(|world| world.probe_counts.clone());
    assert_eq!(counts, BTreeMap::from([(node(0), 1), (node(1), 1)]));
    assert_eq!(rig.group_count(), 2);
}

/// A1.5.
#[test]
fn a_device_without_a_driver_is_translated_or_blocked() {
    let rig = Rig::new(Vec::from([behind(0, 0, &[0]), behind(1, 0, &[1])]));
    rig.add_all();
    rig.register(0);
    assert_eq!(rig.world.domain_of(node(0), None), None, "it is blocked");
    assert!(
        rig.registry.endpoint(node(0)).is_some(),
        "by an instance that knows it"
    );
    rig.register(1);
    assert!(rig.world.domain_of(node(0), None).is_some());
    assert_eq!(
        rig.registry.snapshot().groups[0].current,
        DomainKind::Paging
    );
}

/// A1.6.
#[test]
fn a_device_that_cannot_be_used_ends_no_walk() {
    let rig = Rig::new((0..4).map(|number| behind(number, number, &[0])).collect());
    rig.world.with(|world| {
        world.failing_probes.insert(node(1));
        world.strangers.insert((described(0), node(2)));
    });
    rig.add_all();
    rig.register(0);
    assert_eq!(rig.group_count(), 2);
    assert_eq!(rig.standing(2), Standing::NoIommu(NoIommu::NotBehind));
    assert_eq!(rig.world.report_count("ProbeFailed"), 1);
    assert_eq!(rig.world.report_count("NoIommu"), 1);
    rig.world.with(|world| world.failing_probes.clear());
    rig.registry
        .unregister(described(0))
        .expect("nobody uses it");
    assert_eq!((rig.group_count(), rig.standing(1)), (0, Standing::Waiting));
    rig.register(0);
    assert_eq!(rig.group_count(), 3);
}

#[test]
fn what_the_machine_does_not_have_is_refused() {
    let mut parts = parts(Vec::from([behind(0, 0, &[0]), behind(1, 1, &[1])]));
    parts.instances[1].is_enabled = false;
    let rig = Rig::of(parts);
    let refused = |identity| rig.registry.register(rig.registration(identity));
    for identity in [described(2), Identity::Anonymous(0)] {
        let unknown = matches!(refused(identity), Err(RegisterError::Unknown { .. }));
        assert!(unknown);
        let unknown = Err(UnregisterError::Unknown { identity });
        assert_eq!(rig.registry.unregister(identity), unknown);
    }
    assert!(matches!(
        refused(described(1)),
        Err(RegisterError::Disabled { .. })
    ));
    rig.add_all();
    assert_eq!(rig.standing(1), Standing::NoIommu(NoIommu::Disabled));
    rig.register(0);
    assert!(matches!(
        refused(described(0)),
        Err(RegisterError::Twice { .. })
    ));
    let address = node(2);
    let unknown = UnknownDevice { address };
    assert_eq!(rig.registry.add_device(address), Err(unknown.into()));
    assert_eq!(rig.registry.lock_device(address).err(), Some(unknown));
    assert_eq!(rig.remove(1), Removal::Done);
    assert_eq!(rig.remove(1), Removal::Absent);
    assert_eq!(
        rig.bind(1).err(),
        Some(BindError::Unknown(UnknownDevice { address: node(1) }))
    );
}

#[test]
fn an_instance_that_turns_out_unusable_after_it_was_registered_is_reported() {
    let rig = Rig::new(Vec::from([behind(0, 0, &[0])]));
    rig.register(0);
    rig.world.with(|world| world.fatal_probes.insert(node(0)));
    rig.add(0);
    assert_eq!(rig.standing(0), Standing::NoIommu(NoIommu::Failed));
    assert_eq!(rig.world.report_count("ProbeFailed"), 1);
}
