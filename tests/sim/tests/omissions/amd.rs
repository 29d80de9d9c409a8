//! AMD-Vi. Words by AMD 48882, 2.4.

use iopt_sim::Law;

use crate::machines::{
    AMD, AMD_ABSENT, AMD_WORDS, Machine, amd_context, amd_guest_context, amd_nested,
};
use crate::rig::{DEVICE, Words};
use crate::scenes::{
    BLOCK_AND_PAGES, FOUR_PAGES, Formats, GUEST_PAGE, ONE_BLOCK, absent_pages, block,
    block_and_pages, block_over_table, detached_table, four_pages, four_pages_in_device,
    guest_page, law_of_arrived, law_of_freed, law_of_guest,
};

const WAIT: Words = [1 << 60, 0];
/// `INVALIDATE_IOMMU_PAGES`, domain 9.
const PAGES: u64 = 3 << 60 | 9 << 32;
const S: u64 = 1;
const PDE: u64 = 2;
const GN: u64 = 4;
/// Eight pages from 0 on: two ones below the size.
const EIGHT: u64 = 0x3000 | S;
/// 4 MiB from 0 on.
const FOUR_MIB: u64 = 0x1f_f000 | S;
/// 8 MiB from 0 on.
const EIGHT_MIB: u64 = 0x3f_f000 | S;
const EVERYTHING: u64 = 0x7fff_ffff_ffff_f000 | S;
/// `INVALIDATE_IOTLB_PAGES`.
const DEVICE_TLB: u64 = 4 << 60 | (DEVICE as u64) << 32 | DEVICE as u64;

#[test]
fn a_range_that_is_short_by_a_page_is_caught() {
    let law = |words| four_pages(&AMD, amd_context()).law_after(&[words, WAIT], FOUR_PAGES);
    assert_eq!(law([PAGES, EIGHT]), None);
    // Four pages from 0 on, and one.
    assert_eq!(law([PAGES, 0x1000 | S]), Some(Law::Reach));
    assert_eq!(law([PAGES, 0x1000]), Some(Law::Reach));
    assert_eq!(law([PAGES, EVERYTHING]), None);
    assert_eq!(law([8 << 60, 0]), None);
}

#[test]
fn another_domain_or_stage_is_caught() {
    let law = |words| four_pages(&AMD, amd_context()).law_after(&[words, WAIT], FOUR_PAGES);
    assert_eq!(law([3 << 60 | 8 << 32, EVERYTHING]), Some(Law::Reach));
    assert_eq!(law([PAGES, EIGHT | GN]), Some(Law::Reach));
}

/// A guest table: writable, user, accessed.
static GUEST: Machine = Machine {
    pointer: |address, _| address | 0b111,
    page: |oa| oa | 0x27,
    block: |oa| oa | 0xa7,
    ..AMD_WORDS
};

#[test]
fn a_guest_table_is_named_by_its_pasid() {
    let law = |words| four_pages(&GUEST, amd_guest_context()).law_after(&[words, WAIT], FOUR_PAGES);
    assert_eq!(law([PAGES | 5, EIGHT | GN]), None);
    assert_eq!(law([PAGES | 6, EIGHT | GN]), Some(Law::Reach));
    assert_eq!(law([PAGES, EIGHT]), Some(Law::Reach));
}

#[test]
fn memory_may_not_be_used_again_before_the_wait() {
    let found = four_pages(&AMD, amd_context()).law_after(&[[PAGES, EIGHT]], FOUR_PAGES);
    assert_eq!(found, Some(Law::Reach));
}

#[test]
fn a_block_needs_a_command_of_its_size() {
    let law = |high| block(&AMD, amd_context()).law_after(&[[PAGES, high], WAIT], ONE_BLOCK);
    assert_eq!(law(FOUR_MIB), None);
    // 2 MiB at 2 MiB, one page, and 1 MiB.
    assert_eq!(law(0x2f_f000 | S), None);
    assert_eq!(law(0x20_5000), Some(Law::Reach));
    assert_eq!(law(0x27_f000 | S), Some(Law::Reach));
}

#[test]
fn leaves_of_two_sizes_go_with_a_command_of_the_larger() {
    let law = |commands: &[Words]| {
        block_and_pages(&AMD, amd_context()).law_after(commands, BLOCK_AND_PAGES)
    };
    assert_eq!(law(&[[PAGES, EIGHT_MIB], WAIT]), None);
    assert_eq!(law(&[[PAGES, FOUR_MIB], WAIT]), Some(Law::Reach));
}

#[test]
fn a_freed_table_needs_its_pointers_dropped_and_a_wait() {
    let law = |commands: &[Words]| law_of_freed(detached_table(&AMD, amd_context()), commands);
    assert_eq!(law(&[[PAGES, FOUR_MIB | PDE], WAIT]), None);
    assert_eq!(law(&[[PAGES, FOUR_MIB], WAIT]), Some(Law::FreedTable));
    // The pointer is for 2 MiB.
    assert_eq!(law(&[[PAGES, EIGHT | PDE], WAIT]), Some(Law::FreedTable));
    assert_eq!(law(&[[PAGES, FOUR_MIB | PDE]]), Some(Law::FreedTable));
}

#[test]
fn a_block_over_an_empty_table_needs_its_pointers_dropped() {
    let law = |commands: &[Words]| {
        let rig = block_over_table(&AMD, amd_context(), &[[PAGES, EIGHT], WAIT]);
        law_of_freed(rig, commands)
    };
    assert_eq!(law(&[[PAGES, FOUR_MIB | PDE], WAIT]), None);
    assert_eq!(law(&[[PAGES, FOUR_MIB], WAIT]), Some(Law::FreedTable));
    assert_eq!(law(&[]), Some(Law::FreedTable));
}

#[test]
fn hardware_that_caches_what_is_absent_has_to_be_told_what_comes() {
    let law = |machine, commands: &[Words]| {
        let rig = absent_pages(machine, amd_context());
        law_of_arrived(rig, commands)
    };
    assert_eq!(law(&AMD, &[]), None);
    assert_eq!(law(&AMD_ABSENT, &[[PAGES, EIGHT], WAIT]), None);
    assert_eq!(law(&AMD_ABSENT, &[]), Some(Law::Missed));
    assert_eq!(
        law(&AMD_ABSENT, &[[PAGES, 0x1000 | S], WAIT]),
        Some(Law::Missed)
    );
}

#[test]
fn the_device_is_told_after_the_iotlb() {
    let law = |commands: &[Words]| {
        four_pages_in_device(&AMD, amd_context()).law_after(commands, FOUR_PAGES)
    };
    let (iotlb, device) = ([PAGES, EIGHT], [DEVICE_TLB, EIGHT]);
    assert_eq!(law(&[iotlb, WAIT, device, WAIT]), None);
    assert_eq!(law(&[iotlb, WAIT]), Some(Law::Reach));
    assert_eq!(law(&[device, WAIT, iotlb, WAIT]), Some(Law::Reach));
    assert_eq!(
        law(&[iotlb, WAIT, [DEVICE_TLB, 0x1000 | S], WAIT]),
        Some(Law::Reach)
    );
}

#[test]
fn a_page_of_the_host_table_needs_the_combined_entries_dropped() {
    let law = |commands: &[Words]| {
        let rig = guest_page(
            &AMD,
            amd_nested(),
            Formats {
                pointer: |table, _| table | 0b111,
                page: |oa| oa | 0x27,
            },
            Formats {
                pointer: AMD.pointer,
                page: AMD.page,
            },
        );
        law_of_guest(rig, commands)
    };
    assert_eq!(law(&[[PAGES, EVERYTHING | PDE], WAIT]), None);
    assert_eq!(law(&[[PAGES, GUEST_PAGE], WAIT]), Some(Law::Reach));
    let guest = [PAGES | 5, EVERYTHING | PDE | GN];
    assert_eq!(law(&[guest, WAIT]), Some(Law::Reach));
    assert_eq!(law(&[[PAGES, GUEST_PAGE], WAIT, guest, WAIT]), None);
}
