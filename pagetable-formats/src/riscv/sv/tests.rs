//! Words worked out by hand from the figures of the privileged architecture.

use super::*;
use crate::Iova;
use crate::conformance::check;
use crate::walk::{Fault, Root, walk};

const SMALL_OA: Oa = Oa::new(0x1_2345_6000);
const LARGE_OA: Oa = Oa::new(0x1_2340_0000);
const NAPOT_OA: Oa = Oa::new(0x1_2345_0000);

fn decoded<S: Stage>(format: Paging<S>, word: u64, level: u8) -> Leaf {
    match format.decode(word, Level(level)) {
        Ok(Entry::Leaf(leaf)) => leaf,
        other => panic!("{word:#x} at level {level} is {other:?}"),
    }
}

fn refused<S: Stage>(format: Paging<S>, word: u64, level: u8) -> &'static str {
    let error = format
        .decode(word, Level(level))
        .expect_err("the word is reserved");
    assert_eq!((error.word, error.level), (word, Level(level)));
    error.reason
}

#[test]
fn first_stage_leaves_are_the_words_of_the_specification() {
    let plain = Sv::sv39();
    let napot = Sv::sv39().with_svnapot();
    let typed = Sv::sv48().with_svpbmt();
    let privileged = Prot::R.privileged();
    let (small, large) = (PageSize::KIB_4, PageSize::MIB_2);
    let vectors = [
        (
            plain,
            SMALL_OA,
            small,
            Prot::RW.executable(),
            0x0000_0000_48d1_58df,
        ),
        (plain, SMALL_OA, small, Prot::R, 0x0000_0000_48d1_5853),
        (plain, SMALL_OA, small, privileged, 0x0000_0000_48d1_5843),
        (typed, SMALL_OA, small, Prot::RW, 0x2000_0000_48d1_58d7),
        (
            typed,
            SMALL_OA,
            small,
            Prot::RW.device(),
            0x4000_0000_48d1_58d7,
        ),
        (
            typed,
            SMALL_OA,
            small,
            Prot::RW.cached(),
            0x0000_0000_48d1_58d7,
        ),
        (plain, LARGE_OA, large, Prot::RW, 0x0000_0000_48d0_00d7),
        (
            napot,
            NAPOT_OA,
            PageSize::KIB_64,
            Prot::RW,
            0x8000_0000_48d1_60d7,
        ),
        (
            plain,
            Oa::new(1 << 55),
            PageSize::GIB_1,
            Prot::R,
            0x0020_0000_0000_0053,
        ),
    ];
    for (format, oa, size, prot, word) in vectors {
        for i in 0..Sv::item_count(size) {
            assert_eq!(format.leaf_item(oa, size, prot, i), word, "{size} at {oa}");
        }
        let leaf = decoded(format, word, Sv::level_of(size).0);
        assert_eq!((leaf.oa, leaf.size, leaf.span), (oa, size, size));
        assert_eq!(Some(leaf.prot), format.effective(prot));
        assert!(leaf.accessed);
        assert_eq!(leaf.dirty, prot.can_write());
    }
}

#[test]
fn every_level_may_hold_leaves() {
    let format = Sv::sv57();
    assert_eq!(format.sizes().bits(), 0x0001_0080_4020_1000);
    let word = format.leaf_item(Oa::new(3 << 48), PageSize::from_lg2(48), Prot::R, 0);
    assert_eq!(word, 0x0000_c000_0000_0053);
    assert_eq!(decoded(format, word, 4).oa, Oa::new(3 << 48));
}

#[test]
fn g_stage_leaves_are_always_for_unprivileged_requests() {
    let format = Svx4::sv39x4();
    let privileged = Prot::R.privileged();
    assert_eq!(
        format.leaf_item(SMALL_OA, PageSize::KIB_4, privileged, 0),
        0x48d1_5853
    );
    assert_eq!(format.effective(privileged), Some(Prot::R.cached()));
    // A leaf of others without U: every request faults on it.
    assert_eq!(decoded(format, 0x48d1_5843, 0).prot.rights(), Rights::NONE);
    assert_eq!(
        decoded(Sv::sv39(), 0x48d1_5843, 0).prot,
        privileged.cached()
    );
}

#[test]
fn pointers_are_valid_items_without_rights() {
    let format = Sv::sv39();
    let table = Oa::new(0x8800_1000);
    assert_eq!(format.encode_table(table, Level(1)), 0x2200_0401);
    assert_eq!(format.child(0x2200_0401, Level(1)), Some(table));
    assert_eq!(format.child(0x48d0_00d7, Level(1)), None);
    assert_eq!(format.child(0, Level(1)), None);
    let entry = TableEntry {
        oa: table,
        level: Level(1),
        limit: Rights::ALL,
    };
    // G and RSW change nothing.
    for word in [0x2200_0401, 0x2200_0421, 0x2200_0501, 0x2200_0601] {
        assert_eq!(format.decode(word, Level(2)), Ok(Entry::Table(entry)));
    }
}

#[test]
fn pointers_with_bits_of_leaves_are_reserved() {
    let format = Sv::sv39().with_svnapot().with_svpbmt();
    for bits in [bit(4), bit(6), bit(7), bit(61), bit(62), bit(63)] {
        let reason = refused(format, 0x2200_0401 | bits, 1);
        assert_eq!(reason, "N, PBMT, D, A or U is set in a pointer");
    }
    assert_eq!(
        refused(format, 0x2200_0401, 0),
        "a pointer at the last level"
    );
}

#[test]
fn write_without_read_is_reserved_and_never_made() {
    for word in [0x48d1_58d5, 0x48d1_58dd] {
        assert_eq!(refused(Sv::sv39(), word, 0), "W is set without R");
    }
    assert_eq!(Sv::sv39().effective(Prot::W), Some(Prot::RW.cached()));
    assert_eq!(
        Sv::sv39().leaf_item(SMALL_OA, PageSize::KIB_4, Prot::W, 0),
        0x48d1_58d7
    );
}

#[test]
fn execute_only_is_legal() {
    let prot = Prot::new(Rights::EXECUTE.union(Rights::USER), Memory::WriteBack);
    assert_eq!(
        Sv::sv39().leaf_item(SMALL_OA, PageSize::KIB_4, prot, 0),
        0x48d1_5859
    );
    assert_eq!(decoded(Sv::sv39(), 0x48d1_5859, 0).prot, prot);
    let nothing = Prot::new(Rights::USER, Memory::WriteBack);
    assert_eq!(Sv::sv39().effective(nothing), None);
    assert_eq!(Sv::sv39().leaf_attributes(nothing, PageSize::KIB_4), 0);
}

#[test]
fn reserved_bits_and_encodings_fault() {
    let full = Sv::sv39().with_svnapot().with_svpbmt();
    for n in 54..=60 {
        let reason = "a reserved bit, 60:54, is set";
        assert_eq!(refused(full, 0x48d1_58d7 | bit(n), 0), reason);
        assert_eq!(refused(full, 0x2200_0401 | bit(n), 1), reason);
    }
    assert_eq!(refused(full, 0x48d1_58d7 | 3 << 61, 0), "PBMT is reserved");
    assert_eq!(
        refused(Sv::sv39(), 0x48d1_58d7 | 1 << 61, 0),
        "PBMT is reserved"
    );
    let napot = 0x8000_0000_48d1_60d7;
    let reason = "N is set but the table has no Svnapot";
    assert_eq!(refused(Sv::sv39(), napot, 0), reason);
    assert_eq!(refused(full, napot, 1), "N is set above the last level");
    for low in [0b0000, 0b0001, 0b0100, 0b1001, 0b1100, 0b1111] {
        let word = 0x8000_0000_48d1_40d7 | low << 10;
        assert_eq!(refused(full, word, 0), "N is set and PPN[3:0] is not 1000");
    }
}

#[test]
fn a_misaligned_superpage_faults() {
    let reason = "the page is not aligned to its size";
    assert_eq!(refused(Sv::sv39(), 0x48d1_58d7, 1), reason);
    assert_eq!(refused(Sv::sv39(), 0x48d0_00d7, 2), reason);
}

#[test]
fn nothing_counts_without_the_valid_bit() {
    for level in 0..=5 {
        assert_eq!(Sv::sv57().decode(!VALID, Level(level)), Ok(Entry::Empty));
    }
}

#[test]
fn missing_flags_fault_unless_hardware_sets_them() {
    let clean = 0x48d1_5857;
    let never_accessed = 0x48d1_5813;
    let software = Sv::sv39();
    assert!(software.faults_unaccessed());
    assert_eq!(software.dirty_rule(), None);
    assert_eq!(decoded(software, clean, 0).prot, Prot::R.cached());
    assert!(!decoded(software, never_accessed, 0).accessed);
    // A gigapage at 0x4000_0000.
    let word = 0x1000_0000 | 0x13;
    let root = Root {
        oa: Oa::new(0x1000),
        level: Level(2),
    };
    let end = walk(&software, root, Iova::new(0), |_| Some(word), |_| {});
    assert_eq!(end, Err(Fault::NotAccessed { level: Level(2) }));

    let hardware = Sv::sv39().with_dirty();
    assert!(!hardware.faults_unaccessed());
    assert_eq!(decoded(hardware, clean, 0).prot, Prot::RW.cached());
    assert!(!decoded(hardware, clean, 0).dirty);
    let rule = hardware
        .dirty_rule()
        .expect("the format tracks dirty pages");
    assert_eq!(rule.soil(clean), 0x48d1_58d7);
    assert_eq!(rule.clean(0x48d1_58d7), clean);
    assert_eq!(
        rule.soil(0x48d1_5853),
        0x48d1_5853,
        "a page that cannot be written"
    );
}

#[test]
fn first_stage_windows_are_sign_extended() {
    for (format, va_bits, top) in [
        (Sv::sv39(), 39, 2),
        (Sv::sv48(), 48, 3),
        (Sv::sv57(), 57, 4),
    ] {
        let geometry = format.geometry();
        assert_eq!(
            (geometry.va_bits, geometry.window),
            (va_bits, Window::SignExtended)
        );
        assert_eq!((geometry.top, geometry.max_top), (Level(top), Level(top)));
        assert_eq!(format.root_count_lg2(geometry.top), 9);
        assert!(geometry.contains(Iova::new(u64::MAX)));
        assert!(geometry.contains(Iova::new((1 << (va_bits - 1)) - 1)));
        assert!(!geometry.contains(Iova::new(1 << (va_bits - 1))));
    }
}

#[test]
fn g_stage_roots_hold_2048_items() {
    for (format, va_bits, top) in [
        (Svx4::sv39x4(), 41, 2),
        (Svx4::sv48x4(), 50, 3),
        (Svx4::sv57x4(), 59, 4),
    ] {
        let geometry = format.geometry();
        assert_eq!(
            (geometry.va_bits, geometry.window),
            (va_bits, Window::Lower)
        );
        assert_eq!((geometry.top, geometry.max_top), (Level(top), Level(top)));
        assert_eq!(format.root_count_lg2(geometry.top), 11);
        let last = Iova::new((1 << va_bits) - 1);
        assert!(geometry.contains(last));
        assert!(!geometry.contains(Iova::new(1 << va_bits)));
        assert_eq!(format.root_index(last, geometry.top), 2047);
    }
}

#[test]
fn context_words_carry_the_mode() {
    assert_eq!(
        Sv::sv39().iosatp(Oa::new(0x8800_1000)),
        0x8000_0000_0008_8001
    );
    assert_eq!(
        Sv::sv57().iosatp(Oa::new(0x8800_1000)),
        0xa000_0000_0008_8001
    );
    assert_eq!(
        Svx4::sv48x4().iohgatp(Oa::new(0x8800_4000), 0x1234),
        0x9123_4000_0008_8004
    );
}

#[test]
fn options_cut_sizes_and_nothing_else() {
    let sizes = |format: Result<Sv, ConfigError>| format.map(|format| format.sizes().bits());
    let napot = Sv::sv48().with_svnapot();
    assert_eq!(napot.sizes().bits(), 0x80_4021_1000);
    assert_eq!(sizes(napot.with_oa_bits(32)), Ok(0x4021_1000));
    let without = napot
        .with_sizes(PageSizes::from_bits(0x1000))
        .expect("4 KiB is a size");
    assert_eq!(without.sizes().bits(), 0x1000);
    assert_eq!(
        decoded(without, 0x8000_0000_48d1_60d7, 0).size,
        PageSize::KIB_64
    );
    assert_eq!(
        sizes(napot.with_sizes(PageSizes::from_bits(0x800))),
        Err(ConfigError::Sizes)
    );
    for bits in [0, 31, 57] {
        let error = ConfigError::OaBits {
            bits,
            rule: "32 to 56",
        };
        assert_eq!(sizes(napot.with_oa_bits(bits)), Err(error));
    }
}

#[test]
fn fields_follow_the_kind_of_the_item() {
    let names = |word| {
        Sv::sv39()
            .fields(word, Level(1))
            .iter()
            .map(|field| field.name)
    };
    assert!(names(0x48d0_00d7).any(|name| name == "PBMT"));
    assert!(names(0x2200_0401).eq(["V", "G", "RSW", "PPN"]));
    assert!(names(0x2200_0400).eq(["V"]));
    assert_eq!(Sv::sv39().arch_level(Level(2)), 2);
}

#[test]
fn every_configuration_keeps_the_laws() {
    for format in [Sv::sv39(), Sv::sv48(), Sv::sv57()] {
        assert_eq!(check_options(format), Ok(()));
    }
    for format in [Svx4::sv39x4(), Svx4::sv48x4(), Svx4::sv57x4()] {
        assert_eq!(check_options(format), Ok(()));
    }
}

fn check_options<S: Stage>(plain: Paging<S>) -> Result<(), crate::conformance::Violation> {
    check(plain)?;
    check(plain.with_svnapot())?;
    check(plain.with_svpbmt())?;
    check(plain.with_dirty())?;
    check(plain.with_oa_bits(32).expect("32 bits are possible"))?;
    check(plain.with_svnapot().with_svpbmt().with_dirty())
}

#[test]
fn an_exact_child_is_a_pointer_that_nobody_marked() {
    let format = Sv::sv57().with_svpbmt();
    let table = Oa::new(0x00ff_ffff_ffff_f000);
    let word = format.encode_table(table, Level(3));
    assert_eq!(format.exact_child(word, Level(3)), Some(table));
    assert_eq!(format.exact_child(word | Sv::PENDING, Level(3)), None);
    assert_eq!(format.child(word | Sv::PENDING, Level(3)), Some(table));
    assert_eq!(format.exact_child(0, Level(3)), None);
    for size in format.sizes().iter().filter(|size| size.lg2() > 12) {
        for prot in [Prot::R.privileged(), Prot::RW.executable()] {
            let word = format.leaf_item(Oa::new(0), size, prot, 0);
            assert_eq!(format.exact_child(word, Sv::level_of(size)), None, "{size}");
        }
    }
}
