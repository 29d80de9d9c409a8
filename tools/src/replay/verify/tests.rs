//! Tables that differ from the model in one way each.

use iopt::invalidation::NoHardware;
use iopt::radix::Table;
use iopt_formats::armv8::Stage1;
use iopt_formats::catalog::{FormatName, Options};
use iopt_formats::vtd::SecondStage;

use super::*;
use crate::reference;

const PAGE: u64 = 0x1000;

fn range(start: u64, len: u64) -> IovaRange {
    IovaRange::with_len(Iova::new(start), len).unwrap()
}

/// A mapping as (start, length, output address, rights).
type Mapping = (u64, u64, u64, Prot);

/// As [`verify_in`] with a format that has no memory types.
fn verify(real: &[Mapping], told: &[Mapping]) -> (u64, u64) {
    verify_in(FormatName::VtdSs, SecondStage::new(48).unwrap(), real, told)
}

/// Maps `real` in a table and tells the verifier of `told`; returns what the check around the
/// ranges of `told` and the check of everything find.
fn verify_in<F: Format>(
    name: FormatName,
    format: F,
    real: &[Mapping],
    told: &[Mapping],
) -> (u64, u64) {
    let tables = Physical::new(1 << 24).unwrap();
    let table = Table::new(format, tables.arena()).unwrap();
    let mut claim = table.claim(range(0, 1 << 48)).unwrap();
    let mut mapper = table.mapper(&mut claim).unwrap();
    let mut around = Verifier::new(VerifyMode::All, PageSize::KIB_4);
    let mut all = Verifier::new(VerifyMode::End, PageSize::KIB_4);
    for &(start, len, oa, prot) in real {
        let sync = mapper.map(range(start, len), Oa::new(oa), prot).unwrap();
        let _flushed = sync.sync(&NoHardware).unwrap();
    }
    for &(start, len, oa, prot) in told {
        around.mapped(range(start, len), Oa::new(oa), prot);
        all.mapped(range(start, len), Oa::new(oa), prot);
    }
    let judge = reference::table(name, &Options::default(), &format, table.root());
    let subject = Subject {
        format,
        table: judge,
        tables: &tables,
    };
    for &(start, len, ..) in told {
        around.check_around(&subject, range(start, len));
    }
    all.check_all(&subject);
    (around.mismatches, all.mismatches)
}

#[test]
fn a_table_that_is_right_has_no_mismatch() {
    let mappings = [
        (0x1000, 3 * PAGE, 0x9000, Prot::RW),
        (0x4000, PAGE, 0x1_0000, Prot::R),
        (0x4000_0000, 0x60_0000, 0x8000_0000, Prot::W),
    ];
    assert_eq!(verify(&mappings, &mappings), (0, 0));
    assert_eq!(verify(&[], &[]), (0, 0));
}

#[test]
fn a_wrong_output_address_is_counted_by_the_page() {
    let real = [(0x1000, 3 * PAGE, 0x9000, Prot::RW)];
    assert_eq!(
        verify(&real, &[(0x1000, 3 * PAGE, 0xa000, Prot::RW)]),
        (3, 3)
    );
    // The second page on goes elsewhere.
    let told = [
        (0x1000, PAGE, 0x9000, Prot::RW),
        (0x2000, 2 * PAGE, 0xf000, Prot::RW),
    ];
    assert_eq!(verify(&real, &told).1, 2);
}

#[test]
fn wrong_rights_are_counted_but_those_of_a_wider_entry_are_not() {
    let real = [(0x1000, PAGE, 0x9000, Prot::RW)];
    assert_eq!(verify(&real, &[(0x1000, PAGE, 0x9000, Prot::R)]), (1, 1));
    assert_eq!(verify(&real, &[(0x1000, PAGE, 0x9000, Prot::W)]), (1, 1));
    // This format has neither a memory type nor an execute right of its own.
    assert_eq!(
        verify(
            &real,
            &[(0x1000, PAGE, 0x9000, Prot::RW.cached().executable())]
        ),
        (0, 0)
    );
}

#[test]
fn a_wrong_memory_type_or_execute_right_is_counted() {
    let verify = |real, told| {
        let format = Stage1::<12>::new(48, 48).unwrap();
        let page = |prot| [(0x1000, PAGE, 0x9000, prot)];
        verify_in(FormatName::ArmS1_4k, format, &page(real), &page(told))
    };
    let types = [Prot::RW, Prot::RW.cached(), Prot::RW.device()];
    for real in types {
        for told in types {
            let expected = u64::from(real != told);
            assert_eq!(verify(real, told), (expected, expected), "{real}, {told}");
        }
    }
    assert_eq!(verify(Prot::RW, Prot::RW.executable()), (1, 1));
    assert_eq!(verify(Prot::RW.executable(), Prot::RW), (1, 1));
}

#[test]
fn a_page_that_is_missing_is_counted() {
    let real = [(0x1000, PAGE, 0x9000, Prot::RW)];
    assert_eq!(
        verify(&real, &[(0x1000, 2 * PAGE, 0x9000, Prot::RW)]),
        (1, 1)
    );
    assert_eq!(verify(&[], &[(0x1000, 2 * PAGE, 0x9000, Prot::RW)]), (2, 2));
}

#[test]
fn a_page_too_many_is_counted() {
    let real = [(0x1000, 2 * PAGE, 0x9000, Prot::RW)];
    assert_eq!(verify(&real, &[(0x1000, PAGE, 0x9000, Prot::RW)]), (1, 1));
    assert_eq!(verify(&real, &[(0x2000, PAGE, 0xa000, Prot::RW)]), (1, 1));
    assert_eq!(verify(&real, &[]), (0, 2));
}

#[test]
fn a_large_page_is_compared_by_the_mappings_that_it_covers() {
    let real = [(0x20_0000, 0x20_0000, 0x80_0000, Prot::RW)];
    let halves = [
        (0x20_0000, 0x10_0000, 0x80_0000, Prot::RW),
        (0x30_0000, 0x10_0000, 0x90_0000, Prot::RW),
    ];
    assert_eq!(verify(&real, &halves).1, 0);
    assert_eq!(verify(&real, &halves[1..]).1, 256);
    assert_eq!(
        verify(
            &real,
            &[halves[0], (0x30_0000, 0x10_0000, 0x90_1000, Prot::RW)]
        )
        .1,
        256
    );
}

#[test]
fn nothing_is_checked_if_nothing_is_to_be() {
    let tables = Physical::new(1 << 24).unwrap();
    let format = SecondStage::new(48).unwrap();
    let table = Table::new(format, tables.arena()).unwrap();
    let judge = reference::table(
        FormatName::VtdSs,
        &Options::default(),
        &format,
        table.root(),
    );
    let mut verifier = Verifier::new(VerifyMode::None, PageSize::KIB_4);
    verifier.mapped(range(0, PAGE), Oa::new(0), Prot::R);
    verifier.check_all(&Subject {
        format,
        table: judge,
        tables: &tables,
    });
    assert_eq!((verifier.checked, verifier.mismatches), (0, 0));
}
