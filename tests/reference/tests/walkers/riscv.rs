//! RISC-V first stage and G-stage.

use iopt_reference::riscv::{Config, Stage};
use iopt_reference::{Fault, MemoryAttributes, PageMap, Rigour, ScanError, Setup, Table};

use crate::{LIMIT, first_read, leaves, memory, rights};

/// Three levels, whose first entries lead to a page table at `0x3000`: PPN 2 and PPN 3.
fn with_pages(words: &[u64]) -> PageMap {
    let mut memory = memory(&[(0x1000, 2 << 10 | 1), (0x2000, 3 << 10 | 1)]);
    for (index, &word) in (0..).zip(words) {
        memory.write64(0x3000 + 8 * index, word);
    }
    memory
}

fn config() -> Config {
    Config::new(Stage::First, 0x1000, 3)
}

fn table() -> Table {
    Table::Riscv(config())
}

#[test]
fn pages_of_4k_decode_by_hand() {
    let cases = [
        (0x48d1_58df, "rwxu", 0, true),
        (0x48d1_5853, "r--u", 0, false),
        (0x2000_0000_48d1_58d7, "rw-u", 1, true),
        (0x4000_0000_48d1_58d7, "rw-u", 2, true),
        // Execute-only, supervisor, G and both software bits.
        (0x48d1_5869 | 3 << 8, "--x-", 0, false),
    ];
    for (word, expected, pbmt, dirty) in cases {
        let page = table().walk(&with_pages(&[word]), 0xfed).unwrap();
        assert_eq!(
            (page.oa, page.page_len, page.level),
            (0x1_2345_6fed, 0x1000, 0),
            "{word:#x}"
        );
        assert_eq!(
            (rights(&page).as_str(), page.dirty),
            (expected, dirty),
            "{word:#x}"
        );
        assert_eq!(page.memory, MemoryAttributes::Riscv { pbmt });
    }
}

#[test]
fn leaves_stand_at_every_level() {
    let memory = memory(&[
        (0x1000, 2 << 10 | 1),
        (0x1008, 0x5000_00d7),
        (0x2008, 0x48d0_00d7),
    ]);
    let page = table().walk(&memory, 0x20_0000 + 0x12_3456).unwrap();
    assert_eq!(
        (page.oa, page.page_len, page.level),
        (0x1_2352_3456, 0x20_0000, 1)
    );
    let page = table().walk(&memory, 0x4000_0000 + 0x3fff_ffff).unwrap();
    assert_eq!(
        (page.oa, page.page_len, page.level),
        (0x1_7fff_ffff, 0x4000_0000, 2)
    );
    // 512 GiB at the root of Sv48, 256 TiB at the root of Sv57.
    for (levels, len) in [(4, 1u64 << 39), (5, 1 << 48)] {
        let table = Table::Riscv(Config::new(Stage::First, 0x1000, levels));
        let memory = crate::memory(&[(0x1000, len >> 2 | 0xd7)]);
        let page = table.walk(&memory, len - 1).unwrap();
        assert_eq!((page.oa, page.page_len), (2 * len - 1, len));
    }
}

#[test]
fn a_napot_page_is_16_equal_items() {
    let word = 0x8000_0000_48d1_60d7;
    let memory = with_pages(&[word; 16]);
    let page = table().walk(&memory, 0xfabc).unwrap();
    assert_eq!(
        (page.oa, page.page_len, page.item_len),
        (0x1_2345_fabc, 0x1_0000, 0x1000)
    );
    assert_eq!(page.memory, MemoryAttributes::Riscv { pbmt: 0 });
    let found = leaves(&table(), &memory).unwrap();
    assert_eq!(found.len(), 16);
    assert_eq!((found[3].0, found[3].1.oa), (0x3000, 0x1_2345_3000));
}

#[test]
fn a_napot_page_whose_items_differ_is_inconsistent() {
    let word = 0x8000_0000_48d1_60d7;
    let mut memory = with_pages(&[word; 16]);
    // Hardware may leave D clear in some items; RSW belongs to software.
    memory.write64(0x3008, word & !(1 << 7) | 1 << 8);
    assert!(leaves(&table(), &memory).is_ok());
    for other in [0, word & !(1 << 63), word & !(1 << 2), word + (16 << 10)] {
        memory.write64(0x3078, other);
        let inconsistent = ScanError::Inconsistent {
            iova: 0xf000,
            first: word,
            word: other,
        };
        assert_eq!(leaves(&table(), &memory), Err(inconsistent), "{other:#x}");
        assert_eq!(
            table().enumerate(&memory, LIMIT, Rigour::Lenient, |_| ()),
            Ok(())
        );
    }
    // An item without its first.
    let inconsistent = ScanError::Inconsistent {
        iova: 0x1000,
        first: 0,
        word,
    };
    assert_eq!(leaves(&table(), &with_pages(&[0, word])), Err(inconsistent));
}

#[test]
fn reserved_encodings_fault() {
    let page = 0x48d1_58d7;
    let reserved_pages = [
        page & !2,             // W without R
        page | 1 << 54,        // reserved
        page | 1 << 60,        // reserved
        page | 3 << 61,        // PBMT 3
        page | 1 << 63,        // N with another pattern than 0b1000
        0x8000_0000_48d1_70d7, // N with 0b1100
        0x8000_0000_48d1_40d7, // N with 0b0000
        3 << 10 | 1,           // a pointer at level 0
    ];
    for word in reserved_pages {
        let fault = Err(Fault::Reserved { level: 0, word });
        assert_eq!(table().walk(&with_pages(&[word]), 0), fault, "{word:#x}");
    }
    // A pointer with A, D, U, PBMT or N; a large page that is not aligned or has N.
    let pointer = 3 << 10 | 1;
    let large = 0x48d0_00d7;
    for word in [
        pointer | 1 << 6,
        pointer | 1 << 7,
        pointer | 1 << 4,
        pointer | 1 << 61,
        pointer | 1 << 63,
        large | 1 << 10,
        large | 1 << 18,
        large | 1 << 63,
    ] {
        let memory = memory(&[(0x1000, 2 << 10 | 1), (0x2000, word)]);
        assert_eq!(
            table().walk(&memory, 0),
            Err(Fault::Reserved { level: 1, word }),
            "{word:#x}"
        );
        let fault = Fault::Reserved { level: 1, word };
        assert_eq!(
            leaves(&table(), &memory),
            Err(ScanError::Faulty { iova: 0, fault })
        );
    }
    assert_eq!(
        table().walk(&with_pages(&[!1]), 0),
        Err(Fault::NotMapped { level: 0 })
    );
}

#[test]
fn extensions_that_are_not_there_are_reserved() {
    let no_napot = Table::Riscv(Config {
        svnapot: false,
        ..config()
    });
    let word = 0x8000_0000_48d1_60d7;
    assert_eq!(
        no_napot.walk(&with_pages(&[word]), 0),
        Err(Fault::Reserved { level: 0, word })
    );
    let no_pbmt = Table::Riscv(Config {
        svpbmt: false,
        ..config()
    });
    let word = 0x2000_0000_48d1_58d7;
    assert_eq!(
        no_pbmt.walk(&with_pages(&[word]), 0),
        Err(Fault::Reserved { level: 0, word })
    );
}

#[test]
fn accessed_and_dirty_are_the_business_of_software_unless_hardware_updates_them() {
    let neither = 0x48d1_5817; // V R W U
    let hardware = Table::Riscv(Config {
        hardware_ad: true,
        ..config()
    });
    assert_eq!(
        table().walk(&with_pages(&[neither]), 0),
        Err(Fault::AccessFlag { level: 0 })
    );
    let page = hardware.walk(&with_pages(&[neither]), 0).unwrap();
    assert_eq!(
        (rights(&page).as_str(), page.accessed, page.dirty),
        ("rw-u", false, false)
    );
    let clean = neither | 1 << 6;
    assert_eq!(
        rights(&table().walk(&with_pages(&[clean]), 0).unwrap()),
        "r--u"
    );
    assert_eq!(
        rights(&hardware.walk(&with_pages(&[clean]), 0).unwrap()),
        "rw-u"
    );
}

#[test]
fn the_first_stage_is_sign_extended() {
    for (levels, width) in [(3, 39), (4, 48), (5, 57)] {
        let table = Table::Riscv(Config::new(Stage::First, 0x1000, levels));
        let lower = (1u64 << (width - 1)) - 1;
        assert_eq!(first_read(&table, lower), Ok(0x1000 + 8 * 255));
        assert_eq!(first_read(&table, !lower), Ok(0x1000 + 8 * 256));
        for iova in [lower + 1, !lower - 1] {
            assert_eq!(first_read(&table, iova), Err(Fault::OutOfWindow { iova }));
        }
    }
    let memory = memory(&[(0x1ff8, 0x5000_00d7)]);
    assert_eq!(
        leaves(&table(), &memory).unwrap()[0].0,
        0xffff_ffff_c000_0000
    );
}

#[test]
fn the_g_stage_has_two_more_bits_and_a_root_of_16k() {
    for (levels, width) in [(3, 41), (4, 50), (5, 59)] {
        let table = Table::Riscv(Config::new(Stage::G, 0x4000, levels));
        assert_eq!(first_read(&table, (1 << width) - 1), Ok(0x4000 + 8 * 2047));
        assert_eq!(
            first_read(&table, 1 << width),
            Err(Fault::OutOfWindow { iova: 1 << width })
        );
    }
    let memory = memory(&[(0x4000, 0), (0x5000, 0), (0x6000, 0), (0x7ff8, 0x5000_00d7)]);
    let table = Table::Riscv(Config::new(Stage::G, 0x4000, 3));
    assert_eq!(leaves(&table, &memory).unwrap()[0].0, 0x1ff_c000_0000);
    assert_eq!(
        table.walk(&memory, 0x1ff_c000_0001).unwrap().oa,
        0x1_4000_0001
    );
    assert_eq!(
        Config::new(Stage::G, 0x5000, 3).check(),
        Err(Setup::Root { root: 0x5000 })
    );
    assert_eq!(Config::new(Stage::First, 0x5000, 3).check(), Ok(()));
    for levels in [0u8, 2, 6] {
        let setup = Setup::Levels {
            levels: levels.cast_signed(),
        };
        assert_eq!(
            Config::new(Stage::First, 0x5000, levels).check(),
            Err(setup)
        );
    }
}

#[test]
fn every_leaf_of_the_g_stage_needs_u() {
    let table = Table::Riscv(Config::new(Stage::G, 0x4000, 3));
    let memory = memory(&[(0x4000, 0x5000_00c7)]);
    assert_eq!(table.walk(&memory, 0), Err(Fault::NoAccess { level: 2 }));
}

#[test]
fn output_addresses_have_56_bits() {
    let page = 0x3f_ffff_ffff_fc00 | 0xd7;
    assert_eq!(
        table().walk(&with_pages(&[page]), 0).unwrap().oa,
        0xff_ffff_ffff_f000
    );
    let napot = 0x8000_0000_0000_0000 | 0x3f_ffff_ffff_e000 | 0xd7;
    let page_64k = table().walk(&with_pages(&[napot]), 0x123).unwrap();
    assert_eq!(page_64k.oa, 0xff_ffff_ffff_0123);
    let narrow = Table::Riscv(Config {
        oa_bits: 46,
        ..config()
    });
    let fault = Fault::AddressSize {
        level: 0,
        address: 0xff_ffff_ffff_f000,
    };
    assert_eq!(narrow.walk(&with_pages(&[page]), 0), Err(fault));
}
