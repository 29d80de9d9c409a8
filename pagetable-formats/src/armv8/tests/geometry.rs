//! Levels, root sizes, page sizes and the limits of widths.

use super::*;
use crate::armv8::{Concatenation, Lpae32, Lpae32Stage2, Mali, Stage1, Stage2};
use crate::{ConfigError, Geometry, PageSizes, Window};

/// Returns the number of levels and the base-2 logarithm of the items of the root.
fn shape<F: Format>(format: Result<F, ConfigError>) -> (u8, u8) {
    let format = format.expect("the configuration is possible");
    let top = format.geometry().top;
    (top.0 + 1, format.root_count_lg2(top))
}

/// Returns the number of levels and of root tables.
fn tables<F: Format>(format: Result<F, ConfigError>) -> (u8, u32) {
    let (levels, count_lg2) = shape(format);
    (levels, 1 << count_lg2.saturating_sub(F::item_count_lg2()))
}

#[test]
fn stage1_levels_and_root_items() {
    for (va_bits, k4, k16, k64) in [
        (32, (3, 2), (2, 7), (2, 3)),
        (36, (3, 6), (2, 11), (2, 7)),
        (39, (3, 9), (3, 3), (2, 10)),
        (40, (4, 1), (3, 4), (2, 11)),
        (42, (4, 3), (3, 6), (2, 13)),
        (44, (4, 5), (3, 8), (3, 2)),
        (48, (4, 9), (4, 1), (3, 6)),
    ] {
        assert_eq!(shape(Stage1::<12>::new(va_bits, 48)), k4, "{va_bits} bits");
        assert_eq!(shape(Stage1::<14>::new(va_bits, 48)), k16, "{va_bits} bits");
        assert_eq!(shape(Stage1::<16>::new(va_bits, 48)), k64, "{va_bits} bits");
    }
    assert_eq!(shape(Stage1::<12>::new_lpa(52, 52)), (5, 4));
    assert_eq!(shape(Stage1::<14>::new_lpa(52, 52)), (4, 5));
    assert_eq!(shape(Stage1::<16>::new_lpa(52, 52)), (3, 10));
    assert_eq!(shape(Stage1::<16>::new(52, 48)), (3, 10));
    // The narrowest: T0SZ = 39.
    assert_eq!(shape(Stage1::<12>::new(25, 32)), (2, 4));
    assert_eq!(shape(Stage1::<16>::new(25, 32)), (1, 9));
}

#[test]
fn stage2_roots_are_concatenated_where_possible() {
    for (va_bits, k4, k16, k64) in [
        (32, (2, 4), (2, 1), (2, 1)),
        (36, (3, 1), (2, 1), (2, 1)),
        (40, (3, 2), (2, 16), (2, 1)),
        (42, (3, 8), (3, 1), (2, 1)),
        (44, (4, 1), (3, 1), (2, 4)),
        (48, (4, 1), (3, 2), (3, 1)),
    ] {
        assert_eq!(tables(Stage2::<12>::new(va_bits, 48)), k4, "{va_bits} bits");
        assert_eq!(
            tables(Stage2::<14>::new(va_bits, 48)),
            k16,
            "{va_bits} bits"
        );
        assert_eq!(
            tables(Stage2::<16>::new(va_bits, 48)),
            k64,
            "{va_bits} bits"
        );
    }
    assert_eq!(tables(Stage2::<12>::new_lpa(52, 52)), (4, 16));
    assert_eq!(tables(Stage2::<14>::new_lpa(52, 52)), (4, 1));
    assert_eq!(tables(Stage2::<16>::new_lpa(52, 52)), (3, 1));
}

#[test]
fn stage2_roots_can_be_concatenated_only_where_mandatory() {
    fn mandatory<const G: u8>(va_bits: u8, oa_bits: u8) -> (u8, u8) {
        shape(
            Stage2::<G>::new(va_bits, oa_bits)
                .and_then(|format| format.with_concatenation(Concatenation::WhereMandatory)),
        )
    }
    // 4 KiB: a walk may start at ARM level 0 from 44 implemented address bits on.
    assert_eq!(mandatory::<12>(40, 40), (3, 10));
    assert_eq!(mandatory::<12>(40, 42), (3, 10));
    assert_eq!(mandatory::<12>(42, 42), (3, 12));
    assert_eq!(mandatory::<12>(40, 44), (4, 1));
    assert_eq!(mandatory::<12>(32, 40), (3, 2));
    // 16 KiB: at level 1 from 42 bits on, at level 0 only with LPA2.
    assert_eq!(mandatory::<14>(40, 40), (2, 15));
    assert_eq!(mandatory::<14>(40, 42), (3, 4));
    assert_eq!(mandatory::<14>(48, 48), (3, 12));
    assert_eq!(mandatory::<16>(44, 44), (3, 2));
    let lpa2 = Stage2::<14>::new_lpa(48, 48).unwrap();
    assert_eq!(
        shape(lpa2.with_concatenation(Concatenation::WhereMandatory)),
        (4, 1)
    );
    let lpa2 = Stage2::<12>::new_lpa(52, 52).unwrap();
    assert_eq!(
        shape(lpa2.with_concatenation(Concatenation::WhereMandatory)),
        (5, 4)
    );
}

#[test]
fn a_start_level_must_fit_the_width() {
    let f = Stage2::<12>::new(40, 44).unwrap();
    assert_eq!(shape(f.with_start_level(Level(3))), (4, 1));
    assert_eq!(shape(f.with_start_level(Level(2))), (3, 10));
    let refused = |result: Result<Stage2<12>, _>| matches!(result, Err(ConfigError::Levels { .. }));
    assert!(refused(f.with_start_level(Level(1))));
    assert!(refused(f.with_start_level(Level(4))));
    assert!(refused(f.with_start_level(Level(255))));
    // 43 bits are 16 tables, 44 bits would be 32.
    let start = |va_bits, top| {
        Stage2::<12>::new(va_bits, 48)
            .unwrap()
            .with_start_level(Level(top))
    };
    assert_eq!(tables(start(43, 2)), (3, 16));
    assert!(refused(start(44, 2)));
    assert!(refused(start(39, 3)));
    let lpa2 = Stage2::<12>::new_lpa(52, 52).unwrap();
    assert_eq!(shape(lpa2.with_start_level(Level(4))), (5, 4));
    assert_eq!(
        shape(
            Stage2::<14>::new(48, 48)
                .unwrap()
                .with_start_level(Level(2))
        ),
        (3, 12)
    );
    assert!(
        Stage2::<14>::new(48, 48)
            .unwrap()
            .with_start_level(Level(3))
            .is_err()
    );
    assert_eq!(
        shape(
            Stage2::<16>::new(33, 48)
                .unwrap()
                .with_start_level(Level(0))
        ),
        (1, 17)
    );
}

#[test]
fn sizes_are_those_of_the_granule() {
    let set = |lg2: &[u8]| {
        lg2.iter().fold(PageSizes::EMPTY, |sizes, &lg2| {
            sizes.with(PageSize::from_lg2(lg2))
        })
    };
    assert_eq!(
        Stage1::<12>::new(48, 48).unwrap().sizes(),
        set(&[12, 16, 21, 25, 30, 34])
    );
    assert_eq!(
        Stage1::<14>::new(48, 48).unwrap().sizes(),
        set(&[14, 21, 25, 30])
    );
    assert_eq!(
        Stage1::<16>::new(48, 48).unwrap().sizes(),
        set(&[16, 21, 29, 34])
    );
    // LPA2 and LPA add one block size each, in which the Contiguous bit is reserved.
    let k4 = set(&[12, 16, 21, 25, 30, 34, 39]);
    assert_eq!(Stage1::<12>::new_lpa(52, 52).unwrap().sizes(), k4);
    assert_eq!(Stage2::<12>::new_lpa(52, 52).unwrap().sizes(), k4);
    let k16 = set(&[14, 21, 25, 30, 36]);
    assert_eq!(Stage1::<14>::new_lpa(52, 52).unwrap().sizes(), k16);
    let k64 = set(&[16, 21, 29, 34, 42]);
    assert_eq!(Stage1::<16>::new(48, 52).unwrap().sizes(), k64);
    assert_eq!(Stage2::<16>::new(52, 52).unwrap().sizes(), k64);

    let plain = set(&[12, 21, 30]);
    assert_eq!(Lpae32::new(32, 40).unwrap().sizes(), plain);
    assert_eq!(Lpae32Stage2::new(40, 40).unwrap().sizes(), plain);
    assert_eq!(Mali::new(48, 40).unwrap().sizes(), plain);
}

#[test]
fn sizes_fit_the_table_and_the_output() {
    let largest = |va_bits, oa_bits| {
        Stage1::<12>::new(va_bits, oa_bits)
            .unwrap()
            .sizes()
            .largest()
    };
    // Groups of 16 GiB need a root of more than 16 items.
    assert_eq!(largest(35, 48), Some(GIB_16));
    assert_eq!(largest(34, 48), Some(PageSize::GIB_1));
    assert_eq!(largest(30, 48), Some(MIB_32));
    assert_eq!(largest(48, 32), Some(PageSize::GIB_1));
    // A concatenated root has lost the level of 512 GiB blocks.
    let f = Stage2::<12>::new_lpa(42, 52).unwrap();
    assert_eq!(f.sizes().largest(), Some(GIB_16));
    let f = f.with_start_level(Level(3)).unwrap();
    assert_eq!(f.sizes().largest(), Some(GIB_512));
}

#[test]
fn sizes_can_be_taken_away() {
    let small = PageSizes::EMPTY.with(PageSize::KIB_4).with(PageSize::MIB_2);
    let f = Stage2::<12>::new(40, 48)
        .unwrap()
        .with_sizes(small)
        .unwrap();
    assert_eq!(f.sizes(), small);
    assert_eq!(f.with_start_level(Level(3)).unwrap().sizes(), small);
    assert_eq!(
        f.with_sizes(PageSizes::EMPTY.with(PageSize::KIB_16)),
        Err(ConfigError::Sizes)
    );
    assert!(
        Mali::new(48, 40)
            .unwrap()
            .with_sizes(PageSizes::EMPTY.with(KIB_64))
            .is_err()
    );
}

#[test]
fn widths_out_of_range_are_refused() {
    let va = |result: Result<Stage1<12>, _>| matches!(result, Err(ConfigError::VaBits { .. }));
    let oa = |result: Result<Stage1<12>, _>| matches!(result, Err(ConfigError::OaBits { .. }));
    assert!(va(Stage1::new(24, 48)) && va(Stage1::new(49, 48)) && va(Stage1::new(255, 48)));
    assert!(va(Stage1::new_lpa(53, 52)) && va(Stage1::new(0, 48)));
    assert!(oa(Stage1::new(48, 52)) && oa(Stage1::new(48, 41)) && oa(Stage1::new(48, 0)));
    for oa_bits in [32, 36, 40, 42, 44, 48] {
        assert!(Stage1::<12>::new(48, oa_bits).is_ok());
        assert!(Stage1::<14>::new_lpa(52, oa_bits).is_ok());
        assert!(Stage1::<16>::new(52, oa_bits).is_ok());
        assert!(Stage1::<16>::new_lpa(52, oa_bits).is_err());
        assert!(
            Stage2::<16>::new(52, oa_bits).is_err(),
            "stage 2 has no inputs without LPA"
        );
    }
    assert!(Lpae32::new(33, 40).is_err() && Lpae32::new(32, 42).is_err());
    assert!(Lpae32Stage2::new(41, 40).is_err() && Lpae32Stage2::new(40, 48).is_err());
    assert!(Mali::new(49, 40).is_err() && Mali::new(48, 41).is_err() && Mali::new(31, 40).is_err());
}

#[test]
fn the_upper_half_ends_at_the_last_address() {
    let f = Stage1::<12>::new(39, 48).unwrap().in_upper_half();
    let geometry = f.geometry();
    let (top, window) = (Level(2), Window::Upper);
    assert_eq!(
        geometry,
        Geometry {
            va_bits: 39,
            window,
            top,
            max_top: top
        }
    );
    let first = crate::Iova::new(0xffff_ff80_0000_0000);
    let last = crate::Iova::new(u64::MAX);
    assert!(geometry.contains(first) && geometry.contains(last));
    assert!(!geometry.contains(crate::Iova::new(0xffff_ff7f_ffff_ffff)));
    assert!(!geometry.contains(crate::Iova::new(0)));
    assert_eq!(
        (f.root_index(first, top), f.root_index(last, top)),
        (0, 511)
    );
}

#[test]
fn roots_are_aligned_to_their_size() {
    let align = |va_bits| Stage1::<12>::new(va_bits, 48).unwrap().root_align_lg2();
    assert_eq!((align(48), align(32), align(40)), (12, 5, 4));
    assert_eq!(Stage2::<12>::new(40, 44).unwrap().root_align_lg2(), 13);
    assert_eq!(Stage2::<14>::new(40, 44).unwrap().root_align_lg2(), 18);
    // 52-bit addresses: at least 64 bytes.
    assert_eq!(Stage1::<16>::new(44, 52).unwrap().root_align_lg2(), 6);
    assert_eq!(Lpae32::new(32, 40).unwrap().root_align_lg2(), 5);
}

#[test]
fn a_mali_root_is_a_whole_table() {
    let f = Mali::new(33, 40).unwrap();
    assert_eq!(f.geometry().top, Level(3));
    assert_eq!(f.root_count_lg2(Level(3)), 9);
    assert!(!f.geometry().contains(crate::Iova::new(1 << 33)));
}

#[test]
fn levels_have_the_numbers_of_the_manual() {
    let f = Stage1::<12>::new_lpa(52, 52).unwrap();
    let numbers = [0, 1, 2, 3, 4].map(|level| f.arch_level(Level(level)));
    assert_eq!(numbers, [3, 2, 1, 0, -1]);
}
