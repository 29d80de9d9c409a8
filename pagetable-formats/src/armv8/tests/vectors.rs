//! One word, one meaning, both directions.

use super::*;
use crate::Rights;
use crate::armv8::{HardwareUpdates, Lpae32, Lpae32Stage2, Mali, Stage1, Stage2};

const PAGE: u64 = 0x1_2345_6000;
const LARGE: u64 = 0x1_2340_0000;

#[test]
fn stage1_leaves_with_4k_granule() {
    let f = Stage1::<12>::new(48, 48).unwrap();
    assert_leaf(&f, PAGE, PageSize::KIB_4, RWX, 0x0000_0001_2345_6f47);
    assert_leaf(
        &f,
        PAGE,
        PageSize::KIB_4,
        Prot::RW.cached(),
        0x0060_0001_2345_6f47,
    );
    assert_leaf(
        &f,
        PAGE,
        PageSize::KIB_4,
        Prot::R.cached().executable(),
        0x0000_0001_2345_6fc7,
    );
    assert_leaf(&f, LARGE, PageSize::MIB_2, RWX, 0x0000_0001_2340_0f45);
    assert_leaf(
        &f,
        0x1_4000_0000,
        PageSize::GIB_1,
        RWX,
        0x0000_0001_4000_0f45,
    );
    assert_leaf(&f, PAGE, PageSize::KIB_4, Prot::R, 0x0060_0001_2345_6ec3);
    assert_leaf(
        &f,
        PAGE,
        PageSize::KIB_4,
        Prot::RW.privileged(),
        0x0060_0001_2345_6e03,
    );
    assert_leaf(
        &f,
        0x809_0000,
        PageSize::KIB_4,
        Prot::RW.device(),
        0x0060_0000_0809_0e4b,
    );
    let system_cache = Prot::RW.with_memory(Memory::SystemCache);
    assert_leaf(
        &f,
        PAGE,
        PageSize::KIB_4,
        system_cache,
        0x0060_0001_2345_6e4f,
    );
}

#[test]
fn stage1_contiguous_items_carry_their_own_addresses() {
    let f = Stage1::<12>::new(48, 48).unwrap();
    let oa = 0x1_2345_0000;
    assert_item(&f, (oa, KIB_64, RWX, 0), 0x0010_0001_2345_0f47);
    assert_item(&f, (oa, KIB_64, RWX, 1), 0x0010_0001_2345_1f47);
    assert_item(&f, (oa, KIB_64, RWX, 15), 0x0010_0001_2345_ff47);
    assert_item(&f, (0x1_2200_0000, MIB_32, RWX, 15), 0x0010_0001_23e0_0f45);
    assert_item(&f, (0x4_0000_0000, GIB_16, RWX, 3), 0x0010_0004_c000_0f45);

    let f = Stage1::<14>::new(48, 48).unwrap();
    assert_item(&f, (LARGE, PageSize::MIB_2, RWX, 1), 0x0010_0001_2340_4f47);
    assert_item(
        &f,
        (LARGE, PageSize::MIB_2, RWX, 127),
        0x0010_0001_235f_cf47,
    );
    assert_item(
        &f,
        (0x1_4000_0000, PageSize::GIB_1, RWX, 31),
        0x0010_0001_7e00_0f45,
    );

    let f = Stage1::<16>::new(48, 48).unwrap();
    assert_item(&f, (LARGE, PageSize::MIB_2, RWX, 31), 0x0010_0001_235f_0f47);
    assert_item(&f, (0x4_0000_0000, GIB_16, RWX, 31), 0x0010_0007_e000_0f45);
}

#[test]
fn stage1_leaves_with_other_granules() {
    let f = Stage1::<14>::new(48, 48).unwrap();
    assert_leaf(
        &f,
        0x1_2345_4000,
        PageSize::KIB_16,
        RWX,
        0x0000_0001_2345_4f47,
    );
    assert_leaf(&f, 0x1_2200_0000, MIB_32, Prot::R, 0x0060_0001_2200_0ec1);
    let f = Stage1::<16>::new(48, 48).unwrap();
    assert_leaf(&f, 0x1_2345_0000, KIB_64, RWX, 0x0000_0001_2345_0f47);
    assert_leaf(&f, 0x1_2000_0000, MIB_512, RWX, 0x0000_0001_2000_0f45);
}

#[test]
fn lpa_puts_the_top_of_an_address_into_bits_15_to_12() {
    let f = Stage1::<16>::new(52, 52).unwrap();
    assert_leaf(&f, 0xf_0000_1234_0000, KIB_64, RWX, 0x0000_0000_1234_ff47);
    assert_leaf(&f, 0xf_0000_4000_0000, MIB_512, RWX, 0x0000_0000_4000_ff45);
    assert_leaf(&f, 0x8_0400_0000_0000, TIB_4, RWX, 0x0000_0400_0000_8f45);
    assert_eq!(
        f.encode_table(Oa::new(0xf_0000_1234_0000), Level(1)),
        0x0000_0000_1234_f003
    );
    assert_eq!(
        f.child(0x0000_0000_1234_f003, Level(1)),
        Some(Oa::new(0xf_0000_1234_0000))
    );
}

#[test]
fn lpa2_puts_the_top_of_an_address_into_the_place_of_sh() {
    let f = Stage1::<12>::new_lpa(52, 52).unwrap();
    assert_leaf(
        &f,
        0xc_0000_1234_5000,
        PageSize::KIB_4,
        RWX,
        0x0000_0000_1234_5f47,
    );
    assert_leaf(
        &f,
        0x4_0000_1234_5000,
        PageSize::KIB_4,
        RWX,
        0x0000_0000_1234_5d47,
    );
    assert_leaf(&f, 0x9_0080_0000_0000, GIB_512, RWX, 0x0001_0080_0000_0e45);
    assert_leaf(
        &f,
        0x1_2345_6000,
        PageSize::KIB_4,
        RWX,
        0x0000_0001_2345_6c47,
    );
    assert_eq!(
        f.encode_table(Oa::new(0xb_0000_8800_1000), Level(4)),
        0x0003_0000_8800_1203
    );
    assert_eq!(
        f.child(0x0003_0000_8800_1203, Level(4)),
        Some(Oa::new(0xb_0000_8800_1000))
    );

    let f = Stage1::<14>::new_lpa(52, 52).unwrap();
    assert_leaf(&f, 0x8_0010_0000_0000, GIB_64, RWX, 0x0000_0010_0000_0e45);

    let f = Stage2::<12>::new_lpa(52, 52).unwrap();
    assert_leaf(
        &f,
        0x4_0000_1234_5000,
        PageSize::KIB_4,
        RWX,
        0x0000_0000_1234_55ff,
    );
}

#[test]
fn tables() {
    let f = Stage1::<12>::new(48, 48).unwrap();
    assert_eq!(
        f.encode_table(Oa::new(0x8800_1000), Level(1)),
        0x0000_0000_8800_1003
    );
    assert_eq!(f.child(0x8800_1003, Level(3)), Some(Oa::new(0x8800_1000)));
    assert_eq!(f.child(0x0000_0001_2340_0f45, Level(1)), None);
    assert_eq!(f.child(0, Level(1)), None);
    let secure = f.with_non_secure();
    assert_eq!(
        secure.encode_table(Oa::new(0x8800_1000), Level(1)),
        0x8000_0000_8800_1003
    );
    assert_leaf(&secure, PAGE, PageSize::KIB_4, RWX, 0x0000_0001_2345_6f67);
}

#[test]
fn stage1_records_writes_by_clearing_the_read_only_bit() {
    let f = Stage1::<12>::new(48, 48)
        .unwrap()
        .with_updates(HardwareUpdates::Dirty);
    assert_leaf(&f, LARGE, PageSize::MIB_2, RWX, 0x0008_0001_2340_0f45);
    assert_leaf(&f, PAGE, PageSize::KIB_4, RWX, 0x0008_0001_2345_6f47);
    let rule = f.dirty_rule().unwrap();
    assert_eq!(rule.clean(0x0008_0001_2345_6f47), 0x0008_0001_2345_6fc7);
    assert_eq!(rule.soil(0x0008_0001_2345_6fc7), 0x0008_0001_2345_6f47);

    let dirty = leaf(&f, 0x0008_0001_2345_6f47, Level::LEAF);
    let clean = leaf(&f, 0x0008_0001_2345_6fc7, Level::LEAF);
    assert!(dirty.dirty && !clean.dirty);
    assert_eq!((dirty.prot, clean.prot), (RWX, RWX));

    // Privileged writes are recorded in the same way: AP[1] takes no part.
    let privileged = f.leaf_item(Oa::new(PAGE), PageSize::KIB_4, RWX.privileged(), 0);
    assert_eq!(privileged, 0x0008_0001_2345_6f07);
    assert_eq!(
        leaf(&f, rule.clean(privileged), Level::LEAF).prot,
        RWX.privileged()
    );

    // A read-only entry has no DBM and stays as it is.
    assert_eq!(rule.soil(0x0000_0001_2345_6fc7), 0x0000_0001_2345_6fc7);
}

#[test]
fn stage2_leaves() {
    let f = Stage2::<12>::new(48, 48).unwrap();
    assert_leaf(&f, PAGE, PageSize::KIB_4, RWX, 0x0000_0001_2345_67ff);
    let mmio = Prot::RW.device().executable();
    assert_leaf(&f, PAGE, PageSize::KIB_4, mmio, 0x0000_0001_2345_66c7);
    assert_leaf(&f, LARGE, PageSize::MIB_2, RWX, 0x0000_0001_2340_07fd);
    assert_leaf(&f, PAGE, PageSize::KIB_4, Prot::R, 0x0040_0001_2345_6657);
    assert_leaf(
        &f,
        PAGE,
        PageSize::KIB_4,
        Prot::W.device(),
        0x0040_0001_2345_6687,
    );
    let system_cache = Prot::R.with_memory(Memory::SystemCache);
    assert_leaf(
        &f,
        PAGE,
        PageSize::KIB_4,
        system_cache,
        0x0040_0001_2345_6677,
    );
    assert_item(&f, (0x1_2345_0000, KIB_64, RWX, 15), 0x0010_0001_2345_f7ff);
}

#[test]
fn stage2_leaves_with_forced_write_back() {
    let f = Stage2::<12>::new(48, 48).unwrap().with_forced_write_back();
    assert_leaf(&f, PAGE, PageSize::KIB_4, RWX, 0x0000_0001_2345_67db);
    assert_leaf(
        &f,
        PAGE,
        PageSize::KIB_4,
        Prot::RW.executable(),
        0x0000_0001_2345_66d7,
    );
    let mmio = Prot::RW.device().executable();
    assert_leaf(&f, PAGE, PageSize::KIB_4, mmio, 0x0000_0001_2345_66c7);
    let system_cache = Prot::RW.with_memory(Memory::SystemCache);
    assert_eq!(f.effective(system_cache), Some(Prot::RW.cached()));
}

#[test]
fn stage2_records_writes_by_setting_the_write_bit() {
    let f = Stage2::<12>::new(48, 48)
        .unwrap()
        .with_updates(HardwareUpdates::Dirty);
    assert_leaf(&f, PAGE, PageSize::KIB_4, RWX, 0x0008_0001_2345_67ff);
    let rule = f.dirty_rule().unwrap();
    assert_eq!(rule.clean(0x0008_0001_2345_67ff), 0x0008_0001_2345_677f);
    assert_eq!(rule.soil(0x0008_0001_2345_677f), 0x0008_0001_2345_67ff);
    let clean = leaf(&f, 0x0008_0001_2345_677f, Level::LEAF);
    assert_eq!((clean.prot, clean.dirty), (RWX, false));
    // Write-only: clean means no bit of S2AP at all.
    assert_eq!(
        leaf(&f, 0x0048_0001_2345_661b, Level::LEAF).prot.rights(),
        Prot::W.rights()
    );
}

#[test]
fn rights_that_do_not_exist_are_widened() {
    let x = Prot::new(Rights::EXECUTE, Memory::WriteBack);
    let s1 = Stage1::<12>::new(48, 48).unwrap();
    assert_eq!(s1.effective(Prot::W), Some(Prot::RW));
    assert_eq!(s1.effective(x), Some(x.with(Rights::READ)));
    assert_eq!(
        s1.effective(Prot::new(Rights::USER, Memory::WriteBack)),
        None
    );

    let s2 = Stage2::<12>::new(48, 48).unwrap();
    assert_eq!(s2.effective(Prot::W), Some(Prot::W));
    assert_eq!(s2.effective(x), Some(x.with(Rights::USER)));
    assert_leaf(&s2, PAGE, PageSize::KIB_4, x, 0x0000_0001_2345_673f);
    assert_eq!(s2.effective(Prot::RW.privileged()), Some(Prot::RW));

    let s2 = Lpae32Stage2::new(40, 40).unwrap();
    assert_eq!(
        s2.effective(x),
        Some(x.with(Rights::USER).with(Rights::READ))
    );
}

#[test]
fn memory_types_follow_another_mair() {
    // Linux on CPUs: 0 write-back, 1 tagged, 2 non-cacheable, 3 and 4 device.
    let f = Stage1::<12>::new(48, 48)
        .unwrap()
        .with_mair(0x0004_0044_f0ff);
    assert_leaf(&f, PAGE, PageSize::KIB_4, RWX, 0x0000_0001_2345_6f43);
    assert_leaf(&f, PAGE, PageSize::KIB_4, Prot::RW, 0x0060_0001_2345_6e4b);
    assert_leaf(
        &f,
        PAGE,
        PageSize::KIB_4,
        Prot::RW.device(),
        0x0060_0001_2345_6e4f,
    );
    // There is no outer write-back only: mapped as write-back.
    let system_cache = Prot::RW.with_memory(Memory::SystemCache);
    assert_eq!(f.effective(system_cache), Some(Prot::RW.cached()));
    assert_eq!(leaf(&f, 0x0000_0001_2345_6f47, Level::LEAF).prot, RWX);
    assert_eq!(
        leaf(&f, 0x0000_0001_2345_6f5f, Level::LEAF).prot.memory(),
        Memory::Device
    );
}

#[test]
fn lpae32_leaves() {
    let f = Lpae32::new(32, 40).unwrap();
    assert_leaf(
        &f,
        0x80_0000_1000,
        PageSize::KIB_4,
        RWX,
        0x0000_0080_0000_1f47,
    );
    assert_leaf(&f, LARGE, PageSize::MIB_2, Prot::R, 0x0060_0001_2340_0ec1);
    let f = Lpae32Stage2::new(40, 40).unwrap();
    assert_leaf(
        &f,
        0x80_0000_1000,
        PageSize::KIB_4,
        RWX,
        0x0000_0080_0000_17ff,
    );
    assert_leaf(&f, LARGE, PageSize::MIB_2, Prot::W, 0x0040_0001_2340_0695);
}

#[test]
fn mali_leaves_have_type_1_at_every_level() {
    let f = Mali::new(48, 40).unwrap();
    assert_leaf(&f, PAGE, PageSize::KIB_4, RWX, 0x0000_0001_2345_62c5);
    assert_leaf(&f, PAGE, PageSize::KIB_4, Prot::R, 0x0060_0001_2345_6241);
    assert_leaf(&f, LARGE, PageSize::MIB_2, RWX, 0x0000_0001_2340_02c5);
    assert_leaf(
        &f,
        0x1_4000_0000,
        PageSize::GIB_1,
        Prot::RW.device(),
        0x0060_0001_4000_02c9,
    );
    assert_eq!(f.encode_table(Oa::new(0x8800_1000), Level(3)), 0x8800_1003);
    assert_eq!(f.child(0x8800_1003, Level(1)), Some(Oa::new(0x8800_1000)));
    assert_eq!(f.child(0x0000_0001_2340_02c5, Level(1)), None);
}
