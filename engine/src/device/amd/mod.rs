//! AMD-Vi: device tables, guest CR3 tables, and domains with tables of version 1 or version 2.
//!
//! Source: *AMD I/O Virtualization Technology (IOMMU) Specification*, document 48882, sections 2.2.2 (device
//! table), 2.2.6 (guest CR3 tables, and tables of both versions at once), 2.4 (commands) and 3.4 (registers).
//!
//! A user makes an [`AmdIommu`] for each instance, writes the registers that its
//! [`device_tables`](AmdIommu::device_tables) say, and registers it with an [`AmdDriver`]. Devices that nobody took
//! in are blocked: by V without TV, because an entry without V lets everything pass. So V is always set.
//!
//! # What an entry says
//!
//! | without PASID | PASIDs | entry |
//! |---|---|---|
//! | blocked | none attached | V alone |
//! | identity | impossible | `Mode` 0, IR, IW |
//! | version 1 | none attached; they are refused | `Mode`, root, the domain's ID |
//! | version 2 | any | GV, `GIoV`, the device's ID |
//! | blocked | attached | GV, `GIoV`, entry 0 of the guest CR3 table not valid |
//! | identity | possible | GV without `GIoV`, `Mode` 0, the device's ID |
//! | a guest's tables | the guest's | GV, `GIoV`, GLX and guest CR3 table as the [guest](GuestIommu) says; `Mode`, root, an ID of the guest's |
//!
//! So a PASID that comes or goes changes nothing for requests without one that pass or are translated: were GV to
//! change, two words would, and the device would be blocked between.
//!
//! As long as a fault-capable domain is attached anywhere, the entry lets the device ask for pages (PPR), with PASIDs
//! in answers where the device wants them (GPRP). Entries of the page request log are the user's to read; it hands
//! them to [`take_page_request`](AmdIommu::take_page_request), in [rounds](AmdIommu::begin_page_requests) that say what
//! was there before a device was attached anew.
//!
//! The entry of a PASID whose process has ended is not valid; requests that still come are page faults, and logged.
//! Processes are used only by IOMMUs that need not be told of new pages (`NpCache`), as nobody tells them.
//!
//! # Domain IDs
//!
//! An IOMMU caches under the domain ID of the entry and, with version 2 tables, the PASID. The same domain may have
//! other PASIDs at other devices, so an entry that leads to a guest CR3 table has an ID that is the device's own,
//! which its aliases share; the domain's set names each of these. Whatever a PASID leads to changes, all under
//! that PASID is forgotten at once, so that the pair may be used again.
//!
//! Entries that let everything pass have domain ID 0, which is no domain's, or the device's own where PASIDs are
//! possible. Hardware may hold pages of such requests, too, and nothing says that these go with the entry: so all under
//! the ID is forgotten once requests no longer pass.
//!
//! Each domain ID of a guest is one of the host. So what the guest's tables translate for different devices is told
//! apart as the guest wants it, and its commands need a name replaced, and nothing else.

mod architecture;
mod domain;
mod events;
mod features;
mod guest;
mod guest_dte;
mod instance;
mod port;
mod tables;
#[cfg(all(test, not(loom)))]
mod tests;

pub use crate::device::amd::architecture::{AmdDriver, AmdVi};
pub use crate::device::amd::domain::{AmdDomain, DomainError, Stage};
pub use crate::device::amd::features::Features;
pub use crate::device::amd::guest::GuestIommu;
pub use crate::device::amd::guest_dte::{GuestDte, GuestDteError};
pub use crate::device::amd::instance::{AmdIommu, AmdIommuError};
pub use crate::device::amd::port::{AmdEndpoint, Port};

use crate::invalidation::queue::Device;

/// The command buffer of an IOMMU, over whatever registers.
pub trait CommandDevice: Device<Entry = [u64; 2]> + Send + Sync + 'static {}

impl<D: Device<Entry = [u64; 2]> + Send + Sync + 'static> CommandDevice for D {}
