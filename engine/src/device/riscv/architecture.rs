//! How devices are led to domains by RISC-V IOMMUs.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::marker::PhantomData;

use iopt_formats::command::Pasid;

use crate::device::context::{
    Architecture, Arrival, Attached, HardwareDriver, HardwareEndpoint, LinkError, Outcome, Sharing,
    Tags, Target,
};
use crate::device::fault::{Listeners, PageResponder};
use crate::device::ids::Ids;
use crate::device::process::ProcessTables;
use crate::device::riscv::events::Responder;
use crate::device::riscv::{CommandDevice, Features, Port, RiscvDomain, RiscvIommu, Stage, domain};
use crate::device::{AttachFailure, NewDomainError};
use crate::invalidation::Instance;
use crate::invalidation::plan::riscv::{Riscv as Planner, Tag};
use crate::mem::TableMemory;
use crate::radix::MapSide;

/// The architecture, with tables in `M` and command queues `D`.
pub struct Riscv<M, D>(PhantomData<fn() -> (M, D)>);

/// Drives IOMMUs that were registered with it as a [`RiscvIommu<M, D>`](RiscvIommu).
pub type RiscvDriver<M, D> = HardwareDriver<Riscv<M, D>>;

impl<M: TableMemory + 'static, D: CommandDevice> Architecture for Riscv<M, D> {
    type Planner = Planner;
    type Queue = D;
    type Memory = M;
    type Unit = RiscvIommu<M, D>;
    type Stage = Stage;
    type Port = Port<M>;

    fn instance(unit: &Self::Unit) -> &Arc<Instance<Planner, D>> {
        unit.instance()
    }

    fn has_ats(unit: &Self::Unit) -> bool {
        unit.features().has_ats()
    }

    fn pasid_bits(unit: &Self::Unit) -> u8 {
        unit.features().process_bits()
    }

    fn fits(unit: &Self::Unit, stage: &Stage) -> bool {
        stage.fits(unit.features(), *unit.instance().planner())
    }

    fn refusal(
        _unit: &Self::Unit,
        place: Option<Pasid>,
        target: Target<&Stage>,
    ) -> Option<&'static str> {
        let is_first = matches!(target, Target::Stage(Stage::First { .. }));
        (place.is_some() && !is_first).then_some("other domains than of a first stage for a PASID")
    }

    fn conflict(
        _unit: &Self::Unit,
        (place, new): (Option<Pasid>, Target<&Stage>),
        (other_place, other): (Option<Pasid>, Target<&Stage>),
    ) -> Option<&'static str> {
        let is_second =
            |target: Target<&Stage>| matches!(target, Target::Stage(Stage::Second { .. }));
        let is_nested =
            |target: Target<&Stage>| matches!(target, Target::Stage(Stage::Nested { .. }));
        // The guest has all process IDs.
        if is_nested(new) {
            Some("a guest's domain beside PASIDs")
        } else if is_nested(other) {
            Some("PASIDs beside a guest's domain")
        } else if is_second(new) && other_place.is_some() {
            Some("a domain of a second stage beside PASIDs")
        } else if is_second(other) && place.is_some() {
            Some("PASIDs beside a domain of a second stage")
        } else {
            None
        }
    }

    fn process_stage(tables: &ProcessTables) -> Option<Stage> {
        match *tables {
            ProcessTables::Riscv { levels, root } => Stage::of_process(levels, root),
            _ => None,
        }
    }

    fn has_guest_pasids(stage: &Stage) -> bool {
        stage.has_guest_directory()
    }

    fn has_page_requests(unit: &Self::Unit) -> bool {
        unit.features().has_page_requests()
    }

    fn responder(units: &[Arc<Self::Unit>]) -> Option<Arc<dyn PageResponder>> {
        Some(Responder::new(units))
    }

    fn listeners(unit: &Self::Unit) -> Option<&Listeners> {
        Some(unit.listeners())
    }

    fn ids<'u>(unit: &'u Self::Unit, stage: &Stage) -> &'u Arc<Ids> {
        match stage {
            Stage::First { .. } => unit.pscids(),
            Stage::Second { .. } | Stage::Nested { .. } => unit.gscids(),
        }
    }

    fn translate(
        memory: &Arc<M>,
        endpoints: &[&HardwareEndpoint<Self>],
    ) -> Result<RiscvDomain<M, D>, NewDomainError> {
        let units = endpoints.iter().flat_map(|endpoint| endpoint.units());
        let features: Vec<&Features> = units.clone().map(|unit| unit.features()).collect();
        let mut planners = units.map(|unit| unit.instance().planner());
        let map_side = if planners.any(|planner| planner.needs_map_invalidation) {
            MapSide::Announced
        } else {
            MapSide::Silent
        };
        domain::translate(memory, &features, map_side)
    }

    fn port(unit: &Self::Unit, arrival: &Arrival<'_>) -> Result<Port<M>, LinkError> {
        let address = arrival.device.address;
        let needs_pasids = arrival.control.needs_pasids_in_responses(address);
        let port = Port::new(unit, arrival.ids, arrival.pasid_bits)?;
        Ok(port.with_response_pasids(needs_pasids))
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
        let guest = stage.guest();
        let has_directory = guest.is_some_and(|guest| guest.has_tables());
        let directories = port.directories().filter(|_| has_directory);
        let own = core::iter::once(stage.tag(id)).chain(directories);
        // GSCIDs have 16 bits.
        let own = own.chain(stage.combined(id as u16));
        // What changes in a second stage are not addresses that a guest's device has.
        let devices = port.tags(place).filter(|_| has_ats);
        let devices = devices.map(|tag| match tag {
            Tag::Ats { function, pasid } if guest.is_some() => Tag::AtsFull { function, pasid },
            tag => tag,
        });
        own.chain(devices).collect()
    }

    fn device_tags(port: &Port<M>, place: Option<Pasid>) -> impl Iterator<Item = Tag> {
        port.tags(place)
    }

    fn make(
        unit: &Self::Unit,
        port: &mut Port<M>,
        place: Option<Pasid>,
        _target: Target<&Stage>,
    ) -> Result<(), AttachFailure> {
        match place {
            // What leads requests without a PASID is there from the start.
            None => Ok(()),
            Some(pasid) => port.link(unit, pasid),
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

impl<M, D> fmt::Debug for Riscv<M, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Riscv")
    }
}
