//! Keeping the hardware's caches in step with the tables, with types that say what was told.
//!
//! ```text
//!             submit            wait
//!   Gather ----------> Pending -------> Flushed       hardware holds nothing of it any more
//!   MapSync                     `-----> Quarantined   unknown: keep pages, IOVA and tables
//! ```
//!
//! A change of a table gives a [`Gather`] (something went away) or a [`MapSync`] (something came,
//! and the hardware may cache that it was not there). Neither may be forgotten, hence `must_use`.
//! Only the wait for the hardware turns them into [`Flushed`], and only [`Flushed`] lets memory be
//! unpinned, an IOVA be used again or a table be freed. Nobody else can make one.
//!
//! The hardware is behind [`Invalidate`]:
//!
//! | implementation | for |
//! |---|---|
//! | [`InvalidationSet`] | IOMMUs with command queues: a [`plan`] for each [`Instance`], sent through its [`queue`] |
//! | [`Callback`] | tables that software walks, and translations that are kept elsewhere |
//! | [`NoHardware`] | tables that nothing walks |
//!
//! Syncs are strict. Who may put them off uses [`deferred`].

mod callback;
mod changes;
#[cfg(feature = "std")]
pub mod deferred;
mod gather;
mod instance;
#[cfg(feature = "std")]
mod places;
pub mod plan;
pub mod queue;
#[cfg(feature = "std")]
mod set;

use alloc::sync::Arc;

pub use crate::invalidation::callback::Callback;
pub use crate::invalidation::changes::{Changes, Kind, TableId};
pub use crate::invalidation::gather::{Flushed, Gather, JoinError, MapSync, Pending, Quarantined};
pub use crate::invalidation::instance::{Encode, Instance};
#[cfg(feature = "std")]
pub use crate::invalidation::set::{
    INSTANCE_LIMIT, InvalidationSet, PlacesAt, SetError, SetTicket,
};

/// The hardware that walks a table, or what stands for it.
///
/// An implementation turns [`Changes`] into commands. It is trusted: the engine frees tables, and
/// callers reuse memory, on the strength of a [`wait`](Self::wait) that succeeds. What devices do to
/// memory is beyond Rust's rules, so this is a duty and not an `unsafe` contract: a table is synced
/// with the hardware that walks it, and leaves every device context before it is dropped.
pub trait Invalidate {
    /// Names one submission, to be waited for.
    type Ticket;

    /// Queues what makes the hardware forget `changes`, behind the stores that made them: on a CPU
    /// that reorders stores, a full store barrier comes before the commands.
    ///
    /// # Errors
    ///
    /// [`SyncError`] if the commands cannot be queued.
    fn submit(&self, changes: &Changes) -> Result<Self::Ticket, SyncError>;

    /// Returns once no cache holds a translation of the submission's range, nor a pointer to a
    /// table that it retired. Must end in bounded time.
    ///
    /// # Errors
    ///
    /// [`SyncError`] if the hardware fails or does not answer in time.
    fn wait(&self, ticket: Self::Ticket) -> Result<(), SyncError>;

    /// Returns whether [`wait`](Self::wait) would return at once, without waiting. Who asks helps the submission
    /// on, where something has to be sent for that. By default it says that it would, so that the caller waits.
    fn is_done(&self, ticket: &mut Self::Ticket) -> bool {
        let _ = ticket;
        true
    }
}

impl<I: Invalidate + ?Sized> Invalidate for &I {
    type Ticket = I::Ticket;

    fn submit(&self, changes: &Changes) -> Result<Self::Ticket, SyncError> {
        (**self).submit(changes)
    }

    fn wait(&self, ticket: Self::Ticket) -> Result<(), SyncError> {
        (**self).wait(ticket)
    }

    fn is_done(&self, ticket: &mut Self::Ticket) -> bool {
        (**self).is_done(ticket)
    }
}

impl<I: Invalidate + ?Sized> Invalidate for Arc<I> {
    type Ticket = I::Ticket;

    fn submit(&self, changes: &Changes) -> Result<Self::Ticket, SyncError> {
        (**self).submit(changes)
    }

    fn wait(&self, ticket: Self::Ticket) -> Result<(), SyncError> {
        (**self).wait(ticket)
    }

    fn is_done(&self, ticket: &mut Self::Ticket) -> bool {
        (**self).is_done(ticket)
    }
}

/// Nothing walks the table, so there is nothing to tell.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoHardware;

impl Invalidate for NoHardware {
    type Ticket = ();

    fn submit(&self, changes: &Changes) -> Result<(), SyncError> {
        let _ = changes;
        Ok(())
    }

    fn wait(&self, (): ()) -> Result<(), SyncError> {
        Ok(())
    }
}

/// Why the hardware's caches are in an unknown state.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SyncError {
    /// The hardware did not answer in the time that the implementation allows.
    #[error("the hardware did not complete the invalidation in time")]
    TimedOut,
    /// The hardware reported an error for the commands.
    #[error("the hardware refused the invalidation")]
    Refused,
    /// A device did not confirm in time that it has forgotten translations that it cached itself.
    #[error("a device did not answer the invalidation of what it caches")]
    DeviceTimedOut,
    /// The hardware did not make room for the commands in the time that the implementation allows.
    #[error("the hardware's queue stayed full")]
    QueueFull,
}
