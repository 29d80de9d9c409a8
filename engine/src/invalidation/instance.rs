//! One hardware instance: what it can do, and the queue to it.

use core::fmt;

use smallvec::SmallVec;

use crate::invalidation::plan::Planner;
use crate::invalidation::queue::{Device, LIST_LIMIT, Queue, Ticket, WithSync};
use crate::invalidation::{Changes, SyncError};
use crate::sync::SYNC;

/// A command that a queue with entries `E` can carry.
pub trait Encode<E> {
    /// Returns the entry.
    fn entry(&self) -> E;
}

/// One IOMMU as domains see it that tell it what to forget.
pub struct Instance<P, D: Device> {
    planner: P,
    queue: Queue<D>,
    sync: WithSync,
}

impl<P, D> Instance<P, D>
where
    P: Planner<Command: Encode<D::Entry>>,
    D: Device,
{
    /// Creates an instance that can do what `planner` says and is reached through `queue`.
    pub const fn new(planner: P, queue: Queue<D>) -> Self {
        Self {
            planner,
            queue,
            sync: WithSync::Now,
        }
    }

    /// Lets lists go without a SYNC of their own, so that those who wait at the same time share one. That saves
    /// SYNCs where many threads wait, and costs the time between submission and wait where one does.
    #[must_use]
    pub fn with_shared_syncs(self) -> Self {
        Self {
            sync: WithSync::Later,
            ..self
        }
    }

    /// Returns what it can do.
    pub const fn planner(&self) -> &P {
        &self.planner
    }

    /// Returns the queue to it.
    pub const fn queue(&self) -> &Queue<D> {
        &self.queue
    }

    /// Makes it forget everything that it caches in the places that `tags` name, and waits for it: before a
    /// tag gets another meaning, and after a device context changed.
    ///
    /// `tags` rise: each [`Phase`](crate::invalidation::plan::Phase) is complete before the next begins.
    ///
    /// # Errors
    ///
    /// [`SyncError`] if the hardware fails or does not answer.
    pub fn forget(&self, tags: &[P::Tag]) -> Result<(), SyncError> {
        debug_assert!(tags.is_sorted(), "each phase has its turn once");
        let _waiting = SYNC.waiting();
        let everything = Changes::everything();
        for tags in tags.chunk_by(|one, next| P::phase(one) == P::phase(next)) {
            let ticket = self.send(tags.iter(), &everything)?;
            self.queue.wait(ticket)?;
        }
        Ok(())
    }

    /// Carries out commands, in their order, and waits for them: those that make it forget parts of a
    /// device's context.
    ///
    /// # Errors
    ///
    /// [`SyncError`] if the hardware fails or does not answer.
    pub fn execute(&self, commands: impl IntoIterator<Item = P::Command>) -> Result<(), SyncError> {
        let _waiting = SYNC.waiting();
        let ticket = self.submit(|emit| commands.into_iter().for_each(emit))?;
        self.queue.wait(ticket)
    }

    /// Sends the commands that `list` names, and a SYNC.
    pub(super) fn submit(
        &self,
        list: impl FnOnce(&mut dyn FnMut(P::Command)),
    ) -> Result<Ticket, SyncError> {
        let mut entries = List {
            queue: &self.queue,
            sync: WithSync::Now,
            entries: SmallVec::new(),
            ticket: Ok(Ticket::NOTHING),
        };
        list(&mut |command| entries.push(command.entry()));
        entries.finish()
    }

    /// Sends the commands that make the places of one phase forget `changes`, and a SYNC.
    pub(super) fn send<'t>(
        &self,
        tags: impl Iterator<Item = &'t P::Tag>,
        changes: &Changes,
    ) -> Result<Ticket, SyncError>
    where
        P::Tag: 't,
    {
        let mut list = List {
            queue: &self.queue,
            sync: self.sync,
            entries: SmallVec::new(),
            ticket: Ok(Ticket::NOTHING),
        };
        for tag in tags {
            self.planner
                .plan(tag, changes, |command| list.push(command.entry()));
        }
        list.finish()
    }
}

/// Entries on their way to a queue.
struct List<'q, D: Device> {
    queue: &'q Queue<D>,
    /// Whether the last part has a SYNC.
    sync: WithSync,
    entries: SmallVec<[D::Entry; LIST_LIMIT]>,
    /// Stands for what was handed over.
    ticket: Result<Ticket, SyncError>,
}

impl<D: Device> List<'_, D> {
    fn push(&mut self, entry: D::Entry) {
        if self.entries.len() == LIST_LIMIT {
            self.hand_over(WithSync::Later);
        }
        self.entries.push(entry);
    }

    fn hand_over(&mut self, sync: WithSync) {
        let entries = &self.entries;
        let before = core::mem::replace(&mut self.ticket, Ok(Ticket::NOTHING));
        self.ticket = before.and_then(|before| Ok(before.and(self.queue.submit(entries, sync)?)));
        self.entries.clear();
    }

    /// Hands the rest over. By reference: a list is too long to be moved on every invalidation.
    fn finish(&mut self) -> Result<Ticket, SyncError> {
        if !self.entries.is_empty() {
            self.hand_over(self.sync);
        }
        core::mem::replace(&mut self.ticket, Ok(Ticket::NOTHING))
    }
}

impl<P: fmt::Debug, D: Device> fmt::Debug for Instance<P, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Instance")
            .field("planner", &self.planner)
            .field("queue", &self.queue)
            .field("sync", &self.sync)
            .finish()
    }
}
