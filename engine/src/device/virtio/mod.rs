//! The virtio-iommu: endpoints in domains that the device keeps (*VIRTIO 1.3*, section 5.13).
//!
//! There are no tables for contexts: a device is one or several endpoints of one [`VirtioIommu`], and attaching it
//! moves all of them to the number of a domain. A user wraps each in a [`VirtioUnit`] and registers that with
//! a [`VirtioDriver`].
//!
//! A device has more IDs than arrive: that of a function behind a bridge which sends all requests as its own. Of
//! those that the virtio-iommu does not know it sees no requests; they are left out as long as it knows one.
//!
//! # What an endpoint meets
//!
//! | attached | the device has it in | without that |
//! |---|---|---|
//! | nothing | no domain, where the device blocks those | an empty domain |
//! | identity | a bypass domain (feature `BYPASS_CONFIG`) | refused: a default domain translates then |
//! | paging | the [`VirtioDomain`] | |
//!
//! # Attaching
//!
//! An `ATTACH` is one step of the device, and may fail. What can be done before is done when an attachment is
//! prepared: seats are kept in all domains that may be needed, what is reserved for the endpoints is free in
//! the domain and stays so, and a device that did not answer has to first. So the commit only sends. If the
//! device then refuses, or does not take a mapping, the endpoints are blocked, all of them:
//! [`take_failure`](VirtioEndpoint::take_failure) says why.
//!
//! # Invariants
//!
//! - **A1** (seats): an endpoint has a seat in the domain that the device has it in, and in each that it may be in
//!   as far as the device has said. While a domain has one, whatever is unmapped there is told.
//! - **A2** (all or none): the endpoints of a device are in one domain when the lock is free, or all are
//!   blocked, or the device is in quarantine.
//! - **A3** (quarantine): while it is not known where an endpoint is, nothing is attached, and what is reserved for
//!   it stays so in each domain where it may be. It ends when the device confirms that all are blocked.

mod domain;
mod driver;
mod endpoint;
mod unit;

pub use crate::device::virtio::domain::VirtioHwpt;
pub use crate::device::virtio::driver::{ProbeFailure, VirtioDriver};
pub use crate::device::virtio::endpoint::{ReservedRegion, VirtioEndpoint};
pub use crate::device::virtio::unit::VirtioUnit;

#[cfg(doc)]
use crate::domain::virtio::{VirtioDomain, VirtioIommu};
