//! What an architecture's driver provides.
//!
//! ```text
//! Driver::probe            no lock          once for each device that comes; leaves it blocked
//! Driver::new_domain       no lock          complete when it returns
//! Hwpt::map_direct         no lock          before anything is attached
//! Endpoint::prepare        group's lock     may fail, changes nothing that a device could notice
//!   Prepared::commit       group's lock     cannot fail
//! Endpoint::block          group's lock     cannot fail, allocates nothing
//! Driver::finalize         no lock          once, in its default domain
//! Endpoint::release        no lock          once, blocked
//! Endpoint::look_after     no lock          after changes
//! ```
//!
//! What runs under a group's lock must not call the registry.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::any::Any;
use core::error::Error;
use core::fmt;

use iopt_formats::command::Pasid;
use iopt_formats::{IovaRange, Oa, Prot};

use crate::device::fault::FaultHandler;
use crate::device::process::{Process, ProcessDomain};
use crate::device::{DeviceAddress, Identity, Resolved};
use crate::domain::{Domain, DomainError};

/// Drives instances of one architecture. Instances that share a driver share one value: who registers
/// them with clones of one `Arc`.
pub trait Driver: Send + Sync + fmt::Debug {
    /// Takes a device in. It comes blocked and stays so: none of its requests passes until something is
    /// attached, but for those under an ID by which an instance knows devices that are attached, too.
    ///
    /// # Errors
    ///
    /// [`ProbeError`]. Nothing is kept of the device then.
    fn probe(&self, request: &ProbeRequest<'_>) -> Result<Arc<dyn Endpoint>, ProbeError>;

    /// Is told that a device is in its group's default domain for the first time.
    fn finalize(&self, endpoint: &Arc<dyn Endpoint>) {
        let _ = endpoint;
    }

    /// Makes a domain to which all of `endpoints`, which this driver made, can be attached.
    ///
    /// # Errors
    ///
    /// [`NewDomainError`].
    fn new_domain(
        &self,
        kind: DefaultKind,
        endpoints: &[Arc<dyn Endpoint>],
    ) -> Result<Arc<dyn Hwpt>, NewDomainError>;

    /// Makes a domain of a process to which all of `endpoints`, which this driver made, can be attached with its
    /// PASID.
    ///
    /// # Errors
    ///
    /// [`NewDomainError`].
    fn new_process_domain(
        &self,
        process: &Arc<Process>,
        endpoints: &[Arc<dyn Endpoint>],
    ) -> Result<Arc<dyn ProcessDomain>, NewDomainError> {
        let _ = (process, endpoints);
        Err(NewDomainError::Unsupported)
    }

    /// Returns whether an instance of this driver can treat its devices differently. One that cannot is
    /// registered only if the machine knows that
    /// ([`InstanceFacts::tells_devices_apart`](crate::device::InstanceFacts::tells_devices_apart)).
    fn tells_devices_apart(&self) -> bool {
        true
    }
}

/// What a driver is asked to take in.
#[derive(Debug)]
pub struct ProbeRequest<'a> {
    pub(super) device: &'a Resolved,
    pub(super) instances: &'a [Published],
}

/// An instance as it was registered.
#[derive(Clone)]
pub(super) struct Published {
    pub(super) identity: Identity,
    /// Tells registrations of one identity apart.
    pub(super) serial: u64,
    pub(super) instance: Arc<dyn Any + Send + Sync>,
}

impl fmt::Debug for Published {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.identity.fmt(f)
    }
}

impl<'a> ProbeRequest<'a> {
    /// Returns which device it is.
    pub const fn address(&self) -> DeviceAddress {
        self.device.address
    }

    /// Returns all that is known of the device.
    pub const fn device(&self) -> &'a Resolved {
        self.device
    }

    /// Returns how many instances see its requests. It is one if firmware describes none; then that one is
    /// asked whether the device is its own.
    pub const fn instance_count(&self) -> usize {
        self.instances.len()
    }

    /// Returns which the `index`th is.
    pub fn identity(&self, index: usize) -> Option<Identity> {
        self.instances
            .get(index)
            .map(|published| published.identity)
    }

    /// Returns what the `index`th was registered with; `None` also if that is no `T`.
    pub fn instance<T: Any + Send + Sync>(&self, index: usize) -> Option<Arc<T>> {
        let published = self.instances.get(index)?;
        Arc::downcast(Arc::clone(&published.instance)).ok()
    }

    /// Returns under which IDs the `index`th sees the requests, in rising order; none if firmware does not
    /// say.
    pub fn ids(&self, index: usize) -> &'a [u32] {
        let stream = self.device.streams.get(index);
        stream.map_or(&[], |stream| &stream.ids)
    }
}

/// A device as its instances know it.
pub trait Endpoint: Any + Send + Sync + fmt::Debug {
    /// Returns what its group's default domain should be, if that matters.
    fn default_kind(&self) -> Option<DefaultKind> {
        None
    }

    /// Returns the number of PASIDs, 0 if it has none: those from 1 to one less can be attached. Always
    /// the same.
    fn max_pasids(&self) -> u32 {
        0
    }

    /// Gets everything ready to attach `domain` for requests with `pasid`, or without one. What was
    /// attached before stays until the commit, and the new domain is told of changes from now on.
    ///
    /// Called under the group's lock: it must not call the registry.
    ///
    /// # Errors
    ///
    /// [`AttachFailure::Foreign`] for a domain that another driver made, or that does not fit an instance
    /// of the device; nothing has changed after any of them.
    fn prepare(
        &self,
        pasid: Option<Pasid>,
        domain: &Arc<dyn Hwpt>,
    ) -> Result<Box<dyn Prepared + '_>, AttachFailure>;

    /// Stops requests with `pasid`, or those without one, and forgets what was attached there. When it
    /// returns no cache serves them any more, or the device is quarantined by other means: it cannot fail
    /// and allocates nothing. Blocking what is blocked does nothing.
    ///
    /// An instance may see several devices of a group under one ID. Requests under it cannot be told apart: as long as
    /// another one of these devices is attached, they are led to what that is attached to, and only who stops
    /// the device itself stops them.
    ///
    /// Called under the group's lock: it must not call the registry.
    fn block(&self, pasid: Option<Pasid>);

    /// Lets go of the device, which is blocked throughout. Called once, with no lock held.
    fn release(&self);

    /// Lets go of domains that hardware has left since they were attached, asks it once more about what it did not
    /// confirm if `asks_again`, and says how the device stands. Called with no lock held but the device's guard, after
    /// each change of what is attached.
    fn look_after(&self, asks_again: bool) -> Condition {
        let _ = asks_again;
        Condition::Sound
    }
}

/// What hardware confirms of what is attached to a device.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Condition {
    /// All of it is what requests meet, and nothing else is.
    #[default]
    Sound,
    /// Requests may be blocked that should be led somewhere.
    CutOff,
    /// Requests may meet what was attached before, which is kept.
    Quarantined,
}

/// An attachment that is about to be; dropping it takes the preparations back.
pub trait Prepared {
    /// Attaches, in place of what is attached. Cannot fail.
    ///
    /// Called under the group's lock: it must not call the registry.
    fn commit(self: Box<Self>);
}

/// What a domain makes of requests.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[non_exhaustive]
pub enum DomainKind {
    /// It stops them.
    Blocked,
    /// It passes them on as they are.
    Identity,
    /// It translates them by tables that the engine owns.
    Paging,
    /// It translates them by a guest's tables and then by a parent's.
    Nested,
    /// It translates them by a process's own tables.
    Process,
}

/// What a group's default domain can be.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum DefaultKind {
    /// Requests pass as they are.
    Identity,
    /// Requests are translated.
    Paging,
}

impl From<DefaultKind> for DomainKind {
    fn from(kind: DefaultKind) -> Self {
        match kind {
            DefaultKind::Identity => Self::Identity,
            DefaultKind::Paging => Self::Paging,
        }
    }
}

/// What can be attached: a domain with the IDs and tables by which some instances know it, all of it
/// complete from the start.
///
/// A driver finds its own by [`Any`]: `let any: &dyn Any = &**hwpt;`, then `any.downcast_ref()`.
pub trait Hwpt: Any + Send + Sync + fmt::Debug {
    /// Returns what it makes of requests.
    fn kind(&self) -> DomainKind;

    /// Returns its translations, if they are the engine's.
    fn domain(&self) -> Option<Arc<dyn Domain>> {
        None
    }

    /// Returns who answers when devices ask for pages that are not there; always the same. A domain that has
    /// one is fault-capable.
    fn fault_handler(&self) -> Option<Arc<dyn FaultHandler>> {
        None
    }

    /// Maps what a device uses at any time. The same region may come from several devices, and again.
    ///
    /// # Errors
    ///
    /// [`DomainError`].
    fn map_direct(&self, region: DirectRegion) -> Result<(), DomainError>;
}

/// What has to be mapped before translation begins.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct DirectRegion {
    /// The IOVA.
    pub range: IovaRange,
    /// The first output address.
    pub oa: Oa,
    /// The rights.
    pub prot: Prot,
}

/// Why a driver does not take a device in.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProbeError {
    /// The device is none of this instance's.
    #[error("the device is none of the instance's")]
    NotMine,
    /// It is, but cannot be used. Others are not concerned.
    #[error("the device cannot be used: {0}")]
    Failed(#[source] Box<dyn Error + Send + Sync>),
    /// The instance itself cannot be used: if it is just being registered, that fails; otherwise it is
    /// [reported](crate::device::Report::ProbeFailed).
    #[error("the instance cannot be used: {0}")]
    Fatal(#[source] Box<dyn Error + Send + Sync>),
}

/// Why a device cannot be attached, as its driver says.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttachFailure {
    /// The domain is another driver's, or does not fit an instance of the device.
    #[error("the domain does not fit the device's instances")]
    Foreign,
    /// The device cannot have this kind of domain there.
    #[error("the device does not support {what}")]
    Unsupported {
        /// What.
        what: &'static str,
    },
    /// No memory, or no ID is left.
    #[error("no memory or no ID is left")]
    Exhausted,
    /// Anything else.
    #[error(transparent)]
    Other(Box<dyn Error + Send + Sync>),
}

/// Why there is no such domain.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NewDomainError {
    /// The instances have none of this kind, or none that fits all of the endpoints.
    #[error("the instances have no such domain in common")]
    Unsupported,
    /// No memory, or no ID is left.
    #[error("no memory or no ID is left")]
    Exhausted,
    /// Anything else.
    #[error(transparent)]
    Other(Box<dyn Error + Send + Sync>),
}
