//! Why an operation on devices is refused.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::error::Error;

use iopt_formats::command::Pasid;

use crate::device::{AttachFailure, DeviceAddress, Identity, NewDomainError};
use crate::firmware::InstanceIndex;

/// Why there is no such machine.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum MachineError {
    /// A device is listed more than once.
    #[error("{address} is listed twice")]
    Twice {
        /// The device.
        address: DeviceAddress,
    },
    /// A device names an instance that there is not.
    #[error("{address} names instance {}, which there is not", instance.0)]
    UnknownInstance {
        /// The device.
        address: DeviceAddress,
        /// The instance.
        instance: InstanceIndex,
    },
    /// A device names an instance more than once.
    #[error("{address} names instance {} twice", instance.0)]
    StreamTwice {
        /// The device.
        address: DeviceAddress,
        /// The instance.
        instance: InstanceIndex,
    },
    /// PASIDs are wider than they can be.
    #[error("PASIDs of {address} have {bits} bits, of at most 20")]
    PasidBits {
        /// The device.
        address: DeviceAddress,
        /// How many.
        bits: u8,
    },
}

/// Why a machine does not grow; it is as before then.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum GrowError {
    /// A device that was known is missing. One that was taken out stays known: it may come back.
    #[error("{address} was known, and is missing")]
    Gone {
        /// The device.
        address: DeviceAddress,
    },
    /// Something else is said of a device that was known.
    #[error("{address} was known otherwise")]
    Changed {
        /// The device.
        address: DeviceAddress,
    },
    /// Instances that were known are missing, or others, or there are other anonymous ones.
    #[error("the instances are others")]
    Instances,
    /// What is new would join two groups, each of which may be in use.
    #[error("the groups of {address} and {other} would be joined")]
    Joined {
        /// A device of one.
        address: DeviceAddress,
        /// A device of the other.
        other: DeviceAddress,
    },
    /// Devices of one group would be parted.
    #[error("the group of {address} would be parted")]
    Parted {
        /// One of them.
        address: DeviceAddress,
    },
    /// A device comes behind an instance that has one already and cannot tell them apart, which the machine
    /// does not know.
    #[error("{identity} cannot tell its devices apart, which the machine does not know")]
    Apart {
        /// The instance.
        identity: Identity,
    },
}

/// A device that the machine does not have, or that was not added.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("there is no {address}")]
pub struct UnknownDevice {
    /// The device.
    pub address: DeviceAddress,
}

/// Why a device was not added.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum AddError {
    /// The machine does not have it.
    #[error(transparent)]
    Unknown(#[from] UnknownDevice),
    /// It was removed, and something of it still runs.
    #[error("{address} is being removed")]
    Leaving {
        /// The device.
        address: DeviceAddress,
    },
}

/// Why an instance was not registered; nothing of it is left.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegisterError {
    /// The machine does not have it.
    #[error("the machine has no {identity}")]
    Unknown {
        /// The instance.
        identity: Identity,
    },
    /// Firmware says that it may not be used.
    #[error("{identity} is disabled")]
    Disabled {
        /// The instance.
        identity: Identity,
    },
    /// It is registered.
    #[error("{identity} is registered")]
    Twice {
        /// The instance.
        identity: Identity,
    },
    /// Another driver has registered an anonymous instance.
    #[error("anonymous instances are another driver's")]
    AnotherDriver,
    /// It cannot tell its devices apart, and the machine, whose groups are settled, takes it for one that
    /// can.
    #[error("{identity} cannot tell its devices apart, which the machine does not know")]
    Apart {
        /// The instance.
        identity: Identity,
    },
    /// Its driver found, while it took devices in, that it cannot be used. What it had taken in was
    /// released.
    #[error("{identity} failed on {device}: {error}")]
    Fatal {
        /// The instance.
        identity: Identity,
        /// The device.
        device: DeviceAddress,
        /// Why.
        #[source]
        error: Box<dyn Error + Send + Sync>,
    },
}

/// Why an instance is still registered.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum UnregisterError {
    /// It is not registered, or about to leave.
    #[error("{identity} is not registered")]
    Unknown {
        /// The instance.
        identity: Identity,
    },
    /// Drivers or owners use devices that are behind it or need it otherwise.
    #[error("{} devices use the instance, the first is {}", devices.len(), devices[0])]
    InUse {
        /// The devices, in rising order; at least one.
        devices: Vec<DeviceAddress>,
    },
    /// The thread runs in a callback of a driver.
    #[error("an instance cannot be unregistered inside a driver's callback")]
    InsideCallback,
    /// A callback of a driver does not end.
    #[error("a driver's callback does not end")]
    Stuck,
}

/// Why a driver was not bound.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// What the device needs is not ready: to be tried again when something has been added or registered,
    /// or time has passed. The only error that is about the IOMMU.
    #[error("what the device needs is not ready")]
    Defer,
    /// Somebody owns the group, or the driver of another of its devices has attached a domain of its own.
    #[error("the group is owned by somebody else")]
    Owned,
    /// A driver is bound.
    #[error("a driver is bound to the device")]
    Bound,
    /// The device was not added.
    #[error(transparent)]
    Unknown(#[from] UnknownDevice),
}

/// Why a group is not owned.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum OwnError {
    /// Drivers use the default domain.
    #[error("drivers use the group's default domain")]
    InUse,
    /// Somebody else owns it.
    #[error("the group is owned by somebody else")]
    Owned,
    /// PASIDs are attached.
    #[error("the group has PASIDs attached")]
    Pasids,
    /// The device has no IOMMU, or is not ready.
    #[error("{address} has no IOMMU that is ready")]
    NoIommu {
        /// The device.
        address: DeviceAddress,
    },
    /// The device was not added.
    #[error(transparent)]
    Unknown(#[from] UnknownDevice),
}

/// Why nothing was attached, or detached; nothing has changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttachError {
    /// The device has no IOMMU, or is not ready.
    #[error("{address} has no IOMMU that is ready")]
    NoIommu {
        /// The device.
        address: DeviceAddress,
    },
    /// A device of the group is being reset.
    #[error("a device of the group is being reset")]
    Resetting,
    /// Who asks has no right to: somebody else owns the group; or nobody does and it is not that one
    /// device with its driver alone.
    #[error("the group is not the caller's to attach")]
    NotOwner,
    /// It is PASID 0, or as large as the number of PASIDs of a member that has any, or no member has.
    #[error("PASID {pasid} is not from 1 to {}", limit.saturating_sub(1))]
    NoPasid {
        /// The PASID.
        pasid: Pasid,
        /// The smallest number of PASIDs of members that have any.
        limit: u32,
    },
    /// Something is attached to the PASID.
    #[error("PASID {pasid} is attached")]
    Attached {
        /// The PASID.
        pasid: Pasid,
    },
    /// Nothing is attached to the PASID.
    #[error("PASID {pasid} is not attached")]
    Detached {
        /// The PASID.
        pasid: Pasid,
    },
    /// A member cannot be attached.
    #[error("{device} cannot be attached: {error}")]
    Failed {
        /// The member.
        device: DeviceAddress,
        /// Why.
        #[source]
        error: AttachFailure,
    },
    /// The device was not added.
    #[error(transparent)]
    Unknown(#[from] UnknownDevice),
}

/// Why there is no domain for a group.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GroupDomainError {
    /// The device has no IOMMU, or is not ready.
    #[error("{address} has no IOMMU that is ready")]
    NoIommu {
        /// The device.
        address: DeviceAddress,
    },
    /// Its driver could not make one.
    #[error(transparent)]
    New(#[from] NewDomainError),
    /// The device was not added.
    #[error(transparent)]
    Unknown(#[from] UnknownDevice),
}
