//! Translations that a virtio-iommu device keeps (*VIRTIO 1.3*, section 5.13).
//!
//! ```text
//!   Ioas -- VirtioDomain -- mappings: what should be there, and what the device has of it
//!               `-- VirtioIommu -- requests under way -- Transport -- the device
//! ```
//!
//! A [`VirtioIommu`] is the device with its request queue, a [`VirtioDomain`] one domain of it, to be attached to
//! an address space like any other. Requests go out one behind the other without a word; the device is told
//! of them, and waited for, only at the end of a batch of maps, at a sync, and where the queue is full.
//!
//! # What goes as it came
//!
//! One run of an address space is one `MAP`. The device refuses an `UNMAP` that divides a mapping, and the
//! domain asks for none: areas are unmapped whole. A change in place does not exist either, so that other rights
//! ([`protect`](crate::ioas::Ioas::protect)) and the division of a mapping
//! ([`split`](crate::ioas::Ioas::split), [`cut`](crate::ioas::Ioas::cut)) are an `UNMAP` and new `MAP`s, between
//! which devices fault. That is refused unless
//! [allowed](VirtioDomain::with_fault_window). An address space that maps
//! [page by page](crate::ioas::Ioas::set_page_by_page) is split without.
//!
//! # Endpoints
//!
//! The device drops a domain with its last endpoint, and all mappings with it. So what should be mapped is
//! kept here: while there is no endpoint nothing is sent, and the first one that is
//! [attached](VirtioDomain::attach) gets everything, in one batch. An endpoint that another domain of
//! the device attaches leaves this one.
//!
//! # When the device fails
//!
//! - A `MAP` that is refused ends its batch: what the device took behind it is unmapped again.
//! - An `UNMAP` that is refused is sent once more by the sync that waits for it, and by each that is tried later;
//!   until it succeeds, the sync is [`NotFlushed`](crate::domain::NotFlushed) and the mapping in the way.
//! - A request that is not answered in time may yet be carried out. Nothing new is sent then until all
//!   is answered or the device [was reset](VirtioIommu::was_reset); syncs of what it concerns fail.
//!
//! Statuses that leave open what the device did (`IOERR`, `DEVERR`, none at all) count as if it had
//! mapped, or had not unmapped; an endpoint that may have moved counts as here and there. `NOENT` for an `UNMAP` is success: without its domain a mapping is gone.
//!
//! # Invariants
//!
//! - **V1**: of two requests under way that concern one address, both are `UNMAP`s: the device may carry
//!   requests out in any order. The sync that frees an address waits for all of them.
//! - **V2**: whoever collects an answer notes it in the mappings, under the same lock; the others see it there.
//! - **V3**: a mapping that is replaced is marked as busy until it stands in the list as it should be, and
//!   nobody sends it before.
//! - **V4**: a mapping that was ended stays in the list until the device does not have it.
//! - **V5**: one request at a time is under way *for* a mapping, and only its answer says what became of it. An
//!   `UNMAP` is sent for at least one mapping. What else is between its ends is of the same grant, and
//!   whoever has that waits for the answer: an `UNMAP` without a grant is for one mapping, from end to end.
//! - **V6**: one `ATTACH` or `DETACH` is under way at a time, so that endpoints are noted where the last one put
//!   them. Nothing is sent behind one that is late.
//! - **V7**: an endpoint is noted in each domain where the device may have it. Only while a domain has none does it
//!   count as dropped, with all that was mapped.

mod device;
mod domain;
mod error;
mod mappings;
mod member;
mod place;
mod requests;
mod transport;

use alloc::sync::Arc;
use core::fmt;

use iopt_formats::{IovaRange, PageSize};

use crate::radix::FaultWindow;

pub(crate) use crate::domain::virtio::place::{Booking, Place, Whereabouts};

pub use crate::domain::virtio::device::VirtioIommu;
pub use crate::domain::virtio::error::{EndpointError, NumberError, RequestError, VirtioError};
pub use crate::domain::virtio::transport::Transport;

/// One domain of a virtio-iommu device; see the [module](self).
///
/// Its number is in use until it is dropped and the last endpoint has left.
pub struct VirtioDomain<T: Transport> {
    place: Place<T>,
    needs_pinned: bool,
    fault_window: FaultWindow,
}

impl<T: Transport> VirtioDomain<T> {
    /// Creates a domain without endpoints, for pages that stay where they are.
    ///
    /// # Errors
    ///
    /// [`NumberError`] if the device takes no domain of this number, or there is one.
    pub fn new(device: Arc<VirtioIommu<T>>, number: u32) -> Result<Self, NumberError> {
        Place::new(device, number).map(Self::at)
    }

    /// Creates a domain whose number the device has free, otherwise as [`new`](Self::new) does.
    ///
    /// # Errors
    ///
    /// [`NumberError`].
    pub fn with_any_number(device: Arc<VirtioIommu<T>>) -> Result<Self, NumberError> {
        Place::anywhere(device).map(Self::at)
    }

    const fn at(place: Place<T>) -> Self {
        Self {
            place,
            needs_pinned: true,
            fault_window: FaultWindow::Refuse,
        }
    }

    /// Says that pages may move while they are mapped: endpoints are emulated, or fault.
    #[must_use]
    pub fn without_pins(mut self) -> Self {
        self.needs_pinned = false;
        self
    }

    /// Says whether endpoints may meet nothing for a moment where a mapping is replaced. By default they
    /// may not, and it is refused.
    #[must_use]
    pub fn with_fault_window(mut self, fault_window: FaultWindow) -> Self {
        self.fault_window = fault_window;
        self
    }

    /// Returns the device.
    pub const fn device(&self) -> &Arc<VirtioIommu<T>> {
        self.place.device()
    }

    pub(crate) const fn place(&self) -> &Place<T> {
        &self.place
    }

    /// Returns the number of the domain in the device.
    pub const fn number(&self) -> u32 {
        self.place.number()
    }

    /// Moves an endpoint to this domain, and waits until it translates all that is mapped. Meanwhile the
    /// endpoint faults.
    ///
    /// # Errors
    ///
    /// [`EndpointError`]; the endpoint stays where it is, unless it is [`EndpointError::Fill`], or a
    /// [`RequestError`] that leaves open what the device did, after which it counts as attached to both.
    #[doc(alias = "VIRTIO_IOMMU_T_ATTACH")]
    pub fn attach(&self, endpoint: u32) -> Result<(), EndpointError> {
        self.place.attach(endpoint, false)?;
        self.refill()
    }

    /// Takes an endpoint out of this domain: it faults, or passes untranslated where the device is
    /// configured so. With the last one, the device drops what is mapped.
    ///
    /// # Errors
    ///
    /// [`RequestError`]; the endpoint counts as attached then.
    #[doc(alias = "VIRTIO_IOMMU_T_DETACH")]
    pub fn detach(&self, endpoint: u32) -> Result<(), RequestError> {
        self.device().detach(self.number(), endpoint)
    }

    /// Returns the number of endpoints that are attached.
    pub fn endpoint_count(&self) -> usize {
        let mut state = self.device().lock();
        state
            .member(self.number())
            .map_or(0, |member| member.endpoint_count())
    }

    /// Sends what should be mapped and is not, because the device refused it or did not answer.
    ///
    /// # Errors
    ///
    /// [`EndpointError::Fill`] with the first mapping that the device did not take, or a
    /// [`RequestError::TimedOut`].
    pub fn refill(&self) -> Result<(), EndpointError> {
        // What is left of them is found below.
        let _ = self.withdraw_doubtful();
        let sent = self.device().fill(self.number(), IovaRange::FULL);
        let settled = self.device().settle(self.number(), IovaRange::FULL);
        // Others map meanwhile: what the device has said nothing of is theirs.
        match self.first_failed(IovaRange::FULL, None) {
            Some((mapping, error)) => Err(EndpointError::Fill { mapping, error }),
            None => Ok(sent.and(settled)?),
        }
    }

    /// Returns the first mapping of `range` that the device should have and has not, and why: `silence` where the
    /// device has not said, or if there is none only those of which it has.
    fn first_failed(
        &self,
        range: IovaRange,
        silence: Option<RequestError>,
    ) -> Option<(IovaRange, RequestError)> {
        let mut state = self.device().lock();
        let member = state.member(self.number())?;
        if !member.is_live() {
            return None;
        }
        let mut wanted = member.mappings.in_range(range);
        wanted.find_map(|(range, mapping)| {
            let error = mapping.error.or(silence)?;
            // Whoever replaces a mapping sends it.
            let is_wanted = mapping.ticket.is_none() && mapping.busy_count == 0;
            (is_wanted && !mapping.is_there()).then_some((range, error))
        })
    }

    /// Returns the smallest page, of which everything mapped is a multiple.
    fn granule(&self) -> PageSize {
        let sizes = self.device().config().page_sizes;
        sizes.smallest().unwrap_or(PageSize::KIB_4)
    }
}

impl<T: Transport> fmt::Debug for VirtioDomain<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtioDomain")
            .field("number", &self.number())
            .finish_non_exhaustive()
    }
}
