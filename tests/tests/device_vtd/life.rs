//! Devices that come, are attached, replaced, given PASIDs and detached, with DMA at every point in between.

use iopt_sim::StaleAccess;

use crate::world::{Kind, SOURCES, World};

type Checked = Result<(), Box<StaleAccess>>;

const PAGE: u64 = 0x1000;

#[test]
fn a_device_reaches_what_is_attached_and_nothing_else() -> Checked {
    for seed in 0..8 {
        let kind = Kind::of(seed);
        let world = World::new(seed, kind);
        // The last PASID, beyond the first table.
        let high = (1 << kind.pasid_bits) - 1;
        let (one, other, second) = (world.space(1, 1), world.space(2, 1), world.space(3, 2));
        for space in [&one, &other, &second] {
            world.map(space, 0x10_0000, 4 * PAGE);
        }
        let at = 0x10_2345;
        for device in 0..SOURCES.len() {
            // In its default domain nothing is mapped; owned, nothing passes.
            assert_eq!(world.access(device, 0, at)?, None);
            world.attach_space(device, 0, &one);
            assert_eq!(world.access(device, 0, at)?, Some(0x10_0010_2345));
            assert_eq!(world.access(device, 0, at + 0x10_0000)?, None);
            world.attach_space(device, 0, &other);
            assert_eq!(world.access(device, 0, at)?, Some(0x20_0010_2345));
            world.attach_space(device, 0, &second);
            assert_eq!(world.access(device, 0, at)?, Some(0x30_0010_2345));
            world.attach_identity(device);
            assert_eq!(world.access(device, 0, at)?, Some(at));
            if kind.is_scalable() {
                assert_eq!(world.access(device, 5, at)?, None);
                world.attach_space(device, 5, &one);
                assert_eq!(world.access(device, high, at)?, None);
                world.attach_space(device, high, &other);
                assert_eq!(world.access(device, 0, at)?, Some(at));
                assert_eq!(world.access(device, 5, at)?, Some(0x10_0010_2345));
                assert_eq!(world.access(device, high, at)?, Some(0x20_0010_2345));
                // The same domain for requests with PASIDs and without.
                world.attach_space(device, 0, &other);
                assert_eq!(world.access(device, 0, at)?, Some(0x20_0010_2345));
                world.attach_space(device, 5, &second);
                assert_eq!(world.access(device, 5, at)?, Some(0x30_0010_2345));
                world.detach(device, 0);
                assert_eq!(world.access(device, 0, at)?, None);
                assert_eq!(world.access(device, high, at)?, Some(0x20_0010_2345));
                world.unmap(&other, 0x10_0000, 4 * PAGE);
                assert_eq!(world.access(device, high, at)?, None);
                world.map(&other, 0x10_0000, 4 * PAGE);
                assert_eq!(world.access(device, high, at)?, Some(0x20_0010_2345));
                world.detach(device, 5);
                world.detach(device, high);
            } else {
                world.detach(device, 0);
            }
            let places = [0, 5, high];
            // Without PASIDs nobody sends one.
            let places = &places[..if kind.is_scalable() { 3 } else { 1 }];
            for &place in places {
                assert_eq!(world.access(device, place, at)?, None);
            }
            world.rig.check_all()?;
        }
        assert_eq!(world.unit.domain_ids().used_count(), 0);
        assert_eq!(world.unit.domain_ids().quarantined_count(), 0);
    }
    Ok(())
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

/// Second stages are a third of all.
const fn stage_of(number: u64) -> u8 {
    if number.is_multiple_of(3) { 2 } else { 1 }
}

/// Law L2, and the laws of the simulation, over random lives.
#[test]
fn nothing_that_was_left_is_ever_reached_again() -> Checked {
    for seed in 0..8_u64 {
        let kind = Kind::of(seed);
        let world = World::new(seed, kind);
        let place_count = if kind.is_scalable() { 4 } else { 1 };
        let mut numbers = Numbers(0x9e37_79b9 ^ seed << 32 | 1);
        let mut spaces: Vec<_> = (1..=4)
            .map(|number| Some(world.space(number, stage_of(number))))
            .collect();
        let mut mapped = vec![[false; 8]; spaces.len()];
        let mut next = 5;
        for step in 0..250 {
            let device = numbers.below(SOURCES.len() as u64) as usize;
            let place = numbers.below(place_count) as u32;
            let number = numbers.below(4) as usize;
            let slot = numbers.below(8) as usize;
            let iova = 0x20_0000 * slot as u64;
            let space = spaces[number].as_ref().unwrap();
            match numbers.below(12) {
                0..3 => world.attach_space(device, place, space),
                3 if place == 0 => world.attach_identity(device),
                3 | 4 => world.detach(device, place),
                5 if step % 5 == 0 => {
                    // The domain goes, with its tables, and their pages are used again.
                    for device in 0..SOURCES.len() {
                        for place in 0..4 {
                            if world.is_attached(device, place, space.number) {
                                world.detach(device, place);
                            }
                        }
                    }
                    spaces[number] = None;
                    spaces[number] = Some(world.space(next, stage_of(next)));
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
                let device = numbers.below(SOURCES.len() as u64) as usize;
                let place = numbers.below(place_count) as u32;
                let iova = 0x20_0000 * numbers.below(8) + PAGE * numbers.below(17);
                world.access(device, place, iova)?;
            }
            if step % 20 == 0 {
                world.rig.check_all()?;
            }
        }
        for device in 0..SOURCES.len() {
            for place in 0..4 {
                world.detach(device, place);
            }
        }
        world.rig.check_all()?;
        assert_eq!(world.unit.domain_ids().used_count(), 0, "{seed}");
        assert_eq!(world.unit.domain_ids().quarantined_count(), 0);
        let statistics = world.rig.iommu().statistics();
        assert_eq!(statistics.commands.contains_key("device TLB"), kind.has_ats);
    }
    Ok(())
}

/// One thread changes a domain's mappings while others attach and detach devices, and devices use it.
#[test]
fn a_domain_may_change_while_devices_come_and_go() {
    for seed in [1, 2, 4, 7] {
        change_while_devices_come_and_go(&World::new(seed, Kind::of(seed)));
    }
}

fn change_while_devices_come_and_go(world: &World) {
    let second = if world.kind.is_scalable() { 2 } else { 0 };
    let space = &world.space(1, 1);
    let check = |checked: Result<Option<u64>, Box<StaleAccess>>| match checked {
        Ok(_) => {}
        Err(stale) => panic!("{stale}"),
    };
    std::thread::scope(|threads| {
        threads.spawn(|| {
            for round in 0..60 {
                let iova = 0x20_0000 * (round % 4);
                world.map(space, iova, 16 * PAGE);
                check(world.access(0, 0, iova + PAGE));
                world.unmap(space, iova, 16 * PAGE);
                for device in 0..3 {
                    check(world.access(device, 0, iova + PAGE));
                    check(world.access(device, second, iova + PAGE));
                }
            }
        });
        for device in 0..3 {
            threads.spawn(move || {
                for round in 0..40 {
                    let place = [0, second][round % 2];
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
