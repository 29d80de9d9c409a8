//! The number of a domain in the device: who has it moves endpoints there.

use alloc::sync::Arc;
use core::fmt;

use iopt_formats::IovaRange;
use iopt_formats::command::virtio::{Request, feature};

use crate::domain::virtio::requests::Work;
use crate::domain::virtio::{EndpointError, NumberError, RequestError, Transport, VirtioIommu};

/// A domain of the device, whatever it makes of addresses. Its number is in use until this is dropped and the last
/// endpoint has left.
pub(crate) struct Place<T: Transport> {
    device: Arc<VirtioIommu<T>>,
    number: u32,
    is_bypass: bool,
}

/// Where the device has an endpoint.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Whereabouts {
    /// In no domain.
    Nowhere,
    /// In the domain of this number.
    In(u32),
    /// Requests came to nobody knows what.
    Unknown,
}

impl<T: Transport> Place<T> {
    /// Takes a number that nobody has.
    pub(crate) fn new(device: Arc<VirtioIommu<T>>, number: u32) -> Result<Self, NumberError> {
        let (first, last) = device.numbers();
        if !(first..=last).contains(&number) {
            return Err(NumberError::OutOfRange { first, last });
        }
        let mut state = device.lock();
        if state.member(number).is_some() {
            return Err(NumberError::InUse);
        }
        if !state.add(number) {
            return Err(NumberError::OutOfMemory);
        }
        drop(state);
        Ok(Self {
            device,
            number,
            is_bypass: false,
        })
    }

    /// Takes whatever number is free.
    pub(crate) fn anywhere(device: Arc<VirtioIommu<T>>) -> Result<Self, NumberError> {
        let (first, last) = device.numbers();
        let mut state = device.lock();
        let Some(number) = state.free_number(first, last) else {
            return Err(NumberError::AllInUse { first, last });
        };
        if !state.add(number) {
            return Err(NumberError::OutOfMemory);
        }
        drop(state);
        Ok(Self {
            device,
            number,
            is_bypass: false,
        })
    }

    /// Takes a number for a domain in which addresses pass as they are; without the feature `BYPASS_CONFIG` there
    /// is none.
    pub(crate) fn bypass(device: &Arc<VirtioIommu<T>>) -> Result<Option<Self>, NumberError> {
        if !device.has_feature(feature::BYPASS_CONFIG) {
            return Ok(None);
        }
        let mut place = Self::anywhere(Arc::clone(device))?;
        place.is_bypass = true;
        Ok(Some(place))
    }

    pub(crate) const fn device(&self) -> &Arc<VirtioIommu<T>> {
        &self.device
    }

    pub(crate) const fn number(&self) -> u32 {
        self.number
    }

    /// Keeps room for endpoints, and `reserved` free of mappings, until the result is dropped.
    ///
    /// # Errors
    ///
    /// [`EndpointError::Reserved`] if there is a mapping, [`EndpointError::OutOfMemory`].
    pub(crate) fn book(
        &self,
        seat_count: usize,
        reserved: &[IovaRange],
    ) -> Result<Booking<T>, EndpointError> {
        let mut state = self.device.lock();
        let ticket = state.new_ticket();
        let member = state
            .member(self.number)
            .ok_or(EndpointError::OutOfMemory)?;
        for &range in reserved {
            if let Some(mapping) = member.mappings.first_wanted(range) {
                return Err(EndpointError::Reserved { mapping });
            }
        }
        if !member.book(ticket, seat_count, reserved) {
            return Err(EndpointError::OutOfMemory);
        }
        drop(state);
        Ok(Booking {
            device: Arc::clone(&self.device),
            number: self.number,
            ticket,
        })
    }

    /// Moves an endpoint to this domain.
    ///
    /// # Errors
    ///
    /// [`EndpointError::Attached`] if it is, or may be, here; unless it `may_be_here`: then the device is told
    /// once more. [`EndpointError::OutOfMemory`], or what the device says.
    pub(crate) fn attach(&self, endpoint: u32, may_be_here: bool) -> Result<(), EndpointError> {
        let _moving = self.device.lock_endpoints();
        let (domain, mut has_room, mut is_attached, mut is_first) =
            (self.number, true, false, true);
        if let Some(member) = self.device.lock().member(domain) {
            // The seat of one whose answer never came may be another one's than it was booked for.
            has_room = member.make_room(2);
            is_attached = member.seat(endpoint).is_some();
            is_first = !member.is_live();
        }
        if is_attached && !may_be_here {
            return Err(EndpointError::Attached);
        }
        if !has_room {
            return Err(EndpointError::OutOfMemory);
        }
        if is_first {
            // What was for the domain that went must not meet the one that comes.
            let is_over = self
                .device
                .wait_until(|state| !state.requests.has_any_of(domain));
            is_over?;
        }
        let request = Request::Attach {
            domain,
            endpoint,
            is_bypass: self.is_bypass,
        };
        let work = Work::Attach { domain, endpoint };
        self.device.call(&request, work)?;
        Ok(())
    }
}

impl<T: Transport> VirtioIommu<T> {
    /// Returns where an endpoint is, as far as the device has said.
    pub(crate) fn whereabouts(&self, endpoint: u32) -> Whereabouts {
        self.lock().whereabouts(endpoint)
    }

    /// Takes an endpoint out of a domain.
    pub(crate) fn detach(&self, domain: u32, endpoint: u32) -> Result<(), RequestError> {
        let _moving = self.lock_endpoints();
        let work = Work::Detach { domain, endpoint };
        let request = Request::Detach { domain, endpoint };
        self.call(&request, work).map(|_| ())
    }
}

impl<T: Transport> Drop for Place<T> {
    fn drop(&mut self) {
        let mut state = self.device.lock();
        if let Some(member) = state.member(self.number) {
            member.is_dropped = true;
        }
        state.tidy();
    }
}

impl<T: Transport> fmt::Debug for Place<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Place")
            .field("number", &self.number)
            .field("is_bypass", &self.is_bypass)
            .finish_non_exhaustive()
    }
}

/// Room for endpoints in a domain, and ranges that nobody maps there.
pub(crate) struct Booking<T: Transport> {
    device: Arc<VirtioIommu<T>>,
    number: u32,
    ticket: u64,
}

impl<T: Transport> Drop for Booking<T> {
    fn drop(&mut self) {
        if let Some(member) = self.device.lock().member(self.number) {
            member.unbook(self.ticket);
        }
    }
}
