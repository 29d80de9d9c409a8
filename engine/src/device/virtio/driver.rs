//! The driver of all virtio-iommu devices behind transports of one kind.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::any::Any;
use core::fmt;
use core::marker::PhantomData;

use iopt_formats::command::virtio::Property;

use crate::device::virtio::{ReservedRegion, VirtioEndpoint, VirtioHwpt, VirtioUnit};
use crate::device::{
    DefaultKind, Driver, Endpoint, Hwpt, NewDomainError, ProbeError, ProbeRequest,
};
use crate::domain::virtio::{
    EndpointError, NumberError, RequestError, Transport, VirtioDomain, Whereabouts,
};

/// Drives virtio-iommu devices that were registered with it as a [`VirtioUnit`].
pub struct VirtioDriver<T>(PhantomData<fn() -> T>);

/// Why a device is not taken in.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProbeFailure {
    /// Requests arrive at several virtio-iommu devices, which have no domain in common.
    #[error("the device is behind {count} virtio-iommu devices")]
    Several {
        /// How many.
        count: usize,
    },
    /// An endpoint cannot be asked about, or blocked.
    #[error("endpoint {id} cannot be taken in: {error}")]
    Endpoint {
        /// The endpoint.
        id: u32,
        /// Why.
        #[source]
        error: EndpointError,
    },
    /// No memory for its seats.
    #[error("no memory for the device's endpoints")]
    OutOfMemory,
}

impl<T: Transport + 'static> VirtioDriver<T> {
    /// Creates a driver.
    pub fn new() -> Arc<Self> {
        Arc::new(Self(PhantomData))
    }
}

/// Says what the registry has to know of an endpoint that cannot be taken in.
fn refusal(id: u32, error: EndpointError) -> ProbeError {
    match error {
        EndpointError::Request(RequestError::TimedOut) => {
            ProbeError::Fatal(Box::new(ProbeFailure::Endpoint { id, error }))
        }
        error => failed(ProbeFailure::Endpoint { id, error }),
    }
}

fn failed(failure: ProbeFailure) -> ProbeError {
    ProbeError::Failed(Box::new(failure))
}

/// Asks what is reserved for an endpoint.
fn regions<T: Transport>(
    unit: &VirtioUnit<T>,
    id: u32,
    regions: &mut Vec<ReservedRegion>,
) -> Result<(), EndpointError> {
    for property in unit.device().probe(id)? {
        if let Property::ReservedMemory { subtype, range } = property {
            let region = ReservedRegion { range, subtype };
            if !regions.contains(&region) {
                regions.push(region);
            }
        }
    }
    Ok(())
}

/// Blocks an endpoint, of which is only known what was said before it came.
fn block<T: Transport>(unit: &VirtioUnit<T>, id: u32) -> Result<(), EndpointError> {
    let is_idle = unit.device().whereabouts(id) == Whereabouts::Nowhere;
    if is_idle && unit.blocks_idle() {
        return Ok(());
    }
    // Another one may have had the ID, and left without a word.
    unit.evict(id)
}

impl<T: Transport + 'static> Driver for VirtioDriver<T> {
    fn probe(&self, request: &ProbeRequest<'_>) -> Result<Arc<dyn Endpoint>, ProbeError> {
        let count = request.instance_count();
        if count > 1 {
            return Err(failed(ProbeFailure::Several { count }));
        }
        let ids = request.ids(0);
        let unit = request.instance::<VirtioUnit<T>>(0);
        let unit = unit.filter(|_| !ids.is_empty());
        let unit = unit.ok_or(ProbeError::NotMine)?;
        let seats = unit.book(ids.len());
        let seats = seats.map_err(|_| failed(ProbeFailure::OutOfMemory))?;
        let mut known = Vec::new();
        let mut reserved = Vec::new();
        for &id in ids {
            let taken = regions(&unit, id, &mut reserved).and_then(|()| block(&unit, id));
            match taken {
                Ok(()) => known.push(id),
                Err(EndpointError::Request(RequestError::NoEntry)) => {}
                Err(error) => return Err(refusal(id, error)),
            }
        }
        if known.is_empty() {
            return Err(ProbeError::NotMine);
        }
        let endpoint = VirtioEndpoint::new(request.address(), unit, known, reserved, seats);
        Ok(Arc::new(endpoint))
    }

    fn new_domain(
        &self,
        kind: DefaultKind,
        endpoints: &[Arc<dyn Endpoint>],
    ) -> Result<Arc<dyn Hwpt>, NewDomainError> {
        let mut units: Vec<&Arc<VirtioUnit<T>>> = Vec::new();
        for endpoint in endpoints {
            let any: &dyn Any = &**endpoint;
            let endpoint: Option<&VirtioEndpoint<T>> = any.downcast_ref();
            units.push(endpoint.ok_or(NewDomainError::Unsupported)?.unit());
        }
        if kind == DefaultKind::Identity {
            let have_identity = units.iter().all(|unit| unit.has_identity());
            return if have_identity {
                Ok(Arc::new(VirtioHwpt::<T>::identity()))
            } else {
                Err(NewDomainError::Unsupported)
            };
        }
        let Some((first, others)) = units.split_first() else {
            return Err(NewDomainError::Unsupported);
        };
        let is_same = |other: &&Arc<VirtioUnit<T>>| Arc::ptr_eq(first.device(), other.device());
        if !others.iter().all(is_same) {
            return Err(NewDomainError::Unsupported);
        }
        let domain = VirtioDomain::with_any_number(Arc::clone(first.device()));
        let domain = domain.map_err(|error| match error {
            NumberError::AllInUse { .. } | NumberError::OutOfMemory => NewDomainError::Exhausted,
            error => NewDomainError::Other(Box::new(error)),
        })?;
        Ok(Arc::new(VirtioHwpt::paging(Arc::new(domain))))
    }
}

impl<T> fmt::Debug for VirtioDriver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("VirtioDriver")
    }
}
