//! What a device meets that nobody attached, that is refused, that leaves, or whose unit does not answer.

use std::any::Any;
use std::sync::Arc;

use iopt::device::vtd::{ContextEntry, VtdEndpoint};
use iopt::device::{
    AttachError, AttachFailure, By, DefaultKind, DirectRegion, DomainKind, Hwpt, Removal,
};
use iopt::domain::DomainError;
use iopt_formats::command::Pasid;
use iopt_formats::context::vtd::{PasidEntry, TableMode, Translation};
use iopt_rig::Tables;
use iopt_sim::{Attachment, Injection, Outcome, Rights, StaleAccess};

use crate::world::{Kind, Queue, SOURCES, World, address};

type Checked = Result<(), Box<StaleAccess>>;

const PAGE: u64 = 0x1000;

/// Returns the PASID entry of a device, in scalable mode.
fn pasid_entry(world: &World, device: usize, pasid: u32) -> Option<PasidEntry> {
    let endpoint = world.registry.endpoint(address(device))?;
    let any: &dyn Any = &*endpoint;
    let endpoint: &VtdEndpoint<Tables, Queue> = any.downcast_ref().unwrap();
    endpoint.pasid_entry(0, Pasid::new(pasid).unwrap())
}

/// Returns what happens to requests without a PASID.
fn translation(world: &World, device: usize) -> Translation {
    let mut found = SOURCES[device].iter().map(|&id| {
        let source_id = id.try_into().unwrap();
        match world.unit.context(source_id) {
            None => Translation::Blocked,
            Some(ContextEntry::Legacy(context)) => context.translation(),
            Some(ContextEntry::Scalable(context)) if context.directory().is_none() => {
                Translation::Blocked
            }
            Some(ContextEntry::Scalable(_)) => {
                pasid_entry(world, device, 0).map_or(Translation::Blocked, PasidEntry::translation)
            }
        }
    });
    let first = found.next().unwrap();
    assert!(found.all(|other| other == first));
    first
}

/// A1.5: a device without a driver is translated or blocked, unless the default type is identity.
#[test]
fn a_device_without_a_driver_does_not_pass_unless_that_was_chosen() -> Checked {
    for seed in 0..8 {
        for chosen in [DefaultKind::Paging, DefaultKind::Identity] {
            let kind = Kind {
                chosen,
                ..Kind::of(seed)
            };
            let world = World::unowned(seed, kind);
            for device in 0..SOURCES.len() {
                if chosen == DefaultKind::Identity {
                    assert_eq!(translation(&world, device), Translation::PassThrough);
                    continue;
                }
                match (kind.mode, translation(&world, device)) {
                    (TableMode::Legacy, Translation::Second(_))
                    | (TableMode::Scalable, Translation::First(_)) => {}
                    other => panic!("{other:?}"),
                }
                assert_eq!(world.access(device, 0, 0x12_3000)?, None);
            }
            // Nobody took these in, on buses that are there and on others.
            for source_id in [0x101, 0x17f, 0x200, 0x301, 0xff00] {
                let outcome = world
                    .rig
                    .iommu()
                    .access(source_id, None, 0x1000, Rights::READ)?;
                assert!(matches!(outcome, Outcome::Refused(_)), "{source_id:#x}");
            }
            for device in 0..SOURCES.len() {
                let guard = world.registry.lock_device(address(device)).unwrap();
                assert_eq!(guard.remove(), Removal::Done);
                assert_eq!(translation(&world, device), Translation::Blocked);
                assert_eq!(world.access(device, 0, 0x12_3000)?, None);
            }
            world.rig.check_all()?;
            assert_eq!(world.unit.domain_ids().used_count(), 0);
            assert_eq!(world.unit.domain_ids().quarantined_count(), 0);
        }
    }
    Ok(())
}

#[test]
fn a_device_that_is_removed_leaves_nothing_behind() -> Checked {
    for seed in 0..4 {
        let mut world = World::new(seed, Kind::of(seed));
        let (one, other) = (world.space(1, 1), world.space(2, 2));
        world.map(&one, 0x10_0000, 4 * PAGE);
        world.map(&other, 0x10_0000, 4 * PAGE);
        world.attach_space(0, 0, &one);
        if world.kind.is_scalable() {
            world.attach_space(0, 9, &other);
            assert_eq!(world.access(0, 9, 0x10_0000)?, Some(0x20_0010_0000));
        }
        assert_eq!(world.access(0, 0, 0x10_0000)?, Some(0x10_0010_0000));
        world.detach(0, 0);
        world.detach(0, 9);
        world.ownerships.clear();
        let guard = world.registry.lock_device(address(0)).unwrap();
        assert_eq!(guard.remove(), Removal::Done);
        assert_eq!(world.access(0, 0, 0x10_0000)?, None);
        // Its pages are used again, and hardware does not look there.
        let others: Vec<_> = (3..6).map(|number| world.space(number, 1)).collect();
        for space in &others {
            world.map(space, 0x10_0000, 4 * PAGE);
        }
        assert_eq!(world.access(0, 0, 0x10_0000)?, None);
        world.rig.check_all()?;
        assert_eq!(world.registry.endpoint(address(0)).map(|_| ()), None);
    }
    Ok(())
}

/// Another driver's domain.
#[derive(Debug)]
struct Stranger;

impl Hwpt for Stranger {
    fn kind(&self) -> DomainKind {
        DomainKind::Identity
    }

    fn map_direct(&self, _: DirectRegion) -> Result<(), DomainError> {
        Ok(())
    }
}

/// A3.6.
#[test]
fn a_foreign_domain_is_refused_and_the_old_one_stays() -> Checked {
    for seed in 0..4 {
        let world = World::new(seed, Kind::of(seed));
        let space = world.space(1, 1);
        world.map(&space, 0x10_0000, 4 * PAGE);
        world.attach_space(1, 0, &space);
        let by = || By::Owner(&world.ownerships[1]);
        let stranger: Arc<dyn Hwpt> = Arc::new(Stranger);
        let refused = world.registry.attach(address(1), by(), &stranger);
        assert!(
            matches!(
                refused,
                Err(AttachError::Failed {
                    error: AttachFailure::Foreign,
                    ..
                })
            ),
            "{refused:?}"
        );
        assert_eq!(world.access(1, 0, 0x10_1000)?, Some(0x10_0010_1000));
        world.rig.check_all()?;
    }
    Ok(())
}

#[test]
fn when_domain_ids_run_out_nothing_changes_and_they_come_back() -> Checked {
    // 0 and 1 are nobody's.
    const COUNT: u64 = 14;
    for mode in [TableMode::Scalable, TableMode::Legacy] {
        let kind = Kind {
            mode,
            nd: 0,
            ..Kind::of(1)
        };
        let world = World::new(1, kind);
        let held: Vec<_> = std::iter::from_fn(|| world.unit.domain_ids().allocate().ok()).collect();
        assert_eq!(held.len() as u64, COUNT);
        for id in held {
            id.give_back_unused();
        }
        let spaces: Vec<_> = (1..=COUNT + 1)
            .map(|number| world.space(number, 1))
            .collect();
        for space in &spaces {
            world.map(space, 0x10_0000, PAGE);
        }
        let held: Vec<_> = (1..COUNT)
            .map(|_| world.unit.domain_ids().allocate().unwrap())
            .collect();
        world.attach_space(0, 0, &spaces[0]);
        let attach = |space: &crate::world::Space| {
            let by = By::Owner(&world.ownerships[0]);
            world.registry.attach(address(0), by, &space.hwpt)
        };
        let refused = attach(&spaces[1]);
        assert!(
            matches!(
                refused,
                Err(AttachError::Failed {
                    error: AttachFailure::Exhausted,
                    ..
                })
            ),
            "{refused:?}"
        );
        assert_eq!(world.access(0, 0, 0x10_0000)?, Some(0x10_0010_0000));
        // The same domain takes no other one.
        world.attach_space(1, 0, &spaces[0]);
        for id in held {
            id.give_back_unused();
        }
        for space in &spaces {
            world.attach_space(0, 0, space);
            assert_eq!(
                world.access(0, 0, 0x10_0000)?,
                Some(0x10_0000_0000 * space.number + 0x10_0000)
            );
        }
        world.rig.check_all()?;
    }
    Ok(())
}

/// Wherever hardware gets stuck, or a device does not answer: what it may still reach stays told and in memory,
/// and when it goes on the next attachment ends as if nothing had happened.
#[test]
fn what_a_unit_that_gets_stuck_may_use_is_kept_until_it_answers() -> Checked {
    let injections = (0..10).map(Injection::StuckSync);
    let timeouts = (0..2).map(Injection::DeviceTimeout);
    let mut quarantined_count = 0;
    for (seed, injection) in injections.chain(timeouts).flat_map(|injection| {
        let seeds = [4, 5, 7, 10];
        seeds.map(|seed| (seed, injection))
    }) {
        let world = World::new(seed, Kind::of(seed));
        let (one, other) = (world.space(1, 1), world.space(2, 2));
        world.map(&one, 0x10_0000, 4 * PAGE);
        world.map(&other, 0x10_0000, 4 * PAGE);
        // Another device has it, too.
        world.attach_space(2, 0, &one);
        world.attach_space(1, 0, &one);
        assert_eq!(world.access(1, 0, 0x10_1000)?, Some(0x10_0010_1000));
        world.rig.iommu().inject(injection);
        // With caching mode, getting ready can fail, too.
        let attachment = Attachment::Domain(other.number);
        let attached = world.attach(1, 0, &other.hwpt, attachment);
        assert!(attached.is_ok() || world.kind.has_caching_mode);
        let endpoint = world.registry.endpoint(address(1)).unwrap();
        let any: &dyn Any = &*endpoint;
        let endpoint: &VtdEndpoint<Tables, Queue> = any.downcast_ref().unwrap();
        quarantined_count += usize::from(endpoint.is_quarantined());
        // What did not strike yet strikes now.
        for _ in 0..6 {
            world.rig.iommu().release_sync();
            let _ = world.unit.forget_everything();
        }
        world.rig.iommu().release_sync();
        world.attach_space(1, 0, &other);
        assert!(!endpoint.is_quarantined(), "{injection:?}");
        assert_eq!(world.access(1, 0, 0x10_1000)?, Some(0x20_0010_1000));
        world.rig.check_all()?;
        world.unmap(&one, 0x10_0000, 4 * PAGE);
        world.unmap(&other, 0x10_0000, 4 * PAGE);
        assert_eq!(world.access(1, 0, 0x10_1000)?, None);
        world.detach(1, 0);
        world.detach(2, 0);
        world.rig.check_all()?;
        assert_eq!(world.unit.domain_ids().used_count(), 0);
    }
    assert!(quarantined_count > 20, "{quarantined_count}");
    Ok(())
}
