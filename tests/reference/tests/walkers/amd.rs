//! AMD host tables.

use iopt_reference::amd::Config;
use iopt_reference::{Fault, MemoryAttributes, PageMap, Rigour, ScanError, Setup, Table};

use crate::{LIMIT, first_read, leaves, memory, rights};

/// Three levels, whose first entries lead to a page table at `0x3000`.
fn with_pages(words: &[u64]) -> PageMap {
    let mut memory = memory(&[
        (0x1000, 0x6000_0000_0000_2401),
        (0x2000, 0x6000_0000_0000_3201),
    ]);
    for (index, &word) in (0..).zip(words) {
        memory.write64(0x3000 + 8 * index, word);
    }
    memory
}

fn table() -> Table {
    Table::AmdV1(Config::new(0x1000, 3))
}

#[test]
fn pages_of_the_default_size_decode_by_hand() {
    let cases = [
        (0x6000_0001_2345_6001, "rwxu", false, false),
        (0x2000_0001_2345_6001, "r-xu", false, false),
        (0x4000_0001_2345_6001, "-w-u", false, false),
        (0x7000_0001_2345_6001, "rwxu", true, false),
        (0x6000_0001_2345_6041, "rwxu", false, true),
        // U (59) and the ignored bits 63, 8:7, 4:1.
        (0xe800_0001_2345_619f, "rwxu", false, false),
    ];
    for (word, expected, fc, dirty) in cases {
        let page = table().walk(&with_pages(&[word]), 0x123).unwrap();
        assert_eq!(
            (page.oa, page.page_len, page.item_len),
            (0x1_2345_6123, 0x1000, 0x1000),
            "{word:#x}"
        );
        assert_eq!(
            (rights(&page).as_str(), page.dirty),
            (expected, dirty),
            "{word:#x}"
        );
        assert_eq!(page.memory, MemoryAttributes::Amd { fc });
        assert_eq!((page.level, page.word, page.accessed), (1, word, false));
    }
    let accessed = with_pages(&[0x6000_0001_2345_6021]);
    assert!(table().walk(&accessed, 0).unwrap().accessed);
    // A page of 2 MiB, and one of 1 GiB, by default of their level.
    let memory = memory(&[
        (0x1000, 0x6000_0000_0000_2401),
        (0x1008, 0x6000_0001_4000_0001),
        (0x2000, 0x6000_0001_2340_0001),
    ]);
    let page = table().walk(&memory, 0x12_3456).unwrap();
    assert_eq!(
        (page.oa, page.page_len, page.level),
        (0x1_2352_3456, 0x20_0000, 2)
    );
    let page = table().walk(&memory, 0x7fff_ffff).unwrap();
    assert_eq!(
        (page.oa, page.page_len, page.level),
        (0x1_7fff_ffff, 0x4000_0000, 3)
    );
}

#[test]
fn every_encoded_size_of_the_ladder_decodes() {
    let ladder = [
        (0x6000_0001_2340_0e01, 0x2000),
        (0x6000_0001_2340_1e01, 0x4000),
        (0x6000_0001_2340_3e01, 0x8000),
        (0x6000_0001_2340_7e01, 0x1_0000),
        (0x6000_0001_2340_fe01, 0x2_0000),
        (0x6000_0001_2341_fe01, 0x4_0000),
        (0x6000_0001_2343_fe01, 0x8_0000),
        (0x6000_0001_2347_fe01, 0x10_0000),
    ];
    for (word, len) in ladder {
        let memory = with_pages(&vec![word; (len / 0x1000) as usize]);
        let page = table().walk(&memory, len - 1).unwrap();
        assert_eq!(
            (page.oa, page.page_len),
            (0x1_2340_0000 + len - 1, len),
            "{word:#x}"
        );
        assert_eq!(page.item_len, 0x1000);
        assert_eq!(
            table().walk(&memory, len),
            Err(Fault::NotMapped { level: 1 })
        );
        let found = leaves(&table(), &memory).unwrap();
        assert_eq!(found.len() as u64, len / 0x1000);
        for (iova, item) in found {
            assert_eq!((item.oa, item.page_len), (0x1_2340_0000 + iova, len));
        }
    }
    // 64 KiB not at a multiple of its size times two: bits above the size stay.
    let page = table()
        .walk(&with_pages(&[0x6000_0001_2345_7e01; 16]), 0xf123)
        .unwrap();
    assert_eq!((page.oa, page.page_len), (0x1_2345_f123, 0x1_0000));
}

#[test]
fn encoded_sizes_scale_with_the_level() {
    // 4 MiB, two items of level 2.
    let word = 0x6000_0001_235f_fe01;
    let memory = memory(&[
        (0x1000, 0x6000_0000_0000_2401),
        (0x2000, word),
        (0x2008, word),
    ]);
    let page = table().walk(&memory, 0x3f_ffff).unwrap();
    assert_eq!(
        (page.oa, page.page_len, page.item_len),
        (0x1_237f_ffff, 0x40_0000, 0x20_0000)
    );
    assert_eq!(page.level, 2);
}

#[test]
fn sizes_of_another_level_are_reserved() {
    // 2 MiB (the next level's own), 8 KiB and 2 MiB (its own) in a level 2 table, and no size.
    let at_level_2 = |word| memory(&[(0x1000, 0x6000_0000_0000_2401), (0x2000, word)]);
    let word = 0x6000_0001_234f_fe01;
    assert_eq!(
        table().walk(&with_pages(&[word]), 0),
        Err(Fault::Reserved { level: 1, word })
    );
    for word in [
        0x6000_0001_2340_0e01,
        0x6000_0001_234f_fe01,
        0x600f_ffff_ffff_fe01,
    ] {
        assert_eq!(
            table().walk(&at_level_2(word), 0),
            Err(Fault::Reserved { level: 2, word }),
            "{word:#x}"
        );
    }
}

#[test]
fn reserved_encodings_fault() {
    // Next Level not below the table's own, bits 60:52 of a pointer, bits 58:52 of a page.
    for word in [
        0x6000_0000_0000_2601,
        0x6000_0000_0000_2801,
        0x7000_0000_0000_2401,
        0x6010_0000_0000_2401,
    ] {
        let fault = Err(Fault::Reserved { level: 3, word });
        assert_eq!(
            table().walk(&memory(&[(0x1000, word)]), 0),
            fault,
            "{word:#x}"
        );
    }
    let word = 0x6400_0000_0000_5001;
    assert_eq!(
        table().walk(&with_pages(&[word]), 0),
        Err(Fault::Reserved { level: 1, word })
    );
    let word = 0x6010_0000_0000_5001;
    assert_eq!(
        table().walk(&with_pages(&[word]), 0),
        Err(Fault::Reserved { level: 1, word })
    );
    // A page of 2^49 bytes, two items of level 5, is legal.
    let five = Table::AmdV1(Config::new(0x1000, 5));
    let word = 0x6000_ffff_ffff_fe01;
    assert_eq!(
        five.walk(&memory(&[(0x1000, word)]), 0).unwrap().page_len,
        1 << 49
    );
    // A page in a level 6 table.
    let six = Table::AmdV1(Config::new(0x1000, 6));
    let word = 0x6000_0000_0000_0001;
    assert_eq!(
        six.walk(&memory(&[(0x1000, word)]), 0),
        Err(Fault::Reserved { level: 6, word })
    );
    // Bits 51:12 are address, of pointers and pages.
    let high = memory(&[
        (0x1000, 0x6008_0000_0000_2401),
        (0x8_0000_0000_2000, 0x6008_0000_0000_0001),
    ]);
    assert_eq!(table().walk(&high, 0x123).unwrap().oa, 0x8_0000_0000_0123);
    // Not present, whatever else it says.
    assert_eq!(
        table().walk(&memory(&[(0x1000, !1)]), 0),
        Err(Fault::NotMapped { level: 3 })
    );
}

#[test]
fn skipped_levels_need_zero_address_bits() {
    // From level 4 straight to a level 1 table.
    let table = Table::AmdV1(Config::new(0x1000, 4));
    let memory = memory(&[
        (0x1010, 0x6000_0000_0000_2201),
        (0x2018, 0x6000_0000_0000_7001),
    ]);
    let iova = 2 << 39 | 3 << 12;
    assert_eq!(table.walk(&memory, iova | 0x45).unwrap().oa, 0x7045);
    for stray in [1 << 21, 1 << 30, 1 << 38] {
        assert_eq!(
            table.walk(&memory, iova | stray),
            Err(Fault::NotMapped { level: 4 })
        );
    }
    let found = leaves(&table, &memory).unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].0, found[0].1.oa), (iova, 0x7000));
}

#[test]
fn six_levels_cover_64_bits() {
    let six = Table::AmdV1(Config::new(0x1000, 6));
    assert_eq!(first_read(&six, u64::MAX), Ok(0x1000 + 8 * 127));
    // Skip to level 1 from the very last entry of the root.
    let memory = memory(&[
        (0x1000 + 8 * 127, 0x6000_0000_0000_2201),
        (0x2000, 0x6000_0000_0000_7001),
    ]);
    assert_eq!(six.walk(&memory, 127 << 57).unwrap().oa, 0x7000);
    assert_eq!(leaves(&six, &memory).unwrap()[0].0, 127 << 57);
    // The root has 128 entries; what follows is none of it.
    let mut memory = memory;
    memory.write64(0x1000 + 8 * 128, 0x6000_0000_0000_2201);
    assert_eq!(leaves(&six, &memory).unwrap().len(), 1);
}

#[test]
fn modes_give_the_input_width() {
    assert_eq!(
        first_read(&Table::AmdV1(Config::new(0x1fff, 3)), 0),
        Ok(0x1000)
    );
    let high = 0x8_0000_0000_1000;
    assert_eq!(first_read(&Table::AmdV1(Config::new(high, 3)), 0), Ok(high));
    for mode in 1..=5 {
        let table = Table::AmdV1(Config::new(0x1000, mode));
        let end = 1 << (12 + 9 * u64::from(mode));
        assert_eq!(first_read(&table, end - 1), Ok(0x1ff8));
        assert_eq!(
            first_read(&table, end),
            Err(Fault::OutOfWindow { iova: end })
        );
    }
    for mode in [0, 7] {
        assert_eq!(
            Config::new(0, mode).check(),
            Err(Setup::Levels {
                levels: mode.cast_signed()
            })
        );
    }
}

#[test]
fn rights_are_intersected_from_the_device_table_entry_on() {
    let memory = with_pages(&[0x6000_0000_0000_5001, 0x2000_0000_0000_5001]);
    let read_only = Table::AmdV1(Config {
        write: false,
        ..Config::new(0x1000, 3)
    });
    assert_eq!(rights(&read_only.walk(&memory, 0).unwrap()), "r-xu");
    let write_only = Table::AmdV1(Config {
        read: false,
        ..Config::new(0x1000, 3)
    });
    assert_eq!(rights(&write_only.walk(&memory, 0).unwrap()), "-w-u");
    assert_eq!(
        write_only.walk(&memory, 0x1000),
        Err(Fault::NoAccess { level: 1 })
    );
    // A pointer without IW takes the right from all below it.
    let mut memory = memory;
    memory.write64(0x2000, 0x2000_0000_0000_3201);
    assert_eq!(rights(&table().walk(&memory, 0).unwrap()), "r-xu");
}

#[test]
fn all_items_of_a_page_must_hold_the_same_word() {
    let word = 0x6000_0001_2340_1e01; // 16 KiB
    let mut memory = with_pages(&[word; 4]);
    assert_eq!(leaves(&table(), &memory).unwrap().len(), 4);
    // Hardware may mark any one item accessed and dirty.
    memory.write64(0x3010, word | 1 << 5 | 1 << 6);
    // Bits 63, 8:7 and 4:1 are ignored.
    memory.write64(0x3008, word | 1 << 63 | 0x19e);
    assert_eq!(leaves(&table(), &memory).unwrap().len(), 4);
    for other in [
        0,
        word & !(1 << 62),
        word + 0x4000,
        word & !0x1000,
        word & !(1 << 9),
    ] {
        memory.write64(0x3018, other);
        let inconsistent = ScanError::Inconsistent {
            iova: 0x3000,
            first: word,
            word: other,
        };
        assert_eq!(leaves(&table(), &memory), Err(inconsistent));
        let mut count = 0;
        table()
            .enumerate(&memory, LIMIT, Rigour::Lenient, |_| count += 1)
            .unwrap();
        // Next Level 6 is reserved here.
        let is_left_out = other == 0 || other == word & !(1 << 9);
        assert_eq!(count, if is_left_out { 3 } else { 4 });
    }
    // An item without its first.
    let stray = with_pages(&[0, word]);
    let inconsistent = ScanError::Inconsistent {
        iova: 0x1000,
        first: 0,
        word,
    };
    assert_eq!(leaves(&table(), &stray), Err(inconsistent));
}
