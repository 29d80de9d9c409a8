//! VT-d. Words by the Intel VT-d specification, 6.5.2.

use iopt_sim::Law;

use crate::machines::{
    Machine, VTD, VTD_CACHING, VTD_JOINED, VTD_ORDERED, VTD_WORDS, vtd_context, vtd_first_context,
    vtd_nested,
};
use crate::rig::{DEVICE, Words};
use crate::scenes::{
    BLOCK_AND_PAGES, FOUR_PAGES, Formats, GUEST_PAGE, ONE_BLOCK, absent_pages, block,
    block_and_pages, block_over_table, detached_table, four_pages, four_pages_in_device,
    guest_page, law_of_arrived, law_of_freed, law_of_guest,
};

const WAIT: Words = [5, 0];
/// IOTLB, page-selective, domain 9.
const PAGE: u64 = 2 | 3 << 4 | 9 << 16;
/// The same for PASID 5.
const PASID_PAGE: u64 = 6 | 3 << 4 | 9 << 16 | 5 << 32;
const IH: u64 = 1 << 6;
/// Eight pages from 0 on: AM 3.
const EIGHT: u64 = 3;
/// Device TLB, eight pages from 0 on: two ones below the size.
const DEVICE_TLB: Words = [3 | (DEVICE as u64) << 32, 0x3000 | 1];

#[test]
fn a_range_that_is_short_by_a_page_is_caught() {
    let law = |words| four_pages(&VTD, vtd_context()).law_after(&[words, WAIT], FOUR_PAGES);
    assert_eq!(law([PAGE, EIGHT | IH]), None);
    // Four pages from 0 on: page 4 is left.
    assert_eq!(law([PAGE, 2 | IH]), Some(Law::Reach));
    // The domain, everything.
    assert_eq!(law([2 | 2 << 4 | 9 << 16, 0]), None);
    assert_eq!(law([2 | 1 << 4, 0]), None);
}

#[test]
fn another_domain_or_stage_is_caught() {
    let law = |words| four_pages(&VTD, vtd_context()).law_after(&[words, WAIT], FOUR_PAGES);
    assert_eq!(law([2 | 3 << 4 | 8 << 16, EIGHT]), Some(Law::Reach));
    assert_eq!(law([PASID_PAGE, EIGHT]), Some(Law::Reach));
}

/// A first stage: writable, user, accessed.
pub(crate) static FIRST: Machine = Machine {
    pointer: |address, _| address | 0b111,
    page: |oa| oa | 0x27,
    block: |oa| oa | 0xa7,
    ..VTD_WORDS
};

#[test]
fn a_first_stage_is_named_by_its_pasid() {
    let law = |words| four_pages(&FIRST, vtd_first_context()).law_after(&[words, WAIT], FOUR_PAGES);
    assert_eq!(law([PASID_PAGE, EIGHT | IH]), None);
    assert_eq!(law([6 | 2 << 4 | 9 << 16 | 5 << 32, 0]), None);
    assert_eq!(law([6 | 2 << 4 | 9 << 16 | 6 << 32, 0]), Some(Law::Reach));
    assert_eq!(law([PAGE, EIGHT]), Some(Law::Reach));
}

#[test]
fn memory_may_not_be_used_again_before_the_wait() {
    let found = four_pages(&VTD, vtd_context()).law_after(&[[PAGE, EIGHT]], FOUR_PAGES);
    assert_eq!(found, Some(Law::Reach));
}

#[test]
fn any_page_of_a_block_names_it() {
    let law = |words| block(&VTD, vtd_context()).law_after(&[words, WAIT], ONE_BLOCK);
    assert_eq!(law([PAGE, 0x20_5000 | IH]), None);
    assert_eq!(law([PAGE, 0x40_0000 | IH]), Some(Law::Reach));
}

#[test]
fn leaves_of_two_sizes_go_with_one_range() {
    let law = |high| {
        block_and_pages(&VTD, vtd_context()).law_after(&[[PAGE, high | IH], WAIT], BLOCK_AND_PAGES)
    };
    // 8 MiB from 0 on, and 2 MiB alone.
    assert_eq!(law(11), None);
    assert_eq!(law(0x20_0000 | 9), Some(Law::Reach));
}

#[test]
fn a_freed_table_needs_its_pointers_dropped_and_a_wait() {
    let law = |commands: &[Words]| law_of_freed(detached_table(&VTD, vtd_context()), commands);
    assert_eq!(law(&[[PAGE, EIGHT], WAIT]), None);
    assert_eq!(law(&[[PAGE, EIGHT | IH], WAIT]), Some(Law::FreedTable));
    assert_eq!(law(&[[PAGE, EIGHT]]), Some(Law::FreedTable));
}

#[test]
fn a_block_over_an_empty_table_needs_its_pointers_dropped() {
    let law = |commands: &[Words]| {
        let rig = block_over_table(&VTD, vtd_context(), &[[PAGE, EIGHT | IH], WAIT]);
        law_of_freed(rig, commands)
    };
    assert_eq!(law(&[[PAGE, EIGHT], WAIT]), None);
    assert_eq!(law(&[[PAGE, EIGHT | IH], WAIT]), Some(Law::FreedTable));
    assert_eq!(law(&[]), Some(Law::FreedTable));
}

#[test]
fn in_caching_mode_what_comes_has_to_be_told() {
    let law = |machine, commands: &[Words]| {
        let rig = absent_pages(machine, vtd_context());
        law_of_arrived(rig, commands)
    };
    assert_eq!(law(&VTD, &[]), None);
    assert_eq!(law(&VTD_CACHING, &[[PAGE, EIGHT], WAIT]), None);
    assert_eq!(law(&VTD_CACHING, &[]), Some(Law::Missed));
    // Pages 0 to 3 alone.
    assert_eq!(law(&VTD_CACHING, &[[PAGE, 2], WAIT]), Some(Law::Missed));
    // The absence of a table is cached where pointers are.
    assert_eq!(
        law(&VTD_CACHING, &[[PAGE, EIGHT | IH], WAIT]),
        Some(Law::Missed)
    );
}

#[test]
fn the_device_is_told_after_the_iotlb() {
    let law_of = |machine, commands: &[Words]| {
        four_pages_in_device(machine, vtd_context()).law_after(commands, FOUR_PAGES)
    };
    let law = |commands: &[Words]| law_of(&VTD, commands);
    let iotlb = [PAGE, EIGHT | IH];
    assert_eq!(law(&[iotlb, WAIT, DEVICE_TLB, WAIT]), None);
    assert_eq!(law(&[iotlb, WAIT]), Some(Law::Reach));
    assert_eq!(law(&[DEVICE_TLB, WAIT, iotlb, WAIT]), Some(Law::Reach));
    // One wait for both suffices where the hardware waits by itself, but not in any order.
    assert_eq!(law(&[iotlb, DEVICE_TLB, WAIT]), Some(Law::Reach));
    assert_eq!(law_of(&VTD_ORDERED, &[iotlb, DEVICE_TLB, WAIT]), None);
    assert_eq!(
        law_of(&VTD_ORDERED, &[DEVICE_TLB, iotlb, WAIT]),
        Some(Law::Reach)
    );
    // Four pages alone.
    let short = [DEVICE_TLB[0], 0x1000 | 1];
    assert_eq!(law(&[iotlb, WAIT, short, WAIT]), Some(Law::Reach));
}

#[test]
fn a_page_of_the_second_stage_needs_the_combined_entries_dropped() {
    let law_of = |machine, commands: &[Words]| {
        let rig = guest_page(
            machine,
            vtd_nested(),
            Formats {
                pointer: |table, _| table | 0b111,
                page: |oa| oa | 0x27,
            },
            Formats {
                pointer: VTD.pointer,
                page: VTD.page,
            },
        );
        law_of_guest(rig, commands)
    };
    let law = |commands: &[Words]| law_of(&VTD, commands);
    let domain = [2 | 2 << 4 | 9 << 16, 0];
    assert_eq!(law(&[domain, WAIT]), None);
    // The address between the stages, then the PASID.
    let pasid = [6 | 2 << 4 | 9 << 16 | 5 << 32, 0];
    assert_eq!(law(&[[PAGE, GUEST_PAGE], WAIT, pasid, WAIT]), None);
    assert_eq!(law(&[[PAGE, GUEST_PAGE], WAIT]), Some(Law::Reach));
    assert_eq!(law(&[pasid, WAIT]), Some(Law::Reach));
    // The parent's domain alone.
    assert_eq!(law(&[[2 | 2 << 4 | 10 << 16, 0], WAIT]), Some(Law::Reach));
    // Hardware that drops what is combined with it.
    assert_eq!(law_of(&VTD_JOINED, &[[PAGE, GUEST_PAGE], WAIT]), None);
    assert_eq!(law_of(&VTD_JOINED, &[pasid, WAIT]), Some(Law::Reach));
}
