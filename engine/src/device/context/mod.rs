//! What the drivers of all architectures share: entries that hardware reads while they change, tables of them, what
//! it takes to be known as a domain's device, and the life of a device. What differs is an
//! [`Architecture`].
//!
//! ```text
//! HardwareDriver ---- Driver ---->  HardwareEndpoint  ---- prepare ---->  contexts of its IDs, its own tables
//!     |                                 |
//!     |  new_domain                     |  a unit and a port for each instance
//!     v                                 v
//! HardwareDomain: tables, set       Architecture::Unit: features, queue, tables, IDs
//!
//! Directory ---> EntryTable ---> entries        in memory that hardware reads
//! Users     ---> Attachment                     places of a set, and the ID that a domain has at an instance
//! ```
//!
//! Where an instance sees several devices under one ID, [`Shares`] say whom its entry serves.
//!
//! A guest's domain has its users in the set of its parent, under an ID of their own: what changes in the parent's
//! tables reaches all that was combined with them. It keeps the parent, and is for one instance only.
//!
//! An attachment is made before the entry leads to the domain and [left](Attachment::leave) after it leads
//! elsewhere and hardware has forgotten the entry: in between every sync of the domain reaches the device.
//!
//! # Invariants
//!
//! - **C1** (told): while a context, in memory or as hardware may hold it, leads to a domain, the places of that
//!   attachment are in the domain's set.
//! - **C2** (one answer about ATS): of the domains that translate a device's requests all have its ATS places in
//!   their sets, or none has; ATS is enabled at the device exactly if there is one, and all do.
//! - **C3** (order): prepare: decide ATS, join the set. Commit: forbid page requests if they end; disable ATS if it
//!   ends; write the contexts; enable ATS if it begins, or make the device forget; answer what the old domain did
//!   not, and allow page requests if they begin; leave the old set; note whether ATS is enabled.

mod architecture;
mod directory;
mod domain;
mod driver;
mod endpoint;
mod guest;
mod live;
#[cfg(all(test, loom))]
mod models;
mod process;
mod shares;
mod slots;
#[cfg(all(test, not(loom)))]
mod tests;
mod users;

pub use crate::device::context::architecture::{Architecture, Arrival, Outcome, Target};
pub use crate::device::context::directory::{Directory, LinkError};
pub(in crate::device) use crate::device::context::domain::Nesting;
pub use crate::device::context::domain::{HardwareDomain, Set};
pub use crate::device::context::driver::HardwareDriver;
pub use crate::device::context::endpoint::HardwareEndpoint;
pub use crate::device::context::guest::{GuestCommandError, GuestDeviceError, NestError, Refusal};
pub(in crate::device) use crate::device::context::guest::{
    GuestDevices, Permit, Permits, carry_out,
};
pub use crate::device::context::live::{EntryTable, Unwritten};
pub use crate::device::context::shares::{Share, ShareError, Shares, Sharing};
pub use crate::device::context::slots::Attached;
pub use crate::device::context::users::{Attachment, JoinDomainError, Tags, Users};
