//! The laws of every configuration, and of every name of the catalog with its defaults.

use iopt_formats::catalog::{FormatName, Options, Visitor, with_format};
use iopt_formats::conformance::{Violation, check};
use iopt_formats::{Format, amd, armv8, riscv, vtd, x86_64};
use iopt_tests::configuration::{
    LARGE_PAGES, MIXED_PAGES, SMALL_PAGES, dirty_stage1, dirty_stage2, legal,
};
use iopt_tests::for_each_configuration;

macro_rules! tests {
    ($($name:ident: $configured:expr;)+) => {
        $(
            #[test]
            fn $name() {
                assert_eq!(check(legal($configured)), Ok(()));
            }
        )+
    };
}

for_each_configuration!(tests);

struct Check;

impl Visitor for Check {
    type Output = Result<(), Violation>;

    fn visit<F: Format>(self, format: F) -> Self::Output {
        check(format)
    }
}

#[test]
fn every_name_of_the_catalog_keeps_the_laws() {
    for &name in FormatName::ALL {
        assert_eq!(
            with_format(name, &Options::default(), Check),
            Ok(Ok(())),
            "{name}"
        );
    }
}
