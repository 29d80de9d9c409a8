//! ARM contiguous groups.

use iopt_reference::arm::{Config, Granule, Half};
use iopt_reference::{Rigour, ScanError, Table};

use crate::arm::{AF, AP2, DBM, stage1, with_pages};
use crate::{LIMIT, leaves, memory};

const CONTIGUOUS: u64 = 1 << 52;

#[test]
fn a_contiguous_group_translates_as_one() {
    let words: Vec<u64> = (0..16)
        .map(|item| 0x10_0001_2345_0f47 + item * 0x1000)
        .collect();
    assert_eq!(
        [words[1], words[15]],
        [0x10_0001_2345_1f47, 0x10_0001_2345_ff47]
    );
    let memory = with_pages(&words);
    let page = Table::Arm(stage1()).walk(&memory, 0xf123).unwrap();
    assert_eq!(
        (page.oa, page.page_len, page.item_len),
        (0x1_2345_f123, 0x1_0000, 0x1000)
    );
    let found = leaves(&Table::Arm(stage1()), &memory).unwrap();
    assert_eq!(found.len(), 16);
    assert_eq!((found[15].0, found[15].1.oa), (0xf000, 0x1_2345_f000));
}

#[test]
fn members_of_a_contiguous_group_may_differ_in_what_hardware_and_software_set() {
    let words: Vec<u64> = (0..16)
        .map(|item| 0x18_0001_2345_0f47 + item * 0x1000)
        .collect();
    let mut memory = with_pages(&words);
    memory.write64(0x4008, words[1] | AP2); // clean, by DBM
    memory.write64(0x4010, words[2] | 1 << 55 | 1 << 63);
    assert_eq!(leaves(&Table::Arm(stage1()), &memory).unwrap().len(), 16);
    memory.write64(0x4018, words[3] & !AF);
    assert!(leaves(&Table::Arm(stage1().with_hardware_update()), &memory).is_ok());
}

#[test]
fn members_of_a_contiguous_group_must_agree_in_all_else() {
    let words: Vec<u64> = (0..16)
        .map(|item| 0x10_0001_2345_0f47 + item * 0x1000)
        .collect();
    let last = words[15];
    let others = [
        0,
        last & !CONTIGUOUS,
        last + 0x1000,
        last | AP2, // read-only, without DBM
        last & !(1 << 6),
        last | 1 << 54,
        last ^ 1 << 2,
        last ^ 1 << 8,
        last ^ 1 << 9,
        last ^ 1 << 11,
        last | DBM,
    ];
    for word in others {
        let mut memory = with_pages(&words);
        memory.write64(0x4078, word);
        let inconsistent = ScanError::Inconsistent {
            iova: 0xf000,
            first: words[0],
            word,
        };
        assert_eq!(
            leaves(&Table::Arm(stage1()), &memory),
            Err(inconsistent),
            "{word:#x}"
        );
        let lenient = Table::Arm(stage1()).enumerate(&memory, LIMIT, Rigour::Lenient, |_| ());
        assert_eq!(lenient, Ok(()));
    }
    // The second group of a table.
    let mut second = vec![0; 16];
    second.extend(&words);
    assert_eq!(
        leaves(&Table::Arm(stage1()), &with_pages(&second))
            .unwrap()
            .len(),
        16
    );
    second[31] &= !CONTIGUOUS;
    let inconsistent = ScanError::Inconsistent {
        iova: 0x1_f000,
        first: words[0],
        word: second[31],
    };
    assert_eq!(
        leaves(&Table::Arm(stage1()), &with_pages(&second)),
        Err(inconsistent)
    );
    // A group without its first, and one whose output is not aligned.
    let memory = with_pages(&[0, words[1]]);
    let inconsistent = ScanError::Inconsistent {
        iova: 0x1000,
        first: 0,
        word: words[1],
    };
    assert_eq!(leaves(&Table::Arm(stage1()), &memory), Err(inconsistent));
    let shifted: Vec<u64> = words.iter().map(|word| word + 0x1000).collect();
    let inconsistent = ScanError::Inconsistent {
        iova: 0,
        first: shifted[0],
        word: shifted[0],
    };
    assert_eq!(
        leaves(&Table::Arm(stage1()), &with_pages(&shifted)),
        Err(inconsistent)
    );
}

#[test]
fn contiguous_groups_have_the_sizes_of_table_d8_104() {
    // Granule, level, bytes of one item, items; 1 means that the bit is RES0.
    let cases = [
        (Granule::K4, 3, 1 << 12, 16),
        (Granule::K4, 2, 1 << 21, 16),
        (Granule::K4, 1, 1 << 30, 16),
        (Granule::K4, 0, 1 << 39, 1),
        (Granule::K16, 3, 1 << 14, 128),
        (Granule::K16, 2, 1 << 25, 32),
        (Granule::K16, 1, 1 << 36, 1),
        (Granule::K64, 3, 1 << 16, 32),
        (Granule::K64, 2, 1 << 29, 32),
        (Granule::K64, 1, 1 << 42, 1),
    ];
    for (granule, level, len, count) in cases {
        let config = Config::stage1(Half::new(0x10_0000, 52, granule), 52).with_52_bits();
        // Every entry of one table points at the next; the leaf is at `level`.
        let start = match granule {
            Granule::K4 => -1,
            Granule::K16 => 0,
            Granule::K64 => 1,
        };
        let leaf_table = 0x10_0000 * (1 + u64::try_from(level - start).unwrap());
        let leaf = move |address: u64| match address {
            _ if address & !0xf_ffff == leaf_table => {
                Some(CONTIGUOUS | AF | 0b01 | u64::from(level == 3) << 1)
            }
            _ => Some((address & !0xf_ffff) + 0x10_0003),
        };
        let item = Table::Arm(config).walk(&leaf, 0).unwrap();
        assert_eq!(
            (item.level, item.item_len, item.page_len),
            (level, len, len * count),
            "{granule:?} {level}"
        );
    }
}

#[test]
fn a_group_larger_than_its_table_is_no_group() {
    // 36 bits: a level 1 root of 64 entries has room, one of 4 (32 bits) has not.
    let word = CONTIGUOUS | AF | 0x41;
    for (ia_bits, page_len) in [(36, 16 << 30), (34, 16 << 30), (33, 1 << 30), (32, 1 << 30)] {
        let table = Table::Arm(Config::stage1(Half::new(0x1000, ia_bits, Granule::K4), 48));
        assert_eq!(
            table.walk(&memory(&[(0x1000, word)]), 0).unwrap().page_len,
            page_len
        );
    }
}
