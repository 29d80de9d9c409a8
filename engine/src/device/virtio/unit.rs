//! A virtio-iommu with the domains that all of its endpoints may need.

use alloc::sync::Arc;
use core::fmt;

use crate::domain::virtio::{
    Booking, EndpointError, NumberError, Place, RequestError, Transport, VirtioIommu, Whereabouts,
};

/// An instance: what its user registers with a [`VirtioDriver`](crate::device::virtio::VirtioDriver).
///
/// After the device [was reset](VirtioIommu::was_reset) no endpoint is in a domain, so all are blocked (or, at a device
/// that passes those, are not). Each comes back when something is attached to it again, as at the end of a
/// [reset](crate::device::DeviceGuard::begin_reset) of its own.
pub struct VirtioUnit<T: Transport> {
    device: Arc<VirtioIommu<T>>,
    /// Where nothing is mapped.
    blocked: Place<T>,
    /// Where everything passes, if the device has that.
    bypass: Option<Place<T>>,
    /// Whether endpoints in no domain are blocked.
    blocks_idle: bool,
}

/// Seats for the endpoints of one device in the domains of a unit.
pub(super) struct Seats<T: Transport> {
    _blocked: Booking<T>,
    _bypass: Option<Booking<T>>,
}

impl<T: Transport> VirtioUnit<T> {
    /// Sees to it that endpoints in no domain are blocked, and takes a number for an empty domain and, if the
    /// device has those, one in which everything passes. The device has two domains less for others.
    ///
    /// Where the device passes endpoints in no domain and cannot be told otherwise, they do until the driver
    /// takes them in.
    ///
    /// # Errors
    ///
    /// [`NumberError`].
    pub fn new(device: Arc<VirtioIommu<T>>) -> Result<Arc<Self>, NumberError> {
        let blocked = Place::anywhere(Arc::clone(&device))?;
        let bypass = Place::bypass(&device)?;
        let blocks_idle = device.block_idle();
        Ok(Arc::new(Self {
            device,
            blocked,
            bypass,
            blocks_idle,
        }))
    }

    /// Returns the device.
    pub const fn device(&self) -> &Arc<VirtioIommu<T>> {
        &self.device
    }

    /// Returns whether endpoints in no domain are blocked, rather than passed untranslated.
    pub const fn blocks_idle(&self) -> bool {
        self.blocks_idle
    }

    /// Returns whether it has domains in which everything passes.
    pub const fn has_identity(&self) -> bool {
        self.bypass.is_some()
    }

    pub(super) const fn bypass(&self) -> Option<&Place<T>> {
        self.bypass.as_ref()
    }

    /// Keeps seats for so many endpoints.
    pub(super) fn book(&self, count: usize) -> Result<Seats<T>, EndpointError> {
        let bypass = self.bypass.as_ref();
        Ok(Seats {
            _blocked: self.blocked.book(count, &[])?,
            _bypass: bypass.map(|place| place.book(count, &[])).transpose()?,
        })
    }

    /// Blocks an endpoint, wherever it is. Allocates nothing for one with a seat.
    pub(super) fn isolate(&self, endpoint: u32) -> Result<(), EndpointError> {
        match self.device.whereabouts(endpoint) {
            Whereabouts::In(number) if number == self.blocked.number() => return Ok(()),
            Whereabouts::Nowhere if self.blocks_idle => return Ok(()),
            Whereabouts::In(number)
                if self.blocks_idle && self.device.detach(number, endpoint).is_ok() =>
            {
                return Ok(());
            }
            _ => {}
        }
        match self.evict(endpoint) {
            // It left the device, and should it come back it is in no domain.
            Err(EndpointError::Request(RequestError::NoEntry)) => Ok(()),
            result => result,
        }
    }

    /// Moves an endpoint to the empty domain, even if it should be there.
    pub(super) fn evict(&self, endpoint: u32) -> Result<(), EndpointError> {
        self.blocked.attach(endpoint, true)
    }
}

impl<T: Transport> fmt::Debug for VirtioUnit<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtioUnit")
            .field("device", &self.device)
            .field("blocked", &self.blocked)
            .field("bypass", &self.bypass)
            .field("blocks_idle", &self.blocks_idle)
            .finish()
    }
}
