//! Words worked out from the SDM's tables, and words that only others write.

use super::*;
use crate::Iova;
use crate::conformance;
use crate::vtd::FirstStage;
use crate::walk::{Fault, Root, walk};
use crate::x86_64::{AmdV2, LongMode};

const KIB_4: PageSize = PageSize::KIB_4;
const MIB_2: PageSize = PageSize::MIB_2;
const GIB_1: PageSize = PageSize::GIB_1;
const PAGE: Oa = Oa::new(0x1_2345_6000);
const LARGE: Oa = Oa::new(0x1_2340_0000);
const XD: u64 = 1 << 63;

fn format() -> LongMode {
    LongMode::sign_extended(48).unwrap()
}

fn decoded_leaf(format: LongMode, word: u64, level: u8) -> Leaf {
    match format.decode(word, Level(level)) {
        Ok(Entry::Leaf(leaf)) => leaf,
        other => panic!("{word:#x} at level {level} is {other:?}"),
    }
}

fn keeps_the_laws<W: Walker>(format: LongModeTables<W>) {
    let small = format.with_sizes(PageSizes::EMPTY.with(KIB_4)).unwrap();
    for format in [
        format,
        format.with_execute_disable(),
        format.with_dirty(),
        format.with_dirty().with_execute_disable(),
        small.with_oa_bits(36).unwrap(),
    ] {
        assert_eq!(conformance::check(format), Ok(()), "{format:?}");
    }
}

#[test]
fn every_configuration_keeps_the_laws() {
    for va_bits in [31, 32, 39, 47, 48, 49, 56, 57] {
        keeps_the_laws(LongMode::new(va_bits).unwrap());
    }
    for va_bits in [48, 57] {
        keeps_the_laws(LongMode::sign_extended(va_bits).unwrap());
        keeps_the_laws(FirstStage::sign_extended(va_bits).unwrap());
        keeps_the_laws(AmdV2::new(va_bits - 1).unwrap());
    }
    keeps_the_laws(LongMode::new(39).unwrap().with_levels(5).unwrap());
}

#[test]
fn encodes_the_words_of_the_specification() {
    let f = format();
    let item = |oa, size, prot| f.leaf_item(oa, size, prot, 0);
    assert_eq!(item(PAGE, KIB_4, Prot::R), 0x1_2345_6025);
    assert_eq!(item(PAGE, KIB_4, Prot::RW), 0x1_2345_6067);
    assert_eq!(item(LARGE, MIB_2, Prot::RW), 0x1_2340_00e7);
    assert_eq!(item(Oa::new(0x1_4000_0000), GIB_1, Prot::R), 0x1_4000_00a5);
    assert_eq!(item(PAGE, KIB_4, Prot::RW.privileged()), 0x1_2345_6063);
    assert_eq!(
        item(Oa::new(0x000f_ffff_ffff_f000), KIB_4, Prot::R),
        0x000f_ffff_ffff_f025
    );
    // The lowest bit that every walker ignores.
    assert_eq!(LongMode::PENDING, 0x200);
    // Writes without reads do not exist; memory types and execution have no bits by default.
    assert_eq!(item(PAGE, KIB_4, Prot::W), 0x1_2345_6067);
    assert_eq!(
        item(PAGE, KIB_4, Prot::R.executable().device()),
        0x1_2345_6025
    );
    assert_eq!(f.encode_table(Oa::new(0x8800_1000), Level(1)), 0x8800_1027);
}

#[test]
fn the_three_walkers_get_the_same_words() {
    let (cpu, vtd, amd) = (
        LongMode::new(47).unwrap(),
        FirstStage::new(47).unwrap(),
        AmdV2::new(47).unwrap(),
    );
    for prot in Prot::all() {
        let word = cpu.leaf_item(LARGE, MIB_2, prot, 0);
        assert_eq!(vtd.leaf_item(LARGE, MIB_2, prot, 0), word, "{prot}");
        assert_eq!(amd.leaf_item(LARGE, MIB_2, prot, 0), word, "{prot}");
    }
}

#[test]
fn execute_disable_is_used_only_if_asked_for() {
    let f = format().with_execute_disable();
    let item = |prot| f.leaf_item(PAGE, KIB_4, prot, 0);
    assert_eq!(item(Prot::RW), 0x8000_0001_2345_6067);
    assert_eq!(item(Prot::R.executable()), 0x1_2345_6025);
    assert_eq!(f.encode_table(Oa::new(0x8800_1000), Level(3)), 0x8800_1027);

    assert!(!decoded_leaf(f, XD | 0x1_2345_6025, 0).prot.can_execute());
    assert!(decoded_leaf(f, 0x1_2345_6025, 0).prot.can_execute());
    let Ok(Entry::Table(table)) = f.decode(XD | 0x8800_1027, Level(1)) else {
        panic!()
    };
    assert_eq!(table.limit, Rights::ALL.difference(Rights::EXECUTE));

    // Without it the bit says nothing, in leaves and in tables.
    assert_eq!(
        decoded_leaf(format(), XD | 0x1_2345_6025, 0).prot,
        Prot::R.cached()
    );
    let Ok(Entry::Table(table)) = format().decode(XD | 0x8800_1027, Level(1)) else {
        panic!()
    };
    assert_eq!(table.limit, Rights::ALL);
}

#[test]
fn an_entry_needs_a_right_that_the_format_knows() {
    let execute_only = Prot::new(Rights::EXECUTE, Memory::WriteBack);
    let user_only = Prot::new(Rights::USER, Memory::WriteBack);
    let nothing = Prot::new(Rights::NONE, Memory::Device);
    for prot in [execute_only, user_only, nothing] {
        assert_eq!(format().effective(prot), None, "{prot}");
        assert_eq!(format().leaf_attributes(prot, KIB_4), 0, "{prot}");
    }
    let f = format().with_execute_disable();
    assert_eq!(
        f.effective(execute_only),
        Some(execute_only.with(Rights::READ))
    );
    assert_eq!(f.effective(user_only), None);
}

#[test]
fn decodes_ignored_bits_as_the_hardware_does() {
    let f = format();
    let page = |oa, size| Leaf {
        oa,
        span: size,
        size,
        prot: Prot::RW.cached(),
        accessed: false,
        dirty: false,
    };
    // Bits 62:52 ignored or a protection key, 11:9 ignored, 8 G, 4 PCD, 3 PWT.
    let noise = 0x7ff0_0000_0000_0f18;
    assert_eq!(decoded_leaf(f, 0x1_2345_6007 | noise, 0), page(PAGE, KIB_4));
    // Bit 7 is PAT at level 0.
    assert_eq!(decoded_leaf(f, 0x1_2345_6087, 0), page(PAGE, KIB_4));
    // Bit 12 is PAT in large pages.
    assert_eq!(
        decoded_leaf(f, 0x1_2340_1087 | noise, 1),
        page(LARGE, MIB_2)
    );
    assert_eq!(
        decoded_leaf(f, 0x1_4000_1087 | noise, 2),
        page(Oa::new(0x1_4000_0000), GIB_1)
    );
    // A table entry has no D; bit 6 is ignored, as are 11:8.
    let table = TableEntry {
        oa: Oa::new(0x8800_1000),
        level: Level(2),
        limit: Rights::ALL,
    };
    assert_eq!(f.decode(0x8800_1f5f, Level(3)), Ok(Entry::Table(table)));
}

#[test]
fn an_entry_without_p_is_empty_whatever_else_it_holds() {
    for level in 0..=4 {
        for word in [0, !1, 0x1_2345_6066, 0x8800_1026, XD] {
            assert_eq!(
                format().decode(word, Level(level)),
                Ok(Entry::Empty),
                "{word:#x}"
            );
        }
    }
}

#[test]
fn accessed_and_dirty_flags_are_decoded() {
    for (bits, accessed, dirty) in [
        (0, false, false),
        (0x20, true, false),
        (0x40, false, true),
        (0x60, true, true),
    ] {
        let leaf = decoded_leaf(format(), 0x1_2345_6007 | bits, 0);
        assert_eq!((leaf.accessed, leaf.dirty), (accessed, dirty), "{bits:#x}");
    }
    assert_eq!(format().dirty_rule(), None);
    let rule = format().with_dirty().dirty_rule().unwrap();
    assert_eq!(rule.clean(0x1_2345_6067), 0x1_2345_6027);
    assert_eq!(rule.soil(0x1_2345_6027), 0x1_2345_6067);
    assert_eq!(rule.soil(0x1_2345_6025), 0x1_2345_6025);
}

#[test]
fn tables_limit_writes_and_privilege() {
    for (word, limit) in [
        (0x8800_1025, Rights::ALL.difference(Rights::WRITE)),
        (0x8800_1023, Rights::ALL.difference(Rights::USER)),
        (0x8800_1001, Rights::READ.union(Rights::EXECUTE)),
    ] {
        for level in 1..=4 {
            let table = TableEntry {
                oa: Oa::new(0x8800_1000),
                level: Level(level - 1),
                limit,
            };
            assert_eq!(
                format().decode(word, Level(level)),
                Ok(Entry::Table(table)),
                "{word:#x}"
            );
        }
    }
}

#[test]
fn reserved_patterns_are_reported() {
    let is_reserved = |word, level| format().decode(word, Level(level)).is_err();
    assert!(is_reserved(0x87, 3) && is_reserved(0x87, 4) && is_reserved(0x81, 4));
    // The lowest and highest reserved bit of a 2 MiB page (20:13) and a 1 GiB page (29:13).
    assert!(is_reserved(0x1_2340_2087, 1) && is_reserved(0x1_2350_0087, 1));
    assert!(is_reserved(0x1_4000_2087, 2) && is_reserved(0x1_6000_0087, 2));
    assert!(!is_reserved(0x1_2360_0087, 1) && !is_reserved(0x1_8000_0087, 2));
}

#[test]
fn widths_choose_levels_and_window() {
    for (va_bits, levels) in [
        (31, 4),
        (39, 4),
        (47, 4),
        (48, 4),
        (49, 5),
        (56, 5),
        (57, 5),
    ] {
        let f = LongMode::new(va_bits).unwrap();
        let geometry = f.geometry();
        assert_eq!(
            (f.levels(), geometry.top.0),
            (levels, levels - 1),
            "{va_bits} bits"
        );
        assert_eq!(
            (geometry.va_bits, geometry.window),
            (va_bits, Window::Lower)
        );
        assert_eq!(f.arch_level(geometry.top), levels.cast_signed());
    }
    for va_bits in [0, 30, 58, 64, 255] {
        assert!(
            matches!(LongMode::new(va_bits), Err(ConfigError::VaBits { .. })),
            "{va_bits}"
        );
    }
    for va_bits in [0, 47, 49, 56, 58, 64] {
        let error = LongMode::sign_extended(va_bits).unwrap_err();
        assert!(matches!(error, ConfigError::VaBits { bits, .. } if bits == va_bits));
    }
}

#[test]
fn options_outside_their_range_are_refused() {
    let lower = LongMode::new(48).unwrap();
    for levels in [0, 3, 6, 255] {
        assert!(
            matches!(lower.with_levels(levels), Err(ConfigError::Levels { .. })),
            "{levels}"
        );
    }
    assert_eq!(lower.with_levels(5).unwrap().levels(), 5);
    assert_eq!(format().with_levels(4), Ok(format()));
    assert!(format().with_levels(5).is_err());
    assert!(LongMode::new(57).unwrap().with_levels(4).is_err());
    for oa_bits in [0, 31, 53, 64] {
        assert!(matches!(
            lower.with_oa_bits(oa_bits),
            Err(ConfigError::OaBits { .. })
        ));
    }
    assert_eq!(lower.with_sizes(PageSizes::EMPTY), Err(ConfigError::Sizes));
}

#[test]
fn canonical_addresses_of_both_halves_are_translated() {
    let root = Root {
        oa: Oa::new(0x1000),
        level: Level(3),
    };
    // The last page of the space: index 511 at every level, through one table.
    let items = [
        (0x1ff8, 0x2027),
        (0x2ff8, 0x2027),
        (0x1000, 0x3027),
        (0x2ff8, 0x2027),
    ];
    let read = |oa: Oa| {
        Some(
            items
                .iter()
                .find(|item| item.0 == oa.get())
                .map_or(0, |item| item.1),
        )
    };
    let top = walk(&format(), root, Iova::new(u64::MAX), read, |_| {}).unwrap();
    assert_eq!(top.oa, Oa::new(0x2fff));
    let low = walk(&format(), root, Iova::new(0), read, |_| {});
    assert_eq!(low, Err(Fault::NotPresent { level: Level(2) }));
    for iova in [1 << 47, 0xffff_7fff_ffff_ffff] {
        let iova = Iova::new(iova);
        let outside = walk(&format(), root, iova, read, |_| {});
        assert_eq!(outside, Err(Fault::OutsideWindow { iova }));
    }
}

#[test]
fn fields_carry_the_names_that_the_walker_gives() {
    fn value<W: Walker>(f: LongModeTables<W>, word: u64, level: u8, name: &str) -> Option<u64> {
        let fields = f.fields(word, Level(level));
        fields
            .iter()
            .find(|field| field.name == name)
            .map(|field| field.get(word))
    }
    let (cpu, vtd, amd) = (
        LongMode::new(48).unwrap(),
        FirstStage::new(48).unwrap(),
        AmdV2::new(48).unwrap(),
    );
    let word = XD | 0x5800_0001_2345_64e7;
    assert_eq!(value(cpu, word, 0, "PK"), Some(0xb));
    assert_eq!(value(cpu, word, 0, "PAT"), Some(1));
    assert_eq!(value(vtd, word, 0, "EA"), Some(1));
    assert_eq!(value(amd, word, 0, "NX"), Some(1));
    assert_eq!(value(cpu, 0x1_2340_1087, 1, "PAT"), Some(1));
    assert_eq!(value(cpu, 0x1_2340_1087, 1, "PS"), Some(1));
    assert_eq!(value(cpu, 0x8800_1027, 1, "D"), None);
}
