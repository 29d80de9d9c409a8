//! RISC-V. Words by the RISC-V IOMMU specification, "in-memory queue interface".

use iopt_sim::Law;

use crate::machines::{RISCV, RISCV_JOINED, RISCV_NON_LEAF, riscv_context, riscv_nested};
use crate::rig::{DEVICE, DOMAIN, Words};
use crate::scenes::{
    BLOCK_AND_PAGES, FOUR_PAGES, Formats, GUEST_PAGE, LEVEL_1, ONE_BLOCK, absent_pages, block,
    block_and_pages, block_over_table, detached_table, four_pages, four_pages_in_device,
    guest_page, law_of_arrived, law_of_freed, law_of_guest,
};

const FENCE: Words = [2, 0];
const AV: u64 = 1 << 10;
const PSCV: u64 = 1 << 32;
const GV: u64 = 1 << 33;
const NL: u64 = 1 << 34;
/// `IOTINVAL.VMA` of PSCID 5, by address.
const VMA: u64 = 1 | 5 << 12 | PSCV | AV;
/// `IOTINVAL.GVMA` of GSCID 7.
const GVMA: u64 = 1 | 1 << 7 | 7 << 44 | GV;
const S: u64 = 1 << 9;
/// Eight pages from 0 on: a page number with two ones below the size.
const EIGHT: u64 = 0b11 << 10 | S;
/// `ATS.INVAL`, without process id.
const ATS: u64 = 4 | (DEVICE as u64) << 40;

/// An address, as its page number stands in a command.
const fn at(address: u64) -> u64 {
    address >> 12 << 10
}

const PAGES: [Words; 4] = [
    [VMA, at(0x1000)],
    [VMA, at(0x2000)],
    [VMA, at(0x3000)],
    [VMA, at(0x4000)],
];

fn with(commands: &[Words], more: &[Words]) -> Vec<Words> {
    [commands, more].concat()
}

#[test]
fn a_range_that_is_short_by_a_page_is_caught() {
    let law = |commands: &[Words]| {
        let commands = with(commands, &[FENCE]);
        four_pages(&RISCV, riscv_context()).law_after(&commands, FOUR_PAGES)
    };
    assert_eq!(law(&PAGES), None);
    assert_eq!(law(&PAGES[..3]), Some(Law::Reach));
    assert_eq!(law(&[[VMA, EIGHT]]), None);
    // Four pages from 0 on.
    assert_eq!(law(&[[VMA, 1 << 10 | S]]), Some(Law::Reach));
    // The address where it is no page number.
    assert_eq!(law(&[[VMA, 0x7000]]), Some(Law::Reach));
    // The address space, everything without a second stage.
    assert_eq!(law(&[[VMA & !AV, 0]]), None);
    assert_eq!(law(&[[1, 0]]), None);
}

#[test]
fn another_address_space_is_caught() {
    let law = |low| four_pages(&RISCV, riscv_context()).law_after(&[[low, 0], FENCE], FOUR_PAGES);
    assert_eq!(law(1 | 6 << 12 | PSCV), Some(Law::Reach));
    // Contexts with a second stage.
    assert_eq!(law(1 | 5 << 12 | PSCV | GV), Some(Law::Reach));
    assert_eq!(law(GVMA), Some(Law::Reach));
}

#[test]
fn global_pages_need_a_command_without_an_address_space() {
    let law = |low: u64| {
        let mut rig = four_pages(&RISCV, riscv_context());
        rig.send(&[[1, 0], FENCE]);
        rig.wait();
        rig.ledger.forgotten(DOMAIN, FOUR_PAGES);
        let range = 0x8000..=0x8fff;
        rig.map(
            LEVEL_1 + 64,
            (RISCV.page)(0x9000) | 1 << 5,
            0x8000,
            0x9000,
            0x1000,
        );
        rig.warm(0x8000, 0x1000);
        rig.ledger.unmap(DOMAIN, range.clone());
        rig.put(LEVEL_1 + 64, 0);
        rig.law_after(&[[low, 0], FENCE], range)
    };
    assert_eq!(law(1), None);
    assert_eq!(law(1 | 5 << 12 | PSCV), Some(Law::Reach));
}

#[test]
fn memory_may_not_be_used_again_before_the_fence() {
    let found = four_pages(&RISCV, riscv_context()).law_after(&PAGES, FOUR_PAGES);
    assert_eq!(found, Some(Law::Reach));
}

#[test]
fn any_page_of_a_block_names_it() {
    let law = |high| block(&RISCV, riscv_context()).law_after(&[[VMA, high], FENCE], ONE_BLOCK);
    assert_eq!(law(at(0x20_5000)), None);
    assert_eq!(law(at(0x40_0000)), Some(Law::Reach));
}

#[test]
fn leaves_of_two_sizes_go_with_one_range() {
    let law = |high| {
        let commands = [[VMA, high | S], FENCE];
        block_and_pages(&RISCV, riscv_context()).law_after(&commands, BLOCK_AND_PAGES)
    };
    // 8 MiB from 0 on, and 4 MiB.
    assert_eq!(law(0x3ff << 10), None);
    assert_eq!(law(0x1ff << 10), Some(Law::Reach));
}

#[test]
fn a_freed_table_needs_its_pointers_dropped_and_a_fence() {
    let law = |commands: &[Words]| law_of_freed(detached_table(&RISCV, riscv_context()), commands);
    let all = [VMA & !AV, 0];
    assert_eq!(law(&[all, FENCE]), None);
    assert_eq!(law(&with(&PAGES, &[FENCE])), Some(Law::FreedTable));
    assert_eq!(law(&[all]), Some(Law::FreedTable));
    let extended = |words| {
        law_of_freed(
            detached_table(&RISCV_NON_LEAF, riscv_context()),
            &[words, FENCE],
        )
    };
    assert_eq!(extended([VMA | NL, EIGHT]), None);
    assert_eq!(extended([VMA, EIGHT]), Some(Law::FreedTable));
}

#[test]
fn a_block_over_an_empty_table_needs_its_pointers_dropped() {
    let law = |commands: &[Words]| {
        let rig = block_over_table(&RISCV_NON_LEAF, riscv_context(), &with(&PAGES, &[FENCE]));
        law_of_freed(rig, commands)
    };
    assert_eq!(law(&[[VMA | NL, at(0x1000)], FENCE]), None);
    assert_eq!(law(&[[VMA & !AV, 0], FENCE]), None);
    assert_eq!(law(&[[VMA, at(0x1000)], FENCE]), Some(Law::FreedTable));
    assert_eq!(law(&[]), Some(Law::FreedTable));
}

#[test]
fn what_was_absent_is_not_cached() {
    let rig = absent_pages(&RISCV, riscv_context());
    assert_eq!(law_of_arrived(rig, &[]), None);
}

#[test]
fn the_device_is_told_after_the_iotlb() {
    let law = |commands: &[Words]| {
        four_pages_in_device(&RISCV, riscv_context()).law_after(commands, FOUR_PAGES)
    };
    let iotlb = with(&PAGES, &[FENCE]);
    // Eight pages from 0 on.
    let device = [[ATS, 0x3000 | 1 << 11], FENCE];
    assert_eq!(law(&with(&iotlb, &device)), None);
    assert_eq!(law(&iotlb), Some(Law::Reach));
    assert_eq!(law(&with(&device, &iotlb)), Some(Law::Reach));
    assert_eq!(law(&with(&PAGES, &device)), Some(Law::Reach));
    let short = [[ATS, 0x1000 | 1 << 11], FENCE];
    assert_eq!(law(&with(&iotlb, &short)), Some(Law::Reach));
}

#[test]
fn a_page_of_the_second_stage_needs_the_combined_entries_dropped_after_it() {
    let law_of = |machine, commands: &[Words]| {
        let words = || Formats {
            pointer: RISCV.pointer,
            page: RISCV.page,
        };
        let rig = guest_page(machine, riscv_nested(), words(), words());
        law_of_guest(rig, commands)
    };
    let law = |commands: &[Words]| law_of(&RISCV, commands);
    let guest = [GVMA | AV, at(GUEST_PAGE)];
    // Every address space of the guest.
    let vma = [1 | GV | 7 << 44, 0];
    assert_eq!(law(&[guest, FENCE, vma, FENCE]), None);
    assert_eq!(law(&[guest, FENCE]), Some(Law::Reach));
    assert_eq!(law(&[vma, FENCE]), Some(Law::Reach));
    assert_eq!(law(&[guest, FENCE, [1, 0], FENCE]), Some(Law::Reach));
    assert_eq!(law(&[[GVMA, 0], FENCE]), Some(Law::Reach));
    // Where the caches are one, the second stage takes all along.
    assert_eq!(law_of(&RISCV_JOINED, &[guest, FENCE]), None);
    assert_eq!(law_of(&RISCV_JOINED, &[vma, FENCE]), Some(Law::Reach));
}
