//! The formats that are measured: one of each architecture, all with four levels of 4 KiB tables.

use iopt_formats::amd::V1;
use iopt_formats::armv8::Stage1;
use iopt_formats::catalog::{FormatName, Visitor};
use iopt_formats::riscv::Sv;
use iopt_formats::vtd::SecondStage;

/// The formats' names.
pub const NAMES: [FormatName; 4] = [
    FormatName::ArmS1_4k,
    FormatName::VtdSs,
    FormatName::AmdV1,
    FormatName::RiscvSv48,
];

/// Lets `visitor` do its work with the format `name`; `None` if that is none of [`NAMES`].
///
/// # Panics
///
/// Panics if a format refuses 48 address bits.
pub fn visit<V: Visitor>(name: FormatName, visitor: V) -> Option<V::Output> {
    match name {
        FormatName::ArmS1_4k => {
            let format = Stage1::<12>::new(48, 48).expect("stage 1 decodes 48 bits");
            Some(visitor.visit(format))
        }
        FormatName::VtdSs => {
            let format = SecondStage::new(48).expect("the second stage decodes 48 bits");
            Some(visitor.visit(format))
        }
        // Grows from three levels to four with the first map.
        FormatName::AmdV1 => Some(visitor.visit(V1::new())),
        FormatName::RiscvSv48 => Some(visitor.visit(Sv::sv48())),
        _ => None,
    }
}
