//! ARM levels, start levels, concatenated roots, and which base translates an address.

use iopt_reference::arm::{Config, Granule, Half, Stage};
use iopt_reference::{Fault, PageMap, Setup, Table};

use crate::{first_read, leaves, memory};

const ROOT: u64 = 1 << 24;

/// Returns the level of the initial lookup, as the fault of an empty table tells it.
fn start_level(table: &Table) -> i8 {
    match table.walk(&|_| Some(0), 0) {
        Err(Fault::NotMapped { level }) => level,
        other => panic!("an empty table gave {other:?}"),
    }
}

#[test]
fn stage_1_start_level_and_root_size_follow_from_the_input_size() {
    // Input bits, then (levels, index bits of the root) for 4, 16 and 64 KiB granules.
    let table = [
        (32, (3, 2), (2, 7), (2, 3)),
        (36, (3, 6), (2, 11), (2, 7)),
        (39, (3, 9), (3, 3), (2, 10)),
        (40, (4, 1), (3, 4), (2, 11)),
        (42, (4, 3), (3, 6), (2, 13)),
        (44, (4, 5), (3, 8), (3, 2)),
        (48, (4, 9), (4, 1), (3, 6)),
        (52, (5, 4), (4, 5), (3, 10)),
    ];
    for (ia_bits, four, sixteen, sixty_four) in table {
        for (granule, (levels, root_bits)) in [
            (Granule::K4, four),
            (Granule::K16, sixteen),
            (Granule::K64, sixty_four),
        ] {
            let config = Config::stage1(Half::new(ROOT, ia_bits, granule), 52);
            let config = if ia_bits == 52 {
                config.with_52_bits()
            } else {
                config
            };
            let table = Table::Arm(config);
            assert_eq!(start_level(&table), 4 - levels, "{ia_bits} {granule:?}");
            let top = 1u64 << ia_bits;
            assert_eq!(
                first_read(&table, top - 1),
                Ok(ROOT + 8 * ((1 << root_bits) - 1))
            );
            assert_eq!(
                first_read(&table, top),
                Err(Fault::OutOfWindow { iova: top })
            );
        }
    }
}

#[test]
fn stage_2_roots_are_up_to_16_tables_side_by_side() {
    // Input bits, granule, levels, tables.
    let cases = [
        (32, Granule::K4, 2, 4),
        (36, Granule::K4, 3, 1),
        (40, Granule::K4, 3, 2),
        (42, Granule::K4, 3, 8),
        (43, Granule::K4, 3, 16),
        (44, Granule::K4, 4, 1),
        (48, Granule::K4, 4, 1),
        (52, Granule::K4, 4, 16),
        (32, Granule::K16, 2, 1),
        (40, Granule::K16, 2, 16),
        (42, Granule::K16, 3, 1),
        (48, Granule::K16, 3, 2),
        (44, Granule::K64, 2, 4),
        (52, Granule::K64, 3, 1),
    ];
    for (ia_bits, granule, levels, tables) in cases {
        let bits = match granule {
            Granule::K4 => 9,
            Granule::K16 => 11,
            Granule::K64 => 13,
        };
        let config = Config::stage2(Half::new(ROOT, ia_bits, granule), 4 - levels, 52);
        let config = if ia_bits == 52 {
            config.with_52_bits()
        } else {
            config
        };
        let table = Table::Arm(config);
        assert_eq!(start_level(&table), 4 - levels);
        let last = first_read(&table, (1 << ia_bits) - 1).unwrap();
        // A single table may be smaller than the granule.
        let granule_bits = bits + 3;
        let below = bits * u32::from(levels.unsigned_abs() - 1);
        let entries = 1u64 << (u32::from(ia_bits) - granule_bits - below);
        assert_eq!(last, ROOT + 8 * (entries - 1), "{ia_bits} {granule:?}");
        assert_eq!(entries.div_ceil(1 << bits), tables);
    }
}

#[test]
fn the_second_of_two_concatenated_tables_translates_the_upper_half() {
    // 40 bits, 4 KiB: level 1, two tables of 4 KiB.
    let table = Table::Arm(Config::stage2(Half::new(0x2000, 40, Granule::K4), 1, 48));
    let memory = memory(&[(0x2ff8, 0x4000_07fd), (0x3000, 0x8000_07fd)]);
    assert_eq!(table.walk(&memory, (1 << 39) - 1).unwrap().oa, 0x7fff_ffff);
    assert_eq!(table.walk(&memory, 1 << 39).unwrap().oa, 0x8000_0000);
    let found: Vec<u64> = leaves(&table, &memory)
        .unwrap()
        .iter()
        .map(|(iova, _)| *iova)
        .collect();
    assert_eq!(found, [511 << 30, 1 << 39]);
}

#[test]
fn the_root_is_aligned_to_its_size() {
    let first = |root, ia_bits, oa_bits| {
        let config = Config::stage2(Half::new(root, ia_bits, Granule::K4), 1, oa_bits);
        first_read(&Table::Arm(config), 0)
    };
    assert_eq!(first(0x3000, 40, 48), Ok(0x2000));
    assert_eq!(first(0x3000, 39, 48), Ok(0x3000));
    // A root of two entries: 16 bytes, but 64 with 52-bit addresses.
    assert_eq!(first(0x3030, 31, 48), Ok(0x3030));
    assert_eq!(first(0x3070, 31, 52), Ok(0x3040));
}

#[test]
fn the_start_level_field_depends_on_the_granule() {
    let level = |granule, sl| match Stage::two(granule, sl) {
        Some(Stage::Two { start_level }) => Some(start_level),
        _ => None,
    };
    let four: Vec<_> = (0..8).map(|sl| level(Granule::K4, sl)).collect();
    assert_eq!(
        four,
        [
            Some(2),
            Some(1),
            Some(0),
            Some(3),
            Some(-1),
            None,
            None,
            None
        ]
    );
    let sixteen: Vec<_> = (0..4).map(|sl| level(Granule::K16, sl)).collect();
    assert_eq!(sixteen, [Some(3), Some(2), Some(1), Some(0)]);
    let sixty_four: Vec<_> = (0..4).map(|sl| level(Granule::K64, sl)).collect();
    assert_eq!(sixty_four, [Some(3), Some(2), Some(1), None]);
}

#[test]
fn granules_have_two_encodings() {
    assert_eq!(
        [0, 1, 2, 3].map(Granule::from_tg0),
        [
            Some(Granule::K4),
            Some(Granule::K64),
            Some(Granule::K16),
            None
        ]
    );
    assert_eq!(
        [0, 1, 2, 3].map(Granule::from_tg1),
        [
            None,
            Some(Granule::K16),
            Some(Granule::K4),
            Some(Granule::K64)
        ]
    );
}

#[test]
fn settings_that_the_architecture_forbids_are_refused() {
    let half = |ia_bits, granule| Half::new(ROOT, ia_bits, granule);
    let input = |ia_bits| Err(Setup::InputBits { ia_bits });
    // Beyond 48 bits only with 52-bit tables; below what one level takes never.
    assert_eq!(Config::stage1(half(49, Granule::K4), 48).check(), input(49));
    assert_eq!(Config::stage1(half(52, Granule::K64), 48).check(), Ok(()));
    assert_eq!(
        Config::stage1(half(53, Granule::K64), 52).check(),
        input(53)
    );
    assert_eq!(Config::stage1(half(15, Granule::K4), 48).check(), input(15));
    assert_eq!(
        Config::stage1(half(255, Granule::K4), 48).check(),
        input(255)
    );
    // 44 bits at level 1 would be 32 tables; 30 bits leave nothing for level 1.
    assert_eq!(
        Config::stage2(half(44, Granule::K4), 1, 48).check(),
        input(44)
    );
    assert_eq!(
        Config::stage2(half(30, Granule::K4), 1, 48).check(),
        input(30)
    );
    assert_eq!(Config::stage2(half(31, Granule::K4), 1, 48).check(), Ok(()));
    // Level -1 and, with 16 KiB, level 0 of stage 2 need 52-bit descriptors.
    let levels = |levels| Err(Setup::Levels { levels });
    assert_eq!(
        Config::stage2(half(48, Granule::K4), -1, 48).check(),
        levels(-1)
    );
    assert_eq!(
        Config::stage2(half(48, Granule::K16), 0, 48).check(),
        levels(0)
    );
    assert_eq!(
        Config::stage2(half(48, Granule::K64), 0, 48).check(),
        levels(0)
    );
    assert_eq!(
        Config::stage2(half(48, Granule::K4), 4, 48).check(),
        levels(4)
    );
    assert_eq!(
        Config::stage2(half(52, Granule::K16), 0, 52)
            .with_52_bits()
            .check(),
        Ok(())
    );
    // TTBR1 belongs to stage 1.
    let both = Config {
        upper: Some(half(48, Granule::K4)),
        ..Config::stage2(half(48, Granule::K4), 0, 48)
    };
    assert_eq!(both.check(), Err(Setup::Combination));
    for config in [Config::lpae32(ROOT, 32), Config::mali(ROOT, 32, 40)] {
        let lpa = Config {
            lpa: true,
            ..config
        };
        let ds = Config { ds: true, ..config };
        assert_eq!(
            (lpa.check(), ds.check()),
            (Err(Setup::Combination), Err(Setup::Combination))
        );
    }
    let output = |oa_bits| Err(Setup::OutputBits { oa_bits });
    let lpae32 = |oa_bits| {
        Config {
            oa_bits,
            ..Config::lpae32(ROOT, 32)
        }
        .check()
    };
    assert_eq!((lpae32(40), lpae32(41)), (Ok(()), output(41)));
    let mali = |oa_bits| Config::mali(ROOT, 32, oa_bits).check();
    assert_eq!((mali(48), mali(49)), (Ok(()), output(49)));
    let sixteen = Config {
        aarch32: true,
        ..Config::stage1(half(32, Granule::K16), 40)
    };
    assert_eq!(sixteen.check(), Err(Setup::Combination));
    for oa_bits in [0, 31, 53, 64] {
        let output = Config::stage1(half(48, Granule::K4), oa_bits);
        assert_eq!(output.check(), Err(Setup::OutputBits { oa_bits }));
    }
    let far = Half::new(1 << 44, 48, Granule::K4);
    assert_eq!(
        Config::stage1(far, 44).check(),
        Err(Setup::Root { root: 1 << 44 })
    );
}

/// A root at `address` whose last entry is a page of 1 GiB, for 39 bits.
fn root_with_last(address: u64, oa: u64) -> (u64, u64) {
    (address + 8 * 511, oa | 0x741)
}

#[test]
fn ttbr1_translates_the_addresses_that_begin_with_ones() {
    let config = Config {
        upper: Some(Half::new(0x2000, 36, Granule::K4)),
        ..Config::stage1(Half::new(0x1000, 39, Granule::K4), 48)
    };
    let memory = memory(&[
        root_with_last(0x1000, 0x4000_0000),
        (0x2000 + 8 * 63, 0x8000_0741),
    ]);
    let table = Table::Arm(config);
    assert_eq!(table.walk(&memory, (1 << 39) - 1).unwrap().oa, 0x7fff_ffff);
    assert_eq!(table.walk(&memory, u64::MAX).unwrap().oa, 0xbfff_ffff);
    assert_eq!(
        table.walk(&memory, 0u64.wrapping_sub(1 << 36)),
        Err(Fault::NotMapped { level: 1 })
    );
    for iova in [
        1 << 39,
        0u64.wrapping_sub(1 << 36) - 1,
        u64::MAX >> 1,
        1 << 63,
    ] {
        assert_eq!(
            table.walk(&memory, iova),
            Err(Fault::OutOfWindow { iova }),
            "{iova:#x}"
        );
    }
    let found: Vec<u64> = leaves(&table, &memory)
        .unwrap()
        .iter()
        .map(|(iova, _)| *iova)
        .collect();
    assert_eq!(found, [0x7f_c000_0000, 0xffff_ffff_c000_0000]);
    // One of them alone.
    let upper = Table::Arm(Config::stage1_upper(Half::new(0x2000, 36, Granule::K4), 48));
    assert_eq!(upper.walk(&memory, u64::MAX).unwrap().oa, 0xbfff_ffff);
    assert_eq!(upper.walk(&memory, 0), Err(Fault::OutOfWindow { iova: 0 }));
}

#[test]
fn the_top_byte_is_ignored_where_tbi_says_so() {
    let lower = Half {
        tbi: true,
        ..Half::new(0x1000, 39, Granule::K4)
    };
    let upper = Half {
        tbi: true,
        ..Half::new(0x2000, 39, Granule::K4)
    };
    let memory = memory(&[
        root_with_last(0x1000, 0x4000_0000),
        root_with_last(0x2000, 0x8000_0000),
    ]);
    let table = Table::Arm(Config {
        upper: Some(upper),
        ..Config::stage1(lower, 48)
    });
    // Bit 55 chooses.
    assert_eq!(
        table.walk(&memory, 0xab00_007f_ffff_ffff).unwrap().oa,
        0x7fff_ffff
    );
    assert_eq!(
        table.walk(&memory, 0x12ff_ffff_ffff_ffff).unwrap().oa,
        0xbfff_ffff
    );
    for iova in [
        0x1240_0000_0000_0000,
        0x1280_0000_0000_0000,
        0x127f_ffff_ffff_ffff,
    ] {
        assert_eq!(table.walk(&memory, iova), Err(Fault::OutOfWindow { iova }));
    }
    let strict = Half {
        tbi: false,
        ..lower
    };
    let iova = 0xab00_007f_ffff_ffff;
    let table = Table::Arm(Config {
        upper: Some(upper),
        ..Config::stage1(strict, 48)
    });
    assert_eq!(table.walk(&memory, iova), Err(Fault::OutOfWindow { iova }));
}

#[test]
fn lpae_of_32_bits_has_three_levels_and_40_output_bits() {
    let table = Table::Arm(Config::lpae32(0x1000, 32));
    assert_eq!(start_level(&table), 1);
    let memory = memory(&[
        (0x1000, 0x2003),
        (0x2000, 0x3003),
        (0x3000, 0xff_ffff_ff47),
        (0x3008, 1 << 40 | 0xf47),
    ]);
    assert_eq!(table.walk(&memory, 0xfff).unwrap().oa, 0xff_ffff_ffff);
    let fault = Err(Fault::AddressSize {
        level: 3,
        address: 1 << 40,
    });
    assert_eq!(table.walk(&memory, 0x1000), fault);
    assert_eq!(
        table.walk(&memory, 1 << 32),
        Err(Fault::OutOfWindow { iova: 1 << 32 })
    );
    // Addresses of stage 1 have 32 bits, TTBR1 or not.
    let upper = Half::new(0x1000, 31, Granule::K4);
    let both = Table::Arm(Config {
        upper: Some(upper),
        ..Config::lpae32(0x1000, 31)
    });
    let iova = 3 << 31;
    assert_eq!(first_read(&both, iova), Err(Fault::OutOfWindow { iova }));
    // T0SZ = 2 starts at level 2.
    assert_eq!(start_level(&Table::Arm(Config::lpae32(0x1000, 30))), 2);
    assert_eq!(
        Config::lpae32(0x1000, 33).check(),
        Err(Setup::InputBits { ia_bits: 33 })
    );
}

#[test]
fn lpae_of_32_bits_splits_the_space_by_both_sizes() {
    // Each root has 1 GiB pages in all of its (up to) four entries.
    let mut memory = PageMap::new();
    for index in 0..4 {
        memory.write64(0x1000 + 8 * index, index << 30 | 0x741);
        memory.write64(0x2000 + 8 * index, 1 << 32 | index << 30 | 0x741);
    }
    let walk = |lower, upper, iova| {
        let config = Config {
            upper: Some(Half::new(0x2000, upper, Granule::K4)),
            ..Config::lpae32(0x1000, lower)
        };
        let found = leaves(&Table::Arm(config), &memory).unwrap();
        let walked = Table::Arm(config).walk(&memory, iova).map(|page| page.oa);
        let in_items = found
            .iter()
            .find(|(start, page)| (*start..start + page.item_len).contains(&iova));
        assert_eq!(walked.is_ok(), in_items.is_some());
        walked
    };
    // T0SZ = T1SZ = 0: TTBR0 alone.
    assert_eq!(walk(32, 32, 0xffff_ffff), Ok(0xffff_ffff));
    // T1SZ = 0: TTBR1 has what is left, indexed by the whole address.
    assert_eq!(walk(31, 32, 0x7fff_ffff), Ok(0x7fff_ffff));
    assert_eq!(walk(31, 32, 0x8000_0000), Ok(0x1_8000_0000));
    // T0SZ = 0: TTBR0 has what is left.
    assert_eq!(walk(32, 31, 0x7fff_ffff), Ok(0x7fff_ffff));
    assert_eq!(walk(32, 31, 0x8000_0000), Ok(0x1_0000_0000));
    // Both: a gap in the middle.
    assert_eq!(walk(31, 31, 0x7fff_ffff), Ok(0x7fff_ffff));
    assert_eq!(walk(31, 31, 0x8000_0000), Ok(0x1_0000_0000));
    let half = |root| Half::new(root, 30, Granule::K4);
    let config = Config {
        upper: Some(half(0x2000)),
        lower: Some(half(0x1000)),
        ..Config::lpae32(0, 32)
    };
    for iova in [0x4000_0000, 0xbfff_ffff] {
        assert_eq!(
            first_read(&Table::Arm(config), iova),
            Err(Fault::OutOfWindow { iova })
        );
    }
    assert_eq!(first_read(&Table::Arm(config), 0xc000_0000), Ok(0x2000));
}

#[test]
fn lpae_stage_2_takes_up_to_40_bits() {
    let config = |ia_bits| Config {
        aarch32: true,
        ..Config::stage2(Half::new(0x2000, ia_bits, Granule::K4), 1, 40)
    };
    let table = Table::Arm(config(40));
    // Two concatenated tables of level 1.
    assert_eq!(first_read(&table, (1 << 40) - 1), Ok(0x2000 + 8 * 1023));
    assert_eq!(first_read(&table, 1 << 32), Ok(0x2020));
    assert_eq!(
        first_read(&table, 1 << 40),
        Err(Fault::OutOfWindow { iova: 1 << 40 })
    );
    assert_eq!(config(41).check(), Err(Setup::InputBits { ia_bits: 41 }));
    // Neither DBM nor execute-only pages, and one execute-never bit.
    let memory = memory(&[
        (0x2000, 0x4000_0741 | 1 << 51),
        (0x2008, 0x4000_0701),
        (0x2010, 0x4000_0741 | 3 << 53),
    ]);
    let table = Table::Arm(config(39).with_hardware_update());
    let page = table.walk(&memory, 0).unwrap();
    assert_eq!((page.write, page.dirty, page.execute), (false, false, true));
    assert_eq!(
        table.walk(&memory, 1 << 30),
        Err(Fault::NoAccess { level: 1 })
    );
    assert!(!table.walk(&memory, 2 << 30).unwrap().execute);
}

#[test]
fn mali_always_has_four_levels() {
    for ia_bits in [32, 40, 48] {
        let table = Table::Arm(Config::mali(0x1000, ia_bits, 40));
        assert_eq!(start_level(&table), 0);
        let end = 1 << ia_bits;
        assert_eq!(
            first_read(&table, end),
            Err(Fault::OutOfWindow { iova: end })
        );
        assert!(first_read(&table, end - 1).is_ok());
    }
    for ia_bits in [12, 49] {
        let config = Config::mali(0x1000, ia_bits, 40);
        assert_eq!(config.check(), Err(Setup::InputBits { ia_bits }));
    }
    // Entries beyond the window are not reported.
    let memory = memory(&[
        (0x1000, 0x2003),
        (0x1008, 0x2003),
        (0x2018, 0xc1),
        (0x2020, 0xc1),
    ]);
    let table = Table::Arm(Config::mali(0x1000, 32, 40));
    let found: Vec<u64> = leaves(&table, &memory)
        .unwrap()
        .iter()
        .map(|(iova, _)| *iova)
        .collect();
    assert_eq!(found, [3 << 30]);
}
