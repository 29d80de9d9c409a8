//! VT-d second stage.

use iopt_reference::vtd::Config;
use iopt_reference::{Fault, MemoryAttributes, ScanError, Setup, Table};

use crate::{first_read, leaves, memory, rights};

/// Three levels, whose first entries lead to a page table at `0x3000`.
fn with_page(word: u64) -> iopt_reference::PageMap {
    memory(&[(0x1000, 0x2003), (0x2000, 0x3003), (0x3000, word)])
}

fn table() -> Table {
    Table::VtdSecond(Config::new(0x1000, 3))
}

#[test]
fn pages_of_4k_decode_by_hand() {
    let cases = [
        (0x1_2345_6003, "rwxu", false),
        (0x1_2345_6001, "r-xu", false),
        (0x1_2345_6002, "-w-u", false),
        (0x1_2345_6803, "rwxu", false),
        (0x1_2345_6203, "rwxu", true),
        // X (bit 2), software bits (10, 60:52, 63) and bit 7, which means nothing here.
        (0x9ff0_0001_2345_6483 | 1 << 2, "rwxu", false),
    ];
    for (word, expected, dirty) in cases {
        let page = table().walk(&with_page(word), 0xabc).unwrap();
        assert_eq!(page.oa, 0x1_2345_6abc, "{word:#x}");
        assert_eq!(
            (page.page_len, page.item_len, page.level),
            (0x1000, 0x1000, 1)
        );
        assert_eq!(
            (rights(&page).as_str(), page.dirty, page.word),
            (expected, dirty, word)
        );
    }
}

#[test]
fn attributes_are_reported_raw() {
    let accessed = table().walk(&with_page(0x1_2345_6103), 0).unwrap();
    assert!(accessed.accessed && !accessed.dirty);
    // EMT 6 (write-back), IPAT, SNP, A.
    let page = table()
        .walk(
            &with_page(0x1_2345_6003 | 6 << 3 | 1 << 6 | 1 << 8 | 1 << 11),
            0,
        )
        .unwrap();
    assert_eq!(
        page.memory,
        MemoryAttributes::VtdSecond {
            emt: 6,
            ipat: true,
            snp: true
        }
    );
    let page = table().walk(&with_page(0x1_2345_6003 | 4 << 3), 0).unwrap();
    let attributes = MemoryAttributes::VtdSecond {
        emt: 4,
        ipat: false,
        snp: false,
    };
    assert_eq!(page.memory, attributes);
    assert!(!page.accessed);
}

#[test]
fn large_pages_stand_at_levels_2_and_3() {
    let memory = memory(&[
        (0x1000, 0x2003),
        (0x1008, 0x1_4000_0083),
        (0x2008, 0x1_2340_0083),
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
    let found = leaves(&table(), &memory).unwrap();
    let found: Vec<_> = found
        .iter()
        .map(|(iova, page)| (*iova, page.oa, page.item_len))
        .collect();
    assert_eq!(
        found,
        [
            (0x20_0000, 0x1_2340_0000, 0x20_0000),
            (0x4000_0000, 0x1_4000_0000, 0x4000_0000)
        ]
    );
}

#[test]
fn an_entry_that_grants_nothing_is_not_present_whatever_else_it_says() {
    for word in [0, 0x1_2345_6000, 1 << 2, 1 << 9 | 1 << 63] {
        assert_eq!(
            table().walk(&with_page(word), 0),
            Err(Fault::NotMapped { level: 1 })
        );
        assert_eq!(leaves(&table(), &with_page(word)), Ok(vec![]));
    }
}

#[test]
fn rights_are_intersected_on_the_way() {
    let read_only_above = memory(&[
        (0x1000, 0x2001),
        (0x2000, 0x3003),
        (0x3000, 0x5003),
        (0x3008, 0x5002),
    ]);
    assert_eq!(rights(&table().walk(&read_only_above, 0).unwrap()), "r-xu");
    assert_eq!(
        table().walk(&read_only_above, 0x1000),
        Err(Fault::NoAccess { level: 1 })
    );
    let fault = Fault::NoAccess { level: 1 };
    assert_eq!(
        leaves(&table(), &read_only_above),
        Err(ScanError::Faulty {
            iova: 0x1000,
            fault
        })
    );
}

#[test]
fn reserved_encodings_fault() {
    let at_level_2 = |word| memory(&[(0x1000, 0x2003), (0x2000, word)]);
    let fault = |word| Err(Fault::Reserved { level: 2, word });
    // Address bits below a large page's size, up to the highest.
    for word in [0x1_2340_1083, 0x1_2350_0083] {
        assert_eq!(table().walk(&at_level_2(word), 0), fault(word));
    }
    let no_snoop = Table::VtdSecond(Config {
        snoop_control: false,
        ..Config::new(0x1000, 3)
    });
    assert_eq!(no_snoop.walk(&at_level_2(0x20_0883), 0), fault(0x20_0883));
    assert!(table().walk(&at_level_2(0x20_0883), 0).is_ok());
    // TM, and both SNP and TM of a pointer.
    let word = 0x20_0083 | 1 << 62;
    assert_eq!(table().walk(&at_level_2(word), 0), fault(word));
    let device_tlb = Table::VtdSecond(Config {
        device_tlb: true,
        ..Config::new(0x1000, 3)
    });
    assert!(device_tlb.walk(&at_level_2(word), 0).is_ok());
    for word in [0x3803, 0x3003 | 1 << 62] {
        assert_eq!(device_tlb.walk(&at_level_2(word), 0), fault(word));
    }
    let only_1g = Table::VtdSecond(Config {
        large_pages: 2,
        ..Config::new(0x1000, 3)
    });
    assert_eq!(only_1g.walk(&at_level_2(0x20_0083), 0), fault(0x20_0083));
    let only_2m = Table::VtdSecond(Config {
        large_pages: 1,
        ..Config::new(0x1000, 3)
    });
    assert!(only_2m.walk(&at_level_2(0x20_0083), 0).is_ok());
    let four_levels = Table::VtdSecond(Config::new(0x1000, 4));
    let word = 0x4000_0083;
    assert_eq!(
        four_levels.walk(&memory(&[(0x1000, word)]), 0),
        Err(Fault::Reserved { level: 4, word })
    );
}

#[test]
fn addresses_are_as_wide_as_the_host_says() {
    let narrow = Table::VtdSecond(Config {
        oa_bits: 39,
        ..Config::new(0x1000, 3)
    });
    let fault = Err(Fault::AddressSize {
        level: 1,
        address: 1 << 39,
    });
    assert_eq!(narrow.walk(&with_page(1 << 39 | 3), 0), fault);
    assert_eq!(narrow.walk(&with_page(1 << 38 | 3), 0).unwrap().oa, 1 << 38);
    assert_eq!(
        table().walk(&with_page(0xf_ffff_ffff_f003), 0).unwrap().oa,
        0xf_ffff_ffff_f000
    );
    // Bits 63 and 61:52 are no address.
    assert_eq!(
        table()
            .walk(&with_page(0xbff0_0000_0000_1003), 0)
            .unwrap()
            .oa,
        0x1000
    );
}

#[test]
fn levels_give_the_input_width() {
    let high = 0x8_0000_0000_1000;
    for root in [high, high | 0xfff] {
        let table = Table::VtdSecond(Config::new(root, 3));
        assert_eq!(first_read(&table, 0), Ok(high));
        assert_eq!(leaves(&table, &memory(&[(high, 0)])), Ok(vec![]));
    }
    for (levels, width) in [(3, 39), (4, 48), (5, 57)] {
        let table = Table::VtdSecond(Config::new(0x1000, levels));
        assert_eq!(first_read(&table, (1 << width) - 1), Ok(0x1ff8));
        assert_eq!(first_read(&table, 1 << (width - 9)), Ok(0x1008));
        assert_eq!(
            first_read(&table, 1 << width),
            Err(Fault::OutOfWindow { iova: 1 << width })
        );
    }
    for levels in [0, 2, 6, 255] {
        assert!(matches!(
            Config::new(0, levels).check(),
            Err(Setup::Levels { .. })
        ));
    }
}

#[test]
fn five_levels_are_walked_in_order() {
    // One entry of a different index at each level.
    let memory = memory(&[
        (0x1000 + 8, 0x2003),
        (0x2000 + 16, 0x3003),
        (0x3000 + 24, 0x4003),
        (0x4000 + 32, 0x5003),
        (0x5000 + 40, 0x9003),
    ]);
    let table = Table::VtdSecond(Config::new(0x1000, 5));
    let iova = 1 << 48 | 2 << 39 | 3 << 30 | 4 << 21 | 5 << 12;
    assert_eq!(table.walk(&memory, iova | 0x123).unwrap().oa, 0x9123);
    assert_eq!(leaves(&table, &memory).unwrap()[0].0, iova);
}
