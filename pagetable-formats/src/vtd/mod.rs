//! Intel VT-d page tables.
//!
//! Source: *Intel Virtualization Technology for Directed I/O, Architecture Specification*,
//! revision 4.1, chapters 3 and 9. The entries that point at the tables are in `context::vtd`.

mod first_stage;
mod second_stage;

pub use self::first_stage::{FirstStage, VtdFirstStage};
pub use self::second_stage::SecondStage;
