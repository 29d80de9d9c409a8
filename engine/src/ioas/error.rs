//! Why an operation on an address space is refused.

use iopt_formats::{Iova, IovaRange};

use crate::domain::DomainError;
use crate::ioas::pages::HoldError;

/// Why nothing was mapped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MapError {
    /// The mapping has no bytes, or ends behind the last address.
    #[error("{len:#x} bytes at {iova} are no range")]
    NoRange {
        /// Where it should begin.
        iova: Iova,
        /// Bytes.
        len: u64,
    },
    /// The slice reaches out of the pages.
    #[error("bytes {offset:#x} and {len:#x} more reach out of pages of {available:#x} bytes")]
    OutsidePages {
        /// First byte of the slice.
        offset: u64,
        /// Bytes of the slice.
        len: u64,
        /// Bytes of the pages.
        available: u64,
    },
    /// IOVA, offset or length is no multiple of what the domains demand.
    #[error("{range} on byte {offset:#x} is not aligned to {alignment:#x}")]
    Unaligned {
        /// The IOVA.
        range: IovaRange,
        /// First byte of the slice.
        offset: u64,
        /// What the domains demand, in bytes.
        alignment: u64,
    },
    /// Rights that are none, or that the pages do not allow.
    #[error("the pages cannot be mapped with these rights")]
    Rights,
    /// The range meets one that is reserved.
    #[error("{range} meets the reserved range {with}")]
    Reserved {
        /// The IOVA.
        range: IovaRange,
        /// The reservation.
        with: IovaRange,
    },
    /// The range meets an area.
    #[error("{range} meets the area {with}")]
    Occupied {
        /// The IOVA.
        range: IovaRange,
        /// The area, or another range that is about to become one.
        with: IovaRange,
    },
    /// No free range is large enough.
    #[error("no free range of {len:#x} bytes with this alignment is left")]
    NoSpace {
        /// Bytes.
        len: u64,
    },
    /// A domain needs pages that stay where they are, and the source cannot promise that.
    #[error("a domain is walked by hardware, and the pages may move")]
    NotFirm,
    /// The pages cannot be pinned.
    #[error(transparent)]
    Hold(#[from] HoldError),
    /// A domain cannot map them.
    #[error("domain {domain} cannot map {range}: {error}")]
    Domain {
        /// Its place among the address space's domains.
        domain: usize,
        /// The IOVA.
        range: IovaRange,
        /// Why.
        #[source]
        error: DomainError,
    },
    /// The mapping failed, and devices may still reach what was taken back: the range stays occupied
    /// until [`retry_quarantined`](crate::ioas::Ioas::retry_quarantined).
    #[error("what was mapped is quarantined: {error}")]
    Quarantined {
        /// Why.
        #[source]
        error: DomainError,
    },
}

/// Why none of several slices was mapped.
#[derive(Debug, thiserror::Error)]
#[error("mapping {index} failed: {error}")]
pub struct MapManyError {
    /// Number of the one that failed.
    pub index: usize,
    /// Why.
    #[source]
    pub error: MapError,
}

/// Why nothing was unmapped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UnmapError {
    /// Nothing is mapped at an address of the range.
    #[error("nothing is mapped at {iova}")]
    Hole {
        /// The address.
        iova: Iova,
    },
    /// An area reaches out of the range.
    #[error("{range} divides the area {area}")]
    Splits {
        /// The IOVA.
        range: IovaRange,
        /// The area.
        area: IovaRange,
    },
    /// An area is made or unmapped by somebody else at this moment.
    #[error("the area {area} is busy")]
    Busy {
        /// The area.
        area: IovaRange,
    },
    /// An access was asked to let go of its pins many times, and did not.
    #[error("an access does not let go of {area}")]
    Deadlock {
        /// The area.
        area: IovaRange,
    },
    /// No memory to list the areas.
    #[error("no memory to list the areas of a range")]
    OutOfMemory,
    /// A domain did not remove its translations, or the hardware did not confirm it: nothing of the
    /// areas is used again until [`retry_quarantined`](crate::ioas::Ioas::retry_quarantined).
    #[error("{bytes:#x} bytes are quarantined: {error}")]
    Quarantined {
        /// Bytes of the areas.
        bytes: u64,
        /// Why.
        #[source]
        error: DomainError,
    },
}

/// Why a domain was not attached.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttachError {
    /// It serves another address space.
    #[error(transparent)]
    Taken(#[from] crate::domain::Taken),
    /// An area, or a range that is allowed, lies outside of its aperture.
    #[error("{with} is in use and outside of the aperture {aperture}")]
    Aperture {
        /// What it translates.
        aperture: IovaRange,
        /// What lies outside.
        with: IovaRange,
    },
    /// An area is not aligned to its smallest page.
    #[error("the area {area} is not aligned to {alignment:#x}")]
    Unaligned {
        /// The area.
        area: IovaRange,
        /// Bytes of the smallest page.
        alignment: u64,
    },
    /// What is mapped cannot be mapped to it; it is as if it had never been attached.
    #[error(transparent)]
    Fill(#[from] MapError),
    /// There is no domain to replace.
    #[error("the domain to be replaced is not attached")]
    NoOld,
    /// The new domain is attached, the old one is not any more, but its hardware may still use what it
    /// held; see [`DetachError::NotFlushed`].
    #[error("the replaced domain is not flushed: {0}")]
    OldNotFlushed(#[source] DomainError),
}

/// Why a domain was not detached.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DetachError {
    /// The address space has no such domain.
    #[error("the domain is not attached")]
    NotAttached,
    /// The domain is out of the address space, but its hardware may still use what it held: memory stays
    /// pinned until [`retry_quarantined`](crate::ioas::Ioas::retry_quarantined).
    #[error("the domain is detached and not flushed: {0}")]
    NotFlushed(#[source] DomainError),
}

/// Why an access pins or reads nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AccessError {
    /// Nothing is mapped at an address of the range, or not any more.
    #[error("nothing is mapped at {iova}")]
    Hole {
        /// The address.
        iova: Iova,
    },
    /// The range has no bytes, or ends behind the last address.
    #[error("{len:#x} bytes at {iova} are no range")]
    NoRange {
        /// Where it should begin.
        iova: Iova,
        /// Bytes.
        len: u64,
    },
    /// A pinned range begins or ends inside a page.
    #[error("{range} divides a page")]
    Unaligned {
        /// The IOVA.
        range: IovaRange,
    },
    /// Device memory is not for software to pin.
    #[error("the area {area} is device memory")]
    Device {
        /// The area.
        area: IovaRange,
    },
    /// The area does not grant what is asked for.
    #[error("the area {area} does not grant that")]
    Rights {
        /// The area.
        area: IovaRange,
    },
    /// The access has not pinned exactly this range.
    #[error("{range} is not pinned by this access")]
    NotPinned {
        /// The IOVA.
        range: IovaRange,
    },
    /// The pages cannot be pinned.
    #[error(transparent)]
    Hold(#[from] HoldError),
    /// The memory cannot be read or written.
    #[error(transparent)]
    Memory(#[from] crate::pin::PinError),
    /// The access is detached.
    #[error("the access is detached")]
    Detached,
}

/// Why rights were not changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProtectError {
    /// The range does not consist of whole areas, or one of them is busy.
    #[error(transparent)]
    Areas(#[from] UnmapError),
    /// The pages do not allow these rights, or an access relies on the ones there are.
    #[error("the area {area} cannot have these rights")]
    Rights {
        /// The area.
        area: IovaRange,
    },
    /// A domain refuses, or its hardware does not confirm the change. All areas have the old rights.
    #[error("a domain refuses new rights of {area}: {error}")]
    Domain {
        /// The area.
        area: IovaRange,
        /// Why.
        #[source]
        error: DomainError,
    },
}

/// Why a range was not reserved.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ReserveError {
    /// The user may rely on a byte of it.
    #[error("{range} meets {with}, which is allowed")]
    Allowed {
        /// The range to be reserved.
        range: IovaRange,
        /// What is allowed.
        with: IovaRange,
    },
    /// An area lies there.
    #[error("{range} meets the area {with}")]
    Occupied {
        /// The range to be reserved.
        range: IovaRange,
        /// The area.
        with: IovaRange,
    },
    /// No memory to note it.
    #[error("no memory for another reservation")]
    OutOfMemory,
}

/// Why an option of an address space was not changed.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum OptionError {
    /// Areas are mapped to domains already.
    #[error("areas are mapped already")]
    InUse,
    /// An area is not made of whole pages.
    #[error("the area {area} is not made of whole pages")]
    Unaligned {
        /// The area.
        area: IovaRange,
    },
}

/// Why nothing was copied.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CopyError {
    /// Nothing is mapped at an address of what is to be copied, or not any more.
    #[error("nothing is mapped at {iova}")]
    Hole {
        /// The address.
        iova: Iova,
    },
    /// It cannot be mapped where it should be.
    #[error(transparent)]
    Map(#[from] MapError),
}

/// Why an area was not divided.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SplitError {
    /// Nothing is mapped at the address.
    #[error("nothing is mapped at {iova}")]
    Hole {
        /// The address.
        iova: Iova,
    },
    /// The area is made or unmapped at this moment, or an access has pinned a part of it.
    #[error("the area {area} is busy")]
    Busy {
        /// The area.
        area: IovaRange,
    },
    /// The parts would not be aligned to what the domains demand.
    #[error("{iova} is not aligned to {alignment:#x}")]
    Unaligned {
        /// Where the area should be divided.
        iova: Iova,
        /// What the domains demand, in bytes.
        alignment: u64,
    },
    /// A domain cannot cut a large page there.
    #[error("a domain cannot be cut at {iova}: {error}")]
    Domain {
        /// Where the area should be divided.
        iova: Iova,
        /// Why.
        #[source]
        error: DomainError,
    },
    /// No memory to note who uses which pages.
    #[error(transparent)]
    Hold(#[from] HoldError),
}

/// Why nothing was moved.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RemapError {
    /// The areas have different rights, of which a moved range has one.
    #[error("the areas of {range} have different rights")]
    Mixed {
        /// The range.
        range: IovaRange,
    },
    /// They cannot be mapped at the new place.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// They cannot be unmapped at the old place.
    #[error(transparent)]
    Unmap(#[from] UnmapError),
}

/// Why revoked memory may still be reached.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RevokeError {
    /// An area is made or unmapped at this moment: try again.
    #[error("the area {area} is busy")]
    Busy {
        /// The area.
        area: IovaRange,
    },
    /// A domain did not remove its translations, or the hardware did not confirm it: the area is
    /// quarantined.
    #[error(transparent)]
    Domain(#[from] DomainError),
    /// No memory to list the areas.
    #[error("no memory to list the areas")]
    OutOfMemory,
}

/// Why it is not known what devices wrote to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DirtyError {
    /// The address space has no such domain.
    #[error("the domain is not attached")]
    NotAttached,
    /// It does not track that at this time.
    #[error("the domain does not track what devices write to")]
    NotTracking,
    /// Nothing is mapped at an address of the range; what lies below was looked through.
    #[error("nothing is mapped at {iova}")]
    Hole {
        /// The address.
        iova: Iova,
    },
    /// No memory to list the areas.
    #[error("no memory to list the areas of a range")]
    OutOfMemory,
    /// The domain fails.
    #[error(transparent)]
    Domain(#[from] DomainError),
}

/// Why a doorbell was not mapped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MsiError {
    /// The window cannot be reserved.
    #[error(transparent)]
    Reserve(ReserveError),
    /// Doorbells are mapped in the window there is.
    #[error("doorbells are mapped in the window already")]
    InUse,
    /// There is no window.
    #[error("the address space has no window for doorbells")]
    NoWindow,
    /// The window has no page left.
    #[error("the window {window} has no page left")]
    Full {
        /// The window.
        window: IovaRange,
    },
    /// The address space has no such domain.
    #[error("the domain is not attached")]
    NotAttached,
    /// No memory to note it.
    #[error("no memory for another doorbell")]
    OutOfMemory,
    /// The domain cannot map it.
    #[error(transparent)]
    Domain(DomainError),
}

/// An access was asked to let go many times, and did not.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the access does not let go of what it has pinned")]
pub struct LetGoError;

/// Why an access was not destroyed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DestroyError {
    /// Its own callback, on this thread, wants to destroy it.
    #[error("an access cannot be destroyed by its own callback")]
    InsideCallback {
        /// The access, as it was.
        access: crate::ioas::Access,
    },
    /// A callback does not end.
    #[error("a callback of the access does not end")]
    Stuck {
        /// The access, as it was.
        access: crate::ioas::Access,
    },
}
