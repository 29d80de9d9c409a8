//! How devices are attached behind SMMUs.

use alloc::sync::Arc;
use core::fmt;
use core::marker::PhantomData;

use iopt_formats::armv8::{Granule, Stage1, Stage2};
use iopt_formats::command::Pasid;

use crate::device::context::{
    Architecture, Arrival, Attached, HardwareDriver, HardwareEndpoint, LinkError, Outcome, Sharing,
    Tags, Target,
};
use crate::device::fault::{Listeners, PageResponder};
use crate::device::ids::Ids;
use crate::device::process::ProcessTables;
use crate::device::smmuv3::events::Responder;
use crate::device::smmuv3::port::Port;
use crate::device::smmuv3::tables::CdTables;
use crate::device::smmuv3::{CommandDevice, Features, Smmu, Smmuv3Domain, Stage, Stalls};
use crate::device::{AttachFailure, NewDomainError};
use crate::invalidation::Instance;
use crate::invalidation::plan::smmuv3::{Smmuv3 as Planner, Tag};
use crate::mem::TableMemory;

/// Bits of the input addresses of the domains that it makes.
const VA_BITS: u8 = 48;

/// SMMUs whose tables lie in memory of one kind, behind queues of one kind.
pub struct Smmuv3<M, D>(PhantomData<fn() -> (M, D)>);

/// Drives SMMUs that were registered with it as an [`Smmu<M, D>`](Smmu).
pub type Smmuv3Driver<M, D> = HardwareDriver<Smmuv3<M, D>>;

impl<M: TableMemory + 'static, D: CommandDevice> Architecture for Smmuv3<M, D> {
    type Planner = Planner;
    type Queue = D;
    type Memory = M;
    type Unit = Smmu<M, D>;
    type Stage = Stage;
    type Port = Port<M>;

    fn instance(unit: &Smmu<M, D>) -> &Arc<Instance<Planner, D>> {
        unit.instance()
    }

    fn has_ats(unit: &Smmu<M, D>) -> bool {
        let features = unit.features();
        features.has_ats && features.stalls != Stalls::Forced
    }

    fn pasid_bits(unit: &Smmu<M, D>) -> u8 {
        let features = unit.features();
        if features.has_stage1 {
            CdTables::<M>::count_lg2(features.has_two_level_cds, features.substream_bits)
        } else {
            0
        }
    }

    fn fits(unit: &Smmu<M, D>, stage: &Stage) -> bool {
        stage.fits(unit.features())
    }

    fn refusal(
        _: &Smmu<M, D>,
        place: Option<Pasid>,
        target: Target<&Stage>,
    ) -> Option<&'static str> {
        let has_first = matches!(target, Target::Stage(Stage::First { .. }));
        (place.is_some() && !has_first).then_some("other domains than of stage 1 for a PASID")
    }

    fn conflict(
        _: &Smmu<M, D>,
        (_, new): (Option<Pasid>, Target<&Stage>),
        (_, other): (Option<Pasid>, Target<&Stage>),
    ) -> Option<&'static str> {
        // One of two places has a PASID.
        match (new, other) {
            // The guest has them all.
            (Target::Stage(Stage::Nested { .. }), _) => Some("a guest's domain beside PASIDs"),
            (_, Target::Stage(Stage::Nested { .. })) => Some("PASIDs beside a guest's domain"),
            (Target::Stage(Stage::Second { .. }), _) => Some("a domain of stage 2 beside PASIDs"),
            (_, Target::Stage(Stage::Second { .. })) => Some("PASIDs beside a domain of stage 2"),
            _ => None,
        }
    }

    fn process_stage(tables: &ProcessTables) -> Option<Stage> {
        match *tables {
            ProcessTables::Armv8 { tcr, mair, root } => Stage::first(tcr, mair, root).ok(),
            _ => None,
        }
    }

    fn has_guest_pasids(stage: &Stage) -> bool {
        stage.has_guest_cds()
    }

    fn has_page_requests(unit: &Smmu<M, D>) -> bool {
        unit.features().has_page_requests
    }

    fn can_stall(unit: &Smmu<M, D>) -> bool {
        unit.features().stalls != Stalls::Impossible
    }

    fn responder(units: &[Arc<Smmu<M, D>>]) -> Option<Arc<dyn PageResponder>> {
        Some(Responder::new(units))
    }

    fn listeners(unit: &Smmu<M, D>) -> Option<&Listeners> {
        Some(unit.listeners())
    }

    fn ids<'u>(unit: &'u Smmu<M, D>, stage: &Stage) -> &'u Arc<Ids> {
        if stage.is_first() {
            unit.asids()
        } else {
            unit.vmids()
        }
    }

    fn translate(
        memory: &Arc<M>,
        endpoints: &[&HardwareEndpoint<Self>],
    ) -> Result<Smmuv3Domain<M, D>, NewDomainError> {
        let units = endpoints.iter().flat_map(|endpoint| endpoint.units());
        let features = units.map(|unit| unit.features());
        let all = |has: fn(&Features) -> bool| features.clone().all(has);
        let oa_bits = features.clone().map(|features| features.oa_bits).min();
        // Without 52-bit descriptors.
        let oa_bits = oa_bits.unwrap_or(VA_BITS).min(48);
        let granules = [Granule::Kib4, Granule::Kib16, Granule::Kib64];
        let mut granules = granules.into_iter();
        let granule = granules.find(|&granule| {
            let mut features = features.clone();
            features.all(|features| features.has_granule(granule))
        });
        let granule = granule.ok_or(NewDomainError::Unsupported)?;
        let memory = || Arc::clone(memory);
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
        Ok(made?)
    }

    fn port(unit: &Smmu<M, D>, arrival: &Arrival<'_>) -> Result<Port<M>, LinkError> {
        for &stream in arrival.ids {
            unit.link(stream)?;
        }
        let port = Port {
            streams: arrival.ids.to_vec(),
            share: unit.shares().enter(arrival.ids, arrival.pasid_bits > 0)?,
            pasid_bits: arrival.pasid_bits,
            cds: None,
        };
        LinkError::block_quarantined(
            arrival.ids.iter().copied(),
            |stream| unit.is_quarantined(stream),
            |stream| port.write_stream(unit, stream, None, true),
        )?;
        Ok(port)
    }

    fn sharing(port: &Port<M>) -> Sharing {
        port.share.sharing()
    }

    fn tags(
        port: &Port<M>,
        place: Option<Pasid>,
        stage: &Stage,
        id: u32,
        has_ats: bool,
    ) -> Tags<Planner> {
        // IDs have at most 16 bits.
        let tlb = stage.tag(id as u16);
        let is_nested = stage.is_nested();
        let streams = || port.streams.iter().copied();
        let descriptors = streams().filter(|_| stage.has_guest_cds());
        let descriptors = descriptors.map(|stream| Tag::Descriptors { stream });
        // What changes in stage 2 are not addresses that the device has.
        let all = streams().filter(|_| has_ats && is_nested);
        let all = all.map(|stream| Tag::AtsFull { stream });
        let ats = Self::device_tags(port, place).filter(|_| has_ats && !is_nested);
        let tlbs = core::iter::once(tlb).chain(descriptors);
        let tlbs = tlbs.chain(stage.combined(id as u16));
        tlbs.chain(ats).chain(all).collect()
    }

    fn device_tags(port: &Port<M>, place: Option<Pasid>) -> impl Iterator<Item = Tag> {
        port.streams.iter().map(move |&stream| Tag::Ats {
            stream,
            substream: place,
        })
    }

    fn make(
        unit: &Smmu<M, D>,
        port: &mut Port<M>,
        place: Option<Pasid>,
        target: Target<&Stage>,
    ) -> Result<(), AttachFailure> {
        match target {
            Target::Stage(Stage::First { .. }) => port.make_cd(unit, place),
            _ => Ok(()),
        }
    }

    fn write(
        unit: &Smmu<M, D>,
        port: &mut Port<M>,
        place: Option<Pasid>,
        attached: &Attached<'_, Self>,
    ) -> Outcome {
        port.write(unit, place, attached)
    }
}

fn stage1<const G: u8>(oa_bits: u8) -> Result<Stage1<G>, NewDomainError> {
    Stage1::new(VA_BITS, oa_bits).map_err(|_| NewDomainError::Unsupported)
}

/// Input addresses are as wide as output addresses may be.
fn stage2<const G: u8>(oa_bits: u8) -> Result<Stage2<G>, NewDomainError> {
    Stage2::new(oa_bits.min(VA_BITS), oa_bits).map_err(|_| NewDomainError::Unsupported)
}

impl<M, D> fmt::Debug for Smmuv3<M, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Smmuv3").finish()
    }
}
