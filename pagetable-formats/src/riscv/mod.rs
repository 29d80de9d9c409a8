//! RISC-V page tables: `Sv39`, `Sv48`, `Sv57`, and their G-stage variants.

mod sv;

pub use self::sv::{FirstStage, GStage, Paging, Stage, Sv, Svx4};
