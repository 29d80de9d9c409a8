//! The laws of the contract, for every kind of configuration.

use crate::armv8::{Concatenation, HardwareUpdates, Lpae32, Lpae32Stage2, Mali, Stage1, Stage2};
use crate::conformance::check;
use crate::{Format, PageSize, PageSizes};

#[track_caller]
fn obeys_the_laws<F: Format>(format: F) {
    if let Err(violation) = check(format) {
        panic!("{format:?}: {violation}");
    }
}

/// Checks every option of stage 1 on the shapes that a granule has.
fn stage1<const G: u8>() {
    for va_bits in [25, 32, 39, 40, 48] {
        obeys_the_laws(Stage1::<G>::new(va_bits, 40).unwrap());
    }
    let plain = Stage1::<G>::new(48, 48).unwrap();
    obeys_the_laws(plain.in_upper_half());
    obeys_the_laws(plain.with_non_secure());
    obeys_the_laws(plain.with_updates(HardwareUpdates::Dirty));
    obeys_the_laws(plain.with_mair(0x0004_0044_f0ff));
    // No type but device memory.
    obeys_the_laws(plain.with_mair(0));
    let wide = Stage1::<G>::new_lpa(52, 52).unwrap();
    obeys_the_laws(wide.with_updates(HardwareUpdates::Dirty));
    obeys_the_laws(wide.in_upper_half());
}

/// Checks every option of stage 2 on the shapes that a granule has.
fn stage2<const G: u8>() {
    for (va_bits, oa_bits) in [(25, 32), (32, 32), (40, 40), (42, 44), (44, 44), (48, 48)] {
        let format = Stage2::<G>::new(va_bits, oa_bits).unwrap();
        obeys_the_laws(format);
        obeys_the_laws(
            format
                .with_concatenation(Concatenation::WhereMandatory)
                .unwrap(),
        );
    }
    let plain = Stage2::<G>::new(48, 48).unwrap();
    obeys_the_laws(plain.with_updates(HardwareUpdates::Dirty));
    obeys_the_laws(plain.with_forced_write_back());
    let wide = Stage2::<G>::new_lpa(52, 52).unwrap();
    obeys_the_laws(wide.with_updates(HardwareUpdates::Dirty));
    obeys_the_laws(
        wide.with_concatenation(Concatenation::WhereMandatory)
            .unwrap(),
    );
}

#[test]
fn stage1_with_4k_granule() {
    stage1::<12>();
}

#[test]
fn stage1_with_16k_granule() {
    stage1::<14>();
}

#[test]
fn stage1_with_64k_granule() {
    stage1::<16>();
}

#[test]
fn stage2_with_4k_granule() {
    stage2::<12>();
}

#[test]
fn stage2_with_16k_granule() {
    stage2::<14>();
}

#[test]
fn stage2_with_64k_granule() {
    stage2::<16>();
}

#[test]
fn variants() {
    obeys_the_laws(Lpae32::new(32, 40).unwrap());
    obeys_the_laws(Lpae32::new(25, 32).unwrap().with_non_secure());
    obeys_the_laws(Lpae32Stage2::new(40, 40).unwrap());
    obeys_the_laws(Lpae32Stage2::new(32, 36).unwrap().with_forced_write_back());
    obeys_the_laws(Mali::new(48, 40).unwrap());
    obeys_the_laws(Mali::new(33, 32).unwrap());
}

#[test]
fn only_large_sizes() {
    let large = PageSizes::EMPTY.with(PageSize::MIB_2).with(PageSize::GIB_1);
    obeys_the_laws(
        Stage1::<12>::new(48, 48)
            .unwrap()
            .with_sizes(large)
            .unwrap(),
    );
}
