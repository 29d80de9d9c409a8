//! Devices that come, are attached, replaced, given PASIDs and detached, with DMA at every point in between.

use iopt_sim::{Outcome, Rights, StaleAccess};

use crate::world::{IDS, Version, World};

type Checked = Result<(), Box<StaleAccess>>;

const PAGE: u64 = 0x1000;

#[test]
fn a_device_reaches_what_is_attached_and_nothing_else() -> Checked {
    for seed in 0..6 {
        // Guest CR3 tables of one to three levels.
        let (pasid_bits, high) = [(4, 15), (12, 2500), (20, 0xf_abcd)][seed as usize % 3];
        let world = World::new(seed, seed >= 3, pasid_bits).owned();
        let (one, other) = (world.space(1, Version::Two), world.space(2, Version::Two));
        let (below, wide) = (world.space(3, Version::One), world.space(4, Version::Wide));
        for space in [&one, &other, &below, &wide] {
            world.map(space, 0x10_0000, 4 * PAGE);
        }
        let at = 0x10_2345;
        for device in 0..IDS.len() {
            // Owned, nothing passes.
            assert_eq!(world.access(device, 0, at)?, None);
            for space in [&one, &other, &below, &wide, &one, &below, &other, &wide] {
                world.attach_space(device, 0, space);
                let oa = 0x10_0000_0000 * space.number + at;
                assert_eq!(world.access(device, 0, at)?, Some(oa));
                assert_eq!(world.access(device, 0, at + 0x10_0000)?, None);
                assert_eq!(world.access(device, 5, at)?, None);
            }
            world.attach_identity(device);
            assert_eq!(world.access(device, 0, at)?, Some(at));
            assert_eq!(world.access(device, 5, at)?, None);
            world.attach_space(device, 5, &one);
            assert_eq!(world.access(device, high, at)?, None);
            world.attach_space(device, high, &other);
            assert_eq!(world.access(device, 0, at)?, Some(at));
            assert_eq!(world.access(device, 5, at)?, Some(0x10_0010_2345));
            assert_eq!(world.access(device, high, at)?, Some(0x20_0010_2345));
            world.attach_space(device, 5, &other);
            assert_eq!(world.access(device, 5, at)?, Some(0x20_0010_2345));
            world.attach_space(device, 0, &one);
            assert_eq!(world.access(device, 0, at)?, Some(0x10_0010_2345));
            world.detach(device, 0);
            assert_eq!(world.access(device, 0, at)?, None);
            assert_eq!(world.access(device, high, at)?, Some(0x20_0010_2345));
            world.unmap(&other, 0x10_0000, 4 * PAGE);
            assert_eq!(world.access(device, high, at)?, None);
            world.map(&other, 0x10_0000, 4 * PAGE);
            assert_eq!(world.access(device, high, at)?, Some(0x20_0010_2345));
            world.detach(device, 5);
            world.detach(device, high);
            for place in [0, 5, high] {
                assert_eq!(world.access(device, place, at)?, None);
            }
            world.rig.check_all()?;
        }
        let ids = world.leave();
        assert_eq!((ids.used_count(), ids.quarantined_count()), (0, 0));
    }
    Ok(())
}

/// A1.5: before its driver, and without one, a device is blocked; in its default domain it is translated. It passes only
/// where that is wanted.
#[test]
fn a_device_without_a_driver_is_translated_or_blocked() {
    use iopt::device::DefaultKind;
    use iopt_reference::context::Binding;

    for (pasid_bits, kind) in [
        (0, DefaultKind::Paging),
        (4, DefaultKind::Paging),
        (0, DefaultKind::Identity),
    ] {
        let world = World::with_default(1, false, pasid_bits, kind);
        let mut has_device = vec![false; 0x400];
        for &id in IDS.into_iter().flatten() {
            has_device[id as usize] = true;
            let binding = world.binding(id, 0)();
            match kind {
                DefaultKind::Paging => assert!(matches!(binding, Ok(Binding::Table(_)))),
                DefaultKind::Identity => {
                    assert!(matches!(binding, Ok(Binding::PassThrough { .. })));
                }
            }
        }
        for (id, has_device) in (0..0x400).zip(has_device) {
            if !has_device {
                assert_eq!(world.binding(id, 0)(), Ok(Binding::Blocked), "{id:#x}");
                let access = world.rig.iommu().access(id, None, 0x1000, Rights::READ);
                assert!(matches!(access, Ok(Outcome::Refused(_))));
            }
        }
        assert!(world.binding(0x400, 0)().is_err());
        let world = world.owned();
        for &id in IDS.into_iter().flatten() {
            assert_eq!(world.binding(id, 0)(), Ok(Binding::Blocked));
        }
    }
}

/// A stream of numbers that looks random and is the same in every run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, count: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 20) % count
    }
}

/// Law L2, and the laws of the simulation, over random lives.
#[test]
fn nothing_that_was_left_is_ever_reached_again() -> Checked {
    for seed in 0..6_u64 {
        let world = World::new(seed, seed % 3 != 0, 4).owned();
        let mut numbers = Numbers(0x9e37_79b9 ^ seed << 32 | 1);
        // The last one has tables of version 1, for devices without PASIDs.
        let version = |number| [Version::Two, Version::One][usize::from(number == 3)];
        let space = |number| Some(world.space(number as u64 + 1, version(number)));
        let mut spaces: Vec<_> = (0..4).map(space).collect();
        let mut mapped = vec![[false; 8]; spaces.len()];
        let mut next = 5;
        for step in 0..400 {
            let device = numbers.below(IDS.len() as u64) as usize;
            let place = numbers.below(4) as u32;
            let number = numbers.below(4) as usize;
            let slot = numbers.below(8) as usize;
            let iova = 0x20_0000 * slot as u64;
            let space = spaces[number].as_ref().unwrap();
            let is_default_one = || {
                let last = spaces[3].as_ref().unwrap();
                world.is_attached(device, 0, last.number)
            };
            let fits = match (number, place) {
                (3, 0) => (1..4).all(|place| !world.is_occupied(device, place)),
                (3, _) => false,
                (_, 0) => true,
                _ => !is_default_one(),
            };
            match numbers.below(12) {
                0..4 if fits => world.attach_space(device, place, space),
                0..3 => {}
                3 if place == 0 => world.attach_identity(device),
                3 | 4 => world.detach(device, place),
                5 if step % 5 == 0 => {
                    // The domain goes, with its tables, and their pages are used again.
                    for device in 0..IDS.len() {
                        for place in 0..4 {
                            if world.is_attached(device, place, space.number) {
                                world.detach(device, place);
                            }
                        }
                    }
                    spaces[number] = None;
                    spaces[number] = Some(world.space(next, version(number)));
                    mapped[number] = [false; 8];
                    next += 1;
                }
                _ if mapped[number][slot] => {
                    world.unmap(space, iova, 16 * PAGE);
                    mapped[number][slot] = false;
                }
                _ => {
                    world.map(space, iova, 16 * PAGE);
                    mapped[number][slot] = true;
                }
            }
            for _ in 0..6 {
                let device = numbers.below(IDS.len() as u64) as usize;
                let place = numbers.below(4) as u32;
                let iova = 0x20_0000 * numbers.below(8) + PAGE * numbers.below(17);
                world.access(device, place, iova)?;
            }
            if step % 20 == 0 {
                world.rig.check_all()?;
            }
        }
        for device in 0..IDS.len() {
            for place in 0..4 {
                world.detach(device, place);
            }
        }
        world.rig.check_all()?;
        let statistics = world.rig.iommu().statistics();
        let has_told = statistics.commands.contains_key("INVALIDATE_IOTLB_PAGES");
        assert_eq!(has_told, seed % 3 != 0);
        let ids = world.leave();
        assert_eq!(
            (ids.used_count(), ids.quarantined_count()),
            (0, 0),
            "{seed}"
        );
    }
    Ok(())
}

/// One thread changes a domain's mappings while others attach and detach devices, and devices use it.
#[test]
fn a_domain_may_change_while_devices_come_and_go() {
    let world = &World::new(3, true, 4).owned();
    let space = &world.space(1, Version::Two);
    let check = |checked: Result<Option<u64>, Box<StaleAccess>>| match checked {
        Ok(_) => {}
        Err(stale) => panic!("{stale}"),
    };
    std::thread::scope(|threads| {
        threads.spawn(|| {
            for round in 0..150 {
                let iova = 0x20_0000 * (round % 4);
                world.map(space, iova, 16 * PAGE);
                check(world.access(0, 0, iova + PAGE));
                world.unmap(space, iova, 16 * PAGE);
                for device in 0..3 {
                    check(world.access(device, 0, iova + PAGE));
                    check(world.access(device, 2, iova + PAGE));
                }
            }
        });
        for device in 0..3 {
            threads.spawn(move || {
                for round in 0..40 {
                    let place = [0, 2][round % 2];
                    world.attach_space(device, place, space);
                    check(world.access(device, place, 0x1000));
                    if round % 3 == 0 {
                        world.attach_identity(device);
                    }
                    world.detach(device, place);
                    check(world.access(device, place, 0x1000));
                }
            });
        }
    });
    if let Err(stale) = world.rig.check_all() {
        panic!("{stale}");
    }
}
