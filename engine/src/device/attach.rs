//! Attaching domains to groups, for requests with a PASID and for those without.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::mem;

use iopt_formats::command::Pasid;
use smallvec::SmallVec;

use crate::device::group::{Inner, Old, Unfit};
use crate::device::{
    AttachError, Condition, DefaultKind, DeviceAddress, DeviceGuard, Driver, Endpoint,
    GroupDomainError, Hwpt, Ownership, Registry, Report, UnknownDevice,
};
use crate::sync::{MutexGuard, lockdep};

type Endpoints = Vec<Arc<dyn Endpoint>>;

/// By what right something is attached.
#[derive(Clone, Copy, Debug)]
pub enum By<'a> {
    /// As the driver of the device, which uses the default domain, in a group that nobody owns. Other than
    /// for a PASID, the device must be the only one of its group; what comes later stays blocked, and without a
    /// driver that uses the default domain, until the group is in that again.
    Driver,
    /// As the owner of the group.
    Owner(&'a Ownership),
}

impl Registry {
    /// Attaches a domain to the group of a device, for requests without a PASID, in place of what is
    /// attached. If the device was left blocked before it takes part again, or this fails; others that were are
    /// brought back by their own names.
    ///
    /// # Errors
    ///
    /// [`AttachError`], with nothing changed.
    pub fn attach(
        &self,
        address: DeviceAddress,
        by: By<'_>,
        domain: &Arc<dyn Hwpt>,
    ) -> Result<(), AttachError> {
        let (number, mut group) = self.enter(address, by, true)?;
        if group.is_resetting() {
            return Err(AttachError::Resetting);
        }
        let attached = group.attach_named(number, None, domain);
        if attached.is_ok() && matches!(by, By::Driver) {
            let is_default = group
                .default
                .as_ref()
                .is_some_and(|it| group.is_current(it));
            group.private_of = (!is_default).then_some(number);
        }
        let attached = self.leave(group, attached);
        self.look_at(self.machine().group_of(number));
        attached
    }

    /// Ends what [`attach`](Self::attach) began: an owned group is blocked afterwards, another one in its
    /// default domain.
    ///
    /// # Errors
    ///
    /// [`AttachError`] if the caller has no right to.
    pub fn detach(&self, address: DeviceAddress, by: By<'_>) -> Result<(), AttachError> {
        let (number, mut group) = self.enter(address, by, true)?;
        let default = match by {
            By::Owner(_) => None,
            By::Driver => group.default.clone(),
        };
        let (old, unfit) = match default.map(|default| group.attach(&default)) {
            None => (group.block(), None),
            Some(Ok(old)) => (old, None),
            Some(Err(unfit)) => (group.block(), Some(unfit)),
        };
        let is_private = group.private_of.take().is_some();
        let has_left_out = is_private && group.has_left_out();
        drop(group);
        drop(old);
        self.tell_unfit(unfit);
        self.look_at(self.machine().group_of(number));
        if has_left_out {
            self.settle_left_out(self.machine().group_of(number));
        }
        Ok(())
    }

    /// Attaches a domain for requests with a PASID, to all members of the group that have any.
    ///
    /// # Errors
    ///
    /// [`AttachError`], with nothing changed.
    pub fn attach_pasid(
        &self,
        address: DeviceAddress,
        by: By<'_>,
        pasid: Pasid,
        domain: &Arc<dyn Hwpt>,
    ) -> Result<(), AttachError> {
        let attached = self.put_at_pasid(address, by, pasid, domain);
        self.look_at_group_of(address);
        attached
    }

    /// As [`attach_pasid`](Self::attach_pasid), without a [look](Self::look_at) at what came of it.
    pub(super) fn put_at_pasid(
        &self,
        address: DeviceAddress,
        by: By<'_>,
        pasid: Pasid,
        domain: &Arc<dyn Hwpt>,
    ) -> Result<(), AttachError> {
        self.change_pasid(address, by, pasid, domain, false)
    }

    /// Attaches another domain for requests with a PASID. The old one stays if that fails.
    ///
    /// # Errors
    ///
    /// [`AttachError`], with nothing changed.
    pub fn replace_pasid(
        &self,
        address: DeviceAddress,
        by: By<'_>,
        pasid: Pasid,
        domain: &Arc<dyn Hwpt>,
    ) -> Result<(), AttachError> {
        let replaced = self.change_pasid(address, by, pasid, domain, true);
        self.look_at_group_of(address);
        replaced
    }

    fn look_at_group_of(&self, address: DeviceAddress) {
        let machine = self.machine();
        if let Some(number) = machine.number_of(address) {
            self.look_at(machine.group_of(number));
        }
    }

    fn change_pasid(
        &self,
        address: DeviceAddress,
        by: By<'_>,
        pasid: Pasid,
        domain: &Arc<dyn Hwpt>,
        is_replacement: bool,
    ) -> Result<(), AttachError> {
        let (number, mut group) = self.enter(address, by, false)?;
        if group.is_resetting() {
            return Err(AttachError::Resetting);
        }
        let limit = group.pasid_limit();
        if pasid.get() == 0 || pasid.get() >= limit {
            return Err(AttachError::NoPasid { pasid, limit });
        }
        match (group.pasids.contains_key(&pasid), is_replacement) {
            (true, false) => return Err(AttachError::Attached { pasid }),
            (false, true) => return Err(AttachError::Detached { pasid }),
            _ => {}
        }
        let attached = group.attach_named(number, Some(pasid), domain);
        self.leave(group, attached)
    }

    /// Blocks requests with a PASID, to which something is attached.
    ///
    /// # Errors
    ///
    /// [`AttachError`] if nothing is, or the caller has no right to.
    pub fn detach_pasid(
        &self,
        address: DeviceAddress,
        by: By<'_>,
        pasid: Pasid,
    ) -> Result<(), AttachError> {
        let (number, mut group) = self.enter(address, by, false)?;
        if !group.pasids.contains_key(&pasid) {
            return Err(AttachError::Detached { pasid });
        }
        let old = group.block_pasid(pasid);
        drop(group);
        drop(old);
        self.look_at(self.machine().group_of(number));
        Ok(())
    }

    /// Blocks requests of a group with a PASID, if `domain` is what is attached: who attached it need not have a
    /// device or a right any more.
    pub(super) fn detach_from_pasid(&self, index: usize, pasid: Pasid, domain: &Arc<dyn Hwpt>) {
        let mut group = self.groups[index].lock();
        let old = if group.is_at(pasid, domain) {
            group.block_pasid(pasid)
        } else {
            Old::new()
        };
        drop(group);
        drop(old);
    }

    /// Asks hardware once more about what it did not confirm of a device, and says how the device stands; one
    /// without an IOMMU is sound. Does it as well where nobody waits for it: what is not confirmed is kept until
    /// something is attached, or this is called.
    ///
    /// # Errors
    ///
    /// [`UnknownDevice`] if the machine does not have it.
    pub fn look_after(&self, address: DeviceAddress) -> Result<Condition, UnknownDevice> {
        let number = self.number_of(address)?;
        let index = self.machine().group_of(number);
        let endpoint = {
            let group = self.groups[index].lock();
            let member = group.members.get(&number);
            member.map(|member| Arc::clone(&member.endpoint))
        };
        let Some(endpoint) = endpoint else {
            return Ok(Condition::Sound);
        };
        lockdep::assert_none_held();
        let condition = endpoint.look_after(true);
        self.note_condition(number, &endpoint, condition);
        Ok(condition)
    }

    /// Looks at the members of a group after a change, and tells what is new.
    pub(super) fn look_at(&self, index: usize) {
        let endpoints: SmallVec<[_; 2]> = {
            let group = self.groups[index].lock();
            let members = group.members.iter();
            let endpoints = members.map(|(&number, it)| (number, Arc::clone(&it.endpoint)));
            endpoints.collect()
        };
        for (number, endpoint) in endpoints {
            let condition = endpoint.look_after(false);
            self.note_condition(number, &endpoint, condition);
        }
    }

    fn note_condition(&self, number: usize, endpoint: &Arc<dyn Endpoint>, condition: Condition) {
        let machine = self.machine();
        let is_news = {
            let mut group = self.groups[machine.group_of(number)].lock();
            let member = group.members.get_mut(&number);
            let member = member.filter(|member| Arc::ptr_eq(&member.endpoint, endpoint));
            member.is_some_and(|it| mem::replace(&mut it.condition, condition) != condition)
        };
        let device = machine.address(number);
        self.tell(is_news.then_some(Report::Condition { device, condition }));
    }

    /// Returns whether `domain` is what is attached to a group for requests with a PASID.
    pub(super) fn is_at(&self, group: usize, pasid: Pasid, domain: &Arc<dyn Hwpt>) -> bool {
        self.groups[group].lock().is_at(pasid, domain)
    }

    /// Checks that a device can use what the caller attaches to its group for requests with a PASID, or what is
    /// attached there.
    ///
    /// # Errors
    ///
    /// [`AttachError`] if the caller has no right to, or the device has no such PASID or does not take part in
    /// what its group is attached to.
    pub(super) fn check_pasid(
        &self,
        address: DeviceAddress,
        by: By<'_>,
        pasid: Pasid,
    ) -> Result<(), AttachError> {
        let (number, group) = self.enter(address, by, false)?;
        let member = group.members.get(&number);
        let Some(member) = member.filter(|member| member.has_joined) else {
            return Err(AttachError::NoIommu { address });
        };
        let limit = member.endpoint.max_pasids();
        if pasid.get() == 0 || pasid.get() >= limit {
            return Err(AttachError::NoPasid { pasid, limit });
        }
        Ok(())
    }

    /// Returns what is attached to the group of a device, for requests with a PASID or without one; `None`
    /// if they are blocked.
    pub fn attached(&self, address: DeviceAddress, pasid: Option<Pasid>) -> Option<Arc<dyn Hwpt>> {
        let number = self.machine().number_of(address)?;
        let group = self.groups[self.machine().group_of(number)].lock();
        match pasid {
            None => group.current.clone(),
            Some(pasid) => group.pasids.get(&pasid).cloned(),
        }
    }

    /// Makes a domain that fits the group of a device.
    ///
    /// # Errors
    ///
    /// [`GroupDomainError`].
    pub fn new_domain(
        &self,
        address: DeviceAddress,
        kind: DefaultKind,
    ) -> Result<Arc<dyn Hwpt>, GroupDomainError> {
        let (driver, endpoints) = self.members_for_domain(address)?;
        lockdep::assert_none_held();
        Ok(driver.new_domain(kind, &endpoints)?)
    }

    /// Returns who makes a domain for the group of a device, and which endpoints it has to fit.
    pub(super) fn members_for_domain(
        &self,
        address: DeviceAddress,
    ) -> Result<(Arc<dyn Driver>, Endpoints), GroupDomainError> {
        let number = self.number_of(address)?;
        let group = self.groups[self.machine().group_of(number)].lock();
        let Some(member) = group.members.get(&number) else {
            return Err(GroupDomainError::NoIommu { address });
        };
        let members = group.members.values();
        let endpoints = members.map(|member| Arc::clone(&member.endpoint));
        Ok((Arc::clone(&member.driver), endpoints.collect()))
    }

    /// Checks that a device's group is ready and the caller may change what is attached.
    fn enter(
        &self,
        address: DeviceAddress,
        by: By<'_>,
        needs_whole: bool,
    ) -> Result<(usize, MutexGuard<'_, Inner>), AttachError> {
        let number = self.number_of(address)?;
        let index = self.machine().group_of(number);
        let state = self.lock();
        let device = state.device(number).ok_or(UnknownDevice { address })?;
        let Some(probed) = device.probed() else {
            return Err(AttachError::NoIommu { address });
        };
        let group = self.groups[index].lock();
        let is_allowed = match by {
            By::Owner(ownership) => ownership.is_of(self, index),
            By::Driver => {
                let is_claim = device.bound.as_ref().is_some_and(|bound| bound.is_claim);
                // What came into the group later is kept out of the driver's own domain.
                let has_whole =
                    self.machine().members_of(index).len() == 1 || group.private_of == Some(number);
                is_claim && (!needs_whole || has_whole)
            }
        };
        if !is_allowed {
            return Err(AttachError::NotOwner);
        }
        if !probed.is_settled {
            return Err(AttachError::NoIommu { address });
        }
        Ok((number, group))
    }

    fn leave(
        &self,
        group: MutexGuard<'_, Inner>,
        attached: Result<Old, Unfit>,
    ) -> Result<(), AttachError> {
        drop(group);
        let attached = attached.map(drop::<Old>);
        attached.map_err(|unfit| AttachError::Failed {
            device: self.machine().address(unfit.number),
            error: unfit.error,
        })
    }
}

impl DeviceGuard<'_> {
    /// Begins a reset of a device: it is blocked, and nothing can be attached to its group until the reset
    /// [ends](Self::end_reset). Does nothing for a device without an IOMMU.
    pub fn begin_reset(&mut self) {
        let (registry, number) = self.place();
        let mut group = registry.groups[registry.machine().group_of(number)].lock();
        group.part(number);
        if let Some(member) = group.members.get_mut(&number) {
            member.is_resetting = true;
        }
        drop(group);
        registry.look_at(registry.machine().group_of(number));
    }

    /// Ends a reset: the device is attached to what its group is attached to by now; if it cannot be, it
    /// stays blocked, as a [report](crate::device::Report::LeftBlocked) says.
    pub fn end_reset(&mut self) {
        let (registry, number) = self.place();
        let unfit = {
            let mut group = registry.groups[registry.machine().group_of(number)].lock();
            let member = group.members.get_mut(&number);
            let Some(member) = member.filter(|member| member.is_resetting) else {
                return;
            };
            member.is_resetting = false;
            if member.has_joined {
                group.rejoin(number)
            } else {
                None
            }
        };
        registry.tell_unfit(unfit);
        registry.look_at(registry.machine().group_of(number));
    }
}

impl Inner {
    fn is_at(&self, pasid: Pasid, domain: &Arc<dyn Hwpt>) -> bool {
        let attached = self.pasids.get(&pasid);
        attached.is_some_and(|it| core::ptr::addr_eq(Arc::as_ptr(it), Arc::as_ptr(domain)))
    }

    /// Returns the smallest number of PASIDs of members that have any; 0 if none has.
    fn pasid_limit(&self) -> u32 {
        let members = self.members.values();
        let counts = members.map(|member| member.endpoint.max_pasids());
        counts.filter(|&count| count > 0).min().unwrap_or(0)
    }

    /// Attaches a member again that was being reset, or leaves it out.
    fn rejoin(&mut self, number: usize) -> Option<Unfit> {
        let unfit = self.reattach(number).err()?;
        if let Some(member) = self.members.get_mut(&number) {
            member.has_joined = false;
        }
        Some(unfit)
    }
}
