//! What comes by default, what is refused, what runs out, and hardware that stops.

use std::any::Any;
use std::sync::Arc;

use iopt::device::riscv::RiscvEndpoint;
use iopt::device::{AttachError, AttachFailure, DefaultKind, Hwpt, Owner, Removal, Use};
use iopt::radix::MapSide;
use iopt_formats::context::riscv::{DeviceContext, FirstStage, FirstStageTables, SecondStage};
use iopt_rig::Tables;
use iopt_sim::{Attachment, Injection, Outcome, Rights, StaleAccess};

use crate::world::{DEVICE_COUNT, Domain, Kind, Queue, Space, World, address, pasid};

type Checked = Result<(), Box<StaleAccess>>;

const PAGE: u64 = 0x1000;

/// Returns what hardware makes of the context of an ID.
fn context(world: &World, id: u32) -> Option<DeviceContext> {
    let words = world.unit.words(id)?;
    DeviceContext::decode(words, world.unit.features().registers).unwrap()
}

/// A1.5: translated or blocked, unless all is to pass.
#[test]
fn a_device_without_a_driver_is_translated_or_blocked() -> Checked {
    for seed in [0, 3, 5, 6, 8, 11] {
        for default in [DefaultKind::Paging, DefaultKind::Identity] {
            let kind = Kind {
                pasid_bits: if seed < 6 { 0 } else { 12 },
                default,
                ..Kind::new(seed, false)
            };
            let world = World::new(kind);
            let passes = default == DefaultKind::Identity;
            let attachment = if passes {
                Attachment::Identity
            } else {
                Attachment::Domain(0)
            };
            for (device, ids) in world.ids.iter().enumerate() {
                for &id in ids {
                    world.ledger().attach(id, None, attachment);
                    world.ledger().attach_done(id, None);
                    let context = context(&world, id).unwrap();
                    assert_eq!(context.second_stage(), SecondStage::Bare);
                    let is_bare =
                        context.first_stage() == FirstStage::Tables(FirstStageTables::Bare);
                    // With PASIDs, process 0 says where requests without one go.
                    assert_eq!(is_bare, passes && kind.pasid_bits == 0);
                }
                let reached = world.access(device, 0, 0x1234)?;
                assert_eq!(reached, passes.then_some(0x1234));
                assert_eq!(world.access(device, 1, 0x1234)?, None);
            }
            // Neighbours that no description names, one in a page that is there.
            for id in [0x101, 0x4000] {
                let id = id | world.ids[0][0] & !0xffff;
                assert_eq!(context(&world, id), None);
                let outcome = world.rig.iommu().access(id, None, PAGE, Rights::READ)?;
                assert!(matches!(outcome, Outcome::Refused(_)));
            }
        }
    }
    Ok(())
}

#[test]
fn a_device_that_is_removed_is_blocked_and_can_come_again() -> Checked {
    for seed in 0..4 {
        let world = World::new(Kind::new(seed, true));
        let owner = Owner::new("the test");
        let device = address(0);
        let id = world.ids[0][0];
        for _ in 0..3 {
            let binding = world.registry.bind_device(device, Use::DefaultDomain);
            assert!(binding.is_ok(), "{binding:?}");
            assert!(context(&world, id).is_some());
            let removal = world.registry.lock_device(device).unwrap().remove();
            assert_eq!(removal, Removal::Done);
            assert_eq!(context(&world, id), None);
            let outcome = world.rig.iommu().access(id, None, PAGE, Rights::READ)?;
            assert!(matches!(outcome, Outcome::Refused(_)));
            world.registry.add_device(device).unwrap();
        }
        // A default domain for each of the devices.
        assert_eq!(world.unit.pscids().used_count(), DEVICE_COUNT);
        let ownership = world.registry.claim_owner(device, &owner).unwrap();
        assert_eq!(context(&world, id), None);
        drop(ownership);
        assert!(context(&world, id).is_some());
        world.rig.check_all()?;
    }
    Ok(())
}

/// A3.6 and A3.9.
#[test]
fn what_is_refused_changes_nothing() -> Checked {
    let kind = Kind::new(1, true);
    let world = World::owned(kind);
    let (one, guest) = (world.space(1, 1), world.space(2, 2));
    world.map(&one, 0x10_0000, PAGE);
    world.attach_space(0, 5, &one);
    let last = (1 << kind.pasid_bits) - 1;
    world.attach_space(0, last, &one);
    let words = world.unit.words(world.ids[0][0]);
    let attach = |place: u32, hwpt: &Arc<dyn Hwpt>| {
        let (registry, by) = (&world.registry, world.by(0));
        match pasid(place) {
            None => registry.attach(address(0), by, hwpt),
            Some(pasid) => registry.attach_pasid(address(0), by, pasid, hwpt),
        }
    };
    let beyond = attach(last + 1, &one.hwpt);
    assert!(
        matches!(beyond, Err(AttachError::NoPasid { limit, .. }) if limit == last + 1),
        "{beyond:?}"
    );
    let zero = iopt_formats::command::Pasid::new(0).unwrap();
    let zero = world
        .registry
        .attach_pasid(address(0), world.by(0), zero, &one.hwpt);
    assert!(matches!(zero, Err(AttachError::NoPasid { .. })), "{zero:?}");
    let failure = |result| match result {
        Err(AttachError::Failed { error, .. }) => error,
        other => panic!("{other:?}"),
    };
    // Wider addresses than hardware's.
    let wide = iopt_formats::riscv::Sv::sv57();
    let memory = Arc::new(world.rig.tables());
    let wide: Arc<dyn Hwpt> = Arc::new(Domain::first_stage(wide, memory, MapSide::Silent).unwrap());
    for place in [0, 7] {
        assert!(matches!(
            failure(attach(place, &wide)),
            AttachFailure::Foreign
        ));
    }
    let identity: Arc<dyn Hwpt> = Arc::new(Domain::identity());
    for (place, hwpt) in [(0, &guest.hwpt), (7, &guest.hwpt), (7, &identity)] {
        let failure = failure(attach(place, hwpt));
        assert!(
            matches!(failure, AttachFailure::Unsupported { .. }),
            "{place} {failure:?}"
        );
    }
    assert_eq!(world.unit.words(world.ids[0][0]), words);
    assert_eq!(world.access(0, 5, 0x10_0008)?, Some(0x10_0010_0008));
    assert_eq!(world.access(0, last, 0x10_0008)?, Some(0x10_0010_0008));
    for place in [0, 7] {
        assert_eq!(world.access(0, place, 0x10_0008)?, None);
    }
    assert_eq!(world.unit.gscids().used_count(), 0);
    world.rig.check_all()
}

/// A3.9: devices of one group with different limits; one has no PASIDs at all, and is passed over.
#[test]
fn a_group_has_the_pasids_of_the_least_of_its_members() -> Checked {
    let kind = Kind {
        pasid_bits: 5,
        is_one_group: true,
        ..Kind::new(3, false)
    };
    // 5, 3, 1 and no bits.
    let world = World::owned(kind);
    let one = world.space(1, 1);
    world.map(&one, 0x10_0000, PAGE);
    let place = |value| pasid(value).unwrap();
    let attach = |value| {
        let (registry, by) = (&world.registry, world.by(0));
        registry.attach_pasid(address(0), by, place(value), &one.hwpt)
    };
    for ids in &world.ids {
        for &id in ids {
            world.ledger().attach(id, Some(1), Attachment::Domain(1));
        }
    }
    attach(1).unwrap();
    let refused = attach(2);
    assert!(
        matches!(refused, Err(AttachError::NoPasid { limit: 2, .. })),
        "{refused:?}"
    );
    for device in 0..DEVICE_COUNT {
        let reached = (device < 3).then_some(0x10_0010_0008);
        assert_eq!(world.access(device, 1, 0x10_0008)?, reached, "{device}");
    }
    Ok(())
}

/// Directories of processes grow until there is no memory: what is attached stays, and can be changed still.
#[test]
fn without_memory_nothing_more_is_attached_and_nothing_is_lost() -> Checked {
    let kind = Kind {
        memory_len: 320 << 10,
        ..Kind::new(2, false)
    };
    let world = World::owned(kind);
    let spaces: Vec<Space> = (1..=2).map(|number| world.space(number, 1)).collect();
    for space in &spaces {
        world.map(space, 0x10_0000, PAGE);
    }
    // Each in a page of its own.
    let place = |index: u32| 256 * index + 5;
    let mut count = 1;
    let failure = loop {
        assert!(count < 4096, "memory does not end");
        let attachment = Attachment::Domain(1);
        match world.attach(0, place(count), &spaces[0].hwpt, attachment) {
            Ok(()) => count += 1,
            Err(failure) => break failure,
        }
    };
    assert!(
        matches!(
            failure,
            AttachError::Failed {
                error: AttachFailure::Exhausted,
                ..
            }
        ),
        "{failure:?}"
    );
    assert!(count > 20);
    // The ledger was told of one that did not come.
    world.forget(0, place(count));
    assert_eq!(world.access(0, place(count), 0x10_0008)?, None);
    for index in 1..count {
        let space = &spaces[(index % 2) as usize];
        world.attach_space(0, place(index), space);
        let reached = world.access(0, place(index), 0x10_0008)?;
        assert_eq!(reached, Some(0x10_0000_0000 * space.number + 0x10_0008));
    }
    for index in 1..count {
        world.detach(0, place(index));
        assert_eq!(world.access(0, place(index), 0x10_0008)?, None);
    }
    assert_eq!(world.unit.pscids().used_count(), 0);
    world.rig.check_all()
}

/// Hardware stops in the middle of a commit: the device is quarantined, the old domain stays told, and when
/// hardware goes on, the next attachment ends as if nothing had happened.
#[test]
fn hardware_that_stops_and_goes_on_reaches_nothing_that_was_left() -> Checked {
    let mut quarantined_count = 0;
    for seed in 0..8 {
        for stuck in 0..4 {
            let kind = Kind::new(seed, seed % 2 == 0);
            let world = World::owned(kind);
            let (old, new) = (world.space(1, 1), world.space(2, 1));
            for space in [&old, &new] {
                world.map(space, 0x10_0000, PAGE);
            }
            let place = [0, 3][(seed / 2 % 2) as usize];
            world.attach_space(0, place, &old);
            assert_eq!(world.access(0, place, 0x10_0008)?, Some(0x10_0010_0008));
            world.begin_attach(0, place, Attachment::Domain(2));
            world.rig.iommu().inject(Injection::StuckSync(stuck));
            let attach = || {
                let (registry, by) = (&world.registry, world.by(0));
                match pasid(place) {
                    None => registry.attach(address(0), by, &new.hwpt),
                    Some(pasid) => registry.replace_pasid(address(0), by, pasid, &new.hwpt),
                }
            };
            // It may not even be prepared.
            let _ = attach();
            let endpoint = world.endpoint(0);
            let any: &dyn Any = &*endpoint;
            let own: &RiscvEndpoint<Tables, Queue> = any.downcast_ref().unwrap();
            quarantined_count += usize::from(own.is_quarantined());
            if own.is_quarantined() {
                // Whatever it reaches now, it may.
                for _ in 0..8 {
                    world.access(0, place, 0x10_0008)?;
                }
                assert!(world.unit.pscids().used_count() >= 2);
            }
            world.rig.iommu().release_sync();
            attach().unwrap();
            assert!(!own.is_quarantined());
            world.end_attach(0, place);
            assert_eq!(world.access(0, place, 0x10_0008)?, Some(0x20_0010_0008));
            assert_eq!(world.unit.pscids().used_count(), 1);
            world.rig.check_all()?;
        }
    }
    assert!(quarantined_count > 12, "{quarantined_count}");
    Ok(())
}
