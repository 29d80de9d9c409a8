//! How devices are attached behind AMD's IOMMUs.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::marker::PhantomData;

use iopt_formats::amd::V1;
use iopt_formats::command::Pasid;
use iopt_formats::x86_64::AmdV2;

use crate::device::amd::events::Responder;
use crate::device::amd::port::{NO_PASID, Port};
use crate::device::amd::{AmdDomain, AmdIommu, CommandDevice, Features, Stage};
use crate::device::context::{
    Architecture, Arrival, Attached, HardwareDriver, HardwareEndpoint, LinkError, Outcome, Sharing,
    Tags, Target,
};
use crate::device::fault::{Listeners, PageResponder};
use crate::device::ids::Ids;
use crate::device::process::ProcessTables;
use crate::device::{AttachFailure, Endpoint as _, NewDomainError};
use crate::invalidation::Instance;
use crate::invalidation::plan::amd::{Amd as Planner, Tag};
use crate::mem::TableMemory;
use crate::radix::MapSide;

/// Levels of the tables that domains are made with: 48 bits.
const LEVELS: u8 = 4;

/// The driver of IOMMUs that were registered with it as an [`AmdIommu`].
pub type AmdDriver<M, D> = HardwareDriver<AmdVi<M, D>>;

/// AMD's IOMMUs with tables in `M` and command buffers `D`.
pub struct AmdVi<M, D>(PhantomData<fn() -> (M, D)>);

impl<M: TableMemory + 'static, D: CommandDevice> Architecture for AmdVi<M, D> {
    type Planner = Planner;
    type Queue = D;
    type Memory = M;
    type Unit = AmdIommu<M, D>;
    type Stage = Stage;
    type Port = Port<M>;

    fn instance(unit: &Self::Unit) -> &Arc<Instance<Planner, D>> {
        unit.instance()
    }

    fn has_ats(unit: &Self::Unit) -> bool {
        unit.features().has_ats
    }

    fn pasid_bits(unit: &Self::Unit) -> u8 {
        unit.features().usable_pasid_bits()
    }

    fn fits(unit: &Self::Unit, stage: &Stage) -> bool {
        stage.fits(unit.features(), *unit.instance().planner())
    }

    fn refusal(
        _unit: &Self::Unit,
        place: Option<Pasid>,
        target: Target<&Stage>,
    ) -> Option<&'static str> {
        let is_guest = matches!(target, Target::Stage(Stage::Guest { .. }));
        (place.is_some() && !is_guest)
            .then_some("other domains than of version 2 tables for a PASID")
    }

    fn conflict(
        _unit: &Self::Unit,
        new: (Option<Pasid>, Target<&Stage>),
        other: (Option<Pasid>, Target<&Stage>),
    ) -> Option<&'static str> {
        let levels = |target: Target<&Stage>| match target {
            Target::Stage(Stage::Guest { paging_levels, .. }) => Some(*paging_levels),
            _ => None,
        };
        match (new.1, other.1) {
            // The guest has them all.
            (Target::Stage(Stage::Nested { .. }), _) => Some("a guest's domain beside PASIDs"),
            (_, Target::Stage(Stage::Nested { .. })) => Some("PASIDs beside a guest's domain"),
            // They would be under them, as for a guest.
            (Target::Stage(Stage::Host { .. }), _) => Some("version 1 tables beside PASIDs"),
            (_, Target::Stage(Stage::Host { .. })) => Some("PASIDs beside version 1 tables"),
            (new, other) => {
                let differ = levels(new).zip(levels(other)).is_some_and(|(a, b)| a != b);
                differ.then_some("tables of 4 and of 5 levels")
            }
        }
    }

    fn process_stage(tables: &ProcessTables) -> Option<Stage> {
        match *tables {
            ProcessTables::X86 { levels, root } => Stage::of_process(levels, root),
            _ => None,
        }
    }

    fn has_guest_pasids(stage: &Stage) -> bool {
        stage.has_guest_gcr3()
    }

    fn has_page_requests(unit: &Self::Unit) -> bool {
        unit.features().has_page_requests
    }

    fn responder(units: &[Arc<Self::Unit>]) -> Option<Arc<dyn PageResponder>> {
        Some(Responder::new(units))
    }

    fn listeners(unit: &Self::Unit) -> Option<&Listeners> {
        Some(unit.listeners())
    }

    fn ids<'u>(unit: &'u Self::Unit, stage: &Stage) -> &'u Arc<Ids> {
        match stage {
            Stage::Host { .. } | Stage::Nested { .. } => unit.domain_ids(),
            // Known by the IDs of devices.
            Stage::Guest { .. } => unit.numbers(),
        }
    }

    fn translate(
        memory: &Arc<M>,
        endpoints: &[&HardwareEndpoint<Self>],
    ) -> Result<AmdDomain<M, D>, NewDomainError> {
        let units = endpoints.iter().flat_map(|endpoint| endpoint.units());
        let all = |has: fn(&Features) -> bool| units.clone().all(|unit| has(unit.features()));
        let oa_bits = units.clone().map(|unit| unit.features().oa_bits).min();
        let oa_bits = oa_bits.unwrap_or(52);
        let has_pasids = endpoints.iter().any(|endpoint| endpoint.max_pasids() > 0);
        let can_host = all(|features| features.host_levels >= LEVELS);
        let can_guest = all(Features::has_guest_tables);
        let mut planners = units.map(|unit| unit.instance().planner());
        let map_side = if planners.any(|planner| planner.has_absent_entries) {
            MapSide::Announced
        } else {
            MapSide::Silent
        };
        let memory = Arc::clone(memory);
        let made = if can_guest && (has_pasids || !can_host) {
            // Addresses that are the same if their sign is extended.
            let format = AmdV2::new(47).and_then(|format| format.with_oa_bits(oa_bits));
            let format = format.map_err(|_| NewDomainError::Unsupported)?;
            AmdDomain::guest(format, memory, map_side)
        } else if can_host {
            let format = V1::fixed(LEVELS, 48).and_then(|format| format.with_oa_bits(oa_bits));
            let format = format.map_err(|_| NewDomainError::Unsupported)?;
            AmdDomain::host(format, memory, map_side)
        } else {
            return Err(NewDomainError::Unsupported);
        };
        Ok(made?)
    }

    fn port(unit: &Self::Unit, arrival: &Arrival<'_>) -> Result<Port<M>, LinkError> {
        let mut device_ids = Vec::new();
        for &id in arrival.ids {
            let absent = LinkError::Absent { index: id as usize };
            let device_id = u16::try_from(id).map_err(|_| absent)?;
            unit.link(device_id)?;
            device_ids.push(device_id);
        }
        device_ids.sort_unstable();
        let address = arrival.device.address;
        let port = Port {
            device_ids,
            share: unit.shares().enter(arrival.ids, arrival.pasid_bits > 0)?,
            pasid_bits: arrival.pasid_bits,
            max_pending: arrival.control.ats_queue_depth(address).clamp(1, 32),
            physical_function: arrival.control.physical_function(address),
            needs_response_pasids: arrival.control.needs_pasids_in_responses(address),
            has_passed: false,
            gcr3: None,
        };
        LinkError::block_quarantined(
            port.device_ids.iter().copied(),
            |device_id| unit.is_quarantined(device_id),
            |device_id| port.write_dte(unit, device_id, None, true),
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
        let iotlb = match stage {
            // IDs have 16 bits.
            Stage::Host { .. } | Stage::Nested { .. } => Tag::Iotlb {
                domain_id: id as u16,
                pasid: None,
            },
            Stage::Guest { .. } => Tag::Iotlb {
                domain_id: port.guest_id(),
                pasid: Some(place.unwrap_or(NO_PASID)),
            },
        };
        let is_nested = stage.is_nested();
        let ids = port.device_ids.iter().filter(|_| stage.has_guest_gcr3());
        let tables = ids.map(|&device_id| Tag::GuestCr3 { device_id });
        // All domains of the guest's domain ID have that place: what one left may be met when the next is attached.
        let combined = is_nested.then_some(Tag::Combined {
            domain_id: id as u16,
        });
        let device_tlbs = port.device_tlbs(place).filter(|_| has_ats);
        // What changes in version 1 tables are not addresses that a guest's device has.
        let device_tlbs = device_tlbs.map(|tag| match tag {
            Tag::Ats { device, pasid } if is_nested => Tag::AtsFull { device, pasid },
            tag => tag,
        });
        let own = core::iter::once(iotlb).chain(tables).chain(combined);
        own.chain(device_tlbs).collect()
    }

    fn device_tags(port: &Port<M>, place: Option<Pasid>) -> impl Iterator<Item = Tag> {
        port.device_tlbs(place)
    }

    fn make(
        unit: &Self::Unit,
        port: &mut Port<M>,
        place: Option<Pasid>,
        target: Target<&Stage>,
    ) -> Result<(), AttachFailure> {
        match target {
            Target::Stage(Stage::Guest { .. }) => port.make_gcr3(unit, place),
            Target::Identity if port.pasid_bits > 0 => port.make_gcr3(unit, place),
            _ => Ok(()),
        }
    }

    fn write(
        unit: &Self::Unit,
        port: &mut Port<M>,
        place: Option<Pasid>,
        attached: &Attached<'_, Self>,
    ) -> Outcome {
        port.write(unit, place, attached)
    }
}

impl<M, D> fmt::Debug for AmdVi<M, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AmdVi")
    }
}
