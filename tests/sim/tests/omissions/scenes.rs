//! What was mapped and met, and has just been taken out of the tables: what is missing are commands.

use iopt_sim::{Attachment, Context, Law, Rights};

use crate::machines::{Machine, ROOT, SECOND_ROOT};
use crate::rig::{DEVICE, DOMAIN, Rig, Words};

/// Tables of levels 3, 2 and 1 below the root, for the lowest addresses.
pub(crate) const LEVEL_3: u64 = 0x2000;
pub(crate) const LEVEL_2: u64 = 0x3000;
pub(crate) const LEVEL_1: u64 = 0x4000;
/// The table for the addresses from 4 MiB on.
pub(crate) const OTHER_LEVEL_1: u64 = 0x5000;

const PAGE: u64 = 0x1000;
const BLOCK: u64 = 0x20_0000;
/// Output address less input address, of everything.
pub(crate) const OFFSET: u64 = 0x4000_0000;

/// Pages 1 to 4.
pub(crate) const FOUR_PAGES: std::ops::RangeInclusive<u64> = 0x1000..=0x4fff;
/// A block and four pages, 2 MiB behind each other.
pub(crate) const BLOCK_AND_PAGES: std::ops::RangeInclusive<u64> = 0x20_0000..=0x40_3fff;
/// The block alone.
pub(crate) const ONE_BLOCK: std::ops::RangeInclusive<u64> = 0x20_0000..=0x3f_ffff;

/// Links tables down to level 1.
fn tables(rig: &Rig) {
    let pointer = rig.machine.pointer;
    for table in [ROOT, LEVEL_3, LEVEL_2, LEVEL_1, OTHER_LEVEL_1] {
        rig.ledger.table_allocated(table, PAGE);
        rig.put(table, 0);
    }
    rig.put(ROOT, pointer(LEVEL_3, 3));
    rig.put(LEVEL_3, pointer(LEVEL_2, 2));
    rig.put(LEVEL_2, pointer(LEVEL_1, 1));
    rig.put(LEVEL_2 + 16, pointer(OTHER_LEVEL_1, 1));
}

/// Four pages were mapped, met, and cleared.
pub(crate) fn four_pages(machine: &'static Machine, context: Context) -> Rig {
    let rig = mapped_pages(machine, context);
    clear_pages(&rig);
    rig
}

fn mapped_pages(machine: &'static Machine, context: Context) -> Rig {
    let rig = Rig::new(machine, context);
    tables(&rig);
    map_pages(&rig);
    warm_pages(&rig);
    rig
}

fn map_pages(rig: &Rig) {
    for index in 1..5 {
        let iova = index * PAGE;
        let word = (rig.machine.page)(iova + OFFSET);
        rig.map(LEVEL_1 + 8 * index, word, iova, iova + OFFSET, PAGE);
    }
}

fn warm_pages(rig: &Rig) {
    for index in 1..5 {
        rig.warm(index * PAGE, OFFSET);
    }
}

fn clear_pages(rig: &Rig) {
    rig.ledger.unmap(DOMAIN, FOUR_PAGES);
    for index in 1..5 {
        rig.put(LEVEL_1 + 8 * index, 0);
    }
}

/// The same for a device that keeps translations itself.
pub(crate) fn four_pages_in_device(machine: &'static Machine, context: Context) -> Rig {
    let rig = Rig::new(machine, context);
    rig.iommu.set_device_tlb(DEVICE, true);
    tables(&rig);
    map_pages(&rig);
    warm_pages(&rig);
    clear_pages(&rig);
    rig
}

/// A block and four pages were mapped, met, and cleared.
pub(crate) fn block_and_pages(machine: &'static Machine, context: Context) -> Rig {
    let rig = Rig::new(machine, context);
    tables(&rig);
    rig.map(
        LEVEL_2 + 8,
        (machine.block)(BLOCK + OFFSET),
        BLOCK,
        BLOCK + OFFSET,
        BLOCK,
    );
    for index in 0..4 {
        let iova = 2 * BLOCK + index * PAGE;
        let word = (machine.page)(iova + OFFSET);
        rig.map(OTHER_LEVEL_1 + 8 * index, word, iova, iova + OFFSET, PAGE);
        rig.warm(iova, OFFSET);
    }
    rig.warm(BLOCK + 5 * PAGE, OFFSET);
    rig.ledger.unmap(DOMAIN, BLOCK_AND_PAGES);
    rig.put(LEVEL_2 + 8, 0);
    for index in 0..4 {
        rig.put(OTHER_LEVEL_1 + 8 * index, 0);
    }
    rig
}

/// A block was mapped, met and cleared, although one of its pages alone was asked for.
pub(crate) fn block(machine: &'static Machine, context: Context) -> Rig {
    removed_block(Rig::new(machine, context))
}

/// The same for a device that keeps translations itself.
pub(crate) fn block_in_device(machine: &'static Machine, context: Context) -> Rig {
    let rig = Rig::new(machine, context);
    rig.iommu.set_device_tlb(DEVICE, true);
    removed_block(rig)
}

fn removed_block(rig: Rig) -> Rig {
    let machine = rig.machine;
    tables(&rig);
    rig.map(
        LEVEL_2 + 8,
        (machine.block)(BLOCK + OFFSET),
        BLOCK,
        BLOCK + OFFSET,
        BLOCK,
    );
    rig.warm(BLOCK + 5 * PAGE, OFFSET);
    rig.ledger.unmap(DOMAIN, ONE_BLOCK);
    rig.put(LEVEL_2 + 8, 0);
    rig
}

/// Four pages were mapped, met, and detached with their table.
pub(crate) fn detached_table(machine: &'static Machine, context: Context) -> Rig {
    let rig = four_pages(machine, context);
    rig.put(LEVEL_2, 0);
    rig
}

/// A table became empty, its leaves forgotten with the commands given.
pub(crate) fn empty_table(
    machine: &'static Machine,
    context: Context,
    leaf_only: &[[u64; 2]],
) -> Rig {
    let mut rig = four_pages(machine, context);
    rig.send(leaf_only);
    rig.wait();
    rig.ledger.forgotten(DOMAIN, FOUR_PAGES);
    assert_eq!(rig.law(FOUR_PAGES), None, "the leaves are forgotten");
    rig
}

/// The same, and a block took its place.
pub(crate) fn block_over_table(
    machine: &'static Machine,
    context: Context,
    leaf_only: &[[u64; 2]],
) -> Rig {
    let rig = empty_table(machine, context, leaf_only);
    rig.ledger.map(DOMAIN, 0..=BLOCK - 1, OFFSET, Rights::ALL);
    rig.put(LEVEL_2, (machine.block)(OFFSET));
    rig
}

/// Four pages were asked for in vain, and are mapped now.
pub(crate) fn absent_pages(machine: &'static Machine, context: Context) -> Rig {
    let rig = Rig::new(machine, context);
    tables(&rig);
    rig.put(LEVEL_2, 0);
    for index in 1..5 {
        assert_eq!(rig.read(index * PAGE).expect("nothing is mapped"), None);
    }
    rig.put(LEVEL_2, (machine.pointer)(LEVEL_1, 1));
    for index in 1..5 {
        assert_eq!(rig.read(index * PAGE).expect("nothing is mapped"), None);
    }
    for index in 1..5 {
        let iova = index * PAGE;
        let word = (machine.page)(iova + OFFSET);
        rig.ledger
            .map(DOMAIN, iova..=iova + PAGE - 1, iova + OFFSET, Rights::ALL);
        rig.put(LEVEL_1 + 8 * index, word);
    }
    rig
}

/// The words of one of two stages.
#[derive(Clone, Copy)]
pub(crate) struct Formats {
    pub(crate) pointer: fn(address: u64, level: u64) -> u64,
    pub(crate) page: fn(oa: u64) -> u64,
}

/// A guest's page at `0x1000` goes by two stages to `OFFSET + 0x1000`, was met, and has been cleared in the
/// second one.
///
/// The guest's tables are mapped to themselves by pages of the second stage.
pub(crate) fn guest_page(
    machine: &'static Machine,
    context: Context,
    first: Formats,
    second: Formats,
) -> Rig {
    let rig = Rig::new(machine, context);
    rig.ledger.detach(DEVICE, None);
    rig.ledger.detach_done(DEVICE, None);
    let attachment = Attachment::Nested {
        guest: None,
        parent: DOMAIN,
    };
    rig.ledger.attach(DEVICE, None, attachment);
    let (guest_pointer, guest_page) = (first.pointer, first.page);
    let (pointer, page) = (second.pointer, second.page);
    rig.put(ROOT, guest_pointer(LEVEL_3, 3));
    rig.put(LEVEL_3, guest_pointer(LEVEL_2, 2));
    rig.put(LEVEL_2, guest_pointer(LEVEL_1, 1));
    // Its input address of the second stage.
    rig.put(LEVEL_1 + 8, guest_page(GUEST_PAGE));
    let lower = [
        SECOND_ROOT + 0x4000,
        SECOND_ROOT + 0x5000,
        SECOND_ROOT + 0x6000,
    ];
    rig.put(SECOND_ROOT, pointer(lower[0], 3));
    rig.put(lower[0], pointer(lower[1], 2));
    rig.put(lower[1], pointer(lower[2], 1));
    for table in [ROOT, LEVEL_3, LEVEL_2, LEVEL_1] {
        rig.map(lower[2] + table / 512, page(table), table, table, PAGE);
    }
    let oa = GUEST_PAGE + OFFSET;
    rig.map(GUEST_SLOT, page(oa), GUEST_PAGE, oa, PAGE);
    assert_eq!(rig.read(PAGE).expect("nothing is stale yet"), Some(oa));
    rig.ledger.unmap(DOMAIN, GUEST_PAGE..=GUEST_PAGE + PAGE - 1);
    rig.put(GUEST_SLOT, 0);
    rig
}

/// What the guest maps page 1 to.
pub(crate) const GUEST_PAGE: u64 = 0x9000;
/// Where the second stage has its leaf for that.
pub(crate) const GUEST_SLOT: u64 = SECOND_ROOT + 0x6000 + GUEST_PAGE / 512;

/// Sends commands, frees the table of the four pages and tells which law is broken.
pub(crate) fn law_of_freed(mut rig: Rig, commands: &[Words]) -> Option<Law> {
    rig.send(commands);
    rig.wait();
    rig.ledger.table_freed(LEVEL_1);
    rig.law(FOUR_PAGES)
}

/// Sends commands, takes the four pages for reachable and tells which law is broken.
pub(crate) fn law_of_arrived(mut rig: Rig, commands: &[Words]) -> Option<Law> {
    rig.send(commands);
    rig.wait();
    rig.ledger.map_done(DOMAIN, FOUR_PAGES);
    rig.law(FOUR_PAGES)
}

/// Sends commands, takes the memory of a [`guest_page`] for forgotten and tells which law is broken.
pub(crate) fn law_of_guest(mut rig: Rig, commands: &[Words]) -> Option<Law> {
    rig.send(commands);
    rig.wait();
    rig.ledger
        .forgotten(DOMAIN, GUEST_PAGE..=GUEST_PAGE + PAGE - 1);
    rig.law(PAGE..=2 * PAGE - 1)
}
