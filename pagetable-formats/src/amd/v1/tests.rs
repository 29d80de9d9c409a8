//! Words worked out by hand from the figures of section 2.2.3.

use super::*;
use crate::Iova;
use crate::conformance::check;
use crate::walk::{Fault, Root, walk};

const SMALL_OA: Oa = Oa::new(0x1_2345_6000);
const LARGE_OA: Oa = Oa::new(0x1_2340_0000);

fn size(lg2: u8) -> PageSize {
    PageSize::from_lg2(lg2)
}

/// Encodes a leaf of `2^lg2` bytes and checks that all its items are that word.
fn leaf(format: V1, oa: Oa, lg2: u8, prot: Prot) -> u64 {
    let word = format.leaf_item(oa, size(lg2), prot, 0);
    let last = V1::item_count(size(lg2)) - 1;
    assert_eq!(format.leaf_item(oa, size(lg2), prot, last), word);
    word
}

fn decoded(word: u64, level: u8) -> Leaf {
    match V1::new().decode(word, Level(level)) {
        Ok(Entry::Leaf(leaf)) => leaf,
        other => panic!("{word:#x} at level {level} is {other:?}"),
    }
}

fn refused(word: u64, level: u8) -> &'static str {
    let error = V1::new()
        .decode(word, Level(level))
        .expect_err("the word is reserved");
    assert_eq!((error.word, error.level), (word, Level(level)));
    error.reason
}

#[test]
fn leaves_are_the_words_of_the_specification() {
    let plain = V1::new();
    let coherent = plain.with_force_coherence();
    let vectors = [
        (plain, SMALL_OA, 12, Prot::RW, 0x6000_0001_2345_6001),
        (plain, SMALL_OA, 12, Prot::R, 0x2000_0001_2345_6001),
        (plain, SMALL_OA, 12, Prot::W, 0x4000_0001_2345_6001),
        (coherent, SMALL_OA, 12, Prot::RW, 0x7000_0001_2345_6001),
        (plain, SMALL_OA, 13, Prot::RW, 0x6000_0001_2345_6e01),
        (
            plain,
            Oa::new(0x1_2345_0000),
            16,
            Prot::RW,
            0x6000_0001_2345_7e01,
        ),
        (plain, LARGE_OA, 13, Prot::RW, 0x6000_0001_2340_0e01),
        (plain, LARGE_OA, 14, Prot::RW, 0x6000_0001_2340_1e01),
        (plain, LARGE_OA, 15, Prot::RW, 0x6000_0001_2340_3e01),
        (plain, LARGE_OA, 16, Prot::RW, 0x6000_0001_2340_7e01),
        (plain, LARGE_OA, 17, Prot::RW, 0x6000_0001_2340_fe01),
        (plain, LARGE_OA, 18, Prot::RW, 0x6000_0001_2341_fe01),
        (plain, LARGE_OA, 19, Prot::RW, 0x6000_0001_2343_fe01),
        (plain, LARGE_OA, 20, Prot::RW, 0x6000_0001_2347_fe01),
        (plain, LARGE_OA, 21, Prot::RW, 0x6000_0001_2340_0001),
        (plain, LARGE_OA, 22, Prot::RW, 0x6000_0001_235f_fe01),
        (plain, Oa::new(1 << 51), 51, Prot::R, 0x200b_ffff_ffff_fe01),
    ];
    for (format, oa, lg2, prot, word) in vectors {
        assert_eq!(leaf(format, oa, lg2, prot), word, "{} at {oa}", size(lg2));
        let level = V1::level_of(size(lg2));
        let found = decoded(word, level.0);
        assert_eq!(
            (found.oa, found.size, found.span),
            (oa, size(lg2), size(lg2))
        );
        assert_eq!(Some(found.prot), format.effective(prot));
    }
}

#[test]
fn writable_leaves_start_dirty_only_where_dirty_pages_are_tracked() {
    let tracking = V1::new().with_dirty();
    assert_eq!(
        leaf(tracking, SMALL_OA, 12, Prot::RW),
        0x6000_0001_2345_6061
    );
    assert_eq!(leaf(tracking, SMALL_OA, 12, Prot::R), 0x2000_0001_2345_6021);
    let rule = tracking
        .dirty_rule()
        .expect("the format tracks dirty pages");
    assert_eq!(rule.clean(0x6000_0001_2345_6061), 0x6000_0001_2345_6021);
    assert_eq!(rule.soil(0x6000_0001_2345_6001), 0x6000_0001_2345_6041);
    assert_eq!(rule.soil(0x2000_0001_2345_6001), 0x2000_0001_2345_6001);
    assert!(decoded(0x6000_0001_2345_6041, 0).dirty);
    assert!(!decoded(0x6000_0001_2345_6041, 0).accessed);
    assert!(decoded(0x6000_0001_2345_6021, 0).accessed);
    assert_eq!(V1::new().dirty_rule(), None);
}

#[test]
fn pointers_carry_the_level_of_the_table_they_stand_in() {
    let format = V1::new();
    let table = Oa::new(0x8800_1000);
    for (level, word) in [
        (1, 0x6000_0000_8800_1201),
        (2, 0x6000_0000_8800_1401),
        (5, 0x6000_0000_8800_1a01),
    ] {
        assert_eq!(format.encode_table(table, Level(level)), word);
        assert_eq!(format.child(word, Level(level)), Some(table));
        let entry = TableEntry {
            oa: table,
            level: Level(level - 1),
            limit: Rights::ALL,
        };
        assert_eq!(format.decode(word, Level(level)), Ok(Entry::Table(entry)));
        assert_eq!(
            format.decode(word | V1::PENDING, Level(level)),
            Ok(Entry::Table(entry))
        );
    }
    assert_eq!(
        format.child(0x6000_0001_235f_fe01, Level(1)),
        None,
        "a 4 MiB leaf"
    );
    assert_eq!(format.child(0, Level(1)), None);
}

#[test]
fn pointers_of_others_may_skip_levels_and_limit_rights() {
    // From level 3 (NextLevel 4 would be usual) straight to a table of level 0, reads only.
    let word = 0x2000_0000_8800_1201;
    let expected = TableEntry {
        oa: Oa::new(0x8800_1000),
        level: Level(0),
        limit: Rights::ALL.difference(Rights::WRITE),
    };
    assert_eq!(V1::new().decode(word, Level(3)), Ok(Entry::Table(expected)));
    // A, and the ignored bits 63, 8:6 and 4:1.
    let ignored = bit(63) | 0x1c0 | 0x1e | bit(5);
    assert_eq!(
        V1::new().decode(word | ignored, Level(3)),
        Ok(Entry::Table(expected))
    );
}

#[test]
fn pointers_do_not_lead_up_or_sideways() {
    let reason = "NextLevel is not below the level of the table";
    for (next_level, level) in [(1, 0), (2, 1), (3, 1), (6, 5), (6, 0)] {
        assert_eq!(
            refused(0x6000_0000_8800_1001 | (next_level << 9), level),
            reason
        );
    }
}

#[test]
fn reserved_bits_differ_between_leaves_and_pointers() {
    for n in 52..=60 {
        let pointer = 0x6000_0000_8800_1201 | bit(n);
        assert_eq!(
            refused(pointer, 1),
            "a reserved bit of a pointer, 60:52, is set"
        );
    }
    for n in 52..=58 {
        let leaf = 0x6000_0001_2345_6001 | bit(n);
        assert_eq!(refused(leaf, 0), "a reserved bit of a leaf, 58:52, is set");
    }
    // U and FC change no right, nor do the ignored bits 63, 8:7 and 4:1.
    let found = decoded(
        0x6000_0001_2345_6001 | bit(59) | bit(60) | bit(63) | 0x180 | 0x1e,
        0,
    );
    assert_eq!(found, decoded(0x6000_0001_2345_6001, 0));
}

#[test]
fn nothing_counts_without_the_present_bit() {
    for level in 0..=5 {
        assert_eq!(V1::new().decode(!PRESENT, Level(level)), Ok(Entry::Empty));
        assert_eq!(V1::new().decode(0, Level(level)), Ok(Entry::Empty));
    }
}

#[test]
fn sizes_that_a_level_cannot_hold_are_reserved() {
    let reason = "a leaf of this size cannot stand at this level";
    assert_eq!(
        refused(0x600f_ffff_ffff_fe01, 0),
        reason,
        "no zero, so no size"
    );
    assert_eq!(
        refused(0x6000_0001_235f_fe01, 0),
        reason,
        "4 MiB at level 0"
    );
    assert_eq!(
        refused(0x6000_0001_2340_7e01, 1),
        reason,
        "64 KiB at level 1"
    );
    assert_eq!(
        refused(0x6000_0001_234f_fe01, 0),
        reason,
        "2 MiB at level 0"
    );
    assert_eq!(
        refused(0x6000_0001_234f_fe01, 1),
        reason,
        "2 MiB at level 1"
    );
    assert_eq!(
        refused(0x600f_ffff_ffff_fe01, 4),
        reason,
        "no zero, so no size"
    );
    assert_eq!(refused(0x6000_0000_0000_0001, 5), reason, "128 PiB");
    assert_eq!(
        refused(0x6007_ffff_ffff_fe01, 3),
        reason,
        "4 PiB at level 3"
    );
}

#[test]
fn leaves_of_others_may_have_sizes_that_we_never_make() {
    // 512 GiB, which only some hardware gets wrong.
    assert_eq!(decoded(0x6000_8000_0000_0001, 3).size, size(39));
    assert_eq!(decoded(0x6000_8000_0000_0001, 3).oa, Oa::new(1 << 47));
    // All of the output space.
    assert_eq!(decoded(0x6007_ffff_ffff_fe01, 4).size, size(52));
    assert_eq!(decoded(0x6007_ffff_ffff_fe01, 4).oa, Oa::new(0));
    // Address bits below the size of the item.
    assert_eq!(decoded(0x6000_0001_2345_6001, 1).oa, LARGE_OA);
}

#[test]
fn a_present_leaf_may_grant_nothing() {
    let leaf = decoded(0x0000_0001_2345_6001, 0);
    assert_eq!(leaf.prot.rights(), Rights::USER);
    let root = Root {
        oa: Oa::new(0x1000),
        level: Level(0),
    };
    let word = |_| Some(0x0000_0001_2345_6001);
    let end = walk(&V1::new(), root, Iova::new(0), word, |_| {});
    assert_eq!(end, Err(Fault::NoRights));
}

#[test]
fn a_walk_over_a_skipped_level_ends_where_the_skipped_bits_are_set() {
    let format = V1::new();
    let root = Root {
        oa: Oa::new(0x1000),
        level: Level(2),
    };
    let read = |address: Oa| match address.get() {
        // Item 1 of the root points two levels down.
        0x1008 => Some(0x6000_0000_0000_2201),
        0x2008 => Some(0x2000_0001_2345_6001),
        _ => None,
    };
    let hit = walk(&format, root, Iova::new(0x4000_1abc), read, |_| {});
    let hit = hit.expect("bits 29:21 are zero");
    assert_eq!(hit.oa, Oa::new(0x1_2345_6abc));
    assert_eq!(hit.prot, Prot::R.cached());
    let miss = walk(&format, root, Iova::new(0x4020_1000), read, |_| {});
    assert_eq!(miss, Err(Fault::NotPresent { level: Level(2) }));
}

#[test]
fn rights_that_the_format_lacks_are_dropped_or_always_there() {
    let format = V1::new();
    assert_eq!(
        format.effective(Prot::W.privileged()),
        Some(Prot::W.cached())
    );
    assert_eq!(
        format.effective(Prot::R.executable().device()),
        Some(Prot::R.cached())
    );
    let execute_only = Prot::new(Rights::EXECUTE.union(Rights::USER), Memory::WriteBack);
    assert_eq!(format.effective(execute_only), None);
    assert_eq!(format.leaf_attributes(execute_only, PageSize::KIB_4), 0);
}

#[test]
fn new_tables_have_three_levels_and_may_grow_to_six() {
    let geometry = V1::new().geometry();
    assert_eq!((geometry.va_bits, geometry.window), (64, Window::Lower));
    assert_eq!((geometry.top, geometry.max_top), (Level(2), Level(5)));
    assert_eq!(V1::new().root_count_lg2(Level(2)), 9);
    assert_eq!(V1::new().root_count_lg2(Level(4)), 9);
    assert_eq!(V1::new().root_count_lg2(Level(5)), 7);
    assert_eq!(V1::growing(6), Ok(V1::new()));
    let five = V1::growing(5).expect("five levels are possible").geometry();
    assert_eq!(
        (five.va_bits, five.top, five.max_top),
        (57, Level(2), Level(4))
    );
    let two = V1::growing(2).expect("two levels are possible").geometry();
    assert_eq!(
        (two.va_bits, two.top, two.max_top),
        (30, Level(1), Level(1))
    );
}

#[test]
fn a_fixed_table_takes_the_addresses_that_its_levels_reach() {
    let geometry = V1::fixed(3, 32)
        .expect("32 bits need three levels")
        .geometry();
    assert_eq!(
        (geometry.va_bits, geometry.top, geometry.max_top),
        (32, Level(2), Level(2))
    );
    assert_eq!(
        V1::fixed(3, 32).expect("as above").root_count_lg2(Level(2)),
        2
    );
    for (levels, va_bits) in [
        (1, 21),
        (2, 22),
        (3, 39),
        (4, 48),
        (5, 57),
        (6, 64),
        (6, 58),
    ] {
        assert!(
            V1::fixed(levels, va_bits).is_ok(),
            "{levels} levels, {va_bits} bits"
        );
    }
    for (levels, va_bits) in [
        (1, 12),
        (3, 30),
        (3, 40),
        (6, 57),
        (6, 65),
        (2, 0),
        (6, 255),
    ] {
        let error = V1::fixed(levels, va_bits).expect_err("the levels do not fit");
        assert!(matches!(error, ConfigError::VaBits { bits, .. } if bits == va_bits));
    }
    for levels in [0, 7, 255] {
        let error = ConfigError::Levels {
            levels,
            rule: "1 to 6",
        };
        assert_eq!(V1::fixed(levels, 32), Err(error));
        assert_eq!(V1::growing(levels), Err(error));
    }
}

#[test]
fn sizes_are_all_powers_of_two_but_512_gib() {
    let sizes = V1::new().sizes();
    assert_eq!(sizes.bits(), 0x000f_ff7f_ffff_f000);
    assert_eq!(
        V1::fixed(3, 32).expect("possible").sizes().bits(),
        0xffff_f000
    );
    let cut = V1::new().with_oa_bits(40).expect("40 bits are possible");
    assert_eq!(
        (cut.oa_bits(), cut.sizes().bits()),
        (40, 0x0000_007f_ffff_f000)
    );
    let basic = PageSizes::from_bits(0x4020_1000);
    assert_eq!(
        V1::new().with_sizes(basic).map(|format| format.sizes()),
        Ok(basic)
    );
    let none = PageSizes::from_bits(bit(39) | bit(11) | bit(52));
    assert_eq!(V1::new().with_sizes(none), Err(ConfigError::Sizes));
    for bits in [0, 31, 53, 64] {
        let error = ConfigError::OaBits {
            bits,
            rule: "32 to 52",
        };
        assert_eq!(V1::new().with_oa_bits(bits), Err(error));
    }
}

#[test]
fn fields_follow_the_kind_of_the_item() {
    let names = |word, level| {
        V1::new()
            .fields(word, Level(level))
            .iter()
            .map(|field| field.name)
    };
    assert!(names(0x6000_0001_235f_fe01, 1).any(|name| name == "PageAddress"));
    assert!(names(0x6000_0000_8800_1201, 1).any(|name| name == "NextTableAddress"));
    assert!(names(0x6000_0000_8800_1200, 1).eq(["PR"]));
    assert_eq!(V1::new().arch_level(Level(0)), 1);
}

#[test]
fn every_configuration_keeps_the_laws() {
    let fixed = |levels, va_bits| V1::fixed(levels, va_bits).expect("the levels reach these bits");
    let formats = [
        V1::new(),
        V1::new().with_dirty(),
        V1::new().with_force_coherence().with_dirty(),
        V1::new().with_oa_bits(32).expect("32 bits are possible"),
        V1::growing(2).expect("two levels are possible"),
        V1::growing(4).expect("four levels are possible"),
        fixed(1, 21),
        fixed(3, 32),
        fixed(3, 39),
        fixed(6, 64),
        fixed(4, 48)
            .with_sizes(PageSizes::from_bits(0x4020_1000))
            .expect("these sizes exist"),
    ];
    for format in formats {
        assert_eq!(check(format), Ok(()), "{format:?}");
    }
}

#[test]
fn tables_of_linux_translate_as_linux_says() {
    // Three levels; one entry of 8 KiB, force-coherent.
    let read = |address: Oa| match address.get() {
        0x23f_f018 => Some(0x6000_0000_02c8_0401),
        0x2c8_0ff8 => Some(0x6000_0000_02c8_1201),
        0x2c8_1ff0 | 0x2c8_1ff8 => Some(0x7000_0000_02c5_8e01),
        _ => Some(0),
    };
    let format = V1::fixed(3, 39).expect("three levels reach 39 bits");
    let root = Root {
        oa: Oa::new(0x23f_f000),
        level: Level(2),
    };
    let translate = |iova| walk(&format, root, Iova::new(iova), read, |_| {});
    for (iova, oa) in [(0xffff_e000, 0x2c5_8000), (0xffff_f123, 0x2c5_9123)] {
        let end = translate(iova).expect("Linux mapped the page");
        assert_eq!((end.oa, end.prot), (Oa::new(oa), Prot::RW.cached()));
        assert_eq!(end.leaf.size, size(13));
    }
    assert_eq!(
        translate(0xffff_d000),
        Err(Fault::NotPresent { level: Level(0) })
    );
    assert_eq!(
        translate(0x1_0000_0000),
        Err(Fault::NotPresent { level: Level(2) })
    );
}

#[test]
fn an_exact_child_is_a_pointer_that_nobody_marked() {
    let format = V1::new().with_dirty().with_force_coherence();
    let table = Oa::new(0x000f_ffff_ffff_f000);
    for level in (1..=5).map(Level) {
        let word = format.encode_table(table, level);
        assert_eq!(format.exact_child(word, level), Some(table));
        assert_eq!(format.exact_child(word | V1::PENDING, level), None);
        assert_eq!(format.child(word | V1::PENDING, level), Some(table));
        assert_eq!(format.exact_child(0, level), None);
    }
    for size in format.sizes().iter().filter(|size| size.lg2() > 20) {
        let level = V1::level_of(size);
        for prot in [Prot::R, Prot::W, Prot::RW] {
            let word = format.leaf_item(Oa::new(0), size, prot, 0);
            assert_eq!(format.exact_child(word, level), None, "{size}");
        }
    }
}
