//! The driver of all instances of one architecture with memory and queues of one kind.

use alloc::borrow::Cow;
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::any::Any;
use core::fmt;

use crate::device::context::{Architecture, Arrival, HardwareDomain, HardwareEndpoint, Target};
use crate::device::{
    DefaultKind, DeviceControl, Driver, Endpoint, Hwpt, Identity, NewDomainError, ProbeError,
    ProbeRequest,
};

/// Drives instances that were registered with it as an [`Architecture::Unit`].
pub struct HardwareDriver<A: Architecture> {
    memory: Arc<A::Memory>,
    control: Arc<dyn DeviceControl>,
}

/// An instance, and under which IDs it sees the device.
type Seen<'a, A> = (Arc<<A as Architecture>::Unit>, Cow<'a, [u32]>);

/// The device has no instance.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("no instance is given for the device")]
struct NoInstance;

impl<A: Architecture> HardwareDriver<A> {
    /// Creates a driver that takes the tables of domains from `memory`, and asks `control` about devices.
    pub fn new(memory: Arc<A::Memory>, control: Arc<dyn DeviceControl>) -> Arc<Self> {
        Arc::new(Self { memory, control })
    }
}

impl<A: Architecture> Driver for HardwareDriver<A> {
    fn probe(&self, request: &ProbeRequest<'_>) -> Result<Arc<dyn Endpoint>, ProbeError> {
        let mut units: Vec<Seen<'_, A>> = Vec::new();
        for index in 0..request.instance_count() {
            let unit: Arc<A::Unit> = request.instance(index).ok_or(ProbeError::NotMine)?;
            let ids = match request.identity(index) {
                Some(Identity::Anonymous(_)) => A::own_ids(&unit, request.address()).into(),
                _ => Cow::Borrowed(request.ids(index)),
            };
            if ids.is_empty() {
                return Err(ProbeError::NotMine);
            }
            units.push((unit, ids));
        }
        if units.is_empty() {
            return Err(ProbeError::Failed(Box::new(NoInstance)));
        }
        let device = request.device();
        let can_ats = units.iter().all(|(unit, _)| A::has_ats(unit))
            && !device.is_untrusted
            && self.control.has_ats(device.address);
        let widths = units.iter().map(|(unit, _)| A::pasid_bits(unit));
        let pasid_bits = widths.chain([device.pasid_bits]).min().unwrap_or(0);
        let mut at = Vec::new();
        for (unit, ids) in units {
            let arrival = Arrival {
                device,
                ids: &ids,
                pasid_bits,
                control: &*self.control,
            };
            let port = A::port(&unit, &arrival);
            let port = port.map_err(|error| ProbeError::Failed(Box::new(error)))?;
            at.push((unit, port));
        }
        if pasid_bits > 0 {
            self.control.set_pasids(device.address, true);
        }
        let control = Arc::clone(&self.control);
        let facts = (can_ats, pasid_bits);
        let endpoint = HardwareEndpoint::<A>::new(device.address, at, control, facts);
        Ok(Arc::new(endpoint))
    }

    fn new_domain(
        &self,
        kind: DefaultKind,
        endpoints: &[Arc<dyn Endpoint>],
    ) -> Result<Arc<dyn Hwpt>, NewDomainError> {
        let mut own: Vec<&HardwareEndpoint<A>> = Vec::new();
        for endpoint in endpoints {
            let any: &dyn Any = &**endpoint;
            own.push(any.downcast_ref().ok_or(NewDomainError::Unsupported)?);
        }
        let mut units = own.iter().flat_map(|endpoint| endpoint.units());
        Ok(match kind {
            DefaultKind::Identity => {
                if units.any(|unit| A::refusal(unit, None, Target::Identity).is_some()) {
                    return Err(NewDomainError::Unsupported);
                }
                Arc::new(HardwareDomain::<A>::identity())
            }
            DefaultKind::Paging => Arc::new(A::translate(&self.memory, &own)?),
        })
    }
}

impl<A: Architecture> fmt::Debug for HardwareDriver<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HardwareDriver")
            .field("control", &self.control)
            .finish_non_exhaustive()
    }
}
