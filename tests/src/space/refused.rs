//! Reasons for which an operation on an address space is refused, without their details.

use iopt::ioas::{
    AccessError, AllowError, AttachError, CopyError, DetachError, DirtyError, HoldError, MapError,
    MsiError, OptionError, ProtectError, RemapError, ReserveError, RevokeError, SplitError,
    UnmapError,
};

/// A reason.
#[expect(missing_docs, reason = "named as the errors are")]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Refused {
    Allowed,
    Aperture,
    Busy,
    Deadlock,
    Detached,
    Device,
    Domain,
    Full,
    Hole,
    InUse,
    Limit,
    Mixed,
    NoOld,
    NoRange,
    NoSpace,
    NoWindow,
    NotAttached,
    NotFirm,
    NotFlushed,
    NotPinned,
    NotTracking,
    Occupied,
    OneByte,
    OutOfMemory,
    OutsidePages,
    Overlap,
    Pin,
    Quarantined,
    Reserved,
    Revoked,
    Rights,
    Splits,
    Stuck,
    Taken,
    Unaligned,
    Unknown,
    UnmapQuarantined,
}

impl From<HoldError> for Refused {
    fn from(error: HoldError) -> Self {
        match error {
            HoldError::Pin(_) => Self::Pin,
            HoldError::Limit(_) => Self::Limit,
            HoldError::Revoked => Self::Revoked,
            HoldError::OutOfMemory => Self::OutOfMemory,
            _ => Self::Unknown,
        }
    }
}

impl From<MapError> for Refused {
    fn from(error: MapError) -> Self {
        match error {
            MapError::NoRange { .. } => Self::NoRange,
            MapError::OutsidePages { .. } => Self::OutsidePages,
            MapError::Unaligned { .. } => Self::Unaligned,
            MapError::Rights => Self::Rights,
            MapError::Reserved { .. } => Self::Reserved,
            MapError::Occupied { .. } => Self::Occupied,
            MapError::NoSpace { .. } => Self::NoSpace,
            MapError::NotFirm => Self::NotFirm,
            MapError::Hold(error) => error.into(),
            MapError::Domain { .. } => Self::Domain,
            MapError::Quarantined { .. } => Self::Quarantined,
            _ => Self::Unknown,
        }
    }
}

impl From<UnmapError> for Refused {
    fn from(error: UnmapError) -> Self {
        match error {
            UnmapError::Hole { .. } => Self::Hole,
            UnmapError::Splits { .. } => Self::Splits,
            UnmapError::Busy { .. } => Self::Busy,
            UnmapError::Deadlock { .. } => Self::Deadlock,
            UnmapError::OutOfMemory => Self::OutOfMemory,
            UnmapError::Quarantined { .. } => Self::UnmapQuarantined,
            _ => Self::Unknown,
        }
    }
}

impl From<CopyError> for Refused {
    fn from(error: CopyError) -> Self {
        match error {
            CopyError::Hole { .. } => Self::Hole,
            CopyError::Map(error) => error.into(),
            _ => Self::Unknown,
        }
    }
}

impl From<RemapError> for Refused {
    fn from(error: RemapError) -> Self {
        match error {
            RemapError::Mixed { .. } => Self::Mixed,
            RemapError::Copy(error) => error.into(),
            RemapError::Unmap(error) => error.into(),
            _ => Self::Unknown,
        }
    }
}

impl From<SplitError> for Refused {
    fn from(error: SplitError) -> Self {
        match error {
            SplitError::Hole { .. } => Self::Hole,
            SplitError::Busy { .. } => Self::Busy,
            SplitError::Unaligned { .. } => Self::Unaligned,
            SplitError::Domain { .. } => Self::Domain,
            SplitError::Hold(error) => error.into(),
            _ => Self::Unknown,
        }
    }
}

impl From<ProtectError> for Refused {
    fn from(error: ProtectError) -> Self {
        match error {
            ProtectError::Areas(error) => error.into(),
            ProtectError::Rights { .. } => Self::Rights,
            ProtectError::Domain { .. } => Self::Domain,
            _ => Self::Unknown,
        }
    }
}

impl From<AttachError> for Refused {
    fn from(error: AttachError) -> Self {
        match error {
            AttachError::Taken(_) => Self::Taken,
            AttachError::Aperture { .. } => Self::Aperture,
            AttachError::Unaligned { .. } => Self::Unaligned,
            AttachError::Fill(error) => error.into(),
            AttachError::NoOld => Self::NoOld,
            AttachError::OldNotFlushed(_) => Self::NotFlushed,
            _ => Self::Unknown,
        }
    }
}

impl From<DetachError> for Refused {
    fn from(error: DetachError) -> Self {
        match error {
            DetachError::NotAttached => Self::NotAttached,
            DetachError::NotFlushed(_) => Self::NotFlushed,
            _ => Self::Unknown,
        }
    }
}

impl From<AccessError> for Refused {
    fn from(error: AccessError) -> Self {
        match error {
            AccessError::Hole { .. } => Self::Hole,
            AccessError::NoRange { .. } => Self::NoRange,
            AccessError::Unaligned { .. } => Self::Unaligned,
            AccessError::Device { .. } => Self::Device,
            AccessError::Rights { .. } => Self::Rights,
            AccessError::NotPinned { .. } => Self::NotPinned,
            AccessError::Hold(error) => error.into(),
            AccessError::Detached => Self::Detached,
            _ => Self::Unknown,
        }
    }
}

impl From<ReserveError> for Refused {
    fn from(error: ReserveError) -> Self {
        match error {
            ReserveError::Allowed { .. } => Self::Allowed,
            ReserveError::Occupied { .. } => Self::Occupied,
            ReserveError::OutOfMemory => Self::OutOfMemory,
            _ => Self::Unknown,
        }
    }
}

impl From<AllowError> for Refused {
    fn from(error: AllowError) -> Self {
        match error {
            AllowError::OneByte { .. } => Self::OneByte,
            AllowError::Overlap { .. } => Self::Overlap,
            AllowError::Reserved { .. } => Self::Reserved,
            AllowError::OutOfMemory { .. } => Self::OutOfMemory,
            _ => Self::Unknown,
        }
    }
}

impl From<OptionError> for Refused {
    fn from(error: OptionError) -> Self {
        match error {
            OptionError::InUse => Self::InUse,
            OptionError::Unaligned { .. } => Self::Unaligned,
            _ => Self::Unknown,
        }
    }
}

impl From<RevokeError> for Refused {
    fn from(error: RevokeError) -> Self {
        match error {
            RevokeError::Busy { .. } => Self::Busy,
            RevokeError::Domain(_) => Self::Domain,
            RevokeError::OutOfMemory => Self::OutOfMemory,
            _ => Self::Unknown,
        }
    }
}

impl From<DirtyError> for Refused {
    fn from(error: DirtyError) -> Self {
        match error {
            DirtyError::NotAttached => Self::NotAttached,
            DirtyError::NotTracking => Self::NotTracking,
            DirtyError::Hole { .. } => Self::Hole,
            DirtyError::OutOfMemory => Self::OutOfMemory,
            DirtyError::Domain(_) => Self::Domain,
            _ => Self::Unknown,
        }
    }
}

impl From<MsiError> for Refused {
    fn from(error: MsiError) -> Self {
        match error {
            MsiError::Reserve(error) => error.into(),
            MsiError::InUse => Self::InUse,
            MsiError::NoWindow => Self::NoWindow,
            MsiError::Full { .. } => Self::Full,
            MsiError::NotAttached => Self::NotAttached,
            MsiError::OutOfMemory => Self::OutOfMemory,
            MsiError::Domain(_) => Self::Domain,
            _ => Self::Unknown,
        }
    }
}
