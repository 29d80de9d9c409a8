//! Registers and descriptors of tables of entries, worked out by hand.

use super::*;

#[test]
fn tables_of_entries_are_encoded() {
    let table = StreamTable::two_level(Oa::new(0x443b_4000), 16, 8)
        .unwrap()
        .with_read_allocate();
    // Of a Linux guest.
    assert_eq!(table.base_register(), 0x4000_0000_443b_4000);
    assert_eq!(table.cfg_register(), 0x1_0210);
    assert_eq!(StreamTable::new(0x4000_0000_443b_4000, 0x1_0210), table);
    let linear = StreamTable::linear(Oa::new(0x4001_0000), 10).unwrap();
    assert_eq!(
        (linear.base_register(), linear.cfg_register()),
        (0x4001_0000, 10)
    );
    assert_eq!(StreamTable::new(0x4001_0000, 10), linear);
    for split in [6, 8, 10] {
        let table = StreamTable::two_level(Oa::new(0), 32, split).unwrap();
        assert_eq!(table.cfg_register(), 1 << 16 | u32::from(split) << 6 | 32);
        assert_eq!(StreamTable::new(0, table.cfg_register()), table);
    }

    let desc = L1StreamDesc::encode(Oa::new(0x4ba7_0000), 8).unwrap();
    assert_eq!(desc.word(), 0x4ba7_0009);
    assert_eq!(desc.address(&table, 0x105), Some(Oa::new(0x4ba7_0140)));
    assert_eq!(L1StreamDesc::INVALID.count_lg2(), None);
    assert_eq!(L1StreamDesc::encode(Oa::new(0x40), 0).unwrap().word(), 0x41);
    assert_eq!(
        L1StreamDesc::encode(Oa::new(0x1_0000), 10).unwrap().word(),
        0x1_000b
    );

    let base = Oa::new(0x4800_0000);
    let cds = CdTable::with_layout(base, CdTableFormat::Kib64Leaves, 20).unwrap();
    let desc = L1CdDesc::encode(&cds, Oa::new(0x8801_0000)).unwrap();
    assert_eq!(desc.word(), 0x8801_0001);
    assert_eq!(desc.address(&cds, 1), Some(Oa::new(0x8801_0040)));
    assert_eq!(L1CdDesc::INVALID.l2_table(&cds), None);
    let cds = CdTable::with_layout(base, CdTableFormat::Kib4Leaves, 20).unwrap();
    let desc = L1CdDesc::encode(&cds, Oa::new(0x8801_1000)).unwrap();
    assert_eq!(desc.word(), 0x8801_1001);
}

#[test]
fn tables_of_entries_that_do_not_fit_are_refused() {
    use LayoutError::{Address, Count, Linear, Split};

    fn at<T>(address: u64) -> Result<T, LayoutError> {
        let address = Oa::new(address);
        Err(Address { address })
    }
    assert_eq!(StreamTable::linear(Oa::new(0x8000), 10), at(0x8000));
    assert_eq!(StreamTable::linear(Oa::new(1 << 56), 10), at(1 << 56));
    assert_eq!(StreamTable::two_level(Oa::new(0x20), 8, 8), at(0x20));
    assert_eq!(StreamTable::two_level(Oa::new(0x400), 16, 8), at(0x400));
    assert_eq!(
        StreamTable::linear(Oa::new(0), 33),
        Err(Count {
            count_lg2: 33,
            limit_lg2: 32
        })
    );
    assert_eq!(
        StreamTable::two_level(Oa::new(0), 16, 7),
        Err(Split { split: 7 })
    );
    let desc = |address, count_lg2| L1StreamDesc::encode(Oa::new(address), count_lg2).map(|_| ());
    assert_eq!(desc(0x2000, 8), at(0x2000));
    assert_eq!(desc(1 << 56, 8), at(1 << 56));
    assert_eq!(
        desc(0, 11),
        Err(Count {
            count_lg2: 11,
            limit_lg2: 10
        })
    );
    let cds = |address, format, count_lg2| {
        CdTable::with_layout(Oa::new(address), format, count_lg2).map(|_| ())
    };
    assert_eq!(cds(0x40, CdTableFormat::Linear, 0), Ok(()));
    assert_eq!(cds(0x40, CdTableFormat::Linear, 1), at(0x40));
    assert_eq!(cds(1 << 56, CdTableFormat::Linear, 1), at(1 << 56));
    assert!(matches!(
        cds(0, CdTableFormat::Linear, 21),
        Err(Count { .. })
    ));
    let linear = CdTable::with_layout(Oa::new(0), CdTableFormat::Linear, 4).unwrap();
    assert_eq!(L1CdDesc::encode(&linear, Oa::new(0)), Err(Linear));
    let table = CdTable::with_layout(Oa::new(0), CdTableFormat::Kib64Leaves, 20).unwrap();
    for bad in [0x8801_1000, 1 << 56] {
        assert_eq!(L1CdDesc::encode(&table, Oa::new(bad)).map(|_| ()), at(bad));
    }
}
