//! Devices of guests, whose tables the guests write, over a second stage of the host.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use iopt::device::Hwpt;
use iopt::device::riscv::{GuestContext, GuestIommu};
use iopt::ioas::Pages;
use iopt::pin::{Firmness, Simulated, Source};
use iopt_formats::command::riscv::{Command, Function, Target};
use iopt_formats::command::{Narrow, Pasid, Span};
use iopt_formats::{Oa, PageSize};
use iopt_rig::Tables;
use iopt_sim::{Attachment, Rights, StaleAccess};

use crate::world::{DEVICE_COUNT, Kind, Queue, Space, World};

type Checked = Result<(), Box<StaleAccess>>;

const PAGE: u64 = 0x1000;

/// V; and of a page that may be read and written by users, and was accessed and written.
const TABLE: u64 = 1;
const LEAF: u64 = 0xd7;

/// Bytes of memory that a guest uses for tables, and where it has memory for devices.
const TABLES: u64 = 0x2_0000;
const MEMORY: u64 = 0x20_0000;
/// Address spaces of a guest: with PASIDs from 1 on, and without.
const SPACES: u64 = 4;
/// Its process directory of one level; another one is one page further, and the page tables come then.
const DIRECTORY: u64 = 0;

/// A guest with one set of tables for each of its address spaces.
struct Guest {
    iommu: GuestIommu<Tables, Queue>,
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
            iommu: GuestIommu::new(&world.unit, &parent.domain).unwrap(),
            number,
            parent: parent.number,
            window,
            base: base.get(),
            pages: Pages::new(Arc::new(memory) as Arc<dyn Source>, None),
        };
        for (device, ids) in world.ids.iter().enumerate() {
            guest.iommu.add_device(device as u32, ids).unwrap();
        }
        // The page of the process directory alone, so that it can go alone.
        for (from, len) in [(DIRECTORY, PAGE), (PAGE, TABLES - PAGE)] {
            let pages = (&guest.pages, from);
            world.map_to(parent, window + from, len, pages, guest.base + from);
        }
        for space in 0..SPACES {
            guest.write_process(world, DIRECTORY, space, space);
            for level in 0..2 {
                let table = Self::root(space) + PAGE * level;
                guest.write(world, table, (window + table + PAGE) >> 2 | TABLE);
            }
        }
        guest
    }

    /// The first of three tables, one of each level.
    const fn root(space: u64) -> u64 {
        2 * PAGE + 3 * PAGE * space
    }

    /// Writes a word of the guest's tables, as its processor does.
    fn write(&self, world: &World, at: u64, word: u64) {
        let words = world.rig.memory().words(Oa::new(self.base + at), 1);
        words.unwrap()[0].store(word.to_le(), Ordering::SeqCst);
    }

    /// Makes the context of a process in a directory lead to the tables of a space.
    fn write_process(&self, world: &World, directory: u64, process: u64, space: u64) {
        let at = directory + 16 * process;
        // The guest's PSCIDs say nothing to the host.
        self.write(world, at, 1 | (1 + space) << 12);
        let root = self.window + Self::root(space);
        self.write(world, at + 8, 8 << 60 | root >> 12);
    }

    /// The domain of a device that has the process directory, and process 0 for requests without a PASID.
    fn nest(&self, world: &World, has_ats: bool) -> Arc<dyn Hwpt> {
        let tc = 1 | u64::from(has_ats) << 1 | 1 << 5 | 1 << 9;
        let pdtp = 1 << 60 | (self.window + DIRECTORY) >> 12;
        self.domain(world, [tc, 0, 0, pdtp, 0, 0, 0, 0])
    }

    /// That of one whose requests have addresses of the guest's memory.
    fn pass(&self, world: &World) -> Arc<dyn Hwpt> {
        self.domain(world, [3, 0, 0, 0, 0, 0, 0, 0])
    }

    fn domain(&self, world: &World, words: [u64; 8]) -> Arc<dyn Hwpt> {
        let context = GuestContext::decode(words, world.unit.features()).unwrap();
        Arc::new(self.iommu.nest(&context).unwrap())
    }

    /// Attaches a domain of the guest, and tells the ledger which of its maps that means for each space.
    fn attach(&self, world: &World, device: usize, hwpt: &Arc<dyn Hwpt>) {
        for space in 1..SPACES as u32 {
            for &id in &world.ids[device] {
                let ledger = world.ledger();
                ledger.detach(id, Some(space));
                ledger.attach(id, Some(space), self.attachment(space.into()));
            }
        }
        let attached = world.attach(device, 0, hwpt, self.attachment(0));
        attached.unwrap();
        for space in 1..SPACES as u32 {
            for &id in &world.ids[device] {
                world.ledger().detach_done(id, Some(space));
                world.ledger().attach_done(id, Some(space));
            }
        }
    }

    /// Blocks a device, or attaches what is not the guest's in place of what is.
    fn detach(world: &World, device: usize, change: impl FnOnce()) {
        for space in 1..SPACES as u32 {
            for &id in &world.ids[device] {
                world.ledger().detach(id, Some(space));
            }
        }
        change();
        for space in 1..SPACES as u32 {
            for &id in &world.ids[device] {
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
        Self::root(space) + 2 * PAGE + 8 * (iova >> 12)
    }

    fn map(&self, world: &World, space: u64, iova: u64, ipa: u64) {
        let ledger = world.ledger();
        ledger.map(self.number + space, Self::page(iova), ipa, Rights::ALL);
        self.write(world, Self::leaf(space, iova), ipa >> 2 | LEAF);
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

const FENCE: Command = Command::IofenceC {
    store: None,
    has_interrupt: false,
    has_read_order: false,
    has_write_order: false,
};

/// What a guest's driver sends for a page of an address space.
fn forget(space: u64, iova: u64) -> Vec<Command> {
    let span = Span::new(iova, 0).unwrap();
    let tlb = Command::IotinvalVma {
        gscid: None,
        pscid: Narrow::new(1 + space as u32),
        target: Some(Target {
            span,
            is_leaf: true,
        }),
    };
    let devices = (0..DEVICE_COUNT as u16).map(|requester| Command::AtsInval {
        function: Function {
            segment: None,
            requester,
        },
        pasid: Pasid::new(space as u32).filter(|_| space > 0),
        is_global: false,
        span,
    });
    [tlb, FENCE]
        .into_iter()
        .chain(devices)
        .chain([FENCE])
        .collect()
}

/// What it sends for a process context of all devices.
fn read_again(process: u32) -> Vec<Command> {
    let device = |device| Command::IodirInvalPdt {
        device: Narrow::new(device).unwrap(),
        process: Pasid::new(process).unwrap(),
    };
    (0..DEVICE_COUNT as u32)
        .map(device)
        .chain([FENCE])
        .collect()
}

/// With process directories of one level.
fn kind(seed: u64) -> Kind {
    Kind {
        process_levels: 1,
        ..Kind::new(seed, seed % 4 >= 2)
    }
}

#[test]
fn a_device_of_a_guest_goes_by_its_tables_and_then_the_parents() -> Checked {
    for seed in 0..4 {
        let world = World::owned(kind(seed));
        let parent = world.space(1, 2);
        let guest = Guest::new(&world, &parent, 100, 0);
        let (at, ipa) = (0x5000, MEMORY + 0x7000);
        world.map(&parent, MEMORY, 16 * PAGE);
        guest.map(&world, 0, at, ipa);
        guest.map(&world, 3, at, ipa + PAGE);
        for device in 0..DEVICE_COUNT {
            guest.attach(&world, device, &guest.nest(&world, true));
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
            let pass = guest.pass(&world);
            world.attach(device, 0, &pass, attachment).unwrap();
        });
        assert_eq!(world.access(device, 0, ipa)?, Some(0x10_0020_7000));
        assert_eq!(world.access(device, 0, at + TABLES)?, None);
        assert_eq!(world.access(device, 3, at)?, None);
        guest.attach(&world, device, &guest.nest(&world, true));
        assert_eq!(world.access(device, 0, at)?, Some(0x10_0020_7000));
        Guest::detach(&world, device, || world.attach_space(device, 0, &parent));
        assert_eq!(world.access(device, 0, ipa)?, Some(0x10_0020_7000));
        guest.attach(&world, device, &guest.nest(&world, false));
        assert_eq!(world.access(device, 0, at)?, Some(0x10_0020_7000));
        for device in 0..DEVICE_COUNT {
            Guest::detach(&world, device, || world.detach(device, 0));
            for space in 0..4 {
                assert_eq!(world.access(device, space, at)?, None);
            }
        }
        world.rig.check_all()?;
        assert_eq!(world.unit.gscids().used_count(), 0);
        assert_eq!(world.unit.gscids().quarantined_count(), 0);
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
            for commands in [&complete[..], &complete[..2], &complete[1..], &[]] {
                let world = World::owned(Kind { has_ats, ..kind(1) });
                let parent = world.space(1, 2);
                let guest = Guest::new(&world, &parent, 100, 0);
                world.map(&parent, MEMORY, PAGE);
                guest.map(&world, space, 0x5000, MEMORY);
                guest.attach(&world, 0, &guest.nest(&world, true));
                let place = space as u32;
                world.access(0, place, 0x5000).unwrap();
                guest.unmap(&world, space, 0x5000, commands);
                outcomes.push(world.access(0, place, 0x5000).is_ok());
            }
            assert_eq!(outcomes, [true, !has_ats, false, false], "{space}");
        }
    }
}

/// Two guests with the same PSCIDs over one parent: neither is met by what the other translates, nor by its commands.
#[test]
fn guests_of_one_parent_have_nothing_of_each_other() -> Checked {
    for seed in 2..4 {
        let world = World::owned(kind(seed));
        let parent = world.space(1, 2);
        let one = Guest::new(&world, &parent, 100, 0);
        let other = Guest::new(&world, &parent, 200, TABLES);
        world.map(&parent, MEMORY, 16 * PAGE);
        one.map(&world, 0, 0x5000, MEMORY);
        other.map(&world, 0, 0x5000, MEMORY + PAGE);
        one.attach(&world, 0, &one.nest(&world, true));
        other.attach(&world, 1, &other.nest(&world, true));
        let [own, others] = [&one, &other].map(|guest| guest.iommu.gscid());
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

/// A3.15, of what is read: the host moves the page in which the guest has its process directory. What hardware read
/// there goes with the page.
#[test]
fn process_contexts_go_with_the_page_that_they_were_read_from() -> Checked {
    for seed in 0..4 {
        let world = World::owned(kind(seed));
        let parent = world.space(1, 2);
        let guest = Guest::new(&world, &parent, 100, 0);
        world.map(&parent, MEMORY, 16 * PAGE);
        guest.map(&world, 0, 0x5000, MEMORY);
        guest.map(&world, 1, 0x5000, MEMORY + PAGE);
        // A directory in which process 0 has the tables of 1.
        guest.write_process(&world, PAGE, 0, 1);
        for device in 0..DEVICE_COUNT {
            guest.attach(&world, device, &guest.nest(&world, true));
            assert_eq!(world.access(device, 0, 0x5000)?, Some(0x10_0020_0000));
        }
        let ledger = world.ledger();
        let page = Guest::page(0x5000);
        ledger.unmap(guest.number, page.clone());
        world.unmap(&parent, DIRECTORY, PAGE);
        ledger.forgotten(guest.number, page.clone());
        let pages = (&guest.pages, PAGE);
        ledger.map(guest.number, page, MEMORY + PAGE, Rights::ALL);
        world.map_to(&parent, DIRECTORY, PAGE, pages, guest.base + PAGE);
        for device in 0..DEVICE_COUNT {
            assert_eq!(world.access(device, 0, 0x5000)?, Some(0x10_0020_1000));
        }
        world.rig.check_all()?;
    }
    Ok(())
}

/// The guest changes a context in its process directory: it names the devices, and all of the old PSCID.
#[test]
fn a_guest_leads_a_pasid_to_other_tables() -> Checked {
    for seed in 0..4 {
        let world = World::owned(kind(seed));
        let parent = world.space(1, 2);
        let guest = Guest::new(&world, &parent, 100, 0);
        world.map(&parent, MEMORY, 16 * PAGE);
        guest.map(&world, 2, 0x5000, MEMORY);
        guest.map(&world, 1, 0x5000, MEMORY + PAGE);
        guest.attach(&world, 0, &guest.nest(&world, true));
        assert_eq!(world.access(0, 2, 0x5000)?, Some(0x10_0020_0000));
        let ledger = world.ledger();
        let page = Guest::page(0x5000);
        ledger.unmap(guest.number + 2, page.clone());
        guest.write_process(&world, DIRECTORY, 2, 1);
        let mut commands = read_again(2);
        commands.push(Command::IotinvalVma {
            gscid: None,
            pscid: Narrow::new(3),
            target: None,
        });
        commands.push(FENCE);
        commands.extend(forget(2, 0x5000).split_off(2));
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
        let world = World::owned(kind(seed));
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
            let device = numbers.below(DEVICE_COUNT as u64) as usize;
            let number = numbers.below(2) as usize;
            let guest = &guests[number];
            let (space, slot) = (numbers.below(SPACES), numbers.below(8));
            match numbers.below(12) {
                0..3 => {
                    let nested = guest.nest(&world, numbers.below(3) > 0);
                    guest.attach(&world, device, &nested);
                }
                3 => Guest::detach(&world, device, || {
                    let attachment = Attachment::Domain(parent.number);
                    let pass = guest.pass(&world);
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
                let device = numbers.below(DEVICE_COUNT as u64) as usize;
                let place = numbers.below(4) as u32;
                let iova = PAGE * numbers.below(8) + MEMORY * (numbers.below(3) / 2);
                world.access(device, place, iova)?;
            }
            if step % 20 == 0 {
                world.rig.check_all()?;
            }
        }
        for device in 0..DEVICE_COUNT {
            Guest::detach(&world, device, || world.detach(device, 0));
        }
        world.rig.check_all()?;
        assert_eq!(world.unit.gscids().used_count(), 0, "{seed}");
        assert_eq!(world.unit.gscids().quarantined_count(), 0);
    }
    Ok(())
}
