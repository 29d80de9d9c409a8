//! What a registry tells who runs it: nothing goes wrong in silence.

use alloc::vec::Vec;
use core::fmt;

use crate::device::{
    AttachFailure, Condition, DeviceAddress, Identity, NewDomainError, NoIommu, ProbeError,
};
use crate::domain::DomainError;

/// Gets a registry's reports, from whatever thread meets the reason, with no lock of the engine held.
pub trait Reports: Send + Sync + fmt::Debug {
    /// Takes one.
    fn report(&self, report: Report);
}

/// Something that nobody asked about and somebody should know.
#[derive(Debug)]
#[non_exhaustive]
pub enum Report {
    /// A driver could not take a device in.
    ProbeFailed {
        /// The device.
        device: DeviceAddress,
        /// Why.
        error: ProbeError,
    },
    /// A device that firmware names is translated by no IOMMU.
    NoIommu {
        /// The device.
        device: DeviceAddress,
        /// Why.
        why: NoIommu,
    },
    /// Nobody waits any longer for the instances of these devices. One report for all that waited.
    TimedOut {
        /// The devices, in rising order.
        devices: Vec<DeviceAddress>,
    },
    /// An instance came when a driver was bound to its device already: the device stays without it.
    Late {
        /// The device.
        device: DeviceAddress,
        /// The instance.
        instance: Identity,
    },
    /// Members of a group asked for different default domains; all get identity.
    KindConflict {
        /// The group's first device.
        group: DeviceAddress,
    },
    /// A group that should have had an identity domain gets a paging one.
    IdentityFailed {
        /// The group's first device.
        group: DeviceAddress,
        /// Why.
        error: NoDefaultDomain,
    },
    /// A group stays blocked.
    NoDefaultDomain {
        /// The group's first device.
        group: DeviceAddress,
        /// Why.
        error: NoDefaultDomain,
    },
    /// What hardware confirms of what is attached to a device has changed: it does not confirm that requests meet what
    /// they should, or does so again. [Asked again](crate::device::Registry::look_after) it is when something is
    /// attached, and when somebody wants it.
    Condition {
        /// The device.
        device: DeviceAddress,
        /// How it stands now.
        condition: Condition,
    },
    /// A device stays blocked, as it cannot be attached to what its group is attached to.
    LeftBlocked {
        /// The device.
        device: DeviceAddress,
        /// Why.
        error: AttachFailure,
    },
}

/// Why a group has no default domain.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NoDefaultDomain {
    /// Its members' drivers have no domain in common.
    #[error("the group is behind instances of different drivers")]
    Mixed,
    /// A member demands identity, and a member is not trusted.
    #[error("a device that is not trusted may not have an identity domain")]
    Untrusted,
    /// The driver could not make one.
    #[error(transparent)]
    New(#[from] NewDomainError),
    /// What a member uses at any time cannot be mapped.
    #[error("a direct region of {device} cannot be mapped: {error}")]
    Direct {
        /// The member.
        device: DeviceAddress,
        /// Why.
        #[source]
        error: DomainError,
    },
    /// A member cannot be attached to it.
    #[error("{device} cannot be attached: {error}")]
    Attach {
        /// The member.
        device: DeviceAddress,
        /// Why.
        #[source]
        error: AttachFailure,
    },
}
