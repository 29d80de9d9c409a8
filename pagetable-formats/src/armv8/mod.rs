//! Long-descriptor tables of ARM: VMSAv8-64 stage 1 and stage 2, 32-bit LPAE and Mali.
//!
//! Source: *Arm Architecture Reference Manual for A-profile architecture* (DDI 0487), chapter D8
//! the virtual memory system of `AArch64`: D8.2 translation process, D8.3.1 descriptor
//! formats, D8.4 access control, D8.5 hardware updates, D8.6 memory attributes, D8.7.1 the
//! Contiguous bit. The words that a driver programs are those of the *Arm System Memory Management
//! Unit Architecture Specification, SMMU architecture version 3* (IHI 0070), sections 5.2 and 5.4.
//!
//! The manual numbers levels from 3 (pages) down to -1; this crate's [`Level`](crate::Level) is 3
//! less that number.
//!
//! | type | tables |
//! |---|---|
//! | [`Stage1`] | VMSAv8-64 stage 1: device address to output or intermediate address |
//! | [`Stage2`] | VMSAv8-64 stage 2: intermediate address to output address |
//! | [`Lpae32`], [`Lpae32Stage2`] | the VMSAv8-32 forms of both |
//! | [`Mali`] | the GPU tables of Midgard and later |
//! | [`AnyFormat`] | one of these, chosen by a configuration word |
//!
//! # Execution and privilege
//!
//! [`Rights::EXECUTE`](crate::Rights::EXECUTE) stands for fetches by the requests that
//! [`Rights::USER`](crate::Rights::USER) names: `UXN` decides for pages that unprivileged requests
//! reach, `PXN` for the others. Our entries set both or none. Regimes with one privilege level (EL2
//! without E2H, EL3) take `AP[1]` for 1 and bit 54 for `XN`: map their pages with the user right.

mod any;
mod config;
mod fields;
mod granule;
mod lpae32;
mod mali;
mod memory;
mod shape;
mod stage1;
mod stage2;

#[cfg(test)]
mod tests;

pub use self::any::{AnyFormat, Rooted};
pub(crate) use self::config::TTB;
pub use self::config::{Cacheability, Half, Shareability, TableWalk, Tcr, Vtcr};
pub use self::granule::Granule;
pub use self::lpae32::{Lpae32, Lpae32Stage2};
pub use self::mali::{MALI_MEMATTR, Mali};
pub use self::memory::MAIR;
pub use self::stage1::Stage1;
pub use self::stage2::{Concatenation, Stage2};

/// What hardware does with the access flag and the dirty state of leaves (D8.5).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum HardwareUpdates {
    /// Nothing is set; a leaf whose access flag is clear faults (`HA = 0`, `AFFD = 0`).
    #[default]
    None,
    /// Nothing is set and nothing faults (`HA = 0`, `AFFD = 1`).
    Ignored,
    /// The access flag is set (`HA = 1`).
    Accessed,
    /// The access flag is set, and the dirty state of leaves with `DBM` (`HA = HD = 1`).
    ///
    /// Every writable leaf has `DBM`. Hardware may need a [walk](TableWalk) through write-back
    /// memory for these updates to be atomic (IHI 0070, section 5.4, `IR0`).
    Dirty,
}

impl HardwareUpdates {
    /// Decodes the three control bits; `HD` without `HA` acts as if both were clear.
    pub(crate) const fn from_bits(ha: bool, hd: bool, affd: bool) -> Self {
        match (ha, hd, affd) {
            (true, true, _) => Self::Dirty,
            (true, false, _) => Self::Accessed,
            (false, _, true) => Self::Ignored,
            (false, _, false) => Self::None,
        }
    }

    /// `HA`.
    pub(crate) const fn sets_accessed(self) -> bool {
        matches!(self, Self::Accessed | Self::Dirty)
    }

    /// `HD`.
    pub(crate) const fn sets_dirty(self) -> bool {
        matches!(self, Self::Dirty)
    }
}
