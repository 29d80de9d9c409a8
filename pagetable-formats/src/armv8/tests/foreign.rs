//! Words that our encoders never make, but hardware, a guest or another driver may.

use super::*;
use crate::armv8::{HardwareUpdates, Lpae32, Lpae32Stage2, Mali, Stage1, Stage2};
use crate::{Reserved, TableEntry, bit};

const PAGE: Oa = Oa::new(0x1_2345_6000);
const S1_PAGE: u64 = 0x0000_0001_2345_6f47;
const S2_PAGE: u64 = 0x0000_0001_2345_67ff;

fn s1() -> Stage1<12> {
    Stage1::new(48, 48).unwrap()
}

fn s2() -> Stage2<12> {
    Stage2::new(48, 48).unwrap()
}

#[test]
fn a_clear_valid_bit_hides_everything_else() {
    for level in (0..=5).map(Level) {
        for word in [0, 2, !1, S1_PAGE & !1] {
            assert_eq!(s1().decode(word, level), Ok(Entry::Empty));
            assert_eq!(s2().decode(word, level), Ok(Entry::Empty));
        }
    }
}

#[test]
fn leaves_where_none_can_be_are_reserved() {
    let page = Reserved {
        word: 0x1001,
        level: Level(0),
        reason: "bit 1 is set in every page descriptor",
    };
    assert_eq!(s1().decode(0x1001, Level(0)), Err(page));
    assert_eq!(s2().decode(0x1001, Level(0)), Err(page));
    let block = |level| Reserved {
        word: 0x1001,
        level,
        reason: "there are no blocks at this level",
    };
    assert_eq!(s1().decode(0x1001, Level(3)), Err(block(Level(3))));
    assert_eq!(s1().decode(0x1001, Level(5)), Err(block(Level(5))));
    for level in [2, 3].map(Level) {
        assert_eq!(
            Stage1::<14>::new(48, 48).unwrap().decode(0x1001, level),
            Err(block(level))
        );
        assert_eq!(
            Stage2::<16>::new(48, 48).unwrap().decode(0x1001, level),
            Err(block(level))
        );
    }
    // LPA2 and LPA have one level more.
    assert_eq!(
        leaf(&Stage1::<12>::new_lpa(48, 48).unwrap(), 1, Level(3)).size,
        GIB_512
    );
    assert_eq!(
        leaf(&Stage1::<14>::new_lpa(48, 48).unwrap(), 1, Level(2)).size,
        GIB_64
    );
    assert_eq!(
        leaf(&Stage2::<16>::new(48, 52).unwrap(), 1, Level(2)).size,
        TIB_4
    );
    assert!(
        Stage1::<12>::new_lpa(52, 52)
            .unwrap()
            .decode(1, Level(4))
            .is_err()
    );
}

#[test]
fn ignored_bits_change_nothing() {
    let ours = leaf(&s1(), S1_PAGE, Level(0));
    // Software and PBHA bits, GP, DBM without hardware updates, bits above a 48-bit address, NS.
    for ignored in [0xff80 << 48, bit(51) | bit(50), bit(49) | bit(48), bit(5)] {
        assert_eq!(
            leaf(&s1(), S1_PAGE | ignored, Level(0)),
            ours,
            "{ignored:#x}"
        );
    }
    let ours = leaf(&s2(), S2_PAGE, Level(0));
    for ignored in [0xff80 << 48, bit(51) | bit(50), bit(49) | bit(48), bit(11)] {
        assert_eq!(
            leaf(&s2(), S2_PAGE | ignored, Level(0)),
            ours,
            "{ignored:#x}"
        );
    }
}

#[test]
fn blocks_ignore_nt_and_the_address_bits_below_their_size() {
    let word = 0x0000_0001_2340_0f45 | 0x001f_f000;
    assert_eq!(leaf(&s1(), word, Level(1)).oa, Oa::new(0x1_2340_0000));
    assert_eq!(
        leaf(&s1(), 0x0000_0001_7fff_ff45, Level(2)).oa,
        Oa::new(0x1_4000_0000)
    );
    // With LPA the bits below the address hold its top.
    let f = Stage1::<16>::new(48, 52).unwrap();
    let word = 0x0000_0000_4000_ff45 | 0x1fff_0000;
    assert_eq!(leaf(&f, word, Level(1)).oa, Oa::new(0xf_0000_4000_0000));
}

#[test]
fn address_bits_of_other_modes_are_ignored() {
    // 64 KiB pages without LPA: bits 15:12 are reserved. The same word with LPA has 52 bits.
    let word = 0x0000_0000_1234_ff47;
    let narrow = Stage1::<16>::new(48, 48).unwrap();
    assert_eq!(leaf(&narrow, word, Level(0)).oa, Oa::new(0x1234_0000));
    assert_eq!(
        narrow.child(0x1234_f003, Level(1)),
        Some(Oa::new(0x1234_0000))
    );
    let wide = Stage1::<16>::new(48, 52).unwrap();
    assert_eq!(leaf(&wide, word, Level(0)).oa, Oa::new(0xf_0000_1234_0000));
    // 16 KiB pages: bits 13:12 are reserved.
    let f = Stage1::<14>::new(48, 48).unwrap();
    assert_eq!(
        leaf(&f, 0x0000_0001_2345_7f47, Level(0)).oa,
        Oa::new(0x1_2345_4000)
    );
}

#[test]
fn a_group_larger_than_the_table_or_where_none_exists_is_one_item() {
    let contiguous = bit(52);
    // A root of 4 items has no group of 16.
    let f = Stage1::<12>::new(32, 48).unwrap();
    assert_eq!(
        leaf(&f, 0x4000_0f45 | contiguous, Level(2)).size,
        PageSize::GIB_1
    );
    assert_eq!(leaf(&s1(), 0x4000_0f45 | contiguous, Level(2)).size, GIB_16);
    // The bit is reserved in the blocks of LPA2 and LPA (table D8-104).
    let f = Stage1::<12>::new_lpa(52, 52).unwrap();
    assert_eq!(leaf(&f, 0xc45 | contiguous, Level(3)).size, GIB_512);
    let f = Stage1::<14>::new_lpa(52, 52).unwrap();
    assert_eq!(leaf(&f, 0xc45 | contiguous, Level(2)).size, GIB_64);
    let f = Stage1::<16>::new(52, 52).unwrap();
    assert_eq!(leaf(&f, 0xc45 | contiguous, Level(2)).size, TIB_4);
}

#[test]
fn the_access_flag_is_reported_and_faults_unless_hardware_sets_it() {
    let unused = S1_PAGE & !bit(10);
    assert!(!leaf(&s1(), unused, Level(0)).accessed);
    assert!(!leaf(&s2(), S2_PAGE & !bit(10), Level(0)).accessed);
    for (updates, faults) in [
        (HardwareUpdates::None, true),
        (HardwareUpdates::Ignored, false),
        (HardwareUpdates::Accessed, false),
        (HardwareUpdates::Dirty, false),
    ] {
        assert_eq!(s1().with_updates(updates).faults_unaccessed(), faults);
        assert_eq!(s2().with_updates(updates).faults_unaccessed(), faults);
    }
}

#[test]
fn uxn_decides_for_user_pages_and_pxn_for_the_others() {
    let (pxn, uxn, user) = (bit(53), bit(54), bit(6));
    let executes = |word| leaf(&s1(), word, Level(0)).prot.can_execute();
    assert!(executes(S1_PAGE | pxn) && !executes(S1_PAGE | uxn));
    let privileged = S1_PAGE & !user;
    assert!(executes(privileged | uxn) && !executes(privileged | pxn));
    // 32-bit LPAE: bit 54 is XN for everybody.
    let f = Lpae32::new(32, 40).unwrap();
    let executes = |word| leaf(&f, word, Level(0)).prot.can_execute();
    assert!(executes(S1_PAGE | pxn) && !executes(S1_PAGE | uxn));
    assert!(!executes(privileged | uxn) && !executes(privileged | pxn) && executes(privileged));
}

#[test]
fn only_the_upper_xn_bit_of_stage2_takes_fetches_from_unprivileged_requests() {
    for (xn, executes) in [(0, true), (1, true), (2, false), (3, false)] {
        let word = S2_PAGE | xn << 53;
        assert_eq!(
            leaf(&s2(), word, Level(0)).prot.can_execute(),
            executes,
            "XN {xn:#b}"
        );
    }
    // No S2AP but fetches: execute-only, which 32-bit LPAE does not have.
    let word = S2_PAGE & !0xc0;
    let rights = Rights::EXECUTE.union(Rights::USER);
    assert_eq!(leaf(&s2(), word, Level(0)).prot.rights(), rights);
    let f = Lpae32Stage2::new(40, 40).unwrap();
    assert_eq!(leaf(&f, word, Level(0)).prot.rights(), Rights::USER);
}

#[test]
fn attribute_indices_without_a_type_of_ours_are_device_memory() {
    for index in 4..8 {
        let word = S1_PAGE & !0x1c | index << 2;
        assert_eq!(leaf(&s1(), word, Level(0)).prot.memory(), Memory::Device);
    }
}

#[test]
fn attribute_bytes_become_the_nearest_memory_type() {
    use Memory::{Device as D, NonCacheable as N, SystemCache as S, WriteBack as W};
    for (byte, memory) in [
        // Device memory, also where the lower bits are reserved or say XS = 0.
        (0x00, D),
        (0x0c, D),
        (0x01, D),
        // Both cacheabilities alike; 0x40, 0xa0 and 0xf0 are non-cacheable, write-through, tagged.
        (0x44, N),
        (0x40, N),
        (0xbb, W),
        (0xff, W),
        (0x77, W),
        (0xa0, W),
        (0xf0, W),
        // Outer only, inner only.
        (0xf4, S),
        (0x84, S),
        (0x4f, W),
    ] {
        let f = s1().with_mair(byte << 56 | 0x44);
        let word = S1_PAGE & !0x1c | 7 << 2;
        assert_eq!(
            leaf(&f, word, Level(0)).prot.memory(),
            memory,
            "{byte:#04x}"
        );
    }
}

#[test]
fn every_mem_attr_has_a_meaning() {
    use Memory::{Device as D, NonCacheable as N, SystemCache as S, WriteBack as W};
    let combined = [D, D, D, D, W, N, W, W, N, S, W, W, N, S, W, W];
    let forced = [D, D, D, D, N, N, W, W, D, D, D, D, N, N, W, W];
    let fwb = s2().with_forced_write_back();
    for value in 0..16_usize {
        let word = S2_PAGE & !0x3c | (value as u64) << 2;
        assert_eq!(
            leaf(&s2(), word, Level(0)).prot.memory(),
            combined[value],
            "{value:#06b}"
        );
        assert_eq!(
            leaf(&fwb, word, Level(0)).prot.memory(),
            forced[value],
            "{value:#06b}"
        );
    }
}

#[test]
fn stage1_tables_limit_the_rights_below() {
    let table = 0x8800_1003;
    let without = |rights| Rights::ALL.difference(rights);
    assert_eq!(limit(&s1(), table), Rights::ALL);
    // APTable[1], APTable[0], UXNTable, PXNTable, NSTable.
    assert_eq!(limit(&s1(), table | bit(62)), without(Rights::WRITE));
    assert_eq!(limit(&s1(), table | bit(61)), without(Rights::USER));
    assert_eq!(limit(&s1(), table | bit(60)), without(Rights::EXECUTE));
    assert_eq!(limit(&s1(), table | bit(59)), Rights::ALL);
    let privileged = without(Rights::USER.union(Rights::EXECUTE));
    assert_eq!(limit(&s1(), table | bit(61) | bit(59)), privileged);
    assert_eq!(limit(&s1(), table | bit(63)), Rights::ALL);
    let hierarchy_off = s1().without_table_limits();
    assert_eq!(limit(&hierarchy_off, table | 0xf << 59), Rights::ALL);
    // Stage 2 has no such bits, and what a table ignores does not matter.
    let entry = Entry::Table(TableEntry {
        oa: Oa::new(0x8800_1000),
        level: Level(0),
        limit: Rights::ALL,
    });
    assert_eq!(
        s2().decode(table | 0xfff8 << 48 | 0xffc, Level(1)),
        Ok(entry)
    );
}

#[test]
fn a_foreign_dirty_state_is_read_only_where_hardware_keeps_one() {
    let (dbm, read_only) = (bit(51), bit(7));
    let word = S1_PAGE | dbm | read_only;
    assert!(!leaf(&s1(), word, Level(0)).prot.can_write());
    let tracking = s1().with_updates(HardwareUpdates::Dirty);
    assert!(leaf(&tracking, word, Level(0)).prot.can_write());
    // Writable without DBM: writes are not recorded, so the page is never called dirty.
    let unrecorded = leaf(&tracking, S1_PAGE, Level(0));
    assert!(unrecorded.prot.can_write() && !unrecorded.dirty);
}

#[test]
fn linux_device_pages_of_both_stages_decode() {
    // From the tables of a Linux guest: MSI doorbell pages.
    let found = leaf(&s1(), 0x0060_0000_0809_0e4b, Level(0));
    assert_eq!(
        (found.oa, found.prot),
        (Oa::new(0x809_0000), Prot::RW.device())
    );
    let found = leaf(&s2(), 0x0060_0000_0809_0687, Level(0));
    let write_only = device(Rights::WRITE.union(Rights::USER));
    assert_eq!((found.oa, found.prot), (Oa::new(0x809_0000), write_only));
    let found = leaf(&s2(), 0x4450_07bf, Level(0));
    assert_eq!(found.prot, Prot::W.cached().executable());
    let found = leaf(&s1(), 0x4458_bf47, Level(0));
    assert_eq!((found.oa, found.prot), (Oa::new(0x4458_b000), RWX));
}

#[test]
fn mali_reserves_the_page_type_of_vmsav8() {
    let f = Mali::new(48, 40).unwrap();
    assert!(f.decode(0x0000_0001_2345_62c7, Level(0)).is_err());
    assert!(f.decode(0x0000_0001_2345_62c5, Level(3)).is_err());
    assert!(f.decode(0x0000_0001_2345_62c5, Level(5)).is_err());
    assert_eq!(f.decode(2, Level(0)), Ok(Entry::Empty));
    // There is no Contiguous bit, and only the upper bit of XN counts.
    let found = leaf(&f, 0x0000_0001_2345_62c5 | bit(52) | bit(53), Level(0));
    assert_eq!(
        (found.oa, found.size, found.prot),
        (PAGE, PageSize::KIB_4, RWX)
    );
    assert!(
        !leaf(&f, 0x0000_0001_2345_62c5 | bit(54), Level(0))
            .prot
            .can_execute()
    );
    assert_eq!(
        leaf(&f, 0x0000_0001_2345_62dd, Level(0)).prot.memory(),
        Memory::NonCacheable
    );
}

#[test]
fn fields_are_named_as_their_kind_has_them() {
    let has = |fields: &[crate::Field], name, hi, lo| {
        fields
            .iter()
            .any(|field| (field.name, field.hi, field.lo) == (name, hi, lo))
    };
    let page = s1().fields(S1_PAGE, Level(0));
    assert!(has(page, "OA", 47, 12) && has(page, "SH", 9, 8) && has(page, "AP[2:1]", 7, 6));
    let block = s1().fields(0x0000_0001_2340_0f45, Level(1));
    assert!(has(block, "OA", 47, 21) && has(block, "nT", 16, 16));
    let table = s1().fields(0x8800_1003, Level(1));
    assert!(has(table, "NLTA", 47, 12) && has(table, "APTable", 62, 61));
    let lpa2 = Stage2::<12>::new_lpa(52, 52).unwrap();
    let block = lpa2.fields(0x7fd, Level(3));
    assert!(has(block, "OA", 49, 39) && has(block, "OA[51:50]", 9, 8) && has(block, "S2AP", 7, 6));
    let lpa = Stage1::<16>::new(52, 52).unwrap();
    let page = lpa.fields(S1_PAGE, Level(0));
    assert!(has(page, "OA", 47, 16) && has(page, "OA[51:48]", 15, 12) && has(page, "SH", 9, 8));
    assert!(has(s1().fields(0, Level(0)), "IGNORED", 63, 1));
}
