//! Attaching: all members of a group, or none.

use super::*;
use crate::sync::lockdep::IS_CHECKED;
use crate::sync::{DOMAIN_IDS, IDS};

/// Three devices in one group, of which the last has no PASID.
fn rig() -> Rig {
    let rig = Rig::new((0..3).map(|number| behind(number, 0, &[0])).collect());
    rig.world.with(|world| {
        world.max_pasids = BTreeMap::from([(node(0), 16), (node(1), 8)]);
    });
    rig.add_all();
    rig.register(0);
    rig
}

fn own(rig: &Rig) -> Ownership {
    let owner = Owner::new("owner");
    rig.registry
        .claim_owner(node(0), &owner)
        .expect("nobody uses it")
}

/// What all devices meet.
fn attached(rig: &Rig) -> BTreeMap<(DeviceAddress, Option<Pasid>), u64> {
    rig.world.with(|world| world.attached.clone())
}

/// A3.6.
#[test]
fn an_attachment_that_fails_on_a_member_changes_nothing() {
    let rig = rig();
    let ownership = own(&rig);
    let by = By::Owner(&ownership);
    let (one, other) = (
        domain(&rig.world, DomainKind::Paging),
        domain(&rig.world, DomainKind::Nested),
    );
    rig.registry.attach(node(1), by, &one).expect("it fits");
    rig.registry
        .attach_pasid(node(1), by, pasid(5), &one)
        .expect("it fits");
    let before = attached(&rig);
    assert_eq!(before.len(), 5);
    let snapshot = rig.registry.snapshot();
    for failing in [None, Some(pasid(5)), Some(pasid(6))] {
        rig.world.with(|world| {
            world.failing_prepares = BTreeSet::from([(node(1), failing)]);
            world.undone.clear();
        });
        let registry = &rig.registry;
        let failed = match failing {
            None => registry.attach(node(0), by, &other),
            Some(known) if known == pasid(5) => registry.replace_pasid(node(0), by, known, &other),
            Some(new) => registry.attach_pasid(node(0), by, new, &other),
        };
        let is_expected = matches!(
            failed,
            Err(AttachError::Failed { device, error: AttachFailure::Exhausted }) if device == node(1)
        );
        assert!(is_expected, "{failed:?}");
        assert_eq!(rig.world.with(|world| world.undone.clone()), [node(0)]);
        assert_eq!(
            (attached(&rig), rig.registry.snapshot()),
            (before.clone(), snapshot.clone())
        );
    }
    rig.world.with(|world| world.failing_prepares.clear());
    rig.registry
        .replace_pasid(node(0), by, pasid(5), &other)
        .expect("it fits");
    rig.registry.attach(node(0), by, &other).expect("it fits");
    let number = number_of(&other);
    assert!(attached(&rig).values().all(|&domain| domain == number));
    let handle = rig
        .registry
        .attached(node(2), Some(pasid(5)))
        .expect("it is attached");
    assert_eq!(number_of(&handle), number);
    rig.check();
}

/// A3.6.
#[test]
fn a_foreign_domain_is_refused_and_changes_nothing() {
    let rig = rig();
    let ownership = own(&rig);
    let by = By::Owner(&ownership);
    let before = attached(&rig);
    let foreign: Arc<dyn Hwpt> = Arc::new(Foreign);
    for result in [
        rig.registry.attach(node(0), by, &foreign),
        rig.registry.attach_pasid(node(0), by, pasid(1), &foreign),
    ] {
        let is_foreign = matches!(
            result,
            Err(AttachError::Failed {
                error: AttachFailure::Foreign,
                ..
            })
        );
        assert!(is_foreign, "{result:?}");
    }
    assert_eq!(attached(&rig), before);
}

/// A3.9.
#[test]
fn pasids_are_below_the_smallest_number_of_a_member_that_has_any() {
    let rig = rig();
    let ownership = own(&rig);
    let by = By::Owner(&ownership);
    let domain = domain(&rig.world, DomainKind::Paging);
    let attach = |number| {
        rig.registry
            .attach_pasid(node(2), by, pasid(number), &domain)
    };
    for number in [0, 8, 9, 16, 0xf_ffff] {
        let refused = attach(number);
        assert!(
            matches!(refused, Err(AttachError::NoPasid { limit: 8, .. })),
            "{refused:?}"
        );
    }
    attach(7).expect("it is the last one");
    attach(1).expect("it is the first one");
    assert!(matches!(attach(1), Err(AttachError::Attached { .. })));
    let devices: Vec<_> = attached(&rig).into_keys().collect();
    let expected = [0, 1].map(|device| [1, 7].map(|number| (node(device), Some(pasid(number)))));
    assert_eq!(
        devices,
        expected.concat(),
        "members without PASIDs are skipped"
    );
    let detach = |number| rig.registry.detach_pasid(node(0), by, pasid(number));
    detach(7).expect("it is attached");
    assert!(matches!(detach(7), Err(AttachError::Detached { .. })));
    let replaced = rig.registry.replace_pasid(node(0), by, pasid(7), &domain);
    assert!(matches!(replaced, Err(AttachError::Detached { .. })));
    assert_eq!(attached(&rig).len(), 2);

    let rig = Rig::new(Vec::from([behind(0, 0, &[0])]));
    rig.add_all();
    rig.register(0);
    let ownership = own(&rig);
    let refused = rig
        .registry
        .attach_pasid(node(0), By::Owner(&ownership), pasid(1), &domain);
    assert!(
        matches!(refused, Err(AttachError::NoPasid { limit: 0, .. })),
        "{refused:?}"
    );
}

#[test]
fn an_owned_group_is_blocked_when_it_is_detached_and_in_its_default_domain_when_it_is_free() {
    let rig = rig();
    let default = rig.world.domain_of(node(0), None);
    let ownership = own(&rig);
    assert_eq!(attached(&rig), BTreeMap::new());
    let by = By::Owner(&ownership);
    let paging = domain(&rig.world, DomainKind::Paging);
    rig.registry.attach(node(0), by, &paging).expect("it fits");
    rig.registry
        .attach_pasid(node(0), by, pasid(3), &paging)
        .expect("it fits");
    rig.registry.detach(node(2), by).expect("it is the owner's");
    let left: Vec<_> = attached(&rig).into_keys().collect();
    assert_eq!(left, [(node(0), Some(pasid(3))), (node(1), Some(pasid(3)))]);
    drop(ownership);
    assert_eq!(attached(&rig).len(), 3);
    assert!((0..3).all(|number| rig.world.domain_of(node(number), None) == default));
    rig.check();
}

#[test]
fn only_the_owner_or_the_one_driver_of_a_group_attaches() {
    let rig = Rig::new(Vec::from([
        behind(0, 0, &[0]),
        behind(1, 1, &[0]),
        behind(2, 1, &[0]),
    ]));
    rig.world
        .with(|world| world.max_pasids = (0..3).map(|number| (node(number), 4)).collect());
    rig.add_all();
    rig.register(0);
    let paging = domain(&rig.world, DomainKind::Paging);
    let is_refused = |number, by: By<'_>| {
        let refused = rig.registry.attach(node(number), by, &paging);
        assert!(matches!(refused, Err(AttachError::NotOwner)), "{refused:?}");
        let refused = rig.registry.detach(node(number), by);
        assert!(matches!(refused, Err(AttachError::NotOwner)), "{refused:?}");
    };
    is_refused(0, By::Driver);
    let ownership = own(&rig);
    is_refused(1, By::Owner(&ownership));
    is_refused(0, By::Driver);
    drop(ownership);
    for number in 0..3 {
        assert!(rig.bind(number).is_ok());
    }
    is_refused(1, By::Driver);
    let default = attached(&rig);
    rig.registry
        .attach(node(0), By::Driver, &paging)
        .expect("it is alone");
    assert_eq!(rig.world.domain_of(node(0), None), Some(number_of(&paging)));
    rig.registry
        .detach(node(0), By::Driver)
        .expect("it is alone");
    assert_eq!(attached(&rig), default);
    // A driver that changed nothing leaves nothing to change, so that nothing can fail.
    rig.world
        .with(|world| world.failing_prepares.insert((node(0), None)));
    rig.unbind(0);
    assert_eq!(
        (rig.world.report_count(""), attached(&rig)),
        (0, default.clone())
    );
    rig.world.with(|world| world.failing_prepares.clear());
    assert!(rig.bind(0).is_ok());
    // What a driver leaves behind goes with it.
    rig.registry
        .attach(node(0), By::Driver, &paging)
        .expect("it is alone");
    for number in 0..2 {
        let attached = rig
            .registry
            .attach_pasid(node(number), By::Driver, pasid(1), &paging);
        attached.expect("it fits");
    }
    assert_eq!(attached(&rig).len(), 6);
    for number in 0..3 {
        rig.unbind(number);
    }
    assert_eq!(attached(&rig), default);
    rig.check();
}

#[test]
fn a_group_with_pasids_attached_is_not_owned() {
    let rig = rig();
    let owner = Owner::new("owner");
    let managed = rig.registry.bind_device(node(0), Use::DriverManaged);
    assert!(managed.is_ok());
    let first = own(&rig);
    let paging = domain(&rig.world, DomainKind::Paging);
    let attached = rig
        .registry
        .attach_pasid(node(0), By::Owner(&first), pasid(1), &paging);
    attached.expect("it fits");
    assert_eq!(
        rig.registry.claim_owner(node(1), &owner).err(),
        Some(OwnError::Owned)
    );
    drop(first);
    assert!(
        rig.registry.claim_owner(node(1), &owner).is_ok(),
        "they went with their owner"
    );
}

#[test]
fn a_device_is_blocked_during_its_reset_and_nothing_is_attached_to_its_group() {
    let rig = rig();
    let ownership = own(&rig);
    let by = By::Owner(&ownership);
    let (one, other) = (
        domain(&rig.world, DomainKind::Paging),
        domain(&rig.world, DomainKind::Paging),
    );
    rig.registry.attach(node(0), by, &one).expect("it fits");
    rig.registry
        .attach_pasid(node(0), by, pasid(1), &one)
        .expect("it fits");
    rig.registry
        .attach_pasid(node(0), by, pasid(2), &one)
        .expect("it fits");
    let before = attached(&rig);
    let mut guard = rig.guard(1);
    guard.begin_reset();
    assert_eq!(attached(&rig).len(), 4);
    for refused in [
        rig.registry.attach(node(0), by, &other),
        rig.registry.attach_pasid(node(0), by, pasid(3), &other),
        rig.registry.replace_pasid(node(0), by, pasid(1), &other),
    ] {
        assert!(
            matches!(refused, Err(AttachError::Resetting)),
            "{refused:?}"
        );
    }
    rig.registry
        .detach_pasid(node(0), by, pasid(2))
        .expect("it is attached");
    guard.end_reset();
    let mut expected = before;
    expected.retain(|&(_, of), _| of != Some(pasid(2)));
    assert_eq!(attached(&rig), expected);
    rig.check();
    guard.begin_reset();
    drop(ownership);
    assert!(rig.world.domain_of(node(0), None).is_some());
    assert_eq!(rig.world.domain_of(node(1), None), None);
    rig.world
        .with(|world| world.failing_prepares.insert((node(1), None)));
    guard.end_reset();
    assert_eq!(rig.world.domain_of(node(1), None), None, "it stays blocked");
    assert_eq!(rig.world.report_count("LeftBlocked"), 1);
}

#[test]
fn who_joins_later_meets_what_the_group_is_attached_to() {
    let rig = Rig::new((0..4).map(|number| behind(number, 0, &[0])).collect());
    rig.world.with(|world| {
        world.max_pasids = BTreeMap::from([(node(0), 4), (node(2), 4)]);
        world.failing_prepares.insert((node(3), None));
    });
    rig.add(0);
    rig.register(0);
    rig.registry.finish_initialization();
    let ownership = own(&rig);
    let by = By::Owner(&ownership);
    let paging = domain(&rig.world, DomainKind::Paging);
    rig.add(1);
    assert_eq!(attached(&rig).len(), 0, "it is blocked with the others");
    rig.registry.attach(node(0), by, &paging).expect("it fits");
    rig.registry
        .attach_pasid(node(0), by, pasid(1), &paging)
        .expect("it fits");
    rig.add(2);
    rig.add(3);
    let number = number_of(&paging);
    let expected = [
        (0, None),
        (0, Some(pasid(1))),
        (1, None),
        (2, None),
        (2, Some(pasid(1))),
    ];
    let expected = expected.map(|(device, pasid)| ((node(device), pasid), number));
    assert_eq!(attached(&rig), BTreeMap::from(expected));
    assert_eq!(rig.world.report_count("LeftBlocked"), 1);
    assert_eq!(rig.remove(2), Removal::Done);
    drop(ownership);
    assert_eq!(attached(&rig).len(), 2);
}

/// A thread that has IDs in hand and wants a group's lock, beside one that attaches: found by the first alone.
#[test]
fn a_group_wanted_with_ids_in_hand_is_reported() {
    if !IS_CHECKED {
        return;
    }
    let rig = rig();
    let ownership = own(&rig);
    let domain = domain(&rig.world, DomainKind::Paging);
    let report = |act: &dyn Fn()| {
        let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(act));
        let panic = panic.expect_err("it is reported");
        let text = panic.downcast_ref::<String>().expect("it is a text");
        text.clone()
    };
    for ids in [&IDS, &DOMAIN_IDS] {
        let text = report(&|| {
            let _ids = ids.holding();
            let _group = rig.registry.groups[0].lock();
        });
        let order = [r#"takes "group" (rank 500) under"#, ids.name()];
        assert!(order.iter().all(|part| text.contains(part)), "{text}");
        // Neither is there another way in.
        let text = report(&|| {
            let _ids = ids.holding();
            let by = By::Owner(&ownership);
            let _ = rig.registry.attach(node(0), by, &domain);
        });
        assert!(text.contains(ids.name()), "{text}");
    }
    let by = By::Owner(&ownership);
    rig.registry.attach(node(0), by, &domain).expect("it fits");
}

/// Whichever step failed on the way to the default domain.
#[test]
fn a_device_that_was_left_blocked_takes_part_when_something_is_attached_by_its_name() {
    for has_domain in [false, true] {
        let rig = Rig::new(Vec::from([behind(0, 0, &[0])]));
        rig.world.with(|world| {
            world.max_pasids.insert(node(0), 4);
            if has_domain {
                world.failing_prepares.insert((node(0), None));
            } else {
                let kinds = [DefaultKind::Identity, DefaultKind::Paging];
                world.failing_kinds.extend(kinds);
            }
        });
        rig.add(0);
        rig.register(0);
        let ownership = own(&rig);
        let by = By::Owner(&ownership);
        rig.world.with(|world| world.failing_prepares.clear());
        let paging = domain(&rig.world, DomainKind::Paging);
        let number = Some(number_of(&paging));
        rig.registry.attach(node(0), by, &paging).expect("it fits");
        assert_eq!(rig.world.domain_of(node(0), None), number);
        let attached = rig.registry.attach_pasid(node(0), by, pasid(1), &paging);
        attached.expect("it fits");
        assert_eq!(rig.world.domain_of(node(0), Some(pasid(1))), number);
        rig.check();
    }
}
