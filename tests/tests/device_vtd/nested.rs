//! Devices of guests, whose first stages the guests write, over a second stage of the host.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use iopt::device::Hwpt;
use iopt::device::vtd::{GuestEntry, GuestVtd};
use iopt::ioas::Pages;
use iopt::pin::{Firmness, Simulated, Source};
use iopt_formats::command::vtd::{Descriptor, Device, PasidIotlbScope, PasidScope, QueueDepth};
use iopt_formats::command::{Pasid, Span};
use iopt_formats::{Oa, PageSize};
use iopt_rig::Tables;
use iopt_sim::{Attachment, Rights, StaleAccess};

use crate::world::{Domain, Kind, Queue, SOURCES, Space, World};

type Checked = Result<(), Box<StaleAccess>>;

const PAGE: u64 = 0x1000;

/// An entry that is present, may be read and written by users, and was accessed; a leaf is dirty, too.
const TABLE: u64 = 0x27;
const LEAF: u64 = 0x67;

/// Bytes of memory that a guest uses for tables, and where it has memory for devices.
const TABLES: u64 = 0x1_0000;
const MEMORY: u64 = 0x20_0000;
/// Address spaces of a guest: with PASIDs from 1 on, and without.
const SPACES: u64 = 4;

/// A guest with a first stage for each of its address spaces.
struct Guest {
    unit: GuestVtd<Tables, Queue>,
    /// In the ledger: what the guest maps in the first address space.
    number: u64,
    parent: u64,
    /// Where its own tables are, for the host.
    base: u64,
    spaces: Vec<Arc<Domain>>,
}

impl Guest {
    /// Creates a guest in the memory of `parent`, where all guests have their own `window` for tables.
    fn new(world: &World, parent: &Space, number: u64, window: u64) -> Self {
        let base = world.rig.memory().take(PageSize::from_lg2(16)).unwrap();
        let memory = Simulated::new(PageSize::KIB_4, TABLES / PAGE)
            .with_base(base)
            .with_firmness(Firmness::Fixed);
        let pages = Pages::new(Arc::new(memory) as Arc<dyn Source>, None);
        let unit = GuestVtd::new(&world.unit, &parent.domain).unwrap();
        for (device, sources) in SOURCES.iter().enumerate() {
            let sources: Vec<u16> = sources.iter().map(|&id| id as u16).collect();
            unit.add_device(device as u16, &sources).unwrap();
        }
        world.map_to(parent, window, TABLES, (&pages, 0), base.get());
        let nest = |space: u64| {
            let first = window + 4 * PAGE * space;
            let words = [1 | 1 << 6, 77, first, 0, 0, 0, 0, 0];
            Arc::new(unit.nest(&GuestEntry::decode(words).unwrap()).unwrap())
        };
        let spaces = (0..SPACES).map(nest).collect();
        let guest = Self {
            unit,
            number,
            parent: parent.number,
            base: base.get(),
            spaces,
        };
        for space in 0..SPACES {
            for level in 0..3 {
                let table = 4 * PAGE * space + PAGE * level;
                guest.write(world, table, (window + table + PAGE) | TABLE);
            }
        }
        guest
    }

    /// Writes a word of the guest's tables, as its processor does.
    fn write(&self, world: &World, at: u64, word: u64) {
        let words = world.rig.memory().words(Oa::new(self.base + at), 1);
        words.unwrap()[0].store(word.to_le(), Ordering::SeqCst);
    }

    fn attach(&self, world: &World, device: usize, space: u64) {
        let hwpt: Arc<dyn Hwpt> = Arc::<Domain>::clone(&self.spaces[space as usize]);
        let attachment = Attachment::Nested {
            guest: Some(self.number + space),
            parent: self.parent,
        };
        world
            .attach(device, space as u32, &hwpt, attachment)
            .unwrap();
    }

    /// A device whose requests without a PASID have addresses of the guest's memory.
    fn pass(&self, world: &World, device: usize) {
        let entry = GuestEntry::decode([1 | 4 << 6, 0, 0, 0, 0, 0, 0, 0]).unwrap();
        let hwpt: Arc<dyn Hwpt> = Arc::new(self.unit.nest(&entry).unwrap());
        let attachment = Attachment::Domain(self.parent);
        world.attach(device, 0, &hwpt, attachment).unwrap();
    }

    const fn page(iova: u64) -> RangeInclusive<u64> {
        iova..=iova + PAGE - 1
    }

    const fn leaf(space: u64, iova: u64) -> u64 {
        4 * PAGE * space + 3 * PAGE + 8 * (iova >> 12)
    }

    fn map(&self, world: &World, space: u64, iova: u64, ipa: u64) {
        let ledger = world.ledger();
        ledger.map(self.number + space, Self::page(iova), ipa, Rights::ALL);
        self.write(world, Self::leaf(space, iova), ipa | LEAF);
        ledger.map_done(self.number + space, Self::page(iova));
    }

    /// Unmaps a page, and gives the descriptors of the guest's driver.
    fn unmap(&self, world: &World, space: u64, iova: u64, descriptors: &[Descriptor]) {
        let ledger = world.ledger();
        ledger.unmap(self.number + space, Self::page(iova));
        self.write(world, Self::leaf(space, iova), 0);
        let domain = &self.spaces[space as usize];
        self.unit.invalidate(domain, descriptors).unwrap();
        ledger.forgotten(self.number + space, Self::page(iova));
    }
}

/// What a guest's driver puts into its queue for a page of an address space.
fn forget(space: u64, iova: u64) -> Vec<Descriptor> {
    let span = Span::new(iova, 0).unwrap();
    let pasid = Pasid::new(space as u32).unwrap();
    let wait = Descriptor::Wait {
        status: None,
        has_interrupt: false,
        is_fence: false,
        drains_page_requests: false,
    };
    let tlb = Descriptor::PasidIotlb {
        domain_id: 77,
        pasid,
        scope: PasidIotlbScope::Pages {
            span,
            is_leaf_only: true,
        },
    };
    let devices = (0..SOURCES.len() as u16).map(|source_id| {
        let device = Device {
            source_id,
            physical_function: 0,
            queue_depth: QueueDepth::new(32),
        };
        if space == 0 {
            Descriptor::DeviceTlb { device, span }
        } else {
            let pasids = PasidScope::One(pasid);
            Descriptor::PasidDeviceTlb {
                device,
                pasids,
                span,
            }
        }
    });
    [tlb, wait]
        .into_iter()
        .chain(devices)
        .chain([wait])
        .collect()
}

/// Units in scalable mode.
const fn kind(seed: u64) -> Kind {
    Kind {
        mode: iopt_formats::context::vtd::TableMode::Scalable,
        has_ats: seed.is_multiple_of(2),
        ..Kind::of(seed)
    }
}

#[test]
fn a_device_of_a_guest_goes_by_its_tables_and_then_the_parents() -> Checked {
    for seed in 0..4 {
        let world = World::new(seed, kind(seed));
        let parent = world.space(1, 2);
        let guest = Guest::new(&world, &parent, 100, 0);
        let (at, ipa) = (0x5000, MEMORY + 0x7000);
        world.map(&parent, MEMORY, 16 * PAGE);
        guest.map(&world, 0, at, ipa);
        guest.map(&world, 3, at, ipa + PAGE);
        for device in 0..SOURCES.len() {
            guest.attach(&world, device, 0);
            assert_eq!(world.access(device, 0, at + 0x123)?, Some(0x10_0020_7123));
            assert_eq!(world.access(device, 3, at)?, None);
            guest.attach(&world, device, 3);
            assert_eq!(world.access(device, 3, at)?, Some(0x10_0020_8000));
            assert_eq!(world.access(device, 0, ipa)?, None);
            // A3.15: of two address spaces nothing reaches what the parent lost; and again when it is back.
            world.unmap(&parent, MEMORY, 16 * PAGE);
            assert_eq!(world.access(device, 0, at)?, None);
            assert_eq!(world.access(device, 3, at)?, None);
            world.map(&parent, MEMORY, 16 * PAGE);
            assert_eq!(world.access(device, 0, at)?, Some(0x10_0020_7000));
            guest.unmap(&world, 0, at, &forget(0, at));
            assert_eq!(world.access(device, 0, at)?, None);
            assert_eq!(world.access(device, 3, at)?, Some(0x10_0020_8000));
            guest.map(&world, 0, at, ipa);
            world.rig.check_all()?;
        }
        // The guest lets all pass, and the parent translates; then the host has the device again.
        guest.pass(&world, 1);
        assert_eq!(world.access(1, 0, ipa)?, Some(0x10_0020_7000));
        assert_eq!(world.access(1, 0, at + TABLES)?, None);
        guest.attach(&world, 1, 0);
        assert_eq!(world.access(1, 0, at)?, Some(0x10_0020_7000));
        world.attach_space(1, 0, &parent);
        assert_eq!(world.access(1, 0, ipa)?, Some(0x10_0020_7000));
        guest.attach(&world, 1, 0);
        assert_eq!(world.access(1, 0, at)?, Some(0x10_0020_7000));
        for device in 0..SOURCES.len() {
            for place in [0, 3] {
                world.detach(device, place);
                assert_eq!(world.access(device, place, at)?, None);
            }
        }
        world.rig.check_all()?;
        assert_eq!(world.unit.domain_ids().used_count(), 0);
        assert_eq!(world.unit.domain_ids().quarantined_count(), 0);
    }
    Ok(())
}

/// That the tests here can fail: what a guest's driver leaves out is found.
#[test]
fn a_guest_that_tells_nothing_meets_its_own_stale_translations() {
    for seed in 0..2 {
        let mut outcomes = Vec::new();
        let complete = forget(0, 0x5000);
        for descriptors in [&complete[..], &complete[..2], &[]] {
            let world = World::new(seed, kind(seed));
            let parent = world.space(1, 2);
            let guest = Guest::new(&world, &parent, 100, 0);
            world.map(&parent, MEMORY, PAGE);
            guest.map(&world, 0, 0x5000, MEMORY);
            guest.attach(&world, 0, 0);
            world.access(0, 0, 0x5000).unwrap();
            guest.unmap(&world, 0, 0x5000, descriptors);
            outcomes.push(world.access(0, 0, 0x5000).is_ok());
        }
        assert_eq!(outcomes, [true, !kind(seed).has_ats, false]);
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

/// Law L2 for guests: random lives of two of them over one parent, on devices that the host has between.
#[test]
fn nothing_that_a_guest_or_its_parent_left_is_reached_again() -> Checked {
    for seed in 0..4_u64 {
        let world = World::new(seed, kind(seed));
        let mut numbers = Numbers(0x51ed_270b ^ seed << 32 | 1);
        let parent = world.space(1, 2);
        let host = world.space(2, 1);
        let guests = [
            Guest::new(&world, &parent, 100, 0),
            Guest::new(&world, &parent, 200, TABLES),
        ];
        let mut is_mapped = [false; 4];
        let mut leaves = [[[false; 8]; SPACES as usize]; 2];
        for step in 0..200 {
            let device = numbers.below(SOURCES.len() as u64) as usize;
            let number = numbers.below(2) as usize;
            let guest = &guests[number];
            let (space, slot) = (numbers.below(SPACES), numbers.below(8));
            match numbers.below(12) {
                0..4 => guest.attach(&world, device, space),
                4 => guest.pass(&world, device),
                5 => world.detach(device, space as u32),
                6 => world.attach_space(device, space as u32, [&parent, &host][number]),
                7 | 8 => {
                    let block = numbers.below(4);
                    let iova = MEMORY + 4 * PAGE * block;
                    let mapped = &mut is_mapped[block as usize];
                    if *mapped {
                        world.unmap(&parent, iova, 4 * PAGE);
                    } else {
                        world.map(&parent, iova, 4 * PAGE);
                    }
                    *mapped = !*mapped;
                }
                _ => {
                    let mapped = &mut leaves[number][space as usize][slot as usize];
                    let iova = PAGE * slot;
                    if *mapped {
                        guest.unmap(&world, space, iova, &forget(space, iova));
                    } else {
                        let ipa = MEMORY + PAGE * numbers.below(16);
                        guest.map(&world, space, iova, ipa);
                    }
                    *mapped = !*mapped;
                }
            }
            for _ in 0..6 {
                let device = numbers.below(SOURCES.len() as u64) as usize;
                let place = numbers.below(4) as u32;
                let iova = PAGE * numbers.below(8) + MEMORY * (numbers.below(3) / 2);
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
    }
    Ok(())
}
