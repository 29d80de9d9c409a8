//! What the architectures of IOMMUs differ in, where devices are attached.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use iopt_formats::command::Pasid;

use crate::device::context::{
    Attached, HardwareDomain, HardwareEndpoint, LinkError, Sharing, Tags, Unwritten,
};
use crate::device::fault::{Listeners, PageResponder};
use crate::device::ids::Ids;
use crate::device::process::ProcessTables;
use crate::device::{AttachFailure, DeviceAddress, DeviceControl, NewDomainError, Resolved};
use crate::invalidation::plan::Planner;
use crate::invalidation::queue::Device;
use crate::invalidation::{Encode, Instance};
use crate::mem::TableMemory;

/// One architecture: how its hardware is led to tables, and what it caches of the way.
///
/// A place is where requests of a device are led: those with a PASID, or (`None`) those without one. All that
/// is called with a port runs under the endpoint's lock.
///
/// | when | called |
/// |---|---|
/// | a device comes | [`port`](Self::port) for each of its instances |
/// | prepare | [`fits`](Self::fits), [`refusal`](Self::refusal), [`conflict`](Self::conflict), [`make`](Self::make), [`ids`](Self::ids), [`tags`](Self::tags) |
/// | commit, block | [`write`](Self::write), then [`device_tags`](Self::device_tags) |
pub trait Architecture: Sized + 'static {
    /// How changes become commands.
    type Planner: Planner<Command: Encode<<Self::Queue as Device>::Entry>, Tag: Send + Sync>
        + Send
        + Sync
        + 'static;
    /// The command queue.
    type Queue: Device + Send + Sync + 'static;
    /// Where the tables of domains and contexts lie.
    type Memory: TableMemory + 'static;
    /// An instance, as its user makes and registers it.
    type Unit: Send + Sync + fmt::Debug + 'static;
    /// How hardware is led to a domain's tables: what contexts say, but for the ID.
    type Stage: Copy + Send + Sync + fmt::Debug + 'static;
    /// What one device has at one instance: its IDs there, and context tables of its own. Hardware reads these
    /// until they are dropped.
    type Port: Send + 'static;

    /// Returns the way to an instance's command queue.
    fn instance(unit: &Self::Unit) -> &Arc<Instance<Self::Planner, Self::Queue>>;

    /// Returns whether an instance answers devices that ask for translations (ATS).
    fn has_ats(unit: &Self::Unit) -> bool;

    /// Returns how wide PASIDs can be at an instance, 20 bits at most; 0 if it has none.
    fn pasid_bits(unit: &Self::Unit) -> u8;

    /// Returns under which IDs an instance sees a device that no rule of firmware names, in rising order; none if
    /// it is not the instance's, or if the instance cannot tell.
    fn own_ids(unit: &Self::Unit, device: DeviceAddress) -> Vec<u32> {
        let _ = (unit, device);
        Vec::new()
    }

    /// Returns whether an instance can walk these tables.
    fn fits(unit: &Self::Unit, stage: &Self::Stage) -> bool;

    /// Returns what an instance cannot have in that place, whatever is in others; `None` if it can.
    fn refusal(
        unit: &Self::Unit,
        place: Option<Pasid>,
        target: Target<&Self::Stage>,
    ) -> Option<&'static str>;

    /// Returns what of `new` in one place cannot be beside `other` in another one of the same device; `None`
    /// if it can.
    fn conflict(
        unit: &Self::Unit,
        new: (Option<Pasid>, Target<&Self::Stage>),
        other: (Option<Pasid>, Target<&Self::Stage>),
    ) -> Option<&'static str>;

    /// Returns the IDs one of which a domain has at an instance while devices there use it: ASIDs or VMIDs, DIDs,
    /// domain IDs, PSCIDs or GSCIDs.
    fn ids<'u>(unit: &'u Self::Unit, stage: &Self::Stage) -> &'u Arc<Ids>;

    /// Makes a domain whose tables all instances of these devices can walk, fit for all that the devices can have.
    ///
    /// # Errors
    ///
    /// [`NewDomainError`].
    fn translate(
        memory: &Arc<Self::Memory>,
        endpoints: &[&HardwareEndpoint<Self>],
    ) -> Result<HardwareDomain<Self>, NewDomainError>;

    /// Takes a device in at one of its instances. Its contexts there are linked and block.
    ///
    /// # Errors
    ///
    /// [`LinkError`]. What was linked may stay.
    fn port(unit: &Self::Unit, arrival: &Arrival<'_>) -> Result<Self::Port, LinkError>;

    /// Returns how the device's IDs at the instance stand, and who else has them.
    fn sharing(port: &Self::Port) -> Sharing;

    /// Returns the places where translations by `stage`, under the domain's `id`, for requests of that place
    /// are cached, in rising order: the instance's own, and if it `has_ats` those of the device.
    fn tags(
        port: &Self::Port,
        place: Option<Pasid>,
        stage: &Self::Stage,
        id: u32,
        has_ats: bool,
    ) -> Tags<Self::Planner>;

    /// Returns how hardware is led to a process's own tables; `None` if it cannot walk them.
    fn process_stage(tables: &ProcessTables) -> Option<Self::Stage> {
        let _ = tables;
        None
    }

    /// Returns whether an instance passes on that devices ask for pages (PRI), and answers to them.
    fn has_page_requests(unit: &Self::Unit) -> bool {
        let _ = unit;
        false
    }

    /// Returns whether an instance can let a transaction wait while a fault is resolved.
    fn can_stall(unit: &Self::Unit) -> bool {
        let _ = unit;
        false
    }

    /// Returns whether requests with any PASID are led by what stands in the place of those without, as where tables
    /// of PASIDs are a guest's. Such a domain cannot resolve faults: they name PASIDs at which nothing is attached.
    fn has_guest_pasids(stage: &Self::Stage) -> bool {
        let _ = stage;
        false
    }

    /// Returns the way for answers to a device behind these instances; `None` if there is none.
    fn responder(units: &[Arc<Self::Unit>]) -> Option<Arc<dyn PageResponder>> {
        let _ = units;
        None
    }

    /// Returns which devices an instance's records of faults and page requests are about.
    fn listeners(unit: &Self::Unit) -> Option<&Listeners> {
        let _ = unit;
        None
    }

    /// Returns where the device itself caches translations for requests of that place, in rising order.
    fn device_tags(
        port: &Self::Port,
        place: Option<Pasid>,
    ) -> impl Iterator<Item = <Self::Planner as Planner>::Tag>;

    /// Gets all that is needed to lead a place to `target`, so that [`write`](Self::write) allocates nothing. All
    /// of the device's requests are led where they were before.
    ///
    /// # Errors
    ///
    /// [`AttachFailure`].
    fn make(
        unit: &Self::Unit,
        port: &mut Self::Port,
        place: Option<Pasid>,
        target: Target<&Self::Stage>,
    ) -> Result<(), AttachFailure>;

    /// Makes contexts say what `attached` has at `place`, where something else may have been, and what that means
    /// for those that the device's places share. Nothing is written where nothing changes, unless hardware did
    /// not confirm it. Cannot fail, and allocates nothing; at any moment each request is led where it was, where it
    /// shall be, or nowhere.
    ///
    /// When hardware has confirmed all, it has forgotten its copies of the contexts, in the order that the
    /// architecture demands, and the translations that requests could meet still: those it caches under an ID that
    /// remains. What it caches under the old domain's ID, and what the device caches, is forgotten later.
    fn write(
        unit: &Self::Unit,
        port: &mut Self::Port,
        place: Option<Pasid>,
        attached: &Attached<'_, Self>,
    ) -> Outcome;
}

/// Where requests are led.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Target<S> {
    /// Nowhere.
    Blocked,
    /// To the addresses that they name.
    Identity,
    /// To tables.
    Stage(S),
}

/// A device that comes to one of its instances.
#[derive(Clone, Copy, Debug)]
pub struct Arrival<'a> {
    /// What is known of it.
    pub device: &'a Resolved,
    /// Its IDs at the instance, at least one.
    pub ids: &'a [u32],
    /// How wide the PASIDs are that it will have, 20 bits at most; 0 if it has none.
    pub pasid_bits: u8,
    /// Who knows more.
    pub control: &'a dyn DeviceControl,
}

/// Whether everything that was written is known to be what hardware uses.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[must_use = "what hardware did not confirm must be kept"]
pub enum Outcome {
    /// It is.
    Known,
    /// Where it is not, it blocks for sure: nothing leads to what was there, nor to what shall be.
    Blocked,
    /// Hardware may use what was there.
    Unknown,
}

impl Outcome {
    /// Returns what is known of both.
    pub const fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Unknown, _) | (_, Self::Unknown) => Self::Unknown,
            (Self::Blocked, _) | (_, Self::Blocked) => Self::Blocked,
            (Self::Known, Self::Known) => Self::Known,
        }
    }
}

impl<T> From<Result<T, Unwritten>> for Outcome {
    fn from(written: Result<T, Unwritten>) -> Self {
        match written {
            Ok(_) => Self::Known,
            Err(Unwritten::Blocked(_)) => Self::Blocked,
            Err(_) => Self::Unknown,
        }
    }
}
