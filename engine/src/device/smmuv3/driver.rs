//! The driver of all SMMUs with memory and queues of one kind.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::any::Any;
use core::fmt;

use iopt_formats::armv8::{Granule, Stage1, Stage2};

use crate::device::smmuv3::domain::{DomainError, Smmuv3Domain};
use crate::device::smmuv3::endpoint::{Port, Smmuv3Endpoint};
use crate::device::smmuv3::tables::CdTables;
use crate::device::smmuv3::{CommandDevice, Features, Smmu};
use crate::device::{
    DefaultKind, DeviceControl, Driver, Endpoint, Hwpt, NewDomainError, ProbeError, ProbeRequest,
};
use crate::mem::TableMemory;

/// Bits of the input addresses of the domains that it makes.
const VA_BITS: u8 = 48;

/// Drives SMMUs that were registered with it as an [`Smmu<M, D>`](Smmu).
pub struct Smmuv3Driver<M: TableMemory, D: CommandDevice> {
    memory: Arc<M>,
    control: Arc<dyn DeviceControl>,
    queue: core::marker::PhantomData<fn() -> D>,
}

/// The device has streams that cannot be used.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("no instance of this driver, or no stream, is given for the device")]
struct NoStream;

impl<M: TableMemory + 'static, D: CommandDevice> Smmuv3Driver<M, D> {
    /// Creates a driver that takes the tables of domains from `memory`, and asks `control` about devices.
    pub fn new(memory: Arc<M>, control: Arc<dyn DeviceControl>) -> Arc<Self> {
        Arc::new(Self {
            memory,
            control,
            queue: core::marker::PhantomData,
        })
    }

    /// Makes a domain that translates for all of `features`.
    fn paging(&self, features: &[&Features]) -> Result<Smmuv3Domain<D>, NewDomainError> {
        let all = |has: fn(&Features) -> bool| features.iter().all(|features| has(features));
        let oa_bits = features.iter().map(|features| features.oa_bits).min();
        // Without 52-bit descriptors.
        let oa_bits = oa_bits.unwrap_or(VA_BITS).min(48);
        let granules = [Granule::Kib4, Granule::Kib16, Granule::Kib64];
        let mut granules = granules.into_iter();
        let granule = granules.find(|&granule| {
            let mut features = features.iter();
            features.all(|features| features.has_granule(granule))
        });
        let granule = granule.ok_or(NewDomainError::Unsupported)?;
        let memory = || Arc::clone(&self.memory);
        let made = if all(|features| features.has_stage1) {
            match granule {
                Granule::Kib4 => Smmuv3Domain::stage1(stage1::<12>(oa_bits)?, memory()),
                Granule::Kib16 => Smmuv3Domain::stage1(stage1::<14>(oa_bits)?, memory()),
                Granule::Kib64 => Smmuv3Domain::stage1(stage1::<16>(oa_bits)?, memory()),
            }
        } else if all(|features| features.has_stage2) {
            match granule {
                Granule::Kib4 => Smmuv3Domain::stage2(stage2::<12>(oa_bits)?, memory()),
                Granule::Kib16 => Smmuv3Domain::stage2(stage2::<14>(oa_bits)?, memory()),
                Granule::Kib64 => Smmuv3Domain::stage2(stage2::<16>(oa_bits)?, memory()),
            }
        } else {
            return Err(NewDomainError::Unsupported);
        };
        made.map_err(|error| match error {
            DomainError::Set(_) => NewDomainError::Exhausted,
            error => NewDomainError::Other(Box::new(error)),
        })
    }
}

fn stage1<const G: u8>(oa_bits: u8) -> Result<Stage1<G>, NewDomainError> {
    Stage1::new(VA_BITS, oa_bits).map_err(|_| NewDomainError::Unsupported)
}

/// Input addresses are as wide as output addresses may be.
fn stage2<const G: u8>(oa_bits: u8) -> Result<Stage2<G>, NewDomainError> {
    Stage2::new(oa_bits.min(VA_BITS), oa_bits).map_err(|_| NewDomainError::Unsupported)
}

impl<M: TableMemory + 'static, D: CommandDevice> Driver for Smmuv3Driver<M, D> {
    fn probe(&self, request: &ProbeRequest<'_>) -> Result<Arc<dyn Endpoint>, ProbeError> {
        let mut ports = Vec::new();
        for index in 0..request.instance_count() {
            let smmu: Option<Arc<Smmu<M, D>>> = request.instance(index);
            let streams = request.ids(index);
            let Some(smmu) = smmu.filter(|_| !streams.is_empty()) else {
                return Err(ProbeError::NotMine);
            };
            for &stream in streams {
                let linked = smmu.link(stream);
                linked.map_err(|error| ProbeError::Failed(Box::new(error)))?;
            }
            ports.push(Port {
                smmu,
                streams: streams.to_vec(),
            });
        }
        if ports.is_empty() {
            return Err(ProbeError::Failed(Box::new(NoStream)));
        }
        let device = request.device();
        let features = ports.iter().map(|port| port.smmu.features());
        let can_ats = features.clone().all(|features| features.has_ats)
            && !device.is_untrusted
            && self.control.has_ats(device.address);
        let widths = features.map(|features| {
            let bits = if features.has_stage1 {
                features.substream_bits
            } else {
                0
            };
            CdTables::<M>::count_lg2(features.has_two_level_cds, bits)
        });
        let pasid_bits = widths.chain([device.pasid_bits]).min().unwrap_or(0);
        let control = Arc::clone(&self.control);
        if pasid_bits > 0 {
            control.set_pasids(device.address, true);
        }
        let facts = (can_ats, pasid_bits);
        Ok(Arc::new(Smmuv3Endpoint::new(
            device.address,
            ports,
            control,
            facts,
        )))
    }

    fn new_domain(
        &self,
        kind: DefaultKind,
        endpoints: &[Arc<dyn Endpoint>],
    ) -> Result<Arc<dyn Hwpt>, NewDomainError> {
        let mut features = Vec::new();
        for endpoint in endpoints {
            let any: &dyn Any = &**endpoint;
            let own: &Smmuv3Endpoint<M, D> =
                any.downcast_ref().ok_or(NewDomainError::Unsupported)?;
            features.extend(own.smmus().map(|smmu| smmu.features()));
        }
        Ok(match kind {
            DefaultKind::Identity => Arc::new(Smmuv3Domain::<D>::identity()),
            DefaultKind::Paging => Arc::new(self.paging(&features)?),
        })
    }
}

impl<M: TableMemory, D: CommandDevice> fmt::Debug for Smmuv3Driver<M, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Smmuv3Driver")
            .field("control", &self.control)
            .finish_non_exhaustive()
    }
}
