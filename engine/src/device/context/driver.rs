//! The driver of all instances of one architecture with memory and queues of one kind.

use alloc::borrow::Cow;
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::any::Any;
use core::fmt;

use crate::device::context::endpoint::Faults;
use crate::device::context::{
    Architecture, Arrival, HardwareDomain, HardwareEndpoint, Set, Target,
};
use crate::device::fault::{DeviceFaults, FaultSettings};
use crate::device::process::{Process, ProcessDomain};
use crate::device::{
    DefaultKind, DeviceAddress, DeviceControl, DeviceTlb, Driver, Endpoint, Hwpt, Identity,
    NewDomainError, ProbeError, ProbeRequest,
};

/// Drives instances that were registered with it as an [`Architecture::Unit`].
pub struct HardwareDriver<A: Architecture> {
    memory: Arc<A::Memory>,
    control: Arc<dyn DeviceControl>,
    faults: FaultSettings,
}

/// An instance, and under which IDs it sees the device.
type Seen<'a, A> = (Arc<<A as Architecture>::Unit>, Cow<'a, [u32]>);

/// The device has no instance.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("no instance is given for the device")]
struct NoInstance;

/// Firmware says that the device needs its TLB, and it may or can not have it.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the device has to cache translations, and cannot")]
struct NoDeviceTlb;

impl<A: Architecture> HardwareDriver<A> {
    /// Creates a driver that takes the tables of domains from `memory`, and asks `control` about devices.
    pub fn new(memory: Arc<A::Memory>, control: Arc<dyn DeviceControl>) -> Arc<Self> {
        Self::with_faults(memory, control, FaultSettings::default())
    }

    /// As [`new`](Self::new), with page requests of devices treated as `faults` says.
    pub fn with_faults(
        memory: Arc<A::Memory>,
        control: Arc<dyn DeviceControl>,
        faults: FaultSettings,
    ) -> Arc<Self> {
        Arc::new(Self {
            memory,
            control,
            faults,
        })
    }

    /// Returns how a device asks for pages, if it and all its instances can.
    fn faults(
        &self,
        device: DeviceAddress,
        units: &[Arc<A::Unit>],
        can_ats: bool,
    ) -> Option<Faults> {
        let can_ask = can_ats
            && units.iter().all(|unit| A::has_page_requests(unit))
            && self.control.has_page_requests(device);
        let can_stall =
            units.iter().all(|unit| A::can_stall(unit)) && self.control.can_stall(device);
        let responder = A::responder(units).filter(|_| can_ask || can_stall)?;
        let control = Arc::clone(&self.control);
        let requests = DeviceFaults::new(device, control, responder, self.faults.clone());
        Some(Faults {
            requests,
            can_ask,
            can_stall,
        })
    }

    /// Finds the endpoints that are this driver's, if all are.
    fn own(endpoints: &[Arc<dyn Endpoint>]) -> Result<Vec<&HardwareEndpoint<A>>, NewDomainError> {
        let own = endpoints.iter().map(|endpoint| {
            let any: &dyn Any = &**endpoint;
            any.downcast_ref().ok_or(NewDomainError::Unsupported)
        });
        own.collect()
    }
}

impl<A: Architecture> Driver for HardwareDriver<A> {
    fn probe(&self, request: &ProbeRequest<'_>) -> Result<Arc<dyn Endpoint>, ProbeError> {
        let mut units: Vec<Seen<'_, A>> = Vec::new();
        let count = request.instance_count();
        let (mut at, mut all_ids) = (Vec::new(), Vec::new());
        let reserved = units.try_reserve_exact(count);
        let reserved = reserved.and_then(|()| at.try_reserve_exact(count));
        let reserved = reserved.and_then(|()| all_ids.try_reserve_exact(count));
        reserved.map_err(|error| ProbeError::Failed(Box::new(error)))?;
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
            && device.device_tlb != DeviceTlb::Unsaid
            && self.control.has_ats(device.address);
        if device.device_tlb == DeviceTlb::Required && !can_ats {
            return Err(ProbeError::Failed(Box::new(NoDeviceTlb)));
        }
        let widths = units.iter().map(|(unit, _)| A::pasid_bits(unit));
        let pasid_bits = widths.chain([device.pasid_bits]).min().unwrap_or(0);
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
            all_ids.push(ids);
        }
        let units: Vec<_> = at.iter().map(|(unit, _)| Arc::clone(unit)).collect();
        let faults = self.faults(device.address, &units, can_ats);
        if let Some(faults) = &faults {
            for (index, (unit, ids)) in units.iter().zip(&all_ids).enumerate() {
                if let Some(listeners) = A::listeners(unit) {
                    let kinds = [(faults.can_ask, false), (faults.can_stall, true)];
                    for (_, has_stalls) in kinds.into_iter().filter(|(can, _)| *can) {
                        let watched = listeners.watch(index, &faults.requests, has_stalls);
                        watched.map_err(|error| ProbeError::Failed(Box::new(error)))?;
                    }
                    // What is entered where another instance has no memory dangles, and makes room for who comes.
                    let entered = listeners.enter(ids, index, &faults.requests);
                    entered.map_err(|error| ProbeError::Failed(Box::new(error)))?;
                }
            }
        }
        if pasid_bits > 0 {
            self.control.set_pasids(device.address, true);
        }
        let control = Arc::clone(&self.control);
        let facts = (can_ats, pasid_bits);
        let endpoint = HardwareEndpoint::<A>::new(device.address, at, control, facts);
        let needs_ats = device.device_tlb == DeviceTlb::Required;
        let endpoint = endpoint.with_faults(faults).with_needs_ats(needs_ats);
        Ok(endpoint.into_shared())
    }

    fn new_domain(
        &self,
        kind: DefaultKind,
        endpoints: &[Arc<dyn Endpoint>],
    ) -> Result<Arc<dyn Hwpt>, NewDomainError> {
        let own = Self::own(endpoints)?;
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

    fn new_process_domain(
        &self,
        process: &Arc<Process>,
        endpoints: &[Arc<dyn Endpoint>],
    ) -> Result<Arc<dyn ProcessDomain>, NewDomainError> {
        let own = Self::own(endpoints)?;
        let stage = A::process_stage(&process.tables()).ok_or(NewDomainError::Unsupported)?;
        let mut units = own.iter().flat_map(|endpoint| endpoint.units());
        if !units.all(|unit| A::fits(unit, &stage)) {
            return Err(NewDomainError::Unsupported);
        }
        let set = Set::<A>::new().map_err(|_| NewDomainError::Exhausted)?;
        let domain = HardwareDomain::<A>::of_process(process, Arc::new(set), stage);
        Ok(Arc::new(domain))
    }
}

impl<A: Architecture> fmt::Debug for HardwareDriver<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HardwareDriver")
            .field("control", &self.control)
            .finish_non_exhaustive()
    }
}
