//! One hardware instance: what it can do, and the queue to it.

use core::fmt;

use smallvec::SmallVec;

use crate::invalidation::plan::Planner;
use crate::invalidation::queue::{Device, LIST_LIMIT, Queue, Ticket, WithSync};
use crate::invalidation::{Changes, SyncError};
use crate::sync::SYNC;

/// How often a list is sent again that met the failure of a device which it had no part in.
const REPEAT_LIMIT: u32 = 3;

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
    /// `tags` rise: each [`Phase`](crate::invalidation::plan::Phase) is complete before the next begins. What fails
    /// only because a device of somebody else did not answer is sent again.
    ///
    /// # Errors
    ///
    /// [`SyncError`] if the hardware fails or does not answer.
    pub fn forget(&self, tags: &[P::Tag]) -> Result<(), SyncError> {
        debug_assert!(tags.is_sorted(), "each phase has its turn once");
        let _waiting = SYNC.waiting();
        let everything = Changes::everything();
        for tags in tags.chunk_by(|one, next| P::phase(one) == P::phase(next)) {
            self.complete(|| self.send(tags.iter(), &everything))?;
        }
        Ok(())
    }

    /// Carries out commands, in their order, and waits for them: those that make it forget parts of a
    /// device's context. They are given again if they fail only because a device of somebody else did not answer,
    /// and [can be](Planner::can_repeat).
    ///
    /// # Errors
    ///
    /// [`SyncError`] if the hardware fails or does not answer.
    pub fn execute(
        &self,
        commands: impl IntoIterator<Item = P::Command, IntoIter: Clone>,
    ) -> Result<(), SyncError> {
        let _waiting = SYNC.waiting();
        let commands = commands.into_iter();
        self.complete(|| self.submit(|emit| commands.clone().for_each(emit)))
    }

    /// Sends a list and waits for it.
    pub(super) fn complete(
        &self,
        send: impl Fn() -> Result<Sent, SyncError>,
    ) -> Result<(), SyncError> {
        let sent = send()?;
        match self.queue.wait(sent.ticket) {
            Err(SyncError::DeviceTimedOut) if sent.can_repeat => self.repeat(send),
            outcome => outcome,
        }
    }

    /// Sends a list again that failed because a device did not answer. All that hardware has under way fails then,
    /// whoever asked the device; one that never answers must not keep everybody else from being told that theirs is
    /// done.
    #[cold]
    pub(super) fn repeat(
        &self,
        send: impl Fn() -> Result<Sent, SyncError>,
    ) -> Result<(), SyncError> {
        let mut outcome = Err(SyncError::DeviceTimedOut);
        for _ in 0..REPEAT_LIMIT {
            outcome = self.queue.wait(send()?.ticket);
            if outcome != Err(SyncError::DeviceTimedOut) {
                break;
            }
        }
        outcome
    }

    /// Sends the commands that `list` names, and a SYNC.
    pub(super) fn submit(
        &self,
        list: impl FnOnce(&mut dyn FnMut(P::Command)),
    ) -> Result<Sent, SyncError> {
        let mut entries = List::new(&self.queue, WithSync::Now);
        list(&mut |command| entries.push(command.entry(), P::can_repeat(&command)));
        entries.finish()
    }

    /// Sends the commands that make the places of one phase forget `changes`, and a SYNC.
    pub(super) fn send<'t>(
        &self,
        tags: impl Iterator<Item = &'t P::Tag>,
        changes: &Changes,
    ) -> Result<Sent, SyncError>
    where
        P::Tag: 't,
    {
        let mut list = List::new(&self.queue, self.sync);
        for tag in tags {
            self.planner.plan(tag, changes, |command| {
                list.push(command.entry(), P::can_repeat(&command));
            });
        }
        list.finish()
    }
}

/// A list that stands in the queue.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    pub(super) ticket: Ticket,
    /// Whether a device's failure can only be that of others.
    pub(super) can_repeat: bool,
}

/// Entries on their way to a queue.
struct List<'q, D: Device> {
    queue: &'q Queue<D>,
    /// Whether the last part has a SYNC.
    sync: WithSync,
    entries: SmallVec<[D::Entry; LIST_LIMIT]>,
    /// Whether all of them can be given again.
    can_repeat: bool,
    /// Stands for what was handed over.
    ticket: Result<Ticket, SyncError>,
}

impl<'q, D: Device> List<'q, D> {
    fn new(queue: &'q Queue<D>, sync: WithSync) -> Self {
        Self {
            queue,
            sync,
            entries: SmallVec::new(),
            can_repeat: true,
            ticket: Ok(Ticket::NOTHING),
        }
    }

    fn push(&mut self, entry: D::Entry, can_repeat: bool) {
        if self.entries.len() == LIST_LIMIT {
            self.hand_over(WithSync::Later);
        }
        self.entries.push(entry);
        self.can_repeat &= can_repeat;
    }

    fn hand_over(&mut self, sync: WithSync) {
        let entries = &self.entries;
        // Else the SYNC of somebody else answered for a device that he has nothing to do with.
        let sync = if self.can_repeat {
            sync
        } else {
            WithSync::Each
        };
        let before = core::mem::replace(&mut self.ticket, Ok(Ticket::NOTHING));
        self.ticket = before.and_then(|before| Ok(before.and(self.queue.submit(entries, sync)?)));
        self.entries.clear();
    }

    /// Hands the rest over. By reference: a list is too long to be moved on every invalidation.
    fn finish(&mut self) -> Result<Sent, SyncError> {
        if !self.entries.is_empty() {
            self.hand_over(self.sync);
        }
        let ticket = core::mem::replace(&mut self.ticket, Ok(Ticket::NOTHING))?;
        let can_repeat = self.can_repeat;
        Ok(Sent { ticket, can_repeat })
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
