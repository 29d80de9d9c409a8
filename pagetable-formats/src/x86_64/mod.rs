//! The long-mode tables of x86-64 CPUs, which IOMMUs read too.
//!
//! One codec, [`LongModeTables`], serves three walkers. They agree on every bit that it writes and
//! differ only in names of bits that it leaves alone:
//!
//! | type | walker | source |
//! |---|---|---|
//! | [`LongMode`] | the CPU | *Intel 64 and IA-32 Architectures Software Developer's Manual* (SDM), volume 3, chapter 4 |
//! | [`vtd::FirstStage`](crate::vtd::FirstStage) | VT-d, first stage | VT-d specification, section 9.7 |
//! | [`AmdV2`] | AMD IOMMU, guest tables | *AMD I/O Virtualization Technology (IOMMU) Specification*, section 2.2.6; *AMD64 Architecture Programmer's Manual*, volume 2, section 5.3 |

mod fields;
mod long_mode;

pub(crate) use self::fields::name_fields;
pub use self::fields::{Fields, Walker};
pub use self::long_mode::LongModeTables;

use crate::Field;

/// The tables of an x86-64 CPU.
pub type LongMode = LongModeTables<Cpu>;

/// AMD guest tables (version 2), which the IOMMU reaches through the guest CR3 table.
///
/// Drivers use 47 or 56 input bits here, the lower half of what 4 or 5 levels translate.
pub type AmdV2 = LongModeTables<AmdIommu>;

/// Marks [`LongMode`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Cpu {}

impl Walker for Cpu {
    // SDM volume 3, tables 4-14 to 4-20. R makes HLAT paging restart; PK is a protection key.
    const FIELDS: Fields = name_fields! {
        everywhere: [Field::new("R", 11, 11), Field::new("XD", 63, 63)],
        leaves: [Field::new("PK", 62, 59)],
    };
}

/// Marks [`AmdV2`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum AmdIommu {}

impl Walker for AmdIommu {
    const FIELDS: Fields = name_fields! {
        everywhere: [Field::new("NX", 63, 63)],
        leaves: [],
    };
}
