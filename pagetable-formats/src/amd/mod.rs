//! AMD IOMMU host page tables.
//!
//! Guest (version 2) tables are x86-64 tables: [`x86_64`](crate::x86_64).

mod v1;

pub use self::v1::V1;
