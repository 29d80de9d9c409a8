//! The hardware of one domain: every place where its translations are cached.
//!
//! ```text
//!   changes -> [instance 0: ASID 7 | instance 1: ASID 7, ASID 9 | instance 1: device TLB of 0:3.0]
//!              `------------- first round, all instances at once -------------' `- second round -'
//! ```
//!
//! A device that comes adds its places before its context points to the table; one that goes takes them
//! away after its context points elsewhere and its places have forgotten the domain. In between every
//! invalidation reaches them. The set is derived data: it equals, at any time, the places of all
//! attachments, counted.
//!
//! Places that cache what they got from others (device TLBs, what two stages were combined to) have their turn
//! in a later round, when those before are known to have forgotten it.

#[cfg(all(test, not(loom)))]
mod tests;

use alloc::boxed::Box;
use alloc::collections::TryReserveError;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::mem;

use smallvec::SmallVec;

use crate::invalidation::instance::{Encode, Instance};
use crate::invalidation::places::PlaceSet;
use crate::invalidation::plan::{Phase, Planner};
use crate::invalidation::queue::{self, Device};
use crate::invalidation::{Changes, Invalidate, SyncError};
use crate::sync::{DomainLock, INVALIDATION_SET, OnceLock, SYNC};

/// Instances that one domain may ever have been attached to.
pub const INSTANCE_LIMIT: usize = 64;

/// A place of an instance, which is named by the number of its slot.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Place<T> {
    instance: u8,
    tag: T,
}

/// The hardware of one domain, to sync its changes with.
///
/// # Memory orderings
///
/// A mapper changes the table and then reads the set; who attaches changes the set and then the device's
/// context. Both go through the set's lock. So either the mapper finds the new places, or its change was
/// visible before the context led the device to the table.
pub struct InvalidationSet<P: Planner, D: Device> {
    places: DomainLock<PlaceSet<Place<P::Tag>>>,
    /// Filled from the front, under the lock of `places`, and never emptied: tickets on their way refer to
    /// them.
    instances: Box<[Slot<P, D>]>,
}

type Slot<P, D> = OnceLock<Arc<Instance<P, D>>>;

/// Why a device cannot be attached.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SetError {
    /// The domain met too many instances.
    #[error("a domain cannot be attached to more than {INSTANCE_LIMIT} IOMMUs")]
    Instances,
    /// No memory for the set.
    #[error("no memory to note where a domain is cached")]
    Memory,
}

impl From<TryReserveError> for SetError {
    fn from(_: TryReserveError) -> Self {
        Self::Memory
    }
}

impl<P, D> InvalidationSet<P, D>
where
    P: Planner<Command: Encode<D::Entry>>,
    D: Device,
{
    /// Creates the hardware of a domain that no device is attached to.
    ///
    /// # Errors
    ///
    /// [`SetError::Memory`].
    pub fn new() -> Result<Self, SetError> {
        let mut instances = Vec::new();
        instances.try_reserve_exact(INSTANCE_LIMIT)?;
        instances.resize_with(INSTANCE_LIMIT, OnceLock::new);
        Ok(Self {
            places: DomainLock::with_class(&INVALIDATION_SET, PlaceSet::new()),
            instances: instances.into_boxed_slice(),
        })
    }

    /// Adds the places named by `tags` at an instance: from now on every sync reaches them. Comes before the
    /// device's context leads to the table. A place may be added many times and is counted.
    ///
    /// Waits, as [`detach`](Self::detach) does, for who is just sending commands, and so for room in the queues.
    ///
    /// # Errors
    ///
    /// [`SetError`]; nothing has changed then.
    pub fn attach(&self, instance: &Arc<Instance<P, D>>, tags: &[P::Tag]) -> Result<(), SetError> {
        let mut places = self.places.write();
        let (slot, number) = self.slot(instance).ok_or(SetError::Instances)?;
        *places = places.with(tags.iter().map(|&tag| Place {
            instance: number,
            tag,
        }))?;
        slot.get_or_init(|| Arc::clone(instance));
        Ok(())
    }

    /// Takes places away, once for each time that they were added. When it returns, no command for one that
    /// nobody else needs enters the queue any more. Comes after the device's context leads elsewhere and the
    /// instance [forgot](Instance::forget) the places.
    pub fn detach(&self, instance: &Arc<Instance<P, D>>, tags: &[P::Tag]) {
        let mut places = self.places.write();
        if let Some((_, number)) = self.slot(instance) {
            places.remove(tags.iter().map(|&tag| Place {
                instance: number,
                tag,
            }));
        }
    }

    /// Returns how often the place of `tag` at an instance was added.
    pub fn users(&self, instance: &Arc<Instance<P, D>>, tag: P::Tag) -> usize {
        let places = self.places.read();
        let slot = self.slot(instance);
        slot.map_or(0, |(_, instance)| places.users(&Place { instance, tag }))
    }

    /// Carries out commands about places of an instance, and waits for them. `list` gets the places and names the
    /// commands; the places stay until these stand in the queue, so that none comes after its place has gone. It is
    /// asked again for commands that are [given again](Instance::execute).
    ///
    /// # Errors
    ///
    /// [`SyncError`] if the hardware fails or does not answer.
    pub fn execute(
        &self,
        instance: &Arc<Instance<P, D>>,
        list: impl Fn(PlacesAt<'_, P::Tag>, &mut dyn FnMut(P::Command)),
    ) -> Result<(), SyncError> {
        let _waiting = SYNC.waiting();
        instance.complete(|| {
            let places = self.places.read();
            let places = match self.slot(instance) {
                Some((_, number)) => PlacesAt::new(&places, number),
                None => PlacesAt { places: &[] },
            };
            instance.submit(|emit| list(places, emit))
        })
    }

    /// Returns the slot of an instance, or the first free one.
    fn slot(&self, instance: &Arc<Instance<P, D>>) -> Option<(&Slot<P, D>, u8)> {
        let is_it = |slot: &Slot<P, D>| slot.get().is_none_or(|it| Arc::ptr_eq(it, instance));
        let index = self.instances.iter().position(is_it)?;
        Some((&self.instances[index], u8::try_from(index).ok()?))
    }

    /// Sends what makes the places of `phase` forget `changes`, and holds the places meanwhile: who attaches or
    /// detaches waits as long as the queues of the domain's instances have no room, at most their limits together.
    /// A place that left in between could be another domain's by the time its command is sent.
    fn send(&self, phase: Phase, changes: &Changes) -> Result<Round, SyncError> {
        let places = self.places.read();
        let mut round = Round::of(phase);
        for places in places
            .as_slice()
            .chunk_by(|(one, _), (next, _)| one.instance == next.instance)
        {
            let number = places[0].0.instance;
            let Some(instance) = self.instance(number) else {
                continue;
            };
            let tags = places.iter().map(|(place, _)| &place.tag);
            let later = tags
                .clone()
                .map(P::phase)
                .filter(|&later| later > phase)
                .min();
            round.next = match (round.next, later) {
                (Some(one), Some(other)) => Some(one.min(other)),
                (one, other) => one.or(other),
            };
            let sent = instance.send(tags.filter(|tag| P::phase(tag) == phase), changes)?;
            let ticket = sent.ticket;
            if !ticket.is_nothing() {
                round.tickets.push((number, ticket));
            }
        }
        Ok(round)
    }

    /// Waits for a round and sends the next, if there is one.
    fn finish(&self, round: Round, changes: &Changes) -> Result<Option<Round>, SyncError> {
        round.failed.map_or(Ok(()), Err)?;
        for (number, ticket) in round.tickets {
            let Some(instance) = self.instance(number) else {
                continue;
            };
            match instance.queue().wait(ticket) {
                Err(SyncError::DeviceTimedOut) if round.phase != Phase::DeviceTlb => {
                    self.repeat(instance, number, round.phase, changes)?;
                }
                outcome => outcome?,
            }
        }
        round
            .next
            .map(|phase| self.send(phase, changes))
            .transpose()
    }

    /// Sends what makes the places of `phase` at one instance forget `changes` again: those that are there by now,
    /// as whoever left had his forget everything.
    #[cold]
    fn repeat(
        &self,
        instance: &Instance<P, D>,
        number: u8,
        phase: Phase,
        changes: &Changes,
    ) -> Result<(), SyncError> {
        instance.repeat(|| {
            let places = self.places.read();
            let places = PlacesAt::new(&places, number).places.iter();
            let tags = places.map(|(place, _)| &place.tag);
            instance.send(tags.filter(|tag| P::phase(tag) == phase), changes)
        })
    }

    /// Returns an instance that places or tickets name.
    fn instance(&self, number: u8) -> Option<&Instance<P, D>> {
        let slot = self.instances.get(usize::from(number))?;
        slot.get().map(|instance| &**instance)
    }
}

/// The places of one instance in a set.
#[derive(Debug)]
pub struct PlacesAt<'s, T> {
    places: &'s [(Place<T>, usize)],
}

impl<T> Clone for PlacesAt<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for PlacesAt<'_, T> {}

impl<'s, T: Copy + Ord> PlacesAt<'s, T> {
    fn new(places: &'s PlaceSet<Place<T>>, instance: u8) -> Self {
        let all = places.as_slice();
        let first = all.partition_point(|(place, _)| place.instance < instance);
        let end = all.partition_point(|(place, _)| place.instance <= instance);
        Self {
            places: &all[first..end],
        }
    }

    /// Returns their tags, in rising order.
    pub fn tags(self) -> impl Iterator<Item = T> + use<'s, T> {
        self.places.iter().map(|(place, _)| place.tag)
    }

    /// Returns whether the place of `tag` is there.
    pub fn has(self, tag: T) -> bool {
        let found = self
            .places
            .binary_search_by_key(&tag, |(place, _)| place.tag);
        found.is_ok()
    }
}

/// Commands that may run at the same time.
#[derive(Debug)]
struct Round {
    phase: Phase,
    // Mostly one, and tickets are moved about.
    tickets: SmallVec<[(u8, queue::Ticket); 1]>,
    /// Which places have their turn when these are complete.
    next: Option<Phase>,
    /// Why there is no sense in waiting.
    failed: Option<SyncError>,
}

impl Round {
    fn of(phase: Phase) -> Self {
        Self {
            phase,
            tickets: SmallVec::new(),
            next: None,
            failed: None,
        }
    }
}

/// An invalidation on its way through all places of a domain.
#[derive(Debug)]
#[must_use = "nothing is known to be invalidated until it is waited for"]
pub struct SetTicket {
    changes: Changes,
    round: Round,
}

impl<P, D> Invalidate for InvalidationSet<P, D>
where
    P: Planner<Command: Encode<D::Entry>>,
    D: Device,
{
    type Ticket = SetTicket;

    /// Sends the first round to all instances.
    fn submit(&self, changes: &Changes) -> Result<SetTicket, SyncError> {
        Ok(SetTicket {
            changes: *changes,
            round: self.send(Phase::Iotlb, changes)?,
        })
    }

    /// Waits for each round and sends the next, to the places that are there by then. A round that fails only
    /// because a device of somebody else did not answer is sent again, a few times.
    fn wait(&self, ticket: SetTicket) -> Result<(), SyncError> {
        let SetTicket { changes, mut round } = ticket;
        while let Some(next) = self.finish(round, &changes)? {
            round = next;
        }
        Ok(())
    }

    fn is_done(&self, ticket: &mut SetTicket) -> bool {
        let SetTicket { changes, round } = ticket;
        loop {
            // All are asked, because asking helps each on.
            let tickets = round.tickets.iter_mut();
            let is_done = tickets.fold(true, |is_done, (number, ticket)| {
                let instance = self.instance(*number);
                is_done & instance.is_none_or(|it| it.queue().is_done(ticket))
            });
            if !is_done {
                return false;
            }
            if round.next.is_none() || round.failed.is_some() {
                // The wait looks at the outcome.
                return true;
            }
            let over = mem::replace(round, Round::of(round.phase));
            *round = match self.finish(over, changes) {
                Ok(Some(next)) => next,
                Ok(None) => return true,
                Err(error) => {
                    round.failed = Some(error);
                    return true;
                }
            };
        }
    }
}

impl<P: Planner, D: Device> fmt::Debug for InvalidationSet<P, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let instances = self.instances.iter().map_while(OnceLock::get);
        f.debug_struct("InvalidationSet")
            .field("instance_count", &instances.count())
            .finish_non_exhaustive()
    }
}
