//! The SMMUv3: stream tables, context descriptors, and domains of stage 1 or stage 2.
//!
//! Source: *Arm System Memory Management Unit Architecture Specification, SMMU architecture version 3*
//! (IHI 0070), sections 3.3 (data structures), 3.9 (ATS), 3.21 (updates of structures) and 4.3 (`CMD_CFGI_*`).
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
//! | a guest's CDs | no | stage 1 as the [guest](GuestSmmu) says, and stage 2; PASIDs are the guest's |
//! | blocked | yes | stage 1, `S1DSS` = terminate |
//! | identity | yes | stage 1, `S1DSS` = bypass |
//!
//! # What a CD says
//!
//! | attached | CD |
//! |---|---|
//! | stage 1 | its table; faults are recorded and abort |
//! | stage 1, fault-capable, and the device can wait | its table; faults stall |
//! | a process that has ended | no table (`EPD0`); requests abort, without a record unless faults always stall |
//! | nothing, or what needs none | not valid |
//!
//! A domain that leads to a guest's CDs is never fault-capable: requests for pages are refused, and its faults
//! do not stall, unless all do.
//!
//! Where faults always stall ([`Stalls::Forced`]) all CDs and all stages 2 say so, as nothing else is legal, and
//! [`take_event`](Smmu::take_event) answers those that no handler is for.
//!
//! Records of the PRI queue and the event queue are the user's to read; it hands them to
//! [`take_page_request`](Smmu::take_page_request) and [`take_event`](Smmu::take_event), in rounds that say what was
//! there before a device was attached anew.

mod architecture;
mod domain;
mod events;
mod features;
mod guest;
mod guest_stream;
mod instance;
mod port;
mod tables;
#[cfg(all(test, not(loom)))]
mod tests;

pub use crate::device::smmuv3::architecture::{Smmuv3, Smmuv3Driver};
pub use crate::device::smmuv3::domain::{DomainError, Smmuv3Domain, Stage};
pub use crate::device::smmuv3::features::{Features, Stalls};
pub use crate::device::smmuv3::guest::GuestSmmu;
pub use crate::device::smmuv3::guest_stream::{GuestStream, GuestStreamError};
pub use crate::device::smmuv3::instance::{Smmu, SmmuError};
pub use crate::device::smmuv3::port::{Port, Smmuv3Endpoint};

use crate::invalidation::queue::Device;

/// The command queue of an SMMU, over whatever registers.
pub trait CommandDevice: Device<Entry = [u64; 2]> + Send + Sync + 'static {}

impl<D: Device<Entry = [u64; 2]> + Send + Sync + 'static> CommandDevice for D {}
