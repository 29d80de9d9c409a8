//! Words worked out from the specification's tables, and words that only others write.

use super::*;
use crate::conformance;
use crate::walk::{Root, walk};
use crate::{Iova, bit};

const KIB_4: PageSize = PageSize::KIB_4;
const MIB_2: PageSize = PageSize::MIB_2;
const GIB_1: PageSize = PageSize::GIB_1;
const PAGE: Oa = Oa::new(0x1_2345_6000);
const LARGE: Oa = Oa::new(0x1_2340_0000);
const WRITE_ONLY: Prot = Prot::W;

fn format() -> SecondStage {
    SecondStage::new(48).unwrap()
}

fn leaf(oa: u64, size: PageSize, rights: Rights) -> Leaf {
    Leaf {
        oa: Oa::new(oa),
        span: size,
        size,
        prot: Prot::new(rights.union(Rights::USER), Memory::WriteBack),
        accessed: true,
        dirty: false,
    }
}

fn decoded_leaf(format: SecondStage, word: u64, level: u8) -> Leaf {
    match format.decode(word, Level(level)) {
        Ok(Entry::Leaf(leaf)) => leaf,
        other => panic!("{word:#x} at level {level} is {other:?}"),
    }
}

#[test]
fn every_configuration_keeps_the_laws() {
    for va_bits in [31, 32, 39, 40, 47, 48, 49, 57] {
        let format = SecondStage::new(va_bits).unwrap();
        let sizes = PageSizes::EMPTY.with(KIB_4).with(MIB_2);
        for format in [
            format,
            format.with_dirty(),
            format.with_snoop(),
            format.with_snoop().with_dirty().with_levels(5).unwrap(),
            format.with_sizes(sizes).unwrap().with_oa_bits(39).unwrap(),
        ] {
            assert_eq!(conformance::check(format), Ok(()), "{format:?}");
        }
    }
}

#[test]
fn encodes_the_words_of_the_specification() {
    let f = format();
    let item = |f: SecondStage, oa, size, prot| f.leaf_item(oa, size, prot, 0);
    assert_eq!(item(f, PAGE, KIB_4, Prot::RW), 0x1_2345_6003);
    assert_eq!(item(f, PAGE, KIB_4, Prot::R), 0x1_2345_6001);
    assert_eq!(item(f, PAGE, KIB_4, WRITE_ONLY), 0x1_2345_6002);
    assert_eq!(item(f.with_snoop(), PAGE, KIB_4, Prot::RW), 0x1_2345_6803);
    assert_eq!(item(f, LARGE, MIB_2, Prot::RW), 0x1_2340_0083);
    assert_eq!(
        item(f, Oa::new(0x1_4000_0000), GIB_1, Prot::RW),
        0x1_4000_0083
    );
    assert_eq!(
        item(f, Oa::new(0x000f_ffff_ffff_f000), KIB_4, Prot::R),
        0x000f_ffff_ffff_f001
    );
    assert_eq!(f.encode_table(Oa::new(0x8800_1000), Level(1)), 0x8800_1003);
    // The lowest bit that hardware ignores everywhere.
    assert_eq!(SecondStage::PENDING, 0x400);
    // Device memory, execution and privilege have no bits here.
    assert_eq!(
        item(f, PAGE, KIB_4, Prot::RW.device().executable().privileged()),
        0x1_2345_6003
    );
}

#[test]
fn new_entries_of_a_dirty_tracking_table_need_no_write_by_hardware() {
    let f = format().with_dirty();
    assert_eq!(f.leaf_item(PAGE, KIB_4, Prot::RW, 0), 0x1_2345_6303);
    assert_eq!(f.leaf_item(PAGE, KIB_4, Prot::R, 0), 0x1_2345_6101);
    assert_eq!(f.leaf_item(LARGE, MIB_2, Prot::RW, 0), 0x1_2340_0383);
    assert_eq!(f.encode_table(Oa::new(0x8800_1000), Level(1)), 0x8800_1103);
}

#[test]
fn the_dirty_flag_is_set_and_cleared_alone() {
    assert_eq!(format().dirty_rule(), None);
    let rule = format().with_dirty().dirty_rule().unwrap();
    assert_eq!(rule.soil(0x1_2345_6003), 0x1_2345_6203);
    assert_eq!(rule.clean(0x1_2345_6203), 0x1_2345_6003);
    assert!(rule.is_dirty(0x1_2345_6203) && !rule.is_dirty(0x1_2345_6003));
    // Hardware records no writes through a read-only leaf.
    assert_eq!(rule.soil(0x1_2345_6001), 0x1_2345_6001);
}

#[test]
fn refuses_leaves_that_would_be_empty() {
    let f = format();
    for rights in [
        Rights::NONE,
        Rights::USER,
        Rights::EXECUTE,
        Rights::EXECUTE.union(Rights::USER),
    ] {
        let prot = Prot::new(rights, Memory::WriteBack);
        assert_eq!(f.effective(prot), None, "{prot}");
        assert_eq!(
            f.with_snoop().with_dirty().leaf_attributes(prot, MIB_2),
            0,
            "{prot}"
        );
    }
}

#[test]
fn an_entry_without_read_and_write_is_empty_whatever_else_it_holds() {
    let f = format().with_dirty();
    for level in 0..=4 {
        for word in [
            0,
            !3,
            bit(2),
            PAGE_SIZE,
            0x1_2345_6000 | PAGE_SIZE | ACCESSED | DIRTY,
        ] {
            assert_eq!(f.decode(word, Level(level)), Ok(Entry::Empty), "{word:#x}");
        }
    }
}

#[test]
fn decodes_ignored_bits_as_the_hardware_does() {
    let f = format();
    let read_write = Rights::READ.union(Rights::WRITE);
    // Bits 63 and 61:52 are ignored, 62 is TM, 11 SNP, 10 ignored, 6 IPAT, 5:3 EMT, 2 ignored.
    let noise = 0xfff0_0000_0000_0c7c;
    assert_eq!(
        decoded_leaf(f, 0x1_2345_6003 | noise, 0),
        leaf(0x1_2345_6000, KIB_4, read_write)
    );
    assert_eq!(
        decoded_leaf(f, 0x1_2340_0083 | noise, 1),
        leaf(0x1_2340_0000, MIB_2, read_write)
    );
    assert_eq!(
        decoded_leaf(f, 0x1_4000_0083 | noise, 2),
        leaf(0x1_4000_0000, GIB_1, read_write)
    );
    // PS does not exist at level 0.
    assert_eq!(
        decoded_leaf(f, 0x1_2345_6081, 0),
        leaf(0x1_2345_6000, KIB_4, Rights::READ)
    );
    // Write-only leaves exist, unlike in the CPU's nested tables.
    assert_eq!(
        decoded_leaf(f, 0x1_2345_6002, 0),
        leaf(0x1_2345_6000, KIB_4, Rights::WRITE)
    );
}

#[test]
fn tables_limit_reads_and_writes() {
    let f = format();
    for (word, limit) in [
        (0x8800_1003, Rights::ALL),
        (0x8800_1001, Rights::ALL.difference(Rights::WRITE)),
        (0x8800_1002, Rights::ALL.difference(Rights::READ)),
        // A and D mean nothing here; neither do the ignored bits.
        (0xbff0_0000_8800_1f7f, Rights::ALL),
    ] {
        for level in 1..=4 {
            let table = TableEntry {
                oa: Oa::new(0x8800_1000),
                level: Level(level - 1),
                limit,
            };
            assert_eq!(
                f.decode(word, Level(level)),
                Ok(Entry::Table(table)),
                "{word:#x}"
            );
        }
    }
}

#[test]
fn reserved_patterns_are_reported() {
    let f = format();
    let is_reserved = |word, level| f.decode(word, Level(level)).is_err();
    // Large pages end at level 2.
    assert!(is_reserved(0x83, 3) && is_reserved(0x83, 4) && is_reserved(0x81, 4));
    // The lowest and highest address bit below a 2 MiB and a 1 GiB page.
    assert!(is_reserved(0x1_2340_1083, 1) && is_reserved(0x1_2350_0083, 1));
    assert!(is_reserved(0x1_4000_1083, 2) && is_reserved(0x1_6000_0083, 2));
    assert!(!is_reserved(0x1_2360_0083, 1) && !is_reserved(0x1_8000_0083, 2));
    let error = f.decode(0x83, Level(3)).unwrap_err();
    assert_eq!((error.word, error.level), (0x83, Level(3)));
}

#[test]
fn accessed_and_dirty_flags_count_only_if_enabled() {
    let (off, on) = (format(), format().with_dirty());
    for (bits, accessed, dirty) in [
        (0, false, false),
        (0x100, true, false),
        (0x200, false, true),
        (0x300, true, true),
    ] {
        let word = 0x1_2345_6003 | bits;
        assert!(decoded_leaf(off, word, 0).accessed);
        let leaf = decoded_leaf(on, word, 0);
        assert_eq!((leaf.accessed, leaf.dirty), (accessed, dirty));
    }
}

#[test]
fn widths_choose_the_levels_and_the_address_width_field() {
    for (va_bits, levels, aw) in [
        (31, 3, 1),
        (39, 3, 1),
        (40, 4, 2),
        (48, 4, 2),
        (49, 5, 3),
        (57, 5, 3),
    ] {
        let f = SecondStage::new(va_bits).unwrap();
        assert_eq!((f.levels(), f.aw()), (levels, aw), "{va_bits} bits");
        let geometry = f.geometry();
        assert_eq!((geometry.va_bits, geometry.top.0), (va_bits, levels - 1));
        assert_eq!(geometry.top, geometry.max_top);
        assert_eq!(f.arch_level(geometry.top), levels.cast_signed());
    }
    for va_bits in [0, 1, 12, 30, 58, 64, 255] {
        let error = SecondStage::new(va_bits).unwrap_err();
        assert!(matches!(error, ConfigError::VaBits { bits, .. } if bits == va_bits));
    }
}

#[test]
fn options_outside_their_range_are_refused() {
    let f = format();
    for levels in [0, 3, 6, 255] {
        assert!(
            matches!(f.with_levels(levels), Err(ConfigError::Levels { .. })),
            "{levels}"
        );
    }
    assert_eq!(f.with_levels(4), Ok(f));
    assert_eq!(f.with_levels(5).unwrap().aw(), 3);
    for oa_bits in [0, 31, 53, 64] {
        assert!(
            matches!(f.with_oa_bits(oa_bits), Err(ConfigError::OaBits { .. })),
            "{oa_bits}"
        );
    }
    assert_eq!(f.with_oa_bits(46).unwrap().oa_bits(), 46);
    assert_eq!(
        f.with_sizes(PageSizes::EMPTY.with(PageSize::KIB_64)),
        Err(ConfigError::Sizes)
    );
    let small = f.with_sizes(PageSizes::from_bits(0xf000)).unwrap();
    assert_eq!(small.sizes(), PageSizes::EMPTY.with(KIB_4));
}

/// Four tables, one a page: the walk goes through index 1, 2, 3 and 4.
#[test]
fn a_walk_takes_nine_bits_a_level_and_intersects_rights() {
    let f = format();
    let iova = 1 << 39 | 2 << 30 | 3 << 21 | 4 << 12 | 0x567;
    let items = [
        (0x1000 + 8, 0x2003),
        (0x2000 + 2 * 8, 0x3001), // read-only from here on
        (0x3000 + 3 * 8, 0x4003),
        (0x4000 + 4 * 8, 0x1_2345_6003),
    ];
    let read = |oa: Oa| {
        Some(
            items
                .iter()
                .find(|item| item.0 == oa.get())
                .map_or(0, |item| item.1),
        )
    };
    let root = Root {
        oa: Oa::new(0x1000),
        level: Level(3),
    };
    let walked = walk(&f, root, Iova::new(iova), read, |_| {}).unwrap();
    assert_eq!(walked.oa, Oa::new(0x1_2345_6567));
    assert_eq!(walked.prot, Prot::R.cached());
    assert!(walk(&f, root, Iova::new(iova + 0x1000), read, |_| {}).is_err());
}

#[test]
fn fields_are_those_of_the_entrys_kind() {
    let f = format();
    let value = |word, level, name| {
        f.fields(word, Level(level))
            .iter()
            .find(|field| field.name == name)
            .map(|f| f.get(word))
    };
    assert_eq!(value(0x1_2345_6803, 0, "SNP"), Some(1));
    assert_eq!(value(0x1_2345_6003, 0, "ADDR"), Some(0x12_3456));
    assert_eq!(value(0x8800_1003, 1, "SNP"), None);
    assert_eq!(value(0x1_2340_0283, 1, "D"), Some(1));
}
