//! x86-64, VT-d first stage, AMD guest tables.

use iopt_reference::x86::{Config, ExecuteDisable};
use iopt_reference::{Fault, MemoryAttributes, PageMap, Setup, Table};

use crate::{first_read, leaves, memory, rights};

const XD: u64 = 1 << 63;

/// Four levels, whose first entries lead to a page table at `0x4000`.
fn with_page(word: u64) -> PageMap {
    memory(&[
        (0x1000, 0x2027),
        (0x2000, 0x3027),
        (0x3000, 0x4027),
        (0x4000, word),
    ])
}

fn table() -> Table {
    Table::LongMode(Config::new(0x1000, 4))
}

#[test]
fn pages_of_4k_decode_by_hand() {
    let cases = [
        (0x1_2345_6025, "r-xu", true, false),
        (0x1_2345_6067, "rwxu", true, true),
        (0x1_2345_6003, "rwx-", false, false),
        (0x1_2345_6067 | XD, "rw-u", true, true),
        // G, VT-d EA and software bits.
        (
            0x1_2345_6025 | 1 << 8 | 1 << 9 | 1 << 10 | 1 << 11 | 0x7ff << 52,
            "r-xu",
            true,
            false,
        ),
    ];
    for (word, expected, accessed, dirty) in cases {
        let page = table().walk(&with_page(word), 0xfff).unwrap();
        assert_eq!(page.oa, 0x1_2345_6fff, "{word:#x}");
        assert_eq!((page.page_len, page.level), (0x1000, 1));
        assert_eq!(
            (rights(&page).as_str(), page.accessed, page.dirty),
            (expected, accessed, dirty),
            "{word:#x}"
        );
    }
}

#[test]
fn large_pages_stand_at_levels_2_and_3() {
    let memory = memory(&[
        (0x1000, 0x2027),
        (0x2000, 0x3027),
        (0x2008, 0x1_4000_00e7),
        (0x3008, 0x1_2340_00e7),
    ]);
    let page = table().walk(&memory, 0x20_0000 + 0x12_3456).unwrap();
    assert_eq!(
        (page.oa, page.page_len, page.level),
        (0x1_2352_3456, 0x20_0000, 2)
    );
    let page = table().walk(&memory, 0x4000_0000 + 0x3fff_ffff).unwrap();
    assert_eq!(
        (page.oa, page.page_len, page.level),
        (0x1_7fff_ffff, 0x4000_0000, 3)
    );
    assert_eq!(leaves(&table(), &memory).unwrap().len(), 2);
}

#[test]
fn pat_stands_in_bit_7_of_small_and_bit_12_of_large_pages() {
    let small = table()
        .walk(&with_page(0x5001 | 1 << 7 | 1 << 3), 0)
        .unwrap();
    assert_eq!(
        small.memory,
        MemoryAttributes::LongMode { pat_index: 0b101 }
    );
    let memory = memory(&[
        (0x1000, 0x2027),
        (0x2000, 0x3027),
        (0x3000, 0x20_0081 | 1 << 12 | 1 << 4),
    ]);
    let large = table().walk(&memory, 0).unwrap();
    assert_eq!(
        large.memory,
        MemoryAttributes::LongMode { pat_index: 0b110 }
    );
    assert_eq!(large.oa, 0x20_0000);
    let memory = crate::memory(&[(0x1000, 0x2027), (0x2000, 0x3027), (0x3000, 0x20_0089)]);
    let large = table().walk(&memory, 0).unwrap();
    assert_eq!(large.memory, MemoryAttributes::LongMode { pat_index: 1 });
}

#[test]
fn rights_are_intersected_on_the_way() {
    let page = 0x5067;
    let with_top = |top| {
        memory(&[
            (0x1000, top),
            (0x2000, 0x3027),
            (0x3000, 0x4027),
            (0x4000, page),
        ])
    };
    for (top, expected) in [
        (0x2027, "rwxu"),
        (0x2025, "r-xu"),
        (0x2023, "rwx-"),
        (0x2027 | XD, "rw-u"),
    ] {
        assert_eq!(
            rights(&table().walk(&with_top(top), 0).unwrap()),
            expected,
            "{top:#x}"
        );
    }
}

#[test]
fn bit_63_means_what_the_configuration_says() {
    let word = 0x5067 | XD;
    let walk = |execute_disable| {
        let config = Config {
            execute_disable,
            ..Config::new(0x1000, 4)
        };
        Table::LongMode(config).walk(&with_page(word), 0)
    };
    assert!(!walk(ExecuteDisable::Enabled).unwrap().execute);
    assert!(walk(ExecuteDisable::Ignored).unwrap().execute);
    assert_eq!(
        walk(ExecuteDisable::Reserved),
        Err(Fault::Reserved { level: 1, word })
    );
}

#[test]
fn reserved_encodings_fault() {
    let at_level = |level: u64, word| {
        let mut memory = with_page(0);
        memory.write64((5 - level) << 12, word);
        memory
    };
    // Bits 20:13 of a 2 MiB page, 29:13 of a 1 GiB page, PS at level 4.
    for (level, word) in [
        (2, 0x20_2081),
        (2, 0x30_0081),
        (3, 0x4020_0081),
        (3, 0x6000_0081),
        (4, 0x2081),
    ] {
        let fault = Err(Fault::Reserved {
            level: level as i8,
            word,
        });
        assert_eq!(table().walk(&at_level(level, word), 0), fault, "{word:#x}");
    }
    // An entry without P is not present whatever else it says.
    assert_eq!(
        table().walk(&at_level(3, !1), 0),
        Err(Fault::NotMapped { level: 3 })
    );
}

#[test]
fn pointers_have_40_address_bits_between_ignored_ones() {
    let far = 0x8_0000_0000_2000;
    let memory = memory(&[(0x1000, far | 0x7ff0_0000_0000_0f27), (far, 0x5000_00e7)]);
    // Bit 29 of a 1 GiB page is reserved, so this shows that the entry was read.
    let fault = Fault::Reserved {
        level: 3,
        word: 0x5000_00e7,
    };
    assert_eq!(table().walk(&memory, 0), Err(fault));
}

#[test]
fn addresses_are_as_wide_as_the_host_says() {
    let narrow = Table::LongMode(Config::vtd_first(0x1000, 4, 46));
    let fault = Fault::AddressSize {
        level: 1,
        address: 1 << 46,
    };
    assert_eq!(narrow.walk(&with_page(1 << 46 | 0x67), 0), Err(fault));
    assert_eq!(
        table().walk(&with_page(0xf_ffff_ffff_f067), 0).unwrap().oa,
        0xf_ffff_ffff_f000
    );
}

#[test]
fn addresses_are_canonical_with_sign_extension_and_zero_extended_without() {
    for (levels, width) in [(4, 48), (5, 57)] {
        let signed = Table::LongMode(Config::new(0x1000, levels));
        let lower = (1u64 << (width - 1)) - 1;
        let upper = !lower;
        assert_eq!(first_read(&signed, lower), Ok(0x1000 + 8 * 255));
        assert_eq!(first_read(&signed, upper), Ok(0x1000 + 8 * 256));
        assert_eq!(first_read(&signed, u64::MAX), Ok(0x1ff8));
        for iova in [lower + 1, upper - 1, 1 << 63] {
            assert_eq!(first_read(&signed, iova), Err(Fault::OutOfWindow { iova }));
        }
        let plain = Config {
            sign_extended: false,
            ..Config::new(0x1000, levels)
        };
        assert_eq!(
            first_read(&Table::LongMode(plain), lower + 1),
            Ok(0x1000 + 8 * 256)
        );
        let iova = 1 << width;
        assert_eq!(
            first_read(&Table::LongMode(plain), iova),
            Err(Fault::OutOfWindow { iova })
        );
    }
    for levels in [0u8, 3, 6] {
        let setup = Setup::Levels {
            levels: levels.cast_signed(),
        };
        assert_eq!(Config::new(0, levels).check(), Err(setup));
    }
}

#[test]
fn the_upper_half_is_enumerated_with_canonical_addresses() {
    let memory = memory(&[(0x1800, 0x2027), (0x2ff8, 0x8000_00e7)]);
    let found = leaves(&table(), &memory).unwrap();
    assert_eq!(found[0].0, 0xffff_807f_c000_0000);
    assert_eq!(
        table().walk(&memory, found[0].0 + 5).unwrap().oa,
        0x8000_0005
    );
    let plain = Table::LongMode(Config {
        sign_extended: false,
        ..Config::new(0x1000, 4)
    });
    assert_eq!(leaves(&plain, &memory).unwrap()[0].0, 0x807f_c000_0000);
}

#[test]
fn only_bits_51_to_12_of_the_root_register_are_address() {
    let top = Table::LongMode(Config::new(0x8_0000_0000_1000, 4));
    assert_eq!(first_read(&top, 0), Ok(0x8_0000_0000_1000));
    for root in [0x1018, 0xfff0_0000_0000_1000] {
        let table = Table::LongMode(Config::new(root, 4));
        assert_eq!(first_read(&table, 0), Ok(0x1000));
        assert_eq!(leaves(&table, &memory(&[(0x1000, 0)])), Ok(vec![]));
    }
}
