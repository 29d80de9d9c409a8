//! Devices, the IOMMU instances that serve them, and groups that are attached together.
//!
//! # Four steps, and no replay
//!
//! | step | what | when |
//! |---|---|---|
//! | describe | [`Description`](crate::firmware::Description) | once, from firmware |
//! | resolve | [`Machine`]: which device is known to which instance, and the groups | before anything comes, and again when [more is known](Registry::grow) |
//! | probe | an instance's driver takes a device in | when a device is [added](Registry::add_device) or an instance [registered](Registry::register), whichever is later; nothing else probes |
//! | bind | a device's driver [asks](DeviceGuard::bind) whether all is ready | as often as it likes |
//!
//! ```text
//! Machine -> Registry: add_device, register -> Driver::probe -> Endpoint, blocked
//!                                           -> group complete: default domain, all members at once
//!            lock_device -> DeviceGuard: bind, unbind, remove, begin_reset
//!            claim_owner -> Ownership: attach, attach_pasid
//! ```
//!
//! The groups are the machine's, and the default domain is chosen when it is known of every member of a
//! group what becomes of it. So the order in which devices, instances and drivers come decides nothing:
//! in the end the [`Snapshot`] is the same. A machine that grows keeps its groups: what would join two of them is
//! refused.
//!
//! # A device, from its arrival
//!
//! ```text
//! Waiting --all instances there--> Probing --driver takes it in--> Probed: blocked, in its group
//!    |                                |                               | no member of the group is awaited
//!    +--time over, disabled, ..--> NoIommu <--driver does not         v
//!                                                                  in the default domain, told, ready
//! ```
//!
//! # Invariants
//!
//! Of probing B1 to B4 (in `walk`), of groups P1 to P3 (in `group`). For all of it:
//!
//! - **L4** (order decides nothing): what is entered is a function of the machine, of what was added and
//!   registered, and of what drivers answer; of the clock only once time is over. Once [initialisation is
//!   over](Registry::finish_initialization) groups do not wait for devices that were not added, and who comes first
//!   has a say in the kind of a group's default domain that others have not.
//! - **L5** (no lock around strangers): drivers, clocks and reports are called with no lock held, other than
//!   the parts of an [`Endpoint`] that say so.
//! - **L6** (no wait without end): nobody waits for a probe; binding defers. Who removes or unregisters
//!   waits for callbacks, some seconds at most.
//!
//! # Pages that are not there, and processes
//!
//! [`fault`] brings what devices ask for to the domains that answer for it; [`process`] attaches processes' own
//! tables. Both are joined to hardware by [`context`].
//!
//! # Guests
//!
//! A domain of kind [`Nested`](DomainKind::Nested) goes by a guest's own tables, at addresses that a parent
//! translates: [`smmuv3::GuestSmmu`], [`vtd::GuestVtd`], [`amd::GuestIommu`] and [`riscv::GuestIommu`] make them of what
//! the guest's entries say, and carry out what the guest tells its IOMMU.
//!
//! # Locks
//!
//! [`DEVICE_GUARD`](crate::sync::DEVICE_GUARD) of one device, then [`REGISTRY`](crate::sync::REGISTRY), then
//! [`GROUP`](crate::sync::GROUP). Probes run in [`BUS_WALK`](crate::sync::BUS_WALK), which ranks above the
//! guards: a probe must not take one, and who holds one may wait for a probe. What is told of a default
//! domain runs in [`FINALIZE`](crate::sync::FINALIZE), which ranks below them: it may take guards, and may
//! be waited for without one only.

mod address;
pub mod amd;
mod attach;
mod bind;
pub mod context;
mod control;
mod defer;
mod driver;
mod error;
pub mod fault;
mod group;
pub mod ids;
mod leave;
mod machine;
#[cfg(all(test, loom))]
mod models;
mod owner;
pub mod process;
mod registry;
mod report;
mod resolve;
pub mod riscv;
mod settle;
pub mod smmuv3;
mod snapshot;
#[cfg(all(test, not(loom)))]
mod testing;
#[cfg(all(test, not(loom)))]
mod testing_faults;
#[cfg(all(test, not(loom)))]
mod testing_rig;
#[cfg(all(test, not(loom)))]
mod testing_scenes;
#[cfg(all(test, not(loom)))]
mod testing_smmu;
#[cfg(all(test, not(loom)))]
mod tests;
pub mod virtio;
pub mod vtd;
mod walk;

pub use crate::device::address::DeviceAddress;
pub use crate::device::attach::By;
pub use crate::device::bind::{Binding, DeviceGuard, Use};
pub use crate::device::control::{DeviceControl, PlainDevices};
pub use crate::device::defer::{Clock, Config, SystemClock};
pub use crate::device::driver::{
    AttachFailure, Condition, DefaultKind, DirectRegion, DomainKind, Driver, Endpoint, Hwpt,
    NewDomainError, Prepared, ProbeError, ProbeRequest,
};
pub use crate::device::error::{
    AddError, AttachError, BindError, GroupDomainError, GrowError, MachineError, OwnError,
    RegisterError, UnknownDevice, UnregisterError,
};
pub use crate::device::leave::Removal;
pub use crate::device::machine::{
    DeviceReach, DeviceRegion, DeviceTlb, Identity, InstanceFacts, Machine, MachineParts, Refusal,
    Resolved, Stream, SupplierEdge,
};
pub use crate::device::owner::{Owner, Ownership};
pub use crate::device::registry::{NoIommu, Registry};
pub use crate::device::report::{NoDefaultDomain, Report, Reports};
pub use crate::device::resolve::{Besides, Resolution, ResolveError, Unanswered, Untranslated};
pub use crate::device::snapshot::{DeviceSnapshot, GroupSnapshot, Snapshot, Standing};
pub use crate::device::walk::Registration;
