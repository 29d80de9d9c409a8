//! The RISC-V IOMMU: device directories, process directories, and domains of a first or a second stage.
//!
//! Source: *RISC-V IOMMU Architecture Specification*, version 1.0.1, chapters "Data Structures", "In-memory queue
//! interface" and "Software guidelines".
//!
//! A user makes a [`RiscvIommu`] for each instance, writes what its [`ddtp`](RiscvIommu::ddtp) says to the
//! register of that name, and registers it with a [`RiscvDriver`]. Devices that nobody took in are blocked.
//!
//! # What contexts say
//!
//! A device with PASIDs has a process directory from the start, and its requests without a PASID use process 0
//! (`DPE`): so its device context stays the same while PASIDs come and go beside a domain that is in use.
//!
//! | without PASID | PASIDs attached | device context | process 0 |
//! |---|---|---|---|
//! | blocked | no | not valid | not valid |
//! | blocked | yes | process directory | not valid |
//! | identity, device without PASIDs | | no stage | |
//! | identity | either | process directory | no tables |
//! | first stage, device without PASIDs | | `iosatp`, PSCID | |
//! | first stage | either | process directory | `iosatp`, PSCID |
//! | second stage | no; they are refused | `iohgatp`, GSCID | not valid |
//! | a guest's first stage | the guest's | `fsc`, PSCID and switches as the [guest](GuestIommu) says; `iohgatp`, the guest's GSCID | not valid |
//!
//! As long as a fault-capable domain is attached anywhere, the device context lets the device ask for pages (`EN_PRI`),
//! with PASIDs in the answers that the IOMMU gives itself where the device wants them (PRPR). Records of the
//! page-request queue are the user's to read; it hands them to [`take_page_request`](RiscvIommu::take_page_request),
//! in [rounds](RiscvIommu::begin_page_requests) that say what was there before a device was attached anew.
//!
//! The context of a PASID whose process has ended is not valid; requests that still come are faults 266, and reported.
//! Processes are used only by IOMMUs that need not be told of new pages, as nobody tells them.
//!
//! A domain is known by a PSCID where its tables are those of a first stage, else by a GSCID; 0 is neither's. All
//! domains of a guest have one GSCID, beside which its PSCIDs mean what the guest wants.
//!
//! MSI page tables are not written: guests' messages go where their first stages and the parent lead them.

mod architecture;
mod changes;
mod domain;
mod events;
mod features;
mod guest;
mod guest_context;
mod instance;
mod port;
mod tables;
#[cfg(all(test, not(loom)))]
mod tests;

use crate::invalidation::queue::Device;

pub use crate::device::riscv::architecture::{Riscv, RiscvDriver};
pub use crate::device::riscv::domain::{DomainError, RiscvDomain, Stage};
pub use crate::device::riscv::features::Features;
pub use crate::device::riscv::guest::GuestIommu;
pub use crate::device::riscv::guest_context::{GuestContext, GuestContextError, GuestFirst};
pub use crate::device::riscv::instance::{RiscvIommu, RiscvIommuError};
pub use crate::device::riscv::port::{Port, RiscvEndpoint};

/// The command queue of an IOMMU, over whatever registers.
pub trait CommandDevice: Device<Entry = [u64; 2]> + Send + Sync + 'static {}

impl<D: Device<Entry = [u64; 2]> + Send + Sync + 'static> CommandDevice for D {}
