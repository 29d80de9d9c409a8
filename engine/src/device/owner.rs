//! Exclusive use of groups, as by somebody who gives their devices to a guest.

use alloc::sync::Arc;
use core::fmt;

use crate::device::group::{Claim, Unfit};
use crate::device::{DeviceAddress, OwnError, Registry, Report, UnknownDevice};

/// Somebody who owns groups. Clones of one `Arc` are one owner.
#[derive(Debug)]
pub struct Owner {
    name: &'static str,
}

impl Owner {
    /// Creates an owner; the name is for people.
    pub fn new(name: &'static str) -> Arc<Self> {
        Arc::new(Self { name })
    }

    /// Returns the name.
    pub const fn name(&self) -> &'static str {
        self.name
    }
}

/// A group in exclusive use. From the first of an owner's claims on it the group is blocked, until something
/// is attached; after the last one is dropped it is in its default domain.
pub struct Ownership {
    registry: Arc<Registry>,
    group: usize,
    owner: Arc<Owner>,
}

impl Ownership {
    /// Returns whose it is.
    pub const fn owner(&self) -> &Arc<Owner> {
        &self.owner
    }

    /// Returns whether it is of this group.
    pub(super) fn is_of(&self, registry: &Registry, group: usize) -> bool {
        core::ptr::eq(&raw const *self.registry, registry) && self.group == group
    }
}

impl Drop for Ownership {
    fn drop(&mut self) {
        let ((old, unfit), has_left_out) = {
            let mut group = self.registry.groups[self.group].lock();
            let is_last = match &mut group.owner {
                Some(claim) if claim.count > 1 => {
                    claim.count -= 1;
                    false
                }
                _ => true,
            };
            if is_last {
                group.owner = None;
                (group.restore(), group.has_left_out())
            } else {
                Default::default()
            }
        };
        drop(old);
        self.registry.tell_unfit(unfit);
        self.registry.look_at(self.group);
        if has_left_out {
            self.registry.settle_left_out(self.group);
        }
    }
}

impl fmt::Debug for Ownership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ownership")
            .field("owner", &self.owner)
            .field("group", &self.group)
            .finish_non_exhaustive()
    }
}

impl Registry {
    /// Takes the group of a device into exclusive use; the same owner may do so once for each of its
    /// devices, or more often.
    ///
    /// # Errors
    ///
    /// [`OwnError`], with nothing changed.
    pub fn claim_owner(
        self: &Arc<Self>,
        address: DeviceAddress,
        owner: &Arc<Owner>,
    ) -> Result<Ownership, OwnError> {
        let number = self.number_of(address)?;
        let group = self.machine().group_of(number);
        let state = self.lock();
        let device = state.device(number).ok_or(UnknownDevice { address })?;
        let is_settled = device.probed().is_some_and(|probed| probed.is_settled);
        if !is_settled || self.is_changing(&state, number) {
            return Err(OwnError::NoIommu { address });
        }
        let mut inner = self.groups[group].lock();
        if inner.driver_count > 0 {
            return Err(OwnError::InUse);
        }
        let mut old = None;
        let has_pasids = !inner.pasids.is_empty();
        match &mut inner.owner {
            Some(claim) if Arc::ptr_eq(&claim.owner, owner) => claim.count += 1,
            Some(_) => return Err(OwnError::Owned),
            None if has_pasids => return Err(OwnError::Pasids),
            None => {
                inner.owner = Some(Claim {
                    owner: Arc::clone(owner),
                    count: 1,
                });
                // The claim holds from here on; the hardware takes longer.
                drop(state);
                old = Some(inner.block());
            }
        }
        drop(inner);
        drop(old);
        self.look_at(group);
        Ok(Ownership {
            registry: Arc::clone(self),
            group,
            owner: Arc::clone(owner),
        })
    }

    /// Returns who owns the group of a device.
    pub fn owner(&self, address: DeviceAddress) -> Option<Arc<Owner>> {
        let number = self.machine().number_of(address)?;
        let group = self.groups[self.machine().group_of(number)].lock();
        let claim = group.owner.as_ref()?;
        Some(Arc::clone(&claim.owner))
    }

    pub(super) fn tell_unfit(&self, unfit: impl IntoIterator<Item = Unfit>) {
        let unfit = unfit.into_iter();
        self.tell(unfit.map(|unfit| Report::LeftBlocked {
            device: self.machine().address(unfit.number),
            error: unfit.error,
        }));
    }
}
