//! The SMMUv3: stream tables, context descriptors, and domains of stage 1 or stage 2.
//!
//! Source: *Arm System Memory Management Unit Architecture Specification, SMMU architecture version 3*
//! (IHI 0070), sections 3.3 (data structures), 3.9 (ATS), 3.21 (updates of structures) and 4.3 (`CMD_CFGI_*`).
//!
//! ```text
//! Smmuv3Driver  ---- Driver ---->  Smmuv3Endpoint  ---- prepare ---->  STE, CDs of its streams
//!     |                                |
//!     |  new_domain                    |  one port for each instance
//!     v                                v
//! Smmuv3Domain: tables, set        Smmu: features, queue, stream table, ASIDs, VMIDs
//! ```
//!
//! A user makes an [`Smmu`] for each instance, writes the registers that its
//! [`stream_table`](Smmu::stream_table) says, and registers it with a [`Smmuv3Driver`]. Streams that nobody took
//! in are blocked.
//!
//! # What an STE says
//!
//! | without PASID | PASIDs attached | STE |
//! |---|---|---|
//! | blocked | no | abort |
//! | identity | no | bypass |
//! | stage 1 | either | stage 1, `S1DSS` = substream 0 |
//! | stage 2 | no | stage 2; PASIDs are refused |
//! | blocked | yes | stage 1, `S1DSS` = terminate |
//! | identity | yes | stage 1, `S1DSS` = bypass |
//!
//! # Invariants
//!
//! - **V1** (told): while an STE or CD, in memory or as hardware may hold it, leads to a domain, the places of
//!   that attachment are in the domain's set.
//! - **V2** (one answer about ATS): of the domains that translate a device's requests all have its ATS places in
//!   their sets, or none has; ATS is enabled at the device exactly if there is one, and all do.
//! - **V3** (order): prepare: decide ATS, join the set. Commit: disable ATS if it ends; write the CD and the STE;
//!   enable ATS if it begins, or make the device forget; leave the old set; note whether ATS is enabled.

mod domain;
mod driver;
mod endpoint;
mod features;
mod instance;
mod slots;
mod tables;
#[cfg(all(test, not(loom)))]
mod tests;

pub use crate::device::smmuv3::domain::{DomainError, Smmuv3Domain};
pub use crate::device::smmuv3::driver::Smmuv3Driver;
pub use crate::device::smmuv3::endpoint::Smmuv3Endpoint;
pub use crate::device::smmuv3::features::Features;
pub use crate::device::smmuv3::instance::{Smmu, SmmuError};

use crate::invalidation::queue::Device;

/// The command queue of an SMMU, over whatever registers.
pub trait CommandDevice: Device<Entry = [u64; 2]> + Send + Sync + 'static {}

impl<D: Device<Entry = [u64; 2]> + Send + Sync + 'static> CommandDevice for D {}
