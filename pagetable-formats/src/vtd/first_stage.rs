//! VT-d first-stage paging entries.
//!
//! Source: *Intel Virtualization Technology for Directed I/O, Architecture Specification*,
//! revision 4.1, section 9.7 "First-Stage Paging Entries"; walk in section 3.6.
//!
//! They are the tables of the CPU, so that a process can share its own with a device. What VT-d adds
//! is EA (bit 10), the extended accessed flag, which hardware sets if EAFE of the PASID entry says
//! so; that is why bit 10 is no software bit here. Bit 63 is reserved, ignored or XD depending on
//! revision and PASID entry: see [`LongModeTables::with_execute_disable`].

use crate::Field;
use crate::x86_64::{Fields, LongModeTables, Walker, name_fields};

/// The VT-d first-stage format, with 4 or 5 levels (FSPM 0 or 1 of the PASID entry).
///
/// Hardware takes canonical addresses only: use [`sign_extended`](LongModeTables::sign_extended), or
/// [`new`](LongModeTables::new) with at most 47 bits for 4 levels and 56 for 5.
pub type FirstStage = LongModeTables<VtdFirstStage>;

/// Marks [`FirstStage`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum VtdFirstStage {}

impl Walker for VtdFirstStage {
    const FIELDS: Fields = name_fields! {
        everywhere: [Field::new("EA", 10, 10), Field::new("XD", 63, 63)],
        leaves: [],
    };
}
