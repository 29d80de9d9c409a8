//! Why a device cannot do what is asked.

use alloc::boxed::Box;

use iopt_formats::command::virtio::{Request, Status};
use iopt_formats::{IovaRange, Prot};

use crate::domain::DomainError;
use crate::invalidation::SyncError;

/// Why a request did not do what it should (*VIRTIO 1.3*, section 5.13.6.2).
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// `IOERR`: the transport failed.
    #[error("the request did not arrive whole")]
    Io,
    /// `UNSUPP`: the device has no such request.
    #[error("the device does not support the request")]
    Unsupported,
    /// `DEVERR`: the device failed.
    #[error("the device failed")]
    Device,
    /// `INVAL`: a field is wrong, or the range is mapped already.
    #[error("the device finds the request invalid")]
    Invalid,
    /// `RANGE`: out of range, not aligned, or a mapping would be divided.
    #[error("the device does not take the range")]
    Range,
    /// `NOENT`: there is no such endpoint or domain.
    #[error("the device knows no such endpoint or domain")]
    NoEntry,
    /// `FAULT`: the device cannot reach the memory of the request.
    #[error("the device cannot reach the memory of the request")]
    Fault,
    /// `NOMEM`: the device has no memory left.
    #[error("the device has no memory left")]
    NoMemory,
    /// The device gave the request back without a status, or with one that does not exist.
    #[error("the device gave the request back without a status")]
    NoStatus,
    /// The device did not answer in time; it may yet do what was asked.
    #[error("the device did not answer in time")]
    TimedOut,
}

impl RequestError {
    /// Returns what the bytes say that the device wrote, of which a request has `written_len`.
    pub(super) fn of_answer(bytes: &[u8], written_len: usize) -> Result<(), Self> {
        let tail = written_len
            .checked_sub(Request::TAIL_LEN)
            .and_then(|start| bytes.get(start..written_len));
        let tail = tail.and_then(|tail| tail.try_into().ok());
        let status = tail.and_then(|tail| Status::decode(tail).ok());
        Err(match status.ok_or(Self::NoStatus)? {
            Status::Ok => return Ok(()),
            Status::IoError => Self::Io,
            Status::Unsupported => Self::Unsupported,
            Status::DeviceError => Self::Device,
            Status::Invalid => Self::Invalid,
            Status::Range => Self::Range,
            Status::NoEntry => Self::NoEntry,
            Status::Fault => Self::Fault,
            Status::NoMemory => Self::NoMemory,
        })
    }

    /// Returns whether the device did nothing for certain.
    pub(super) const fn is_without_effect(self) -> bool {
        match self {
            Self::Io | Self::Device | Self::NoStatus | Self::TimedOut => false,
            Self::Unsupported
            | Self::Invalid
            | Self::Range
            | Self::NoEntry
            | Self::Fault
            | Self::NoMemory => true,
        }
    }
}

impl From<RequestError> for DomainError {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::NoMemory => Self::OutOfMemory,
            RequestError::TimedOut => Self::Sync(SyncError::TimedOut),
            error => Self::Other(Box::new(error)),
        }
    }
}

/// What a [`VirtioDomain`](super::VirtioDomain) does not do; inside [`DomainError::Other`].
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum VirtioError {
    /// The run is outside of what the device takes, or not a multiple of its granule.
    #[error("{range} does not fit the device's input range or its granule")]
    Misplaced {
        /// What was to be mapped.
        range: IovaRange,
    },
    /// The rights are none that a request can name: no access at all, execution alone, or registers
    /// without the feature `MMIO`.
    #[error("a mapping cannot grant {prot}")]
    Rights {
        /// What was asked for.
        prot: Prot,
    },
    /// The range is reserved for an endpoint of the domain.
    #[error("{reserved} is reserved for an endpoint")]
    Reserved {
        /// What is reserved.
        reserved: IovaRange,
    },
    /// A mapping is in the way, or one that the device did not confirm to have forgotten.
    #[error("{with} is in the way")]
    Occupied {
        /// The mapping.
        with: IovaRange,
    },
    /// A mapping reaches out of the range; mappings go as they came, whole.
    #[error("the mapping {mapping} is not inside the range")]
    Divides {
        /// The mapping.
        mapping: IovaRange,
    },
    /// The range is not mapped throughout.
    #[error("the range is not mapped throughout")]
    Hole,
    /// A mapping was to be replaced, and the device took neither the new one nor the old one again:
    /// devices fault there. [`VirtioDomain::refill`](super::VirtioDomain::refill) tries once more.
    #[error("the device lost the mappings of {range}: {error}")]
    Lost {
        /// Where.
        range: IovaRange,
        /// Why.
        error: RequestError,
    },
}

impl From<VirtioError> for DomainError {
    fn from(error: VirtioError) -> Self {
        Self::Other(Box::new(error))
    }
}

/// Why there is no domain of a number.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum NumberError {
    /// The device takes none outside of its domain range.
    #[error("the device takes domains from {first} to {last}")]
    OutOfRange {
        /// The smallest number.
        first: u32,
        /// The largest number.
        last: u32,
    },
    /// There is one already.
    #[error("the number is in use")]
    InUse,
    /// There is one of every number.
    #[error("all numbers from {first} to {last} are in use")]
    AllInUse {
        /// The smallest number.
        first: u32,
        /// The largest number.
        last: u32,
    },
    /// There is no memory.
    #[error("there is no memory for the domain")]
    OutOfMemory,
}

/// Why an endpoint does not join or leave a domain.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EndpointError {
    /// It is in the domain already.
    #[error("the endpoint is attached to the domain already")]
    Attached,
    /// There is no memory.
    #[error("there is no memory for another endpoint")]
    OutOfMemory,
    /// The domain maps what is reserved for the endpoint.
    #[error("{mapping} is mapped, and reserved for the endpoint")]
    Reserved {
        /// The mapping.
        mapping: IovaRange,
    },
    /// The device refused, or did not answer.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The endpoint is attached, and what is mapped did not all reach the device: the endpoint faults
    /// there until [`VirtioDomain::refill`](super::VirtioDomain::refill) succeeds.
    #[error("the device did not take the mapping {mapping}: {error}")]
    Fill {
        /// The first mapping that is missing.
        mapping: IovaRange,
        /// Why.
        #[source]
        error: RequestError,
    },
}
