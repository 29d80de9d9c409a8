//! Devices of guests, whose tables the guests write, over version 1 tables of the host.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use iopt::device::Hwpt;
use iopt::device::amd::{GuestDte, GuestIommu};
use iopt::ioas::Pages;
use iopt::pin::{Firmness, Simulated, Source};
use iopt_formats::command::amd::Command;
use iopt_formats::command::{Pasid, Span};
use iopt_formats::{Oa, PageSize};
use iopt_sim::{Attachment, Rights, StaleAccess};

use crate::world::{IDS, Queue, Space, Version, Watched, World};

type Checked = Result<(), Box<StaleAccess>>;

const PAGE: u64 = 0x1000;

/// An entry that is present, may be read and written by users, and was accessed; a leaf is dirty, too.
const TABLE: u64 = 0x27;
const LEAF: u64 = 0x67;

/// Bytes of memory that a guest uses for tables, and where it has memory for devices.
const TABLES: u64 = 0x2_0000;
const MEMORY: u64 = 0x20_0000;
/// Address spaces of a guest: with PASIDs from 1 on, and without.
const SPACES: u64 = 4;
/// Its guest CR3 table of one level; another one is one page further, and the page tables come then.
const GCR3: u64 = 0;
/// The guest's domain IDs; devices have the one or the other, and the same tables.
const DOMAIN_IDS: [u16; 2] = [77, 78];

/// A guest with one set of tables for each of its address spaces.
struct Guest {
    iommu: GuestIommu<Watched, Queue>,
    /// In the ledger: what the guest maps without a PASID, and with those that follow.
    number: u64,
    parent: u64,
    /// Where its own tables are, for itself and for the host.
    window: u64,
    base: u64,
    pages: Arc<Pages>,
}

impl Guest {
    /// Creates a guest in the memory of `parent`, where all guests have their own `window` for tables.
    fn new(world: &World, parent: &Space, number: u64, window: u64) -> Self {
        let base = world.rig.memory().take(PageSize::from_lg2(17)).unwrap();
        let memory = Simulated::new(PageSize::KIB_4, TABLES / PAGE)
            .with_base(base)
            .with_firmness(Firmness::Fixed);
        let guest = Self {
            iommu: GuestIommu::new(&world.iommu, &parent.domain).unwrap(),
            number,
            parent: parent.number,
            window,
            base: base.get(),
            pages: Pages::new(Arc::new(memory) as Arc<dyn Source>, None),
        };
        for (device, ids) in IDS.iter().enumerate() {
            let ids: Vec<u16> = ids.iter().map(|&id| id as u16).collect();
            guest.iommu.add_device(device as u16, &ids).unwrap();
        }
        // The page of the guest CR3 table alone, so that it can go alone.
        for (from, len) in [(GCR3, PAGE), (PAGE, TABLES - PAGE)] {
            let pages = (&guest.pages, from);
            world.map_to(parent, window + from, len, pages, guest.base + from);
        }
        for space in 0..SPACES {
            guest.write_gcr3(world, GCR3, space, space);
            for level in 0..3 {
                let table = Self::root(space) + PAGE * level;
                guest.write(world, table, (window + table + PAGE) | TABLE);
            }
        }
        guest
    }

    /// The first of four tables, one of each level.
    const fn root(space: u64) -> u64 {
        2 * PAGE + 4 * PAGE * space
    }

    /// Writes a word of the guest's tables, as its processor does.
    fn write(&self, world: &World, at: u64, word: u64) {
        let words = world.rig.memory().words(Oa::new(self.base + at), 1);
        words.unwrap()[0].store(word.to_le(), Ordering::SeqCst);
    }

    /// Makes the entry of a space in a guest CR3 table lead to the tables of another one.
    fn write_gcr3(&self, world: &World, table: u64, space: u64, root: u64) {
        let word = (self.window + Self::root(root)) | 1;
        self.write(world, table + 8 * space, word);
    }

    /// The domain of a device that has the guest CR3 table.
    fn nest(&self, device: usize, has_ats: bool) -> Arc<dyn Hwpt> {
        let root = self.window + GCR3;
        let low = 3 | 3 << 54 | (root >> 12 & 7) << 58 | 3 << 61;
        let id = u64::from(DOMAIN_IDS[device % 2]);
        let high = id | (root >> 15) << 16 | u64::from(has_ats) << 32;
        let entry = GuestDte::decode([low, high, 0, 0]).unwrap();
        Arc::new(self.iommu.nest(&entry).unwrap())
    }

    /// That of one whose requests have addresses of the guest's memory.
    fn pass(&self, device: usize) -> Arc<dyn Hwpt> {
        let id = u64::from(DOMAIN_IDS[device % 2]);
        let entry = GuestDte::decode([3 | 3 << 61, id | 1 << 32, 0, 0]).unwrap();
        Arc::new(self.iommu.nest(&entry).unwrap())
    }

    /// Attaches a domain of the guest, and tells the ledger which of its maps that means for each space.
    fn attach(&self, world: &World, device: usize, hwpt: &Arc<dyn Hwpt>) {
        for space in 1..SPACES as u32 {
            for &id in IDS[device] {
                let ledger = world.ledger();
                ledger.detach(id, Some(space));
                ledger.attach(id, Some(space), self.attachment(space.into()));
            }
        }
        let attached = world.attach(device, 0, hwpt, self.attachment(0));
        attached.unwrap();
        for space in 1..SPACES as u32 {
            for &id in IDS[device] {
                world.ledger().detach_done(id, Some(space));
                world.ledger().attach_done(id, Some(space));
            }
        }
    }

    /// Blocks a device, or attaches what is not the guest's in place of what is.
    fn detach(world: &World, device: usize, change: impl FnOnce()) {
        for space in 1..SPACES as u32 {
            for &id in IDS[device] {
                world.ledger().detach(id, Some(space));
            }
        }
        change();
        for space in 1..SPACES as u32 {
            for &id in IDS[device] {
                world.ledger().detach_done(id, Some(space));
            }
        }
    }

    const fn attachment(&self, space: u64) -> Attachment {
        Attachment::Nested {
            guest: Some(self.number + space),
            parent: self.parent,
        }
    }

    const fn page(iova: u64) -> RangeInclusive<u64> {
        iova..=iova + PAGE - 1
    }

    const fn leaf(space: u64, iova: u64) -> u64 {
        Self::root(space) + 3 * PAGE + 8 * (iova >> 12)
    }

    fn map(&self, world: &World, space: u64, iova: u64, ipa: u64) {
        let ledger = world.ledger();
        ledger.map(self.number + space, Self::page(iova), ipa, Rights::ALL);
        self.write(world, Self::leaf(space, iova), ipa | LEAF);
        ledger.map_done(self.number + space, Self::page(iova));
    }

    /// Unmaps a page, and gives the commands of the guest's driver.
    fn unmap(&self, world: &World, space: u64, iova: u64, commands: &[Command]) {
        let ledger = world.ledger();
        ledger.unmap(self.number + space, Self::page(iova));
        self.write(world, Self::leaf(space, iova), 0);
        self.iommu.invalidate(commands).unwrap();
        ledger.forgotten(self.number + space, Self::page(iova));
    }
}

const WAIT: Command = Command::CompletionWait {
    store: None,
    has_interrupt: false,
    is_fence: false,
};

/// What a guest's driver sends for a page of an address space.
fn forget(space: u64, iova: u64) -> Vec<Command> {
    let span = Span::new(iova, 0).unwrap();
    let pasid = Pasid::new(space as u32);
    let pages = DOMAIN_IDS.map(|domain_id| Command::InvalidatePages {
        domain_id,
        pasid,
        has_tables: false,
        span,
    });
    let devices = (0..IDS.len() as u16).map(|device_id| Command::InvalidateIotlbPages {
        device_id,
        max_pending: 1,
        queue_id: device_id,
        pasid: pasid.filter(|_| space > 0),
        span,
    });
    let pages = pages.into_iter().chain([WAIT]);
    pages.chain(devices).chain([WAIT]).collect()
}

fn world(seed: u64) -> World {
    World::new(seed, seed >= 2, 4).owned()
}

#[test]
fn a_device_of_a_guest_goes_by_its_tables_and_then_the_parents() -> Checked {
    for seed in 0..4 {
        let world = world(seed);
        let parent = world.space(1, Version::One);
        let guest = Guest::new(&world, &parent, 100, 0);
        let (at, ipa) = (0x5000, MEMORY + 0x7000);
        // Those of the guest CR3 tables that devices had before the test took them.
        let used_count = world.iommu.domain_ids().used_count();
        world.map(&parent, MEMORY, 16 * PAGE);
        guest.map(&world, 0, at, ipa);
        guest.map(&world, 3, at, ipa + PAGE);
        for device in 0..IDS.len() {
            guest.attach(&world, device, &guest.nest(device, true));
            assert_eq!(world.access(device, 0, at + 0x123)?, Some(0x10_0020_7123));
            // By the guest's own table.
            assert_eq!(world.access(device, 3, at)?, Some(0x10_0020_8000));
            assert_eq!(world.access(device, 2, at)?, None);
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
        let device = 1;
        Guest::detach(&world, device, || {
            let attachment = Attachment::Domain(parent.number);
            let pass = guest.pass(device);
            world.attach(device, 0, &pass, attachment).unwrap();
        });
        assert_eq!(world.access(device, 0, ipa)?, Some(0x10_0020_7000));
        assert_eq!(world.access(device, 0, at + TABLES)?, None);
        assert_eq!(world.access(device, 3, at)?, None);
        guest.attach(&world, device, &guest.nest(device, true));
        assert_eq!(world.access(device, 0, at)?, Some(0x10_0020_7000));
        Guest::detach(&world, device, || world.attach_space(device, 0, &parent));
        assert_eq!(world.access(device, 0, ipa)?, Some(0x10_0020_7000));
        guest.attach(&world, device, &guest.nest(device, false));
        assert_eq!(world.access(device, 0, at)?, Some(0x10_0020_7000));
        for device in 0..IDS.len() {
            Guest::detach(&world, device, || world.detach(device, 0));
            for space in 0..4 {
                assert_eq!(world.access(device, space, at)?, None);
            }
        }
        world.rig.check_all()?;
        assert_eq!(world.iommu.domain_ids().used_count(), used_count);
        assert_eq!(world.iommu.domain_ids().quarantined_count(), 0);
    }
    Ok(())
}

/// That the tests here can fail: what a guest's driver leaves out is found.
#[test]
fn a_guest_that_tells_nothing_meets_its_own_stale_translations() {
    for has_ats in [false, true] {
        for space in [0, 2] {
            let mut outcomes = Vec::new();
            let complete = forget(space, 0x5000);
            for commands in [&complete[..], &complete[..3], &complete[1..], &[]] {
                let world = World::new(1, has_ats, 4).owned();
                let parent = world.space(1, Version::One);
                let guest = Guest::new(&world, &parent, 100, 0);
                world.map(&parent, MEMORY, PAGE);
                guest.map(&world, space, 0x5000, MEMORY);
                guest.attach(&world, 0, &guest.nest(0, true));
                let place = space as u32;
                world.access(0, place, 0x5000).unwrap();
                guest.unmap(&world, space, 0x5000, commands);
                outcomes.push(world.access(0, place, 0x5000).is_ok());
            }
            assert_eq!(outcomes, [true, !has_ats, false, false], "{space}");
        }
    }
}

/// Two guests with the same domain IDs and PASIDs over one parent: neither is met by what the other translates, nor by
/// its commands.
#[test]
fn guests_of_one_parent_have_nothing_of_each_other() -> Checked {
    for seed in 2..4 {
        let world = world(seed);
        let parent = world.space(1, Version::One);
        let one = Guest::new(&world, &parent, 100, 0);
        let other = Guest::new(&world, &parent, 200, TABLES);
        world.map(&parent, MEMORY, 16 * PAGE);
        one.map(&world, 0, 0x5000, MEMORY);
        other.map(&world, 0, 0x5000, MEMORY + PAGE);
        one.attach(&world, 0, &one.nest(0, true));
        other.attach(&world, 1, &other.nest(0, true));
        let [own, others] = [&one, &other].map(|guest| guest.iommu.domain_id(DOMAIN_IDS[0]));
        assert!(own.is_some() && others.is_some() && own != others);
        for _ in 0..2 {
            assert_eq!(world.access(0, 0, 0x5000)?, Some(0x10_0020_0000));
            assert_eq!(world.access(1, 0, 0x5000)?, Some(0x10_0020_1000));
            one.unmap(&world, 0, 0x5000, &forget(0, 0x5000));
            assert_eq!(world.access(0, 0, 0x5000)?, None);
            one.map(&world, 0, 0x5000, MEMORY);
        }
        // What the parent loses both lose.
        world.unmap(&parent, MEMORY, 16 * PAGE);
        assert_eq!(world.access(0, 0, 0x5000)?, None);
        assert_eq!(world.access(1, 0, 0x5000)?, None);
        world.rig.check_all()?;
    }
    Ok(())
}

/// A3.15, of what is read: the host moves the page in which the guest has its guest CR3 table. What hardware read there
/// goes with the page.
#[test]
fn guest_cr3_entries_go_with_the_page_that_they_were_read_from() -> Checked {
    for seed in 0..4 {
        let world = world(seed);
        let parent = world.space(1, Version::One);
        let guest = Guest::new(&world, &parent, 100, 0);
        world.map(&parent, MEMORY, 16 * PAGE);
        guest.map(&world, 0, 0x5000, MEMORY);
        guest.map(&world, 1, 0x5000, MEMORY + PAGE);
        // A table in which PASID 0 has the tables of 1.
        guest.write_gcr3(&world, PAGE, 0, 1);
        for device in 0..IDS.len() {
            guest.attach(&world, device, &guest.nest(device, true));
            assert_eq!(world.access(device, 0, 0x5000)?, Some(0x10_0020_0000));
        }
        let ledger = world.ledger();
        let page = Guest::page(0x5000);
        ledger.unmap(guest.number, page.clone());
        world.unmap(&parent, GCR3, PAGE);
        ledger.forgotten(guest.number, page.clone());
        let pages = (&guest.pages, PAGE);
        ledger.map(guest.number, page, MEMORY + PAGE, Rights::ALL);
        world.map_to(&parent, GCR3, PAGE, pages, guest.base + PAGE);
        for device in 0..IDS.len() {
            assert_eq!(world.access(device, 0, 0x5000)?, Some(0x10_0020_1000));
        }
        world.rig.check_all()?;
    }
    Ok(())
}

/// The guest changes an entry of its guest CR3 table: it names the device, and all of the PASID.
#[test]
fn a_guest_leads_a_pasid_to_other_tables() -> Checked {
    for seed in 0..4 {
        let world = world(seed);
        let parent = world.space(1, Version::One);
        let guest = Guest::new(&world, &parent, 100, 0);
        world.map(&parent, MEMORY, 16 * PAGE);
        guest.map(&world, 2, 0x5000, MEMORY);
        guest.map(&world, 1, 0x5000, MEMORY + PAGE);
        guest.attach(&world, 0, &guest.nest(0, true));
        assert_eq!(world.access(0, 2, 0x5000)?, Some(0x10_0020_0000));
        let ledger = world.ledger();
        let page = Guest::page(0x5000);
        ledger.unmap(guest.number + 2, page.clone());
        guest.write_gcr3(&world, GCR3, 2, 1);
        let entry = Command::InvalidateDeviceTableEntry { device_id: 0 };
        let mut commands = vec![entry, WAIT];
        commands.extend(DOMAIN_IDS.map(|domain_id| Command::InvalidatePages {
            domain_id,
            pasid: Pasid::new(2),
            has_tables: true,
            span: Span::ALL,
        }));
        commands.push(WAIT);
        commands.extend(forget(2, 0x5000).split_off(3));
        guest.iommu.invalidate(&commands).unwrap();
        ledger.forgotten(guest.number + 2, page.clone());
        ledger.map(guest.number + 2, page, MEMORY + PAGE, Rights::ALL);
        assert_eq!(world.access(0, 2, 0x5000)?, Some(0x10_0020_1000));
        world.rig.check_all()?;
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

/// Law L2 for guests: random lives of two of them over one parent, on devices that the host has between.
#[test]
fn nothing_that_a_guest_or_its_parent_left_is_reached_again() -> Checked {
    for seed in 0..4_u64 {
        let world = world(seed);
        let mut numbers = Numbers(0x51ed_270b ^ seed << 32 | 1);
        let parent = world.space(1, Version::One);
        let host = world.space(2, Version::Two);
        let guests = [
            Guest::new(&world, &parent, 100, 0),
            Guest::new(&world, &parent, 200, TABLES),
        ];
        let used_count = world.iommu.domain_ids().used_count();
        let mut is_mapped = [false; 4];
        let mut leaves = [[[false; 8]; SPACES as usize]; 2];
        for step in 0..100 {
            let device = numbers.below(IDS.len() as u64) as usize;
            let number = numbers.below(2) as usize;
            let guest = &guests[number];
            let (space, slot) = (numbers.below(SPACES), numbers.below(8));
            match numbers.below(12) {
                0..3 => {
                    let nested = guest.nest(device, numbers.below(3) > 0);
                    guest.attach(&world, device, &nested);
                }
                3 => Guest::detach(&world, device, || {
                    let attachment = Attachment::Domain(parent.number);
                    let pass = guest.pass(device);
                    world.attach(device, 0, &pass, attachment).unwrap();
                }),
                4 => Guest::detach(&world, device, || world.detach(device, 0)),
                5 => Guest::detach(&world, device, || world.attach_space(device, 0, &parent)),
                6 => Guest::detach(&world, device, || world.attach_space(device, 0, &host)),
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
                let device = numbers.below(IDS.len() as u64) as usize;
                let place = numbers.below(4) as u32;
                let iova = PAGE * numbers.below(8) + MEMORY * (numbers.below(3) / 2);
                world.access(device, place, iova)?;
            }
            if step % 20 == 0 {
                world.rig.check_all()?;
            }
        }
        for device in 0..IDS.len() {
            Guest::detach(&world, device, || world.detach(device, 0));
        }
        world.rig.check_all()?;
        assert_eq!(world.iommu.domain_ids().used_count(), used_count, "{seed}");
        assert_eq!(world.iommu.domain_ids().quarantined_count(), 0);
    }
    Ok(())
}
