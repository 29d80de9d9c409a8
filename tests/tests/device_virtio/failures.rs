//! A virtio-iommu that refuses, that does more than it says, and that says nothing.

use std::sync::Arc;

use iopt::device::virtio::{VirtioDriver, VirtioHwpt, VirtioUnit};
use iopt::device::{
    AttachError, AttachFailure, By, DomainKind, NoIommu, RegisterError, Removal, Standing,
};
use iopt::device::{Hwpt, Identity, Registration};
use iopt::domain::virtio::{EndpointError, RequestError};
use iopt::firmware::InstanceIndex;
use iopt::ioas::{Holes, Quarantined};
use iopt_tests::virtio::{
    ATTACH, DETACH, DEVICE_ERROR, Device, Fault, INVALID, MAP, NO_MEMORY, PROBE, UNSUPPORTED,
};

use crate::world::{IDS, PAGE, Setting, Space, World, address, range};

fn is_unconfirmed(attached: &Result<(), AttachError>) -> bool {
    matches!(
        attached,
        Err(AttachError::Failed {
            error: AttachFailure::Unsupported { .. },
            ..
        })
    )
}

/// A world, and two address spaces that map the same.
fn spaces(world: &World) -> (Space, Space) {
    let one = world.space(0x10_0000_0000);
    let other = world.space(0x20_0000_0000);
    for space in [&one, &other] {
        space.map(0x10_0000, 4 * PAGE).unwrap();
    }
    (one, other)
}

#[test]
fn a_device_whose_second_endpoint_is_refused_is_blocked_as_a_whole() {
    let faults = [
        Fault::Status(UNSUPPORTED),
        Fault::Status(DEVICE_ERROR),
        Fault::DoneBut(DEVICE_ERROR),
        Fault::Empty,
    ];
    for is_attached in [true, false] {
        for fault in faults {
            let world = World::new(&Setting::default());
            let (one, other) = spaces(&world);
            let owner = world.own(1);
            if is_attached {
                world.attach(1, &owner, &one.hwpt).unwrap();
            }
            world.device.order_for(ATTACH, 3, fault, false);
            // The commit cannot say so.
            world.attach(1, &owner, &other.hwpt).unwrap();
            assert_eq!(world.reach(1, 0x10_0000), None, "{fault:?}");
            world.with_endpoint(1, |endpoint| {
                assert!(!endpoint.is_quarantined());
                let failure = endpoint.take_failure();
                assert!(matches!(failure, Some(EndpointError::Request(_))));
                assert!(endpoint.take_failure().is_none());
            });
            assert_eq!(one.domain.endpoint_count(), 0);
            assert_eq!(other.domain.endpoint_count(), 0);
            for space in [&one, &other] {
                space.map(0x20_0000, PAGE).unwrap();
                world.attach(1, &owner, &space.hwpt).unwrap();
                let there = Some(space.base + 0x20_0000);
                assert_eq!(world.reach(1, 0x20_0000), there);
            }
        }
    }
}

#[test]
fn a_device_that_does_not_get_all_mappings_is_blocked() {
    let world = World::new(&Setting::default());
    let (one, other) = spaces(&world);
    other.map(0x20_0000, PAGE).unwrap();
    let owner = world.own(1);
    world.attach(1, &owner, &one.hwpt).unwrap();
    let start = 0x20_0000;
    world.device.order_at(MAP, start, Fault::Status(NO_MEMORY));
    world.attach(1, &owner, &other.hwpt).unwrap();
    assert_eq!(world.reach(1, 0x10_0000), None);
    let failure = world.take_failure(1);
    let is_fill = matches!(
        failure,
        Some(EndpointError::Fill { mapping, .. }) if mapping == range(start, PAGE)
    );
    assert!(is_fill, "{failure:?}");
    world.device.heal();
    world.attach(1, &owner, &other.hwpt).unwrap();
    assert_eq!(world.reach(1, start), Some(0x20_0020_0000));
    world.device.assert_clean();
}

#[test]
fn a_device_that_may_be_anywhere_is_in_quarantine_until_it_is_known_to_be_blocked() {
    for is_answered in [true, false] {
        let world = World::new(&Setting::default());
        let (one, other) = spaces(&world);
        let owner = world.own(1);
        let neighbour = world.own(0);
        world.attach(1, &owner, &one.hwpt).unwrap();
        world.attach(0, &neighbour, &one.hwpt).unwrap();
        world.device.order_for(ATTACH, 3, Fault::Silent, false);
        world.attach(1, &owner, &other.hwpt).unwrap();
        let is_quarantined = || world.is_quarantined(1);
        assert!(is_quarantined());
        let failure = world.take_failure(1);
        let is_timed_out = matches!(
            failure,
            Some(EndpointError::Request(RequestError::TimedOut))
        );
        assert!(is_timed_out, "{failure:?}");
        // It counts as in both, and nothing is attached, here or elsewhere, that could fail later.
        assert!(one.domain.endpoint_count() >= 2 && other.domain.endpoint_count() >= 1);
        assert!(is_unconfirmed(&world.attach(1, &owner, &one.hwpt)));
        assert!(is_unconfirmed(&world.attach(0, &neighbour, &other.hwpt)));
        assert!(!world.is_quarantined(0));
        let left = one.ioas.unmap(range(0x10_0000, 4 * PAGE), Holes::Refused);
        assert!(left.is_err(), "the device may still reach it");
        if is_answered {
            // Done in the end, when nobody waits for it any more.
            world.device.answer_late();
        } else {
            world.device.reset();
            world.unit.device().was_reset(world.device.clone());
        }
        world.attach(1, &owner, &other.hwpt).unwrap();
        assert!(!is_quarantined());
        assert_eq!(world.reach(1, 0x10_0000), Some(0x20_0010_0000));
        assert_eq!(one.ioas.retry_quarantined(), Quarantined::default());
        world.attach(1, &owner, &one.hwpt).unwrap();
        assert_eq!(world.reach(1, 0x10_0000), None);
    }
}

#[test]
fn an_endpoint_that_cannot_be_detached_is_moved_to_where_nothing_is() {
    let world = World::new(&Setting::default());
    let (one, _) = spaces(&world);
    let owner = world.own(1);
    for fault in [Fault::Status(INVALID), Fault::Status(DEVICE_ERROR)] {
        world.attach(1, &owner, &one.hwpt).unwrap();
        world.device.order_for(DETACH, 2, fault, false);
        world
            .registry
            .detach(address(1), By::Owner(&owner))
            .unwrap();
        assert_eq!(world.reach(1, 0x10_0000), None);
        assert_eq!(one.domain.endpoint_count(), 0);
        world.with_endpoint(1, |endpoint| {
            assert!(!endpoint.is_quarantined());
            assert!(endpoint.take_failure().is_none());
        });
    }
    world.device.order_for(DETACH, 2, Fault::Silent, false);
    world.attach(1, &owner, &one.hwpt).unwrap();
    world
        .registry
        .detach(address(1), By::Owner(&owner))
        .unwrap();
    assert!(world.is_quarantined(1));
    assert!(is_unconfirmed(&world.attach(1, &owner, &one.hwpt)));
    world.device.answer_late();
    world.attach(1, &owner, &one.hwpt).unwrap();
    assert_eq!(world.reach(1, 0x10_0000), Some(0x10_0010_0000));
}

#[test]
fn what_a_device_in_quarantine_may_reach_is_told_to_the_virtio_iommu() {
    let world = World::new(&Setting::default());
    let (_, other) = spaces(&world);
    let (owner, neighbour) = (world.own(0), world.own(1));
    world.attach(1, &neighbour, &other.hwpt).unwrap();
    // It goes there, says that it failed, and stays.
    let fault = Fault::DoneBut(DEVICE_ERROR);
    world.device.order_for(ATTACH, 1, fault, false);
    let fault = Fault::Status(DEVICE_ERROR);
    world.device.order_for(ATTACH, 1, fault, true);
    world.attach(0, &owner, &other.hwpt).unwrap();
    assert!(world.is_quarantined(0));
    world
        .registry
        .detach(address(1), By::Owner(&neighbour))
        .unwrap();
    assert_eq!(world.reach(0, 0x10_0000), Some(0x20_0010_0000));
    other
        .ioas
        .unmap(range(0x10_0000, 4 * PAGE), Holes::Refused)
        .unwrap();
    assert_eq!(world.reach(0, 0x10_0000), None);
    // It answers, and does not do what it is asked.
    assert!(is_unconfirmed(&world.attach(0, &owner, &other.hwpt)));
    world.device.heal();
    let blocked: Arc<dyn Hwpt> = Arc::new(VirtioHwpt::<Device>::blocked());
    world.attach(0, &owner, &blocked).unwrap();
    assert!(!world.is_quarantined(0));
    assert_eq!(other.domain.endpoint_count(), 0);
}

#[test]
fn a_device_that_cannot_be_taken_in_is_reported() {
    // Not known at all; one of two, whose requests arrive by the other one; failing.
    let world = World::empty(&Setting::default());
    world.device.state().endpoints.remove(&1);
    world.device.state().endpoints.remove(&3);
    let fault = Fault::Status(DEVICE_ERROR);
    world.device.order_for(PROBE, 4, fault, false);
    world.register();
    (0..IDS.len()).for_each(|number| world.add(number));
    let snapshot = world.registry.snapshot();
    let standing = |number| &snapshot.device(address(number)).unwrap().standing;
    assert_eq!(standing(0), &Standing::NoIommu(NoIommu::NotBehind));
    assert_eq!(standing(2), &Standing::NoIommu(NoIommu::Failed));
    let lines = world.log.lines();
    let count = |start: &str| lines.iter().filter(|line| line.starts_with(start)).count();
    assert_eq!(
        (count("NoIommu"), count("ProbeFailed")),
        (1, 1),
        "{lines:?}"
    );
    assert_eq!(
        world.with_endpoint(1, |endpoint| endpoint.ids().to_vec()),
        [2]
    );
    assert_eq!(world.kinds(1).1, DomainKind::Paging);
    assert_eq!(world.kinds(3).1, DomainKind::Paging);
}

#[test]
fn a_virtio_iommu_that_does_not_answer_is_not_registered() {
    let world = World::empty(&Setting::default());
    (0..IDS.len()).for_each(|number| world.add(number));
    world.device.order_for(PROBE, 4, Fault::Silent, false);
    let registration = || Registration {
        identity: Identity::Described(InstanceIndex(0)),
        driver: VirtioDriver::<Device>::new(),
        instance: Arc::<VirtioUnit<Device>>::clone(&world.unit),
    };
    let refused = world.registry.register(registration());
    assert!(matches!(refused, Err(RegisterError::Fatal { .. })));
    assert_eq!(world.registry.snapshot().groups.len(), 0);
    world.device.answer_late();
    world.registry.register(registration()).unwrap();
    assert_eq!(world.registry.snapshot().groups.len(), 3);
    world.device.assert_clean();
}

#[test]
fn a_device_is_removed_from_a_virtio_iommu_that_does_not_answer() {
    let world = World::new(&Setting::default());
    let (one, _) = spaces(&world);
    let owner = world.own(1);
    world.attach(1, &owner, &one.hwpt).unwrap();
    world.device.order_for(DETACH, 2, Fault::Silent, false);
    let guard = world.registry.lock_device(address(1)).unwrap();
    assert_eq!(guard.remove(), Removal::Done);
    drop(owner);
    let left = one.ioas.unmap(range(0x10_0000, 4 * PAGE), Holes::Refused);
    assert!(left.is_err(), "the device may still reach it");
    world.device.answer_late();
    world.add(1);
    assert_eq!(world.reach(1, 0x10_0000), None);
    assert_eq!(world.kinds(1).1, DomainKind::Paging);
    assert_eq!(one.ioas.retry_quarantined(), Quarantined::default());
    assert_eq!(one.domain.endpoint_count(), 0);
}

#[test]
fn a_virtio_iommu_without_numbers_left_gives_no_domain() {
    let world = World::empty(&Setting::default());
    let mut taken = Vec::new();
    while taken.len() < 96 {
        taken.push(world.space(0x10_0000_0000).domain);
    }
    // Two are left, of 100 with those for what is blocked and for identity; there are three groups.
    (0..IDS.len()).for_each(|number| world.add(number));
    world.register();
    let lines = world.log.lines();
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].starts_with("NoDefaultDomain") && lines[0].contains("Exhausted"));
    let blocked: Vec<_> = (0..IDS.len())
        .filter(|&number| world.kinds(number).1 == DomainKind::Blocked)
        .collect();
    assert_eq!(blocked, [2, 3]);
}
