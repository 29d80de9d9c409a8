//! VT-d: root, context and PASID tables of remapping units in legacy or in scalable mode.
//!
//! Source: *Intel Virtualization Technology for Directed I/O, Architecture Specification*, revision 4.1,
//! sections 3.4 (from a request to its tables), 6.1 and 6.2 (what is cached), 6.5.2 and 6.5.3 (what is invalidated,
//! and when), 6.8 (write buffers) and 9.1 to 9.6 (entries).
//!
//! A user makes a [`VtdUnit`] for each remapping unit, writes its [root table](VtdUnit::root_table) to
//! `RTADDR_REG`, has it [forget](VtdUnit::forget_everything) what it knew, and registers it with a [`VtdDriver`].
//! Requester IDs that nobody took in are blocked. A unit that firmware's description leaves out is registered as
//! anonymous, and brings its own [`Scope`].
//!
//! Whoever reads the unit's page request queue gives it the [records](VtdUnit::take_page_request), in
//! [rounds](VtdUnit::begin_page_requests) that say what was there before a device was attached anew: the handlers of
//! domains are asked, and answers become page group responses. In legacy mode no device asks for pages.
//!
//! # What a context entry says in legacy mode
//!
//! | attached | context entry |
//! |---|---|
//! | nothing, or blocked | not present |
//! | identity | `TT` 2, domain ID 1 |
//! | a second stage | `TT` 0, or 1 if the device may cache translations |
//!
//! # What entries say in scalable mode
//!
//! | attached | context entry | PASID entry |
//! |---|---|---|
//! | nothing at all | not present | not present |
//! | something, anywhere | leads to the device's PASID table; `RID_PASID` 0, `DTE` as ATS is, `PASIDE` if it has PASIDs, `PRE` if it may ask for pages | |
//! | nothing in that place, or blocked | | not present |
//! | identity | | `PGTT` 4, domain ID 1 |
//! | a first stage | | `PGTT` 1 |
//! | the tables of a process | | `PGTT` 1, with `NXE`; after the process's end not present, and no faults are reported |
//! | a second stage | | `PGTT` 2 |
//! | a guest's first stage | | `PGTT` 3: as the [guest](GuestVtd) says, and a second stage |
//!
//! # What is told, in this order, each part complete before the next
//!
//! 1. The entry, under the domain ID that it had: of one device in legacy mode, of one PASID in scalable mode. With
//!    caching mode also under domain ID 0, which is that of everything that is not present.
//! 2. What was translated by it, even if other devices have the domain still: that waits for what is under way.
//! 3. What the device caches.
//!
//! A context entry of scalable mode goes after the PASID entries behind it. Where it changes with these in
//! place, all PASID entries and all translations are told.

mod architecture;
mod domain;
mod events;
mod features;
mod guest;
mod guest_entry;
mod instance;
mod scope;
mod stale;
mod tables;
#[cfg(all(test, not(loom)))]
mod tests;

pub use crate::device::vtd::architecture::{Port, Vtd};
pub use crate::device::vtd::domain::{DomainError, First, Second, Stage};
pub use crate::device::vtd::features::Features;
pub use crate::device::vtd::guest::GuestVtd;
pub use crate::device::vtd::guest_entry::{GuestEntry, GuestEntryError, GuestFirst};
pub use crate::device::vtd::instance::{ContextEntry, UnitError, VtdUnit};
pub use crate::device::vtd::scope::Scope;
pub use crate::device::vtd::tables::PasidTables;

use crate::device::context::{HardwareDomain, HardwareDriver, HardwareEndpoint};
use crate::invalidation::queue::Device;
use crate::invalidation::queue::vtd::DescriptorEntry;

/// The invalidation queue of a unit, over whatever registers.
pub trait CommandDevice: Device<Entry: DescriptorEntry> + Send + Sync + 'static {}

impl<D: Device<Entry: DescriptorEntry> + Send + Sync + 'static> CommandDevice for D {}

/// Drives units that were registered with it as a [`VtdUnit<M, D>`](VtdUnit).
pub type VtdDriver<M, D> = HardwareDriver<Vtd<M, D>>;

/// A domain for devices behind units.
pub type VtdDomain<M, D> = HardwareDomain<Vtd<M, D>>;

/// A device that a [`VtdDriver`] took in.
pub type VtdEndpoint<M, D> = HardwareEndpoint<Vtd<M, D>>;
