//! Devices that come, are attached, replaced, detached and go, and what their endpoints reach meanwhile.

use std::sync::Arc;

use iopt::device::virtio::VirtioHwpt;
use iopt::device::{
    AttachError, AttachFailure, By, DefaultKind, DeviceRegion, DirectRegion, DomainKind, Hwpt,
    Removal,
};
use iopt::domain::DomainError;
use iopt::firmware::RegionKind;
use iopt::ioas::Holes;
use iopt_formats::command::virtio::{Property, ReservedMemory, feature};
use iopt_formats::{Oa, Prot};
use iopt_tests::virtio::{DETACH, Device};

use crate::world::{ALL, IDS, PAGE, Setting, Space, World, address, range};

/// Settings that differ in what becomes of endpoints in no domain: blocked, passed until that is switched off, and
/// passed whatever the driver wishes.
fn settings() -> [Setting; 3] {
    let plain = Setting::default();
    let cleared = Setting {
        is_bypass: true,
        ..Setting::default()
    };
    let legacy = Setting {
        features: ALL & !(1 << feature::BYPASS_CONFIG) | 1 << feature::BYPASS,
        ..Setting::default()
    };
    [plain, cleared, legacy]
}

fn identity() -> Arc<dyn Hwpt> {
    Arc::new(VirtioHwpt::<Device>::identity())
}

fn blocked() -> Arc<dyn Hwpt> {
    Arc::new(VirtioHwpt::<Device>::blocked())
}

#[test]
fn a_device_comes_into_its_default_domain_with_what_it_always_uses() {
    let kind = RegionKind::Direct {
        prot: Prot::RW,
        is_relaxable: false,
    };
    let setting = Setting {
        regions: vec![DeviceRegion {
            range: range(0x8000, PAGE),
            kind,
        }],
        ..Setting::default()
    };
    let world = World::new(&setting);
    for number in 0..IDS.len() {
        let paging = DomainKind::Paging;
        assert_eq!(world.kinds(number), (Some(paging), paging));
        assert_eq!(world.reach(number, 0x8010), Some(0x8010));
        assert_eq!(world.reach(number, 0x9000), None);
        assert!(world.attach_counts(number).iter().all(|&count| count == 1));
    }
    // The group of two has one domain.
    assert_eq!(world.device.state().domains.len(), 3);
    assert!(world.log.lines().is_empty());
    world.device.assert_clean();
}

#[test]
fn nothing_passes_before_and_after_something_is_attached() {
    for (index, setting) in settings().iter().enumerate() {
        let world = World::empty(setting);
        let is_legacy = index == 2;
        assert_eq!(world.unit.blocks_idle(), !is_legacy);
        assert_eq!(world.reach(0, PAGE), is_legacy.then_some(PAGE));
        world.register();
        for number in 0..IDS.len() {
            world.add(number);
            assert_eq!(world.reach(number, PAGE), None);
        }
        let owner = world.own(1);
        assert_eq!(world.kinds(1).1, DomainKind::Blocked);
        assert_eq!(world.reach(1, PAGE), None);
        world.attach(1, &owner, &blocked()).unwrap();
        assert_eq!(world.reach(1, PAGE), None);
        let space = world.space(0x10_0000_0000);
        space.map(0x10_0000, PAGE).unwrap();
        world.attach(1, &owner, &space.hwpt).unwrap();
        assert_eq!(world.reach(1, 0x10_0000), Some(0x10_0010_0000));
        world
            .registry
            .detach(address(1), By::Owner(&owner))
            .unwrap();
        assert_eq!(world.reach(1, 0x10_0000), None);
        drop(owner);
        assert_eq!(world.kinds(1).1, DomainKind::Paging);
        for number in 0..IDS.len() {
            let guard = world.registry.lock_device(address(number)).unwrap();
            assert_eq!(guard.remove(), Removal::Done);
            assert_eq!(world.reach(number, PAGE), None);
        }
        world.device.assert_clean();
    }
}

#[test]
fn identity_is_a_bypass_domain_or_else_translation() {
    let kind = DefaultKind::Identity;
    let world = World::new(&Setting {
        kind,
        ..Setting::default()
    });
    for number in 0..IDS.len() {
        let identity = DomainKind::Identity;
        assert_eq!(world.kinds(number), (Some(identity), identity));
        assert_eq!(world.reach(number, 0x1234), Some(0x1234));
        assert!(world.attach_counts(number).iter().all(|&count| count == 1));
    }
    // All of them are in the one that is for it.
    assert_eq!(world.device.state().bypasses.len(), 1);
    world.device.assert_clean();

    let [_, _, legacy] = settings();
    let world = World::new(&Setting { kind, ..legacy });
    for number in 0..IDS.len() {
        assert_eq!(world.kinds(number).0, Some(DomainKind::Paging));
        assert_eq!(world.reach(number, 0x1234), None);
    }
    let lines = world.log.lines();
    assert_eq!(lines.len(), 3, "{lines:?}");
    let is_known = |line: &String| line.starts_with("IdentityFailed") && line.contains("New(");
    assert!(lines.iter().all(is_known), "before anything is attached");
    let owner = world.own(0);
    let refused = world.attach(0, &owner, &identity());
    let is_refused = matches!(
        refused,
        Err(AttachError::Failed {
            error: AttachFailure::Unsupported { .. },
            ..
        })
    );
    assert!(is_refused, "{refused:?}");
    world.device.assert_clean();
}

#[test]
fn what_is_attached_replaces_what_was_in_one_step_of_each_endpoint() {
    let world = World::new(&Setting::default());
    let owner = world.own(1);
    let one = world.space(0x10_0000_0000);
    let other = world.space(0x20_0000_0000);
    for space in [&one, &other] {
        space.map(0x10_0000, 4 * PAGE).unwrap();
    }
    let detach_count = world.device.count(DETACH);
    let before = world.attach_counts(1);
    world.attach(1, &owner, &one.hwpt).unwrap();
    assert_eq!(world.reach(1, 0x10_0123), Some(0x10_0010_0123));
    world.attach(1, &owner, &other.hwpt).unwrap();
    assert_eq!(world.reach(1, 0x10_0123), Some(0x20_0010_0123));
    let number = one.domain.number();
    assert!(!world.device.state().domains.contains_key(&number));
    world.attach(1, &owner, &identity()).unwrap();
    assert_eq!(world.reach(1, 0x10_0123), Some(0x10_0123));
    world.attach(1, &owner, &one.hwpt).unwrap();
    // The same again is nothing new.
    world.attach(1, &owner, &one.hwpt).unwrap();
    let after = before.iter().map(|count| count + 4).collect::<Vec<_>>();
    assert_eq!(world.attach_counts(1), after);
    assert_eq!(world.device.count(DETACH), detach_count);
    // What changes reaches who is attached, and nobody else.
    one.map(0x20_0000, PAGE).unwrap();
    assert_eq!(world.reach(1, 0x20_0000), Some(0x10_0020_0000));
    one.ioas
        .unmap(range(0x10_0000, 4 * PAGE), Holes::Refused)
        .unwrap();
    assert_eq!(world.reach(1, 0x10_0000), None);
    assert_eq!(world.reach(0, 0x20_0000), None);
    drop(owner);
    assert_eq!(world.reach(1, 0x20_0000), None);
    world.device.assert_clean();
}

#[test]
fn a_device_that_comes_again_is_attached_again() {
    for (index, setting) in settings().iter().enumerate() {
        let world = World::new(setting);
        let first = world.attach_counts(0);
        let guard = world.registry.lock_device(address(0)).unwrap();
        assert_eq!(guard.remove(), Removal::Done);
        // Its endpoint goes, and comes as if it had never been there.
        world.device.unplug(1);
        world.device.state().endpoints.insert(1, None);
        world.add(0);
        assert_eq!(world.kinds(0).1, DomainKind::Paging);
        assert_eq!(world.reach(0, PAGE), None);
        // Where it would pass it is put into the empty domain, before, when it goes, and again, whatever is
        // remembered of it.
        let expected = if index == 2 { (2, 5) } else { (1, 2) };
        assert_eq!((first[0], world.attach_counts(0)[0]), expected);
        world.device.assert_clean();
    }
}

#[test]
fn a_device_may_be_gone_before_it_is_removed() {
    for setting in settings() {
        let world = World::new(&setting);
        let owner = world.own(1);
        let space = world.space(0x10_0000_0000);
        space.map(0x10_0000, PAGE).unwrap();
        world.attach(1, &owner, &space.hwpt).unwrap();
        for &id in IDS[1] {
            world.device.unplug(id);
        }
        let by = By::Owner(&owner);
        world.registry.detach(address(1), by).unwrap();
        assert!(!world.is_quarantined(1));
        drop(owner);
        let guard = world.registry.lock_device(address(1)).unwrap();
        assert_eq!(guard.remove(), Removal::Done);
        assert_eq!(space.domain.endpoint_count(), 0);
        space.ioas.unmap_all().unwrap();
        for &id in IDS[1] {
            world.device.state().endpoints.insert(id, None);
        }
        world.add(1);
        assert_eq!(world.kinds(1).1, DomainKind::Paging);
        assert_eq!(world.reach(1, 0x10_0000), None);
    }
}

/// A domain that no virtio-iommu knows.
#[derive(Debug)]
struct Stranger;

impl Hwpt for Stranger {
    fn kind(&self) -> DomainKind {
        DomainKind::Paging
    }

    fn map_direct(&self, _: DirectRegion) -> Result<(), DomainError> {
        Ok(())
    }
}

/// A3.6.
#[test]
fn a_foreign_domain_is_refused_and_changes_nothing() {
    let world = World::new(&Setting::default());
    let other = World::new(&Setting::default());
    let owner = world.own(1);
    let space = world.space(0x10_0000_0000);
    space.map(0x10_0000, PAGE).unwrap();
    world.attach(1, &owner, &space.hwpt).unwrap();
    let foreign = other.space(0x20_0000_0000);
    foreign.map(0x10_0000, PAGE).unwrap();
    let requests = world.device.state().kinds.len();
    let stranger: Arc<dyn Hwpt> = Arc::new(Stranger);
    for hwpt in [&foreign.hwpt, &stranger] {
        let refused = world.attach(1, &owner, hwpt);
        let is_foreign = matches!(
            refused,
            Err(AttachError::Failed {
                error: AttachFailure::Foreign,
                ..
            })
        );
        assert!(is_foreign, "{refused:?}");
        assert_eq!(world.reach(1, 0x10_0000), Some(0x10_0010_0000));
    }
    assert_eq!(world.device.state().kinds.len(), requests);
    assert_eq!(foreign.domain.endpoint_count(), 0);
}

#[test]
fn nothing_is_mapped_where_an_endpoint_has_something_reserved() {
    let reserved = [
        (ReservedMemory::Msi, range(0xfee0_0000, 0x10_0000)),
        (ReservedMemory::Reserved, range(0x1000, 0x1000)),
    ];
    let properties = reserved.map(|(subtype, range)| {
        let property = Property::ReservedMemory { subtype, range };
        property.encode()
    });
    let world = World::new(&Setting {
        properties: properties.concat(),
        ..Setting::default()
    });
    // Both endpoints of the device say so.
    let found = world.with_endpoint(1, |endpoint| endpoint.reserved().to_vec());
    let found: Vec<_> = found.iter().map(|it| (it.subtype, it.range)).collect();
    assert_eq!(found, reserved);
    let owner = world.own(1);
    let space = world.space(0x10_0000_0000);
    space.map(0, 8 * PAGE).unwrap();
    let refused = world.attach(1, &owner, &space.hwpt);
    assert!(refused.is_err());
    assert_eq!(world.reach(1, 0), None);
    assert_eq!(space.domain.endpoint_count(), 0);
    space
        .ioas
        .unmap(range(0, 8 * PAGE), Holes::Refused)
        .unwrap();
    world.attach(1, &owner, &space.hwpt).unwrap();
    assert!(space.map(0, 8 * PAGE).is_err());
    assert!(space.map(PAGE, PAGE).is_err());
    space.map(0, PAGE).unwrap();
    space.map(2 * PAGE, PAGE).unwrap();
    // The other one of the two that were attached has it free again, too.
    world
        .registry
        .detach(address(1), By::Owner(&owner))
        .unwrap();
    space.map(PAGE, PAGE).unwrap();
    world.device.assert_clean();
}

#[test]
fn what_a_device_always_uses_is_nobodys_to_unmap() {
    for is_attached in [true, false] {
        let world = World::new(&Setting::default());
        let owner = world.own(1);
        let space = world.space(0x10_0000_0000);
        if is_attached {
            world.attach(1, &owner, &space.hwpt).unwrap();
        }
        let direct = |start, len| DirectRegion {
            range: range(start, len),
            oa: Oa::new(start),
            prot: Prot::RW,
        };
        for _ in 0..2 {
            space.hwpt.map_direct(direct(0x4000, PAGE)).unwrap();
        }
        assert!(space.hwpt.map_direct(direct(0x4000, 2 * PAGE)).is_err());
        assert!(space.hwpt.map_direct(direct(0x4800, PAGE)).is_err());
        assert!(space.map(0x4000, PAGE).is_err());
        for page in [0x2000, 0x3000, 0x5000, 0x7000] {
            space.map(page, PAGE).unwrap();
        }
        if !is_attached {
            world.attach(1, &owner, &space.hwpt).unwrap();
        }
        assert_eq!(world.reach(1, 0x4010), Some(0x4010));
        assert_eq!(world.reach(1, 0x5010), Some(0x10_0000_5010));
        let Space { ioas, hwpt, .. } = space;
        // The whole address space leaves, from the first to the last.
        drop(ioas);
        assert_eq!(world.reach(1, 0x4010), Some(0x4010));
        for page in [0x2000, 0x3000, 0x5000, 0x7000] {
            assert_eq!(world.reach(1, page), None);
        }
        world.attach(1, &owner, &blocked()).unwrap();
        world.attach(1, &owner, &hwpt).unwrap();
        assert_eq!(world.reach(1, 0x4010), Some(0x4010));
        world.device.assert_clean();
    }
}

#[test]
fn after_a_reset_of_the_virtio_iommu_devices_come_back_one_by_one() {
    let [plain, cleared, _] = settings();
    for setting in [plain, cleared] {
        let world = World::new(&setting);
        let owner = world.own(1);
        let space = world.space(0x10_0000_0000);
        space.map(0x10_0000, 2 * PAGE).unwrap();
        world.attach(1, &owner, &space.hwpt).unwrap();
        world.device.reset();
        // A device that forgets more than it should.
        world.device.state().is_bypass = setting.is_bypass;
        world.unit.device().was_reset(world.device.clone());
        for number in 0..IDS.len() {
            assert_eq!(world.reach(number, 0x10_0000), None);
        }
        let mut guard = world.registry.lock_device(address(1)).unwrap();
        guard.begin_reset();
        assert_eq!(world.reach(1, 0x10_0000), None);
        guard.end_reset();
        assert_eq!(world.reach(1, 0x10_1000), Some(0x10_0010_1000));
    }
}

/// One thread changes a domain's mappings while others attach and detach devices.
#[test]
fn a_domain_may_change_while_devices_come_and_go() {
    let world = &World::new(&Setting::default());
    let space = &world.space(0x10_0000_0000);
    space.map(0x40_0000, PAGE).unwrap();
    std::thread::scope(|threads| {
        threads.spawn(|| {
            for round in 0..150 {
                let iova = 0x20_0000 + 0x1_0000 * (round % 4);
                space.map(iova, 16 * PAGE).unwrap();
                space
                    .ioas
                    .unmap(range(iova, 16 * PAGE), Holes::Refused)
                    .unwrap();
                for &id in IDS.into_iter().flatten() {
                    // But to itself, where everything passes.
                    let reached = world.device.translate(id, iova);
                    assert_ne!(reached, Some((space.base + iova, 3)));
                }
            }
        });
        for number in 0..3 {
            threads.spawn(move || {
                let owner = world.own(number);
                for round in 0..60 {
                    world.attach(number, &owner, &space.hwpt).unwrap();
                    assert_eq!(world.reach(number, 0x40_0000), Some(0x10_0040_0000));
                    if round % 3 == 0 {
                        world.attach(number, &owner, &identity()).unwrap();
                        assert_eq!(world.reach(number, 0x40_0000), Some(0x40_0000));
                    }
                    let by = By::Owner(&owner);
                    world.registry.detach(address(number), by).unwrap();
                    assert_eq!(world.reach(number, 0x40_0000), None);
                }
            });
        }
    });
    assert_eq!(space.domain.endpoint_count(), 0);
    world.device.assert_clean();
}
