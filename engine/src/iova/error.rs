//! Why there is no allocator, and why it gives nothing.

use iopt_formats::{Iova, IovaRange, PageSize};

use crate::claim::ClaimError;
use crate::intervals::reservations::AllowError;
use crate::radix::MapperError;

/// Why no [`IovaSpace`](crate::iova::IovaSpace) is made.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum IovaSpaceError {
    /// The aperture spans more than 2^18 times the range of one table of the second level: 256 TiB
    /// for a granule of 4 KiB, 4 PiB for 16 KiB, 64 PiB for 64 KiB.
    #[error("the aperture {aperture} is too wide for a granule of {granule}")]
    TooWide {
        /// The aperture asked for.
        aperture: IovaRange,
        /// The granule of the table.
        granule: PageSize,
    },
    /// No page lies wholly in the aperture and in no reserved range.
    #[error("no page of the aperture {aperture} may be used")]
    Empty {
        /// The aperture asked for.
        aperture: IovaRange,
    },
    /// A part of it is claimed by somebody else.
    #[error(transparent)]
    Claimed(#[from] ClaimError),
    /// The table cannot translate a part of it.
    #[error(transparent)]
    OutOfReach(#[from] MapperError),
    /// There is no memory for the allocator's own data.
    #[error("no memory for the allocator's own data")]
    OutOfMemory,
}

/// Why a configuration refuses a range. It stays as it was.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum IovaConfigError {
    /// A reservation shares a byte with an allowed range.
    #[error("the range {range} overlaps {with}, which is allowed")]
    Allowed {
        /// The range to be reserved.
        range: IovaRange,
        /// The lowest allowed range that it overlaps.
        with: IovaRange,
    },
    /// The list of allowed ranges is refused.
    #[error(transparent)]
    Allow(#[from] AllowError),
    /// There is no memory.
    #[error("no memory for another reserved range")]
    OutOfMemory,
}

/// Why no IOVA is allocated.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum IovaError {
    /// The request is for nothing.
    #[error("an allocation of no bytes")]
    Empty,
    /// No free run is long enough, or none at such an address. Nothing was overlooked that was free all
    /// the time, unless other threads kept moving free ranges during 128 searches.
    #[error(
        "no free run of {len:#x} bytes aligned to {align:#x} up to {limit}: {free_len:#x} bytes are free, \
         {largest_len:#x} in the largest run"
    )]
    Exhausted {
        /// Bytes asked for.
        len: u64,
        /// What the first address had to be a multiple of, in bytes.
        align: u64,
        /// The last address that was allowed.
        limit: Iova,
        /// Bytes free up to the limit.
        free_len: u64,
        /// Bytes of the longest run of free ones up to the limit, whatever its alignment. If it is long
        /// enough, it lies wrong: over the end of a chunk or a block, or between multiples of the
        /// alignment.
        largest_len: u64,
    },
    /// There is no memory for the allocator's own data.
    #[error("no memory for the allocator's own data")]
    OutOfMemory,
}
