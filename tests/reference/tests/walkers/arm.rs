//! ARM descriptors: stage 1, stage 2, Mali.

use iopt_reference::arm::{Config, Granule, Half};
use iopt_reference::{Fault, MemoryAttributes, PageMap, ScanError, Table};

use crate::{leaves, memory, rights};

const K4: Half = Half::new(0x1000, 48, Granule::K4);
pub(crate) const DBM: u64 = 1 << 51;
pub(crate) const AF: u64 = 1 << 10;
pub(crate) const AP2: u64 = 1 << 7;

/// Four levels, whose first entries lead to a level 3 table at `0x4000`.
pub(crate) fn with_pages(words: &[u64]) -> PageMap {
    let mut memory = memory(&[(0x1000, 0x2003), (0x2000, 0x3003), (0x3000, 0x4003)]);
    for (index, &word) in (0..).zip(words) {
        memory.write64(0x4000 + 8 * index, word);
    }
    memory
}

/// The same, with one block in entry 1 of the level 2 table.
fn with_block(word: u64) -> PageMap {
    memory(&[(0x1000, 0x2003), (0x2000, 0x3003), (0x3008, word)])
}

pub(crate) fn stage1() -> Config {
    Config::stage1(K4, 48)
}

fn stage2() -> Config {
    Config::stage2(K4, 0, 48)
}

#[test]
fn stage_1_pages_decode_by_hand() {
    let cases = [
        // Both XN bits, neither, read-only.
        (0x0060_0001_2345_6f47, "rw-u", false),
        (0x0000_0001_2345_6f47, "rwxu", false),
        (0x0000_0001_2345_6fc7, "r-xu", false),
        // DBM, dirty and clean, without hardware that acts on it.
        (0x0008_0001_2345_6f47, "rwxu", true),
        (0x0008_0001_2345_6fc7, "r-xu", false),
        // Privileged: AP[1] = 0, and then PXN decides.
        (0x0000_0001_2345_6f07, "rwx-", false),
        (0x0040_0001_2345_6f07, "rwx-", false),
        (0x0020_0001_2345_6f07, "rw--", false),
        // Unprivileged: UXN decides.
        (0x0040_0001_2345_6f47, "rw-u", false),
        (0x0020_0001_2345_6f47, "rwxu", false),
        // Software bits 58:55 and bits 63:59.
        (0xff80_0001_2345_6f47, "rwxu", false),
    ];
    for (word, expected, dirty) in cases {
        let page = Table::Arm(stage1())
            .walk(&with_pages(&[word]), 0xabc)
            .unwrap();
        assert_eq!(
            (page.oa, page.page_len, page.level),
            (0x1_2345_6abc, 0x1000, 3),
            "{word:#x}"
        );
        assert_eq!(
            (rights(&page).as_str(), page.dirty),
            (expected, dirty),
            "{word:#x}"
        );
        assert_eq!(
            page.memory,
            MemoryAttributes::ArmStage1 {
                attr_indx: 1,
                sh: 3
            }
        );
        assert!(page.accessed);
    }
    // AttrIndx 5, outer shareable, NS and nG set.
    let page = with_pages(&[0x1_2345_6e77]);
    let page = Table::Arm(stage1()).walk(&page, 0).unwrap();
    let memory = MemoryAttributes::ArmStage1 {
        attr_indx: 5,
        sh: 2,
    };
    assert_eq!(page.memory, memory);
}

#[test]
fn stage_1_blocks_decode_by_hand() {
    for (word, dirty) in [(0x1_2340_0f45, false), (0x8_0001_2340_0f45, true)] {
        let block = Table::Arm(stage1())
            .walk(&with_block(word), 0x20_0000 + 0x12_3456)
            .unwrap();
        assert_eq!(
            (block.oa, block.page_len, block.level),
            (0x1_2352_3456, 0x20_0000, 2)
        );
        assert_eq!((rights(&block).as_str(), block.dirty), ("rwxu", dirty));
    }
    // 1 GiB; bits 29:12 of the descriptor (nT is bit 16) are no address.
    let memory = memory(&[(0x1000, 0x2003), (0x2000, 0x4000_0f45 | 1 << 16 | 1 << 12)]);
    let block = Table::Arm(stage1()).walk(&memory, 0x3fff_ffff).unwrap();
    assert_eq!(
        (block.oa, block.page_len, block.level),
        (0x7fff_ffff, 0x4000_0000, 1)
    );
}

#[test]
fn stage_2_pages_decode_by_hand() {
    let attributes = |mem_attr, sh| MemoryAttributes::ArmStage2 { mem_attr, sh };
    let cases = [
        (0x0000_0001_2345_67ff, "rwxu", attributes(15, 3), false),
        (0x0000_0001_2345_67db, "rwxu", attributes(6, 3), false),
        (0x0000_0001_2345_66c7, "rwxu", attributes(1, 2), false),
        (0x0000_0001_2345_677f, "r-xu", attributes(15, 3), false),
        (0x0000_0001_2345_67bf, "-wxu", attributes(15, 3), false),
        (0x0008_0001_2345_67ff, "rwxu", attributes(15, 3), true),
        (0x0008_0001_2345_677f, "r-xu", attributes(15, 3), false),
        // No data access: execute-only is a legal stage 2 page.
        (0x0000_0001_2345_673f, "--xu", attributes(15, 3), false),
    ];
    for (word, expected, memory, dirty) in cases {
        let page = Table::Arm(stage2()).walk(&with_pages(&[word]), 0).unwrap();
        assert_eq!((page.oa, page.level), (0x1_2345_6000, 3), "{word:#x}");
        assert_eq!(
            (rights(&page).as_str(), page.memory, page.dirty),
            (expected, memory, dirty),
            "{word:#x}"
        );
    }
    let block = Table::Arm(stage2())
        .walk(&with_block(0x1_2340_07fd), 0x20_0000)
        .unwrap();
    assert_eq!(
        (block.oa, block.page_len, block.level),
        (0x1_2340_0000, 0x20_0000, 2)
    );
}

#[test]
fn execute_never_of_stage_2_has_two_bits_with_xnx_and_one_without() {
    let page = 0x1_2345_67ff;
    let without = Config {
        xnx: false,
        ..stage2()
    };
    // 0b11 forbids unprivileged fetches only.
    for (xn, with, single) in [
        (0, true, true),
        (1, true, true),
        (2, false, false),
        (3, true, false),
    ] {
        let memory = with_pages(&[page | xn << 53]);
        assert_eq!(Table::Arm(stage2()).walk(&memory, 0).unwrap().execute, with);
        assert_eq!(
            Table::Arm(without).walk(&memory, 0).unwrap().execute,
            single
        );
    }
    let nothing = with_pages(&[0x1_2345_673f | 2 << 53]);
    assert_eq!(
        Table::Arm(stage2()).walk(&nothing, 0),
        Err(Fault::NoAccess { level: 3 })
    );
}

#[test]
fn a_clean_page_with_dbm_is_writeable_when_hardware_marks_it_dirty() {
    for (config, clean) in [
        (stage1(), 0x8_0001_2345_6fc7),
        (stage2(), 0x8_0001_2345_677f),
    ] {
        let memory = with_pages(&[clean, clean & !DBM]);
        let updating = Table::Arm(config.with_hardware_update());
        let page = updating.walk(&memory, 0).unwrap();
        assert!(page.write && !page.dirty);
        assert!(!updating.walk(&memory, 0x1000).unwrap().write);
        // HD without HA is reserved and does nothing.
        let odd = Config {
            hd: true,
            ha: false,
            ..config
        };
        assert!(!Table::Arm(odd).walk(&memory, 0).unwrap().write);
    }
}

#[test]
fn a_clear_access_flag_faults_unless_disabled_or_updated() {
    let memory = with_pages(&[0x1_2345_6f47 & !AF]);
    assert_eq!(
        Table::Arm(stage1()).walk(&memory, 0),
        Err(Fault::AccessFlag { level: 3 })
    );
    for config in [
        Config {
            affd: true,
            ..stage1()
        },
        Config {
            ha: true,
            ..stage1()
        },
    ] {
        assert!(!Table::Arm(config).walk(&memory, 0).unwrap().accessed);
    }
    let fault = Fault::AccessFlag { level: 3 };
    assert_eq!(
        leaves(&Table::Arm(stage1()), &memory),
        Err(ScanError::Faulty { iova: 0, fault })
    );
}

#[test]
fn table_descriptors_of_stage_1_take_rights_away() {
    let user = 0x1_2345_6f47;
    let privileged = 0x1_2345_6f07;
    let under = |limits: u64, config| {
        let mut memory = with_pages(&[user, privileged]);
        memory.write64(0x2000, 0x3003 | limits);
        [0, 0x1000].map(|iova| rights(&Table::Arm(config).walk(&memory, iova).unwrap()))
    };
    assert_eq!(under(0, stage1()), ["rwxu", "rwx-"]);
    assert_eq!(under(1 << 62, stage1()), ["r-xu", "r-x-"]); // APTable[1]
    assert_eq!(under(1 << 61, stage1()), ["rwx-", "rwx-"]); // APTable[0]
    assert_eq!(under(1 << 60, stage1()), ["rw-u", "rwx-"]); // UXNTable
    assert_eq!(under(1 << 59, stage1()), ["rwxu", "rw--"]); // PXNTable
    let everything = 0xf8 << 56;
    let without = Config::stage1(Half { had: true, ..K4 }, 48);
    assert_eq!(under(everything, without), ["rwxu", "rwx-"]);
    // Limits add up over the levels.
    let mut memory = with_pages(&[user]);
    memory.write64(0x1000, 0x2003 | 1 << 60);
    memory.write64(0x3000, 0x4003 | 1 << 62);
    assert_eq!(
        rights(&Table::Arm(stage1()).walk(&memory, 0).unwrap()),
        "r--u"
    );
    // Stage 2 has no such bits.
    memory.write64(0x4000, 0x1_2345_67ff);
    assert_eq!(
        rights(&Table::Arm(stage2()).walk(&memory, 0).unwrap()),
        "rwxu"
    );
}

#[test]
fn one_privilege_level_has_one_execute_never_bit_and_no_ap1() {
    let config = Table::Arm(Config {
        one_privilege: true,
        ..stage1()
    });
    for (word, expected) in [
        (0x0000_0001_2345_6f07, "rwxu"),
        (0x0020_0001_2345_6f07, "rwxu"),
        (0x0040_0001_2345_6f07, "rw-u"),
    ] {
        assert_eq!(
            rights(&config.walk(&with_pages(&[word]), 0).unwrap()),
            expected
        );
    }
}

#[test]
fn descriptors_of_52_bits_with_the_64k_granule_hold_the_top_in_bits_15_12() {
    // Level 1 to 3; roots of 64 KiB tables are aligned to their size.
    let half = Half::new(0x1_0000, 48, Granule::K64);
    let table = Table::Arm(Config::stage1(half, 52).with_52_bits());
    let memory = memory(&[
        // Bits 49:48 are RES0.
        (0x1_0000, 0x1234_f003 | 3 << 48),
        (0xf_0000_1234_0000, 0x2_0003),
        (0x2_0000, 0x1234_ff47),
    ]);
    let page = table.walk(&memory, 0x1234).unwrap();
    assert_eq!(
        (page.oa, page.page_len, page.level),
        (0xf_0000_1234_1234, 0x1_0000, 3)
    );
    assert_eq!(
        page.memory,
        MemoryAttributes::ArmStage1 {
            attr_indx: 1,
            sh: 3
        }
    );
    // Without 52-bit hardware those bits are RES0.
    let plain = Table::Arm(Config::stage1(half, 48));
    let memory = crate::memory(&[
        (0x1_0000, 0x1234_f003),
        (0x1234_0000, 0x2_0003),
        (0x2_0000, 0x1234_ff47),
    ]);
    assert_eq!(plain.walk(&memory, 0).unwrap().oa, 0x1234_0000);
}

#[test]
fn descriptors_of_52_bits_with_the_4k_granule_hold_the_top_in_bits_9_8() {
    let half = Half {
        sh: 2,
        ..Half::new(0x1000, 48, Granule::K4)
    };
    let table = Table::Arm(Config::stage1(half, 52).with_52_bits());
    let memory = memory(&[
        (0x1000, 0x2003),
        // The next table is at 0xf_0000_0000_3000: bits 51:50 in 9:8, 49:48 in place.
        (0x2000, 0x3303 | 3 << 48),
        (0xf_0000_0000_3000, 0x4003),
        (0x4000, 0x1234_5f47),
    ]);
    let page = table.walk(&memory, 0).unwrap();
    assert_eq!(page.oa, 0xc_0000_1234_5000);
    // Bits 9:8 are address, so the shareability is that of the control register.
    assert_eq!(
        page.memory,
        MemoryAttributes::ArmStage1 {
            attr_indx: 1,
            sh: 2
        }
    );
    // A group of 16 around bits 9:8.
    let words: Vec<u64> = (0..16)
        .map(|item| 0x10_0000_1234_0f47 + item * 0x1000)
        .collect();
    for (index, &word) in (0..).zip(&words) {
        let mut memory = memory.clone();
        memory.write64(0x4000 + 8 * index, word);
        assert_eq!(
            table.walk(&memory, index << 12).unwrap().oa,
            0xc_0000_1234_0000 + (index << 12)
        );
    }
}

#[test]
fn addresses_above_the_output_size_fault() {
    let narrow = Table::Arm(Config::stage1(K4, 44));
    let fault = Err(Fault::AddressSize {
        level: 3,
        address: 1 << 44,
    });
    assert_eq!(narrow.walk(&with_pages(&[1 << 44 | 0xf47]), 0), fault);
    assert_eq!(
        narrow.walk(&with_pages(&[1 << 43 | 0xf47]), 0).unwrap().oa,
        1 << 43
    );
    let fault = Err(Fault::AddressSize {
        level: 0,
        address: 1 << 44,
    });
    assert_eq!(narrow.walk(&memory(&[(0x1000, 1 << 44 | 3)]), 0), fault);
    // All 48 bits count, of pages and of tables.
    let full = Table::Arm(stage1());
    let page = full.walk(&with_pages(&[0xffff_ffff_ff47]), 0).unwrap();
    assert_eq!(page.oa, 0xffff_ffff_f000);
    let fault = Err(Fault::MissingMemory {
        address: 0xffff_ffff_f000,
    });
    assert_eq!(full.walk(&memory(&[(0x1000, 0xffff_ffff_f003)]), 0), fault);
    // Bits 51:48 are no address without 52-bit descriptors.
    let wide = Table::Arm(Config::stage1(K4, 52));
    assert_eq!(
        wide.walk(&with_pages(&[3 << 48 | 0x1f47]), 0).unwrap().oa,
        0x1000
    );
}

#[test]
fn blocks_of_the_larger_granules_stand_at_level_2() {
    for (granule, len) in [(Granule::K16, 1 << 25), (Granule::K64, 1 << 29)] {
        // 42 bits start at level 2 with 64 KiB, at level 1 with 16 KiB.
        let config = Config::stage1(Half::new(0x1_0000, 42, granule), 48);
        let memory = memory(&[
            (0x1_0000, 0x2_0003),
            (0x1_0008, 0x4000_0741),
            (0x2_0008, 0x4000_0741),
        ]);
        let block = Table::Arm(config).walk(&memory, len | 0x1234).unwrap();
        assert_eq!(
            (block.oa, block.page_len, block.level),
            (0x4000_1234, len, 2)
        );
    }
}

#[test]
fn descriptors_of_the_wrong_type_are_invalid() {
    let table = Table::Arm(stage1());
    for word in [0, 0b10, 0x1_2345_6f46] {
        assert_eq!(
            table.walk(&with_pages(&[word]), 0),
            Err(Fault::NotMapped { level: 3 })
        );
    }
    let word = 0x1_2345_6f45;
    assert_eq!(
        table.walk(&with_pages(&[word]), 0),
        Err(Fault::Reserved { level: 3, word })
    );
    // Blocks only where the granule has them.
    let cases = [
        (Config::stage1(Half::new(0x1_0000, 48, Granule::K4), 48), 0),
        (Config::stage1(Half::new(0x1_0000, 47, Granule::K16), 48), 1),
        (Config::stage1(Half::new(0x1_0000, 48, Granule::K64), 48), 1),
        (
            Config::stage1(Half::new(0x1_0000, 52, Granule::K4), 52).with_52_bits(),
            -1,
        ),
        (
            Config::stage1(Half::new(0x1_0000, 52, Granule::K16), 52).with_52_bits(),
            0,
        ),
    ];
    for (config, level) in cases {
        let word = AF | 0x41;
        let memory = memory(&[(0x1_0000, word)]);
        assert_eq!(
            Table::Arm(config).walk(&memory, 0),
            Err(Fault::Reserved { level, word })
        );
    }
}

#[test]
fn mali_has_stage_1_attributes_stage_2_rights_and_its_own_page_type() {
    // TRANSTAB: mode 3, READ_INNER, SHARE_OUTER.
    let table = Table::Arm(Config::mali(0x1000 | 0x17, 48, 40));
    let cases = [
        (0x1_2345_6ac9, "rwxu", 2),
        (0x1_2345_6a49, "r-xu", 2),
        (0x1_2345_6a81, "-w-u", 0),
        (0x40_0001_2345_6ac9, "rw-u", 2),
    ];
    for (word, expected, attr_indx) in cases {
        // No access flag: bit 10 is clear in half of these words after the mask.
        for word in [word, word & !AF] {
            let page = table.walk(&with_pages(&[word]), 0xfff).unwrap();
            assert_eq!((page.oa, page.level), (0x1_2345_6fff, 3));
            assert_eq!(rights(&page), expected, "{word:#x}");
            assert_eq!(
                page.memory,
                MemoryAttributes::ArmStage1 { attr_indx, sh: 2 }
            );
        }
    }
    let word = 0x1_2345_6acb;
    assert_eq!(
        table.walk(&with_pages(&[word]), 0),
        Err(Fault::Reserved { level: 3, word })
    );
    let block = table.walk(&with_block(0x1_2340_0ac9), 0x20_0000).unwrap();
    assert_eq!((block.oa, block.page_len), (0x1_2340_0000, 0x20_0000));
    let word = 0x1_2345_6a01;
    assert_eq!(
        table.walk(&with_pages(&[word]), 0),
        Err(Fault::NoAccess { level: 3 })
    );
}
