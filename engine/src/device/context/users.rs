//! By which IDs the instances know a domain, and who uses it there.
//!
//! # Invariants
//!
//! - **U1** (counted): an instance is in the list while at least one attachment at it lives, and has one ID of
//!   the domain meanwhile.
//! - **U2** (in the set): the places of an attachment are in the set, once for each attachment, from its
//!   making until it is left.
//! - **U3** (forgotten first): where contexts led to the domain, the ID is free, and a place of the instance's own
//!   caches is out of the set, only after the instance forgot all that it has there, which is after the last
//!   attachment's context led elsewhere. Where a planner has no command for a place alone, the sync of that context
//!   was what made the instance forget it.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use smallvec::SmallVec;

use crate::device::ids::{Id, IdError, Ids};
use crate::invalidation::plan::{Phase, Planner};
use crate::invalidation::queue::Device;
use crate::invalidation::{Encode, Instance, InvalidationSet, SetError, SyncError};
use crate::sync::{DOMAIN_IDS, Mutex};

/// Places of one attachment, in rising order.
pub type Tags<P> = SmallVec<[<P as Planner>::Tag; 4]>;

/// The attachments of one domain, with its invalidation set.
pub struct Users<P: Planner, D: Device> {
    set: Arc<InvalidationSet<P, D>>,
    instances: Mutex<Vec<Known<P, D>>>,
}

/// An instance that knows the domain.
struct Known<P, D: Device> {
    instance: Arc<Instance<P, D>>,
    id: Id,
    attachment_count: usize,
    /// Whether any context led to the domain under this ID.
    was_live: bool,
}

/// Why a domain cannot be used at an instance.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum JoinDomainError {
    /// No ID.
    #[error(transparent)]
    Id(#[from] IdError),
    /// No place in the set.
    #[error(transparent)]
    Set(#[from] SetError),
}

impl From<alloc::collections::TryReserveError> for JoinDomainError {
    fn from(_: alloc::collections::TryReserveError) -> Self {
        SetError::Memory.into()
    }
}

impl<P, D> Users<P, D>
where
    P: Planner<Command: Encode<D::Entry>>,
    D: Device,
{
    /// Creates the users of a domain that is synced with `set`: none.
    pub fn new(set: Arc<InvalidationSet<P, D>>) -> Arc<Self> {
        Arc::new(Self {
            set,
            instances: Mutex::new(&DOMAIN_IDS, Vec::new()),
        })
    }

    /// Returns the set.
    pub const fn set(&self) -> &Arc<InvalidationSet<P, D>> {
        &self.set
    }

    /// Returns the ID by which an instance knows the domain, if it does.
    pub fn id(&self, instance: &Arc<Instance<P, D>>) -> Option<u32> {
        let instances = self.instances.lock();
        let mut known = instances.iter();
        let known = known.find(|known| Arc::ptr_eq(&known.instance, instance));
        known.map(|known| known.id.get())
    }

    /// Makes a device at an instance a user. From now on every sync reaches the places that `tags` names for
    /// the domain's ID there, which is one of `ids` if the instance did not know the domain. Comes before
    /// the device's context leads to the domain.
    ///
    /// # Errors
    ///
    /// [`JoinDomainError`], with nothing changed.
    pub fn join(
        self: &Arc<Self>,
        instance: &Arc<Instance<P, D>>,
        ids: &Arc<Ids>,
        tags: impl FnOnce(u32) -> Tags<P>,
    ) -> Result<Attachment<P, D>, JoinDomainError> {
        let mut instances = self.instances.lock();
        let is_it = |known: &Known<P, D>| Arc::ptr_eq(&known.instance, instance);
        let id = if let Some(known) = instances.iter_mut().find(|known| is_it(known)) {
            let (id, tags) = (known.id.get(), tags(known.id.get()));
            self.set.attach(instance, &tags)?;
            known.attachment_count += 1;
            return Ok(self.attachment(instance, id, tags));
        } else {
            instances.try_reserve(1)?;
            ids.allocate()?
        };
        let tags = tags(id.get());
        if let Err(error) = self.set.attach(instance, &tags) {
            id.give_back_unused();
            return Err(error.into());
        }
        let number = id.get();
        instances.push(Known {
            instance: Arc::clone(instance),
            id,
            attachment_count: 1,
            was_live: false,
        });
        Ok(self.attachment(instance, number, tags))
    }

    fn attachment(
        self: &Arc<Self>,
        instance: &Arc<Instance<P, D>>,
        id: u32,
        tags: Tags<P>,
    ) -> Attachment<P, D> {
        Attachment {
            users: Arc::clone(self),
            instance: Arc::clone(instance),
            id,
            tags,
            was_live: false,
            has_left: false,
        }
    }

    /// Ends an attachment. The lock is held throughout, so that nobody joins under an ID that is being
    /// forgotten.
    fn leave(&self, attachment: &Attachment<P, D>) -> Result<(), SyncError> {
        let mut instances = self.instances.lock();
        let is_it = |known: &Known<P, D>| Arc::ptr_eq(&known.instance, &attachment.instance);
        let Some(at) = instances.iter().position(is_it) else {
            return Ok(());
        };
        let known = &mut instances[at];
        if known.was_live {
            // What devices cache was forgotten when their contexts changed, and they need not answer now.
            let is_last = |tag: &&P::Tag| self.set.users(&attachment.instance, **tag) == 1;
            let own = attachment.tags.iter();
            let own = own.filter(|tag| P::phase(tag) != Phase::DeviceTlb);
            let last: Tags<P> = own.filter(is_last).copied().collect();
            if !last.is_empty() {
                attachment.instance.forget(&last)?;
            }
        }
        self.set.detach(&attachment.instance, &attachment.tags);
        known.attachment_count -= 1;
        if known.attachment_count == 0 {
            // U3: forgotten above with its last places, or never used.
            instances.swap_remove(at).id.give_back_unused();
        }
        Ok(())
    }
}

impl<P: Planner, D: Device> fmt::Debug for Users<P, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Users")
            .field("set", &self.set)
            .finish_non_exhaustive()
    }
}

/// One use of a domain by a device at one instance.
///
/// Dropped, it is left, which is how preparations are taken back. Where the context, or what hardware holds of
/// it, may still lead to the domain, it must not be: it is [abandoned](Self::abandon).
pub struct Attachment<P, D>
where
    P: Planner<Command: Encode<D::Entry>>,
    D: Device,
{
    users: Arc<Users<P, D>>,
    instance: Arc<Instance<P, D>>,
    id: u32,
    tags: Tags<P>,
    /// Whether a context of its own led to the domain.
    was_live: bool,
    has_left: bool,
}

impl<P, D> Attachment<P, D>
where
    P: Planner<Command: Encode<D::Entry>>,
    D: Device,
{
    /// Returns the ID that the context has to name.
    pub const fn id(&self) -> u32 {
        self.id
    }

    /// Returns the places that syncs of the domain reach for it.
    pub fn tags(&self) -> &[P::Tag] {
        &self.tags
    }

    /// Returns the instance.
    pub const fn instance(&self) -> &Arc<Instance<P, D>> {
        &self.instance
    }

    /// Notes that a context is about to lead to the domain.
    pub fn set_live(&mut self) {
        self.was_live = true;
        let mut instances = self.users.instances.lock();
        let mut known = instances.iter_mut();
        if let Some(known) = known.find(|known| Arc::ptr_eq(&known.instance, &self.instance)) {
            known.was_live = true;
        }
    }

    /// Leaves the places in the set for ever, and the ID taken, as hardware may still use the domain.
    pub fn abandon(self) {
        core::mem::forget(self);
    }

    /// Ends it: the context leads elsewhere, and hardware and device have forgotten it. When this returns, no
    /// command for its places, as far as they are its own, enters the queue any more; if it was the last one
    /// of the domain at the instance, that has forgotten the domain and the ID is free.
    ///
    /// # Errors
    ///
    /// [`SyncError`] if the instance does not answer: it stays an attachment, and this can be tried again.
    pub fn leave(&mut self) -> Result<(), SyncError> {
        if !self.has_left {
            self.users.leave(self)?;
            self.has_left = true;
        }
        Ok(())
    }
}

impl<P, D> Drop for Attachment<P, D>
where
    P: Planner<Command: Encode<D::Entry>>,
    D: Device,
{
    fn drop(&mut self) {
        // If hardware does not answer, the place and the ID stay taken. A device that never used the domain caches
        // nothing of it, and is not to be asked by each sync from now on: it may be gone before the domain.
        if self.leave().is_err() && !self.was_live {
            let tags = self.tags.iter();
            let of_device = tags.filter(|tag| P::phase(tag) == Phase::DeviceTlb);
            let of_device: Tags<P> = of_device.copied().collect();
            self.users.set.detach(&self.instance, &of_device);
        }
    }
}

impl<P, D> fmt::Debug for Attachment<P, D>
where
    P: Planner<Command: Encode<D::Entry>>,
    D: Device,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attachment")
            .field("id", &self.id)
            .field("tags", &self.tags)
            .finish_non_exhaustive()
    }
}
