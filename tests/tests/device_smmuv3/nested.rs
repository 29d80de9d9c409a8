//! Devices of guests, whose tables the guests write, over a stage 2 of the host.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use iopt::device::Hwpt;
use iopt::device::smmuv3::{GuestSmmu, GuestStream};
use iopt::ioas::Pages;
use iopt::pin::{Firmness, Simulated, Source};
use iopt_formats::armv8::{MAIR, Stage1, TableWalk};
use iopt_formats::command::smmuv3::{AtcSpan, Command, Msi, Signal, Target};
use iopt_formats::context::smmuv3::{Cd, Context};
use iopt_formats::{Iova, Oa, PageSize};
use iopt_rig::Tables;
use iopt_sim::{Attachment, Rights, StaleAccess};

use crate::world::{Queue, STREAMS, Space, World};

type Checked = Result<(), Box<StaleAccess>>;

const PAGE: u64 = 0x1000;

/// The bits of addresses that a guest's tables translate: a root of 16 entries, and one leaf table.
const VA_BITS: u8 = 25;
/// A page that may be read and written, is accessed and not global, of the first attributes.
const LEAF: u64 = 3 | 1 << 6 | 3 << 8 | 1 << 10 | 1 << 11;

/// Bytes of memory that the guest uses for tables, from its address 0 on.
const TABLES: u64 = 0x1_0000;
/// Where it has memory for devices.
const MEMORY: u64 = 0x20_0000;
/// Its CDs; another set of them is one page further.
const CDS: u64 = 0;

/// A guest with one set of tables for each of four address spaces.
struct Guest {
    smmu: GuestSmmu<Tables, Queue>,
    /// In the ledger: what the guest maps without a PASID, and with those that follow.
    number: u64,
    parent: u64,
    /// Where its own tables are, for the host.
    base: u64,
    pages: Arc<Pages>,
}

impl Guest {
    /// Creates a guest in the memory of `parent`, where all guests have their own `window` for tables.
    fn new(world: &World, parent: &Space, number: u64, window: u64) -> Self {
        let base = world.rig.memory().take(PageSize::from_lg2(16)).unwrap();
        let memory = Simulated::new(PageSize::KIB_4, TABLES / PAGE)
            .with_base(base)
            .with_firmness(Firmness::Fixed);
        let guest = Self {
            smmu: GuestSmmu::for_coherent_devices(&world.smmu, &parent.domain).unwrap(),
            number,
            parent: parent.number,
            base: base.get(),
            pages: Pages::new(Arc::new(memory) as Arc<dyn Source>, None),
        };
        for (device, streams) in STREAMS.iter().enumerate() {
            guest.smmu.add_device(device as u32, streams).unwrap();
        }
        // The page of CDs alone, so that it can go alone.
        for (from, len) in [(CDS, PAGE), (PAGE, TABLES - PAGE)] {
            let pages = (&guest.pages, from);
            world.map_to(parent, window + from, len, pages, guest.base + from);
        }
        for space in 0..4 {
            guest.write_cd(world, window, CDS, space, Self::root(space));
            let leaves = window + Self::root(space) + PAGE;
            guest.write(world, Self::root(space), leaves | 3);
        }
        guest
    }

    /// The root of an address space, before its leaf table.
    const fn root(space: u64) -> u64 {
        0x4000 + 2 * PAGE * space
    }

    /// Writes a word of the guest's tables, as its processor does.
    fn write(&self, world: &World, at: u64, word: u64) {
        let at = Oa::new(self.base + at);
        let words = world.rig.memory().words(at, 1).unwrap();
        words[0].store(word.to_le(), Ordering::SeqCst);
    }

    fn write_cd(&self, world: &World, window: u64, cds: u64, space: u64, root: u64) {
        let tcr = Stage1::<12>::new(VA_BITS, 48).unwrap();
        let tcr = tcr.tcr(TableWalk::COHERENT);
        let context = Context::new(tcr, Oa::new(window + root)).unwrap();
        // The guest's ASIDs say nothing to the host.
        let cd = Cd::encode(&context.with_mair(MAIR).with_asid(1 + space as u16));
        for (word, at) in cd.words().iter().zip((0..).step_by(8)) {
            self.write(world, cds + 64 * space + at, *word);
        }
    }

    /// The domain of an STE with 2^4 CDs at `cds`, whose requests without a PASID have that of substream 0.
    fn nest(&self, cds: u64, has_ats: bool) -> Arc<dyn Hwpt> {
        let word_1 = 2 | 1 << 2 | 1 << 4 | 3 << 6 | u64::from(has_ats) << 28;
        let stream = GuestStream::decode([1 | 5 << 1 | cds | 4 << 59, word_1]).unwrap();
        Arc::new(self.smmu.nest(&stream).unwrap())
    }

    fn bypass(&self) -> Arc<dyn Hwpt> {
        Arc::new(self.smmu.nest(&GuestStream::Bypass).unwrap())
    }

    /// Attaches a domain of the guest, and tells the ledger which of its maps that means for each space.
    fn attach(&self, world: &World, device: usize, hwpt: &Arc<dyn Hwpt>) {
        for space in 1..4 {
            for &stream in STREAMS[device] {
                let ledger = world.ledger();
                ledger.detach(stream, Some(space));
                ledger.attach(stream, Some(space), self.attachment(space.into()));
            }
        }
        world
            .attach(device, 0, hwpt, self.attachment(0))
            .unwrap_or_else(|error| panic!("{error}"));
        for space in 1..4 {
            for &stream in STREAMS[device] {
                world.ledger().detach_done(stream, Some(space));
                world.ledger().attach_done(stream, Some(space));
            }
        }
    }

    /// Blocks a device, or attaches what is not the guest's in place of what is.
    fn detach(world: &World, device: usize, change: impl FnOnce()) {
        for space in 1..4 {
            for &stream in STREAMS[device] {
                world.ledger().detach(stream, Some(space));
            }
        }
        change();
        for space in 1..4 {
            for &stream in STREAMS[device] {
                world.ledger().detach_done(stream, Some(space));
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

    fn map(&self, world: &World, space: u64, iova: u64, ipa: u64) {
        let ledger = world.ledger();
        ledger.map(self.number + space, Self::page(iova), ipa, Rights::ALL);
        self.write(
            world,
            Self::root(space) + PAGE + 8 * (iova >> 12),
            ipa | LEAF,
        );
        ledger.map_done(self.number + space, Self::page(iova));
    }

    /// Unmaps a page, and gives the commands of the guest's driver.
    fn unmap(&self, world: &World, space: u64, iova: u64, commands: &[Command]) {
        let ledger = world.ledger();
        ledger.unmap(self.number + space, Self::page(iova));
        self.write(world, Self::root(space) + PAGE + 8 * (iova >> 12), 0);
        self.smmu.invalidate(commands).unwrap();
        ledger.forgotten(self.number + space, Self::page(iova));
    }
}

const SYNC: Command = Command::Sync {
    signal: Signal::None,
    msi: Msi::NONE,
};

/// What a guest's driver sends for a page of an address space.
fn forget(space: u64, iova: u64) -> Vec<Command> {
    let tlb = Command::TlbiNhVa {
        vmid: 0,
        asid: 1 + space as u16,
        target: Target::single(Iova::new(iova), true),
    };
    let devices = (0..STREAMS.len() as u32).map(|stream| Command::AtcInv {
        stream,
        substream: None,
        is_global: false,
        address: Iova::new(iova),
        span: AtcSpan::new(0).unwrap(),
    });
    [tlb, SYNC]
        .into_iter()
        .chain(devices)
        .chain([SYNC])
        .collect()
}

#[test]
fn a_device_of_a_guest_goes_by_its_tables_and_then_the_parents() -> Checked {
    for seed in 0..4 {
        let world = World::new(seed, seed >= 2, 4);
        let parent = world.space(1, 2);
        let guest = Guest::new(&world, &parent, 100, 0);
        let (at, ipa) = (0x5000, MEMORY + 0x7000);
        world.map(&parent, MEMORY, 16 * PAGE);
        guest.map(&world, 0, at, ipa);
        guest.map(&world, 3, at, ipa + PAGE);
        let nested = guest.nest(CDS, true);
        for device in 0..STREAMS.len() {
            guest.attach(&world, device, &nested);
            assert_eq!(world.access(device, 0, at + 0x123)?, Some(0x10_0020_7123));
            // By the guest's own CDs.
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
        // The guest's own stage 1 is off, and the parent's is not; then the host has the device again.
        let device = 1;
        let bypass = guest.bypass();
        Guest::detach(&world, device, || {
            let attachment = Attachment::Domain(parent.number);
            world.attach(device, 0, &bypass, attachment).unwrap();
        });
        assert_eq!(world.access(device, 0, ipa)?, Some(0x10_0020_7000));
        assert_eq!(world.access(device, 0, at + TABLES)?, None);
        assert_eq!(world.access(device, 3, at)?, None);
        guest.attach(&world, device, &nested);
        assert_eq!(world.access(device, 0, at)?, Some(0x10_0020_7000));
        Guest::detach(&world, device, || world.attach_space(device, 0, &parent));
        assert_eq!(world.access(device, 0, ipa)?, Some(0x10_0020_7000));
        guest.attach(&world, device, &nested);
        for device in 0..STREAMS.len() {
            Guest::detach(&world, device, || world.detach(device, 0));
            for space in 0..4 {
                assert_eq!(world.access(device, space, at)?, None);
            }
        }
        world.rig.check_all()?;
        assert_eq!(world.smmu.vmids().used_count(), 0);
        assert_eq!(world.smmu.vmids().quarantined_count(), 0);
        drop(guest);
    }
    Ok(())
}

/// That the tests here can fail: what a guest's driver leaves out is found.
#[test]
fn a_guest_that_tells_nothing_meets_its_own_stale_translations() {
    for has_ats in [false, true] {
        let mut outcomes = Vec::new();
        let complete = forget(0, 0x5000);
        let without_devices = &complete[..2];
        for commands in [&complete[..], without_devices, &[]] {
            let world = World::new(0, has_ats, 4);
            let parent = world.space(1, 2);
            let guest = Guest::new(&world, &parent, 100, 0);
            world.map(&parent, MEMORY, PAGE);
            guest.map(&world, 0, 0x5000, MEMORY);
            guest.attach(&world, 0, &guest.nest(CDS, true));
            world.access(0, 0, 0x5000).unwrap();
            guest.unmap(&world, 0, 0x5000, commands);
            outcomes.push(world.access(0, 0, 0x5000).is_ok());
        }
        assert_eq!(outcomes, [true, !has_ats, false]);
    }
}

/// Two guests with the same ASIDs over one parent: neither is met by what the other translates, nor by its
/// commands.
#[test]
fn guests_of_one_parent_have_nothing_of_each_other() -> Checked {
    for seed in 0..2 {
        let world = World::new(seed, true, 4);
        let parent = world.space(1, 2);
        let one = Guest::new(&world, &parent, 100, 0);
        let other = Guest::new(&world, &parent, 200, TABLES);
        world.map(&parent, MEMORY, 16 * PAGE);
        let domains = [one.nest(CDS, true), other.nest(TABLES + CDS, true)];
        one.map(&world, 0, 0x5000, MEMORY);
        other.map(&world, 0, 0x5000, MEMORY + PAGE);
        one.attach(&world, 0, &domains[0]);
        other.attach(&world, 1, &domains[1]);
        assert_ne!(one.smmu.vmid(), other.smmu.vmid());
        for _ in 0..2 {
            assert_eq!(world.access(0, 0, 0x5000)?, Some(0x10_0020_0000));
            assert_eq!(world.access(1, 0, 0x5000)?, Some(0x10_0020_1000));
            let count = || {
                let statistics = world.rig.iommu().statistics();
                statistics.commands.get("ATC_INV").copied().unwrap_or(0)
            };
            let before = count();
            // Of a device that is the other's now.
            let named = [Command::AtcInv {
                stream: 1,
                substream: None,
                is_global: false,
                address: Iova::new(0),
                span: AtcSpan::ALL,
            }];
            other.smmu.remove_device(1);
            one.smmu.remove_device(1);
            assert!(one.smmu.invalidate(&named).is_err());
            assert_eq!(count(), before);
            one.unmap(&world, 0, 0x5000, &forget_but(1, 0, 0x5000));
            one.map(&world, 0, 0x5000, MEMORY);
            one.smmu.add_device(1, STREAMS[1]).unwrap();
        }
        // What the parent loses both lose.
        world.unmap(&parent, MEMORY, 16 * PAGE);
        assert_eq!(world.access(0, 0, 0x5000)?, None);
        assert_eq!(world.access(1, 0, 0x5000)?, None);
        world.rig.check_all()?;
    }
    Ok(())
}

/// As [`forget`], but for a device that the guest does not have.
fn forget_but(device: u32, space: u64, iova: u64) -> Vec<Command> {
    let mut commands = forget(space, iova);
    commands
        .retain(|command| !matches!(command, Command::AtcInv { stream, .. } if *stream == device));
    commands
}

/// A3.15, of what is read: the host moves the page in which the guest has its CDs. What hardware read there goes with
/// the page.
#[test]
fn descriptors_go_with_the_page_that_they_were_read_from() -> Checked {
    for seed in 0..4 {
        let world = World::new(seed, seed >= 2, 4);
        let parent = world.space(1, 2);
        let guest = Guest::new(&world, &parent, 100, 0);
        world.map(&parent, MEMORY, 16 * PAGE);
        guest.map(&world, 0, 0x5000, MEMORY);
        guest.map(&world, 1, 0x5000, MEMORY + PAGE);
        // CDs in which substream 0 has the tables of 1.
        guest.write_cd(&world, 0, PAGE, 0, Guest::root(1));
        for device in 0..STREAMS.len() {
            guest.attach(&world, device, &guest.nest(CDS, true));
            assert_eq!(world.access(device, 0, 0x5000)?, Some(0x10_0020_0000));
        }
        let ledger = world.ledger();
        ledger.unmap(guest.number, Guest::page(0x5000));
        world.unmap(&parent, CDS, PAGE);
        ledger.forgotten(guest.number, Guest::page(0x5000));
        let pages = (&guest.pages, PAGE);
        ledger.map(
            guest.number,
            Guest::page(0x5000),
            MEMORY + PAGE,
            Rights::ALL,
        );
        world.map_to(&parent, CDS, PAGE, pages, guest.base + PAGE);
        for device in 0..STREAMS.len() {
            // The simulated hardware may remember that there was none.
            let reached = world.access(device, 0, 0x5000)?;
            assert!(matches!(reached, None | Some(0x10_0020_1000)));
        }
        let streams = 0..STREAMS.len() as u32;
        let read = streams.map(|stream| Command::CfgiCdAll {
            stream,
            is_secure: false,
        });
        let read: Vec<_> = read.collect();
        guest.smmu.invalidate(&read).unwrap();
        for device in 0..STREAMS.len() {
            assert_eq!(world.access(device, 0, 0x5000)?, Some(0x10_0020_1000));
        }
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
    for seed in 0..3_u64 {
        let world = World::new(seed, seed % 3 != 0, 4);
        let mut numbers = Numbers(0x51ed_270b ^ seed << 32 | 1);
        let parent = world.space(1, 2);
        let host = world.space(2, 1);
        let guests = [
            Guest::new(&world, &parent, 100, 0),
            Guest::new(&world, &parent, 200, TABLES),
        ];
        let of = |guest: &Guest, has_ats| {
            let window = if guest.number == 100 { 0 } else { TABLES };
            guest.nest(window + CDS, has_ats)
        };
        let mut is_mapped = [false; 4];
        let mut leaves = [[[false; 8]; 4]; 2];
        for step in 0..200 {
            let device = numbers.below(STREAMS.len() as u64) as usize;
            let number = numbers.below(2) as usize;
            let guest = &guests[number];
            let (space, slot) = (numbers.below(4), numbers.below(8));
            match numbers.below(12) {
                0..3 => guest.attach(&world, device, &of(guest, numbers.below(3) > 0)),
                3 => Guest::detach(&world, device, || {
                    let attachment = Attachment::Domain(parent.number);
                    world
                        .attach(device, 0, &guest.bypass(), attachment)
                        .unwrap();
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
                let device = numbers.below(STREAMS.len() as u64) as usize;
                let place = numbers.below(4) as u32;
                let iova = PAGE * numbers.below(8) + MEMORY * (numbers.below(3) / 2);
                world.access(device, place, iova)?;
            }
            if step % 20 == 0 {
                world.rig.check_all()?;
            }
        }
        for device in 0..STREAMS.len() {
            Guest::detach(&world, device, || world.detach(device, 0));
        }
        world.rig.check_all()?;
        assert_eq!(world.smmu.vmids().used_count(), 0, "{seed}");
        assert_eq!(world.smmu.vmids().quarantined_count(), 0);
    }
    Ok(())
}
