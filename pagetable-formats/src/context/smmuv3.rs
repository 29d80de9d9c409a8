//! Stream tables, STEs and CDs of the SMMUv3.
//!
//! Source: *Arm System Memory Management Unit Architecture Specification, SMMU architecture
//! version 3* (IHI 0070), sections 3.3 (data structures and translation procedure), 5.1 to 5.4 and
//! 6.3.24 to 6.3.25 (`SMMU_STRTAB_BASE`, `SMMU_STRTAB_BASE_CFG`).
//!
//! ```text
//! SMMU_STRTAB_BASE -> [L1StreamDesc ->] Ste -> [L1CdDesc ->] Cd -> stage 1 tables (TTB0, TTB1)
//!                                       Ste ------------------> stage 2 tables (S2TTB)
//! ```
//!
//! Nothing here reads memory: each structure computes the address of the next one, and the caller
//! fetches it. In a nested configuration (`Config = 0b111`) the addresses of CDs, of L1 CD
//! descriptors and of stage 1 tables are intermediate ones, which stage 2 translates.
//!
//! ```
//! use iopt_formats::armv8::Half;
//! use iopt_formats::context::smmuv3::{Cd, CdAddress, Ste};
//!
//! let ste = Ste::new([0x4805_500b, 0xd6, 0, 0, 0, 0, 0, 0]);
//! let cds = ste.cd_table()?.expect("this stream has stage 1");
//! assert_eq!(cds.address(0), Some(CdAddress::Cd(iopt_formats::Oa::new(0x4805_5000))));
//!
//! let cd = Cd::new([0x0001_e204_c000_3510, 0x4805_6000, 0, 0xf404_ff44, 0, 0, 0, 0]);
//! let table = cd.table(Half::Lower)?;
//! assert_eq!(table.root.oa.get(), 0x4805_6000);
//! # Ok::<(), Box<dyn core::error::Error>>(())
//! ```

mod attributes;
mod cd;
mod context;
mod rules;
mod ste;
mod stream;
mod stream_table;

#[cfg(test)]
mod tests;

pub use self::attributes::{AllocationHints, Attributes, MemoryType};
pub use self::cd::{Cd, CdAddress, CdError, CdTable, CdTableFormat, L1CdDesc};
pub use self::context::{AccessRules, Context, FaultPolicy};
pub use self::rules::{CdRules, SteRules};
pub use self::ste::{Ats, DefaultSubstream, Override, Ste, SteError, StreamConfig, StreamWorld};
pub use self::stream::{Stream, StreamStage1, StreamStage2};
pub use self::stream_table::{
    L1StreamDesc, LayoutError, STRTAB_BASE_CFG_FIELDS, STRTAB_BASE_FIELDS, SteAddress, StreamTable,
};

/// Getters of single-bit fields: `NAME: WORD, BIT, "documentation";`.
macro_rules! flags {
    ($($name:ident: $word:literal, $bit:literal, $doc:literal;)+) => {
        $(
            #[doc = $doc]
            pub const fn $name(&self) -> bool {
                self.0[$word] & crate::bit($bit) != 0
            }
        )+
    };
}
use flags;
