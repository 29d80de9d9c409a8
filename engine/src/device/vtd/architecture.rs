//! What VT-d makes of the life of a device.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::marker::PhantomData;

use iopt_formats::command::Pasid;
use iopt_formats::command::vtd::{Device, QueueDepth};
use iopt_formats::context::vtd::{LegacyContext, PasidEntry, TableMode};
use smallvec::SmallVec;

use crate::device::context::{
    Architecture, Arrival, Attached, HardwareDomain, HardwareEndpoint, LinkError, Outcome, Share,
    Sharing, Tags, Target, Unwritten,
};
use crate::device::fault::{Listeners, PageResponder};
use crate::device::ids::Ids;
use crate::device::process::ProcessTables;
use crate::device::vtd::domain::{Walker, translate};
use crate::device::vtd::events::Responder;
use crate::device::vtd::instance::{Behind, PASS_THROUGH_ID};
use crate::device::vtd::{CommandDevice, ContextEntry, PasidTables, Stage, VtdUnit};
use crate::device::{AttachFailure, DeviceAddress, NewDomainError};
use crate::invalidation::Instance;
use crate::invalidation::plan::vtd::{Tag, Vtd as Planner};
use crate::mem::TableMemory;

/// The PASID of requests without one (`RID_PASID`).
pub(super) const NO_PASID: Pasid = Pasid::new(0).expect("0 has few bits");

/// The architecture, with memory and queues of one kind.
pub struct Vtd<M, D>(PhantomData<fn() -> (M, D)>);

/// What a device has at a unit: its requester IDs, and in scalable mode the PASID table that they share.
pub struct Port<M: TableMemory> {
    /// In rising order.
    devices: SmallVec<[Device; 1]>,
    share: Share<ContextEntry>,
    /// How wide its PASIDs are; 0 if it has none.
    pasid_bits: u8,
    /// Once anything was to be attached.
    tables: Option<PasidTables<M>>,
}

impl<M: TableMemory> Port<M> {
    fn ids(&self) -> impl Iterator<Item = u16> {
        self.devices.iter().map(|device| device.source_id)
    }

    fn device_tags(&self, place: Option<Pasid>) -> impl Iterator<Item = Tag> {
        let devices = self.devices.iter();
        devices.map(move |&device| Tag::Ats {
            device,
            pasid: place,
        })
    }
}

impl<M: TableMemory> fmt::Debug for Port<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Port")
            .field("devices", &self.devices)
            .field("tables", &self.tables)
            .finish_non_exhaustive()
    }
}

impl<M: TableMemory + 'static, D: CommandDevice> HardwareEndpoint<Vtd<M, D>> {
    /// Returns the PASID entry at a unit of the device, of 0 for requests without one, as it was written last;
    /// `None` in legacy mode.
    pub fn pasid_entry(&self, unit: usize, pasid: Pasid) -> Option<PasidEntry> {
        self.with_port(unit, |port| port.tables.as_ref()?.get(pasid))?
    }
}

impl<M: TableMemory + 'static, D: CommandDevice> Architecture for Vtd<M, D> {
    type Planner = Planner;
    type Queue = D;
    type Memory = M;
    type Unit = VtdUnit<M, D>;
    type Stage = Stage;
    type Port = Port<M>;

    fn instance(unit: &Self::Unit) -> &Arc<Instance<Planner, D>> {
        unit.instance()
    }

    fn has_ats(unit: &Self::Unit) -> bool {
        unit.features().has_device_tlbs
    }

    fn pasid_bits(unit: &Self::Unit) -> u8 {
        match unit.root_table().mode() {
            TableMode::Legacy => 0,
            TableMode::Scalable => unit.features().pasid_bits,
        }
    }

    fn own_ids(unit: &Self::Unit, device: DeviceAddress) -> Vec<u32> {
        unit.scope()
            .map(|scope| scope.ids(device))
            .unwrap_or_default()
    }

    fn fits(unit: &Self::Unit, stage: &Stage) -> bool {
        stage.fits(&walker(unit))
    }

    fn refusal(
        unit: &Self::Unit,
        place: Option<Pasid>,
        target: Target<&Stage>,
    ) -> Option<&'static str> {
        match (place, target) {
            (Some(_), _) if unit.root_table().mode() == TableMode::Legacy => {
                Some("PASIDs in legacy mode")
            }
            (Some(_), Target::Blocked | Target::Identity) => {
                Some("other domains than those that translate for a PASID")
            }
            (None, Target::Identity) if through(unit).is_none() => Some("a domain that passes all"),
            _ => None,
        }
    }

    fn conflict(
        _unit: &Self::Unit,
        _new: (Option<Pasid>, Target<&Stage>),
        _other: (Option<Pasid>, Target<&Stage>),
    ) -> Option<&'static str> {
        // Each PASID entry has its own stages.
        None
    }

    fn process_stage(tables: &ProcessTables) -> Option<Stage> {
        match *tables {
            ProcessTables::X86 { levels, root } => Stage::process(levels, root).ok(),
            _ => None,
        }
    }

    fn has_page_requests(unit: &Self::Unit) -> bool {
        // PRE is in entries of scalable mode alone.
        unit.root_table().mode() == TableMode::Scalable && unit.features().has_page_requests
    }

    fn responder(units: &[Arc<Self::Unit>]) -> Option<Arc<dyn PageResponder>> {
        Some(Responder::new(units))
    }

    fn listeners(unit: &Self::Unit) -> Option<&Listeners> {
        Some(unit.listeners())
    }

    fn ids<'u>(unit: &'u Self::Unit, _stage: &Stage) -> &'u Arc<Ids> {
        unit.domain_ids()
    }

    fn translate(
        memory: &Arc<M>,
        endpoints: &[&HardwareEndpoint<Self>],
    ) -> Result<HardwareDomain<Self>, NewDomainError> {
        let units = endpoints.iter().flat_map(|endpoint| endpoint.units());
        let walkers: Vec<_> = units.map(|unit| walker(unit)).collect();
        translate(memory, &walkers)
    }

    fn port(unit: &Self::Unit, arrival: &Arrival<'_>) -> Result<Port<M>, LinkError> {
        let mut devices = SmallVec::new();
        let control = arrival.control;
        let address = arrival.device.address;
        let depth = control.ats_queue_depth(address);
        for &id in arrival.ids {
            let source_id =
                u16::try_from(id).map_err(|_| LinkError::Absent { index: id as usize })?;
            unit.link(source_id)?;
            let physical_function = if unit.features().has_throttling {
                control.physical_function(address).unwrap_or(source_id)
            } else {
                0
            };
            devices.push(Device {
                source_id,
                physical_function,
                queue_depth: QueueDepth::new(depth),
            });
        }
        let port = Port {
            devices,
            share: unit.shares().enter(arrival.ids, arrival.pasid_bits > 0)?,
            pasid_bits: arrival.pasid_bits,
            tables: None,
        };
        LinkError::block_quarantined(
            port.ids(),
            |source_id| unit.is_quarantined(source_id),
            |source_id| port.write_context(unit, source_id, None, Behind::Anything, true),
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
        let own = stage.tags(did(id), place.unwrap_or(NO_PASID));
        let is_nested = stage.is_nested();
        let devices = port.device_tags(place).filter(|_| has_ats);
        // What changes in a second stage are not addresses that the device has.
        let devices = devices.map(|tag| match tag {
            Tag::Ats { device, pasid } if is_nested => Tag::AtsFull { device, pasid },
            tag => tag,
        });
        own.chain(devices).collect()
    }

    fn device_tags(port: &Port<M>, place: Option<Pasid>) -> impl Iterator<Item = Tag> {
        port.device_tags(place)
    }

    fn make(
        unit: &Self::Unit,
        port: &mut Port<M>,
        place: Option<Pasid>,
        target: Target<&Stage>,
    ) -> Result<(), AttachFailure> {
        if unit.root_table().mode() == TableMode::Legacy || target == Target::Blocked {
            return Ok(());
        }
        let tables = match &mut port.tables {
            Some(tables) => tables,
            none => {
                let made = PasidTables::new(unit, port.pasid_bits);
                none.insert(made.map_err(|_| AttachFailure::Exhausted)?)
            }
        };
        Ok(tables.link(unit, place.unwrap_or(NO_PASID))?)
    }

    fn write(
        unit: &Self::Unit,
        port: &mut Port<M>,
        place: Option<Pasid>,
        attached: &Attached<'_, Self>,
    ) -> Outcome {
        match (unit.root_table().mode(), place) {
            (TableMode::Legacy, None) => {
                let entry = legacy(unit, attached).map(ContextEntry::Legacy);
                port.write_contexts(unit, entry, Behind::Anything, entry.is_none())
            }
            // None is ever attached.
            (TableMode::Legacy, Some(_)) => Outcome::Known,
            (TableMode::Scalable, _) => scalable(unit, port, place, attached),
        }
    }
}

/// Returns what context entries of legacy mode have to say; `None` blocks.
fn legacy<M: TableMemory + 'static, D: CommandDevice>(
    unit: &VtdUnit<M, D>,
    attached: &Attached<'_, Vtd<M, D>>,
) -> Option<LegacyContext> {
    match attached.at(None) {
        Target::Stage((stage, id)) => Some(stage.legacy(did(id), attached.has_ats())),
        Target::Identity => {
            through(unit).map(|width| LegacyContext::pass_through(PASS_THROUGH_ID, width))
        }
        Target::Blocked => None,
    }
}

/// Writes a PASID entry, and the context entries that lead to all of them: an entry that comes stands before
/// the way to it, and the way goes when nothing is left at its end.
fn scalable<M: TableMemory + 'static, D: CommandDevice>(
    unit: &VtdUnit<M, D>,
    port: &mut Port<M>,
    place: Option<Pasid>,
    attached: &Attached<'_, Vtd<M, D>>,
) -> Outcome {
    let Some(tables) = &mut port.tables else {
        // Nothing was ever attached.
        return Outcome::Known;
    };
    let pasid = place.unwrap_or(NO_PASID);
    let entry = match attached.at(place) {
        Target::Stage((stage, id)) => stage.pasid(did(id), unit.features()),
        Target::Identity => through(unit).map_or(PasidEntry::blocked(), |width| {
            PasidEntry::pass_through(PASS_THROUGH_ID, width)
        }),
        // Requests that come still are no fault of anybody's.
        Target::Blocked if attached.ended_at(place).is_some() => {
            PasidEntry::blocked().with_faults_disabled()
        }
        Target::Blocked => PasidEntry::blocked(),
    };
    let is_blocked = attached.at(None) == Target::Blocked && !attached.has_pasids();
    let mut context = tables.context();
    if port.pasid_bits > 0 {
        context = context.with_pasid();
    }
    if attached.has_ats() {
        context = context.with_device_tlb();
    }
    if attached.asks_for_pages() {
        context = context.with_page_requests();
    }
    let context = (!is_blocked).then_some(ContextEntry::Scalable(context));
    let gives_way = attached.at(place) == Target::Blocked;
    let mut outcome = Outcome::Known;
    if gives_way && port.share.is_shared(port.ids().map(u32::from)) {
        // Devices that stay attached must not be led to the entry that goes.
        outcome = port.write_contexts(unit, context, Behind::Anything, gives_way);
    }
    // A PASID that was never linked is blocked.
    if let Some(tables) = &mut port.tables
        && tables.get(pasid).is_some()
    {
        outcome = outcome.and(tables.write(unit, pasid, &entry).into());
    }
    let behind = if is_blocked && outcome != Outcome::Unknown {
        Behind::Nothing
    } else {
        Behind::Anything
    };
    outcome.and(port.write_contexts(unit, context, behind, gives_way))
}

impl<M: TableMemory + 'static> Port<M> {
    /// Makes all context entries say what the device wants of them, or what others do that have the ID, too.
    fn write_contexts<D: CommandDevice>(
        &self,
        unit: &VtdUnit<M, D>,
        wanted: Option<ContextEntry>,
        behind: Behind,
        gives_way: bool,
    ) -> Outcome {
        let written = self.ids().map(|source_id| {
            self.write_context(unit, source_id, wanted, behind, gives_way)
                .into()
        });
        written.fold(Outcome::Known, Outcome::and)
    }

    fn write_context<D: CommandDevice>(
        &self,
        unit: &VtdUnit<M, D>,
        source_id: u16,
        wanted: Option<ContextEntry>,
        behind: Behind,
        gives_way: bool,
    ) -> Result<(), Unwritten> {
        self.share
            .lead(source_id.into(), wanted, gives_way, |entry| match entry {
                Some(entry) => unit.change(source_id, &entry, Behind::Anything),
                None => unit.change(source_id, &unit.blocked(), behind),
            })
    }
}

pub(super) fn walker<M: TableMemory + 'static, D: CommandDevice>(unit: &VtdUnit<M, D>) -> Walker {
    Walker {
        features: *unit.features(),
        mode: unit.root_table().mode(),
        planner: *unit.instance().planner(),
    }
}

/// Returns the width that entries name which pass all, if there are any.
fn through<M: TableMemory + 'static, D: CommandDevice>(
    unit: &VtdUnit<M, D>,
) -> Option<iopt_formats::context::vtd::AddressWidth> {
    let features = unit.features();
    features.widest().filter(|_| features.has_pass_through)
}

/// Returns a domain ID: they have 16 bits at most.
const fn did(id: u32) -> u16 {
    id as u16
}

impl<M, D> fmt::Debug for Vtd<M, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Vtd")
    }
}
