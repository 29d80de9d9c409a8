//! SMMUv3. Words by Arm IHI 0070, 4.3 to 4.5.

use iopt_sim::Law;

use crate::machines::{SMMU, SMMU_ERRATUM, SMMU_RANGES, smmu_context, smmu_nested};
use crate::rig::{DEVICE, DOMAIN, Rig, Words};
use crate::scenes::{
    BLOCK_AND_PAGES, FOUR_PAGES, Formats, GUEST_PAGE, GUEST_SLOT, LEVEL_1, LEVEL_2, OFFSET,
    ONE_BLOCK, absent_pages, block, block_and_pages, block_in_device, block_over_table,
    detached_table, empty_table, four_pages, four_pages_in_device, guest_page, law_of_arrived,
    law_of_freed, law_of_guest,
};

const SYNC: Words = [0x46, 0];
/// `TLBI_NH_VA`, VMID 0, ASID 5.
const NH_VA: u64 = 0x12 | 5 << 48;
const LEAF: u64 = 1;
/// TG: granules of 4 KiB.
const TG: u64 = 1 << 10;
/// TTL: leaves of level 3, and of level 2.
const TTL_3: u64 = 3 << 8;
const TTL_2: u64 = 2 << 8;
/// `ATC_INV` of 16 KiB at 0 and at 16 KiB: page 4 lies in the second.
const ATC: [Words; 2] = [
    [0x40 | (DEVICE as u64) << 32, 2],
    [0x40 | (DEVICE as u64) << 32, 0x4000 | 2],
];
/// The four pages one by one, leaves only.
const PAGES: [Words; 4] = [
    [NH_VA, 0x1000 | LEAF],
    [NH_VA, 0x2000 | LEAF],
    [NH_VA, 0x3000 | LEAF],
    [NH_VA, 0x4000 | LEAF],
];

fn with(commands: &[Words], more: &[Words]) -> Vec<Words> {
    [commands, more].concat()
}

#[test]
fn each_page_has_to_be_named() {
    let law = |commands: &[Words]| {
        four_pages(&SMMU, smmu_context()).law_after(&with(commands, &[SYNC]), FOUR_PAGES)
    };
    assert_eq!(law(&PAGES), None);
    assert_eq!(law(&PAGES[..3]), Some(Law::Reach));
    assert_eq!(law(&PAGES[1..]), Some(Law::Reach));
    // By ASID, by VMID, everything.
    assert_eq!(law(&[[0x11 | 5 << 48, 0]]), None);
    assert_eq!(law(&[[0x10, 0]]), None);
    assert_eq!(law(&[[0x30, 0]]), None);
}

#[test]
fn a_range_that_is_short_by_a_page_is_caught() {
    let law =
        |words| four_pages(&SMMU_RANGES, smmu_context()).law_after(&[words, SYNC], FOUR_PAGES);
    let range = |num: u64| [NH_VA | num << 12, 0x1000 | TG | TTL_3 | LEAF];
    assert_eq!(law(range(3)), None);
    assert_eq!(law(range(2)), Some(Law::Reach));
    // 2^2 granules with SCALE.
    assert_eq!(law([NH_VA | 2 << 20, 0x1000 | TG | LEAF]), None);
    // Another granule, 16 KiB, without and with a level.
    assert_eq!(law([NH_VA | 1 << 12, 2 << 10 | LEAF]), Some(Law::Reach));
    assert_eq!(
        law([NH_VA | 1 << 12, 2 << 10 | TTL_3 | LEAF]),
        Some(Law::Reach)
    );
}

#[test]
fn another_address_space_is_caught() {
    for (asid, vmid, law) in [
        (5, 0, None),
        (6, 0, Some(Law::Reach)),
        (5, 1, Some(Law::Reach)),
    ] {
        let words = [0x11 | asid << 48 | vmid << 32, 0];
        let found = four_pages(&SMMU, smmu_context()).law_after(&[words, SYNC], FOUR_PAGES);
        assert_eq!(found, law, "ASID {asid}, VMID {vmid}");
    }
}

#[test]
fn memory_may_not_be_used_again_before_the_sync() {
    let found = four_pages(&SMMU, smmu_context()).law_after(&PAGES, FOUR_PAGES);
    assert_eq!(found, Some(Law::Reach));
}

#[test]
fn commands_before_the_store_that_they_are_for_are_caught() {
    let mut rig = four_pages(&SMMU, smmu_context());
    let word = (SMMU.page)(0x4000_1000);
    rig.put(LEVEL_1 + 8, word);
    rig.send(&PAGES);
    rig.put(LEVEL_1 + 8, 0);
    assert_eq!(rig.law_after(&[SYNC], FOUR_PAGES), Some(Law::Reach));
}

#[test]
fn a_command_for_a_pointer_before_the_store_that_clears_it_is_caught() {
    let law = |is_early: bool| {
        let mut rig = empty_table(&SMMU, smmu_context(), &with(&PAGES, &[SYNC]));
        let command = [[NH_VA, 0x1000]];
        if is_early {
            rig.send(&command);
        }
        rig.put(LEVEL_2, 0);
        if !is_early {
            rig.send(&command);
        }
        law_of_freed(rig, &[SYNC])
    };
    assert_eq!(law(false), None);
    assert_eq!(law(true), Some(Law::FreedTable));
}

#[test]
fn a_walk_through_a_dropped_pointer_leaves_what_the_command_does_not_name() {
    let mut rig = four_pages(&SMMU, smmu_context());
    rig.send(&[[0x30, 0], SYNC]);
    rig.wait();
    rig.ledger.forgotten(DOMAIN, FOUR_PAGES);
    for page in [1, 2] {
        let oa = OFFSET + page * 0x1000;
        rig.map(
            LEVEL_1 + 8 * page,
            (SMMU.page)(oa),
            page * 0x1000,
            oa,
            0x1000,
        );
    }
    rig.warm(0x1000, OFFSET);
    // The table is detached with its leaves, one of which nobody has met.
    rig.ledger.unmap(DOMAIN, FOUR_PAGES);
    rig.put(LEVEL_2, 0);
    rig.send(&[[NH_VA, 0x1000]]);
    rig.read(0x2000).expect("the command may be late");
    assert_eq!(rig.law_after(&[SYNC], FOUR_PAGES), Some(Law::Reach));
}

/// 512 granules at 2 MiB, and 512 that end with the fourth page.
fn mixed(hint: u64) -> [Words; 2] {
    let low = NH_VA | 31 << 12 | 4 << 20;
    [
        [low, 0x20_0000 | TG | hint | LEAF],
        [low, 0x20_4000 | TG | hint | LEAF],
    ]
}

#[test]
fn a_level_hint_on_leaves_of_two_levels_is_caught() {
    let law = |hint| {
        let commands = with(&mixed(hint), &[SYNC]);
        block_and_pages(&SMMU_RANGES, smmu_context()).law_after(&commands, BLOCK_AND_PAGES)
    };
    assert_eq!(law(0), None);
    assert_eq!(law(TTL_3), Some(Law::Reach));
    assert_eq!(law(TTL_2), Some(Law::Reach));
}

#[test]
fn a_page_of_a_block_names_the_block_unless_a_level_is_hinted_at() {
    let law =
        |words: Words| block(&SMMU_RANGES, smmu_context()).law_after(&[words, SYNC], ONE_BLOCK);
    assert_eq!(law([NH_VA, 0x20_5000 | LEAF]), None);
    assert_eq!(law([NH_VA, 0x20_0000 | TG | TTL_2 | LEAF]), None);
    assert_eq!(
        law([NH_VA, 0x20_5000 | TG | TTL_3 | LEAF]),
        Some(Law::Reach)
    );
    // Not aligned to the level.
    assert_eq!(
        law([NH_VA, 0x20_5000 | TG | TTL_2 | LEAF]),
        Some(Law::Reach)
    );
}

/// A group of 16 pages with the Contiguous bit, met and cleared.
fn group(machine: &'static crate::machines::Machine) -> Rig {
    let rig = four_pages(machine, smmu_context());
    rig.ledger.forgotten(DOMAIN, FOUR_PAGES);
    let rig = {
        rig.iommu
            .check_all()
            .expect_err("the pages are still cached");
        let mut rig = rig;
        rig.send(&[[0x30, 0], SYNC]);
        rig.wait();
        rig
    };
    for index in 0..16 {
        let oa = 0x4001_0000 + index * 0x1000;
        let word = (machine.page)(oa) | 1 << 52;
        rig.map(
            LEVEL_1 + 128 + 8 * index,
            word,
            0x1_0000 + index * 0x1000,
            oa,
            0x1000,
        );
    }
    rig.warm(0x1_3000, 0x4000_0000);
    rig.ledger.unmap(DOMAIN, 0x1_0000..=0x1_ffff);
    for index in 0..16 {
        rig.put(LEVEL_1 + 128 + 8 * index, 0);
    }
    rig
}

#[test]
fn with_the_erratum_one_command_has_to_cover_a_contiguous_group() {
    // Eight granules each, and sixteen.
    let halves = [
        [NH_VA | 7 << 12, 0x1_0000 | TG | TTL_3 | LEAF],
        [NH_VA | 7 << 12, 0x1_8000 | TG | TTL_3 | LEAF],
        SYNC,
    ];
    let whole = [[NH_VA | 15 << 12, 0x1_0000 | TG | TTL_3 | LEAF], SYNC];
    let range = 0x1_0000..=0x1_ffff;
    assert_eq!(group(&SMMU_RANGES).law_after(&halves, range.clone()), None);
    assert_eq!(
        group(&SMMU_ERRATUM).law_after(&halves, range.clone()),
        Some(Law::Reach)
    );
    assert_eq!(group(&SMMU_ERRATUM).law_after(&whole, range), None);
}

#[test]
fn a_freed_table_needs_its_pointers_dropped_and_a_sync() {
    let law = |commands: &[Words]| law_of_freed(detached_table(&SMMU, smmu_context()), commands);
    let pointers = with(&PAGES, &[[NH_VA, 0x1000], SYNC]);
    assert_eq!(law(&pointers), None);
    assert_eq!(law(&with(&PAGES, &[SYNC])), Some(Law::FreedTable));
    assert_eq!(law(&pointers[..5]), Some(Law::FreedTable));
    let ranges = |words| law_of_freed(detached_table(&SMMU_RANGES, smmu_context()), &[words, SYNC]);
    assert_eq!(ranges([NH_VA | 3 << 12, 0x1000 | TG]), None);
    assert_eq!(ranges([NH_VA | 3 << 12, 0x1000 | TG | TTL_3]), None);
    assert_eq!(
        ranges([NH_VA | 3 << 12, 0x1000 | TG | LEAF]),
        Some(Law::FreedTable)
    );
    // A hint at blocks keeps the pointers to tables beside them.
    let blocks = [NH_VA | 1 << 20, TG | TTL_2];
    assert_eq!(ranges(blocks), Some(Law::FreedTable));
}

#[test]
fn a_block_over_an_empty_table_needs_its_pointers_dropped() {
    let law = |commands: &[Words]| {
        let leaf_only = with(&PAGES, &[SYNC]);
        law_of_freed(
            block_over_table(&SMMU, smmu_context(), &leaf_only),
            commands,
        )
    };
    assert_eq!(law(&[[NH_VA, 0x1000], SYNC]), None);
    assert_eq!(law(&[[NH_VA, 0x1000 | LEAF], SYNC]), Some(Law::FreedTable));
    assert_eq!(law(&[]), Some(Law::FreedTable));
}

#[test]
fn a_page_of_the_old_table_is_missed_while_its_pointer_is_cached() {
    let mut rig = block_over_table(&SMMU, smmu_context(), &with(&PAGES, &[SYNC]));
    rig.ledger.map_done(DOMAIN, 0..=0x1f_ffff);
    assert_eq!(rig.law(FOUR_PAGES), Some(Law::Missed));
    rig.send(&[[NH_VA, 0x1000], SYNC]);
    rig.wait();
    assert_eq!(rig.law(FOUR_PAGES), None);
}

#[test]
fn what_was_absent_is_not_cached() {
    let rig = absent_pages(&SMMU, smmu_context());
    assert_eq!(law_of_arrived(rig, &[]), None);
}

#[test]
fn the_device_is_told_after_the_iotlb() {
    let law = |commands: &[Words]| {
        four_pages_in_device(&SMMU, smmu_context()).law_after(commands, FOUR_PAGES)
    };
    let iotlb = with(&PAGES, &[SYNC]);
    let device = with(&ATC, &[SYNC]);
    assert_eq!(law(&with(&iotlb, &device)), None);
    assert_eq!(law(&iotlb), Some(Law::Reach));
    assert_eq!(law(&with(&device, &iotlb)), Some(Law::Reach));
    // Both parts without a sync between them.
    assert_eq!(law(&with(&PAGES, &device)), Some(Law::Reach));
    // The last sync is missing, and the second half of the range.
    assert_eq!(law(&with(&iotlb, &ATC)), Some(Law::Reach));
    assert_eq!(law(&with(&iotlb, &[ATC[0], SYNC])), Some(Law::Reach));
    // All addresses.
    let all = [0x40 | u64::from(DEVICE) << 32, 52];
    assert_eq!(law(&with(&iotlb, &[all, SYNC])), None);
}

#[test]
fn a_device_may_remember_a_page_of_a_block_alone() {
    let law = |commands: &[Words]| {
        let commands = with(&[[0x30, 0], SYNC], commands);
        block_in_device(&SMMU, smmu_context()).law_after(&with(&commands, &[SYNC]), ONE_BLOCK)
    };
    let device = |address: u64, size: u64| [0x40 | u64::from(DEVICE) << 32, address | size];
    assert_eq!(law(&[device(0x20_0000, 9)]), None);
    // The page that was asked for, and another.
    assert_eq!(law(&[device(0x20_5000, 0)]), None);
    assert_eq!(law(&[device(0x20_0000, 0)]), Some(Law::Reach));
}

fn nested_page() -> Rig {
    guest_page(
        &SMMU_RANGES,
        smmu_nested(),
        Formats {
            pointer: SMMU.pointer,
            page: SMMU.page,
        },
        // Stage 2: read, write, normal memory.
        Formats {
            pointer: SMMU.pointer,
            page: |oa| oa | 0x7ff,
        },
    )
}

#[test]
fn a_page_of_the_second_stage_needs_the_combined_entries_dropped_after_it() {
    let law = |commands: &[Words]| {
        let rig = nested_page();
        law_of_guest(rig, commands)
    };
    let s2_ipa = [0x2a | 7 << 32, GUEST_PAGE | LEAF];
    let nh_all = [0x10 | 7 << 32, 0];
    assert_eq!(law(&[s2_ipa, SYNC, nh_all, SYNC]), None);
    assert_eq!(law(&[[0x28 | 7 << 32, 0], SYNC]), None);
    assert_eq!(law(&[s2_ipa, SYNC]), Some(Law::Reach));
    assert_eq!(law(&[nh_all, SYNC]), Some(Law::Reach));
    // In the other order, or without a sync between them, the combined one is made again.
    assert_eq!(law(&[nh_all, SYNC, s2_ipa, SYNC]), Some(Law::Reach));
    assert_eq!(law(&[s2_ipa, nh_all, SYNC]), Some(Law::Reach));
    // Another guest.
    let other = [0x28 | 8 << 32, 0];
    assert_eq!(law(&[other, SYNC]), Some(Law::Reach));
}

#[test]
fn a_command_for_the_second_stage_before_the_store_that_it_is_for_is_caught() {
    let law = |is_early: bool| {
        let mut rig = nested_page();
        let s2_ipa = [[0x2a | 7 << 32, GUEST_PAGE | LEAF]];
        if is_early {
            rig.put(GUEST_SLOT, (GUEST_PAGE + OFFSET) | 0x7ff);
            rig.send(&s2_ipa);
            rig.put(GUEST_SLOT, 0);
        } else {
            rig.send(&s2_ipa);
        }
        law_of_guest(rig, &[SYNC, [0x10 | 7 << 32, 0], SYNC])
    };
    assert_eq!(law(false), None);
    assert_eq!(law(true), Some(Law::Reach));
}
