//! What an allocator may give out, and in which order.

use iopt_formats::{Iova, IovaRange, PageSize};

use crate::intervals::reservations::{Reservations, ReserveError};
use crate::iova::error::IovaConfigError;

/// How an [`IovaSpace`](crate::iova::IovaSpace) is set up.
#[derive(Debug)]
pub struct IovaConfig {
    pub(super) aperture: IovaRange,
    pub(super) reservations: Reservations<()>,
    pub(super) is_low_first: bool,
}

impl IovaConfig {
    /// Creates a configuration that gives out the whole of `aperture`, below 4 GiB first. Leave address 0
    /// out of it, or reserve it, for devices that take it for none.
    pub const fn new(aperture: IovaRange) -> Self {
        Self {
            aperture,
            reservations: Reservations::new(),
            is_low_first: true,
        }
    }

    /// Keeps a range out, such as a window of message-signalled interrupts. Ranges may overlap.
    ///
    /// # Errors
    ///
    /// [`IovaConfigError`]; nothing has changed then.
    pub fn reserve(&mut self, range: IovaRange) -> Result<(), IovaConfigError> {
        self.reservations
            .reserve(range, ())
            .map_err(|error| match error {
                ReserveError::Allowed { range, with } => IovaConfigError::Allowed { range, with },
                ReserveError::OutOfMemory(_) => IovaConfigError::OutOfMemory,
            })
    }

    /// Keeps everything out but these ranges, as far as they lie in the aperture. An empty list allows
    /// everything.
    ///
    /// # Errors
    ///
    /// [`IovaConfigError`]; the old list stays.
    pub fn allow(&mut self, ranges: &[IovaRange]) -> Result<(), IovaConfigError> {
        Ok(self.reservations.set_allowed(ranges)?)
    }

    /// Says whether addresses below 4 GiB are given out first, and those above when nothing is left
    /// there (the default: devices on old buses take them faster), or last, so that they are left for
    /// devices that reach no others.
    #[must_use]
    pub fn with_low_first(self, is_low_first: bool) -> Self {
        Self {
            is_low_first,
            ..self
        }
    }
}

/// What is asked for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct IovaRequest {
    pub(super) len: u64,
    pub(super) alignment: Option<PageSize>,
    pub(super) limit: Iova,
}

impl IovaRequest {
    /// Asks for `len` bytes, rounded up to the granule, at a multiple of that, rounded up to a power of two,
    /// anywhere.
    #[inline]
    pub const fn new(len: u64) -> Self {
        Self {
            len,
            alignment: None,
            limit: Iova::new(u64::MAX),
        }
    }

    /// Asks for a multiple of `alignment`; below the granule it is the granule.
    #[must_use]
    #[inline]
    pub const fn with_alignment(self, alignment: PageSize) -> Self {
        Self {
            alignment: Some(alignment),
            ..self
        }
    }

    /// Asks for nothing above `limit`: the DMA mask of a device.
    #[must_use]
    #[inline]
    pub const fn with_limit(self, limit: Iova) -> Self {
        Self { limit, ..self }
    }

    /// Returns whether any page of that size would do.
    #[inline]
    pub(super) fn is_one(&self, granule: PageSize) -> bool {
        // No bytes are a request for nothing.
        self.len.wrapping_sub(1) < granule.bytes()
            && self.alignment.is_none_or(|alignment| alignment <= granule)
    }
}
